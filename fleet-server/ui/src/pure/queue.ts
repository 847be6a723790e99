// The labelling queue: a pure state machine. The page shows a state, sends an action, and runs the effects it gets
// back; each effect's end comes back as `settle`. A label shows at once and is taken back when the server refuses it.
//
// Invariants: an item has at most one write under way, newer wishes for it wait and only the newest is sent; undo
// goes back to the item it changes, in reverse order, and restores what stood there before.

export interface Item {
  id: string;
  /** As the server last confirmed. */
  saved: string | null;
}

export interface Queue {
  items: readonly Item[];
  at: number;
  /** What the person wants, where it differs from `saved` or is being written. */
  wanted: Readonly<Record<string, string | null>>;
  writing: Readonly<Record<string, string | null>>;
  /** Newest last. */
  done: readonly { id: string; before: string | null }[];
  failed: { id: string; detail: string } | null;
}

export interface Effect {
  id: string;
  /** `null` removes the label. */
  label: string | null;
}

export type Action =
  | { type: "label"; class: string }
  | { type: "move"; by: number }
  | { type: "undo" }
  | { type: "settle"; id: string; error?: string };

export type Step = [Queue, Effect[]];

export function start(items: readonly Item[]): Queue {
  return { items, at: 0, wanted: {}, writing: {}, done: [], failed: null };
}

export function labelOf(queue: Queue, id: string): string | null {
  if (id in queue.wanted) return queue.wanted[id] ?? null;
  return queue.items.find((item) => item.id === id)?.saved ?? null;
}

export const labelled = (queue: Queue): number => queue.items.filter((item) => labelOf(queue, item.id) !== null).length;
export const current = (queue: Queue): Item | undefined => queue.items[queue.at];
export const isOver = (queue: Queue): boolean => queue.at >= queue.items.length;
export const pending = (queue: Queue): number => Object.keys(queue.writing).length;

const without = <T>(record: Readonly<Record<string, T>>, key: string): Record<string, T> =>
  Object.fromEntries(Object.entries(record).filter(([k]) => k !== key));

function want(queue: Queue, id: string, label: string | null): Step {
  const wanted = { ...queue.wanted, [id]: label };
  if (id in queue.writing) return [{ ...queue, wanted }, []];
  return [{ ...queue, wanted, writing: { ...queue.writing, [id]: label } }, [{ id, label }]];
}

function settle(queue: Queue, id: string, error: string | undefined): Step {
  if (!(id in queue.writing)) return [queue, []];
  const written = queue.writing[id] ?? null;
  const next: Queue = { ...queue, writing: without(queue.writing, id) };
  if (error !== undefined) {
    const at = queue.items.findIndex((item) => item.id === id);
    return [
      {
        ...next,
        at: at < 0 ? queue.at : at,
        wanted: without(queue.wanted, id),
        done: queue.done.filter((entry) => entry.id !== id),
        failed: { id, detail: error },
      },
      [],
    ];
  }
  const items = queue.items.map((item) => (item.id === id ? { ...item, saved: written } : item));
  const wish = queue.wanted[id] ?? null;
  if (id in queue.wanted && wish !== written) return want({ ...next, items }, id, wish);
  return [{ ...next, items, wanted: without(queue.wanted, id) }, []];
}

export function step(queue: Queue, action: Action): Step {
  switch (action.type) {
    case "label": {
      const item = current(queue);
      if (!item) return [queue, []];
      const before = labelOf(queue, item.id);
      const moved: Queue = { ...queue, at: queue.at + 1, failed: null };
      if (before === action.class) return [moved, []];
      return want({ ...moved, done: [...queue.done, { id: item.id, before }] }, item.id, action.class);
    }
    case "move":
      return [{ ...queue, at: Math.max(0, Math.min(queue.items.length, queue.at + action.by)), failed: null }, []];
    case "undo": {
      const last = queue.done.at(-1);
      if (!last) return [queue, []];
      const at = queue.items.findIndex((item) => item.id === last.id);
      return want({ ...queue, at, done: queue.done.slice(0, -1), failed: null }, last.id, last.before);
    }
    case "settle":
      return settle(queue, action.id, action.error);
  }
}
