// Open alarms: the cause in words, what to do, and the two things a person can do from here.
import { api, type Alarm, call } from "../api";
import { now } from "../live";
import { ago, count } from "../pure/format";
import { cause } from "../pure/words";
import { may } from "../session";
import { useAct } from "./dialog";
import { Glyph } from "./lamp";
import { Failed } from "./page";

export const labelHref = (device: string): string => `/label?device=${encodeURIComponent(device)}&labelled=false`;

export function AlarmStrip({ alarms, place, changed }: { alarms: Alarm[]; place?: (device: string) => string; changed: () => void }) {
  if (alarms.length === 0) return null;
  return (
    <section class="alarms" aria-label="Open alarms">
      {alarms.map((alarm) => (
        <AlarmRow key={alarm.id} alarm={alarm} place={place?.(alarm.device)} changed={changed} />
      ))}
    </section>
  );
}

function AlarmRow({ alarm, place, changed }: { alarm: Alarm; place: string | undefined; changed: () => void }) {
  const { busy, error, run } = useAct(
    () => call(api.POST("/api/v1/alarms/{id}/acknowledge", { params: { path: { id: alarm.id } } })),
    changed,
  );
  const why = cause(alarm.cause);
  return (
    <div class="alarm">
      <Glyph tone="alarm" />
      <div class="alarm-text">
        <p>
          <strong>{why.title}</strong>
          {place !== undefined && (
            <>
              {" on "}
              <a href={`/devices/${encodeURIComponent(alarm.device)}`}>{alarm.device}</a> <span class="faint">{place}</span>
            </>
          )}
        </p>
        <p class="note">{why.advice}</p>
        {error && <Failed error={error} />}
      </div>
      <span class="alarm-when note">
        {ago(alarm.raised_ms, now.value)}
        <br />
        after {count(alarm.frames)} frames · {count(alarm.samples)} samples
      </span>
      <div class="actions">
        {may.operate.value && (
          <button type="button" disabled={busy} onClick={run}>
            Acknowledge
          </button>
        )}
        {may.label.value && (
          <a class="button primary" href={labelHref(alarm.device)}>
            Label samples
          </a>
        )}
      </div>
    </div>
  );
}
