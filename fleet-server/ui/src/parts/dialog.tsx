// Dialogs on the platform's <dialog>: focus trap, Escape and backdrop come with it.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { type ApiError, asApiError } from "../api";
import { CloseIcon } from "./icons";
import { Failed } from "./page";

interface DialogProps {
  title: string;
  close: () => void;
  wide?: boolean;
  children: ComponentChildren;
}

export function Dialog({ title, close, wide, children }: DialogProps) {
  const ref = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const dialog = ref.current;
    if (dialog && !dialog.open) dialog.showModal();
    return () => dialog?.close();
  }, []);
  return (
    <dialog
      ref={ref}
      class={wide ? "dialog wide" : "dialog"}
      aria-label={title}
      onCancel={(e) => {
        e.preventDefault();
        close();
      }}
      onClick={(e) => {
        if (e.target === ref.current) close();
      }}
    >
      <div class="dialog-head">
        <h2>{title}</h2>
        <button type="button" class="plain" aria-label="Close" onClick={close}>
          <CloseIcon />
        </button>
      </div>
      <div class="dialog-body">{children}</div>
    </dialog>
  );
}

interface ConfirmProps {
  title: string;
  verb: string;
  danger?: boolean;
  act: () => Promise<unknown>;
  close: () => void;
  children: ComponentChildren;
}

/** Asks before `act`; stays open with the server's words when it fails. */
export function Confirm({ title, verb, danger, act, close, children }: ConfirmProps) {
  const { busy, error, run } = useAct(act, close);
  return (
    <Dialog title={title} close={close}>
      <div class="prose">{children}</div>
      {error && <Failed error={error} />}
      <div class="dialog-foot">
        <button type="button" onClick={close}>
          Cancel
        </button>
        <button type="button" class={danger ? "danger" : "primary"} disabled={busy} onClick={run}>
          {verb}
        </button>
      </div>
    </Dialog>
  );
}

/** One action at a time, with its error. */
export function useAct(act: () => Promise<unknown>, done?: () => void) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<ApiError>();
  const run = () => {
    if (busy) return;
    setBusy(true);
    setError(undefined);
    act()
      .then(() => done?.())
      .catch((e: unknown) => setError(asApiError(e)))
      .finally(() => setBusy(false));
  };
  return { busy, error, run };
}
