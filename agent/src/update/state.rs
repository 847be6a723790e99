//! The updater's decisions: a pure, persisted state machine. `step(state, event)` gives the next state and what is
//! to be done; the caller makes the state durable first and acts then. Effects are idempotent: after a power cut
//! between the two, [`Event::Booted`] gives those that are due again.
//!
//! ```text
//! wanted ─► Fetch ─► SelfTest ─► Trial{tries} ─► committed
//!             │         │          │  every start of a trial takes one try, durably, before the model is loaded
//!             └─────────┴──► failed└──► rolled back: no tries left, bad health, or wanted no more
//! ```
//!
//! Invariants:
//! - `active` changes by a commit only, or when it cannot be loaded and `previous` takes its place.
//! - `active`, `previous` and the trial's release are on disk, verified; nothing removes them ([`State::kept`]).
//! - Tries fall only while a trial is pending. A release that failed is not tried again for the same rollout.
//! - A desired state older than one seen is ignored; a newer one supersedes at any point.

use andon_protocol::{
    Digest, ReleaseId,
    state::{Desired, UpdatePhase, UpdateReport},
};
use serde::{Deserialize, Serialize};

/// Failed releases that are remembered.
const BAD_MAX: usize = 16;
const DETAIL_BYTES_MAX: usize = 1024;

/// A release on disk: its folder is named by the digest of the list of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub release: ReleaseId,
    pub content: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub release: ReleaseId,
    pub rollout: Option<String>,
    pub trial_s: u32,
}

/// The update under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub wanted: Wanted,
    pub stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Stage {
    Fetch,
    SelfTest { slot: Slot },
    Trial { slot: Slot, tries_left: u8 },
}

/// How the newest update ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub wanted: Wanted,
    pub phase: UpdatePhase,
    pub detail: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    pub release: ReleaseId,
    pub rollout: Option<String>,
}

/// What is persisted: the only truth about which release runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Counts the writes; the highest one that checks is valid.
    pub generation: u64,
    pub active: Option<Slot>,
    pub previous: Option<Slot>,
    pub job: Option<Job>,
    pub outcome: Option<Outcome>,
    /// Of the newest desired state.
    pub desired_generation: u64,
    pub bad: Vec<Bad>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The process has started.
    Booted,
    Desired(Desired),
    /// All files are on disk, verified and durable.
    Fetched(Slot),
    /// The release can't be had: not listed, not signed, or not what was signed.
    FetchRefused(String),
    SelfTestPassed,
    SelfTestFailed(String),
    /// An armed trial is to be started.
    StartTrial,
    LoadFailed {
        slot: Slot,
        why: String,
    },
    /// The trial has proven itself.
    TrialPassed,
    TrialFailed(String),
}

/// What is to be done at once. The long work (fetch, self-test, watching a trial) follows from [`State::job`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Judge frames with this release.
    Load(Slot),
    /// Watch the release that was just loaded for so long, then say how it did.
    Watch { slot: Slot, trial_s: u32 },
    /// Remove what [`State::kept`] does not name.
    Collect,
    /// Tell the server, and write the change down as telemetry.
    Announce { release: ReleaseId, phase: UpdatePhase, detail: Option<String> },
}

/// How often a trial is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub tries: u8,
}

impl State {
    /// Slots that must stay on disk.
    pub fn kept(&self) -> Vec<&Slot> {
        let job = self.job.as_ref().and_then(|job| match &job.stage {
            Stage::Fetch => None,
            Stage::SelfTest { slot } | Stage::Trial { slot, .. } => Some(slot),
        });
        [self.active.as_ref(), self.previous.as_ref(), job].into_iter().flatten().collect()
    }

    /// What the server is told about the newest update. Bytes are the fetcher's to fill in.
    pub fn report(&self) -> Option<UpdateReport> {
        let (wanted, phase, detail) = match (&self.job, &self.outcome) {
            (Some(job), _) => {
                let phase = match job.stage {
                    Stage::Fetch => UpdatePhase::Downloading,
                    Stage::SelfTest { .. } => UpdatePhase::SelfTest,
                    Stage::Trial { .. } => UpdatePhase::Trial,
                };
                (&job.wanted, phase, None)
            }
            (None, Some(outcome)) => (&outcome.wanted, outcome.phase, outcome.detail.clone()),
            (None, None) => return None,
        };
        let (release, rollout) = (wanted.release.clone(), wanted.rollout.clone());
        Some(UpdateReport { release, rollout, phase, bytes_done: 0, bytes_total: 0, detail })
    }

    /// What runs, or should: the trial's release while there is one.
    pub fn to_run(&self) -> Option<&Slot> {
        match self.job.as_ref().map(|job| &job.stage) {
            Some(Stage::Trial { slot, .. }) => Some(slot),
            _ => self.active.as_ref(),
        }
    }

