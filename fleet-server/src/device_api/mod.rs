//! What devices call over HTTPS: enrolment with a one-time token, and the files of the TUF repository with the client
//! certificate that enrolment gave them. Not in the OpenAPI document, which is for people and their programs.

pub mod enrol;
pub mod files;

pub use enrol::token_text;

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, FromRequestParts},
    http::request::Parts,
    routing::{get, post},
};

use andon_protocol::DeviceId;

use crate::{
    api::not_found,
    app::App,
    listen::Peer,
    problem::{Problem, Result},
};

/// A certificate request and a token.
const BODY_BYTES_MAX: usize = 32 * 1024;

pub fn router(app: App) -> Router {
    Router::new()
        .route("/device/v1/enrol", post(enrol::enrol))
        .route("/device/v1/tuf/metadata/{file}", get(files::metadata))
        .route("/device/v1/tuf/targets/{*path}", get(files::target))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

/// The device at the other end, known by the newest certificate that was issued to it.
#[derive(Debug)]
pub struct Caller(#[allow(dead_code, reason = "who it is matters to routes to come")] pub DeviceId);

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let Extension(peer) =
            Extension::<Peer>::from_request_parts(parts, app).await.map_err(Problem::internal)?;
        let certificate = peer.certificate.ok_or_else(|| {
            Problem::unauthorised("this needs the device's client certificate; enrol the device first")
        })?;
        let newest: Option<String> =
            sqlx::query_scalar("SELECT certificate_serial FROM device WHERE id = $1")
                .bind(&certificate.common_name)
                .fetch_optional(app.db.reader())
                .await?;
        match newest {
            Some(newest) if newest == certificate.serial => {
                Ok(Self(certificate.common_name.parse().map_err(Problem::internal)?))
            }
            Some(_) => {
                Err(Problem::unauthorised("the device was enrolled again; this certificate counts no more"))
            }
            None => Err(Problem::unauthorised("the device is not enrolled here")),
        }
    }
}
