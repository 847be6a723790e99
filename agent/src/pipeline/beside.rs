//! The thread beside the frame path: drift, selection and telemetry. It sees judged frames as far as it keeps up; what
//! it misses is counted and costs no verdict anything.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use andon_drift::{Alarm, Reference};
use andon_protocol::{
    BootId, Digest,
    release::Manifest,
    state::{Running, UploadPolicy},
    telemetry::{Body, DriftState, Event, Record},
};
use andon_runtime::Judgement;

use super::{Config, Shared, Sink, frames::Ticket, lock, state_file};
use crate::{
    camera::Frame,
    drift_watch::{DriftWatch, features, gray_plane},
    incidents::Incidents,
    selection::{Candidate, Picture, Selector, difference_hash},
};

/// How long the thread waits for a frame before it looks at its clocks.
const PATIENCE: Duration = Duration::from_millis(100);
/// Frames between two saves of the drift state, unless something happened.
const SAVE_FRAMES: u64 = 1000;

/// The release that judges, without its engine.
pub(super) struct Active {
    pub(super) manifest: Manifest,
    pub(super) running: Running,
    pub(super) reference: Option<Arc<Reference>>,
    pub(super) reference_digest: Digest,
}

/// A frame after its verdict.
pub(super) struct Judged {
    pub(super) ticket: Ticket,
    pub(super) frame: Frame,
    pub(super) identical: u32,
    pub(super) active: Arc<Active>,
    /// `None`: a fault.
    pub(super) judgement: Option<Judgement>,
}

/// What others want of this thread; taken at the next turn.
#[derive(Default)]
pub(super) struct Orders {
    pub(super) upload: Option<UploadPolicy>,
    pub(super) acknowledge: bool,
    pub(super) take_sample: bool,
}

pub(super) struct Beside {
    shared: Arc<Shared>,
    sink: Arc<dyn Sink>,
    window: Duration,
    watch: DriftWatch,
    selector: Selector,
    active: Option<Arc<Active>>,
    state_path: Option<PathBuf>,
    /// What was saved before this start, until a release comes that it may belong to.
    saved: Option<state_file::State>,
    frames_since_save: u64,
    take_sample: bool,
    incidents: Incidents,
}

impl Beside {
    pub(super) fn new(config: &Config, shared: Arc<Shared>, sink: Arc<dyn Sink>) -> Self {
        let now = shared.clock.elapsed();
        let mut selector = Selector::new(config.upload.clone(), config.boot.clone(), seed(&config.boot), now);
        let saved = config.drift_state.as_deref().and_then(state_file::read);
        if let Some(saved) = &saved {
            let pause_ms = shared.clock.now_ms().saturating_sub(saved.at_ms).max(0);
            selector.restore(&saved.spent, Duration::from_millis(pause_ms as u64));
        }
        Self {
            shared,
            sink,
            window: config.window,
            watch: DriftWatch::new(config.drift.clone()),
            selector,
            active: None,
            state_path: config.drift_state.clone(),
            saved,
            frames_since_save: 0,
            take_sample: false,
            incidents: config.incidents.clone(),
        }
    }