    fn is_bad(&self, wanted: &Wanted) -> bool {
        self.bad.iter().any(|bad| bad.release == wanted.release && bad.rollout == wanted.rollout)
    }

    fn remember_bad(&mut self, wanted: &Wanted) {
        if !self.is_bad(wanted) {
            self.bad.push(Bad { release: wanted.release.clone(), rollout: wanted.rollout.clone() });
            let surplus = self.bad.len().saturating_sub(BAD_MAX);
            self.bad.drain(..surplus);
        }
    }

    fn settle(
        &mut self,
        wanted: Wanted,
        phase: UpdatePhase,
        detail: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        let detail = detail.map(shortened);
        effects.push(Effect::Announce { release: wanted.release.clone(), phase, detail: detail.clone() });
        self.job = None;
        self.outcome = Some(Outcome { wanted, phase, detail });
    }
}

/// The next state, and what to do once it is durable. An event that does not fit the state changes nothing.
pub fn step(mut state: State, event: Event, rules: Rules) -> (State, Vec<Effect>) {
    let effects = match event {
        Event::Booted => booted(&mut state),
        Event::Desired(desired) => desired_changed(&mut state, desired),
        Event::Fetched(slot) => fetched(&mut state, slot),
        Event::FetchRefused(why) => match state.job.take() {
            Some(Job { wanted, stage: Stage::Fetch }) => failed(&mut state, wanted, why),
            other => unchanged(&mut state, other),
        },
        Event::SelfTestPassed => match state.job.take() {
            Some(Job { wanted, stage: Stage::SelfTest { slot } }) => {
                let release = wanted.release.clone();
                state.job =
                    Some(Job { wanted, stage: Stage::Trial { slot, tries_left: rules.tries.max(1) } });
                vec![Effect::Announce { release, phase: UpdatePhase::Trial, detail: None }]
            }
            other => unchanged(&mut state, other),
        },
        Event::SelfTestFailed(why) => match state.job.take() {
            Some(Job { wanted, stage: Stage::SelfTest { .. } }) => failed(&mut state, wanted, why),
            other => unchanged(&mut state, other),
        },
        Event::StartTrial => start_trial(&mut state),
        Event::LoadFailed { slot, why } => load_failed(&mut state, &slot, why),
        Event::TrialPassed => match state.job.take() {
            Some(Job { wanted, stage: Stage::Trial { slot, .. } }) => commit(&mut state, wanted, slot),
            other => unchanged(&mut state, other),
        },
        Event::TrialFailed(why) => match state.job.take() {
            Some(Job { wanted, stage: Stage::Trial { .. } }) => {
                roll_back(&mut state, wanted, why, Blame::Release)
            }
            other => unchanged(&mut state, other),
        },
    };
    (state, effects)
}

fn unchanged(state: &mut State, job: Option<Job>) -> Vec<Effect> {
    state.job = job;
    Vec::new()
}

fn booted(state: &mut State) -> Vec<Effect> {
    if let Some(Job { stage: Stage::Trial { .. }, .. }) = state.job {
        // Whatever ended the process may have been the release: its try is taken before it is loaded again.
        return start_trial(state);
    }
    let mut effects: Vec<_> = state.active.iter().cloned().map(Effect::Load).collect();
    effects.push(Effect::Collect);
    effects
}

fn start_trial(state: &mut State) -> Vec<Effect> {
    match state.job.take() {
        Some(Job { wanted, stage: Stage::Trial { tries_left: 0, .. } }) => {
            let why =
                "its tries are used up: the agent ended again and again before the trial did".to_owned();
            roll_back(state, wanted, why, Blame::Release)
        }
        Some(Job { wanted, stage: Stage::Trial { slot, tries_left } }) => {
            let effects = vec![
                Effect::Load(slot.clone()),
                Effect::Watch { slot: slot.clone(), trial_s: wanted.trial_s },
            ];
            state.job = Some(Job { wanted, stage: Stage::Trial { slot, tries_left: tries_left - 1 } });
            effects
        }
        other => unchanged(state, other),
    }
}

