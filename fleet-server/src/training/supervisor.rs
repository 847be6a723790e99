//! Keeps `training.workers` worker processes alive: one that ends is started again, with back-off where it ends soon.
//!
//! A worker holds a pipe from us as its standard input. When that ends, because we stop or were killed, the worker gives
//! its job back to the queue and ends too: no worker outlives its server, and no job is lost with it.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{
    process::{Child, Command},
    time::{Instant, timeout},
};

use crate::app::App;

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A worker that lived so long was no failed start.
const HEALTHY: Duration = Duration::from_secs(60);
/// For giving a job back.
const STOP: Duration = Duration::from_secs(5);

pub(super) fn start(app: &App) {
    for index in 0..app.config.training.workers {
        tokio::spawn(keep(app.clone(), index));
    }
}

async fn keep(app: App, index: u32) {
    let mut pause = BACKOFF_MIN;
    loop {
        let started = Instant::now();
        match spawn(&app.config.training.trainer, &app.paths.queue()) {
            Ok(mut worker) => {
                tracing::info!(index, pid = worker.id(), "training worker started");
                // Held here: `Child::wait` would close the pipe first, and so stop the worker.
                let pipe = worker.stdin.take();
                tokio::select! {
                    ended = worker.wait() => match ended {
                        Ok(status) => tracing::warn!(index, "training worker ended: {status}"),
                        Err(error) => tracing::error!(index, "training worker: {error}"),
                    },
                    () = app.shutdown.cancelled() => {
                        drop(pipe);
                        return stop(worker).await;
                    }
                }
            }
            Err(error) => {
                let program = app.config.training.trainer.display();
                tracing::error!(
                    index,
                    "cannot start the training worker {program} (training.trainer): {error}"
                );
            }
        }
        let was_healthy = started.elapsed() >= HEALTHY;
        pause = if was_healthy { BACKOFF_MIN } else { (pause * 2).min(BACKOFF_MAX) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = app.shutdown.cancelled() => return,
        }
    }
}

fn spawn(program: &Path, queue: &Path) -> std::io::Result<Child> {
    Command::new(program)
        .arg("work")
        .arg("--queue")
        .arg(queue)
        .arg("--until-stdin-ends")
        .stdin(Stdio::piped())
        .spawn()
}

/// For a worker whose pipe was closed.
async fn stop(mut worker: Child) {
    if timeout(STOP, worker.wait()).await.is_err() {
        // Its lease runs out, and the job goes to the next.
        let _ = worker.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// A worker that notes each start and ends when its standard input does, or at once.
    fn script(folder: &Path, body: &str) -> std::path::PathBuf {
        let path = folder.join("worker");
        fs::write(&path, format!("#!/bin/sh\necho \"$@\" >> {}\n{body}\n", folder.join("log").display()))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn a_worker_ends_when_its_pipe_does() {
        let dir = tempfile::tempdir().unwrap();
        let done = dir.path().join("done");
        let program = script(dir.path(), &format!("cat > /dev/null\ntouch {}", done.display()));
        let mut worker = spawn(&program, Path::new("/queue")).unwrap();
        let pipe = worker.stdin.take();
        assert!(worker.try_wait().unwrap().is_none());
        drop(pipe);
        stop(worker).await;
        assert!(done.exists());
        assert_eq!(
            fs::read_to_string(dir.path().join("log")).unwrap(),
            "work --queue /queue --until-stdin-ends\n"
        );
    }
}
