// Enrolment: a token that works once, with the command that uses it.
import { useState } from "preact/hooks";
import { api, call, type Device, type Enrolment } from "../api";
import { now } from "../live";
import { ago } from "../pure/format";
import { Dialog, useAct } from "./dialog";
import { Failed } from "./page";

export function EnrolDialog({ known, close }: { known: Device[]; close: () => void }) {
  const first = known[0];
  const [device, setDevice] = useState("");
  const [site, setSite] = useState(first?.site ?? "");
  const [line, setLine] = useState(first?.line ?? "");
  const [made, setMade] = useState<Enrolment>();
  const { busy, error, run } = useAct(async () => {
    setMade(await call(api.POST("/api/v1/enrolments", { body: { device: device.trim(), site: site.trim(), line: line.trim() } })));
  });
  return (
    <Dialog title="Enrol a device" close={close}>
      {made ? (
        <Token made={made} close={close} />
      ) : (
        <form
          class="form"
          onSubmit={(e) => {
            e.preventDefault();
            run();
          }}
        >
          <label>
            Device
            <input value={device} required autofocus maxLength={63} pattern="[a-z0-9][a-z0-9._\-]*" placeholder="cell-7" onInput={(e) => setDevice(e.currentTarget.value)} />
            <span class="note">Its name for ever: a-z, 0-9, '-', '_' and '.'.</span>
          </label>
          <div class="pair">
            <label>
              Site
              <input value={site} required maxLength={63} onInput={(e) => setSite(e.currentTarget.value)} />
            </label>
            <label>
              Line
              <input value={line} required maxLength={63} onInput={(e) => setLine(e.currentTarget.value)} />
            </label>
          </div>
          {error && <Failed error={error} />}
          <div class="dialog-foot">
            <button type="button" onClick={close}>
              Cancel
            </button>
            <button type="submit" class="primary" disabled={busy}>
              Make token
            </button>
          </div>
        </form>
      )}
    </Dialog>
  );
}

function Token({ made, close }: { made: Enrolment; close: () => void }) {
  const command = `andon-agent enrol --url ${made.url} --token ${made.token} --data-dir /var/lib/andon`;
  const [copied, setCopied] = useState(false);
  return (
    <>
      <p>
        Run this on <b>{made.device}</b>. The token works once and expires {ago(made.expires_ms, now.value)}.
      </p>
      <pre class="code">{command}</pre>
      <div class="dialog-foot">
        <button type="button" onClick={() => void navigator.clipboard?.writeText(command).then(() => setCopied(true))}>
          {copied ? "Copied" : "Copy"}
        </button>
        <button type="button" class="primary" onClick={close}>
          Done
        </button>
      </div>
    </>
  );
}
