//! What a rollout does next, as a pure function of what is known. No clock, no database: the same facts give the same
//! decision, so that every one can be repeated from the record.
//!
//! Rules:
//! - A wave is offered whole, when the one before it is *proven*: every device of it reports, by the digest of the
//!   loaded model, that it judges with the release, has committed it, and the soak has passed since the last did.
//! - What a device says about an update is not enough: "installed" while another model judges is a failure.
//! - One failure, rollback, fallback after the commit, or silence beyond a deadline halts the rollout.
//! - Halted: the devices of the wave that is out go back to what they were asked to run before. Proven waves stay.
//!   Aborted: only those that have not committed go back.
//! - Paused: nothing is offered, no wave starts and no deadline runs out; failures still halt.

use andon_protocol::{
    DeviceId, Digest, ReleaseId,
    api::{RolloutDeviceState as DeviceState, RolloutState, Wave},
    state::{Reported, UpdatePhase},
};

/// All that a decision depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutFacts {
    pub id: String,
    pub release: ReleaseId,
    /// Of the release's `model.onnx`.
    pub model: Digest,
    pub release_withdrawn: bool,
    pub state: RolloutState,
    pub waves: Vec<Wave>,
    /// Index of the wave that is out.
    pub wave: u32,
    pub trial_s: u32,
    pub deadlines: Deadlines,
    pub devices: Vec<DeviceFacts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// A device that is under way and sends nothing at all for so long has failed.
    pub silence_s: u32,
    /// And one that has come to no end so long after the offer, its trial not counted.
    pub outcome_s: u32,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { silence_s: 30 * 60, outcome_s: 24 * 3600 }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct DeviceFacts {
    pub device: DeviceId,
    pub wave: u32,
    /// As recorded.
    pub state: DeviceState,
    pub since_ms: i64,
    pub offered_ms: Option<i64>,
    /// What the device was asked to run before the offer.
    pub before: Option<ReleaseId>,
    /// Whether what the device is asked to run now is this rollout's doing.
    pub bound: bool,
    pub reported: Option<Reported>,
    /// The newest message of any kind.
    pub last_seen_ms: Option<i64>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// What a device reports is written down.
    Record {
        device: DeviceId,
        state: DeviceState,
        detail: Option<String>,
    },
    /// The device is asked to run the release.
    Offer {
        device: DeviceId,
    },
    /// The device is asked to run what it ran before; `None`: to keep what runs.
    SendBack {
        device: DeviceId,
        to: Option<ReleaseId>,
    },
    /// The next wave is out.
    Advance {
        wave: u32,
        why: String,
    },
    Finish {
        state: RolloutState,
        why: String,
    },
}

impl Action {
    /// The device that it is about, if it is about one.
    pub fn device(&self) -> Option<&DeviceId> {
        match self {
            Action::Record { device, .. } | Action::Offer { device } | Action::SendBack { device, .. } => {
                Some(device)
            }
            Action::Advance { .. } | Action::Finish { .. } => None,
        }
    }
}

/// The next actions, all of one kind; none when there is nothing to do but wait. Carried out with [`apply`], then
/// asked again until none are left: at most [`rounds_max`] times.
pub fn decide(facts: &RolloutFacts, now_ms: i64) -> Vec<Action> {
    let is_open = matches!(facts.state, RolloutState::Running | RolloutState::Paused);
    if !is_open {
        return send_back(facts);
    }
    let news: Vec<_> = facts.devices.iter().filter_map(|device| observe(facts, device, now_ms)).collect();
    if !news.is_empty() {
        return news;
    }
    if let Some(why) = harm(facts) {
        return vec![Action::Finish { state: RolloutState::Halted, why }];
    }
    if facts.state == RolloutState::Paused {
        return Vec::new();
    }
    let wave = || facts.devices.iter().filter(|d| d.wave == facts.wave);
    let offers: Vec<_> = wave()
        .filter(|d| d.state == DeviceState::Waiting)
        .map(|d| Action::Offer { device: d.device.clone() })
        .collect();
    if !offers.is_empty() {
        return offers;
    }
    if !wave().all(|d| d.state == DeviceState::Committed) {
        return Vec::new();
    }
    let soak_s = facts.waves.get(facts.wave as usize).map_or(0, |w| w.soak_s);
    // A wave that is empty, since the fleet is small, has nothing to soak.
    let proven =
        wave().map(|d| d.since_ms).max().is_none_or(|last| now_ms - last >= i64::from(soak_s) * 1000);
    if !proven {
        return Vec::new();
    }
    let count = wave().count();
    let why = format!(
        "{count} of {count} devices of wave {} run {} by digest, soaked {soak_s} s",
        facts.wave, facts.release
    );
    if facts.wave as usize + 1 >= facts.waves.len() {
        vec![Action::Finish { state: RolloutState::Succeeded, why }]
    } else {
        vec![Action::Advance { wave: facts.wave + 1, why }]
    }
}

/// Rounds of [`decide`] and [`apply`] after which nothing is left at one time: each wave may be recorded, offered,
/// recorded and advanced, then the end and the way back.
pub fn rounds_max(facts: &RolloutFacts) -> usize {
    4 * facts.waves.len() + 8
}

/// What `action` changes in the facts.
pub fn apply(facts: &mut RolloutFacts, action: &Action, now_ms: i64) {
    let (id, change): (_, &dyn Fn(&mut DeviceFacts)) = match action {
        Action::Record { device, state, .. } => (device, &|d: &mut DeviceFacts| {
            d.state = *state;
            d.since_ms = now_ms;
        }),
        Action::Offer { device } => (device, &|d: &mut DeviceFacts| {
            d.state = DeviceState::Offered;
            d.since_ms = now_ms;
            d.offered_ms = Some(now_ms);
            d.bound = true;
        }),
        Action::SendBack { device, .. } => (device, &|d: &mut DeviceFacts| d.bound = false),
        Action::Advance { wave, .. } => {
            facts.wave = *wave;
            return;
        }
        Action::Finish { state, .. } => {
            facts.state = *state;
            return;
        }
    };
    if let Some(device) = facts.devices.iter_mut().find(|d| d.device == *id) {
        change(device);
    }
}

