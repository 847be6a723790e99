-- Models, releases, rollouts, data sets, training runs. Rules for both databases: see src/db/mod.rs.

CREATE TABLE model (
    name TEXT PRIMARY KEY,
    -- Names of the classes, a JSON list. The same for every release of the model.
    labels TEXT NOT NULL,
    -- `Policy`, as JSON.
    policy TEXT NOT NULL,
    rev BIGINT NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE TABLE model_release (
    model TEXT NOT NULL REFERENCES model (name),
    version BIGINT NOT NULL,
    -- `candidate` until its files are published.
    state TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    -- Digest of `model.onnx`.
    digest TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    -- `Manifest`, as JSON.
    manifest TEXT NOT NULL,
    -- The files, as JSON.
    files TEXT NOT NULL,
    -- The training run that made it; one run makes one release.
    run TEXT UNIQUE,
    PRIMARY KEY (model, version)
);
CREATE INDEX model_release_time ON model_release (created_ms);

CREATE TABLE rollout (
    id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    version BIGINT NOT NULL,
    state TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    finished_ms BIGINT,
    -- `[Wave]`, as JSON.
    waves TEXT NOT NULL,
    wave BIGINT NOT NULL,
    trial_s BIGINT NOT NULL,
    -- The training run whose release it brings, where nobody asked for it.
    run TEXT UNIQUE,
    -- 1 when nothing is left to do.
    settled BIGINT NOT NULL,
    -- Grows when state or wave change.
    rev BIGINT NOT NULL
);
CREATE INDEX rollout_open ON rollout (settled, model);
CREATE INDEX rollout_time ON rollout (created_ms, id);

CREATE TABLE rollout_device (
    rollout TEXT NOT NULL REFERENCES rollout (id) ON DELETE CASCADE,
    device TEXT NOT NULL,
    wave BIGINT NOT NULL,
    state TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    offered_ms BIGINT,
    -- What the device was asked to run before.
    before_release TEXT,
    detail TEXT,
    PRIMARY KEY (rollout, device)
);
CREATE INDEX rollout_device_device ON rollout_device (device);

CREATE TABLE rollout_decision (
    rollout TEXT NOT NULL REFERENCES rollout (id) ON DELETE CASCADE,
    seq BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    what TEXT NOT NULL,
    why TEXT NOT NULL,
    decided_by TEXT NOT NULL,
    PRIMARY KEY (rollout, seq)
);

-- The items are the blob with the digest `id`.
CREATE TABLE dataset (
    id TEXT PRIMARY KEY,
    model TEXT NOT NULL REFERENCES model (name),
    parent TEXT,
    created_ms BIGINT NOT NULL,
    -- Items by split, as JSON.
    items TEXT NOT NULL,
    field_items BIGINT NOT NULL
);
CREATE INDEX dataset_model ON dataset (model, created_ms);

CREATE TABLE training_run (
    id TEXT PRIMARY KEY,
    model TEXT NOT NULL REFERENCES model (name),
    -- The version that the new release will have.
    version BIGINT NOT NULL,
    parent_version BIGINT NOT NULL,
    dataset TEXT NOT NULL REFERENCES dataset (id),
    state TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    why TEXT NOT NULL,
    started_ms BIGINT,
    finished_ms BIGINT,
    attempt BIGINT NOT NULL,
    -- The claim of the worker that has it, as JSON.
    claim TEXT,
    cancel BIGINT NOT NULL,
    progress DOUBLE PRECISION NOT NULL,
    stage TEXT NOT NULL,
    metrics TEXT NOT NULL,
    verdict TEXT,
    UNIQUE (model, version)
);
CREATE INDEX training_run_state ON training_run (state);
CREATE INDEX training_run_time ON training_run (created_ms, id);

-- The release that a device says it judges with.
ALTER TABLE device ADD COLUMN running TEXT;
CREATE INDEX device_running ON device (running);
