//! The one place that reads the clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// UTC milliseconds.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis().try_into().unwrap_or(i64::MAX))
}
