//! The only place of the agent that reads a clock. Everything that waits or stamps takes a [`Clock`], so that tests
//! run hours in microseconds and a clock that jumps (1970 at boot, ten years ahead) is a test case.
#![allow(clippy::disallowed_methods, reason = "this is the clock module")]

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub trait Clock: Send + Sync {
    /// UTC in milliseconds since 1970. May jump both ways: for stamps, never for durations.
    fn now_ms(&self) -> i64;
    /// Time since a fixed instant of this process; never goes back. For durations and deadlines.
    fn elapsed(&self) -> Duration;
}

/// The system's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        // A clock before 1970 is one that was never set; 0 is as wrong and as harmless.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that stands still until it is told to move.
#[derive(Debug, Default)]
pub struct ManualClock {
    utc_ms: AtomicI64,
    elapsed_us: AtomicU64,
}

impl ManualClock {
    pub fn at(utc_ms: i64) -> Self {
        Self { utc_ms: AtomicI64::new(utc_ms), elapsed_us: AtomicU64::new(0) }
    }

    /// Both clocks move on.
    pub fn advance(&self, by: Duration) {
        self.utc_ms.fetch_add(by.as_millis() as i64, Ordering::SeqCst);
        self.elapsed_us.fetch_add(by.as_micros() as u64, Ordering::SeqCst);
    }

    /// Somebody sets the wall clock; durations do not notice.
    pub fn set_utc_ms(&self, utc_ms: i64) {
        self.utc_ms.store(utc_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.utc_ms.load(Ordering::SeqCst)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.elapsed_us.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_do_not_follow_a_jump_of_the_wall_clock() {
        let clock = ManualClock::at(1_000);
        clock.advance(Duration::from_secs(2));
        clock.set_utc_ms(0);
        assert_eq!((clock.now_ms(), clock.elapsed()), (0, Duration::from_secs(2)));
    }
}
