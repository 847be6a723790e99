import assert from "node:assert/strict";
import { test } from "node:test";
import * as q from "../node_modules/.cache/andon-test/queue.mjs";

const items = (n) => Array.from({ length: n }, (_, i) => ({ id: `s${i}`, saved: null }));
const run = (queue, ...actions) => {
  const effects = [];
  for (const action of actions) {
    const [next, wanted] = q.step(queue, action);
    queue = next;
    effects.push(...wanted);
  }
  return { queue, effects };
};
const label = (name) => ({ type: "label", class: name });
const settle = (id, error) => ({ type: "settle", id, error });
const undo = { type: "undo" };
const move = (by) => ({ type: "move", by });

test("a label shows at once, is written once, and the next image comes", () => {
  const { queue, effects } = run(q.start(items(3)), label("ok"));
  assert.equal(queue.at, 1);
  assert.equal(q.labelOf(queue, "s0"), "ok");
  assert.equal(q.labelled(queue), 1);
  assert.equal(q.pending(queue), 1);
  assert.deepEqual(effects, [{ id: "s0", label: "ok" }]);
});

test("undo takes back in reverse order and restores what stood there", () => {
  const start = q.start([{ id: "a", saved: "defect" }, { id: "b", saved: null }]);
  const { queue, effects } = run(start, label("ok"), settle("a"), label("ok"), settle("b"), undo, settle("b"), undo, settle("a"), undo);
  assert.deepEqual(effects.slice(2), [{ id: "b", label: null }, { id: "a", label: "defect" }]);
  assert.equal(queue.at, 0);
  assert.equal(q.labelOf(queue, "a"), "defect");
  assert.equal(q.labelOf(queue, "b"), null);
});

test("a wish during a write waits, and only the newest is sent", () => {
  const { queue, effects } = run(q.start(items(1)), label("ok"), move(-1), label("defect"), move(-1), label("ok"), move(-1), label("defect"));
  assert.deepEqual(effects, [{ id: "s0", label: "ok" }]);
  const after = run(queue, settle("s0"));
  assert.deepEqual(after.effects, [{ id: "s0", label: "defect" }]);
  const end = run(after.queue, settle("s0"));
  assert.deepEqual(end.effects, []);
  assert.equal(end.queue.items[0].saved, "defect");
});

test("undo during a write ends without a label", () => {
  const { queue, effects } = run(q.start(items(2)), label("ok"), undo, settle("s0"), settle("s0"));
  assert.deepEqual(effects, [{ id: "s0", label: "ok" }, { id: "s0", label: null }]);
  assert.equal(q.labelled(queue), 0);
  assert.equal(queue.at, 0);
});

test("a refused label is taken back, shown, and cannot be undone twice", () => {
  const { queue } = run(q.start(items(3)), label("ok"), label("ok"), settle("s0", "the sample is gone"));
  assert.equal(queue.at, 0);
  assert.deepEqual(queue.failed, { id: "s0", detail: "the sample is gone" });
  assert.equal(q.labelOf(queue, "s0"), null);
  assert.deepEqual(queue.done.map((d) => d.id), ["s1"]);
});

test("moves stay inside, the end is one behind the last image", () => {
  const { queue } = run(q.start(items(2)), move(-5));
  assert.equal(queue.at, 0);
  const end = run(queue, move(9));
  assert.ok(q.isOver(end.queue));
  assert.deepEqual(run(end.queue, label("ok")).effects, []);
});

test("a settle that nobody waits for changes nothing", () => {
  const start = q.start(items(1));
  assert.equal(q.step(start, settle("s0"))[0], start);
});
