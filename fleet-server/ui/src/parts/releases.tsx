// Releases of a model: a table, and for the chosen one where it comes from, where it went and what was measured.
import { useState } from "preact/hooks";
import { api, call, type DataSet, type Release, type Rollout, type TrainingRun } from "../api";
import { now } from "../live";
import { ago, bytes, compare, count, metric, metricName, plural, points, shortDigest } from "../pure/format";
import { release as releaseWord, rollout as rolloutWord, run as runWord } from "../pure/words";
import { navigate, query, setQuery } from "../router";
import { may } from "../session";
import { Confirm } from "./dialog";
import { Chip } from "./lamp";
import { Empty } from "./page";

interface Props {
  releases: Release[];
  runs: TrainingRun[];
  datasets: DataSet[];
  rollouts: Rollout[];
  changed: () => void;
}

const KEY = /balanced_accuracy/;

/** The one figure for the table: balanced accuracy, where it counts most. */
function headline(release: Release): { name: string; old: number | null; new: number } | undefined {
  const rows = compare(release.metrics).filter((r) => r.new !== null && KEY.test(r.name));
  const row = ["held_back", "golden", "validation"].map((part) => rows.find((r) => r.name.startsWith(part))).find(Boolean) ?? rows[0];
  return row && row.new !== null ? { name: row.name, old: row.old, new: row.new } : undefined;
}

export function Releases({ releases, runs, datasets, rollouts, changed }: Props) {
  const chosen = releases.find((r) => r.id === query.value.get("release")) ?? releases[0];
  return (
    <section class="panel flush">
      <div class="panel-head">
        <h2>Releases</h2>
      </div>
      {releases.length === 0 || !chosen ? (
        <Empty title="No release yet">
          <pre class="code">andon releases publish DIR</pre>
        </Empty>
      ) : (
        <>
          <div class="scroll">
            <table class="rows">
              <thead>
                <tr>
                  <th>Release</th>
                  <th>State</th>
                  <th>Balanced accuracy</th>
                  <th class="num">Devices</th>
                  <th class="num">Size</th>
                  <th class="num">Made</th>
                </tr>
              </thead>
              <tbody>
                {releases.map((r) => (
                  <Row key={r.id} release={r} chosen={r.id === chosen.id} />
                ))}
              </tbody>
            </table>
          </div>
          <Detail release={chosen} runs={runs} datasets={datasets} rollouts={rollouts} changed={changed} />
        </>
      )}
    </section>
  );
}

function Row({ release, chosen }: { release: Release; chosen: boolean }) {
  const figure = headline(release);
  return (
    <tr class={chosen ? "link chosen" : "link"} onClick={() => setQuery({ release: release.id })}>
      <td>
        <button type="button" class="plain strong row-button" aria-pressed={chosen}>
          {release.id}
        </button>
      </td>
      <td>
        <Chip word={releaseWord(release.state)} />
      </td>
      <td>
        {figure ? (
          <>
            {figure.old !== null && <span class="faint">{metric(figure.name, figure.old)} → </span>}
            <b>{metric(figure.name, figure.new)}</b> <span class="note">{metricName(figure.name.split(".")[0] ?? "").toLowerCase()}</span>
          </>
        ) : (
          <span class="faint">not measured</span>
        )}
      </td>
      <td class="num">{count(release.devices)}</td>
      <td class="num">{bytes(release.bytes)}</td>
      <td class="num">{ago(release.created_ms, now.value)}</td>
    </tr>
  );
}

