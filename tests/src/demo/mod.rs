//! The demo: the whole loop on real images, told step by step, with a table of proof at the end.
//!
//! It plays the people only: it sets the fleet up, and labels. Everything else (noticing the drift, choosing and
//! uploading samples, retraining, judging, rolling out, updating) the fleet does by itself.

mod plan;
mod report;
mod show;
mod stages;

use std::{
    env,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

pub use plan::Plan;
pub use report::{DeviceReport, Report};

use crate::{dataset::DataSet, fleet::Programs};
use show::Show;
use stages::Stages;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The same on a part of the data, in two minutes.
    #[arg(long)]
    pub quick: bool,
    /// Stop after the proof; without it the fleet runs on until Ctrl-C.
    #[arg(long)]
    pub exit: bool,
    /// Write the proof as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// What `cargo xtask data` fetched; its cache by default.
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// Where everything is kept; emptied first. `demo` in the target folder by default.
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
    /// Run this program after the proof, with ANDON_URL, ANDON_USER and ANDON_PASSWORD set.
    #[arg(long, value_name = "PROGRAM", num_args = 1.., allow_hyphen_values = true)]
    pub then: Vec<String>,
}

/// How the demo ended.
#[derive(Debug)]
pub enum Ending {
    Proven(Report),
    /// By Ctrl-C, or by being told to end, before the proof.
    Interrupted,
}

pub async fn run(options: &Options) -> Result<Ending> {
    let programs = Programs::find()?;
    let cache = options.data.clone().map_or_else(DataSet::cache, Ok)?;
    let data = DataSet::open(&cache)?;
    let dir = options.dir.clone().map_or_else(default_dir, Ok)?;
    let _lock = empty(&dir)?;
    let mut plan = if options.quick { Plan::QUICK } else { Plan::FULL };
    if is_gpu_played(&programs)? {
        plan.frames_per_second = plan.frames_per_second.min(Plan::PLAYED_FRAMES_PER_SECOND);
    }

    let mut stages = Stages::new(plan, Show::new(), programs, data, cache, dir.clone());
    let told = tokio::select! {
        // After the proof both end at Ctrl-C, and the proof counts.
        biased;
        told = stages.tell(options) => told.map(Ending::Proven),
        () = interrupted() => Ok(Ending::Interrupted),
    };
    stages.stop();
    eprintln!("\nThe run's data, configuration and logs are kept in {}", dir.display());
    told
}

/// Whether the devices are told to use a GPU and software plays it.
fn is_gpu_played(programs: &Programs) -> Result<bool> {
    if env::var_os("ANDON_ENGINE").is_none_or(|engine| engine != "gpu") {
        return Ok(false);
    }
    let mut list = Command::new(programs.path("andon-agent"));
    let output = list.args(["gpu", "--list", "--json"]).output().context("cannot start andon-agent")?;
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).context("andon-agent gpu")?;
    Ok(all["adapters"][0]["kind"] == "Cpu")
}

fn default_dir() -> Result<PathBuf> {
    let own = env::current_exe()?;
    // target/debug/andon-demo
    let target = own.ancestors().nth(2).context("this program lies in no target folder; give --dir")?;
    Ok(target.join("demo"))
}

/// Makes `dir` an empty folder that no other demo uses while the returned lock lives.
fn empty(dir: &Path) -> Result<File> {
    let mut name = dir.file_name().context("--dir has no name")?.to_owned();
    name.push(".lock");
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let lock = File::create(dir.with_file_name(name))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            bail!("another demo runs in {}; stop it or give --dir", dir.display())
        }
        Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the demo's folder"),
    }
    // Only what a demo made is ever deleted.
    let marker = dir.join("andon-demo");
    if fs::read_dir(dir)?.next().is_some() && !marker.exists() {
        bail!("{} is not empty and was not made by a demo; give another --dir", dir.display());
    }
    fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    fs::create_dir_all(dir)?;
    fs::write(&marker, "The demo empties this folder when it starts.\n")?;
    Ok(lock)
}

/// Resolves at Ctrl-C or `SIGTERM`.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
