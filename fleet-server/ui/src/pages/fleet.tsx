// The first page: alarms in words, where the learning loop stands, and every device by site and line.
import { useMemo, useState } from "preact/hooks";
import { api, call, type Device, type Overview, type Release, type Rollout, type TrainingRun } from "../api";
import { now, useResource } from "../live";
import { AlarmStrip } from "../parts/alarms";
import { EnrolDialog } from "../parts/enrol";
import { PlusIcon } from "../parts/icons";
import { Lamp } from "../parts/lamp";
import { Empty, Failed, Head, Loaded } from "../parts/page";
import { RejectSpark } from "../parts/spark";
import { ago, bytes, count, micros, percent, plural, rate } from "../pure/format";
import { lamp, run as runWord, update as updateWord } from "../pure/words";
import { navigate, query, setQuery } from "../router";
import { may } from "../session";

const DEVICES_MAX = 500;

async function readDevices(): Promise<{ items: Device[]; more: boolean }> {
  const page = await call(api.GET("/api/v1/devices", { params: { query: { limit: DEVICES_MAX } } }));
  return { items: page.items, more: page.next != null };
}

export function FleetPage() {
  const devices = useResource("devices", readDevices, { topics: ["device", "telemetry", "alarm", "rollout"] });
  const overview = useResource("overview", () => call(api.GET("/api/v1/overview")), {
    topics: ["device", "alarm", "sample", "label", "run", "release", "rollout"],
  });
  const alarms = useResource("alarms", () => call(api.GET("/api/v1/alarms", { params: { query: { state: "open", limit: 100 } } })), {
    topics: ["alarm", "sample"],
  });
  const runs = useResource("runs", () => call(api.GET("/api/v1/runs", { params: { query: { limit: 20 } } })), { topics: ["run"] });
  const rollouts = useResource("rollouts", () => call(api.GET("/api/v1/rollouts", { params: { query: { limit: 20 } } })), {
    topics: ["rollout"],
  });
  const releases = useResource("releases", () => call(api.GET("/api/v1/releases", { params: { query: { limit: 100 } } })), {
    topics: ["release"],
  });
  const [enrolling, setEnrolling] = useState(false);
  const places = useMemo(() => new Map(devices.data?.items.map((d) => [d.id, `${d.site} / ${d.line}`])), [devices.data]);

  return (
    <>
      <Head title="Fleet">
        {may.operate.value && (
          <button type="button" onClick={() => setEnrolling(true)}>
            <PlusIcon />
            Enrol device
          </button>
        )}
      </Head>
      {alarms.error && <Failed error={alarms.error} retry={alarms.reload} />}
      <AlarmStrip alarms={alarms.data?.items ?? []} place={(d) => places.get(d) ?? ""} changed={alarms.reload} />
      {overview.data && (
        <Loop overview={overview.data} runs={runs.data?.items ?? []} rollouts={rollouts.data?.items ?? []} releases={releases.data?.items ?? []} />
      )}
      <Loaded of={devices} rows={6}>
        {({ items, more }) =>
          items.length === 0 ? (
            <Empty title="No devices yet">
              <p>Enrol the first: the server gives a token that works once, and the device makes its own key with it.</p>
              {may.operate.value && (
                <button type="button" class="primary" onClick={() => setEnrolling(true)}>
                  Enrol device
                </button>
              )}
            </Empty>
          ) : (
            <>
              <DeviceTable devices={items} releases={releases.data?.items ?? []} />
              {more && <p class="note">The first {count(DEVICES_MAX)} devices are shown.</p>}
            </>
          )
        }
      </Loaded>
      {enrolling && <EnrolDialog known={devices.data?.items ?? []} close={() => setEnrolling(false)} />}
    </>
  );
}

interface LoopProps {
  overview: Overview;
  runs: TrainingRun[];
  rollouts: Rollout[];
  releases: Release[];
}

/** The loop as five tiles, left to right as things flow. */
function Loop({ overview, runs, rollouts, releases }: LoopProps) {
  const running = runs.find((r) => r.state === "running" || r.state === "queued");
  const lastRun = running ?? runs[0];
  const rollout = rollouts.find((r) => r.state === "running" || r.state === "paused" || r.state === "halted");
  const newest = releases.find((r) => r.state !== "withdrawn");
  const committed = rollout?.devices.filter((d) => d.state === "committed").length ?? 0;
  return (
    <ol class="loop" aria-label="The learning loop">
      <Tile href="/" name="Devices online" value={`${count(overview.online)}`} of={count(overview.devices)}>
        {overview.online < overview.devices ? `${count(overview.devices - overview.online)} offline` : overview.devices === 0 ? "none enrolled" : "all connected"}
      </Tile>
      <Tile href="/samples?labelled=false" name="Samples to label" value={count(overview.unlabelled)} of={count(overview.samples)}>
        {bytes(overview.bytes_received)} received
      </Tile>
      <Tile
        href="/models"
        name="Training"
        value={running ? (running.state === "queued" ? "Queued" : percent(running.progress, 0)) : lastRun ? runWord(lastRun.state).text : "Idle"}
        progress={running?.progress}
      >
        {running ? `${running.model}: ${running.stage || "waiting for a worker"}` : lastRun ? `${lastRun.model}, ${ago(lastRun.finished_ms ?? lastRun.created_ms, now.value)}` : "starts by policy"}
      </Tile>
      <Tile href="/models" name="Newest release" value={newest?.id ?? "None"}>
        {newest ? `on ${plural(newest.devices, "device")}, ${ago(newest.created_ms, now.value)}` : "publish one to begin"}
      </Tile>
      <Tile
        href={rollout ? `/rollouts/${encodeURIComponent(rollout.id)}` : "/rollouts"}
        name="Rollout"
        value={rollout ? `Wave ${rollout.wave + 1}` : "Idle"}
        of={rollout ? String(rollout.waves.length) : undefined}
        progress={rollout ? committed / Math.max(1, rollout.devices.length) : undefined}
      >
        {rollout ? `${rollout.release}: ${committed} of ${rollout.devices.length} committed` : "nothing under way"}
      </Tile>
    </ol>
  );
}