fn desired_changed(state: &mut State, desired: Desired) -> Vec<Effect> {
    if desired.generation < state.desired_generation {
        return Vec::new();
    }
    state.desired_generation = desired.generation;
    let wanted =
        desired.release.map(|release| Wanted { release, rollout: desired.rollout, trial_s: desired.trial_s });
    let Some(wanted) = wanted else { return abandon(state, "the server wants no update any more") };
    if let Some(job) = &mut state.job
        && job.wanted.release == wanted.release
    {
        // The same release for the same or another rollout: what was done for it stands.
        job.wanted = wanted;
        return Vec::new();
    }
    if state.active.as_ref().is_some_and(|active| active.release == wanted.release) {
        let mut effects = abandon(state, "the server wants the release that is kept");
        let told = state.outcome.as_ref().is_some_and(|outcome| {
            outcome.phase == UpdatePhase::Committed
                && (&outcome.wanted.release, &outcome.wanted.rollout) == (&wanted.release, &wanted.rollout)
        });
        if !told {
            state.settle(wanted, UpdatePhase::Committed, None, &mut effects);
        }
        return effects;
    }
    if state.is_bad(&wanted) {
        return abandon(state, "the server wants a release that failed here");
    }
    let mut effects = abandon(state, "another release was wanted before the trial ended");
    let release = wanted.release.clone();
    state.job = Some(Job { wanted, stage: Stage::Fetch });
    effects.push(Effect::Announce { release, phase: UpdatePhase::Downloading, detail: None });
    effects
}

/// Ends the update under way, if there is one, without blaming the release.
fn abandon(state: &mut State, why: &str) -> Vec<Effect> {
    match state.job.take() {
        None => Vec::new(),
        Some(Job { wanted, stage: Stage::Trial { .. } }) => {
            roll_back(state, wanted, why.to_owned(), Blame::Nobody)
        }
        Some(Job { wanted, .. }) => {
            let mut effects = Vec::new();
            state.settle(wanted, UpdatePhase::Failed, Some(why.to_owned()), &mut effects);
            effects.push(Effect::Collect);
            effects
        }
    }
}

fn fetched(state: &mut State, slot: Slot) -> Vec<Effect> {
    match state.job.take() {
        Some(Job { wanted, stage: Stage::Fetch }) if wanted.release == slot.release => {
            let release = wanted.release.clone();
            state.job = Some(Job { wanted, stage: Stage::SelfTest { slot } });
            vec![Effect::Announce { release, phase: UpdatePhase::SelfTest, detail: None }]
        }
        other => unchanged(state, other),
    }
}

/// Never got as far as a trial.
fn failed(state: &mut State, wanted: Wanted, why: String) -> Vec<Effect> {
    state.remember_bad(&wanted);
    let mut effects = Vec::new();
    state.settle(wanted, UpdatePhase::Failed, Some(why), &mut effects);
    effects.push(Effect::Collect);
    effects
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blame {
    Release,
    Nobody,
}

fn roll_back(state: &mut State, wanted: Wanted, why: String, blame: Blame) -> Vec<Effect> {
    if blame == Blame::Release {
        state.remember_bad(&wanted);
    }
    let mut effects: Vec<_> = state.active.iter().cloned().map(Effect::Load).collect();
    state.settle(wanted, UpdatePhase::RolledBack, Some(why), &mut effects);
    effects.push(Effect::Collect);
    effects
}

fn commit(state: &mut State, wanted: Wanted, slot: Slot) -> Vec<Effect> {
    let old = state.active.replace(slot);
    // Going back to the release before makes the one that was left the way back.
    state.previous = old.filter(|old| Some(old) != state.active.as_ref());
    let mut effects = Vec::new();
    state.settle(wanted, UpdatePhase::Committed, None, &mut effects);
    effects.push(Effect::Collect);
    effects
}

fn load_failed(state: &mut State, slot: &Slot, why: String) -> Vec<Effect> {
    if let Some(Job { stage: Stage::Trial { slot: trial, .. }, .. }) = &state.job
        && trial == slot
        && let Some(Job { wanted, .. }) = state.job.take()
    {
        return roll_back(state, wanted, format!("it does not load: {why}"), Blame::Release);
    }
    if state.previous.as_ref() == Some(slot) {
        state.previous = None;
        return Vec::new();
    }
    if state.active.as_ref() != Some(slot) {
        return Vec::new();
    }
    // What was committed does not load (a bad disk). The release before runs; the server's next desired state, or
    // the one that waits, brings the other again.
    state.active = state.previous.take();
    let mut effects: Vec<_> = state.active.iter().cloned().map(Effect::Load).collect();
    let detail = Some(shortened(format!("the release that ran does not load any more: {why}")));
    let release = slot.release.clone();
    effects.push(Effect::Announce {
        release: release.clone(),
        phase: UpdatePhase::RolledBack,
        detail: detail.clone(),
    });
    if state.job.is_none() {
        let rollout = state.outcome.as_ref().and_then(|outcome| outcome.wanted.rollout.clone());
        let wanted = Wanted { release, rollout, trial_s: 0 };
        if state.active.is_none() {
            // Nothing else is left to run: have the same again.
            state.job = Some(Job { wanted, stage: Stage::Fetch });
        } else {
            state.outcome = Some(Outcome { wanted, phase: UpdatePhase::RolledBack, detail });
        }
    }
    effects
}

fn shortened(mut text: String) -> String {
    let end = (0..=DETAIL_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
