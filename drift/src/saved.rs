//! The detector's state across a restart, so that a power cut is no way out of an alarm. Less than
//! [`STATE_BYTES_MAX`]; belongs to one reference, which is not part of it.

use andon_protocol::{DecodeError, codec::Wire, decode, encode};
use serde::{Deserialize, Serialize};

use crate::{
    Detector, DetectorOptions, Reference,
    detector::{Live, Phase},
    learning::Learning,
    stats::STATS,
};

/// Largest saved state.
pub const STATE_BYTES_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It is the state of a detector with another reference.
    #[error("the state does not fit the reference: {what}")]
    Misfit { what: &'static str },
}

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    schema: String,
    live: Live,
}

const SCHEMA: &str = "andon.drift-state.v1";

impl Wire for Saved {
    const KIND: &'static str = "drift state";
    const CONTENT_TYPE: &'static str = "application/vnd.andon.drift-state.v1+cbor";
    const BYTES_MAX: usize = STATE_BYTES_MAX;

    fn check(&self) -> Result<(), String> {
        if self.schema == SCHEMA { Ok(()) } else { Err(format!("schema is not {SCHEMA}")) }
    }
}

impl Detector {
    pub fn save(&self) -> Vec<u8> {
        encode(&Saved { schema: SCHEMA.into(), live: self.live.clone() })
    }

    /// A detector that goes on where [`Detector::save`] stopped.
    pub fn restore(
        reference: &Reference,
        options: &DetectorOptions,
        bytes: &[u8],
    ) -> Result<Self, RestoreError> {
        let live = decode::<Saved>(bytes)?.live;
        let mut detector = Self::new(reference, options);
        if let Some(what) = misfit(&live, &detector.live) {
            return Err(RestoreError::Misfit { what });
        }
        detector.live = live;
        Ok(detector)
    }
}

/// Why `live` is no state of a detector like the one that `fresh` is the first state of.
fn misfit(live: &Live, fresh: &Live) -> Option<&'static str> {
    let sums = live.bank.sums().zip(fresh.bank.sums());
    if sums.clone().any(|(a, b)| a.len() != b.len()) {
        return Some("another number of series");
    }
    if !sums.flat_map(|(a, _)| a).all(|v| v.is_finite()) {
        return Some("a chart that is not finite");
    }
    // Slacks depend on how the device's own mean was learned, which only the state knows.
    if !live.bank.slacks().iter().all(|s| (0.0..=4.0).contains(s)) {
        return Some("a slack that is not in 0 to 4");
    }
    let (a, b) = (&live.centre, &fresh.centre);
    if a.ranks.len() != STATS
        || a.own.as_ref().is_some_and(|own| own.len() != STATS)
        || a.embedding.len() != b.embedding.len()
        || a.prediction.len() != b.prediction.len()
    {
        return Some("another number of centres");
    }
    let own = a.own.iter().flatten().all(|m| m.mean.is_finite() && m.sd.is_finite() && m.sd > 0.0);
    if !own
        || !a.embedding.iter().all(crate::learning::Shift::is_sound)
        || !a.prediction.iter().chain(&a.change).chain(&a.ranks).all(|v| v.is_finite())
    {
        return Some("a centre that is not finite");
    }
    if live.inquiry.as_ref().is_some_and(|i| i.frames > crate::attribution::FRAMES_MAX || !finite(&i.sums)) {
        return Some("an inquiry without end");
    }
    match &live.phase {
        Phase::Learning(learning) if !learning_fits(learning, fresh) => Some("another commissioning"),
        Phase::Cooldown { left: 0 } => Some("a cooldown that has ended"),
        _ => None,
    }
}

fn finite(values: &[f64]) -> bool {
    values.iter().all(|v| v.is_finite())
}

/// The frames wanted and why are the state's own: a device that learns a release made for it goes on learning.
fn learning_fits(learning: &Learning, fresh: &Live) -> bool {
    let sums = [&learning.signature, &learning.embedding, &learning.prediction, &learning.ranks];
    let lengths = [STATS + 2, fresh.centre.embedding.len(), fresh.centre.prediction.len(), STATS];
    learning.frames < learning.wanted
        && (1.0..=1e6).contains(&learning.tau)
        && sums.iter().zip(lengths).all(|(sums, length)| sums.len() == length)
        && sums.iter().flat_map(|s| s.iter()).all(|s| s.sum.is_finite() && s.squares.is_finite())
}
