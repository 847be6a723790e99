//! The agent, assembled. Threads: the frame path's, the spool's writer, the uplink's (its own small runtime, since it
//! reads from disk), the updater's, and a runtime for HTTPS, the local listener and signals.
//!
//! Invariants: one agent per folder; the service manager hears "ready" when the release that is to run is loaded,
//! and the watchdog is pinged only while verdicts come or there is nothing to judge with; at an orderly stop the
//! frames taken are judged and what they left is in the spool. Nothing relies on an orderly stop.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use andon_protocol::{
    BootId,
    state::{Desired, Reported},
    telemetry::{Body, Event, Record},
};
use andon_runtime::EngineChoice;
use rustls::ClientConfig;
use sd_notify::NotifyState;
use tokio::{
    runtime::{Handle, Runtime},
    sync::{Notify, watch},
};

use crate::{
    camera::{self, CameraError},
    clock::{Clock, SystemClock},
    config::{Config, seconds},
    engines::{Engines, notes::Notes},
    files::{Disk, SystemDisk},
    identity::{Identity, IdentityError},
    incidents::Incidents,
    line::{Line, Progress, SpoolSink, progress},
    local::{self, Local},
    output::{Output, VerdictLine, verdicts::VerdictFile},
    pipeline::{self, Pipeline, lock},
    spool::{Budget, Spool, SpoolError, writer, writer::Item},
    station::DeviceStation,
    update::{
        Next, Settings as UpdateSettings, Status, Updater,
        source::{Https, SourceError},
        state::Rules,
        store::Store,
        trial::TrialRules,
    },
    uplink::{self, Stats, Uplink},
};

/// How often state is looked at to be reported, and the watchdog pinged.
const TICK: Duration = Duration::from_millis(500);
/// The spool's figures alone are reported this often.
const SPOOL_REPORT_EVERY: Duration = Duration::from_secs(10);
/// No verdict for so long, or for five frames of a slower camera, is a stall.
const SILENCE_MIN: Duration = Duration::from_secs(10);
/// For the uplink's farewell and an update step under way, at a stop.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("identity: {0}")]
    Tls(String),
    #[error("{} is used by another agent; end it, or give this one a data_dir of its own", .0.display())]
    InUse(PathBuf),
    #[error(transparent)]
    Camera(#[from] CameraError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The service manager starts a fresh process; a trial loses a try.
    #[error("a thread of the frame path has ended; the agent must be started again")]
    FramePathEnded,
}

/// Runs until SIGTERM or SIGINT, or until the frame path is beyond repair.
pub fn run(config: Config, engine: EngineChoice) -> Result<(), RunError> {
    let disk: Arc<dyn Disk> = Arc::new(SystemDisk);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let identity = Identity::load(disk.as_ref(), &config.data_dir)?;
    let tls = identity.tls().map_err(RunError::Tls)?;
    let _lock = lock_folder(&config.data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let agent = Agent::start(config, engine, disk, clock, identity, tls, &runtime)?;
    let ended = runtime.block_on(agent.watch());
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    agent.stop();
    runtime.shutdown_timeout(Duration::from_millis(200));
    ended
}

/// Held while the file is open.
fn lock_folder(data_dir: &Path) -> Result<File, RunError> {
    let path = data_dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| RunError::InUse(data_dir.to_owned()))?;
    Ok(file)
}

struct Agent {
    line: Line,
    spool: Arc<Spool>,
    writer: writer::Writer,
    inbox: Arc<Inbox>,
    stop: watch::Sender<bool>,
    ended: Vec<Ended>,
    reporter: Reporter,
    silence_max: Duration,
}

