//! The engine in a thread of its own, so that a verdict can be given without it. One image at a time. An engine that
//! misses its deadline keeps its thread: later frames wait for it until *their* deadline. A new release brings a new
//! thread, and the old one ends after what it is at.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use andon_runtime::{Image, Judgement};

use super::Judge;
use crate::{clock::Clock, decision::Reason};

pub(super) struct Engine {
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
    thread: JoinHandle<()>,
    /// The job that the thread has not answered yet.
    at_work_on: Option<u64>,
    /// What it runs on now, if that was not asked for yet.
    changed: Option<String>,
}

struct Job {
    number: u64,
    image: Arc<Image>,
}

struct Done {
    number: u64,
    result: Result<Judgement, Failure>,
    changed: Option<String>,
}

/// Why there is no judgement, with what is known about it for the log.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) detail: String,
}

impl Engine {
    pub(super) fn start(judge: Box<dyn Judge>) -> std::io::Result<Self> {
        // Neither channel ever holds more than one: a job is sent only when the one before is answered.
        let (jobs, inbox) = sync_channel::<Job>(1);
        let (outbox, done) = sync_channel::<Done>(1);
        // The judge is gone before `outbox` is, which tells it.
        let work = move || work(judge, &inbox, &outbox);
        let thread = thread::Builder::new().name("engine".into()).spawn(work)?;
        Ok(Self { jobs, done, thread, at_work_on: None, changed: None })
    }

    /// Lets the thread end after what it is at.
    pub(super) fn retire(self) -> Retired {
        Retired { done: self.done, thread: self.thread }
    }

    /// What it runs on from now on, if that has changed since the last call.
    pub(super) fn take_change(&mut self) -> Option<String> {
        self.changed.take()
    }

    /// Judges an image, giving up at `deadline` (of `clock.elapsed()`).
    pub(super) fn judge(
        &mut self,
        number: u64,
        image: &Arc<Image>,
        deadline: Duration,
        clock: &dyn Clock,
    ) -> Result<Judgement, Failure> {
        if self.at_work_on.is_some() {
            self.wait(deadline, clock).map_err(|f| match f.reason {
                Reason::Deadline => Failure { reason: Reason::EngineBusy, ..f },
                _ => f,
            })?;
        }
        let left = deadline.saturating_sub(clock.elapsed());
        if left.is_zero() {
            return Err(Failure {
                reason: Reason::Deadline,
                detail: "the frame waited too long for its turn".into(),
            });
        }
        self.jobs.send(Job { number, image: Arc::clone(image) }).map_err(|_| stopped())?;
        self.at_work_on = Some(number);
        let done = self.wait(deadline, clock)?;
        if done.number != number {
            return Err(Failure {
                reason: Reason::EngineFailed,
                detail: "an answer to another frame".into(),
            });
        }
        let judgement = done.result?;
        if clock.elapsed() > deadline {
            return Err(Failure { reason: Reason::Deadline, detail: "answered after the deadline".into() });
        }
        Ok(judgement)
    }

    fn wait(&mut self, deadline: Duration, clock: &dyn Clock) -> Result<Done, Failure> {
        let left = deadline.saturating_sub(clock.elapsed());
        match self.done.recv_timeout(left) {
            Ok(mut done) => {
                self.at_work_on = None;
                self.changed = done.changed.take().or(self.changed.take());
                Ok(done)
            }
            Err(RecvTimeoutError::Timeout) => {
                let detail =
                    format!("still at frame {} at the deadline", self.at_work_on.unwrap_or_default());
                Err(Failure { reason: Reason::Deadline, detail })
            }
            Err(RecvTimeoutError::Disconnected) => Err(stopped()),
        }
    }
}

/// An engine that gets no more images.
pub(super) struct Retired {
    done: Receiver<Done>,
    thread: JoinHandle<()>,
}

impl Retired {
    pub(super) fn is_gone(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it is gone, for so long at most: a process that ends while a GPU's driver is at work in one of its
    /// threads crashes.
    pub(super) fn wait(self, patience: Duration) {
        loop {
            match self.done.recv_timeout(patience) {
                // The answer to the last image, which nobody waits for.
                Ok(_) => {}
                // It panics for nobody to see.
                Err(RecvTimeoutError::Disconnected) => return drop(self.thread.join()),
                Err(RecvTimeoutError::Timeout) => return,
            }
        }
    }
}

fn stopped() -> Failure {
    Failure { reason: Reason::EngineFailed, detail: "the engine's thread has ended".into() }
}

fn work(mut judge: Box<dyn Judge>, inbox: &Receiver<Job>, outbox: &SyncSender<Done>) {
    while let Ok(Job { number, image }) = inbox.recv() {
        // A panic is one frame's fault. What it left behind inside the engine shows in the next frames, which a
        // trial counts; a verdict from it is checked like any other.
        let outcome = catch_unwind(AssertUnwindSafe(|| judge.judge(&image)));
        let result = match outcome {
            Ok(Ok(judgement)) => Ok(judgement),
            Ok(Err(error)) => Err(Failure { reason: Reason::EngineFailed, detail: error.to_string() }),
            Err(panic) => Err(Failure { reason: Reason::EnginePanicked, detail: panic_text(&*panic) }),
        };
        let changed = catch_unwind(AssertUnwindSafe(|| judge.take_engine())).unwrap_or_default();
        if outbox.send(Done { number, result, changed }).is_err() {
            return;
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    let text: String = text.unwrap_or_default().chars().take(200).collect();
    format!("panic: {text}")
}