    /// Until the frame thread has ended and its last frame is seen.
    pub(super) fn run(mut self, frames: &Receiver<Judged>) {
        loop {
            let is_over = match frames.recv_timeout(PATIENCE) {
                Ok(judged) => {
                    self.frame(&judged);
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            self.obey();
            for what in self.incidents.take() {
                // Telemetry has no longer texts.
                self.record(Body::Event(Event::Fault { what: what.chars().take(250).collect() }));
            }
            self.collect_samples();
            self.tell_windows(is_over);
            if is_over {
                self.save();
                return;
            }
        }
    }

    fn frame(&mut self, judged: &Judged) {
        if self.active.as_ref().is_none_or(|active| !Arc::ptr_eq(active, &judged.active)) {
            self.switch(&judged.active);
        }
        let before = self.watch.state();
        let plane = gray_plane(&judged.frame.image, &judged.active.manifest.input);
        let features = plane.as_ref().zip(judged.judgement.as_ref()).and_then(|(p, j)| features(p, j));
        let (state, alarm, cleared) = self.watch.push(features.as_ref(), judged.identical);
        let raised = alarm.is_some();
        if cleared {
            self.record(Body::Event(Event::DriftCleared));
        }
        if let Some(alarm) = alarm {
            self.tell(alarm, judged);
        }
        {
            let mut board = self.shared.board();
            board.drift = state;
            board.charts = self.watch.charts();
        }
        if let Some((judgement, plane)) = judged.judgement.as_ref().zip(plane) {
            let (ranks, projection) = self.watch.newest();
            let candidate = Candidate {
                number: judged.ticket.number,
                captured_ms: judged.ticket.captured_ms,
                source: judged.ticket.source.clone(),
                picture: Picture::of(&judged.frame),
                release: judged.active.running.release.clone(),
                class: judgement.class,
                scores: judgement.scores.clone(),
                drift: state,
                projection,
                ranks,
                dhash: difference_hash(plane.width, plane.height, &plane.pixels),
            };
            let turned = state != before && matches!(state, DriftState::Suspect | DriftState::Alarm);
            let event = turned || std::mem::take(&mut self.take_sample);
            self.selector.offer(&candidate, event);
        }
        self.frames_since_save += 1;
        if raised || cleared || state != before || self.frames_since_save >= SAVE_FRAMES {
            self.save();
        }
    }

    fn switch(&mut self, active: &Arc<Active>) {
        self.watch.switch(&active.manifest, active.reference.as_ref(), active.reference_digest);
        if let Some(saved) = self.saved.take()
            && let Some((digest, state)) = &saved.detector
            && self.watch.restore(digest, state)
        {
            tracing::info!(release = %active.running.release, state = ?self.watch.state(), "drift is watched on from where it was");
        }
        self.selector.new_release();
        self.active = Some(Arc::clone(active));
    }

    fn tell(&mut self, alarm: Alarm, judged: &Judged) {
        let Alarm { cause, charts, frames } = alarm;
        tracing::warn!(?cause, ?charts, frames, frame = judged.ticket.number, "drift alarm");
        self.record(Body::Event(Event::DriftAlarm { cause, charts, frames, frame: judged.ticket.number }));
    }

    fn record(&self, body: Body) {
        self.sink.record(Record { at_ms: self.shared.clock.now_ms(), body });
    }

    fn obey(&mut self) {
        let Orders { upload, acknowledge, take_sample } = std::mem::take(&mut *lock(&self.shared.orders));
        if let Some(policy) = upload {
            self.selector.set_policy(&policy);
        }
        if acknowledge {
            self.watch.acknowledge();
        }
        self.take_sample |= take_sample;
    }

    fn collect_samples(&mut self) {
        for (manifest, content) in self.selector.collect(self.shared.clock.elapsed()) {
            self.sink.sample(manifest, content);
        }
    }

    fn tell_windows(&mut self, is_over: bool) {
        let now = self.shared.clock.elapsed();
        let mut board = self.shared.board();
        let mut windows = board.take_finished();
        if is_over || board.window_age(now) >= self.window {
            windows.extend(board.close_window(now));
        }
        drop(board);
        for window in windows {
            self.record(Body::Window(window));
        }
    }

    fn save(&mut self) {
        self.frames_since_save = 0;
        let Some(path) = &self.state_path else { return };
        let state = state_file::State {
            at_ms: self.shared.clock.now_ms(),
            detector: self.watch.save(),
            spent: self.selector.ledger(self.shared.clock.elapsed()),
        };
        if let Err(error) = state_file::write(path, &state) {
            tracing::warn!(%error, "the drift state cannot be saved");
        }
    }
}

/// Another boot chooses other frames; the same boot could be replayed.
fn seed(boot: &BootId) -> u64 {
    let digest = Digest::of(boot.as_str().as_bytes());
    digest.as_bytes()[..8].iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}
