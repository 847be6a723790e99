//! The two threads of the frame path: the camera's, which numbers and stamps, and the frames', which gets a verdict
//! out for every number.

use std::{
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use super::{
    Config, Shared,
    beside::{Active, Judged},
    engine::{Engine, Failure, Retired},
    health::Entry,
    lock,
    mailbox::{Mail, Mailbox},
};
use andon_runtime::Judgement;

use crate::{
    camera::{Camera, CameraError, Frame, frozen::FrozenCheck},
    decision::{Reason, Verdict, decide},
    output::{Output, VerdictLine},
};

/// How long a thread waits before it looks whether it has to stop.
const PATIENCE: Duration = Duration::from_millis(50);
/// Between two tries of a failing camera.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// For all engines to end, at a stop.
const ENGINE_PATIENCE: Duration = Duration::from_secs(3);

/// What the camera thread puts into the mailbox.
pub(super) struct Captured {
    ticket: Ticket,
    what: Result<Frame, CameraError>,
    /// Equal pictures in a row, this one included.
    identical: u32,
}

/// What a frame is known by when nothing else of it is left.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) number: u64,
    pub(super) captured_ms: i64,
    pub(super) captured_at: Duration,
    pub(super) source: String,
}

pub(super) type Frames = Mailbox<Captured, Ticket>;

pub(super) fn run_camera(config: &Config, shared: &Shared, mailbox: &Frames, mut camera: Box<dyn Camera>) {
    // Closed however this thread ends, so that the frame thread ends with it.
    struct Closer<'a>(&'a Frames);
    impl Drop for Closer<'_> {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let _closer = Closer(mailbox);
    let mut frozen = FrozenCheck::default();
    let mut number = 0;
    let mut retry = RETRY_MIN;
    let mut may_start = !config.wait_for_release;
    while !shared.stopping() {
        if !may_start {
            may_start = shared.board().has_release() || lock(&shared.slot).is_some();
            if !may_start {
                thread::park_timeout(PATIENCE);
            }
            continue;
        }
        let what = match camera.next_frame(PATIENCE) {
            Ok(None) => continue,
            Ok(Some(frame)) => Ok(frame),
            Err(error) => Err(error),
        };
        number += 1;
        let failed = what.is_err();
        let ticket = Ticket {
            number,
            captured_ms: shared.clock.now_ms(),
            captured_at: shared.clock.elapsed(),
            source: what.as_ref().map_or_else(|_| String::new(), |f| f.source.clone()),
        };
        let identical = what.as_ref().map_or(0, |f| frozen.push(&f.image));
        mailbox.put(Captured { ticket, what, identical }, |old| old.ticket.clone());
        if failed {
            thread::park_timeout(retry);
            retry = (retry * 2).min(RETRY_MAX);
        } else {
            retry = RETRY_MIN;
        }
    }
}

pub(super) struct FrameLoop {
    shared: Arc<Shared>,
    mailbox: Arc<Frames>,
    output: Box<dyn Output>,
    beside: SyncSender<Judged>,
    deadline: Duration,
    frozen_frames: u32,
    /// The release that judges, and its engine.
    active: Option<(Arc<Active>, Engine)>,
    /// Engines of releases before it that are not gone yet.
    retired: Vec<Retired>,
    /// The newest complaint logged, so that a fault that lasts is logged once.
    complaint: Option<Reason>,
    output_fails: bool,
}

impl FrameLoop {
    pub(super) fn new(
        config: &Config,
        shared: Arc<Shared>,
        mailbox: Arc<Frames>,
        output: Box<dyn Output>,
        beside: SyncSender<Judged>,
    ) -> Self {
        let &Config { deadline, frozen_frames, .. } = config;
        Self {
            shared,
            mailbox,
            output,
            beside,
            deadline,
            frozen_frames,
            active: None,
            retired: vec![],
            complaint: None,
            output_fails: false,
        }
    }

    /// Until the camera thread has ended and its last frame is judged.
    pub(super) fn run(mut self) {
        loop {
            let (mail, displaced) = self.mailbox.take(PATIENCE);
            for ticket in &displaced.notes {
                self.conclude(ticket, false, Err(Reason::Dropped));
            }
            if displaced.more > 0 {
                self.shared.board().count_dropped(displaced.more);
            }
            self.swap();
            match mail {
                Mail::Item(captured) => self.frame(captured),
                Mail::Nothing => {}
                Mail::Closed => break,
            }
        }
        let last = self.active.map(|(_, engine)| engine.retire());
        let clock = &self.shared.clock;
        let end = clock.elapsed() + ENGINE_PATIENCE;
        for engine in self.retired.into_iter().chain(last) {
            engine.wait(end.saturating_sub(clock.elapsed()));
        }
    }

