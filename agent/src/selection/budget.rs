//! How many bytes may still be uploaded: never more than the limit in any hour and in any day, of which a fifth is
//! kept for the time of an alarm. Time is monotonic, so that nobody can make a day shorter by setting a clock.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

/// Share of both limits that only an alarm may use.
const RESERVE: f64 = 0.2;

/// What of a budget an upload may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Routine,
    Alarm,
}

#[derive(Debug)]
pub(super) struct Budget {
    bytes_per_hour: u64,
    bytes_per_day: u64,
    hour: Spent,
    day: Spent,
}

/// A budget's past, to outlive a restart: bytes by age.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// `(age in seconds, bytes)`.
    hour: Vec<(u64, u64)>,
    day: Vec<(u64, u64)>,
}

impl Budget {
    const HOUR_SLOT: Duration = Duration::from_secs(60);
    const DAY_SLOT: Duration = Duration::from_secs(900);

    pub(super) fn new(bytes_per_hour: u64, bytes_per_day: u64) -> Self {
        let hour = Spent::new(Self::HOUR_SLOT, 60);
        Self { bytes_per_hour, bytes_per_day, hour, day: Spent::new(Self::DAY_SLOT, 96) }
    }

    pub(super) fn set_bytes_per_hour(&mut self, bytes_per_hour: u64) {
        self.bytes_per_hour = bytes_per_hour;
    }

    pub(super) fn bytes_per_hour(&self) -> u64 {
        self.bytes_per_hour
    }

    pub(super) fn left(&mut self, now: Duration, purpose: Purpose) -> u64 {
        let share = if purpose == Purpose::Alarm { 1.0 } else { 1.0 - RESERVE };
        let of = |limit: u64, spent: u64| ((limit as f64 * share) as u64).min(limit).saturating_sub(spent);
        let hour = of(self.bytes_per_hour, self.hour.sum(now));
        hour.min(of(self.bytes_per_day, self.day.sum(now)))
    }

    /// Books an upload, if it fits.
    pub(super) fn spend(&mut self, now: Duration, bytes: u64, purpose: Purpose) -> bool {
        if bytes > self.left(now, purpose) {
            return false;
        }
        self.hour.add(now, bytes);
        self.day.add(now, bytes);
        true
    }

    pub(super) fn ledger(&mut self, now: Duration) -> Ledger {
        Ledger { hour: self.hour.by_age(now), day: self.day.by_age(now) }
    }

    /// Takes a past over that is `older` by the time that nobody ran.
    pub(super) fn restore(&mut self, ledger: &Ledger, older: Duration) {
        self.hour.restore(&ledger.hour, older);
        self.day.restore(&ledger.day, older);
    }
}

/// Bytes in slots of time. A slot is forgotten once its *end* is out of the window, so that the sum is never too low.
#[derive(Debug)]
struct Spent {
    slot: Duration,
    slots: u64,
    /// `(number, bytes)` of slots in which something was spent, the oldest first.
    recent: VecDeque<(i64, u64)>,
}

impl Spent {
    fn new(slot: Duration, slots: u64) -> Self {
        Self { slot, slots, recent: VecDeque::new() }
    }

    fn number(&self, now: Duration) -> i64 {
        (now.as_millis() / self.slot.as_millis()) as i64
    }

    fn sum(&mut self, now: Duration) -> u64 {
        let oldest = self.number(now) - self.slots as i64;
        while self.recent.front().is_some_and(|(number, _)| *number < oldest) {
            self.recent.pop_front();
        }
        self.recent.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    fn add(&mut self, now: Duration, bytes: u64) {
        let number = self.number(now);
        match self.recent.back_mut() {
            Some((last, sum)) if *last >= number => *sum = sum.saturating_add(bytes),
            _ => self.recent.push_back((number, bytes)),
        }
    }

    fn by_age(&mut self, now: Duration) -> Vec<(u64, u64)> {
        self.sum(now);
        let (here, slot) = (self.number(now), self.slot.as_secs());
        self.recent.iter().map(|(number, bytes)| ((here - number).max(0) as u64 * slot, *bytes)).collect()
    }

    fn restore(&mut self, by_age: &[(u64, u64)], older: Duration) {
        let slot = self.slot.as_secs();
        let mut recent: Vec<(i64, u64)> = by_age
            .iter()
            .take(self.slots as usize + 1)
            // Ages are of the slot's number, so that one slot more is the safe side.
            .map(|(age, bytes)| (-((age.saturating_add(older.as_secs()) / slot) as i64), *bytes))
            .collect();
        recent.sort_unstable();
        self.recent = recent.into();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A month of wishes of any size at any time: no hour and no day is ever over its limit, a routine never
        /// touches the reserve, and restarts change nothing.
        #[test]
        fn no_hour_and_no_day_is_ever_over_its_limit(
            wishes in proptest::collection::vec((0u64..7200, 1u64..40_000, any::<bool>(), 0u8..20), 1..400),
            (per_hour, per_day) in (50_000u64..200_000, 200_000u64..900_000),
        ) {
            let mut budget = Budget::new(per_hour, per_day);
            let (mut now, mut start) = (0u64, 0u64);
            let mut spent: Vec<(u64, u64)> = Vec::new();
            for (pause, bytes, is_alarm, restart) in wishes {
                now += pause;
                if restart == 0 {
                    let ledger = budget.ledger(Duration::from_secs(now - start));
                    budget = Budget::new(per_hour, per_day);
                    budget.restore(&ledger, Duration::ZERO);
                    start = now;
                }
                let purpose = if is_alarm { Purpose::Alarm } else { Purpose::Routine };
                if budget.spend(Duration::from_secs(now - start), bytes, purpose) {
                    spent.push((now, bytes));
                }
                let since = |span: u64| spent.iter().filter(|(t, _)| *t + span > now).map(|(_, b)| b).sum::<u64>();
                prop_assert!(since(3600) <= per_hour, "{} in an hour", since(3600));
                prop_assert!(since(86_400) <= per_day, "{} in a day", since(86_400));
            }
        }
    }

    #[test]
    fn the_reserve_opens_in_an_alarm_and_the_hour_comes_back() {
        let mut budget = Budget::new(1000, 100_000);
        let minute = |m: u64| Duration::from_secs(60 * m);
        assert!(budget.spend(minute(0), 800, Purpose::Routine));
        assert!(!budget.spend(minute(1), 1, Purpose::Routine));
        assert!(budget.spend(minute(1), 200, Purpose::Alarm));
        assert!(!budget.spend(minute(59), 1, Purpose::Alarm));
        assert_eq!(budget.left(minute(61), Purpose::Alarm), 800);
        assert_eq!(budget.left(minute(62), Purpose::Routine), 800);
    }
}
