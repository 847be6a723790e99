// The labelling desk: one big image, keys for classes, the next images already fetched. What the model said is hidden
// until the person has said it. The rules of the queue are in `../pure/queue.ts`; this page draws it and runs effects.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { api, type ApiError, asApiError, call, type Model, type Sample, sampleImage } from "../api";
import { useResource } from "../live";
import { CheckIcon } from "../parts/icons";
import { Glyph } from "../parts/lamp";
import { Empty, Failed, Head, Loading } from "../parts/page";
import { count, percent, plural } from "../pure/format";
import * as q from "../pure/queue";
import { reason } from "../pure/words";
import { navigate } from "../router";
import { classesOf, filters, readSamples, writeLabel } from "../samples";

const BATCH = 100;
const PREFETCH = 4;
const KEYS = 9;

export function LabelPage() {
  const f = filters();
  const [batch, setBatch] = useState(0);
  const [samples, setSamples] = useState<Sample[]>();
  const [error, setError] = useState<ApiError>();
  const models = useResource("models", () => call(api.GET("/api/v1/models")), { topics: ["release"] });
  const back = `/samples?${new URLSearchParams(f.device ? { device: f.device } : {})}`;

  const read = () => {
    setError(undefined);
    setSamples(undefined);
    readSamples({ ...f, labelled: f.labelled ?? "false" }, BATCH).then((page) => setSamples(page.items), (e: unknown) => setError(asApiError(e)));
  };
  useEffect(read, [batch, f.device, f.reason, f.drift, f.labelled]);

  if (error || models.error) {
    return (
      <>
        <Head title="Label" back={{ href: back, text: "Samples" }} />
        <Failed error={(error ?? models.error) as ApiError} retry={read} />
      </>
    );
  }
  if (!samples || !models.data) return <Loading rows={8} />;
  if (samples.length === 0) {
    return (
      <>
        <Head title="Label" back={{ href: back, text: "Samples" }} />
        <Empty title="Nothing to label">
          Every sample that matches has its label. New ones appear by themselves under <a href="/samples?labelled=false">samples</a>.
        </Empty>
      </>
    );
  }
  return <Desk key={batch} samples={samples} models={models.data.items} back={back} next={() => setBatch(batch + 1)} />;
}

interface DeskProps {
  samples: Sample[];
  models: Model[];
  back: string;
  next: () => void;
}

function Desk({ samples, models, back, next }: DeskProps) {
  const [queue, setQueue] = useState(() => q.start(samples.map((s) => ({ id: s.id, saved: s.label?.class ?? null }))));
  const latest = useRef(queue);
  const [guess, setGuess] = useState(false);

  const act = (action: q.Action) => {
    const [state, effects] = q.step(latest.current, action);
    latest.current = state;
    setQueue(state);
    for (const effect of effects) {
      const sample = samples.find((s) => s.id === effect.id);
      if (!sample) continue;
      writeLabel(sample, effect.label).then(
        () => act({ type: "settle", id: effect.id }),
        (e: unknown) => act({ type: "settle", id: effect.id, error: asApiError(e).message }),
      );
    }
  };

  const item = q.current(queue);
  const sample = item && samples[queue.at];
  const classes = useMemo(() => (sample ? classesOf(models, sample) : []), [models, sample]);
  useKeys({ classes, act, back, over: item === undefined, next, toggle: () => setGuess((g) => !g) });
  usePrefetch(samples, queue.at);

  const done = q.labelled(queue);
  const label = item ? q.labelOf(queue, item.id) : null;
  return (
    <div class="desk">
      <Progress queue={queue} done={done} back={back} guess={guess} setGuess={setGuess} />
      <div class="stage" aria-live="polite">
        {sample && item ? (
          <>
            <img key={sample.id} src={sampleImage(sample.id)} alt={`Sample ${sample.source}`} />
            {label !== null && (
              <span class="chip stage-label tone-busy">
                <CheckIcon />
                {label}
              </span>
            )}
            {(guess || label !== null) && (
              <span class="stage-guess">
                <span class="note">model </span>
                <b>{sample.predicted}</b> <span class="num">{percent(Math.max(...sample.scores), 0)}</span>
              </span>
            )}
            <span class="stage-note">
              {sample.device} · {sample.source} · {reason(sample.reason).toLowerCase()}
            </span>
          </>
        ) : (
          <Empty title={`${plural(done, "sample")} labelled`}>
            <p>{q.pending(queue) > 0 ? "The last ones are being saved." : "All of them are saved."}</p>
            <button type="button" class="primary" autofocus onClick={next}>
              Next batch
            </button>
          </Empty>
        )}
      </div>
      <div class="desk-keys">
        <div class="classes">
          {classes.slice(0, KEYS).map((name, i) => (
            <button key={name} type="button" aria-pressed={label === name} onClick={() => act({ type: "label", class: name })}>
              {name} <kbd>{i + 1}</kbd>
            </button>
          ))}
        </div>
        <div class="hints">
          <span>
            <kbd>←</kbd> <kbd>→</kbd> move
          </span>
          <span>
            <kbd>0</kbd> undo
          </span>
          <span>
            <kbd>P</kbd> prediction
          </span>
          <span>
            <kbd>Esc</kbd> leave
          </span>
        </div>
      </div>
    </div>
  );
}

