//! Data sets and training runs over the API.

use axum::{
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use andon_protocol::{
    Digest,
    api::{DataSet, NewRun, Page, TrainingRun},
};

use super::{datasets, import, runs, start_run};
use crate::{
    app::App,
    audit,
    auth::{Engineer, Viewer},
    extract::{Json, Path, Query, decode_cursor, encode_cursor, page_limit},
    problem::{Problem, Result},
    releases::{models, registry::off_thread, upload},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    let upload = OpenApiRouter::new()
        .routes(routes!(list_datasets, import_dataset))
        .layer(DefaultBodyLimit::disable());
    OpenApiRouter::new()
        .routes(routes!(get_dataset))
        .routes(routes!(list_runs, start))
        .routes(routes!(get_run))
        .routes(routes!(cancel))
        .merge(upload)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    model: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Data sets, newest first
#[utoipa::path(get, path = "/datasets", tag = "training", params(ListQuery),
    responses((status = 200, body = Page<DataSet>)))]
async fn list_datasets(
    _viewer: Viewer,
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<DataSet>>> {
    let limit = page_limit(query.limit)?;
    let before = decode_cursor(query.cursor.as_deref())?.unwrap_or((i64::MAX, String::new()));
    let mut conn = app.db.reader().acquire().await?;
    let model = query.model.unwrap_or_default();
    let items = datasets::page(&mut conn, &model, (before.0, &before.1), limit).await?;
    let full = items.len() as i64 == limit;
    let next = items.last().filter(|_| full).map(|last| encode_cursor(last.created_ms, &last.id.to_string()));
    Ok(Json(Page { items, next }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ImportQuery {
    model: String,
}

/// Import a data set
///
/// The body is a tar of `labels.csv` (columns `file`, `class`, `split`: train, validation or golden) and the images.
#[utoipa::path(post, path = "/datasets", tag = "training", params(ImportQuery),
    request_body(content_type = "application/x-tar", content = Vec<u8>),
    responses((status = 201, body = DataSet)))]
async fn import_dataset(
    Engineer(actor): Engineer,
    State(app): State<App>,
    Query(query): Query<ImportQuery>,
    body: Body,
) -> Result<(StatusCode, Json<DataSet>)> {
    let model = models::get(&mut *app.db.reader().acquire().await?, &query.model).await?;
    let scratch = upload::receive(&app, body, import::UPLOAD_BYTES_MAX).await?;
    let blobs = app.blobs.clone();
    let (list, scratch) = off_thread(move || {
        let archive = std::fs::File::open(scratch.path().join(upload::FILE))?;
        let folder = scratch.path().join("images");
        crate::files::create_dir(&folder)?;
        let list =
            import::import(std::io::BufReader::new(archive), &folder, &model.name, &model.labels, &*blobs)?;
        Ok((list, scratch))
    })
    .await?;
    off_thread(move || {
        drop(scratch);
        Ok(())
    })
    .await?;
    let id = datasets::store(&app, &list).await?;
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    datasets::insert(&mut tx, &id, &list, None, now_ms).await?;
    let dataset = datasets::get(&mut tx, &id).await?;
    let detail = format!("{} items of model {}", list.items.len(), list.model);
    audit::record(&mut tx, now_ms, &actor.name, "dataset.import", &id.to_string(), &detail).await?;
    tx.commit().await?;
    app.wake.training.notify_one();
    Ok((StatusCode::CREATED, Json(dataset)))
}

/// A data set
#[utoipa::path(get, path = "/datasets/{id}", tag = "training", params(("id" = String, Path)),
    responses((status = 200, body = DataSet)))]
async fn get_dataset(
    _viewer: Viewer,
    State(app): State<App>,
    Path(id): Path<Digest>,
) -> Result<Json<DataSet>> {
    Ok(Json(datasets::get(&mut *app.db.reader().acquire().await?, &id).await?))
}

/// Training runs, newest first
#[utoipa::path(get, path = "/runs", tag = "training", params(ListQuery),
    responses((status = 200, body = Page<TrainingRun>)))]
async fn list_runs(
    _viewer: Viewer,
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<TrainingRun>>> {
    let limit = page_limit(query.limit)?;
    let before = decode_cursor(query.cursor.as_deref())?.unwrap_or((i64::MAX, String::new()));
    let mut conn = app.db.reader().acquire().await?;
    let model = query.model.unwrap_or_default();
    let stored = runs::page(&mut conn, &model, (before.0, &before.1), limit).await?;
    let full = stored.len() as i64 == limit;
    let next = stored.last().filter(|_| full).map(|last| encode_cursor(last.created_ms, &last.id));
    Ok(Json(Page { items: stored.into_iter().map(runs::Stored::into_run).collect(), next }))
}

/// Start a training run
///
/// On the model's newest data set and every labelled sample since.
#[utoipa::path(post, path = "/runs", tag = "training", request_body = NewRun,
    responses((status = 201, body = TrainingRun)))]
async fn start(
    Engineer(actor): Engineer,
    State(app): State<App>,
    Json(new): Json<NewRun>,
) -> Result<(StatusCode, Json<TrainingRun>)> {
    let id = start_run::start(&app, &new.model, &actor.name, "asked for by a person").await?;
    let run = runs::get(&mut *app.db.reader().acquire().await?, &id).await?;
    Ok((StatusCode::CREATED, Json(run.into_run())))
}

/// A training run
#[utoipa::path(get, path = "/runs/{id}", tag = "training", params(("id" = String, Path)),
    responses((status = 200, body = TrainingRun)))]
async fn get_run(
    _viewer: Viewer,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<TrainingRun>> {
    Ok(Json(runs::get(&mut *app.db.reader().acquire().await?, &id).await?.into_run()))
}

/// Cancel a training run
///
/// It ends when its worker has stopped.
#[utoipa::path(post, path = "/runs/{id}/cancel", tag = "training", params(("id" = String, Path)),
    responses((status = 200, body = TrainingRun)))]
async fn cancel(
    Engineer(actor): Engineer,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<TrainingRun>> {
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    runs::cancel(&mut tx, &id).await?;
    let run = runs::get(&mut tx, &id).await?;
    audit::record(&mut tx, now_ms, &actor.name, "run.cancel", &id, "").await?;
    tx.commit().await.map_err(Problem::from)?;
    app.live.publish("run", &id, now_ms);
    app.wake.training.notify_one();
    Ok(Json(run.into_run()))
}
