//! The only place that reads a clock. Training decides nothing by time; reports, leases and file dates need it.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, UTC.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as i64
}

/// How long ago a file was written; 0 if its date is in the future.
pub fn age(modified: SystemTime) -> Duration {
    SystemTime::now().duration_since(modified).unwrap_or(Duration::ZERO)
}

pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Times the stages of a run.
pub struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the start or the last lap.
    pub fn lap(&mut self) -> f64 {
        let seconds = self.0.elapsed().as_secs_f64();
        *self = Self::start();
        seconds
    }
}
