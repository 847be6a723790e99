//! Devices, and making enrolments for new ones.

use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;

use andon_protocol::{
    DeviceId,
    api::{Device, Enrolment, NewEnrolment, Page},
};

use crate::{
    app::App,
    audit,
    auth::{self, Operator, Viewer},
    device_api::token_text,
    devices::rows,
    extract::{Json, Path, Query, decode_cursor, encode_cursor, page_limit},
    pki::SERVER_NAME,
    problem::{Problem, Result},
};

const ENROLMENT_MS: i64 = 24 * 3600 * 1000;
const NAME_BYTES_MAX: usize = 100;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Devices, by id
#[utoipa::path(get, path = "/devices", tag = "devices", params(PageQuery),
    responses((status = 200, body = Page<Device>)))]
pub async fn list(
    _viewer: Viewer,
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Device>>> {
    let limit = page_limit(query.limit)?;
    let after = decode_cursor(query.cursor.as_deref())?.map(|(_, id)| id).unwrap_or_default();
    let mut conn = app.db.reader().acquire().await.map_err(Problem::from)?;
    let items = rows::page(&mut conn, &after, limit).await?;
    let full = items.len() as i64 == limit;
    let next = items.last().filter(|_| full).map(|last| encode_cursor(0, last.id.as_str()));
    Ok(Json(Page { items, next }))
}

/// A device
#[utoipa::path(get, path = "/devices/{id}", tag = "devices", params(("id" = DeviceId, Path)),
    responses((status = 200, body = Device)))]
pub async fn get(_viewer: Viewer, State(app): State<App>, Path(id): Path<DeviceId>) -> Result<Json<Device>> {
    let mut conn = app.db.reader().acquire().await.map_err(Problem::from)?;
    Ok(Json(rows::get(&mut conn, &id).await?))
}

/// Let a device enrol
///
/// The token can be used once, within 24 hours. Enrolling a device that is there already replaces its certificate.
#[utoipa::path(post, path = "/enrolments", tag = "devices", request_body = NewEnrolment,
    responses((status = 201, body = Enrolment)))]
pub async fn enrol(
    Operator(actor): Operator,
    State(app): State<App>,
    Json(new): Json<NewEnrolment>,
) -> Result<(StatusCode, Json<Enrolment>)> {
    if new.device.as_str() == SERVER_NAME {
        return Err(Problem::refused(format!("{SERVER_NAME} is the server's own name")));
    }
    for (field, text) in [("site", &new.site), ("line", &new.line)] {
        if text.trim().is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(Problem::invalid(format!(
                "{field}: 1 to {NAME_BYTES_MAX} bytes, no control characters"
            )));
        }
    }
    let url = app.addresses.get().map(|a| a.devices.clone());
    let url = url.ok_or_else(|| Problem::unavailable("the server is starting"))?;
    let now_ms = app.now_ms();
    let expires_ms = now_ms + ENROLMENT_MS;
    let secret = auth::secret();
    let mut tx = app.db.begin().await?;
    sqlx::query(
        "INSERT INTO enrolment (token_sha256, device, site, line, created_by, created_ms, expires_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(auth::sha256_hex(&secret))
    .bind(new.device.as_str())
    .bind(&new.site)
    .bind(&new.line)
    .bind(&actor.name)
    .bind(now_ms)
    .bind(expires_ms)
    .execute(&mut *tx)
    .await?;
    let detail = format!("{} / {}", new.site, new.line);
    audit::record(&mut tx, now_ms, &actor.name, "enrolment.create", new.device.as_str(), &detail).await?;
    tx.commit().await?;
    let token = token_text(&secret, &app.ca.digest());
    Ok((StatusCode::CREATED, Json(Enrolment { device: new.device, token, expires_ms, url })))
}
