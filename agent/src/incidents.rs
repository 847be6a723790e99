//! What went wrong with this device's parts, on its way to the log and to telemetry: [`Incidents`]. Whoever sees it tells it
//! at once, whatever becomes of the frame or the release that it happened to.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use crate::pipeline::lock;

/// Texts that wait to be taken; of further ones only the number is known.
const WAITING_MAX: usize = 64;

/// A queue that many may tell things and one takes them from.
#[derive(Debug, Clone, Default)]
pub struct Incidents(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    texts: VecDeque<String>,
    more: u64,
}

impl Incidents {
    /// Logs it, and keeps it until it is taken.
    pub fn tell(&self, what: impl Into<String>) {
        let what = what.into();
        tracing::warn!("{what}");
        let mut waiting = lock(&self.0);
        // The first of many says more than the last.
        if waiting.texts.len() < WAITING_MAX {
            waiting.texts.push_back(what);
        } else {
            waiting.more += 1;
        }
    }

    /// All since the last call, in their order.
    pub fn take(&self) -> Vec<String> {
        let Waiting { texts, more } = std::mem::take(&mut *lock(&self.0));
        let more = (more > 0).then(|| format!("and {more} incidents more"));
        texts.into_iter().chain(more).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_without_a_word() {
        let incidents = Incidents::default();
        let other = incidents.clone();
        (0..WAITING_MAX + 3).for_each(|number| other.tell(number.to_string()));
        let taken = incidents.take();
        assert_eq!((&*taken[0], taken.len()), ("0", WAITING_MAX + 1));
        assert_eq!(taken[WAITING_MAX], "and 3 incidents more");
        assert_eq!(incidents.take(), [""; 0]);
    }
}
