// Samples and labels as the pages ask for them: the query's filters, the classes of a sample's model, writing a label.
import { api, call, type Model, type Sample } from "./api";
import { query } from "./router";

export interface Filters {
  device: string | null;
  reason: string | null;
  drift: string | null;
  labelled: string | null;
}

/** From this page's URL, so that a filtered view can be shared and survives a reload. */
export function filters(): Filters {
  const get = (name: string) => query.value.get(name);
  return { device: get("device"), reason: get("reason"), drift: get("drift"), labelled: get("labelled") };
}

export async function readSamples(f: Filters, limit: number, cursor?: string): Promise<{ items: Sample[]; next?: string | null }> {
  const words: Record<string, string | boolean | number> = { limit };
  if (f.device) words.device = f.device;
  if (f.reason) words.reason = f.reason;
  if (f.drift) words.drift = f.drift;
  if (f.labelled === "true" || f.labelled === "false") words.labelled = f.labelled === "true";
  if (cursor) words.cursor = cursor;
  return call(api.GET("/api/v1/samples", { params: { query: words as never } }));
}

export function classesOf(models: readonly Model[], sample: Sample): string[] {
  const model = sample.release.split("/")[0];
  return models.find((m) => m.name === model)?.labels ?? [];
}

/** `null` removes the label. The answer is the sample as it is then. */
export async function writeLabel(sample: Sample, label: string | null): Promise<Sample> {
  const params = { path: { id: sample.id } };
  if (label !== null) return call(api.PUT("/api/v1/samples/{id}/label", { params, body: { class: label } }));
  await call(api.DELETE("/api/v1/samples/{id}/label", { params }));
  return { ...sample, label: null };
}
