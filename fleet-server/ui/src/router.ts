// URL = page. A small history router: paths with `:name` parts, a query that pages read and write, plain links.
import { computed, signal } from "@preact/signals";
import type { ComponentType } from "preact";

const here = signal(new URL(location.href));
export const path = computed(() => here.value.pathname);
export const query = computed(() => here.value.searchParams);

addEventListener("popstate", () => {
  here.value = new URL(location.href);
});

export function navigate(to: string, how: "push" | "replace" = "push"): void {
  const url = new URL(to, location.href);
  if (url.href === here.value.href) return;
  if (how === "push") history.pushState(null, "", url);
  else history.replaceState(null, "", url);
  const samePage = url.pathname === here.value.pathname;
  here.value = url;
  if (!samePage) scrollTo(0, 0);
}

/** Sets or removes parameters of this page's query, without a new entry in the history. */
export function setQuery(changes: Record<string, string | null>): void {
  const url = new URL(here.value);
  for (const [name, value] of Object.entries(changes)) {
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  navigate(url.href, "replace");
}

/** One listener for all links: same-origin, plain clicks stay in the application. */
export function catchLinks(): void {
  document.addEventListener("click", (e) => {
    if (e.defaultPrevented || e.button !== 0 || e.metaKey || e.ctrlKey || e.shiftKey || e.altKey) return;
    const link = (e.target as Element | null)?.closest?.("a[href]") as HTMLAnchorElement | null;
    if (!link || link.target || link.origin !== location.origin || link.pathname.startsWith("/api/")) return;
    e.preventDefault();
    navigate(link.href);
  });
}

export type Params = Record<string, string>;
export interface Route {
  pattern: string;
  page: ComponentType<Params>;
}

export function match(pattern: string, pathname: string): Params | null {
  const want = pattern.split("/");
  const have = pathname.replace(/(.)\/$/, "$1").split("/");
  if (want.length !== have.length) return null;
  const params: Params = {};
  for (let i = 0; i < want.length; i++) {
    const part = want[i] ?? "";
    const value = have[i] ?? "";
    if (part.startsWith(":")) {
      try {
        params[part.slice(1)] = decodeURIComponent(value);
      } catch {
        return null;
      }
    } else if (part !== value) return null;
  }
  return params;
}
