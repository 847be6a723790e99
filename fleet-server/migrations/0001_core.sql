-- People, devices, telemetry, samples, audit. Rules for both databases: see src/db/mod.rs.

CREATE TABLE person (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE TABLE session (
    token_sha256 TEXT PRIMARY KEY,
    person TEXT NOT NULL REFERENCES person (name) ON DELETE CASCADE,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);

CREATE TABLE api_token (
    id TEXT PRIMARY KEY,
    token_sha256 TEXT NOT NULL UNIQUE,
    person TEXT NOT NULL REFERENCES person (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    expires_ms BIGINT,
    created_ms BIGINT NOT NULL
);

CREATE TABLE audit (
    seq BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
);
-- The end of the chain, and the lock of who extends it.
CREATE TABLE audit_head (id BIGINT PRIMARY KEY, seq BIGINT NOT NULL, hash TEXT NOT NULL);
INSERT INTO audit_head (id, seq, hash)
VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE TABLE enrolment (
    token_sha256 TEXT PRIMARY KEY,
    device TEXT NOT NULL,
    site TEXT NOT NULL,
    line TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    used_ms BIGINT
);
CREATE INDEX enrolment_device ON enrolment (device);

CREATE TABLE device (
    id TEXT PRIMARY KEY,
    site TEXT NOT NULL,
    line TEXT NOT NULL,
    enrolled_ms BIGINT NOT NULL,
    -- Of the only certificate that is accepted, hexadecimal: enrolling again revokes the one before.
    certificate_serial TEXT NOT NULL,
    certificate_expires_ms BIGINT NOT NULL,
    online BIGINT NOT NULL DEFAULT 0,
    last_seen_ms BIGINT,
    -- The newest `Reported`, as JSON.
    reported TEXT,
    drift TEXT NOT NULL,
    -- The newest window, as JSON, and when it ended (never in the server's future).
    newest_window TEXT,
    newest_window_ms BIGINT,
    -- `Desired`, as JSON.
    desired TEXT NOT NULL
);

CREATE TABLE telemetry (
    device TEXT NOT NULL,
    boot TEXT NOT NULL,
    seq BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    -- `window` or `event`; `body` is its JSON.
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (device, boot, seq)
);
CREATE INDEX telemetry_time ON telemetry (device, kind, at_ms, boot, seq);
CREATE INDEX telemetry_received ON telemetry (received_ms);

CREATE TABLE alarm (
    id TEXT PRIMARY KEY,
    device TEXT NOT NULL REFERENCES device (id) ON DELETE CASCADE,
    cause TEXT NOT NULL,
    charts TEXT NOT NULL,
    frames BIGINT NOT NULL,
    raised_ms BIGINT NOT NULL,
    state TEXT NOT NULL,
    acknowledged_by TEXT,
    changed_ms BIGINT NOT NULL
);
CREATE INDEX alarm_device ON alarm (device, state);
CREATE INDEX alarm_time ON alarm (raised_ms, id);

-- An upload that has begun. Gone when the sample is stored.
CREATE TABLE upload (
    device TEXT NOT NULL,
    digest TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    manifest TEXT NOT NULL,
    begun_ms BIGINT NOT NULL,
    -- How often the assembled content had another digest.
    strikes BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (device, digest)
);
CREATE INDEX upload_begun ON upload (begun_ms);

CREATE TABLE sample (
    digest TEXT PRIMARY KEY,
    device TEXT NOT NULL,
    received_ms BIGINT NOT NULL,
    captured_ms BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    content_type TEXT NOT NULL,
    release_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    drift TEXT NOT NULL,
    -- `SampleManifest`, as JSON.
    manifest TEXT NOT NULL
);
CREATE INDEX sample_received ON sample (received_ms, digest);
CREATE INDEX sample_device ON sample (device, captured_ms);

CREATE TABLE label (
    sample TEXT PRIMARY KEY REFERENCES sample (digest) ON DELETE CASCADE,
    class TEXT NOT NULL,
    labelled_by TEXT NOT NULL,
    at_ms BIGINT NOT NULL
);
