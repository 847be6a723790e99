//! Rollouts: a release goes to the fleet in waves, and stops by itself where it does harm. What is next is decided by
//! [`decide`], a pure function; [`runner`] reads the facts, writes down what was decided with its reason, and asks the
//! devices. Devices get the release from the TUF repository, never from here.
//!
//! A rollout of a model is for the devices that run it, were asked to, or run nothing at all yet, at the moment it is
//! made. Devices in another rollout that is under way are left out; one that comes later needs a rollout of its own
//! (those that have the release already count at once).

pub mod decide;
mod routes;
pub mod rows;
pub mod runner;
pub mod waves;

#[cfg(test)]
mod tests;

use std::time::Duration;

use utoipa_axum::router::OpenApiRouter;

use crate::{app::App, db::Conn, problem::Result, reconcile};

/// Deadlines and soaks are looked at so often; reports wake the reconciler at once.
const EVERY: Duration = Duration::from_secs(2);

/// Below `/api/v1`.
pub fn routes() -> OpenApiRouter<App> {
    routes::routes()
}

/// Starts the reconciler.
pub fn start(app: &App) {
    reconcile::spawn(app, "rollouts", EVERY, app.wake.rollouts.clone(), |app| async move {
        runner::pass(&app).await.map_err(Into::into)
    });
}

/// Rollouts under way.
pub async fn running(conn: &mut Conn) -> Result<u32> {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM rollout WHERE state IN ('running', 'paused')")
        .fetch_one(conn)
        .await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}
