// Training runs: what is going on, and what the gate said.
import { api, call, type TrainingRun } from "../api";
import { now } from "../live";
import { ago, duration, percent } from "../pure/format";
import { run as runWord } from "../pure/words";
import { may } from "../session";
import { useAct } from "./dialog";
import { Chip } from "./lamp";
import { Empty, Failed } from "./page";
import { setQuery } from "../router";

export function Runs({ runs, changed }: { runs: TrainingRun[]; changed: () => void }) {
  return (
    <section class="panel flush">
      <div class="panel-head">
        <h2>Training runs</h2>
      </div>
      {runs.length === 0 ? (
        <Empty title="No run yet">
          A run starts by itself when enough samples of drifted devices are labelled (see policy), or with "Train now".
        </Empty>
      ) : (
        <ol>
          {runs.map((r) => (
            <Run key={r.id} run={r} changed={changed} />
          ))}
        </ol>
      )}
    </section>
  );
}

function Run({ run: r, changed }: { run: TrainingRun; changed: () => void }) {
  const cancel = useAct(() => call(api.POST("/api/v1/runs/{id}/cancel", { params: { path: { id: r.id } } })), changed);
  const alive = r.state === "queued" || r.state === "running";
  const took = r.started_ms ? duration((r.finished_ms ?? now.value) - r.started_ms) : null;
  return (
    <li class="run">
      <div class="run-line">
        <Chip word={runWord(r.state)} />
        {r.release ? (
          <button type="button" class="plain strong" onClick={() => setQuery({ release: r.release ?? null })}>
            {r.release}
          </button>
        ) : (
          <span class="note">{r.parent ? `from ${r.parent}` : ""}</span>
        )}
        {r.attempt > 1 && <span class="warn-text">attempt {r.attempt}</span>}
        <span class="note right">
          {ago(r.created_ms, now.value)}
          {took && ` · ${took}`}
        </span>
        {alive && may.train.value && (
          <button type="button" class="plain" disabled={cancel.busy} onClick={cancel.run}>
            Cancel
          </button>
        )}
      </div>
      {alive && (
        <>
          <span class="bar" role="progressbar" aria-valuenow={Math.round(r.progress * 100)} aria-label="Progress of the run">
            <i style={{ width: `${r.progress * 100}%` }} />
          </span>
          <p class="note">{r.state === "queued" ? "waits for a worker" : `${r.stage.replaceAll("_", " ")}, ${percent(r.progress, 0)}`}</p>
        </>
      )}
      {r.verdict && <p class="verdict">{r.verdict}</p>}
      {cancel.error && <Failed error={cancel.error} />}
    </li>
  );
}
