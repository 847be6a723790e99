//! The only place that reads a clock. Training decides nothing by time; reports, leases and file dates need it.
#![allow(clippy::disallowed_methods, reason = "this is the clock module")]

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
pub struct Stopwatch {
    wall: Instant,
    cpu: Option<f64>,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { wall: Instant::now(), cpu: cpu_seconds() }
    }

    /// Seconds since the start or the last lap: on the wall, and of processor time.
    pub fn lap(&mut self) -> (f64, Option<f64>) {
        let before = std::mem::replace(self, Self::start());
        (before.wall.elapsed().as_secs_f64(), self.cpu.zip(before.cpu).map(|(now, then)| now - then))
    }
}

/// Seconds of processor time that this process has used, all threads; `None` where the system does not say.
pub fn cpu_seconds() -> Option<f64> {
    // proc(5): after the name in parentheses, fields 14 and 15 are user and system time in ticks of 1/100 s.
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}
