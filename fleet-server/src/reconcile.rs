//! Background tasks. Each reads what is intended and what is, and acts on the difference; it takes no input, so that a
//! lost wake-up, a restart or a second pass changes nothing but the time. Woken by its timer or by its [`Notify`].
//!
//! A pass that fails is logged and tried again with back-off; a pass that panics too: the fault of one reconciler
//! never ends another, or the server.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{sync::Notify, task::JoinHandle};

use crate::app::App;

const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Runs `pass` now, whenever `wake` is notified, and `every` so often, until shutdown. A pass that runs when the
/// shutdown comes is finished; keep passes short.
pub fn spawn<P, F>(
    app: &App,
    name: &'static str,
    every: Duration,
    wake: Arc<Notify>,
    pass: P,
) -> JoinHandle<()>
where
    P: Fn(App) -> F + Send + 'static,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let app = app.clone();
    tokio::spawn(async move {
        let mut failures = 0u32;
        loop {
            match tokio::spawn(pass(app.clone())).await {
                Ok(Ok(())) => failures = 0,
                Ok(Err(error)) => {
                    failures += 1;
                    tracing::warn!(task = name, failures, "pass failed: {error:#}");
                }
                Err(panic) => {
                    failures += 1;
                    tracing::error!(task = name, failures, "pass panicked: {panic}");
                }
            }
            let pause = if failures == 0 { every } else { backoff(failures) };
            tokio::select! {
                () = app.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                // After a failure the back-off holds; the wake-up is remembered.
                () = wake.notified(), if failures == 0 => {}
            }
        }
    })
}

fn backoff(failures: u32) -> Duration {
    Duration::from_millis(500 * (1 << failures.min(8))).min(BACKOFF_MAX)
}
