// The API client: typed from the server's OpenAPI file, errors as one class that carries the Problem's words.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

type Schemas = components["schemas"];
export type Alarm = Schemas["Alarm"];
export type AuditEntry = Schemas["AuditEntry"];
export type DataSet = Schemas["DataSet"];
export type Device = Schemas["Device"];
export type DeviceEvent = Schemas["DeviceEvent"];
export type Enrolment = Schemas["Enrolment"];
export type Me = Schemas["Me"];
export type Model = Schemas["Model"];
export type Overview = Schemas["Overview"];
export type Policy = Schemas["Policy"];
export type Release = Schemas["Release"];
export type Rollout = Schemas["Rollout"];
export type RolloutDevice = Schemas["RolloutDevice"];
export type Sample = Schemas["Sample"];
export type TrainingRun = Schemas["TrainingRun"];
export type WindowPoint = Schemas["WindowPoint"];

let underWay = new AbortController();
/** Ends every request that has no answer yet: the session that asked is over. */
export function abandonRequests(): void {
  underWay.abort();
  underWay = new AbortController();
}

export const api = createClient<paths>({
  baseUrl: "/",
  credentials: "same-origin",
  fetch: (request) => fetch(request, { signal: underWay.signal }),
});

/** What the server said is wrong, or that it could not be reached. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly title: string,
    readonly detail: string,
  ) {
    super(detail || title);
  }
}

let onUnauthorised: () => void = () => {};
/** Called when the session has ended, so that the login page is shown instead of an error. */
export function whenUnauthorised(then: () => void): void {
  onUnauthorised = then;
}

interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

function problem(response: Response, body: unknown): ApiError {
  const field = (name: string): string => {
    const value = typeof body === "object" && body !== null ? (body as Record<string, unknown>)[name] : undefined;
    return typeof value === "string" ? value : "";
  };
  return new ApiError(
    response.status,
    field("code") || String(response.status),
    field("title") || `The server answered ${response.status}`,
    field("detail"),
  );
}

/** The body of an answer, or throws an [ApiError]. */
export async function call<T>(request: Promise<Answer<T>>): Promise<T> {
  const { data } = await callWithResponse(request);
  return data;
}

export async function callWithResponse<T>(request: Promise<Answer<T>>): Promise<{ data: T; response: Response }> {
  let answer: Answer<T>;
  try {
    answer = await request;
  } catch (e) {
    if (e instanceof SyntaxError) throw new ApiError(0, "malformed", "Unexpected answer", "The server's answer is not JSON.");
    throw new ApiError(0, "unreachable", "No connection", "The server cannot be reached. It is asked again by itself.");
  }
  if (!answer.response.ok) {
    const error = problem(answer.response, answer.error);
    if (error.status === 401) onUnauthorised();
    throw error;
  }
  return { data: answer.data as T, response: answer.response };
}

export function asApiError(e: unknown): ApiError {
  if (e instanceof ApiError) return e;
  return new ApiError(0, "internal", "The page failed", e instanceof Error ? e.message : String(e));
}

export const sampleImage = (id: string): string => `/api/v1/samples/${encodeURIComponent(id)}/image`;
