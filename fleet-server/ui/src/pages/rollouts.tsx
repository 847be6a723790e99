// All rollouts, newest first, and how to start one.
import { api, call, type Rollout } from "../api";
import { now, useResource } from "../live";
import { Chip } from "../parts/lamp";
import { Empty, Head, Loaded } from "../parts/page";
import { ago, duration, time } from "../pure/format";
import { rollout as rolloutWord } from "../pure/words";
import { navigate } from "../router";

export function RolloutsPage() {
  const rollouts = useResource("rollouts", () => call(api.GET("/api/v1/rollouts", { params: { query: { limit: 100 } } })), {
    topics: ["rollout", "device"],
  });
  return (
    <>
      <Head title="Rollouts" note="A release goes out in waves; a wave starts when the one before it is proven." />
      <Loaded of={rollouts} rows={4}>
        {({ items }) =>
          items.length === 0 ? (
            <Empty title="No rollout yet">
              <p>Choose a release and roll it out. With the policy "roll out by itself", releases that pass the gate start on their own.</p>
              <a class="button primary" href="/models">
                Go to releases
              </a>
            </Empty>
          ) : (
            <section class="panel flush">
              <div class="scroll">
                <table class="rows">
                  <thead>
                    <tr>
                      <th>Release</th>
                      <th>State</th>
                      <th>Wave</th>
                      <th>Committed</th>
                      <th>Started by</th>
                      <th class="num">Started</th>
                      <th class="num">Took</th>
                    </tr>
                  </thead>
                  <tbody>
                    {items.map((r) => (
                      <Row key={r.id} rollout={r} />
                    ))}
                  </tbody>
                </table>
              </div>
            </section>
          )
        }
      </Loaded>
    </>
  );
}

function Row({ rollout: r }: { rollout: Rollout }) {
  const href = `/rollouts/${encodeURIComponent(r.id)}`;
  const committed = r.devices.filter((d) => d.state === "committed").length;
  const share = r.devices.length ? committed / r.devices.length : 0;
  return (
    <tr class="link" onClick={() => navigate(href)}>
      <td>
        <a class="strong" href={href} onClick={(e) => e.stopPropagation()}>
          {r.release}
        </a>
      </td>
      <td>
        <Chip word={rolloutWord(r.state)} />
      </td>
      <td>
        {Math.min(r.wave + 1, r.waves.length)} of {r.waves.length}
      </td>
      <td>
        <span class="spark">
          <span class="bar meter">
            <i style={{ width: `${share * 100}%` }} />
          </span>
          {committed} of {r.devices.length}
        </span>
      </td>
      <td>{r.created_by}</td>
      <td class="num" title={time(r.created_ms, now.value)}>
        {ago(r.created_ms, now.value)}
      </td>
      <td class="num">{r.finished_ms ? duration(r.finished_ms - r.created_ms) : "–"}</td>
    </tr>
  );
}
