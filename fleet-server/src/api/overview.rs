//! The fleet in numbers, and the audit trail.

use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use andon_protocol::api::{AuditEntry, Overview, Page};

use crate::{
    app::App,
    audit,
    auth::{Operator, Viewer},
    extract::{Json, Query, decode_cursor, encode_cursor, page_limit},
    problem::{Problem, Result},
    releases, rollouts, training,
};

/// The fleet in numbers
#[utoipa::path(get, path = "/overview", tag = "fleet", responses((status = 200, body = Overview)))]
pub async fn overview(_viewer: Viewer, State(app): State<App>) -> Result<Json<Overview>> {
    let mut conn = app.db.reader().acquire().await.map_err(Problem::from)?;
    let (devices, online): (i64, i64) =
        sqlx::query_as("SELECT COUNT(*), CAST(COALESCE(SUM(online), 0) AS BIGINT) FROM device")
            .fetch_one(&mut *conn)
            .await?;
    let open_alarms: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM alarm WHERE state = 'open'").fetch_one(&mut *conn).await?;
    let (samples, bytes): (i64, i64) =
        sqlx::query_as("SELECT COUNT(*), CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM sample")
            .fetch_one(&mut *conn)
            .await?;
    let labels: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM label").fetch_one(&mut *conn).await?;
    let count = |n: i64| u32::try_from(n).unwrap_or(if n < 0 { 0 } else { u32::MAX });
    Ok(Json(Overview {
        devices: count(devices),
        online: count(online),
        open_alarms: count(open_alarms),
        samples: count(samples),
        unlabelled: count(samples - labels),
        bytes_received: bytes.max(0) as u64,
        releases: releases::count(&mut conn).await?,
        running_rollouts: rollouts::running(&mut conn).await?,
        running_runs: training::running(&mut conn).await?,
    }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// The audit trail, newest first
///
/// Each entry's `hash` is the SHA-256 of the other fields in the order `previous`, `seq`, `at_ms`, `actor`, `action`,
/// `object`, `detail` (numbers as decimal text), each preceded by its length in bytes as a 64-bit big-endian number.
#[utoipa::path(get, path = "/audit", tag = "fleet", params(PageQuery),
    responses((status = 200, body = Page<AuditEntry>)))]
pub async fn audit(
    _operator: Operator,
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<AuditEntry>>> {
    let limit = page_limit(query.limit)?;
    let before = decode_cursor(query.cursor.as_deref())?.map_or(i64::MAX, |(seq, _)| seq);
    let mut conn = app.db.reader().acquire().await.map_err(Problem::from)?;
    let items = audit::page(&mut conn, before, limit).await?;
    let next =
        (items.len() as i64 == limit).then(|| items.last().map(|last| encode_cursor(last.seq, ""))).flatten();
    Ok(Json(Page { items, next }))
}
