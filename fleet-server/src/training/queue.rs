//! Job folders on disk (`protocol::job`). Blocking; the folders are small in number.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::de::DeserializeOwned;

use andon_protocol::job::{
    CANCEL_FILE, CLAIM_FILE, Claim, JobResult, JobSpec, LEASE_S, PROGRESS_FILE, Progress, RESULT_FILE,
    SPEC_FILE,
};

use super::step::JobFacts;
use crate::files::{self, Privacy};

const CLAIM_BYTES_MAX: u64 = 64 * 1024;
const RESULT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// `QUEUE/RUN`.
pub fn folder(queue: &Path, run: &str) -> PathBuf {
    queue.join(run)
}

/// Makes the job: everything that was there is removed first, and `spec.json` comes last.
pub fn write(folder: &Path, spec: &JobSpec) -> io::Result<()> {
    remove(folder)?;
    files::create_dir(folder)?;
    let bytes = serde_json::to_vec(spec)?;
    if bytes.len() > JobSpec::BYTES_MAX {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("the job is over {} bytes", JobSpec::BYTES_MAX),
        ));
    }
    files::write_atomically(&folder.join(SPEC_FILE), &bytes, Privacy::Readable)?;
    files::sync_parent(folder)
}

pub fn ask_to_stop(folder: &Path) -> io::Result<()> {
    files::write_atomically(&folder.join(CANCEL_FILE), b"", Privacy::Readable)
}

/// What lies in `folder`. A file that is being written (claim, progress) reads as not there.
pub fn read(folder: &Path, now_ms: i64) -> io::Result<JobFacts> {
    let exists = folder.join(SPEC_FILE).try_exists()?;
    let claim_path = folder.join(CLAIM_FILE);
    let claim: Option<Claim> = json(&claim_path, CLAIM_BYTES_MAX)?.and_then(Result::ok);
    let claim_age_ms = match fs::metadata(&claim_path) {
        Ok(meta) => now_ms - meta.modified()?.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64),
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let progress: Option<Progress> = json(&folder.join(PROGRESS_FILE), CLAIM_BYTES_MAX)?.and_then(Result::ok);
    Ok(JobFacts {
        exists,
        claim,
        claim_age_ms,
        progress: progress.filter(|p| p.done.is_finite()),
        result: json::<JobResult>(&folder.join(RESULT_FILE), RESULT_BYTES_MAX)?,
        cancel: folder.join(CANCEL_FILE).try_exists()?,
    })
}

/// `None`: no file. `Err` inside: a file that is no such JSON.
fn json<T: DeserializeOwned>(path: &Path, max: u64) -> io::Result<Option<Result<T, String>>> {
    match files::read_bounded(path, max) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|e| e.to_string()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => Ok(Some(Err(error.to_string()))),
        Err(error) => Err(error),
    }
}

/// Removes a job. The spec goes first, so that no worker takes what is being removed.
pub fn remove(folder: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(fs::remove_file(folder.join(SPEC_FILE)))?;
    gone(fs::remove_dir_all(folder))
}

/// Removes folders of jobs that no run in `active` needs, but for those that a worker still holds.
pub fn sweep(queue: &Path, active: &[String], now_ms: i64) -> io::Result<()> {
    for entry in fs::read_dir(queue)? {
        let entry = entry?;
        let needed = entry.file_name().to_str().is_some_and(|name| active.iter().any(|a| a == name));
        if needed || !entry.file_type()?.is_dir() {
            continue;
        }
        let job = read(&entry.path(), now_ms)?;
        if job.claim.is_none() || job.claim_age_ms >= LEASE_S as i64 * 1000 || job.result.is_some() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}
