//! The updater: from a desired state to a release that has proven itself on this device, or to the one that ran
//! before. [`state`] decides, [`store`] keeps, [`fetch`] and [`trust`] bring, [`trial`] judges; [`Updater`] joins
//! them: it makes each decision durable, then acts.
//!
//! Invariants:
//! - No decision is acted on before it is on disk. One that cannot be written is tried again, and nothing else
//!   happens meanwhile; frames are judged with what runs.
//! - Once a release was active, a verified one can be loaded at every start ([`sim`](self) cuts the power
//!   everywhere to see).
//! - Every wait is bounded by a back-off, every download by signed sizes.
//!
//! It runs in a thread of its own and blocks there; the frame path knows nothing of it.

pub mod fetch;
pub mod source;
pub mod state;
pub mod store;
#[cfg(test)]
mod tests;
pub mod trial;
pub mod trust;

use std::{collections::VecDeque, io, path::Path, sync::Arc, time::Duration};

use andon_protocol::{
    ReleaseId,
    state::{Desired, UpdatePhase, UpdateReport},
};

use crate::{clock::Clock, uplink::backoff::Backoff};
use fetch::{Fetch, FetchError};
use source::Source;
use state::{Effect, Event, Job, Rules, Slot, Stage, State, step};
use store::Store;
use trial::{Judgement, TrialHealth, TrialRules};

/// Refusals of a fetch before the release is given up: a repository that is being published to heals by itself.
const REFUSALS_MAX: u32 = 3;
/// Attempts to load a release before it is given up.
const LOADS_TRIED: u32 = 3;
/// How often a trial is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// What the updater does to the rest of the agent.
pub trait Station: Send {
    /// Loads the release beside the one that runs and has it judge its golden images.
    fn self_test(&mut self, folder: &Path, release: &ReleaseId) -> Result<(), String>;
    /// Frames are judged with this release from the next one on.
    fn load(&mut self, folder: &Path, release: &ReleaseId) -> Result<(), String>;
    /// How the release that was loaded last does.
    fn trial_health(&mut self) -> TrialHealth;
    /// A change that people should hear of; durable in the updater's state already.
    fn announce(&mut self, release: &ReleaseId, phase: UpdatePhase, detail: Option<String>);
    /// The report has changed.
    fn status(&mut self, status: Status);
}

/// What is reported about updates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    pub desired_generation: u64,
    pub previous: Option<ReleaseId>,
    pub update: Option<UpdateReport>,
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub rules: Rules,
    pub trial: TrialRules,
    pub release_bytes_max: u64,
    pub retry_min: Duration,
    pub retry_max: Duration,
}

/// When to call [`Updater::turn`] again if nothing comes in before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Now,
    After(Duration),
    WhenAsked,
}

pub struct Updater {
    store: Store,
    clock: Arc<dyn Clock>,
    source: Box<dyn Source>,
    station: Box<dyn Station>,
    settings: Settings,
    enrolment_root: Vec<u8>,
    state: State,
    /// Decisions to be made, the oldest first. At most one desired state among them, the newest.
    events: VecDeque<Event>,
    watch: Option<Watch>,
    backoff: Backoff,
    /// No work before this time.
    retry_at: Duration,
    refusals: u32,
    /// Why the fetch under way does not get on.
    trouble: Option<String>,
    status: Status,
}

struct Watch {
    slot: Slot,
    trial: Duration,
    since: Duration,
}

impl Updater {
    /// Reads the state and loads what is to run. `Err`: the folder can't be read at all.
    pub fn start(
        store: Store,
        clock: Arc<dyn Clock>,
        source: Box<dyn Source>,
        station: Box<dyn Station>,
        settings: Settings,
        enrolment_root: Vec<u8>,
    ) -> io::Result<Self> {
        let (state, damaged) = store.load_state()?;
        if damaged > 0 {
            tracing::warn!(
                damaged,
                generation = state.generation,
                "copies of the updater's state are damaged"
            );
        }
        let mut updater = Self {
            store,
            clock,
            source,
            station,
            settings,
            enrolment_root,
            state,
            events: VecDeque::from([Event::Booted]),
            watch: None,
            backoff: Backoff::new(settings.retry_min, settings.retry_max),
            retry_at: Duration::ZERO,
            refusals: 0,
            trouble: None,
            status: Status::default(),
        };
        updater.decide();
        if !updater.events.is_empty()
            && let Some(active) = updater.state.active.clone()
        {
            // Nothing can be written, so nothing may be tried; what was committed needs no writing.
            updater.load(active);
        }
        updater.tell(0, 0, None);
        Ok(updater)
    }

