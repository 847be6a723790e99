import assert from "node:assert/strict";
import { test } from "node:test";
import * as f from "../node_modules/.cache/andon-test/format.mjs";

const cases = (name, check, rows) =>
  test(name, () => {
    for (const [want, ...args] of rows) assert.deepEqual(check(...args), want, `${name}(${args.join(", ")})`);
  });

cases("count", f.count, [["0", 0], ["999", 999], ["4 410", 4410], ["1 234 567", 1234567]]);
cases("plural", f.plural, [["1 device", 1, "device"], ["0 devices", 0, "device"], ["2 devices", 2, "device"]]);
cases("bytes", f.bytes, [
  ["0 B", 0],
  ["999 B", 999],
  ["1.0 kB", 1000],
  ["12 kB", 12_345],
  ["1.0 MB", 999_950],
  ["4.7 MB", 4_652_100],
  ["2000 TB", 2e15],
]);
cases("percent", f.percent, [["85.3 %", 0.853], ["100 %", 1, 0], ["–", null], ["–", undefined], ["–", NaN]]);
cases("points", f.points, [["+18.2 pt", 0.642, 0.824], ["−0.4 pt", 0.861, 0.857], ["±0.0 pt", 0.5, 0.50001]]);
cases("rate", f.rate, [["5.0", 25, 5000], ["120", 600, 5000], ["–", 3, 0]]);
cases("micros", f.micros, [["850 µs", 850], ["1.5 ms", 1500], ["46 ms", 46_123], ["1.2 s", 1_200_000]]);
cases("duration", f.duration, [
  ["0 s", -5],
  ["59 s", 59_400],
  ["1 min", 60_000],
  ["2 min 5 s", 125_000],
  ["12 min", 12 * 60_000 + 9000],
  ["4 h 12 min", (4 * 60 + 12) * 60_000],
  ["2 d 3 h", 51 * 3_600_000],
]);
cases("ago", f.ago, [
  ["never", null, 0],
  ["just now", 1000, 2000],
  ["12 s ago", 0, 12_000],
  ["2 min ago", 0, 125_000],
  ["in 1 h 0 min", 3_600_000, 0],
]);
cases("metric", f.metric, [
  ["85.3 %", "golden.balanced_accuracy", 0.853],
  ["1 398", "train.items", 1398],
  ["0.3216", "loss", 0.321612],
]);
cases("metricName", f.metricName, [["Golden · balanced accuracy", "golden.balanced_accuracy"], ["Agreement", "agreement"]]);

test("time shows the date only where it is not today's", () => {
  const noon = new Date(2026, 10, 24, 12, 3, 9).getTime();
  assert.equal(f.time(noon, noon + 60_000), "12:03:09");
  assert.equal(f.time(noon, noon + 86_400_000), "2026-11-24 12:03:09");
});

test("old and new of a metric stand in one row", () => {
  assert.deepEqual(f.compare({ "b.new": 2, agreement: 0.99, "b.old": 1 }), [
    { name: "agreement", old: null, new: 0.99 },
    { name: "b", old: 1, new: 2 },
  ]);
});
