//! What is wrong with what devices send: counted always, logged once a minute and device, so that a broken device
//! fills no disk.

use std::{collections::HashMap, sync::Mutex};

use andon_protocol::DeviceId;

const QUIET_MS: i64 = 60_000;
/// Devices remembered at most; then all are forgotten, which costs a few more lines in the log.
const DEVICES_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub struct Complaints(Mutex<HashMap<Option<DeviceId>, State>>);

#[derive(Debug)]
struct State {
    logged_ms: i64,
    unlogged: u64,
    total: u64,
}

impl Complaints {
    /// Returns whether it was logged.
    pub fn note(&self, device: Option<&DeviceId>, what: &str, now_ms: i64) -> bool {
        let mut states = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if states.len() >= DEVICES_MAX {
            states.clear();
        }
        let state =
            states.entry(device.cloned()).or_insert(State { logged_ms: i64::MIN, unlogged: 0, total: 0 });
        state.total += 1;
        if now_ms.saturating_sub(state.logged_ms) < QUIET_MS {
            state.unlogged += 1;
            return false;
        }
        let name = device.map_or("?", DeviceId::as_str);
        tracing::warn!(device = name, since_last = state.unlogged, total = state.total, "refused: {what}");
        state.logged_ms = now_ms;
        state.unlogged = 0;
        true
    }

    #[cfg(test)]
    pub fn total(&self, device: &DeviceId) -> u64 {
        self.0.lock().unwrap().get(&Some(device.clone())).map_or(0, |state| state.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_device_is_logged_once_a_minute() {
        let complaints = Complaints::default();
        let (a, b): (DeviceId, DeviceId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let logged: Vec<bool> =
            [0, 1, 59_999, 60_000].map(|now| complaints.note(Some(&a), "x", now)).to_vec();
        assert_eq!(logged, [true, false, false, true]);
        assert!(complaints.note(Some(&b), "x", 2));
        assert_eq!(complaints.total(&a), 4);
    }
}
