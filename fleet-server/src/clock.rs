//! The only place that reads the wall clock. Everything that compares or stores a time gets it from here, so that
//! tests set it by hand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

#[derive(Debug, Clone)]
pub enum Clock {
    System,
    /// Stands still until told otherwise. UTC milliseconds.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    pub fn manual(now_ms: i64) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(now_ms)))
    }

    /// UTC milliseconds since 1970. A clock set before 1970 reads as 0.
    pub fn now_ms(&self) -> i64 {
        match self {
            #[allow(clippy::disallowed_methods, reason = "this is the clock module")]
            Clock::System => {
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
            }
            Clock::Manual(now) => now.load(Ordering::SeqCst),
        }
    }

    /// Moves a manual clock; the system's clock takes no orders.
    pub fn advance_ms(&self, by_ms: i64) {
        if let Clock::Manual(now) = self {
            now.fetch_add(by_ms, Ordering::SeqCst);
        }
    }
}