interface TileProps {
  href: string;
  name: string;
  value: string;
  of?: string | undefined;
  progress?: number | undefined;
  children: preact.ComponentChildren;
}

function Tile({ href, name, value, of, progress, children }: TileProps) {
  return (
    <li>
      <a class="tile" href={href}>
        <span class="tile-name">{name}</span>
        <span class="tile-value">
          {value}
          {of !== undefined && <span class="tile-of"> / {of}</span>}
        </span>
        <span class="note">{children}</span>
        {progress !== undefined && <span class="bar" aria-hidden="true"><i style={{ width: `${Math.round(progress * 100)}%` }} /></span>}
      </a>
    </li>
  );
}

function DeviceTable({ devices, releases }: { devices: Device[]; releases: Release[] }) {
  const wanted = query.value.get("find") ?? "";
  const groups = useMemo(() => {
    const byPlace = new Map<string, Device[]>();
    const shown = devices.filter((d) => `${d.id} ${d.site} ${d.line} ${d.running?.release ?? ""}`.includes(wanted.toLowerCase()));
    for (const device of shown.sort((a, b) => a.id.localeCompare(b.id))) {
      const place = `${device.site} / ${device.line}`;
      byPlace.set(place, [...(byPlace.get(place) ?? []), device]);
    }
    return [...byPlace].sort(([a], [b]) => a.localeCompare(b));
  }, [devices, wanted]);
  const reject = useMemo(() => new Map(releases.map((r) => [r.id, r.reject])), [releases]);
  return (
    <section class="panel flush">
      <div class="panel-head">
        <h2>Devices</h2>
        <div class="actions">
          <input
            type="search"
            placeholder="Find device, line or release"
            aria-label="Find device, line or release"
            value={wanted}
            onInput={(e) => setQuery({ find: e.currentTarget.value })}
          />
        </div>
      </div>
      <div class="scroll">
        <table class="rows">
          <thead>
            <tr>
              <th class="first">Device</th>
              <th>State</th>
              <th>Release</th>
              <th class="num">Frames/s</th>
              <th>Reject rate, 10 min</th>
              <th class="num">Latency p99</th>
              <th class="num">Waiting to send</th>
              <th class="num">Last seen</th>
            </tr>
          </thead>
          {groups.map(([place, members]) => (
            <tbody key={place}>
              <tr class="group">
                <th colSpan={8} scope="rowgroup">
                  {place} <span class="faint">{members.length}</span>
                </th>
              </tr>
              {members.map((device) => (
                <DeviceRow key={device.id} device={device} reject={reject.get(device.running?.release ?? "")} />
              ))}
            </tbody>
          ))}
        </table>
      </div>
      {groups.length === 0 && <Empty title="No device matches">Clear the search to see all {count(devices.length)}.</Empty>}
    </section>
  );
}

function DeviceRow({ device, reject }: { device: Device; reject: number | undefined }) {
  const href = `/devices/${encodeURIComponent(device.id)}`;
  const w = device.online ? device.window : null;
  const changing = device.desired && device.desired !== device.running?.release;
  const step = device.update && !["committed"].includes(device.update.phase) ? updateWord(device.update.phase) : null;
  return (
    <tr class="link" onClick={() => navigate(href)}>
      <td>
        <a class="strong" href={href} onClick={(e) => e.stopPropagation()}>
          {device.id}
        </a>
      </td>
      <td>
        <Lamp word={lamp(device)} />
      </td>
      <td>
        <span>{device.running?.release ?? <span class="faint">none yet</span>}</span>
        {changing && (
          <span class="note">
            {" → "}
            {device.desired}
            {step && `, ${step.text.toLowerCase()}`}
          </span>
        )}
      </td>
      <td class="num">{w ? rate(w.frames, w.duration_ms) : "–"}</td>
      <td>{reject !== undefined ? <RejectSpark device={device.id} reject={reject} /> : <span class="faint">–</span>}</td>
      <td class="num">{w && w.frames > 0 ? micros(w.latency_p99_us) : "–"}</td>
      <td class="num">
        {device.spool.bytes > 0 ? bytes(device.spool.bytes) : <span class="faint">nothing</span>}
        {device.spool.samples_dropped > 0 && <span class="warn-text"> {count(device.spool.samples_dropped)} dropped</span>}
      </td>
      <td class="num">{ago(device.last_seen_ms, now.value)}</td>
    </tr>
  );
}