    /// Between two frames: takes the release that waits, if one does.
    fn swap(&mut self) {
        let Some(release) = lock(&self.shared.slot).take() else { return };
        let labels = release.manifest.labels.len();
        let engine = match Engine::start(release.judge) {
            Ok(engine) => engine,
            Err(error) => {
                tracing::error!(release = %release.running.release, %error, "no thread for the engine; the release is not used");
                return;
            }
        };
        tracing::info!(release = %release.running.release, engine = release.running.engine, "frames are judged with this release");
        self.shared.board().install(release.running.clone(), labels, self.shared.clock.elapsed());
        let active = Active {
            manifest: release.manifest,
            running: release.running,
            reference: release.reference.map(Arc::new),
            reference_digest: release.reference_digest,
        };
        // Not waited for: the next frame is due.
        self.retired.retain(|engine| !engine.is_gone());
        let before = self.active.replace((Arc::new(active), engine));
        self.retired.extend(before.map(|(_, engine)| engine.retire()));
        self.complaint = None;
    }

    fn frame(&mut self, captured: Captured) {
        let Captured { ticket, what, identical } = captured;
        let frame = match what {
            Ok(frame) => frame,
            Err(error) => {
                self.complain(Reason::CameraFailed, &error.to_string());
                return self.conclude(&ticket, false, Err(Reason::CameraFailed));
            }
        };
        let judged = self.judge(&ticket, &frame, identical);
        self.conclude(&ticket, frame.degraded, judged.as_ref().map_err(|reason| *reason));
        let Some((active, engine)) = &mut self.active else { return };
        if let Some(changed) = engine.take_change() {
            tracing::warn!("frames are judged on {changed}");
            self.shared.board().run_on(changed);
        }
        // A fault still goes to the watch: gates look at pictures, not at verdicts.
        let judgement = judged.ok();
        let judged = Judged { ticket, frame, identical, active: Arc::clone(active), judgement };
        match self.beside.try_send(judged) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.shared.board().unwatched += 1,
        }
    }

    fn judge(&mut self, ticket: &Ticket, frame: &Frame, identical: u32) -> Result<Judgement, Reason> {
        let Some((active, engine)) = &mut self.active else { return Err(Reason::NoRelease) };
        if self.frozen_frames > 0 && identical >= self.frozen_frames {
            self.complain(Reason::CameraFrozen, "the camera gives the same picture again and again");
            return Err(Reason::CameraFrozen);
        }
        let deadline = ticket.captured_at.saturating_add(self.deadline);
        let result =
            engine.judge(ticket.number, &frame.image, deadline, &*self.shared.clock).and_then(|judgement| {
                let bad = |reason| Failure { reason, detail: format!("scores {:.3?}", judgement.scores) };
                decide(&active.manifest.decision, active.manifest.labels.len(), &judgement.scores)
                    .map_err(bad)?;
                Ok(judgement)
            });
        match result {
            Ok(judgement) => {
                self.complaint = None;
                Ok(judgement)
            }
            Err(Failure { reason, detail }) => {
                self.complain(reason, &detail);
                Err(reason)
            }
        }
    }

    /// The one place where a frame gets its verdict.
    fn conclude(&mut self, ticket: &Ticket, degraded: bool, judged: Result<&Judgement, Reason>) {
        let active = self.active.as_ref().map(|(active, _)| &**active);
        let decided = judged.and_then(|judgement| {
            let Active { manifest, .. } = active.ok_or(Reason::NoRelease)?;
            decide(&manifest.decision, manifest.labels.len(), &judgement.scores)
        });
        let latency = self.shared.clock.elapsed().saturating_sub(ticket.captured_at);
        let latency_us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        let (verdict, reason) = match decided {
            Ok(decided) => (decided.verdict, None),
            Err(reason) => (Verdict::Fault, Some(reason)),
        };
        let class = decided.ok().map(|d| d.class);
        let scores = judged.map_or_else(|_| Vec::new(), |j| j.scores.clone());
        let line = VerdictLine {
            frame: ticket.number,
            at_ms: ticket.captured_ms,
            source: ticket.source.clone(),
            release: active.map(|a| a.running.release.clone()),
            class: class.and_then(|c| active?.manifest.labels.get(c).cloned()),
            verdict,
            reason,
            latency_us,
            drift: self.shared.board().drift,
            degraded,
            scores,
        };
        let written = self.output.write(&line);
        if let Err(error) = &written
            && !self.output_fails
        {
            tracing::error!(%error, "verdicts cannot be written");
        }
        self.output_fails = written.is_err();
        let confidence = class.and_then(|c| line.scores.get(c).copied()).unwrap_or(0.0);
        let mut board = self.shared.board();
        board.output_failures += u64::from(written.is_err());
        board.count(&Entry { verdict, reason, class, confidence, latency_us }, self.shared.clock.elapsed());
    }

    fn complain(&mut self, reason: Reason, detail: &str) {
        if self.complaint != Some(reason) {
            tracing::warn!(?reason, detail, "frames get the fail-safe verdict");
            self.complaint = Some(reason);
        }
    }
}
