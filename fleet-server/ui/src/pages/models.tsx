// A model: its releases with what was measured, the runs that made them, the data sets, and what happens by itself.
import { useState } from "preact/hooks";
import { api, call, type DataSet, type Model } from "../api";
import { now, useResource } from "../live";
import { useAct } from "../parts/dialog";
import { Empty, Failed, Head, Loaded } from "../parts/page";
import { PolicyPanel } from "../parts/policy";
import { Releases } from "../parts/releases";
import { Runs } from "../parts/runs";
import { ago, count, shortDigest } from "../pure/format";
import { may } from "../session";

export function ModelsPage({ name }: { name?: string }) {
  const models = useResource("models", () => call(api.GET("/api/v1/models")), { topics: ["release"] });
  return (
    <Loaded of={models} rows={6}>
      {({ items }) => {
        const model = items.find((m) => m.name === name) ?? (name === undefined ? items[0] : undefined);
        if (model) return <ModelView key={model.name} model={model} all={items} />;
        return (
          <>
            <Head title="Models" />
            {name === undefined ? (
              <Empty title="No model yet">
                <p>Train a first release from labelled images and publish it; that creates the model.</p>
                <pre class="code">{"andon-trainer fit --images DIR --weights FILE.pth --model NAME --out OUT\nandon releases publish OUT"}</pre>
              </Empty>
            ) : (
              <Empty title={`There is no model ${name}`}>
                See <a href="/models">all models</a>.
              </Empty>
            )}
          </>
        );
      }}
    </Loaded>
  );
}

function ModelView({ model, all }: { model: Model; all: Model[] }) {
  const query = { model: model.name, limit: 100 };
  const releases = useResource(`releases ${model.name}`, () => call(api.GET("/api/v1/releases", { params: { query } })), {
    topics: ["release", "rollout"],
  });
  const runs = useResource(`runs ${model.name}`, () => call(api.GET("/api/v1/runs", { params: { query } })), { topics: ["run", "release"] });
  const datasets = useResource(`datasets ${model.name}`, () => call(api.GET("/api/v1/datasets", { params: { query } })), { topics: ["run"] });
  const rollouts = useResource("rollouts", () => call(api.GET("/api/v1/rollouts", { params: { query: { limit: 100 } } })), { topics: ["rollout"] });
  const busy = runs.data?.items.some((r) => r.state === "running" || r.state === "queued") ?? false;
  const [started, setStarted] = useState(0);
  const train = useAct(
    () => call(api.POST("/api/v1/runs", { body: { model: model.name } })),
    () => {
      setStarted(started + 1);
      runs.reload();
    },
  );
  return (
    <>
      <Head title={all.length > 1 ? "Models" : model.name} note={`Classes: ${model.labels.join(", ")}`}>
        {may.train.value && (
          <button type="button" disabled={train.busy || busy} title={busy ? "A run is under way" : ""} onClick={train.run}>
            Train now
          </button>
        )}
      </Head>
      {all.length > 1 && (
        <nav class="tabs" aria-label="Models">
          {all.map((m) => (
            <a key={m.name} href={`/models/${encodeURIComponent(m.name)}`} {...(m.name === model.name ? { "aria-current": "page" as const } : {})}>
              {m.name}
            </a>
          ))}
        </nav>
      )}
      {train.error && <Failed error={train.error} />}
      <div class="split">
        <div class="stack">
          <Loaded of={releases} rows={4}>
            {(page) => (
              <Releases
                releases={page.items}
                runs={runs.data?.items ?? []}
                datasets={datasets.data?.items ?? []}
                rollouts={rollouts.data?.items ?? []}
                changed={releases.reload}
              />
            )}
          </Loaded>
          <Loaded of={runs} rows={3}>
            {(page) => <Runs runs={page.items} changed={runs.reload} />}
          </Loaded>
        </div>
        <div class="stack">
          <PolicyPanel model={model.name} />
          <Loaded of={datasets} rows={2}>
            {(page) => <DataSets sets={page.items} />}
          </Loaded>
        </div>
      </div>
    </>
  );
}

function DataSets({ sets }: { sets: DataSet[] }) {
  return (
    <section class="panel flush">
      <div class="panel-head">
        <h2>Data sets</h2>
      </div>
      {sets.length === 0 ? (
        <Empty title="No data set yet">
          <p>A run needs the images that the first release was trained on.</p>
          <pre class="code">andon datasets import DIR --model NAME</pre>
        </Empty>
      ) : (
        <ol>
          {sets.map((s) => (
            <li class="run" key={s.id}>
              <div class="run-line">
                <span class="mono" title={s.id}>
                  {shortDigest(s.id)}
                </span>
                <span class="note right">{ago(s.created_ms, now.value)}</span>
              </div>
              <p class="note">
                {Object.entries(s.items)
                  .map(([split, n]) => `${count(n)} ${split.replaceAll("_", " ")}`)
                  .join(", ")}
                {s.field_items > 0 && `; ${count(s.field_items)} from the field`}
              </p>
            </li>
          ))}
        </ol>
      )}
    </section>
  );
}
