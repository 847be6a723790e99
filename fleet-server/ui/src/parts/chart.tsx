// A time chart on uPlot: lines, dashed limits, vertical marks, a read-out that follows the pointer on all charts of the
// page at once. Colours come from the style sheet, and again when the system changes between light and dark.
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import type { ComponentChildren } from "preact";
import type { Columns } from "../pure/series";
import { time } from "../pure/format";
import { now } from "../live";

export interface Line {
  name: string;
  /** A custom property of the style sheet, `--line-1`. */
  colour: string;
  show: (value: number) => string;
  limit?: boolean;
  fill?: boolean;
}

export interface Mark {
  atMs: number;
  colour: string;
}

interface ChartProps {
  title: ComponentChildren;
  state?: ComponentChildren;
  lines: Line[];
  data: Columns;
  marks?: Mark[];
  fromMs: number;
  toMs: number;
  /** Fixed ends of the y axis; free where absent. */
  min?: number;
  max?: number;
  height?: number;
  axis: (value: number) => string;
}

const token = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const faded = (colour: string, share: number) => `color-mix(in srgb, ${colour} ${share * 100}%, transparent)`;
const font = '11px "Inter Variable", system-ui, sans-serif';
const sync = uPlot.sync("time");

function options(props: ChartProps, width: number, marks: { current: Mark[] }, onCursor: (index: number | null) => void): uPlot.Options {
  const grid = { stroke: token("--line"), width: 1 };
  const axis: uPlot.Axis = { stroke: token("--faint"), grid, ticks: { show: false }, font };
  return {
    width,
    height: props.height ?? 150,
    ms: 1,
    padding: [10, 8, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: sync.key }, y: false, points: { size: 6 }, drag: { x: false, y: false } },
    scales: {
      x: { time: true, range: (_u, min, max) => [min, max] },
      y: {
        range: (_u, low, high) => {
          const bottom = props.min ?? Math.min(low ?? 0, 0);
          const top = props.max ?? Math.max(high ?? 1, bottom + 1e-6);
          return [bottom, props.max ?? top + (top - bottom) * 0.12];
        },
      },
    },
    axes: [
      {
        ...axis,
        size: 26,
        space: 80,
        values: (_u, splits) => splits.map((s) => time(s, s).slice(0, splits.length > 1 && (splits[1] ?? 0) - (splits[0] ?? 0) < 60_000 ? 8 : 5)),
      },
      { ...axis, size: 52, space: 34, values: (_u, splits) => splits.map(props.axis) },
    ],
    series: [
      {},
      ...props.lines.map((line): uPlot.Series => {
        const colour = token(line.colour);
        return {
          label: line.name,
          stroke: colour,
          width: line.limit ? 1.25 : 1.75,
          points: { show: false },
          spanGaps: false,
          ...(line.limit ? { dash: [5, 4] } : {}),
          ...(line.fill ? { fill: faded(colour, 0.1) } : {}),
        };
      }),
    ],
    hooks: {
      setCursor: [(u) => onCursor(u.cursor.idx ?? null)],
      drawAxes: [
        (u) => {
          const { ctx, bbox } = u;
          ctx.save();
          for (const mark of marks.current) {
            const x = Math.round(u.valToPos(mark.atMs, "x", true));
            if (x < bbox.left || x > bbox.left + bbox.width) continue;
            ctx.strokeStyle = token(mark.colour);
            ctx.fillStyle = token(mark.colour);
            ctx.lineWidth = devicePixelRatio;
            ctx.beginPath();
            ctx.moveTo(x + 0.5, bbox.top);
            ctx.lineTo(x + 0.5, bbox.top + bbox.height);
            ctx.stroke();
            const size = 4 * devicePixelRatio;
            ctx.beginPath();
            ctx.moveTo(x - size, bbox.top);
            ctx.lineTo(x + size, bbox.top);
            ctx.lineTo(x, bbox.top + size * 1.4);
            ctx.fill();
          }
          ctx.restore();
        },
      ],
    },
  };
}

export function Chart(props: ChartProps) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const marks = useRef<Mark[]>([]);
  marks.current = props.marks ?? [];
  const [index, setIndex] = useState<number | null>(null);
  const shape = props.lines.map((l) => l.name).join("\n");

  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const make = () => {
      plot.current?.destroy();
      const { data } = latest.current;
      plot.current = new uPlot(options(latest.current, element.clientWidth, marks, setIndex), [data.x, ...data.ys], element);
      plot.current.setScale("x", { min: latest.current.fromMs, max: latest.current.toMs });
    };
    make();
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", make);
    const resized = new ResizeObserver(() => {
      const width = element.clientWidth;
      if (width > 0 && plot.current && plot.current.width !== width) {
        plot.current.setSize({ width, height: latest.current.height ?? 150 });
      }
    });
    resized.observe(element);
    return () => {
      scheme.removeEventListener("change", make);
      resized.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape]);

  useEffect(() => {
    const u = plot.current;
    if (!u) return;
    u.batch(() => {
      u.setData([props.data.x, ...props.data.ys], true);
      u.setScale("x", { min: props.fromMs, max: props.toMs });
    });
  }, [props.data, props.fromMs, props.toMs, props.marks]);

  const at = index ?? props.data.x.length - 1;
  const atMs = props.data.x[at];
  return (
    <figure class="chart">
      <figcaption>
        <span class="chart-title">{props.title}</span>
        {props.state}
        <span class="chart-values">
          {index !== null && atMs !== undefined && <span class="faint">{time(atMs, now.peek())}</span>}
          {props.lines.map((line, i) => {
            const value = props.data.ys[i]?.[at];
            return (
              <span key={line.name} class="chart-value">
                <i class={line.limit ? "swatch dashed" : "swatch"} style={{ borderColor: `var(${line.colour})` }} />
                {line.name} <b>{value == null ? "–" : line.show(value)}</b>
              </span>
            );
          })}
        </span>
      </figcaption>
      <div ref={box} class="chart-box" />
    </figure>
  );
}
