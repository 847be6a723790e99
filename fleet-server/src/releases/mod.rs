//! Models, their releases and policies. A release comes in as a bundle (uploaded, or made by a training run), is
//! checked ([`bundle`]), gets a row as candidate, lies in `DATA/releases/MODEL/VERSION/`, is signed into the TUF
//! repository, and is released. Each step can be repeated after a crash: [`registry::reconcile`].
//!
//! Versions of a model grow and are never used again; the classes of a model never change.

pub mod bundle;
pub mod models;
pub mod registry;
mod routes;
pub mod rows;
pub mod unpack;
pub mod upload;

#[cfg(test)]
pub(crate) mod tests;

use std::time::Duration;

use utoipa_axum::router::OpenApiRouter;

use andon_protocol::ReleaseId;

use crate::{app::App, db::Conn, problem::Result, reconcile};

/// How often candidates left by a crash are looked for; usually they are completed by who made them.
const EVERY: Duration = Duration::from_secs(60);

/// Below `/api/v1`. Sets its own body limits and timeouts.
pub fn routes() -> OpenApiRouter<App> {
    routes::routes()
}

/// Called before any listener is up: forgets uploads that the last stop cut off.
pub async fn prepare(app: &App) -> Result<()> {
    registry::forget_unfinished(app).await
}

/// Starts this module's background tasks.
pub fn start(app: &App) {
    reconcile::spawn(app, "releases", EVERY, app.wake.releases.clone(), |app| async move {
        registry::reconcile(&app).await.map_err(Into::into)
    });
}

/// The classes of a release by index, if the release is known here.
pub async fn labels(conn: &mut Conn, release: &ReleaseId) -> Result<Option<Vec<String>>> {
    Ok(rows::find(conn, release).await?.map(|stored| stored.manifest.labels))
}

/// Releases that are not withdrawn.
pub async fn count(conn: &mut Conn) -> Result<u32> {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM model_release WHERE state <> 'withdrawn'")
        .fetch_one(conn)
        .await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}
