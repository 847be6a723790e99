// Merging what arrives live into what is shown. Pure: timers and the event source live in `../live.ts`.

export interface Named {
  topic: string;
  id: string;
}

/** Which events make a view stale. `id` limits it to one object; device pages listen for theirs alone. */
export interface Interest {
  topics: readonly string[];
  id?: string;
}

export function concerns(interest: Interest, event: Named): boolean {
  if (!interest.topics.includes(event.topic)) return false;
  return interest.id === undefined || event.id === interest.id || event.id.startsWith(`${interest.id}/`);
}

/** A malformed event is nothing to re-read; the stream goes on. */
export function parseEvent(data: string): Named | null {
  try {
    const value: unknown = JSON.parse(data);
    if (typeof value !== "object" || value === null) return null;
    const { topic, id } = value as Record<string, unknown>;
    return typeof topic === "string" && typeof id === "string" ? { topic, id } : null;
  } catch {
    return null;
  }
}

/**
 * When to re-read after an event at `now`: `quiet` ms after the last event, but at most `patience` ms after the first
 * one that is still unread, so that a busy fleet can neither flood the server nor starve the page.
 */
export function due(firstMs: number, nowMs: number, quietMs: number, patienceMs: number): number {
  return Math.max(0, Math.min(nowMs + quietMs, firstMs + patienceMs) - nowMs);
}

export interface Point {
  boot: string;
  seq: number;
  at_ms: number;
}

/** Union by (boot, seq), in order of time, the newest `max`. Arguments may overlap and be unordered. */
export function mergePoints<T extends Point>(known: readonly T[], fresh: readonly T[], max: number): T[] {
  const byKey = new Map<string, T>();
  for (const point of known) byKey.set(`${point.boot}/${point.seq}`, point);
  for (const point of fresh) byKey.set(`${point.boot}/${point.seq}`, point);
  const all = [...byKey.values()].sort((a, b) => a.at_ms - b.at_ms || a.seq - b.seq);
  return all.slice(Math.max(0, all.length - max));
}

/** Share of frames judged as class `reject`; `null` where no frame was judged. */
export function rejectRate(window: { class_counts: readonly number[] }, reject: number): number | null {
  const total = window.class_counts.reduce((sum, n) => sum + n, 0);
  return total === 0 ? null : (window.class_counts[reject] ?? 0) / total;
}

export interface Chained {
  seq: number;
  previous: string;
  hash: string;
}

/** The number of the first entry (from the oldest) that does not follow the one before it; entries are newest first. */
export function firstBreak(entries: readonly Chained[]): number | null {
  for (let i = entries.length - 2; i >= 0; i--) {
    const entry = entries[i];
    const before = entries[i + 1];
    if (entry && before && (entry.previous !== before.hash || entry.seq !== before.seq + 1)) return entry.seq;
  }
  return null;
}