    /// What the server wants. Takes effect with the next [`turn`](Self::turn).
    pub fn desired(&mut self, desired: Desired) {
        self.events.retain(|event| !matches!(event, Event::Desired(_)));
        self.events.push_back(Event::Desired(desired));
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Does the next piece of work. `interrupted` is asked during long ones and says that something has come in.
    pub fn turn(&mut self, interrupted: &dyn Fn() -> bool) -> Next {
        let now = self.clock.elapsed();
        if self.retry_at > now && self.events.is_empty() && self.is_fetching() {
            return Next::After(self.retry_at - now);
        }
        if !self.decide() {
            return Next::After(
                self.retry_at.saturating_sub(self.clock.elapsed()).max(self.settings.retry_min),
            );
        }
        if self.is_fetching() && self.retry_at > now {
            return Next::After(self.retry_at - now);
        }
        let next = match self.state.job.clone() {
            None => Next::WhenAsked,
            Some(Job { wanted, stage: Stage::Fetch }) => self.fetch(&wanted.release, interrupted),
            Some(Job { stage: Stage::SelfTest { slot }, .. }) => {
                let folder = self.store.release_folder(&slot.content);
                let tested = self.store.verify(&slot.content);
                let tested = tested.and_then(|_| self.station.self_test(&folder, &slot.release));
                self.events.push_back(match tested {
                    Ok(()) => Event::SelfTestPassed,
                    Err(why) => Event::SelfTestFailed(format!("self-test: {why}")),
                });
                Next::Now
            }
            Some(Job { stage: Stage::Trial { slot, .. }, .. }) => self.look_at_trial(&slot),
        };
        if !self.decide() {
            return Next::After(self.settings.retry_min);
        }
        self.tell_state();
        next
    }

    fn is_fetching(&self) -> bool {
        matches!(&self.state.job, Some(Job { stage: Stage::Fetch, .. }))
    }

    /// Takes all decisions that wait. `false`: one could not be made durable, and waits on.
    fn decide(&mut self) -> bool {
        while let Some(event) = self.events.front().cloned() {
            let fetching = self.state.job.clone().filter(|job| job.stage == Stage::Fetch);
            let (next, effects) = step(self.state.clone(), event, self.settings.rules);
            if next != self.state {
                match self.store.save_state(next) {
                    Ok(saved) => self.state = saved,
                    Err(error) => {
                        tracing::error!(%error, "the updater's state cannot be written; nothing is changed");
                        self.retry_at = self.clock.elapsed() + self.backoff.next(0.5);
                        return false;
                    }
                }
            }
            self.events.pop_front();
            if fetching.map(|job| job.wanted.release)
                != self.state.job.as_ref().map(|j| j.wanted.release.clone())
            {
                self.fresh_start();
            }
            effects.into_iter().for_each(|effect| self.act(effect));
        }
        true
    }

    fn fresh_start(&mut self) {
        self.backoff.reset();
        self.retry_at = Duration::ZERO;
        self.refusals = 0;
        self.trouble = None;
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Load(slot) => self.load(slot),
            Effect::Watch { slot, trial_s } => {
                let trial = Duration::from_secs(u64::from(trial_s));
                self.watch = Some(Watch { slot, trial, since: self.clock.elapsed() });
            }
            Effect::Collect => {
                self.watch = None;
                if let Err(error) = self.store.collect(&self.state.kept(), None) {
                    tracing::warn!(%error, "old releases cannot be removed");
                }
            }
            Effect::Announce { release, phase, detail } => {
                tracing::info!(%release, ?phase, detail, "update");
                self.station.announce(&release, phase, detail);
                self.tell_state();
            }
        }
    }

