// What every page is framed with: head, panels, and the three states that are no data: loading, empty, failed.
import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";
import type { ApiError } from "../api";
import type { Resource } from "../live";
import { Glyph } from "./lamp";

interface HeadProps {
  title: string;
  /** Beside the title, in its own markup. */
  beside?: ComponentChildren;
  note?: ComponentChildren;
  back?: { href: string; text: string };
  children?: ComponentChildren;
}

export function Head({ title, beside, note, back, children }: HeadProps) {
  useEffect(() => {
    document.title = `${title} · Andon`;
  }, [title]);
  return (
    <header class="head">
      <div>
        {back && (
          <a class="crumb" href={back.href}>
            {back.text}
          </a>
        )}
        <h1>
          {title}
          {beside}
        </h1>
        {note && <p class="note">{note}</p>}
      </div>
      <div class="actions">{children}</div>
    </header>
  );
}

interface PanelProps {
  title?: ComponentChildren;
  note?: ComponentChildren;
  actions?: ComponentChildren;
  flush?: boolean;
  children: ComponentChildren;
}

export function Panel({ title, note, actions, flush, children }: PanelProps) {
  return (
    <section class={flush ? "panel flush" : "panel"}>
      {title && (
        <div class="panel-head">
          <h2>{title}</h2>
          {note && <span class="note">{note}</span>}
          {actions && <div class="actions">{actions}</div>}
        </div>
      )}
      {children}
    </section>
  );
}

export function Empty({ title, children }: { title: string; children: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="empty-title">{title}</p>
      <div class="note">{children}</div>
    </div>
  );
}

export function Failed({ error, retry }: { error: ApiError; retry?: () => void }) {
  return (
    <div class="failed" role="alert">
      <Glyph tone="alarm" />
      <div>
        <strong>{error.title}</strong>
        {error.detail && <p>{error.detail}</p>}
      </div>
      {retry && (
        <button type="button" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Loading({ rows = 3 }: { rows?: number }) {
  return (
    <div class="loading" role="status" aria-label="Loading">
      {Array.from({ length: rows }, (_, i) => (
        <div key={i} class="bone" />
      ))}
    </div>
  );
}

interface LoadedProps<T> {
  of: Resource<T>;
  rows?: number;
  children: (data: T) => ComponentChildren;
}

/** The data, old data with a warning over it, an error, or bones while it loads. */
export function Loaded<T>({ of, rows, children }: LoadedProps<T>) {
  if (of.data === undefined) {
    return of.error ? <Failed error={of.error} retry={of.reload} /> : <Loading {...(rows ? { rows } : {})} />;
  }
  return (
    <>
      {of.error && <Failed error={of.error} retry={of.reload} />}
      {children(of.data)}
    </>
  );
}

export function Facts({ items }: { items: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {items.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}
