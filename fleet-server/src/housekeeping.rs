//! What gets old: telemetry past its retention, abandoned uploads, ended sessions and enrolments. In small steps, so that
//! no other writer waits for long.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, task::JoinHandle};

use crate::{app::App, reconcile};

const DAY_MS: i64 = 24 * 3600 * 1000;
const STEP: i64 = 2000;
/// Steps of a pass; the rest is for the next.
const STEPS_MAX: usize = 500;

pub fn start(app: &App) -> JoinHandle<()> {
    reconcile::spawn(app, "housekeeping", Duration::from_secs(600), Arc::new(Notify::new()), pass)
}

async fn pass(app: App) -> anyhow::Result<()> {
    let now_ms = app.now_ms();
    let (config, writer) = (&app.config, app.db.writer());
    let expired = now_ms - i64::from(config.retention.telemetry_days) * DAY_MS;
    for _ in 0..STEPS_MAX {
        let done = sqlx::query(
            "DELETE FROM telemetry WHERE (device, boot, seq) IN \
             (SELECT device, boot, seq FROM telemetry WHERE received_ms < $1 LIMIT $2)",
        )
        .bind(expired)
        .bind(STEP)
        .execute(writer)
        .await?;
        if done.rows_affected() < STEP as u64 || app.shutdown.is_cancelled() {
            break;
        }
    }
    sqlx::query("DELETE FROM session WHERE expires_ms < $1").bind(now_ms).execute(writer).await?;
    sqlx::query("DELETE FROM enrolment WHERE expires_ms < $1")
        .bind(now_ms - 30 * DAY_MS)
        .execute(writer)
        .await?;

    let abandoned = now_ms - i64::from(config.uploads.abandoned_after_days) * DAY_MS;
    let uploads: Vec<(String, String)> =
        sqlx::query_as("DELETE FROM upload WHERE begun_ms < $1 RETURNING device, digest")
            .bind(abandoned)
            .fetch_all(writer)
            .await?;
    let folder = app.paths.uploads();
    tokio::task::spawn_blocking(move || {
        for (device, digest) in uploads {
            for kind in ["part", "map"] {
                // One that is not there is as good as removed.
                let _ = std::fs::remove_file(folder.join(&device).join(format!("{digest}.{kind}")));
            }
        }
    })
    .await?;
    Ok(())
}
