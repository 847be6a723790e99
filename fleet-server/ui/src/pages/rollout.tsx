// One rollout: its waves, what was decided and why, and the three things a person may do about it.
import { useState } from "preact/hooks";
import { api, callWithResponse, type Rollout } from "../api";
import { now, useResource } from "../live";
import { Confirm } from "../parts/dialog";
import { Chip, Lamp } from "../parts/lamp";
import { Empty, Head, Loaded, Panel } from "../parts/page";
import { stateCounts, Waves } from "../parts/waves";
import { ago, duration, time } from "../pure/format";
import { rollout as rolloutWord, rolloutDevice } from "../pure/words";
import { may } from "../session";

type Action = "pause" | "resume" | "abort";

interface Tagged {
  rollout: Rollout;
  etag: string;
}

async function read(id: string): Promise<Tagged> {
  const { data, response } = await callWithResponse(api.GET("/api/v1/rollouts/{id}", { params: { path: { id } } }));
  return { rollout: data, etag: response.headers.get("etag") ?? `"${data.rev}"` };
}

function write(id: string, action: Action, etag: string): Promise<unknown> {
  const params = { path: { id, action } };
  return callWithResponse(api.POST("/api/v1/rollouts/{id}/{action}", { params, headers: { "If-Match": etag } }));
}

const ASKED: Record<Action, { verb: string; title: string; text: string }> = {
  pause: {
    verb: "Pause",
    title: "Pause this rollout?",
    text: "No further device is offered the release. Devices that have begun finish their trial.",
  },
  resume: { verb: "Resume", title: "Resume this rollout?", text: "The reconciler looks at the wave that is out and goes on from there." },
  abort: {
    verb: "Abort rollout",
    title: "Abort this rollout?",
    text: "It ends for good: devices that have not committed go back to what they ran. Devices that have committed keep the new release.",
  },
};

export function RolloutPage({ id }: { id: string }) {
  const found = useResource(`rollout ${id}`, () => read(id), { topics: ["rollout", "device"] });
  const [asked, setAsked] = useState<Action>();
  const r = found.data?.rollout;
  const alive = r?.state === "running" || r?.state === "paused";
  return (
    <>
      <Head
        title={r?.release ?? "Rollout"}
        back={{ href: "/rollouts", text: "Rollouts" }}
        beside={r && <Chip word={rolloutWord(r.state)} />}
        note={r && `started by ${r.created_by} ${ago(r.created_ms, now.value)}${r.finished_ms ? `, took ${duration(r.finished_ms - r.created_ms)}` : ""}`}
      >
        {may.operate.value && r?.state === "running" && (
          <button type="button" onClick={() => setAsked("pause")}>
            Pause
          </button>
        )}
        {may.operate.value && r?.state === "paused" && (
          <button type="button" onClick={() => setAsked("resume")}>
            Resume
          </button>
        )}
        {may.operate.value && alive && (
          <button type="button" class="danger" onClick={() => setAsked("abort")}>
            Abort
          </button>
        )}
      </Head>
      <Loaded of={found} rows={5}>
        {({ rollout }) => (
          <>
            <Panel title="Waves" note={`${Math.min(rollout.wave + 1, rollout.waves.length)} of ${rollout.waves.length} out`}>
              {rollout.devices.length === 0 ? (
                <Empty title="No device takes part">Devices are put into waves when the rollout starts. Enrol a device first.</Empty>
              ) : (
                <>
                  <Waves rollout={rollout} />
                  <div class="legend">
                    {stateCounts(rollout).map(([state, n]) => {
                      const word = rolloutDevice(state);
                      return <Lamp key={state} word={{ ...word, text: `${word.text} ${n}` }} />;
                    })}
                  </div>
                </>
              )}
            </Panel>
            <div class="columns">
              <Decisions rollout={rollout} />
              <Devices rollout={rollout} />
            </div>
          </>
        )}
      </Loaded>
      {asked && found.data && (
        <Confirm
          title={ASKED[asked].title}
          verb={ASKED[asked].verb}
          danger={asked === "abort"}
          act={() => write(id, asked, found.data?.etag ?? "").finally(found.reload)}
          close={() => setAsked(undefined)}
        >
          <p>{ASKED[asked].text}</p>
        </Confirm>
      )}
    </>
  );
}

function Decisions({ rollout }: { rollout: Rollout }) {
  return (
    <Panel title="Decisions" note="newest first">
      {rollout.decisions.length === 0 ? (
        <Empty title="Nothing decided yet">Every step is written here with what it was decided from.</Empty>
      ) : (
        <ol class="timeline decisions">
          {[...rollout.decisions].reverse().map((d, i) => (
            <li key={rollout.decisions.length - i}>
              <time>{time(d.at_ms, now.value)}</time>
              <span>
                <strong>{d.what}</strong>
                <span class="why">{d.why}</span>
              </span>
              <span class="faint num">{d.by}</span>
            </li>
          ))}
        </ol>
      )}
    </Panel>
  );
}

function Devices({ rollout }: { rollout: Rollout }) {
  const devices = [...rollout.devices].sort((a, b) => a.wave - b.wave || a.device.localeCompare(b.device));
  return (
    <section class="panel flush">
      <div class="panel-head">
        <h2>Devices</h2>
      </div>
      <div class="scroll tall">
        <table class="rows">
          <thead>
            <tr>
              <th>Device</th>
              <th>Wave</th>
              <th>State</th>
              <th class="num">Since</th>
            </tr>
          </thead>
          <tbody>
            {devices.map((d) => (
              <tr key={d.device}>
                <td>
                  <a class="strong" href={`/devices/${encodeURIComponent(d.device)}`}>
                    {d.device}
                  </a>
                </td>
                <td>{d.wave + 1}</td>
                <td>
                  <Lamp word={rolloutDevice(d.state)} />
                  {d.detail && <span class="why note">{d.detail}</span>}
                </td>
                <td class="num">{ago(d.since_ms, now.value)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
