// The audit trail: who did what, newest first, and whether the entries shown hang together.
import { useState } from "preact/hooks";
import { api, type ApiError, asApiError, type AuditEntry, call } from "../api";
import { now, useResource } from "../live";
import { Lamp } from "../parts/lamp";
import { Empty, Failed, Head, Loaded } from "../parts/page";
import { shortDigest, time } from "../pure/format";
import { firstBreak } from "../pure/live";

const PAGE = 100;

async function read(cursor?: string) {
  return call(api.GET("/api/v1/audit", { params: { query: { limit: PAGE, ...(cursor ? { cursor } : {}) } } }));
}

export function AuditPage() {
  const first = useResource("audit", () => read(), { topics: ["device", "label", "run", "release", "rollout", "alarm"] });
  const [older, setOlder] = useState<AuditEntry[]>([]);
  const [next, setNext] = useState<string | null>();
  const [error, setError] = useState<ApiError>();
  const cursor = next === undefined ? first.data?.next : next;
  const more = () => {
    if (!cursor) return;
    read(cursor).then(
      (page) => {
        setOlder((o) => [...o, ...page.items]);
        setNext(page.next ?? null);
      },
      (e: unknown) => setError(asApiError(e)),
    );
  };
  return (
    <>
      <Head title="Audit" note="Append-only. Each entry carries the hash of the one before it, so that a missing or changed one shows." />
      <Loaded of={first} rows={8}>
        {({ items }) => {
          const known = new Set(items.map((e) => e.seq));
          const all = [...items, ...older.filter((e) => !known.has(e.seq))].sort((a, b) => b.seq - a.seq);
          if (all.length === 0) return <Empty title="Nothing written yet">Logins, enrolments, labels, releases and rollouts are written here.</Empty>;
          const broken = firstBreak(all);
          return (
            <section class="panel flush">
              <div class="panel-head">
                <Lamp word={broken === null ? { tone: "ok", text: `Chain holds from entry ${all.at(-1)?.seq} to ${all[0]?.seq}` } : { tone: "alarm", text: `Chain breaks at entry ${broken}` }} />
                <span class="note">
                  <code class="mono">andon audit --verify</code> checks the whole of it
                </span>
              </div>
              <div class="scroll">
                <table class="rows">
                  <thead>
                    <tr>
                      <th class="num">#</th>
                      <th>When</th>
                      <th>Who</th>
                      <th>Action</th>
                      <th>Object</th>
                      <th>Detail</th>
                      <th class="num">Hash</th>
                    </tr>
                  </thead>
                  <tbody>
                    {all.map((e) => (
                      <tr key={e.seq}>
                        <td class="num faint">{e.seq}</td>
                        <td class="nowrap">{time(e.at_ms, now.value)}</td>
                        <td class="strong">{e.actor}</td>
                        <td class="nowrap">{e.action}</td>
                        <td class="cut" title={e.object}>{e.object}</td>
                        <td class="cut note" title={e.detail}>{e.detail}</td>
                        <td class="num mono faint" title={e.hash}>
                          {shortDigest(e.hash)}
                        </td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </div>
            </section>
          );
        }}
      </Loaded>
      {error && <Failed error={error} />}
      {cursor && (
        <button type="button" onClick={more}>
          Show older
        </button>
      )}
    </>
  );
}
