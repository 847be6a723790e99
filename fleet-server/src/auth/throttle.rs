//! Counts failures by key in fixed windows. In this process's memory: replicas count for themselves.

use std::{collections::HashMap, sync::Mutex};

use crate::problem::{Problem, Result};

/// Keys kept at most; when full, keys of past windows go first, then all.
const KEYS_MAX: usize = 10_000;

#[derive(Debug)]
pub struct Throttle {
    allowed: u32,
    window_ms: i64,
    counts: Mutex<HashMap<String, (i64, u32)>>,
}

impl Throttle {
    pub fn new(allowed: u32, window_ms: i64) -> Self {
        Self { allowed, window_ms, counts: Mutex::default() }
    }

    /// Refuses where `key` failed too often in this window.
    pub fn check(&self, key: &str, now_ms: i64) -> Result<()> {
        let counts = self.counts.lock().unwrap_or_else(|e| e.into_inner());
        match counts.get(key) {
            Some(&(start_ms, count)) if now_ms - start_ms < self.window_ms && count >= self.allowed => {
                Err(Problem::too_many(format!("too many failures, wait {} s", self.window_ms / 1000)))
            }
            _ => Ok(()),
        }
    }

    pub fn failed(&self, key: &str, now_ms: i64) {
        let mut counts = self.counts.lock().unwrap_or_else(|e| e.into_inner());
        if counts.len() >= KEYS_MAX && !counts.contains_key(key) {
            counts.retain(|_, (start_ms, _)| now_ms - *start_ms < self.window_ms);
            if counts.len() >= KEYS_MAX {
                counts.clear();
            }
        }
        let entry = counts.entry(key.to_owned()).or_insert((now_ms, 0));
        if now_ms - entry.0 >= self.window_ms {
            *entry = (now_ms, 0);
        }
        entry.1 += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_per_key_and_window() {
        let throttle = Throttle::new(2, 1000);
        for now in [0, 10] {
            throttle.check("a", now).unwrap();
            throttle.failed("a", now);
        }
        assert_eq!(throttle.check("a", 999).unwrap_err().code, "too_many");
        throttle.check("b", 999).unwrap();
        throttle.check("a", 1000).unwrap();
    }

    #[test]
    fn memory_is_bounded() {
        let throttle = Throttle::new(1, 1000);
        for i in 0..3 * KEYS_MAX {
            throttle.failed(&i.to_string(), 0);
        }
        assert!(throttle.counts.lock().unwrap().len() <= KEYS_MAX);
    }
}
