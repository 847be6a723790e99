// Numbers, times and sizes as people read them. Pure: the clock and the locale's time zone come from the caller's data.

const MISSING = "–";

export function count(n: number): string {
  return n.toString().replace(/\B(?=(\d{3})+(?!\d))/g, " ");
}

export function plural(n: number, noun: string): string {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** Powers of 1000, as disks and links are sold. */
export function bytes(n: number): string {
  if (n < 1000) return `${n} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let value = n / 1000;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 9.95 ? value.toFixed(1) : value.toFixed(0)} ${units[unit]}`;
}

/** A share, 0 to 1. */
export function percent(share: number | null | undefined, digits = 1): string {
  return share == null || !Number.isFinite(share) ? MISSING : `${(share * 100).toFixed(digits)} %`;
}

/** Difference of two shares in percentage points, with its sign. */
export function points(from: number, to: number): string {
  const difference = (to - from) * 100;
  const shown = Math.abs(difference).toFixed(1);
  if (shown === "0.0") return "±0.0 pt";
  return `${difference > 0 ? "+" : "−"}${shown} pt`;
}

export function rate(frames: number, durationMs: number): string {
  if (durationMs <= 0) return MISSING;
  const perSecond = (frames * 1000) / durationMs;
  return perSecond >= 99.5 ? perSecond.toFixed(0) : perSecond.toFixed(1);
}

export function micros(us: number): string {
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 9950) return `${(us / 1000).toFixed(1)} ms`;
  if (us < 999_500) return `${(us / 1000).toFixed(0)} ms`;
  return `${(us / 1_000_000).toFixed(1)} s`;
}

/** How long something takes: two units at most. */
export function duration(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s % 60 && s < 600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** "just now", "12 s ago", "in 5 min". */
export function ago(atMs: number | null | undefined, nowMs: number): string {
  if (atMs == null) return "never";
  const ms = nowMs - atMs;
  if (Math.abs(ms) < 3000) return "just now";
  const shown = Math.abs(ms) < 3_600_000 ? duration(Math.abs(ms)).replace(/ min \d+ s$/, " min") : duration(Math.abs(ms));
  return ms > 0 ? `${shown} ago` : `in ${shown}`;
}

const two = (n: number) => String(n).padStart(2, "0");

/** Local time of day; with the date where it is not today's. */
export function time(atMs: number, nowMs: number): string {
  const at = new Date(atMs);
  const clock = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  if (at.toDateString() === new Date(nowMs).toDateString()) return clock;
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock}`;
}

export function shortDigest(digest: string): string {
  return digest.length > 12 ? digest.slice(0, 12) : digest;
}

/** A metric's value by its name: shares in percent, the rest with four digits. */
export function metric(name: string, value: number): string {
  if (/accuracy|recall|precision|agreement|rate|auc|share|f1/.test(name) && value >= 0 && value <= 1) return percent(value);
  return Number.isInteger(value) ? count(value) : value.toPrecision(4);
}

/** `golden.balanced_accuracy` → "Golden · balanced accuracy". */
export function metricName(name: string): string {
  const text = name.replaceAll("_", " ").split(".").join(" · ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export interface Compared {
  name: string;
  old: number | null;
  new: number | null;
}

/** Pairs `NAME.old` with `NAME.new`; a metric without a twin stands alone as new. */
export function compare(metrics: Record<string, number>): Compared[] {
  const rows = new Map<string, Compared>();
  for (const [key, value] of Object.entries(metrics)) {
    const side = key.endsWith(".old") ? "old" : "new";
    const name = key.replace(/\.(old|new)$/, "");
    const row = rows.get(name) ?? { name, old: null, new: null };
    row[side] = value;
    rows.set(name, row);
  }
  return [...rows.values()].sort((a, b) => a.name.localeCompare(b.name));
}
