// One device: is it well, what do its drift charts say, what happened, what is under way.
import { useMemo } from "preact/hooks";
import { api, call, type Alarm, type Device, type DeviceEvent, type WindowPoint } from "../api";
import { now, useResource } from "../live";
import { AlarmStrip, labelHref } from "../parts/alarms";
import { Chart, type Line, type Mark } from "../parts/chart";
import { Chip, Glyph, Lamp } from "../parts/lamp";
import { Empty, Facts, Failed, Head, Loaded, Loading, Panel } from "../parts/page";
import { ago, bytes, count, micros, percent, rate, shortDigest, time } from "../pure/format";
import { chartNames, chartThreshold, chartValue, classRate, columns } from "../pure/series";
import { alarm as alarmWord, cause, chart as chartWord, drift, event as eventWord, type EventLike, lamp, update as updateWord } from "../pure/words";
import { query, setQuery } from "../router";
import { may } from "../session";
import { useTelemetry } from "../telemetry";

const RANGES: [string, number][] = [
  ["15 min", 15 * 60_000],
  ["1 h", 3_600_000],
  ["6 h", 6 * 3_600_000],
  ["24 h", 24 * 3_600_000],
];

export function DevicePage({ id }: { id: string }) {
  const device = useResource(`device ${id}`, () => call(api.GET("/api/v1/devices/{id}", { params: { path: { id } } })), {
    topics: ["device", "telemetry", "alarm", "rollout"],
  });
  const alarms = useResource(
    `alarms ${id}`,
    () => call(api.GET("/api/v1/alarms", { params: { query: { device: id, limit: 50 } } })),
    { topics: ["alarm", "sample"] },
  );
  const events = useResource(
    `events ${id}`,
    () => call(api.GET("/api/v1/devices/{id}/events", { params: { path: { id }, query: { limit: 100 } } })),
    { topics: ["device", "alarm"] },
  );
  const open = alarms.data?.items.filter((a) => a.state === "open") ?? [];
  return (
    <>
      <Head
        title={id}
        back={{ href: "/", text: "Fleet" }}
        beside={device.data && <Chip word={lamp(device.data)} />}
        note={device.data && `${device.data.site} / ${device.data.line}`}
      >
        {may.label.value && (
          <a class="button" href={`/samples?device=${encodeURIComponent(id)}`}>
            Samples
          </a>
        )}
        {may.label.value && open.length === 0 && (
          <a class="button primary" href={labelHref(id)}>
            Label samples
          </a>
        )}
      </Head>
      {alarms.error && <Failed error={alarms.error} retry={alarms.reload} />}
      <AlarmStrip alarms={open} changed={alarms.reload} />
      <Loaded of={device} rows={5}>
        {(d) => (
          <>
            <Panel>
              <Summary device={d} />
            </Panel>
            <Charts id={id} alarms={alarms.data?.items ?? []} events={events.data?.items ?? []} device={d} />
            <div class="columns">
              <Panel title="Events">
                <Loaded of={events}>{(page) => <Timeline events={page.items} />}</Loaded>
              </Panel>
              <div class="stack">
                <UpdatePanel device={d} />
                <SpoolPanel device={d} />
                <Panel title="Alarms">
                  <Loaded of={alarms}>{(page) => <Alarms alarms={page.items} />}</Loaded>
                </Panel>
              </div>
            </div>
          </>
        )}
      </Loaded>
    </>
  );
}

function Summary({ device }: { device: Device }) {
  const w = device.window;
  return (
    <Facts
      items={[
        ["Charts", <Lamp word={drift(device.drift)} />],
        ["Release", device.running?.release ?? "none yet"],
        ["Engine", device.running?.engine ?? "–"],
        ["Frames/s", w && device.online ? rate(w.frames, w.duration_ms) : "–"],
        ["Frames dropped", w && device.online ? count(w.frames_dropped) : "–"],
        ["Faults", w && device.online ? count(w.faults) : "–"],
        ["Latency p99", w && device.online && w.frames > 0 ? micros(w.latency_p99_us) : "–"],
        ["Last seen", ago(device.last_seen_ms, now.value)],
        ["Agent", device.agent_version ?? "–"],
        ["Enrolled", time(device.enrolled_ms, now.value)],
      ]}
    />
  );
}

