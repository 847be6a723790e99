// One event source for the whole application. Views say which topics make them stale; their reads are debounced, held
// back while the tab is hidden, and repeated after the stream was cut, since events in between are lost.
import { signal } from "@preact/signals";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { api, type ApiError, asApiError, call } from "./api";
import { concerns, due, type Interest, parseEvent } from "./pure/live";

const QUIET_MS = 250;
const PATIENCE_MS = 1500;
const RETRY_MS = 5000;
const REST_MS = 60_000;
const TOPICS = ["device", "telemetry", "alarm", "sample", "label", "run", "release", "rollout"];

export const connected = signal<"connecting" | "live" | "lost">("connecting");
/** Ticks every second, for ages. */
export const now = signal(Date.now());
setInterval(() => {
  if (!document.hidden) now.value = Date.now();
}, 1000);

interface Listener {
  interest: Interest;
  stale: () => void;
}
const listeners = new Set<Listener>();
let wanted = false;
let source: EventSource | null = null;
let retry: number | undefined;
let rest: number | undefined;

export function connect(): void {
  wanted = true;
  if (!source) open();
}

export function disconnect(): void {
  wanted = false;
  close("connecting");
}

function close(state: "connecting" | "lost"): void {
  clearTimeout(retry);
  source?.close();
  source = null;
  connected.value = state;
}

function open(): void {
  clearTimeout(retry);
  source = new EventSource("/api/v1/events");
  source.onopen = () => {
    const missed = connected.value === "lost";
    connected.value = "live";
    if (missed) for (const listener of listeners) listener.stale();
  };
  source.onerror = () => {
    connected.value = "lost";
    // A cut stream is taken up again by the browser; a refused one (no session, a proxy's 502) is closed for good.
    if (source?.readyState !== EventSource.CLOSED) return;
    close("lost");
    retry = window.setTimeout(() => {
      // Leads to the login page where the session has ended.
      call(api.GET("/api/v1/me")).then(
        () => wanted && !source && open(),
        () => wanted && !source && open(),
      );
    }, RETRY_MS);
  };
  for (const topic of TOPICS) {
    source.addEventListener(topic, (e) => {
      const event = parseEvent((e as MessageEvent<string>).data);
      if (!event) return;
      for (const listener of listeners) if (concerns(listener.interest, event)) listener.stale();
    });
  }
}

// Under HTTP/1.1 a browser opens six connections to a server, over all tabs: one that nobody looks at gives its stream
// back after a while, and reads afresh when it is looked at again.
document.addEventListener("visibilitychange", () => {
  clearTimeout(rest);
  if (document.hidden) rest = window.setTimeout(() => source && close("lost"), REST_MS);
  else if (wanted && !source) open();
});

/** Calls `reload` after events that concern it. */
export function useEvents(interest: Interest, reload: () => void, quietMs = QUIET_MS, patienceMs = PATIENCE_MS): void {
  const latest = useRef(reload);
  latest.current = reload;
  const topics = interest.topics.join(" ");
  useEffect(() => {
    let first: number | null = null;
    let timer: number | undefined;
    const run = () => {
      timer = undefined;
      if (document.hidden) return;
      first = null;
      latest.current();
    };
    const stale = () => {
      const at = Date.now();
      first ??= at;
      clearTimeout(timer);
      timer = window.setTimeout(run, due(first, at, quietMs, patienceMs));
    };
    const shown = () => {
      if (!document.hidden && first !== null) run();
    };
    const listener = { interest: { ...interest, topics: topics.split(" ") }, stale };
    listeners.add(listener);
    document.addEventListener("visibilitychange", shown);
    return () => {
      listeners.delete(listener);
      document.removeEventListener("visibilitychange", shown);
      clearTimeout(timer);
    };
  }, [topics, interest.id, quietMs, patienceMs]);
}

export interface Resource<T> {
  data: T | undefined;
  error: ApiError | undefined;
  reload: () => void;
  set: (data: T) => void;
}

/**
 * Reads with `load`, again when `key` changes or an event says so. The last good data stays while a re-read fails, so
 * that a short outage shows old data and an error, not a blank page. Answers that come out of order are dropped.
 */
export function useResource<T>(key: string, load: () => Promise<T>, interest: Interest): Resource<T> {
  const [state, setState] = useState<{ key: string; data?: T; error?: ApiError }>({ key });
  const latest = useRef(load);
  latest.current = load;
  const turn = useRef(0);
  const alive = useRef(true);
  const reload = useCallback(() => {
    const mine = ++turn.current;
    latest.current().then(
      (data) => {
        if (alive.current && mine === turn.current) setState({ key, data });
      },
      (e: unknown) => {
        if (!alive.current || mine !== turn.current) return;
        setState((old) => ({ key, data: old.key === key ? old.data : undefined, error: asApiError(e) }));
      },
    );
  }, [key]);
  useEffect(() => {
    alive.current = true;
    reload();
    return () => {
      alive.current = false;
    };
  }, [reload]);
  useEvents(interest, reload);
  const set = useCallback(
    (data: T) => {
      turn.current += 1;
      setState({ key, data });
    },
    [key],
  );
  const fresh = state.key === key;
  return { data: fresh ? state.data : undefined, error: fresh ? state.error : undefined, reload, set };
}
