// A device's telemetry, kept up to date: the first read takes the whole range, later ones only what came since.
import { useEffect, useRef, useState } from "preact/hooks";
import { api, type ApiError, asApiError, call, type WindowPoint } from "./api";
import { useEvents } from "./live";
import { mergePoints } from "./pure/live";

const POINTS_MAX = 2000;
const PAGE = 500;

async function read(device: string, fromMs: number, toMs: number | undefined, limit: number): Promise<WindowPoint[]> {
  const query = { from_ms: Math.max(0, Math.floor(fromMs)), limit, ...(toMs === undefined ? {} : { to_ms: toMs }) };
  const page = await call(api.GET("/api/v1/devices/{id}/telemetry", { params: { path: { id: device }, query } }));
  return page.items;
}

/** The newest `max` points since `fromMs`; further pages are asked for at whichever end is missing. */
async function readAll(device: string, fromMs: number, max: number): Promise<WindowPoint[]> {
  let points: WindowPoint[] = [];
  let toMs: number | undefined;
  while (points.length < max) {
    const limit = Math.min(PAGE, max - points.length);
    const page = await read(device, fromMs, toMs, limit);
    const before = points.length;
    points = mergePoints(points, page, max);
    const oldest = points[0];
    if (page.length < limit || points.length === before || !oldest) break;
    toMs = oldest.at_ms;
  }
  return points;
}

interface Telemetry {
  points: WindowPoint[];
  loaded: boolean;
  error: ApiError | undefined;
}

export function useTelemetry(device: string, rangeMs: number, max = POINTS_MAX, quietMs = 250): Telemetry {
  const key = `${device}/${rangeMs}`;
  const [state, setState] = useState<Telemetry & { key: string }>({ key, points: [], loaded: false, error: undefined });
  const known = useRef<{ key: string; points: WindowPoint[] }>({ key, points: [] });
  const wanted = useRef(key);
  wanted.current = key;

  const refresh = async () => {
    const mine = key;
    const old = known.current.key === mine ? known.current.points : [];
    const newest = old.at(-1);
    try {
      const since = Date.now() - rangeMs;
      const fresh = newest ? await read(device, newest.at_ms, undefined, PAGE) : await readAll(device, since, max);
      if (wanted.current !== mine) return;
      const points = mergePoints(old, fresh, max).filter((p) => p.at_ms >= since);
      known.current = { key: mine, points };
      setState({ key: mine, points, loaded: true, error: undefined });
    } catch (e) {
      if (wanted.current === mine) setState((s) => ({ ...s, key: mine, loaded: true, error: asApiError(e) }));
    }
  };
  useEffect(() => {
    void refresh();
    return () => {
      wanted.current = "";
    };
  }, [key]);
  useEvents({ topics: ["telemetry"], id: device }, () => void refresh(), quietMs, 4 * quietMs);
  return state.key === key ? state : { points: [], loaded: false, error: undefined };
}
