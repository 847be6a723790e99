// What happens by itself. Read and written with its ETag, so that two editors cannot overwrite each other unseen.
import { useEffect, useState } from "preact/hooks";
import { api, type ApiError, asApiError, callWithResponse, type Policy } from "../api";
import { may } from "../session";
import { useAct } from "./dialog";
import { CloseIcon, PlusIcon } from "./icons";
import { Failed, Loading, Panel } from "./page";

const WAVES_MAX = 20;

export function PolicyPanel({ model }: { model: string }) {
  const [loaded, setLoaded] = useState<{ policy: Policy; etag: string }>();
  const [error, setError] = useState<ApiError>();
  const read = () => {
    setError(undefined);
    callWithResponse(api.GET("/api/v1/models/{name}/policy", { params: { path: { name: model } } })).then(
      ({ data, response }) => setLoaded({ policy: data, etag: response.headers.get("etag") ?? "" }),
      (e: unknown) => setError(asApiError(e)),
    );
  };
  useEffect(read, [model]);
  return (
    <Panel title="Policy" note="what happens by itself">
      {error ? <Failed error={error} retry={read} /> : loaded ? <Editor key={loaded.etag} model={model} {...loaded} saved={setLoaded} reload={read} /> : <Loading />}
    </Panel>
  );
}

interface EditorProps {
  model: string;
  policy: Policy;
  etag: string;
  saved: (loaded: { policy: Policy; etag: string }) => void;
  reload: () => void;
}

function Editor({ model, policy, etag, saved, reload }: EditorProps) {
  const [p, setP] = useState(policy);
  const set = (change: Partial<Policy>) => setP({ ...p, ...change });
  const changed = JSON.stringify(p) !== JSON.stringify(policy);
  const { busy, error, run } = useAct(async () => {
    const { data, response } = await callWithResponse(
      api.PUT("/api/v1/models/{name}/policy", { params: { path: { name: model } }, body: p, headers: { "If-Match": etag } }),
    );
    saved({ policy: (data as Policy | undefined) ?? p, etag: response.headers.get("etag") ?? "" });
  });
  return (
    <form
      class="form"
      onSubmit={(e) => {
        e.preventDefault();
        run();
      }}
    >
      <fieldset disabled={!may.train.value}>
        <Numeric
          name="Retrain when drifted devices have"
          unit="labelled samples (0: never)"
          value={p.retrain_labels_min}
          min={0}
          max={1_000_000}
          set={(v) => set({ retrain_labels_min: v })}
        />
        <div class="pair">
          <Numeric name="May lose on clean data" unit="points" value={p.clean_loss_max * 100} min={0} max={100} step={0.1} set={(v) => set({ clean_loss_max: v / 100 })} />
          <Numeric name="Must win under drift" unit="points" value={p.drift_gain_min * 100} min={0} max={100} step={0.1} set={(v) => set({ drift_gain_min: v / 100 })} />
        </div>
        <Numeric name="Int8 must agree" unit="%" value={p.agreement_min * 100} min={0} max={100} step={0.1} set={(v) => set({ agreement_min: v / 100 })} />
        <Numeric name="Trial on the device before it commits" unit="seconds" value={p.trial_s} min={0} max={604_800} set={(v) => set({ trial_s: v })} />
        <label class="check">
          <input type="checkbox" checked={p.auto_rollout} onChange={(e) => set({ auto_rollout: e.currentTarget.checked })} />
          Roll out by itself what passed the gate
        </label>
        <div>
          <p class="note">Waves: cumulative share of the fleet and soak time</p>
          <ol class="waves-edit">
            {p.waves.map((w, i) => {
              const put = (change: Partial<typeof w>) => set({ waves: p.waves.map((other, j) => (i === j ? { ...other, ...change } : other)) });
              return (
                <li key={i}>
                  <Numeric name="" label={`Wave ${i + 1}, percent`} unit="%" value={w.percent} min={1} max={100} set={(v) => put({ percent: v })} />
                  <Numeric name="" label={`Wave ${i + 1}, soak in seconds`} unit="s soak" value={w.soak_s} min={0} max={2_592_000} set={(v) => put({ soak_s: v })} />
                  <button type="button" class="plain" aria-label={`Remove wave ${i + 1}`} disabled={p.waves.length < 2} onClick={() => set({ waves: p.waves.filter((_, j) => j !== i) })}>
                    <CloseIcon />
                  </button>
                </li>
              );
            })}
          </ol>
          {p.waves.length < WAVES_MAX && (
            <button type="button" class="plain" onClick={() => set({ waves: [...p.waves, { percent: 100, soak_s: 0 }] })}>
              <PlusIcon /> Add wave
            </button>
          )}
        </div>
      </fieldset>
      {error && <Failed error={error} {...(error.status === 412 ? { retry: reload } : {})} />}
      {changed && (
        <div class="dialog-foot">
          <button type="button" onClick={() => setP(policy)}>
            Discard
          </button>
          <button type="submit" class="primary" disabled={busy}>
            Save policy
          </button>
        </div>
      )}
    </form>
  );
}

interface NumericProps {
  name: string;
  label?: string;
  unit: string;
  value: number;
  min: number;
  max: number;
  step?: number;
  set: (value: number) => void;
}

function Numeric({ name, label, unit, value, min, max, step, set }: NumericProps) {
  return (
    <label class="numeric">
      {name}
      <span>
        <input
          type="number"
          required
          aria-label={label ?? name}
          value={Number(value.toFixed(3))}
          min={min}
          max={max}
          step={step ?? 1}
          onInput={(e) => {
            const v = e.currentTarget.valueAsNumber;
            if (Number.isFinite(v)) set(v);
          }}
        />
        {unit}
      </span>
    </label>
  );
}
