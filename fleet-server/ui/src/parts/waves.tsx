// A rollout's waves as lanes: as wide as their share of the fleet, one dot a device, coloured and shaped by state.
import type { Rollout, RolloutDevice } from "../api";
import { duration, plural } from "../pure/format";
import { rolloutDevice, type Tone } from "../pure/words";
import { navigate } from "../router";

const WIDTH = 1000;
const LABEL = 150;
const NOTE = 210;
const LANE = 44;
const GAP = 14;
/** Beyond this many, lanes show shares of states instead of dots. */
const DOTS_MAX = 120;
const DOT = 6;
const ORDER = ["committed", "trial", "downloading", "offered", "waiting", "silent", "rolled_back", "failed"];

function Dot({ x, y, tone }: { x: number; y: number; tone: Tone }) {
  return (
    <>
      <circle class={`dot tone-${tone}`} cx={x} cy={y} r={tone === "off" ? DOT - 1 : DOT} />
      {tone === "ok" && <path class="mark" d={`M${x - 2.8} ${y + 0.2}l1.9 1.9 3.6-4`} />}
      {tone === "alarm" && <path class="mark" d={`M${x - 2.2} ${y - 2.2}l4.4 4.4M${x + 2.2} ${y - 2.2}l-4.4 4.4`} />}
    </>
  );
}

function counts(devices: readonly RolloutDevice[]): [string, number][] {
  return ORDER.map((state): [string, number] => [state, devices.filter((d) => d.state === state).length]).filter(([, n]) => n > 0);
}

interface LaneProps {
  rollout: Rollout;
  index: number;
  y: number;
}

function Lane({ rollout, index, y }: LaneProps) {
  const wave = rollout.waves[index];
  const before = index === 0 ? 0 : (rollout.waves[index - 1]?.percent ?? 0);
  const devices = rollout.devices.filter((d) => d.wave === index).sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state));
  const out = index <= rollout.wave;
  const span = WIDTH - LABEL - NOTE;
  const share = Math.max(0, (wave?.percent ?? 0) - before) / 100;
  const fits = devices.length <= DOTS_MAX;
  const perRow = Math.max(1, Math.floor((span - 24) / (DOT * 3)));
  const width = Math.min(span, Math.max(share * span, fits ? Math.min(devices.length, perRow) * DOT * 3 + 18 : 0, 40));
  const committed = devices.filter((d) => d.state === "committed").length;
  let x = LABEL;
  return (
    <g>
      <text x={0} y={y + 19} font-weight="560">
        Wave {index + 1}
      </text>
      <text x={0} y={y + 35} class="dim">
        to {wave?.percent} %{wave?.soak_s ? `, soak ${duration(wave.soak_s * 1000)}` : ""}
      </text>
      <rect class={out ? "lane out" : "lane"} x={LABEL} y={y} width={width} height={LANE} rx={7} />
      {fits
        ? devices.map((d, i) => {
            const rows = Math.ceil(devices.length / perRow);
            const word = rolloutDevice(d.state);
            const cy = y + (LANE * (Math.floor(i / perRow) + 1)) / (rows + 1);
            return (
              <a
                key={d.device}
                href={`/devices/${encodeURIComponent(d.device)}`}
                onClick={(e) => {
                  e.preventDefault();
                  navigate(`/devices/${encodeURIComponent(d.device)}`);
                }}
              >
                <title>{`${d.device}: ${word.text.toLowerCase()}${d.detail ? `, ${d.detail}` : ""}`}</title>
                <Dot x={LABEL + 18 + (i % perRow) * DOT * 3} y={cy} tone={word.tone} />
              </a>
            );
          })
        : counts(devices).map(([state, n]) => {
            const w = (width * n) / devices.length;
            const at = x;
            x += w;
            const word = rolloutDevice(state);
            return (
              <rect key={state} class={`dot tone-${word.tone}`} x={at} y={y + 12} width={Math.max(0, w - 2)} height={LANE - 24} rx={3}>
                <title>{`${n} ${word.text.toLowerCase()}`}</title>
              </rect>
            );
          })}
      <text x={LABEL + width + 16} y={y + 27} class="dim">
        {!out ? `${plural(devices.length, "device")}, waits` : `${committed} of ${devices.length} committed`}
      </text>
    </g>
  );
}

export function Waves({ rollout }: { rollout: Rollout }) {
  const height = rollout.waves.length * (LANE + GAP) - GAP + 2;
  const summary = counts(rollout.devices)
    .map(([state, n]) => `${n} ${rolloutDevice(state).text.toLowerCase()}`)
    .join(", ");
  return (
    <svg class="waves" viewBox={`0 -1 ${WIDTH} ${height}`} role="img" aria-label={`${rollout.waves.length} waves: ${summary}`}>
      {rollout.waves.map((_, i) => (
        <Lane key={i} rollout={rollout} index={i} y={i * (LANE + GAP)} />
      ))}
    </svg>
  );
}

/** Counts by state, as words with their lamps: the legend of the dots. */
export function stateCounts(rollout: Rollout): [string, number][] {
  return counts(rollout.devices);
}
