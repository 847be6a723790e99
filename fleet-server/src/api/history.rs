//! A device's windows and events.

use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use andon_protocol::{
    DeviceId,
    api::{DeviceEvent, Page, WindowPoint},
};

use crate::{
    app::App,
    auth::Viewer,
    devices::rows::{self, Span},
    extract::{Json, Path, Query, decode_cursor, encode_cursor, page_limit},
    problem::{Problem, Result},
};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SpanQuery {
    /// Inclusive.
    from_ms: Option<i64>,
    /// Inclusive.
    to_ms: Option<i64>,
    limit: Option<u32>,
    cursor: Option<String>,
}

impl SpanQuery {
    fn span(&self) -> Result<Span> {
        Ok(Span {
            from_ms: self.from_ms.unwrap_or(i64::MIN),
            to_ms: self.to_ms.unwrap_or(i64::MAX),
            before: decode_cursor(self.cursor.as_deref())?,
            limit: page_limit(self.limit)?,
        })
    }
}

/// Windows of a device
///
/// The newest of the span, in order of time: what a chart draws. `next` leads to older ones.
#[utoipa::path(get, path = "/devices/{id}/telemetry", tag = "devices", params(("id" = DeviceId, Path), SpanQuery),
    responses((status = 200, body = Page<WindowPoint>)))]
pub async fn telemetry(
    _viewer: Viewer,
    State(app): State<App>,
    Path(id): Path<DeviceId>,
    Query(query): Query<SpanQuery>,
) -> Result<Json<Page<WindowPoint>>> {
    let span = query.span()?;
    let mut conn = app.db.reader().acquire().await.map_err(Problem::from)?;
    let mut items = rows::windows(&mut conn, &id, &span).await?;
    let full = items.len() as i64 == span.limit;
    let next =
        items.last().filter(|_| full).map(|p| encode_cursor(p.at_ms, &format!("{}.{}", p.boot, p.seq)));
    items.reverse();
    Ok(Json(Page { items, next }))
}

/// Events of a device, newest first
#[utoipa::path(get, path = "/devices/{id}/events", tag = "devices", params(("id" = DeviceId, Path), SpanQuery),
    responses((status = 200, body = Page<DeviceEvent>)))]
pub async fn events(
    _viewer: Viewer,
    State(app): State<App>,
    Path(id): Path<DeviceId>,
    Query(query): Query<SpanQuery>,
) -> Result<Json<Page<DeviceEvent>>> {
    let span = query.span()?;
    let mut conn = app.db.reader().acquire().await.map_err(Problem::from)?;
    let items = rows::events(&mut conn, &id, &span).await?;
    let full = items.len() as i64 == span.limit;
    let next =
        items.last().filter(|_| full).map(|e| encode_cursor(e.at_ms, &format!("{}.{}", e.boot, e.seq)));
    Ok(Json(Page { items, next }))
}
