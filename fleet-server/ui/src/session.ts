// Who is logged in. The session itself is a cookie that scripts cannot read; this only knows what `/me` says.
import { computed, signal } from "@preact/signals";
import { abandonRequests, api, ApiError, asApiError, call, type Me, whenUnauthorised } from "./api";
import { connect, disconnect } from "./live";
import { atLeast } from "./pure/words";

export type Session = { state: "unknown" } | { state: "out" } | { state: "in"; me: Me } | { state: "failed"; error: ApiError };
export const session = signal<Session>({ state: "unknown" });
const role = computed(() => (session.value.state === "in" ? session.value.me.role : undefined));

/** For showing and hiding only: the server decides. */
export const may = {
  label: computed(() => atLeast(role.value, "labeller")),
  train: computed(() => atLeast(role.value, "engineer")),
  operate: computed(() => atLeast(role.value, "operator")),
};

function left(): void {
  disconnect();
  session.value = { state: "out" };
}
whenUnauthorised(left);

export async function resume(): Promise<void> {
  try {
    const me = await call(api.GET("/api/v1/me"));
    session.value = { state: "in", me };
    connect();
  } catch (e) {
    const error = asApiError(e);
    if (error.status !== 401) session.value = { state: "failed", error };
  }
}

export async function login(user: string, password: string): Promise<void> {
  await call(api.POST("/api/v1/session", { body: { user, password } }));
  await resume();
}

/** The pages go first: what they would ask with a session that is no more could only be refused. */
export async function logout(): Promise<void> {
  disconnect();
  session.value = { state: "unknown" };
  abandonRequests();
  try {
    await call(api.DELETE("/api/v1/session"));
    left();
  } catch (e) {
    const error = asApiError(e);
    // 401: it was over already. Anything else leaves a session that the person thinks is gone.
    if (error.status !== 401) session.value = { state: "failed", error };
  }
}
