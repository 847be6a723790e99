//! The human of the demo: looks at the images that drifted devices sent, and says what they show. Through the people's
//! API, like anybody; only the answers come from the data set's annotations instead of a pair of eyes.
//!
//! Takes random and uncertain samples in turn, and from every drifted device equally many. Never more than its budget.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use andon_protocol::{
    api::{Alarm, NewLabel, Sample},
    ids::{DeviceId, Digest},
    sample::Reason,
    telemetry::DriftState,
};
use anyhow::{Context, Result};

use crate::api::Api;

pub struct Inspector {
    api: Api,
    truth: HashMap<String, String>,
    budget: usize,
    labelled: BTreeMap<DeviceId, usize>,
}

impl Inspector {
    pub fn new(api: Api, truth: HashMap<String, String>, budget: usize) -> Self {
        Self { api, truth, budget, labelled: BTreeMap::new() }
    }

    pub fn labelled(&self) -> usize {
        self.labelled.values().sum()
    }

    pub fn is_done(&self) -> bool {
        self.labelled() >= self.budget
    }

    /// Labels what is offered now, within the budget; how many that were.
    pub async fn look(&mut self) -> Result<usize> {
        let alarms: Vec<Alarm> = self.api.list("/alarms").await?;
        let devices: BTreeSet<_> = alarms.into_iter().map(|a| a.device).collect();
        let mut offers = BTreeMap::new();
        for device in devices {
            let path = format!("/samples?device={device}&labelled=false");
            let offered = in_turn(self.api.list(&path).await?);
            self.labelled.entry(device.clone()).or_default();
            offers.insert(device, offered);
        }
        let before = self.labelled();
        while !self.is_done() {
            // The device with the fewest labels that has something to offer.
            let next = offers.iter().filter(|(_, o)| !o.is_empty()).map(|(d, _)| d.clone());
            let Some(device) = next.min_by_key(|d| self.labelled[d]) else { break };
            let Some(sample) = offers.get_mut(&device).and_then(Vec::pop) else { break };
            self.label(&sample).await?;
            *self.labelled.entry(device).or_default() += 1;
        }
        Ok(self.labelled() - before)
    }

    async fn label(&self, sample: &Sample) -> Result<Digest> {
        let class = self.truth.get(&sample.source);
        let class = class
            .with_context(|| format!("sample {} shows {:?}, which nobody knows", sample.id, sample.source))?;
        let path = format!("/samples/{}/label", sample.id);
        let labelled: Sample = self.api.put(&path, &NewLabel { class: class.clone() }).await?;
        Ok(labelled.id)
    }
}

/// Samples taken under drift, in the order in which they are to be popped: random, uncertain, random… and at last
/// whatever else there is.
fn in_turn(samples: Vec<Sample>) -> Vec<Sample> {
    let drifted =
        |s: &Sample| matches!(s.drift, DriftState::Suspect | DriftState::Alarm | DriftState::Cooldown);
    let drifted = samples.into_iter().filter(drifted);
    let (random, other): (Vec<_>, Vec<_>) = drifted.partition(|s| s.reason == Reason::Random);
    let (uncertain, mut rest): (Vec<_>, Vec<_>) =
        other.into_iter().partition(|s| s.reason == Reason::Uncertain);
    let (mut random, mut uncertain) = (random.into_iter(), uncertain.into_iter());
    let mut turns = Vec::new();
    loop {
        let (a, b) = (random.next(), uncertain.next());
        if a.is_none() && b.is_none() {
            break;
        }
        turns.extend(a.into_iter().chain(b));
    }
    turns.reverse();
    rest.extend(turns);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(source: &str, reason: Reason, drift: DriftState) -> Sample {
        Sample {
            id: Digest::of(source.as_bytes()),
            device: "d".parse().unwrap(),
            captured_ms: 0,
            received_ms: 0,
            boot: String::new(),
            frame: 0,
            source: source.to_owned(),
            release: "m/1".parse().unwrap(),
            reason,
            inclusion_probability: 1.0,
            predicted: "ok".to_owned(),
            scores: vec![],
            drift,
            bytes: 1,
            label: None,
        }
    }

    #[test]
    fn random_and_uncertain_samples_take_turns_and_clean_ones_are_left() {
        let alarm = DriftState::Alarm;
        let mut order = in_turn(vec![
            sample("n1", Reason::Novel, alarm),
            sample("u1", Reason::Uncertain, alarm),
            sample("clean", Reason::Random, DriftState::Armed),
            sample("r1", Reason::Random, alarm),
            sample("r2", Reason::Random, alarm),
            sample("r3", Reason::Random, alarm),
        ]);
        let taken: Vec<String> = std::iter::from_fn(|| order.pop()).map(|s| s.source).collect();
        assert_eq!(taken, ["r1", "u1", "r2", "r3", "n1"]);
    }
}
