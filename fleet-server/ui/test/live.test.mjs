import assert from "node:assert/strict";
import { test } from "node:test";
import * as l from "../node_modules/.cache/andon-test/live.mjs";
import * as s from "../node_modules/.cache/andon-test/series.mjs";
import * as w from "../node_modules/.cache/andon-test/words.mjs";

const point = (boot, seq, at_ms, counts = [3, 1]) => ({
  boot,
  seq,
  at_ms,
  window: { duration_ms: 5000, class_counts: counts, charts: [{ name: "embedding", value: seq, threshold: 9 }] },
});

test("an event concerns a view by topic, and by object where it asks for one", () => {
  for (const [want, interest, event] of [
    [true, { topics: ["device", "alarm"] }, { topic: "alarm", id: "x" }],
    [false, { topics: ["device"] }, { topic: "alarm", id: "x" }],
    [true, { topics: ["telemetry"], id: "cell-1" }, { topic: "telemetry", id: "cell-1" }],
    [false, { topics: ["telemetry"], id: "cell-1" }, { topic: "telemetry", id: "cell-10" }],
    [true, { topics: ["release"], id: "solar" }, { topic: "release", id: "solar/2" }],
  ]) {
    assert.equal(l.concerns(interest, event), want, JSON.stringify([interest, event]));
  }
});

test("a malformed event is nothing", () => {
  for (const text of ["", "{", "3", "null", "[]", '{"topic":1,"id":"x"}', '{"topic":"run"}']) assert.equal(l.parseEvent(text), null, text);
  assert.deepEqual(l.parseEvent('{"topic":"run","id":"r1","at_ms":5}'), { topic: "run", id: "r1" });
});

test("reads wait for quiet, but never longer than patience", () => {
  assert.equal(l.due(1000, 1000, 250, 1500), 250);
  assert.equal(l.due(1000, 2400, 250, 1500), 100);
  assert.equal(l.due(1000, 9000, 250, 1500), 0);
});

test("points are a union in order of time, bounded", () => {
  const merged = l.mergePoints([point("a", 1, 10), point("a", 2, 20)], [point("b", 1, 30), point("a", 2, 20), point("a", 0, 5)], 3);
  assert.deepEqual(merged.map((p) => [p.boot, p.seq]), [["a", 1], ["a", 2], ["b", 1]]);
});

test("the audit chain breaks where a hash or a number does not follow", () => {
  const chain = [3, 2, 1].map((seq) => ({ seq, previous: `h${seq - 1}`, hash: `h${seq}` }));
  assert.equal(l.firstBreak(chain), null);
  assert.equal(l.firstBreak([chain[0], chain[2]]), 3);
  assert.equal(l.firstBreak([chain[0], { ...chain[1], previous: "forged" }, chain[2]]), 2);
});

test("a silent device leaves a hole in the line", () => {
  const { x, ys } = s.columns([point("a", 1, 5000), point("a", 2, 10_000), point("a", 3, 60_000)], [s.chartValue("embedding"), s.chartValue("gone")]);
  assert.deepEqual(x, [5000, 10_000, 10_001, 60_000]);
  assert.deepEqual(ys, [[1, 2, null, 3], [null, null, null, null]]);
});

test("rates are of sums, and absent where nothing was judged", () => {
  assert.equal(s.recentRate([point("a", 1, 0, [1, 3]), point("a", 2, 1, [3, 1])], 1, 10), 0.5);
  assert.equal(s.recentRate([point("a", 1, 0, [0, 0])], 1, 10), null);
  assert.deepEqual(s.binnedRate([point("a", 1, 0, [1, 0]), point("a", 2, 1, [0, 1]), point("a", 3, 2, [1, 1])], 1, 2), [0, 2 / 3]);
});

test("the lamp shows what needs a person first", () => {
  for (const [text, device] of [
    ["Offline", { online: false, drift: "alarm", open_alarms: 1 }],
    ["Drift", { online: true, drift: "alarm", open_alarms: 1 }],
    ["Alarm open", { online: true, drift: "armed", open_alarms: 1 }],
    ["Stable", { online: true, drift: "armed", open_alarms: 0 }],
    ["some new state", { online: true, drift: "some_new_state", open_alarms: 0 }],
  ]) {
    assert.equal(w.lamp(device).text, text);
  }
});

test("roles are ordered", () => {
  assert.ok(w.atLeast("admin", "labeller"));
  assert.ok(!w.atLeast("viewer", "labeller"));
  assert.ok(!w.atLeast(undefined, "viewer"));
});