interface ProgressProps {
  queue: q.Queue;
  done: number;
  back: string;
  guess: boolean;
  setGuess: (shown: boolean) => void;
}

function Progress({ queue, done, back, guess, setGuess }: ProgressProps) {
  const total = queue.items.length;
  useEffect(() => {
    document.title = `${done} of ${total} · Andon`;
  }, [done, total]);
  return (
    <div class="desk-progress">
      <a class="crumb" href={back}>
        Samples
      </a>
      <div>
        <div class="count" data-progress>
          {count(done)} of {count(total)}
        </div>
        <span class="bar" role="progressbar" aria-valuemin={0} aria-valuemax={total} aria-valuenow={done} aria-label="Labelled">
          <i style={{ width: `${(done / total) * 100}%` }} />
        </span>
        {queue.failed && (
          <p class="lamp tone-alarm" role="alert">
            <Glyph tone="alarm" />
            Not saved: {queue.failed.detail}
          </p>
        )}
      </div>
      <label class="check">
        <input type="checkbox" checked={guess} onChange={(e) => setGuess(e.currentTarget.checked)} />
        Show prediction
      </label>
    </div>
  );
}

interface KeysProps {
  classes: string[];
  act: (action: q.Action) => void;
  back: string;
  over: boolean;
  next: () => void;
  toggle: () => void;
}

function useKeys(props: KeysProps): void {
  const latest = useRef(props);
  latest.current = props;
  useEffect(() => {
    const pressed = (e: KeyboardEvent) => {
      if (e.ctrlKey || e.metaKey || e.altKey || (e.target instanceof HTMLInputElement && e.target.type !== "checkbox")) return;
      const { classes, act, back, toggle } = latest.current;
      const digit = /^[1-9]$/.test(e.key) ? classes[Number(e.key) - 1] : undefined;
      if (digit !== undefined) {
        if (!e.repeat) act({ type: "label", class: digit });
      } else if (e.key === "ArrowRight") act({ type: "move", by: 1 });
      else if (e.key === "ArrowLeft") act({ type: "move", by: -1 });
      else if (e.key === "0" || e.key === "Backspace") act({ type: "undo" });
      else if (e.key === "p" || e.key === "P") toggle();
      else if (e.key === "Escape") navigate(back);
      else return;
      e.preventDefault();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

/** The browser keeps what is decoded once, so that a keystroke shows the next image at once. */
function usePrefetch(samples: Sample[], at: number): void {
  const kept = useRef(new Map<string, HTMLImageElement>());
  useEffect(() => {
    const wanted = samples.slice(at + 1, at + 1 + PREFETCH);
    for (const id of kept.current.keys()) if (!wanted.some((s) => s.id === id)) kept.current.delete(id);
    for (const { id } of wanted) {
      if (kept.current.has(id)) continue;
      const image = new Image();
      image.src = sampleImage(id);
      kept.current.set(id, image);
    }
  }, [samples, at]);
}