interface ChartsProps {
  id: string;
  alarms: Alarm[];
  events: DeviceEvent[];
  device: Device;
}

function Charts({ id, alarms, events, device }: ChartsProps) {
  const chosen = RANGES.find(([name]) => name === query.value.get("range")) ?? RANGES[0];
  const rangeMs = chosen?.[1] ?? 0;
  const { points, loaded, error } = useTelemetry(id, rangeMs);
  const classes = useClasses(device.running?.release ?? null);
  const marks = useMemo<Mark[]>(
    () => [
      ...alarms.map((a) => ({ atMs: a.raised_ms, colour: "--lamp-red" })),
      ...events
        .filter(({ event }) => event.kind === "update" && event.phase === "committed")
        .map((e) => ({ atMs: e.at_ms, colour: "--accent" })),
    ],
    [alarms, events],
  );
  // The end moves with the data, not with the clock: a still picture while nothing arrives.
  const toMs = points.at(-1)?.at_ms ?? now.peek();
  const time = { fromMs: Math.max(toMs - rangeMs, Math.min(points[0]?.at_ms ?? 0, toMs - 60_000)), toMs, marks };
  return (
    <>
      <div class="filters">
        <span class="segments" role="group" aria-label="Time range">
          {RANGES.map(([name]) => (
            <button key={name} type="button" aria-pressed={name === chosen?.[0]} onClick={() => setQuery({ range: name })}>
              {name}
            </button>
          ))}
        </span>
        <span class="note legend-marks">
          <i class="swatch" style={{ borderColor: "var(--lamp-red)" }} />
          drift alarm
        </span>
        <span class="note">
          <i class="swatch" style={{ borderColor: "var(--accent)" }} />
          new release
        </span>
      </div>
      {error && <Failed error={error} />}
      {!loaded ? (
        <Loading rows={4} />
      ) : points.length === 0 ? (
        <Empty title="No telemetry in this range">
          {device.last_seen_ms === null || device.last_seen_ms === undefined
            ? "The device has never connected. Is its agent running, and does it reach the broker?"
            : "Choose a longer range. While a device is offline it keeps its records and sends them later."}
        </Empty>
      ) : (
        <div class="charts">
          <DriftCharts points={points} time={time} />
          <VerdictCharts points={points} time={time} classes={classes} />
        </div>
      )}
    </>
  );
}

function useClasses(release: string | null): string[] {
  const [model = "", version = ""] = release?.split("/") ?? [];
  const found = useResource(
    `classes ${release}`,
    async () => {
      if (!release) return [];
      return (await call(api.GET("/api/v1/releases/{model}/{version}", { params: { path: { model, version: Number(version) } } }))).labels;
    },
    { topics: [] },
  );
  return found.data ?? [];
}

interface Time {
  fromMs: number;
  toMs: number;
  marks: Mark[];
}

const short = (v: number) => (v >= 100 ? v.toFixed(0) : v.toFixed(1));

function DriftCharts({ points, time }: { points: WindowPoint[]; time: Time }) {
  const names = chartNames(points).join("\n");
  const charts = useMemo(
    () => (names ? names.split("\n") : []).map((name) => ({ name, data: columns(points, [chartValue(name), chartThreshold(name)]) })),
    [points, names],
  );
  const lines: Line[] = [
    { name: "now", colour: "--line-1", show: short, fill: true },
    { name: "alarm at", colour: "--lamp-red", show: short, limit: true },
  ];
  return (
    <>
      {charts.map(({ name, data }) => {
        const value = data.ys[0]?.at(-1);
        const limit = data.ys[1]?.at(-1);
        const over = value != null && limit != null && value >= limit;
        return (
          <section class="panel" key={name}>
            <Chart title={chartWord(name)} state={over ? <Glyph tone="alarm" /> : undefined} lines={lines} data={data} min={0} axis={short} {...time} />
          </section>
        );
      })}
    </>
  );
}

