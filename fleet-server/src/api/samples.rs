//! Samples from the field: seen and labelled.

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;

use andon_protocol::{
    DeviceId, Digest,
    api::{NewLabel, Page, Sample},
    sample::{Reason, SAMPLE_BYTES_MAX},
};

use crate::{
    app::App,
    audit,
    auth::{Labeller, Viewer},
    blobs::off_thread,
    extract::{Json, Path, Query, decode_cursor, encode_cursor, page_limit},
    problem::{Problem, Result},
    samples::{self, Filter},
};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SampleQuery {
    device: Option<DeviceId>,
    labelled: Option<bool>,
    reason: Option<Reason>,
    /// Captured while the device saw, or suspected, drift.
    drift: Option<bool>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Samples, newest first
#[utoipa::path(get, path = "/samples", tag = "samples", params(SampleQuery),
    responses((status = 200, body = Page<Sample>)))]
pub async fn list(
    _viewer: Viewer,
    State(app): State<App>,
    Query(query): Query<SampleQuery>,
) -> Result<Json<Page<Sample>>> {
    let limit = page_limit(query.limit)?;
    let before = decode_cursor(query.cursor.as_deref())?.unwrap_or((i64::MAX, String::new()));
    let filter =
        Filter { device: query.device, labelled: query.labelled, reason: query.reason, drift: query.drift };
    let mut conn = app.db.reader().acquire().await.map_err(Problem::from)?;
    let items = samples::page(&mut conn, &filter, (before.0, &before.1), limit).await?;
    let full = items.len() as i64 == limit;
    let next =
        items.last().filter(|_| full).map(|last| encode_cursor(last.received_ms, &last.id.to_string()));
    Ok(Json(Page { items, next }))
}

/// A sample
#[utoipa::path(get, path = "/samples/{id}", tag = "samples", params(("id" = Digest, Path)),
    responses((status = 200, body = Sample)))]
pub async fn get(_viewer: Viewer, State(app): State<App>, Path(id): Path<Digest>) -> Result<Json<Sample>> {
    let mut conn = app.db.reader().acquire().await.map_err(Problem::from)?;
    Ok(Json(samples::get(&mut conn, id).await?))
}

/// The image of a sample
#[utoipa::path(get, path = "/samples/{id}/image", tag = "samples", params(("id" = Digest, Path)),
    responses((status = 200, description = "The image as the device sent it", content_type = "image/png")))]
pub async fn image(
    _viewer: Viewer,
    State(app): State<App>,
    Path(id): Path<Digest>,
    headers: HeaderMap,
) -> Result<Response> {
    let content_type: Option<String> =
        sqlx::query_scalar("SELECT content_type FROM sample WHERE digest = $1")
            .bind(id.to_string())
            .fetch_optional(app.db.reader())
            .await?;
    let content_type = content_type.ok_or_else(|| Problem::not_found(format!("no sample {id}")))?;
    let etag = format!("\"{id}\"");
    // Named by its content, so it never changes; still only for those who are logged in.
    let caching = [
        (header::CACHE_CONTROL, "private, max-age=31536000, immutable".to_owned()),
        (header::ETAG, etag.clone()),
    ];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return Ok((StatusCode::NOT_MODIFIED, caching).into_response());
    }
    let content = off_thread(&app.blobs, move |blobs| blobs.get(id, SAMPLE_BYTES_MAX)).await?;
    Ok((caching, [(header::CONTENT_TYPE, content_type)], content).into_response())
}

/// Label a sample
#[utoipa::path(put, path = "/samples/{id}/label", tag = "samples", params(("id" = Digest, Path)), request_body = NewLabel,
    responses((status = 200, body = Sample)))]
pub async fn label(
    Labeller(actor): Labeller,
    State(app): State<App>,
    Path(id): Path<Digest>,
    Json(new): Json<NewLabel>,
) -> Result<Json<Sample>> {
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    samples::label(&mut tx, id, &new.class, &actor.name, now_ms).await?;
    let sample = samples::get(&mut tx, id).await?;
    audit::record(&mut tx, now_ms, &actor.name, "label.set", &id.to_string(), &new.class).await?;
    tx.commit().await?;
    changed(&app, id, now_ms);
    Ok(Json(sample))
}

/// Take a label back
#[utoipa::path(delete, path = "/samples/{id}/label", tag = "samples", params(("id" = Digest, Path)),
    responses((status = 204, description = "The sample has no label")))]
pub async fn unlabel(
    Labeller(actor): Labeller,
    State(app): State<App>,
    Path(id): Path<Digest>,
) -> Result<StatusCode> {
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    if samples::unlabel(&mut tx, id).await? {
        audit::record(&mut tx, now_ms, &actor.name, "label.remove", &id.to_string(), "").await?;
    }
    tx.commit().await?;
    changed(&app, id, now_ms);
    Ok(StatusCode::NO_CONTENT)
}

fn changed(app: &App, id: Digest, now_ms: i64) {
    app.live.publish("label", id, now_ms);
    app.wake.training.notify_one();
}
