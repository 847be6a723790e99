// Samples and labels as the pages ask for them: the query's filters, the classes of a sample's model, writing a label.
import { api, call, type Model, type Sample } from "./api";
import { reasons } from "./pure/words";
import { query as pageQuery } from "./router";

export interface Filters {
  device: string | null;
  reason: string | null;
  /** `true`: taken while the device saw drift. */
  drift: string | null;
  labelled: string | null;
}

/** From this page's URL, so that a filtered view can be shared and survives a reload. */
export function filters(): Filters {
  const get = (name: string) => pageQuery.value.get(name);
  return { device: get("device"), reason: get("reason"), drift: get("drift"), labelled: get("labelled") };
}

const isFlag = (value: string | null): boolean => value === "true" || value === "false";

export async function readSamples(f: Filters, limit: number, cursor?: string): Promise<{ items: Sample[]; next?: string | null }> {
  const reason = reasons.find((r) => r === f.reason);
  const query = {
    limit,
    ...(f.device ? { device: f.device } : {}),
    // What somebody typed into the address bar and is no reason filters nothing.
    ...(reason ? { reason } : {}),
    ...(isFlag(f.drift) ? { drift: f.drift === "true" } : {}),
    ...(isFlag(f.labelled) ? { labelled: f.labelled === "true" } : {}),
    ...(cursor ? { cursor } : {}),
  };
  return call(api.GET("/api/v1/samples", { params: { query } }));
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
