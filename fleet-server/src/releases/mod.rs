//! Models, releases and data sets.

use utoipa_axum::router::OpenApiRouter;

use andon_protocol::ReleaseId;

use crate::{app::App, db::Conn, problem::Result};

/// Below `/api/v1`. Sets its own body limits and timeouts.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
}

/// Starts this module's background tasks.
pub fn start(_app: &App) {}

/// The classes of a release by index, if the release is known here.
pub async fn labels(_conn: &mut Conn, _release: &ReleaseId) -> Result<Option<Vec<String>>> {
    Ok(None)
}

/// Releases that are not withdrawn.
pub async fn count(_conn: &mut Conn) -> Result<u32> {
    Ok(0)
}
