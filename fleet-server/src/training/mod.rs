//! Training runs.

use utoipa_axum::router::OpenApiRouter;

use crate::{app::App, db::Conn, problem::Result};

/// Below `/api/v1`.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
}

/// Starts the reconciler and the worker processes.
pub fn start(_app: &App) {}

/// Runs queued or under way.
pub async fn running(_conn: &mut Conn) -> Result<u32> {
    Ok(0)
}
