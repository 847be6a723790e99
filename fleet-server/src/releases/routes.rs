//! Models, policies and releases over the API.

use std::io::BufReader;

use axum::{
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use andon_protocol::{
    ReleaseId,
    api::{Model, Page, Policy, Release},
};

use super::{bundle, models, registry, registry::off_thread, rows, upload};
use crate::{
    app::App,
    audit,
    auth::{Engineer, Operator, Viewer},
    extract::{Json, Path, Query, decode_cursor, encode_cursor, etag, if_match, page_limit},
    problem::{Problem, Result},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    // Streamed to the disk and counted there.
    let upload =
        OpenApiRouter::new().routes(routes!(list_releases, publish)).layer(DefaultBodyLimit::disable());
    OpenApiRouter::new()
        .routes(routes!(list_models))
        .routes(routes!(get_model))
        .routes(routes!(get_policy, put_policy))
        .routes(routes!(get_release))
        .routes(routes!(withdraw))
        .merge(upload)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Models by name
#[utoipa::path(get, path = "/models", tag = "models", params(PageQuery),
    responses((status = 200, body = Page<Model>)))]
async fn list_models(
    _viewer: Viewer,
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Model>>> {
    let limit = page_limit(query.limit)?;
    let after = decode_cursor(query.cursor.as_deref())?.map(|(_, name)| name).unwrap_or_default();
    let mut conn = app.db.reader().acquire().await?;
    let stored = models::page(&mut conn, &after, limit).await?;
    let full = stored.len() as i64 == limit;
    let next = stored.last().filter(|_| full).map(|last| encode_cursor(0, &last.name));
    let mut items = Vec::with_capacity(stored.len());
    for model in stored {
        items.push(model.into_model(&mut conn).await?);
    }
    Ok(Json(Page { items, next }))
}

/// A model
#[utoipa::path(get, path = "/models/{name}", tag = "models", params(("name" = String, Path)),
    responses((status = 200, body = Model)))]
async fn get_model(_viewer: Viewer, State(app): State<App>, Path(name): Path<String>) -> Result<Json<Model>> {
    let mut conn = app.db.reader().acquire().await?;
    let stored = models::get(&mut conn, &name).await?;
    Ok(Json(stored.into_model(&mut conn).await?))
}

/// What happens to a model by itself
#[utoipa::path(get, path = "/models/{name}/policy", tag = "models", params(("name" = String, Path)),
    responses((status = 200, body = Policy)))]
async fn get_policy(_viewer: Viewer, State(app): State<App>, Path(name): Path<String>) -> Result<Response> {
    let stored = models::get(&mut *app.db.reader().acquire().await?, &name).await?;
    Ok(([(header::ETAG, etag(stored.rev))], Json(stored.policy)).into_response())
}

/// Change what happens to a model by itself
///
/// Needs `If-Match` with the policy's `ETag`, or `*`.
#[utoipa::path(put, path = "/models/{name}/policy", tag = "models", params(("name" = String, Path)),
    request_body = Policy, responses((status = 200, body = Policy)))]
async fn put_policy(
    Operator(actor): Operator,
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(policy): Json<Policy>,
) -> Result<Response> {
    let rev = if_match(&headers)?;
    models::check(&policy)?;
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    let rev = models::set_policy(&mut tx, &name, &policy, rev).await?;
    let detail = serde_json::to_string(&policy)?;
    audit::record(&mut tx, now_ms, &actor.name, "policy.set", &name, &detail).await?;
    tx.commit().await?;
    app.wake.training.notify_one();
    Ok(([(header::ETAG, etag(rev))], Json(policy)).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ReleaseQuery {
    model: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Releases, newest first
#[utoipa::path(get, path = "/releases", tag = "models", params(ReleaseQuery),
    responses((status = 200, body = Page<Release>)))]
async fn list_releases(
    _viewer: Viewer,
    State(app): State<App>,
    Query(query): Query<ReleaseQuery>,
) -> Result<Json<Page<Release>>> {
    let limit = page_limit(query.limit)?;
    let before = decode_cursor(query.cursor.as_deref())?.unwrap_or((i64::MAX, String::new()));
    let mut conn = app.db.reader().acquire().await?;
    let model = query.model.unwrap_or_default();
    let stored = rows::page(&mut conn, &model, (before.0, &before.1), limit).await?;
    let full = stored.len() as i64 == limit;
    let next =
        stored.last().filter(|_| full).map(|last| encode_cursor(last.created_ms, &last.id.to_string()));
    Ok(Json(Page { items: stored.into_iter().map(rows::Stored::into_release).collect(), next }))
}

/// Publish a release
///
/// The body is a tar of `release/` (model.onnx, manifest.json, reference.cbor, golden/) and `float.onnx`. It is checked,
/// signed into the update repository and can be rolled out from then on. The first release of a model makes the model.
#[utoipa::path(post, path = "/releases", tag = "models",
    request_body(content_type = "application/x-tar", content = Vec<u8>),
    responses((status = 201, body = Release)))]
async fn publish(
    Engineer(actor): Engineer,
    State(app): State<App>,
    body: Body,
) -> Result<(StatusCode, Json<Release>)> {
    let scratch = upload::receive(&app, body, bundle::UPLOAD_BYTES_MAX).await?;
    let folder = scratch.path().join("bundle");
    let (bundle, scratch) = {
        let folder = folder.clone();
        off_thread(move || {
            let archive = scratch.path().join(upload::FILE);
            bundle::unpack_into(BufReader::new(std::fs::File::open(&archive)?), &folder)?;
            std::fs::remove_file(archive)?;
            Ok((bundle::check(&folder)?, scratch))
        })
        .await?
    };
    let stored = registry::register(&app, &folder, &bundle, None, &actor.name).await?;
    drop(scratch);
    Ok((StatusCode::CREATED, Json(stored.into_release())))
}

fn release_id(model: &str, version: u32) -> Result<ReleaseId> {
    ReleaseId::new(model, version).map_err(|e| Problem::not_found(e.to_string()))
}

/// A release
#[utoipa::path(get, path = "/releases/{model}/{version}", tag = "models",
    params(("model" = String, Path), ("version" = u32, Path)), responses((status = 200, body = Release)))]
async fn get_release(
    _viewer: Viewer,
    State(app): State<App>,
    Path((model, version)): Path<(String, u32)>,
) -> Result<Json<Release>> {
    let id = release_id(&model, version)?;
    Ok(Json(rows::get(&mut *app.db.reader().acquire().await?, &id).await?.into_release()))
}

/// Withdraw a release
///
/// Devices find it no more, and a rollout of it halts. Devices that run it go on until they are asked to run another.
#[utoipa::path(post, path = "/releases/{model}/{version}/withdraw", tag = "models",
    params(("model" = String, Path), ("version" = u32, Path)), responses((status = 200, body = Release)))]
async fn withdraw(
    Operator(actor): Operator,
    State(app): State<App>,
    Path((model, version)): Path<(String, u32)>,
) -> Result<Json<Release>> {
    let id = release_id(&model, version)?;
    Ok(Json(registry::withdraw(&app, &id, &actor.name).await?.into_release()))
}
