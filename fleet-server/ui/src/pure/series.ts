// From telemetry windows to the columns of a chart. Pure.

export interface SeriesPoint {
  at_ms: number;
  window: {
    duration_ms: number;
    class_counts: readonly number[];
    latency_p50_us: number;
    latency_p99_us: number;
    confidence_mean: number;
    frames: number;
    charts: readonly { name: string; value: number; threshold: number }[];
  };
}

export type Column = (number | null)[];
export interface Columns {
  /** Milliseconds, ascending. */
  x: number[];
  ys: Column[];
}

/** A silence longer than this many windows is a gap in the line, not a straight line through it. */
const GAP_WINDOWS = 4;

/** One column per getter, in order of time, with a hole where the device was silent. */
export function columns(points: readonly SeriesPoint[], getters: readonly ((p: SeriesPoint) => number | null)[]): Columns {
  const x: number[] = [];
  const ys: Column[] = getters.map(() => []);
  let before: SeriesPoint | undefined;
  for (const point of points) {
    if (before && point.at_ms - before.at_ms > GAP_WINDOWS * Math.max(1000, point.window.duration_ms)) {
      x.push(before.at_ms + 1);
      for (const y of ys) y.push(null);
    }
    x.push(point.at_ms);
    getters.forEach((get, i) => ys[i]?.push(get(point)));
    before = point;
  }
  return { x, ys };
}

/** Names of all drift charts in the points, in the order they were first reported. */
export function chartNames(points: readonly SeriesPoint[]): string[] {
  const names = new Set<string>();
  for (const point of points) for (const chart of point.window.charts) names.add(chart.name);
  return [...names];
}

export function chartValue(name: string): (p: SeriesPoint) => number | null {
  return (p) => p.window.charts.find((c) => c.name === name)?.value ?? null;
}

export function chartThreshold(name: string): (p: SeriesPoint) => number | null {
  return (p) => p.window.charts.find((c) => c.name === name)?.threshold ?? null;
}

export function classRate(index: number): (p: SeriesPoint) => number | null {
  return (p) => {
    const total = p.window.class_counts.reduce((sum, n) => sum + n, 0);
    return total === 0 ? null : (p.window.class_counts[index] ?? 0) / total;
  };
}

/** Mean over the last `n` windows: what a number beside a sparkline should say on a slow line. */
export function recentRate(points: readonly SeriesPoint[], index: number, n: number): number | null {
  let hits = 0;
  let total = 0;
  for (const p of points.slice(-n)) {
    hits += p.window.class_counts[index] ?? 0;
    total += p.window.class_counts.reduce((sum, c) => sum + c, 0);
  }
  return total === 0 ? null : hits / total;
}

/** Class rate over `bins` equal stretches of the points: a sparkline of sums, not of single noisy windows. */
export function binnedRate(points: readonly SeriesPoint[], index: number, bins: number): number[] {
  const size = Math.max(1, Math.ceil(points.length / bins));
  const rates: number[] = [];
  // From the newest backwards, so that a new window changes the last bin, not all of them.
  for (let end = points.length; end > 0; end -= size) {
    const rate = recentRate(points.slice(Math.max(0, end - size), end), index, size);
    if (rate !== null) rates.unshift(rate);
  }
  return rates;
}
