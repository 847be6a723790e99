// A device's reject rate over the last minutes, as one small line.
import { useEffect, useRef, useState } from "preact/hooks";
import { percent } from "../pure/format";
import { binnedRate, recentRate } from "../pure/series";
import { useTelemetry } from "../telemetry";

const RANGE_MS = 10 * 60_000;
const WIDTH = 96;
const HEIGHT = 22;

/** Reads only once it is scrolled into view, so that a long fleet costs what is seen of it. */
export function RejectSpark({ device, reject }: { device: string; reject: number }) {
  const ref = useRef<HTMLDivElement>(null);
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    if (!ref.current) return;
    const observer = new IntersectionObserver((entries) => {
      if (entries.some((e) => e.isIntersecting)) {
        setSeen(true);
        observer.disconnect();
      }
    });
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return (
    <div ref={ref} class="spark">
      {seen && <Line device={device} reject={reject} />}
    </div>
  );
}

function Line({ device, reject }: { device: string; reject: number }) {
  const { points, loaded } = useTelemetry(device, RANGE_MS, 120, 2000);
  const rate = recentRate(points, reject, 12);
  const values = binnedRate(points, reject, 40);
  const step = WIDTH / Math.max(1, values.length - 1);
  // The same scale for quiet and noisy devices: a small rate must not look like a large one.
  const top = Math.max(0.3, ...values) * 1.1;
  const y = (v: number) => (HEIGHT - 2 - (v / top) * (HEIGHT - 4)).toFixed(1);
  const path = values.map((v, i) => `${i === 0 ? "M" : "L"}${(i * step).toFixed(1)} ${y(v)}`).join("");
  return (
    <>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} width={WIDTH} height={HEIGHT} aria-hidden="true">
        {values.length > 1 && (
          <>
            <path class="spark-area" d={`${path}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z`} />
            <path class="spark-line" d={path} />
          </>
        )}
      </svg>
      <span class="num">{loaded || rate !== null ? percent(rate) : ""}</span>
    </>
  );
}