impl Agent {
    fn start(
        config: Config,
        engine: EngineChoice,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        identity: Identity,
        tls: Arc<ClientConfig>,
        runtime: &Runtime,
    ) -> Result<Self, RunError> {
        let boot = BootId::from_random(rand::random());
        tracing::info!(device = %identity.device(), %boot, version = env!("CARGO_PKG_VERSION"), "agent starts");
        let wake = Arc::new(Notify::new());
        let budget = Budget { bytes_max: config.spool.bytes_max, files_max: config.spool.files_max };
        let spool_folder = config.data_dir.join("spool");
        let (spool, recovery) =
            Spool::open(&spool_folder, boot.clone(), budget, disk.clone(), clock.clone())?;
        tracing::info!(?recovery, report = ?spool.report(), "spool is open");
        let spool = Arc::new(spool);
        let (intake, writer) = writer::spawn(spool.clone(), {
            let wake = wake.clone();
            move || wake.notify_one()
        })?;
        let started = Event::AgentStarted { version: env!("CARGO_PKG_VERSION").into() };
        intake.offer(Item::Record(Record { at_ms: clock.now_ms(), body: Body::Event(started) }));

        let silence_max = silence_max(&config.camera);
        let incidents = Incidents::default();
        let line = start_line(&config, &boot, &clock, SpoolSink(intake.clone()), incidents.clone())?;
        let stats = Arc::new(Stats::default());
        let (stop, stopped) = watch::channel(false);
        let (status, status_seen) = watch::channel(Status::default());
        let (reported, reported_seen) = watch::channel(None);
        let inbox = Arc::new(Inbox::default());

        let local = Local {
            device: identity.device().clone(),
            line: line.clone(),
            spool: spool.clone(),
            uplink: stats.clone(),
            silence_max,
        };
        let address = runtime.block_on(local::start(config.local.listen, &config.data_dir, local))?;
        tracing::info!(%address, "health and metrics");

        let notes = Notes::new(disk.clone(), &config.data_dir);
        let station = DeviceStation {
            line: line.clone(),
            engines: Arc::new(Engines::new(engine, notes, clock.clone(), deadline(&config), incidents)),
            clock: clock.clone(),
            intake,
            status,
            tested: None,
            installs: 0,
        };
        let updater = start_updater(&config, &disk, &clock, &identity, &tls, runtime.handle(), station)?;
        let uplink = Uplink {
            identity,
            tls,
            boot: boot.clone(),
            clock: clock.clone(),
            spool: spool.clone(),
            reported: reported_seen,
            desired: Box::new({
                let (inbox, line) = (inbox.clone(), line.clone());
                move |desired| {
                    line.set_upload(desired.upload.clone());
                    inbox.put(desired);
                }
            }),
            wake,
            stop: stopped,
            settings: uplink::Settings {
                resend: seconds(config.uplink.resend_s),
                backoff_min: seconds(config.uplink.backoff_min_s),
                backoff_max: seconds(config.uplink.backoff_max_s),
                keep_alive: Duration::from_secs(u64::from(config.uplink.keep_alive_s)),
            },
            stats,
        };
        let reporter =
            Reporter { line: line.clone(), spool: spool.clone(), clock, boot, status: status_seen, reported };
        reporter.report(&mut ReportMemory::default());
        let ended = vec![
            spawn("uplink", move || {
                match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime.block_on(uplink.run()),
                    Err(error) => tracing::error!(%error, "no runtime for the uplink"),
                }
            })?,
            spawn("updater", {
                let inbox = inbox.clone();
                move || run_updater(updater, &inbox)
            })?,
        ];
        Ok(Self { line, spool, writer, inbox, stop, ended, reporter, silence_max })
    }

    /// Reports, pings the watchdog, and waits for a reason to end.
    async fn watch(&self) -> Result<(), RunError> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut tick = tokio::time::interval(TICK);
        let mut memory = ReportMemory::default();
        // Not under a service manager: nobody listens, which is no error.
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
            let health = self.line.health();
            if progress(health.as_ref(), self.silence_max) != Progress::Stalled {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            }
            self.reporter.report(&mut memory);
            if health.is_none_or(|health| !health.alive) {
                return Err(RunError::FramePathEnded);
            }
        }
    }

    /// First what makes data, then what stores it, then what sends it.
    fn stop(self) {
        tracing::info!("agent stops");
        self.inbox.stop();
        self.line.stop();
        self.writer.stop();
        self.stop.send_replace(true);
        for ended in &self.ended {
            ended.wait(STOP_PATIENCE);
        }
        if let Err(error) = self.spool.flush() {
            tracing::warn!(%error, "the spool's index is rebuilt at the next start");
        }
    }
}