function Detail({ release, runs, datasets, rollouts, changed }: Omit<Props, "releases"> & { release: Release }) {
  const [asked, setAsked] = useState<"rollout" | "withdraw">();
  const [model = "", version = ""] = release.id.split("/");
  const rollout = rollouts.find((r) => r.release === release.id);
  const underWay = rollout !== undefined && rollout.finished_ms == null;
  return (
    <div class="release">
      <Lineage
        release={release}
        run={runs.find((r) => r.id === release.run)}
        dataset={datasets.find((d) => d.id === release.dataset)}
        rollout={rollout}
      />
      <div class="release-body">
        <Metrics metrics={release.metrics} />
        <div class="actions">
          {may.operate.value && release.state !== "withdrawn" && !underWay && (
            <button type="button" class="primary" onClick={() => setAsked("rollout")}>
              Roll out {release.id}
            </button>
          )}
          {may.operate.value && release.state !== "withdrawn" && (
            <button type="button" onClick={() => setAsked("withdraw")}>
              Withdraw
            </button>
          )}
        </div>
      </div>
      {asked === "rollout" && (
        <Confirm
          title={`Roll out ${release.id}?`}
          verb="Start rollout"
          act={async () => {
            const started = await call(api.POST("/api/v1/rollouts", { body: { release: release.id } }));
            navigate(`/rollouts/${encodeURIComponent(started.id)}`);
          }}
          close={() => setAsked(undefined)}
        >
          <p>It goes out in the waves of the model's policy, canary first, and stops by itself when a device rolls back.</p>
        </Confirm>
      )}
      {asked === "withdraw" && (
        <Confirm
          title={`Withdraw ${release.id}?`}
          verb="Withdraw"
          danger
          act={async () => {
            await call(api.POST("/api/v1/releases/{model}/{version}/withdraw", { params: { path: { model, version: Number(version) } } }));
            changed();
          }}
          close={() => setAsked(undefined)}
        >
          <p>It can no longer be rolled out, and no device can download it any more. {plural(release.devices, "device")} that run it keep running it.</p>
        </Confirm>
      )}
    </div>
  );
}

interface LineageProps {
  release: Release;
  run: TrainingRun | undefined;
  dataset: DataSet | undefined;
  rollout: Rollout | undefined;
}

function Lineage({ release, run, dataset, rollout }: LineageProps) {
  const items = dataset ? Object.values(dataset.items).reduce((a, b) => a + b, 0) : null;
  return (
    <ol class="lineage" aria-label={`Where ${release.id} comes from and where it went`}>
      {release.parent && (
        <li>
          <div class="lineage-box">
            <span class="note">From release</span>
            <b>{release.parent}</b>
          </div>
        </li>
      )}
      <li>
        <div class="lineage-box" title={release.dataset}>
          <span class="note">Data set</span>
          <span class="mono">{shortDigest(release.dataset)}</span>
          {items !== null && <span class="note">{plural(items, "image")}</span>}
        </div>
      </li>
      <li>
        <div class="lineage-box">
          <span class="note">Run</span>
          {run ? <b>{runWord(run.state).text}</b> : <b>{release.run ? shortDigest(release.run) : "Published by hand"}</b>}
        </div>
      </li>
      <li>
        <div class="lineage-box here" title={release.model}>
          <span class="note">Release</span>
          <b>{release.id}</b> <span class="mono faint">{shortDigest(release.model)}</span>
        </div>
      </li>
      <li>
        {rollout ? (
          <a class="lineage-box" href={`/rollouts/${encodeURIComponent(rollout.id)}`}>
            <span class="note">Rollout</span>
            <b>{rolloutWord(rollout.state).text}</b>
          </a>
        ) : (
          <div class="lineage-box">
            <span class="note">Rollout</span>
            <span class="faint">not yet</span>
          </div>
        )}
      </li>
    </ol>
  );
}

export function Metrics({ metrics }: { metrics: Record<string, number> }) {
  const rows = compare(metrics);
  if (rows.length === 0) return <p class="note">Nothing was measured.</p>;
  const paired = rows.some((r) => r.old !== null);
  return (
    <table class="metrics">
      <thead>
        <tr>
          <th>Measured</th>
          {paired && <th class="num">Before</th>}
          <th class="num">{paired ? "After" : "Value"}</th>
          {paired && <th class="num">Change</th>}
        </tr>
      </thead>
      <tbody>
        {rows.map((r) => {
          const change = r.old !== null && r.new !== null && r.old <= 1 && r.new <= 1 ? points(r.old, r.new) : "";
          const tone = change.startsWith("+") ? "better" : change.startsWith("−") ? "worse" : "";
          return (
            <tr key={r.name}>
              <th scope="row">{metricName(r.name)}</th>
              {paired && <td class="num">{r.old === null ? "" : metric(r.name, r.old)}</td>}
              <td class="num">{r.new === null ? "–" : metric(r.name, r.new)}</td>
              {paired && <td class={`num ${tone}`}>{change}</td>}
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}
