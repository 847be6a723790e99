//! The only place of this crate that reads the clock: stop watches, and waiting for something within a limit.
#![allow(clippy::disallowed_methods, reason = "this is the clock module")]

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Looks again and again until `look` gives a value. An error ends the wait, as does `limit`; then the error says what
/// was waited for.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let watch = Stopwatch::start();
    loop {
        if let Some(value) = look().await? {
            return Ok(value);
        }
        if watch.elapsed() >= limit {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}