    fn load(&mut self, slot: Slot) {
        let folder = self.store.release_folder(&slot.content);
        let mut load =
            || self.store.verify(&slot.content).and_then(|_| self.station.load(&folder, &slot.release));
        let mut loaded = load();
        // An error of reading may pass; what is damaged stays damaged.
        for _ in 1..LOADS_TRIED {
            let Err(why) = &loaded else { break };
            tracing::warn!(release = %slot.release, why, "a release does not load; once more");
            loaded = load();
        }
        if let Err(why) = loaded {
            tracing::error!(release = %slot.release, why, "a release does not load");
            self.events.push_back(Event::LoadFailed { slot, why });
        }
    }

    fn fetch(&mut self, release: &ReleaseId, interrupted: &dyn Fn() -> bool) -> Next {
        let kept = self.state.kept();
        let report = std::cell::RefCell::new(&mut self.station);
        let status = status_of(&self.state);
        let last = std::cell::Cell::new((UpdatePhase::Downloading, u64::MAX));
        let progress = |phase, done: u64, total: u64| {
            // A report per percent is enough.
            let percent = (done * 100).checked_div(total).unwrap_or(100);
            if last.replace((phase, percent)) != (phase, percent) {
                report.borrow_mut().status(with_progress(status.clone(), phase, done, total));
            }
        };
        let result = Fetch {
            store: &self.store,
            source: &mut *self.source,
            enrolment_root: &self.enrolment_root,
            now_ms: self.clock.now_ms(),
            release_bytes_max: self.settings.release_bytes_max,
            kept: &kept,
            interrupted,
            progress: &progress,
        }
        .run(release);
        match result {
            Ok(slot) => {
                self.events.push_back(Event::Fetched(slot));
                Next::Now
            }
            Err(FetchError::Interrupted) => Next::Now,
            Err(error) => self.fetch_failed(&error),
        }
    }

    fn fetch_failed(&mut self, error: &FetchError) -> Next {
        if !error.is_transient() {
            self.refusals += 1;
            if self.refusals >= REFUSALS_MAX {
                self.events.push_back(Event::FetchRefused(error.to_string()));
                return Next::Now;
            }
        }
        let wait = self.backoff.next(0.5);
        tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "the release can't be fetched now");
        self.trouble = Some(error.to_string());
        self.retry_at = self.clock.elapsed() + wait;
        Next::After(wait)
    }

    fn look_at_trial(&mut self, slot: &Slot) -> Next {
        let Some(watch) = self.watch.as_ref().filter(|watch| watch.slot == *slot) else {
            self.events.push_back(Event::StartTrial);
            return Next::Now;
        };
        let health = self.station.trial_health();
        let elapsed = self.clock.elapsed().saturating_sub(watch.since);
        match trial::judge(elapsed, watch.trial, health, self.settings.trial) {
            Judgement::Wait => return Next::After(WATCH_EVERY),
            Judgement::Passed => self.events.push_back(Event::TrialPassed),
            Judgement::Failed(why) => self.events.push_back(Event::TrialFailed(why)),
        }
        Next::Now
    }

    fn tell_state(&mut self) {
        self.tell(0, 0, self.trouble.clone());
    }

    fn tell(&mut self, done: u64, total: u64, trouble: Option<String>) {
        let mut status = status_of(&self.state);
        if let Some(update) = status.update.as_mut().filter(|_| self.is_fetching()) {
            (update.bytes_done, update.bytes_total) = (done, total);
            update.detail = trouble.map(|text| text.chars().take(200).collect());
        }
        if status != self.status {
            self.status = status.clone();
            self.station.status(status);
        }
    }
}

fn status_of(state: &State) -> Status {
    Status {
        desired_generation: state.desired_generation,
        previous: state.previous.as_ref().map(|slot| slot.release.clone()),
        update: state.report(),
    }
}

fn with_progress(mut status: Status, phase: UpdatePhase, done: u64, total: u64) -> Status {
    if let Some(update) = &mut status.update {
        (update.phase, update.bytes_done, update.bytes_total) = (phase, done, total);
    }
    status
}
