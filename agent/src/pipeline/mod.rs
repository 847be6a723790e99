//! The frame path: camera thread → mailbox of two frames, the newest wins → frame thread → verdict. Engine, drift,
//! selection and telemetry run in threads beside it and cannot delay it.
//!
//! Invariants:
//! - every frame that the camera gives gets exactly one verdict line: pass, reject or fault. Dropped, late and failed
//!   frames are faults, which a line reads as rejects;
//! - a verdict never waits for more than the deadline, whatever the engine does;
//! - a release is swapped between two frames, never within one;
//! - all queues are bounded and what they drop is counted.
//!
//! It knows no network and no disk but the verdict file and the drift state; what should leave the device goes to a
//! [`Sink`].

mod beside;
mod engine;
#[cfg(test)]
pub(crate) mod fake;
mod frames;
mod health;
mod mailbox;
mod release;
mod state_file;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::sync_channel,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use andon_drift::Reference;
use andon_protocol::{
    BootId, Digest,
    release::Manifest,
    sample::SampleManifest,
    state::{Running, UploadPolicy},
    telemetry::Record,
};
use andon_runtime::{Image, Judgement};

use self::mailbox::Mailbox;
use crate::{camera::Camera, clock::Clock, drift_watch, incidents::Incidents, output::Output, selection};

pub use health::{Counters, Health};
pub use release::{LoadReleaseError, load_release};

/// Frames between camera and verdict.
const FRAMES_WAITING_MAX: usize = 2;
/// Judged frames between verdict and drift.
const BESIDE_WAITING_MAX: usize = 4;

/// Where records and samples go. Calls come from the thread beside the frame path, so they may take their time, but
/// must not block for ever. Nothing is reported back: a sink that has no room counts what it drops and says so.
pub trait Sink: Send + Sync {
    fn record(&self, record: Record);
    /// `content` is the file that `manifest.digest` is the digest of.
    fn sample(&self, manifest: SampleManifest, content: Vec<u8>);
}

/// What judges an image: the runtime's classifier, or a test's fake.
pub trait Judge: Send {
    fn judge(&mut self, image: &Image) -> Result<Judgement, JudgeError>;

    /// What it runs on from now on, as [`Running::engine`] says it, if that has changed for good.
    fn take_engine(&mut self) -> Option<String> {
        None
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct JudgeError(pub String);

/// A verified release, loaded and ready to judge. Made by [`load_release`].
pub struct LoadedRelease {
    pub manifest: Manifest,
    /// What to report: release, digest of the model as loaded, engine.
    pub running: Running,
    pub reference: Option<Reference>,
    /// Digest of `reference.cbor`; saved drift state belongs to one reference.
    pub reference_digest: Digest,
    pub judge: Box<dyn Judge>,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub boot: BootId,
    /// Capture to verdict; after that the verdict is a fault.
    pub deadline: Duration,
    /// Equal frames in a row from which on the verdict is a fault; 0: never.
    pub frozen_frames: u32,
    /// Do not ask the camera for frames before there is a release. A camera on a line is never asked to wait.
    pub wait_for_release: bool,
    /// Length of a telemetry window.
    pub window: Duration,
    pub drift: drift_watch::Config,
    /// Where the detector's state outlives a restart; `None`: nowhere.
    pub drift_state: Option<PathBuf>,
    pub upload: selection::Config,
    /// What others tell, for telemetry.
    pub incidents: Incidents,
}

/// A running pipeline. Dropping it stops it.
pub struct Pipeline {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads and the handle have in common. Every lock is held for a few assignments only.
struct Shared {
    stop: AtomicBool,
    clock: Arc<dyn Clock>,
    /// The release to swap to at the next frame boundary.
    slot: Mutex<Option<LoadedRelease>>,
    health: Mutex<health::Board>,
    orders: Mutex<beside::Orders>,
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn board(&self) -> MutexGuard<'_, health::Board> {
        lock(&self.health)
    }
}

impl Pipeline {
    /// Starts the threads. Without a release frames are faults, or are waited with ([`Config::wait_for_release`]).
    pub fn start(
        config: Config,
        camera: Box<dyn Camera>,
        output: Box<dyn Output>,
        sink: Arc<dyn Sink>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            slot: Mutex::new(None),
            health: Mutex::new(health::Board::new(clock.elapsed())),
            orders: Mutex::new(beside::Orders::default()),
            clock,
        });
        let mailbox = Arc::new(Mailbox::new(FRAMES_WAITING_MAX));
        let (to_beside, from_frames) = sync_channel(BESIDE_WAITING_MAX);
        let mut pipeline = Self { shared: Arc::clone(&shared), threads: Vec::new() };

        let watch = beside::Beside::new(&config, Arc::clone(&shared), sink);
        pipeline.spawn("beside", move || watch.run(&from_frames))?;
        let frames =
            frames::FrameLoop::new(&config, Arc::clone(&shared), Arc::clone(&mailbox), output, to_beside);
        pipeline.spawn("frames", move || frames.run())?;
        pipeline.spawn("camera", move || frames::run_camera(&config, &shared, &mailbox, camera))?;
        Ok(pipeline)
    }

    /// A thread that ends, or panics, before it was told to stop takes [`Health::alive`] with it.
    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        struct Mourner(Arc<Shared>);
        impl Drop for Mourner {
            fn drop(&mut self) {
                if !self.0.stopping() {
                    self.0.board().alive = false;
                }
            }
        }
        let mourner = Mourner(Arc::clone(&self.shared));
        let body = move || {
            let _mourner = mourner;
            body();
        };
        self.threads.push(thread::Builder::new().name(name.into()).spawn(body)?);
        Ok(())
    }

    /// Frames are judged with this release from the next one on. A release that waits for its turn is replaced.
    pub fn install(&self, release: LoadedRelease) {
        *lock(&self.shared.slot) = Some(release);
    }

    pub fn health(&self) -> Health {
        self.shared.board().snapshot(self.shared.clock.elapsed())
    }

    /// What the server wants of uploads; in force from the next period on.
    pub fn set_upload(&self, policy: UploadPolicy) {
        lock(&self.shared.orders).upload = Some(policy);
    }

    /// A person has seen the drift alarm: it ends, and its cause may alarm again.
    pub fn acknowledge_drift(&self) {
        lock(&self.shared.orders).acknowledge = true;
    }

    /// Takes the next frame as a sample, whatever it looks like.
    pub fn take_sample(&self) {
        lock(&self.shared.orders).take_sample = true;
    }

    /// Judges what the camera has given, writes the last window and the drift state, and ends the threads. An engine
    /// that hangs is left behind.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a thread of the frame path had panicked");
            }
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.join();
    }
}

/// A lock that a panic elsewhere cannot take away: what is under it is counts and settings, sound at any time.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
