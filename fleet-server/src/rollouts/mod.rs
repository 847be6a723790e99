//! Rollouts.

use utoipa_axum::router::OpenApiRouter;

use crate::{app::App, db::Conn, problem::Result};

/// Below `/api/v1`.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
}

/// Starts the reconciler.
pub fn start(_app: &App) {}

/// Rollouts under way.
pub async fn running(_conn: &mut Conn) -> Result<u32> {
    Ok(0)
}
