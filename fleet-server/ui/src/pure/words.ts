// The words and colours that states are shown with. One place, so that a state looks the same on every page.

/** What a lamp shows. Each tone has its own shape, so colour is never the only sign. */
export type Tone = "ok" | "warn" | "alarm" | "busy" | "off";

export interface Word {
  tone: Tone;
  text: string;
}

const word = (tone: Tone, text: string): Word => ({ tone, text });
const unknown = (state: string): Word => word("off", state.replaceAll("_", " "));
const pick = (table: Record<string, Word>, state: string): Word => table[state] ?? unknown(state);

const DRIFT: Record<string, Word> = {
  no_reference: word("off", "Not watched"),
  learning: word("busy", "Learning"),
  armed: word("ok", "Stable"),
  suspect: word("warn", "Suspect"),
  alarm: word("alarm", "Drift"),
  cooldown: word("warn", "Cooling down"),
};
export const drift = (state: string): Word => pick(DRIFT, state);

export interface LampInput {
  online: boolean;
  drift: string;
  open_alarms: number;
}

/** The lamp over a device: what needs a person first wins. */
export function lamp(device: LampInput): Word {
  if (!device.online) return word("off", "Offline");
  if (device.open_alarms > 0 && device.drift !== "alarm") return word("alarm", "Alarm open");
  return drift(device.drift);
}

export interface Cause {
  title: string;
  advice: string;
}

const CAUSES: Record<string, Cause> = {
  camera_dead: { title: "Camera gives no usable image", advice: "Check power, cable and lens cap. Parts are rejected until it is back." },
  blur: { title: "Image out of focus", advice: "Check focus and clean the lens. Retraining would only hide it." },
  gain: { title: "Sensor gain has changed", advice: "Check exposure and gain settings of the camera." },
  lighting: { title: "Light has changed", advice: "Check the lamp: it may be ageing or dirty. If it stays so, label samples to retrain." },
  vignette: { title: "Uneven light", advice: "Check the lamp's position and for shadows or dirt at the edges." },
  moved: { title: "Camera or part has moved", advice: "Check the mounting and the fixture." },
  product_or_process: { title: "Product or process has changed", advice: "New supplier or variant? Label the samples to teach the model." },
  defect_rate: { title: "Defect rate has changed", advice: "Tell production: the images look as before. Do not retrain." },
  unknown: { title: "Images differ from the reference", advice: "Look at the samples to see what changed, then label them." },
};
export function cause(name: string): Cause {
  return CAUSES[name] ?? { title: name.replaceAll("_", " "), advice: "Look at the samples to see what changed." };
}

const CHARTS: Record<string, string> = {
  stats_slow: "Image statistics, slow change",
  stats_fast: "Image statistics, sudden change",
  embedding: "What the network sees",
  prediction: "Predicted classes",
  gate: "Camera gate",
};
export const chart = (name: string): string => CHARTS[name] ?? name.replaceAll("_", " ");

const UPDATE: Record<string, Word> = {
  downloading: word("busy", "Downloading"),
  verifying: word("busy", "Verifying"),
  self_test: word("busy", "Self-test"),
  trial: word("busy", "Trial"),
  committed: word("ok", "Committed"),
  rolled_back: word("alarm", "Rolled back"),
  failed: word("alarm", "Failed"),
};
export const update = (phase: string): Word => pick(UPDATE, phase);

const RUN: Record<string, Word> = {
  queued: word("off", "Queued"),
  running: word("busy", "Running"),
  succeeded: word("ok", "Passed the gate"),
  refused: word("warn", "Refused by the gate"),
  failed: word("alarm", "Failed"),
  cancelled: word("off", "Cancelled"),
};
export const run = (state: string): Word => pick(RUN, state);

const RELEASE: Record<string, Word> = {
  candidate: word("busy", "Candidate"),
  released: word("ok", "Released"),
  withdrawn: word("off", "Withdrawn"),
};
export const release = (state: string): Word => pick(RELEASE, state);

const ROLLOUT: Record<string, Word> = {
  running: word("busy", "Running"),
  paused: word("warn", "Paused"),
  succeeded: word("ok", "Succeeded"),
  halted: word("alarm", "Halted by a guard"),
  aborted: word("off", "Aborted"),
};
export const rollout = (state: string): Word => pick(ROLLOUT, state);

const ROLLOUT_DEVICE: Record<string, Word> = {
  waiting: word("off", "Waiting"),
  offered: word("busy", "Offered"),
  downloading: word("busy", "Downloading"),
  trial: word("busy", "Trial"),
  committed: word("ok", "Committed"),
  rolled_back: word("alarm", "Rolled back"),
  failed: word("alarm", "Failed"),
  silent: word("alarm", "Silent"),
};
export const rolloutDevice = (state: string): Word => pick(ROLLOUT_DEVICE, state);

const ALARM: Record<string, Word> = {
  open: word("alarm", "Open"),
  acknowledged: word("warn", "Acknowledged"),
  cleared: word("ok", "Cleared"),
};
export const alarm = (state: string): Word => pick(ALARM, state);

const REASONS: Record<string, string> = {
  random: "Random",
  uncertain: "Uncertain",
  novel: "Novel",
  event: "Event",
};
export const reason = (name: string): string => REASONS[name] ?? name;
export const reasons = ["random", "uncertain", "novel", "event"] as const;

const ROLES = ["viewer", "labeller", "engineer", "operator", "admin"];
/** Each role may do all that the ones before it may. */
export function atLeast(role: string | undefined, needed: string): boolean {
  return role !== undefined && ROLES.indexOf(role) >= ROLES.indexOf(needed);
}

export interface EventLike {
  kind: string;
  [field: string]: unknown;
}

/** A device's event as one line. */
export function event(e: EventLike): Word {
  switch (e.kind) {
    case "agent_started":
      return word("off", `Agent ${e.version} started`);
    case "drift_alarm":
      return word("alarm", `${cause(String(e.cause)).title} after ${e.frames} frames`);
    case "drift_cleared":
      return word("ok", "Drift cleared");
    case "update": {
      const phase = update(String(e.phase));
      return word(phase.tone, `${e.release}: ${phase.text.toLowerCase()}${e.detail ? `, ${e.detail}` : ""}`);
    }
    case "spool_dropped":
      return word("warn", `Spool full: dropped ${e.records} records and ${e.samples} samples`);
    case "fault":
      return word("alarm", `Fault: ${e.what}`);
    default:
      return unknown(e.kind);
  }
}
