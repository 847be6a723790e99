// Samples from the field as a grid. Predictions are hidden at first: who labels should not be told the answer.
import { useEffect, useState } from "preact/hooks";
import { api, type ApiError, asApiError, call, type Device, type Model, type Sample, sampleImage } from "../api";
import { now, useEvents, useResource } from "../live";
import { Dialog } from "../parts/dialog";
import { Glyph, Lamp } from "../parts/lamp";
import { Empty, Failed, Head, Loading } from "../parts/page";
import { ago, bytes, count, percent, time } from "../pure/format";
import { drift, reason, reasons } from "../pure/words";
import { query, setQuery } from "../router";
import { classesOf, type Filters, filters, readSamples, writeLabel } from "../samples";
import { may } from "../session";

const PAGE = 60;

export function SamplesPage() {
  const f = filters();
  const list = useSamples(f);
  const devices = useResource("devices", () => call(api.GET("/api/v1/devices", { params: { query: { limit: 500 } } })), { topics: ["device"] });
  const models = useResource("models", () => call(api.GET("/api/v1/models")), { topics: ["release"] });
  const overview = useResource("overview", () => call(api.GET("/api/v1/overview")), { topics: ["sample", "label"] });
  const [predictions, setPredictions] = useState(false);
  const open = list.items?.find((s) => s.id === query.value.get("sample"));
  const deskQuery = new URLSearchParams(Object.entries({ ...f, labelled: "false" }).filter((e): e is [string, string] => e[1] !== null));
  const filtered = f.device !== null || f.reason !== null || f.drift !== null || f.labelled !== null;
  return (
    <>
      <Head title="Samples" note={overview.data && `${count(overview.data.unlabelled)} of ${count(overview.data.samples)} wait for a label`}>
        {may.label.value && (
          <a class="button primary" href={`/label?${deskQuery}`}>
            Label these
          </a>
        )}
      </Head>
      <FilterBar f={f} devices={devices.data?.items ?? []} predictions={predictions} setPredictions={setPredictions} />
      {list.error && <Failed error={list.error} retry={list.reload} />}
      {list.items === undefined && !list.error && <Loading rows={6} />}
      {list.items?.length === 0 && (
        <Empty title={filtered ? "No sample matches" : "No samples yet"}>
          {filtered ? "Loosen the filters." : "Devices choose frames by themselves: some at random, and more while a drift alarm is open. They arrive here as soon as the link allows."}
        </Empty>
      )}
      <div class="grid">
        {list.items?.map((s) => (
          <Card key={s.id} sample={s} predictions={predictions} />
        ))}
      </div>
      {list.next && (
        <button type="button" onClick={list.more}>
          Show more
        </button>
      )}
      {open && (
        <Detail
          sample={open}
          classes={classesOf(models.data?.items ?? ([] as Model[]), open)}
          predictions={predictions}
          replace={list.replace}
          close={() => setQuery({ sample: null })}
        />
      )}
    </>
  );
}

interface List {
  key: string;
  items: Sample[] | undefined;
  next: string | null;
  error: ApiError | undefined;
}

/** The pages shown so far. New samples are put on top; the list below stays where the reader is. */
function useSamples(f: Filters) {
  const key = JSON.stringify(f);
  const empty: List = { key, items: undefined, next: null, error: undefined };
  const [state, setState] = useState<List>(empty);
  const current = state.key === key ? state : empty;

  const failed = (e: unknown) => setState((s) => ({ ...(s.key === key ? s : empty), error: asApiError(e) }));
  const reload = () => {
    readSamples(f, PAGE).then((page) => {
      setState((s) => {
        const fresh = new Set(page.items.map((i) => i.id));
        const last = page.items.at(-1);
        const old = s.key === key && s.items && last ? s.items.filter((i) => !fresh.has(i.id) && i.received_ms < last.received_ms) : [];
        return { key, items: [...page.items, ...old], next: old.length > 0 ? s.next : (page.next ?? null), error: undefined };
      });
    }, failed);
  };
  const more = () => {
    if (!current.next) return;
    readSamples(f, PAGE, current.next).then((page) => {
      setState((s) => {
        if (s.key !== key) return s;
        const known = new Set(s.items?.map((i) => i.id));
        return { ...s, items: [...(s.items ?? []), ...page.items.filter((i) => !known.has(i.id))], next: page.next ?? null };
      });
    }, failed);
  };
  const replace = (sample: Sample) => setState((s) => ({ ...s, items: s.items?.map((i) => (i.id === sample.id ? sample : i)) }));

  useEffect(reload, [key]);
  useEvents({ topics: ["sample", "label"] }, reload, 800, 3000);
  return { ...current, reload, more, replace };
}

interface FilterBarProps {
  f: Filters;
  devices: Device[];
  predictions: boolean;
  setPredictions: (shown: boolean) => void;
}

