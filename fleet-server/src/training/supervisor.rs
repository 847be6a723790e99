//! Keeps `training.workers` worker processes alive: one that ends is started again, with back-off where it ends soon. A
//! worker is told to stop by SIGTERM and gives its job back to the queue. When the server itself is killed, its workers
//! notice that their standard input ends, and stop.

use std::{process::Stdio, time::Duration};

use tokio::{process::Command, time::Instant};

use crate::app::App;

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A worker that lived so long was no failed start.
const HEALTHY: Duration = Duration::from_secs(60);

pub fn start(app: &App) {
    for index in 0..app.config.training.workers {
        tokio::spawn(keep(app.clone(), index));
    }
}

async fn keep(app: App, index: u32) {
    let program = &app.config.training.trainer;
    let mut pause = BACKOFF_MIN;
    while !app.shutdown.is_cancelled() {
        let started = Instant::now();
        let mut command = Command::new(program);
        // The pipe is held open for as long as this process lives, and no longer.
        command.arg("work").arg("--queue").arg(app.paths.queue()).stdin(Stdio::piped()).kill_on_drop(true);
        match command.spawn() {
            Ok(mut worker) => {
                let _stdin = worker.stdin.take();
                tracing::info!(index, pid = worker.id(), "training worker started");
                tokio::select! {
                    ended = worker.wait() => match ended {
                        Ok(status) => tracing::warn!(index, %status, "training worker ended"),
                        Err(error) => tracing::error!(index, "training worker: {error}"),
                    },
                    () = app.shutdown.cancelled() => {
                        let _ = worker.kill().await;
                        return;
                    }
                }
            }
            Err(error) => {
                tracing::error!(index, program = %program.display(), "cannot start a training worker: {error}")
            }
        }
        pause = if started.elapsed() >= HEALTHY { BACKOFF_MIN } else { (pause * 2).min(BACKOFF_MAX) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = app.shutdown.cancelled() => return,
        }
    }
}
