//! Rollouts over the API.

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use andon_protocol::api::{NewRollout, Page, ReleaseState, Rollout, RolloutAction, RolloutState};

use super::{rows, waves};
use crate::{
    app::App,
    audit,
    auth::{Operator, Viewer},
    db::word,
    extract::{Json, Path, Query, decode_cursor, encode_cursor, etag, if_match, page_limit},
    problem::{Problem, Result},
    releases::{self, models},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get)).routes(routes!(act))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Rollouts, newest first
#[utoipa::path(get, path = "/rollouts", tag = "rollouts", params(ListQuery),
    responses((status = 200, body = Page<Rollout>)))]
async fn list(
    _viewer: Viewer,
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Rollout>>> {
    let limit = page_limit(query.limit)?;
    let before = decode_cursor(query.cursor.as_deref())?.unwrap_or((i64::MAX, String::new()));
    let mut conn = app.db.reader().acquire().await?;
    let stored = rows::page(&mut conn, (before.0, &before.1), limit).await?;
    let full = stored.len() as i64 == limit;
    let next = stored.last().filter(|_| full).map(|last| encode_cursor(last.created_ms, &last.id));
    let mut items = Vec::with_capacity(stored.len());
    for rollout in stored {
        items.push(rows::full(&mut conn, rollout).await?);
    }
    Ok(Json(Page { items, next }))
}

/// Roll out a release
///
/// To the devices that run its model or nothing yet, in waves. What is left out is taken from the model's policy.
#[utoipa::path(post, path = "/rollouts", tag = "rollouts", request_body = NewRollout,
    responses((status = 201, body = Rollout)))]
async fn create(
    Operator(actor): Operator,
    State(app): State<App>,
    Json(new): Json<NewRollout>,
) -> Result<Response> {
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    let release = releases::rows::get(&mut tx, &new.release).await?;
    if release.state != ReleaseState::Released {
        return Err(Problem::conflict(format!("release {} is {}", new.release, word(&release.state))));
    }
    let policy = models::get(&mut tx, new.release.model()).await?.policy;
    let waves = new.waves.unwrap_or(policy.waves);
    waves::check(&waves).map_err(|rule| Problem::invalid(format!("waves: {rule}")))?;
    let trial_s = new.trial_s.unwrap_or(policy.trial_s);
    models::check_trial(trial_s)?;
    let new = rows::NewRollout {
        release: &new.release,
        waves: &waves,
        trial_s,
        by: &actor.name,
        why: "asked for by a person",
        run: None,
    };
    let id = rows::create(&mut tx, &new, now_ms).await?;
    let stored = rows::get(&mut tx, &id).await?;
    let rollout = rows::full(&mut tx, stored).await?;
    audit::record(&mut tx, now_ms, &actor.name, "rollout.create", &id, &rollout.release.to_string()).await?;
    tx.commit().await?;
    changed(&app, &id, now_ms);
    Ok((StatusCode::CREATED, tagged(rollout)).into_response())
}

/// A rollout, with its devices and the record of its decisions
#[utoipa::path(get, path = "/rollouts/{id}", tag = "rollouts", params(("id" = String, Path)),
    responses((status = 200, body = Rollout)))]
async fn get(_viewer: Viewer, State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    let mut conn = app.db.reader().acquire().await?;
    let stored = rows::get(&mut conn, &id).await?;
    Ok(tagged(rows::full(&mut conn, stored).await?).into_response())
}

/// Pause, resume or abort a rollout
///
/// Needs `If-Match` with the rollout's `ETag`, or `*`. After an abort, devices that have not committed the release are
/// sent back to what they ran.
#[utoipa::path(post, path = "/rollouts/{id}/{action}", tag = "rollouts",
    params(("id" = String, Path), ("action" = RolloutAction, Path)),
    responses((status = 200, body = Rollout)))]
async fn act(
    Operator(actor): Operator,
    State(app): State<App>,
    Path((id, action)): Path<(String, RolloutAction)>,
    headers: HeaderMap,
) -> Result<Response> {
    let rev = if_match(&headers)?;
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    let stored = rows::get(&mut tx, &id).await?;
    let next = match (action, stored.state) {
        (RolloutAction::Pause, RolloutState::Running) => RolloutState::Paused,
        (RolloutAction::Resume, RolloutState::Paused) => RolloutState::Running,
        (RolloutAction::Abort, RolloutState::Running | RolloutState::Paused) => RolloutState::Aborted,
        (_, state) => {
            return Err(Problem::conflict(format!(
                "a rollout that is {} cannot {}",
                word(&state),
                word(&action)
            )));
        }
    };
    rows::set_state(&mut tx, &stored, rev, next, now_ms).await?;
    rows::decided(&mut tx, &id, now_ms, &word(&next), "asked for by a person", &actor.name).await?;
    let stored = rows::get(&mut tx, &id).await?;
    let rollout = rows::full(&mut tx, stored).await?;
    let done = match action {
        RolloutAction::Pause => "rollout.pause",
        RolloutAction::Resume => "rollout.resume",
        RolloutAction::Abort => "rollout.abort",
    };
    audit::record(&mut tx, now_ms, &actor.name, done, &id, &rollout.release.to_string()).await?;
    tx.commit().await?;
    changed(&app, &id, now_ms);
    Ok(tagged(rollout).into_response())
}

fn changed(app: &App, id: &str, now_ms: i64) {
    app.live.publish("rollout", id, now_ms);
    app.wake.rollouts.notify_one();
}

fn tagged(rollout: Rollout) -> impl IntoResponse {
    ([(header::ETAG, etag(rollout.rev))], Json(rollout))
}
