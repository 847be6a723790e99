//! Data sets and training runs. A data set is a list of labelled images ([`items`]), named by its digest; each run makes the
//! next version: the items of the one before and every labelled image from the field. Runs are job folders
//! (`protocol::job`) that worker processes claim; [`reconcile`] moves rows and folders towards each other, so that the
//! server may die at any moment: what is left to do is read from the database and the disk.

pub mod datasets;
pub mod import;
pub mod items;
pub mod queue;
pub mod reconcile;
mod routes;
pub mod runs;
pub mod start_run;
pub mod step;
mod supervisor;

#[cfg(test)]
mod tests;

use std::time::Duration;

use utoipa_axum::router::OpenApiRouter;

use crate::{app::App, db::Conn, problem::Result};

/// Progress of running jobs is read so often.
const EVERY: Duration = Duration::from_secs(1);

/// Below `/api/v1`.
pub fn routes() -> OpenApiRouter<App> {
    routes::routes()
}

/// Starts the reconciler and the worker processes.
pub fn start(app: &App) {
    crate::reconcile::spawn(app, "training", EVERY, app.wake.training.clone(), |app| async move {
        reconcile::pass(&app).await.map_err(Into::into)
    });
    supervisor::start(app);
}

/// Runs queued or under way.
pub async fn running(conn: &mut Conn) -> Result<u32> {
    let count: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM training_run WHERE state IN ('queued', 'running')")
            .fetch_one(conn)
            .await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}
