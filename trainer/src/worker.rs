//! Retrain jobs from a queue folder (see `andon_protocol::job`): claim, lease, progress, cancel, result.
//!
//! Any number of workers may share a queue. A claim is a file created exclusively; whoever holds it touches it every two
//! seconds. A claim that is older than the lease belonged to a worker that died: it is renamed away (only one can) and
//! the job starts afresh. A job whose `result.json` is there is over for good.

use std::{
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use andon_protocol::job::{
    CANCEL_FILE, CLAIM_FILE, Claim, JobResult, JobSpec, LEASE_S, OUT_DIR, Outcome, PROGRESS_FILE, Progress,
    RESULT_FILE, SPEC_FILE,
};

use crate::{
    clock,
    finish::FinishError,
    fit::Cancelled,
    release::{json, put},
    retrain::{Settings, retrain},
};

const RENEW: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(500);
/// Jobs looked at in one pass over the queue.
const JOBS_MAX: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once {
    /// Return when no job is waiting.
    Yes,
    No,
}

/// Does jobs until `stop` breaks, or none is left.
pub fn work(queue: &Path, once: Once, stop: &(dyn Fn() -> ControlFlow<()> + Sync)) -> anyhow::Result<()> {
    while stop().is_continue() {
        match next(queue)? {
            Some(job) => {
                tracing::info!(job = %job.folder.display(), "claimed");
                run(&job, stop)?;
            }
            None if once == Once::Yes => return Ok(()),
            None => std::thread::sleep(POLL),
        }
    }
    Ok(())
}

/// A job that this process holds.
#[derive(Debug)]
pub struct Job {
    pub folder: PathBuf,
}

/// Claims the first job that is free.
pub fn next(queue: &Path) -> io::Result<Option<Job>> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(queue)?.take(JOBS_MAX) {
        folders.push(entry?.path());
    }
    // Names of runs grow with time.
    folders.sort();
    for folder in folders {
        if folder.join(SPEC_FILE).is_file() && !folder.join(RESULT_FILE).exists() && claim(&folder)? {
            // Another worker may have finished it between the two looks.
            if folder.join(RESULT_FILE).exists() {
                remove(&folder.join(CLAIM_FILE))?;
                continue;
            }
            return Ok(Some(Job { folder }));
        }
    }
    Ok(None)
}

fn claim(folder: &Path) -> io::Result<bool> {
    let path = folder.join(CLAIM_FILE);
    if let Ok(meta) = fs::metadata(&path) {
        if clock::age(meta.modified()?) < Duration::from_secs(LEASE_S) {
            return Ok(false);
        }
        // Of several workers that see the dead claim, one renames it.
        let grave = folder.join(format!("{CLAIM_FILE}.void.{}", std::process::id()));
        match fs::rename(&path, &grave) {
            Ok(()) => remove(&grave)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    let mut file = match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(e) => return Err(e),
    };
    let claim =
        Claim { worker: format!("andon-trainer {}", env!("CARGO_PKG_VERSION")), pid: std::process::id() };
    io::Write::write_all(&mut file, &json(&claim))?;
    Ok(true)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Does a claimed job and writes its result. A stop leaves the job to others.
pub fn run(job: &Job, stop: &(dyn Fn() -> ControlFlow<()> + Sync)) -> anyhow::Result<()> {
    let folder = &job.folder;
    let lost = AtomicBool::new(false);
    let (done, over) = mpsc::channel::<()>();
    let result = std::thread::scope(|scope| {
        let lost = &lost;
        scope.spawn(move || {
            // Ends when `done` is dropped.
            while let Err(mpsc::RecvTimeoutError::Timeout) = over.recv_timeout(RENEW) {
                if renew(folder).is_err() {
                    lost.store(true, Ordering::Relaxed);
                }
            }
        });
        let result = attempt(folder, lost, stop);
        drop(done);
        result
    });
    if lost.load(Ordering::Relaxed) || stop().is_break() {
        tracing::warn!(job = %folder.display(), "given up: the claim was lost or the worker stops");
        if !lost.load(Ordering::Relaxed) {
            remove(&folder.join(CLAIM_FILE))?;
        }
        return Ok(());
    }
    tracing::info!(job = %folder.display(), outcome = ?result.outcome, "{}", result.verdict);
    put(&folder.join(RESULT_FILE), &json(&result))?;
    remove(&folder.join(CLAIM_FILE))?;
    Ok(())
}

/// Touches the claim. Fails when it is gone: another worker has the job.
fn renew(folder: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(folder.join(CLAIM_FILE))?;
    file.set_times(fs::FileTimes::new().set_modified(clock::now()))
}

fn attempt(folder: &Path, lost: &AtomicBool, stop: &(dyn Fn() -> ControlFlow<()> + Sync)) -> JobResult {
    let last = Mutex::new(-1.0f32);
    let sink = |done: f32, stage: &str| {
        let mut last = last.lock().unwrap_or_else(|e| e.into_inner());
        if done - *last >= 0.005 {
            *last = done;
            let progress = Progress { done, stage: stage.to_owned() };
            if let Err(e) = put(&folder.join(PROGRESS_FILE), &json(&progress)) {
                tracing::warn!("progress is not shown: {e}");
            }
        }
        let cancelled = folder.join(CANCEL_FILE).exists() || lost.load(Ordering::Relaxed);
        if cancelled || stop().is_break() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    match prepared(folder).and_then(|spec| retrain(&spec, &folder.join(OUT_DIR), &Settings::default(), &sink))
    {
        Ok(result) => result,
        Err(error) => {
            let cancelled = error.chain().any(|e| {
                e.is::<Cancelled>()
                    || matches!(e.downcast_ref(), Some(crate::train::TuneError::Cancelled))
                    || matches!(e.downcast_ref(), Some(crate::train::CacheError::Cancelled))
            });
            let disagrees =
                error.chain().any(|e| matches!(e.downcast_ref(), Some(FinishError::Agreement { .. })));
            let (outcome, verdict) = match (cancelled, disagrees) {
                (true, _) => (Outcome::Cancelled, "Cancelled on request.".to_owned()),
                (_, true) => (Outcome::Refused, format!("Refused: {error:#}.")),
                _ => (Outcome::Failed, format!("Failed: {error:#}.")),
            };
            JobResult { outcome, verdict, metrics: Default::default(), seconds: Default::default() }
        }
    }
}

/// Reads the spec and empties `out/`.
fn prepared(folder: &Path) -> anyhow::Result<JobSpec> {
    let path = folder.join(SPEC_FILE);
    let bytes = crate::release::read(&path, JobSpec::BYTES_MAX as u64)?;
    let spec = serde_json::from_slice(&bytes).map_err(|e| anyhow::anyhow!("{SPEC_FILE} is no job: {e}"))?;
    let out = folder.join(OUT_DIR);
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;
    Ok(spec)
}