fn start_line(
    config: &Config,
    boot: &BootId,
    clock: &Arc<dyn Clock>,
    sink: SpoolSink,
    incidents: Incidents,
) -> Result<Line, RunError> {
    let camera = camera::open(&config.camera, clock.clone())?;
    let output: Box<dyn Output> = match &config.output {
        Some(file) => Box::new(VerdictFile::open(file)?),
        None => Box::new(NoOutput),
    };
    let settings = pipeline::Config {
        boot: boot.clone(),
        deadline: deadline(config),
        frozen_frames: config.decision.frozen_frames,
        // A replay can wait for the first release; a camera on a line is never asked to.
        wait_for_release: matches!(config.camera, camera::Config::Replay(_)),
        window: Duration::from_secs(u64::from(config.telemetry.window_s)),
        drift: config.drift.clone(),
        drift_state: Some(config.data_dir.join("drift.state")),
        upload: config.upload.clone(),
        incidents,
    };
    Ok(Line::new(Pipeline::start(settings, camera, output, Arc::new(sink), clock.clone())?))
}

fn start_updater(
    config: &Config,
    disk: &Arc<dyn Disk>,
    clock: &Arc<dyn Clock>,
    identity: &Identity,
    tls: &Arc<ClientConfig>,
    runtime: &Handle,
    station: DeviceStation,
) -> Result<Updater, RunError> {
    let source = Https::new(&identity.enrolment.updates_url, tls.clone(), runtime.clone())?;
    let settings = UpdateSettings {
        rules: Rules { tries: config.update.tries },
        trial: TrialRules {
            frames_min: config.update.trial_frames_min,
            fault_share_max: config.update.trial_fault_share_max,
        },
        release_bytes_max: config.update.release_bytes_max,
        retry_min: seconds(config.update.retry_min_s),
        retry_max: seconds(config.update.retry_max_s),
    };
    let store = Store::open(disk.clone(), &config.data_dir.join("updates"))?;
    let root = identity.enrolment.tuf_root.clone().into_bytes();
    Ok(Updater::start(store, clock.clone(), Box::new(source), Box::new(station), settings, root)?)
}

fn run_updater(mut updater: Updater, inbox: &Inbox) {
    let mut next = Next::Now;
    while let Some(desired) = inbox.take(next) {
        if let Some(desired) = desired {
            updater.desired(desired);
        }
        next = updater.turn(&|| inbox.has_mail());
    }
}

fn deadline(config: &Config) -> Duration {
    Duration::from_millis(u64::from(config.decision.deadline_ms))
}

fn silence_max(camera: &camera::Config) -> Duration {
    let camera::Config::Replay(replay) = camera;
    SILENCE_MIN.max(seconds(5.0 / replay.frames_per_second))
}

/// Verdicts that nobody asked for.
struct NoOutput;

impl Output for NoOutput {
    fn write(&mut self, _: &VerdictLine) -> io::Result<()> {
        Ok(())
    }
}

/// What waits for the updater: the newest desired state, and whether to end.
#[derive(Default)]
struct Inbox {
    mail: Mutex<Option<Desired>>,
    stop: AtomicBool,
    changed: Condvar,
}

impl Inbox {
    fn put(&self, desired: Desired) {
        *lock(&self.mail) = Some(desired);
        self.changed.notify_one();
    }