function VerdictCharts({ points, time, classes }: { points: WindowPoint[]; time: Time; classes: string[] }) {
  const n = Math.min(4, Math.max(classes.length, ...points.slice(-1).map((p) => p.window.class_counts.length)));
  const rates = useMemo(
    () => columns(points, Array.from({ length: n }, (_, i) => classRate(i))),
    [points, n],
  );
  const latency = useMemo(
    () =>
      columns(points, [
        (p) => (p.window.frames ? p.window.latency_p50_us : null),
        (p) => (p.window.frames ? p.window.latency_p99_us : null),
      ]),
    [points],
  );
  const confidence = useMemo(() => columns(points, [(p) => (p.window.frames ? p.window.confidence_mean : null)]), [points]);
  const share = (v: number) => percent(v, 0);
  return (
    <>
      <section class="panel">
        <Chart
          title="Verdicts by class"
          lines={Array.from({ length: n }, (_, i) => ({ name: classes[i] ?? `class ${i}`, colour: `--line-${i + 1}`, show: (v: number) => percent(v) }))}
          data={rates}
          min={0}
          max={1}
          axis={share}
          {...time}
        />
      </section>
      <section class="panel">
        <Chart
          title="Latency, capture to verdict"
          lines={[
            { name: "p50", colour: "--line-1", show: micros },
            { name: "p99", colour: "--line-2", show: micros },
          ]}
          data={latency}
          min={0}
          axis={micros}
          {...time}
        />
      </section>
      <section class="panel">
        <Chart
          title="Mean confidence"
          lines={[{ name: "confidence", colour: "--line-3", show: (v: number) => percent(v) }]}
          data={confidence}
          min={0}
          max={1}
          axis={share}
          {...time}
        />
      </section>
    </>
  );
}

function Timeline({ events }: { events: DeviceEvent[] }) {
  if (events.length === 0) return <Empty title="Nothing happened yet">Starts, alarms, updates and faults are listed here.</Empty>;
  return (
    <ol class="timeline">
      {events.map((e) => {
        const word = eventWord(e.event as EventLike);
        return (
          <li key={`${e.boot}/${e.seq}`}>
            <time>{time(e.at_ms, now.value)}</time>
            <Glyph tone={word.tone} />
            <span>{word.text}</span>
          </li>
        );
      })}
    </ol>
  );
}

function UpdatePanel({ device }: { device: Device }) {
  const u = device.update;
  const done = u && u.bytes_total > 0 ? u.bytes_done / u.bytes_total : 0;
  return (
    <Panel title="Update" actions={u && <Chip word={updateWord(u.phase)} />}>
      <Facts
        items={[
          ["Running", device.running ? <span title={device.running.model}>{`${device.running.release} · ${shortDigest(device.running.model)}`}</span> : "none yet"],
          ["Previous", device.previous ?? "–"],
          ["Wanted", device.desired ?? "as it is"],
        ]}
      />
      {u?.phase === "downloading" && (
        <div class="stack">
          <span class="bar">
            <i style={{ width: `${Math.round(done * 100)}%` }} />
          </span>
          <p class="note">
            {bytes(u.bytes_done)} of {bytes(u.bytes_total)}
          </p>
        </div>
      )}
      {u?.detail && <p class="verdict">{u.detail}</p>}
    </Panel>
  );
}

function SpoolPanel({ device }: { device: Device }) {
  const s = device.spool;
  return (
    <Panel title="Spool" note="what waits on the device until the server has it">
      <Facts
        items={[
          ["Size", bytes(s.bytes)],
          ["Records", count(s.records)],
          ["Samples", count(s.samples)],
          ["Dropped", s.records_dropped + s.samples_dropped === 0 ? "none" : <span class="warn-text">{`${count(s.records_dropped)} records, ${count(s.samples_dropped)} samples`}</span>],
        ]}
      />
    </Panel>
  );
}

function Alarms({ alarms }: { alarms: Alarm[] }) {
  if (alarms.length === 0) return <Empty title="No alarm so far">The charts above say how close each one is.</Empty>;
  return (
    <ol class="timeline">
      {alarms.map((a) => (
        <li key={a.id}>
          <time>{time(a.raised_ms, now.value)}</time>
          <Glyph tone={alarmWord(a.state).tone} />
          <span>
            {cause(a.cause).title}
            <span class="why">
              {alarmWord(a.state).text}
              {a.acknowledged_by && ` by ${a.acknowledged_by}`} · after {count(a.frames)} frames · {a.charts.map(chartWord).join(", ").toLowerCase()}
            </span>
          </span>
        </li>
      ))}
    </ol>
  );
}
