//! Drift alarms.

use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use andon_protocol::{
    DeviceId,
    api::{Alarm, AlarmState, Page},
};

use crate::{
    app::App,
    audit,
    auth::{Operator, Viewer},
    devices::alarms,
    extract::{Json, Path, Query, decode_cursor, encode_cursor, page_limit},
    problem::{Problem, Result},
};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct AlarmQuery {
    state: Option<AlarmState>,
    device: Option<DeviceId>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Drift alarms, newest first
#[utoipa::path(get, path = "/alarms", tag = "alarms", params(AlarmQuery),
    responses((status = 200, body = Page<Alarm>)))]
pub async fn list(
    _viewer: Viewer,
    State(app): State<App>,
    Query(query): Query<AlarmQuery>,
) -> Result<Json<Page<Alarm>>> {
    let limit = page_limit(query.limit)?;
    let before = decode_cursor(query.cursor.as_deref())?.unwrap_or((i64::MAX, String::new()));
    let mut conn = app.db.reader().acquire().await.map_err(Problem::from)?;
    let items =
        alarms::page(&mut conn, query.state, query.device.as_ref(), (before.0, &before.1), limit).await?;
    let full = items.len() as i64 == limit;
    let next = items.last().filter(|_| full).map(|last| encode_cursor(last.raised_ms, &last.id));
    Ok(Json(Page { items, next }))
}

/// Acknowledge an alarm
///
/// It has been seen; it stays until the device sees no drift any more.
#[utoipa::path(post, path = "/alarms/{id}/acknowledge", tag = "alarms", params(("id" = String, Path)),
    responses((status = 200, body = Alarm)))]
pub async fn acknowledge(
    Operator(actor): Operator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Alarm>> {
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    let alarm = alarms::acknowledge(&mut tx, &id, &actor.name, now_ms).await?;
    audit::record(&mut tx, now_ms, &actor.name, "alarm.acknowledge", &id, "").await?;
    tx.commit().await?;
    app.live.publish("alarm", &id, now_ms);
    Ok(Json(alarm))
}