fn is_failure(state: DeviceState) -> bool {
    matches!(state, DeviceState::RolledBack | DeviceState::Failed | DeviceState::Silent)
}

/// Why the rollout must not go on, if it must not.
fn harm(facts: &RolloutFacts) -> Option<String> {
    if facts.release_withdrawn {
        return Some(format!("release {} was withdrawn", facts.release));
    }
    let failed: Vec<_> = facts.devices.iter().filter(|d| is_failure(d.state)).collect();
    let first = failed.first()?;
    let what = match first.state {
        DeviceState::RolledBack => "rolled back",
        DeviceState::Silent => "is silent",
        _ => "failed",
    };
    let others = match failed.len() - 1 {
        0 => String::new(),
        n => format!(", and {n} more"),
    };
    Some(format!("device {} of wave {} {what}{others}", first.device, first.wave))
}

fn send_back(facts: &RolloutFacts) -> Vec<Action> {
    let goes = |d: &&DeviceFacts| match facts.state {
        RolloutState::Halted => d.wave == facts.wave || is_failure(d.state),
        RolloutState::Aborted => d.state != DeviceState::Committed,
        RolloutState::Running | RolloutState::Paused | RolloutState::Succeeded => false,
    };
    let back = facts.devices.iter().filter(|d| d.bound && d.offered_ms.is_some()).filter(goes);
    back.map(|d| Action::SendBack { device: d.device.clone(), to: d.before.clone() }).collect()
}

/// What the device's report says beyond what is recorded, if anything.
fn observe(facts: &RolloutFacts, device: &DeviceFacts, now_ms: i64) -> Option<Action> {
    let offered_ms = device.offered_ms?;
    if is_failure(device.state) || device.state == DeviceState::Waiting {
        return None;
    }
    let (state, detail) = device
        .reported
        .as_ref()
        .and_then(|reported| reported_state(facts, device, reported))
        .or_else(|| overdue(facts, device, offered_ms, now_ms))?;
    (state != device.state).then(|| Action::Record { device: device.device.clone(), state, detail })
}

fn reported_state(
    facts: &RolloutFacts,
    device: &DeviceFacts,
    reported: &Reported,
) -> Option<(DeviceState, Option<String>)> {
    let runs_it =
        reported.active.as_ref().is_some_and(|a| a.release == facts.release && a.model == facts.model);
    let runs = || match &reported.active {
        Some(running) => format!("judges with {} ({})", running.release, running.model),
        None => "judges with nothing".to_owned(),
    };
    let ours = reported
        .update
        .as_ref()
        .filter(|u| u.release == facts.release && u.rollout.as_deref() == Some(facts.id.as_str()));
    match ours.map(|u| u.phase) {
        Some(UpdatePhase::RolledBack) => Some((DeviceState::RolledBack, ours.and_then(|u| u.detail.clone()))),
        Some(UpdatePhase::Failed) => Some((DeviceState::Failed, ours.and_then(|u| u.detail.clone()))),
        Some(UpdatePhase::Committed) | None if runs_it && !is_on_trial(facts, reported) => {
            Some((DeviceState::Committed, None))
        }
        // At its start an agent judges with nothing yet; that is no fallback.
        _ if device.state == DeviceState::Committed => {
            let fell_back = reported.active.is_some() && !runs_it;
            fell_back.then(|| (DeviceState::RolledBack, Some(format!("after the commit it {}", runs()))))
        }
        Some(UpdatePhase::Committed) if reported.active.is_some() => {
            Some((DeviceState::Failed, Some(format!("says committed and {}", runs()))))
        }
        Some(UpdatePhase::Trial) => Some((DeviceState::Trial, None)),
        Some(UpdatePhase::Downloading | UpdatePhase::Verifying | UpdatePhase::SelfTest) => {
            Some((DeviceState::Downloading, None))
        }
        Some(UpdatePhase::Committed) | None => None,
    }
    // The same state again is no news, and must not hide that the device is overdue.
    .filter(|(state, _)| *state != device.state)
}

/// Whether the report says that the release is only being tried, for whatever rollout.
fn is_on_trial(facts: &RolloutFacts, reported: &Reported) -> bool {
    reported.update.as_ref().is_some_and(|u| u.release == facts.release && !u.phase.is_final())
}

fn overdue(
    facts: &RolloutFacts,
    device: &DeviceFacts,
    offered_ms: i64,
    now_ms: i64,
) -> Option<(DeviceState, Option<String>)> {
    // Devices of proven waves may be switched off; and whoever pauses knows why.
    if device.wave != facts.wave || facts.state == RolloutState::Paused {
        return None;
    }
    let Deadlines { silence_s, outcome_s } = facts.deadlines;
    let heard_ms = device.last_seen_ms.unwrap_or(offered_ms).max(offered_ms);
    if now_ms - heard_ms > i64::from(silence_s) * 1000 {
        return Some((DeviceState::Silent, Some(format!("nothing heard for {silence_s} s"))));
    }
    let within_s = i64::from(outcome_s) + i64::from(facts.trial_s);
    if device.state != DeviceState::Committed && now_ms - offered_ms > within_s * 1000 {
        return Some((DeviceState::Failed, Some(format!("no outcome within {within_s} s of the offer"))));
    }
    None
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