    fn stop(&self) {
        // Under the lock, so that a waiter can't miss it.
        let _mail = lock(&self.mail);
        self.stop.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    fn has_mail(&self) -> bool {
        self.stop.load(Ordering::SeqCst) || lock(&self.mail).is_some()
    }

    /// Waits as long as `next` says for mail. `None`: it is time to end.
    fn take(&self, next: Next) -> Option<Option<Desired>> {
        let mail = lock(&self.mail);
        let empty = |mail: &mut Option<Desired>| mail.is_none() && !self.stop.load(Ordering::SeqCst);
        let ignore_poison = std::sync::PoisonError::into_inner;
        let mut mail = match next {
            Next::Now => mail,
            Next::After(wait) => {
                self.changed.wait_timeout_while(mail, wait, empty).unwrap_or_else(|e| e.into_inner()).0
            }
            Next::WhenAsked => self.changed.wait_while(mail, empty).unwrap_or_else(ignore_poison),
        };
        if self.stop.load(Ordering::SeqCst) { None } else { Some(mail.take()) }
    }
}

/// Puts the device's state together and hands it to the uplink when it has changed.
struct Reporter {
    line: Line,
    spool: Arc<Spool>,
    clock: Arc<dyn Clock>,
    boot: BootId,
    status: watch::Receiver<Status>,
    reported: watch::Sender<Option<Reported>>,
}

#[derive(Default)]
struct ReportMemory {
    last: Option<Reported>,
    at: Duration,
}

impl Reporter {
    fn report(&self, memory: &mut ReportMemory) {
        let health = self.line.health().unwrap_or_default();
        let Status { desired_generation, previous, update } = self.status.borrow().clone();
        let reported = Reported {
            boot: self.boot.clone(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            generation: desired_generation,
            active: health.running,
            previous,
            update,
            drift: health.drift,
            spool: self.spool.report(),
        };
        let now = self.clock.elapsed();
        let changed = memory.last.as_ref().is_none_or(|last| {
            let same_spool = Reported { spool: last.spool, ..reported.clone() };
            same_spool != *last || (reported != *last && now >= memory.at + SPOOL_REPORT_EVERY)
        });
        if changed {
            memory.last = Some(reported.clone());
            memory.at = now;
            self.reported.send_replace(Some(reported));
        }
    }
}

/// Tells when a thread has ended, without waiting for ever.
struct Ended(Arc<(Mutex<bool>, Condvar)>);

impl Ended {
    fn wait(&self, patience: Duration) {
        let (ended, changed) = &*self.0;
        // What is left behind is as after a power cut, which the next start repairs.
        drop(changed.wait_timeout_while(lock(ended), patience, |ended| !*ended));
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<Ended> {
    struct Mark(Arc<(Mutex<bool>, Condvar)>);
    impl Drop for Mark {
        fn drop(&mut self) {
            *lock(&self.0.0) = true;
            self.0.1.notify_all();
        }
    }
    let shared = Arc::new((Mutex::new(false), Condvar::new()));
    let mark = Mark(shared.clone());
    thread::Builder::new().name(name.into()).spawn(move || {
        let _mark = mark;
        body();
    })?;
    Ok(Ended(shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_per_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock_folder(folder.path()).unwrap();
        assert!(matches!(lock_folder(folder.path()), Err(RunError::InUse(_))));
        drop(first);
        lock_folder(folder.path()).unwrap();
    }

    #[test]
    fn the_newest_desired_state_wins_and_a_stop_ends_the_wait() {
        let inbox = Arc::new(Inbox::default());
        assert_eq!(inbox.take(Next::Now), Some(None));
        for generation in 1..=2 {
            inbox.put(Desired { generation, ..Desired::default() });
        }
        assert!(inbox.has_mail());
        assert_eq!(inbox.take(Next::WhenAsked).unwrap().unwrap().generation, 2);
        let waiter = thread::spawn({
            let inbox = inbox.clone();
            move || inbox.take(Next::WhenAsked)
        });
        inbox.stop();
        assert_eq!(waiter.join().unwrap(), None);
    }
}
