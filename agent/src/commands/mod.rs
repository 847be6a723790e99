//! What a person types at a device beside `run`: one module a subcommand, each an `Args` struct and a `run` function.

pub(crate) mod bench;
mod bench_steps;
pub(crate) mod enrol;
pub(crate) mod explain;
pub(crate) mod gpu;
pub(crate) mod infer;
mod npy;
pub(crate) mod run;
mod run_model;
pub(crate) mod tune;

use std::{
    fmt::Display,
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use andon_runtime::{EngineChoice, Limits, Model, PipelineCache, SessionOptions};
use anyhow::{Context, bail};

/// Engine and threads, as every subcommand that runs a network takes them.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EngineArgs {
    /// What computes the network: `auto` takes the fastest that can run it
    #[arg(long, default_value = "auto", env = "ANDON_ENGINE")]
    pub(crate) engine: EngineChoice,
    /// Threads that the engine may use
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: u16,
    /// Keep each thread but the first on one processor
    #[arg(long)]
    pub(crate) pin: bool,
    /// Let a GPU keep the numbers of a float network as f16
    #[arg(long)]
    pub(crate) half: bool,
    /// What `tune` has found out about this network on this device
    #[arg(long, value_name = "FILE")]
    pub(crate) tuning: Option<PathBuf>,
    /// Where a GPU's compiled kernels are kept from one call to the next; made if it is not there
    #[arg(long, value_name = "FILE")]
    pub(crate) pipelines: Option<PathBuf>,
}

impl EngineArgs {
    pub(crate) fn options(&self) -> anyhow::Result<SessionOptions> {
        let read = |path: &PathBuf| {
            let bytes = read(path, TUNING_BYTES_MAX)?;
            let tuning = serde_json::from_slice(&bytes);
            tuning.map(Arc::new).with_context(|| format!("{} is no tuning", path.display()))
        };
        let tuning = self.tuning.as_ref().map(read).transpose()?;
        let pipelines = self.pipelines.as_ref().map(|path| {
            let saved = if path.exists() { self::read(path, PipelineCache::BYTES_MAX)? } else { vec![] };
            anyhow::Ok(Arc::new(PipelineCache::new(&saved)))
        });
        let (engine, threads, pipelines) = (self.engine, usize::from(self.threads), pipelines.transpose()?);
        let (pin_threads, half_precision) = (self.pin, self.half);
        let found = SessionOptions { tuning, pipelines, ..Default::default() };
        Ok(SessionOptions { engine, threads, pin_threads, half_precision, ..found })
    }

    /// Saves what a GPU's driver has compiled since.
    pub(crate) fn keep(&self, options: &SessionOptions) -> anyhow::Result<()> {
        let (Some(path), Some(cache)) = (&self.pipelines, &options.pipelines) else { return Ok(()) };
        let Some(grown) = cache.take_grown() else { return Ok(()) };
        let aside = path.with_extension("new");
        let written = fs::write(&aside, grown).and_then(|()| fs::rename(&aside, path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }
}

const TUNING_BYTES_MAX: usize = 4 << 20;

/// Text on standard output. A reader that has seen enough (`| head`) ends the program quietly.
pub(crate) fn say(text: impl Display) -> anyhow::Result<()> {
    match write!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("cannot write to standard output"),
    }
}

/// A whole file of at most `bytes_max`.
pub(crate) fn read(path: &Path, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() > bytes_max {
        bail!("{} has more than {bytes_max} bytes", path.display());
    }
    Ok(bytes)
}

/// An ONNX file, or the one in a release's folder.
pub(crate) fn load_model(path: &Path) -> anyhow::Result<Model> {
    let path = if path.is_dir() { path.join(andon_protocol::release::MODEL_FILE) } else { path.to_owned() };
    let limits = Limits::default();
    let file = andon_runtime::onnx::File::open(&path, limits.file_bytes_max);
    let file = file.with_context(|| format!("cannot read {}", path.display()))?;
    Model::open(&file, &limits).with_context(|| format!("cannot load {}", path.display()))
}