function FilterBar({ f, devices, predictions, setPredictions }: FilterBarProps) {
  const labelled: [string, string | null][] = [
    ["All", null],
    ["To label", "false"],
    ["Labelled", "true"],
  ];
  return (
    <div class="filters">
      <span class="segments" role="group" aria-label="Labelled">
        {labelled.map(([text, value]) => (
          <button key={text} type="button" aria-pressed={f.labelled === value} onClick={() => setQuery({ labelled: value })}>
            {text}
          </button>
        ))}
      </span>
      <Choice name="device" any="Any device" value={f.device} options={devices.map((d) => [d.id, d.id])} />
      <Choice name="reason" any="Any reason" value={f.reason} options={reasons.map((r) => [r, reason(r)])} />
      <Choice
        name="drift"
        any="Any drift state"
        value={f.drift}
        options={[
          ["true", "Under drift"],
          ["false", "While stable"],
        ]}
      />
      <label class="check">
        <input type="checkbox" checked={predictions} onChange={(e) => setPredictions(e.currentTarget.checked)} />
        Show predictions
      </label>
    </div>
  );
}

interface ChoiceProps {
  name: keyof Filters;
  any: string;
  value: string | null;
  options: [string, string][];
}

function Choice({ name, any, value, options }: ChoiceProps) {
  return (
    <select aria-label={name} value={value ?? ""} onChange={(e) => setQuery({ [name]: e.currentTarget.value || null })}>
      <option value="">{any}</option>
      {options.map(([v, text]) => (
        <option key={v} value={v}>
          {text}
        </option>
      ))}
    </select>
  );
}

function Card({ sample, predictions }: { sample: Sample; predictions: boolean }) {
  return (
    <button type="button" class="card" onClick={() => setQuery({ sample: sample.id })}>
      <img src={sampleImage(sample.id)} alt={`Sample ${sample.source}`} loading="lazy" decoding="async" />
      <span class="card-text">
        <span class="card-line">
          {sample.label ? <strong>{sample.label.class}</strong> : <span class="faint">no label</span>}
          <Glyph tone={drift(sample.drift).tone} />
        </span>
        <span class="card-line note">
          <span>{sample.device}</span>
          <span>{reason(sample.reason)}</span>
        </span>
        {predictions && (
          <span class="card-line note">
            <span>model: {sample.predicted}</span>
            <span>{percent(Math.max(...sample.scores), 0)}</span>
          </span>
        )}
      </span>
    </button>
  );
}

interface DetailProps {
  sample: Sample;
  classes: string[];
  predictions: boolean;
  replace: (sample: Sample) => void;
  close: () => void;
}

function Detail({ sample, classes, predictions, replace, close }: DetailProps) {
  const [error, setError] = useState<ApiError>();
  const write = (label: string | null) => {
    setError(undefined);
    writeLabel(sample, label).then(replace, (e: unknown) => setError(asApiError(e)));
  };
  const facts: [string, preact.ComponentChildren][] = [
    ["Device", <a href={`/devices/${encodeURIComponent(sample.device)}`}>{sample.device}</a>],
    ["Captured", time(sample.captured_ms, now.value)],
    ["Received", ago(sample.received_ms, now.value)],
    ["Frame", count(sample.frame)],
    ["Source", sample.source],
    ["Release", sample.release],
    ["Chosen as", reason(sample.reason)],
    ["Chance of choice", percent(sample.inclusion_probability, 2)],
    ["Drift then", <Lamp word={drift(sample.drift)} />],
    ["Size", bytes(sample.bytes)],
    ["Label", sample.label ? `${sample.label.class} by ${sample.label.by}` : "none"],
  ];
  return (
    <Dialog title={sample.source} close={close} wide>
      <div class="detail">
        <img src={sampleImage(sample.id)} alt={`Sample ${sample.source}`} />
        <div>
          <dl class="pairs">
            {facts.map(([name, value]) => (
              <div key={name}>
                <dt>{name}</dt>
                <dd>{value}</dd>
              </div>
            ))}
          </dl>
          {(predictions || sample.label) && <ul class="scores" aria-label="Scores of the model">
            {sample.scores.map((score, i) => (
              <li key={i}>
                <span>{classes[i] ?? `class ${i}`}</span>
                <span class="bar">
                  <i style={{ width: `${score * 100}%` }} />
                </span>
                <span class="num">{percent(score)}</span>
              </li>
            ))}
          </ul>}
        </div>
      </div>
      {error && <Failed error={error} />}
      {may.label.value && (
        <div class="classes">
          {classes.map((name) => (
            <button key={name} type="button" aria-pressed={sample.label?.class === name} onClick={() => write(name)}>
              {name}
            </button>
          ))}
          {sample.label && (
            <button type="button" class="plain" onClick={() => write(null)}>
              Remove label
            </button>
          )}
        </div>
      )}
    </Dialog>
  );
}
