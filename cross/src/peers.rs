//! `cargo xtask parity` and `cargo xtask bench cpu`: our runtime beside others, by the scripts in `bench/peers`.
//!
//! The other runtimes come from PyPI into the cache, and the networks are made there by `models.py`; each folder's name
//! holds the digest of what it was made from, so that a change makes a new one. Nothing is installed into the system.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use clap::Args;
use sha2::{Digest, Sha256};

use crate::{data, shell};

#[derive(Args, Clone)]
pub(crate) struct ParityOptions {
    /// These networks only.
    #[arg(long, num_args = 1.., value_name = "NAME")]
    only: Vec<String>,
    /// A line for every tensor.
    #[arg(long)]
    each: bool,
    /// Threads that our runtime uses.
    #[arg(long, default_value_t = 2)]
    threads: u16,
}

impl Default for ParityOptions {
    fn default() -> Self {
        Self { only: vec![], each: false, threads: 2 }
    }
}

#[derive(Args, Clone)]
pub(crate) struct ContestOptions {
    /// These networks only.
    #[arg(long, num_args = 1.., value_name = "NAME")]
    only: Vec<String>,
    /// Threads, one contest each.
    #[arg(long, num_args = 1.., default_values_t = [1u16, 2])]
    threads: Vec<u16>,
    /// Turns that each contender gets.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Timed runs a turn.
    #[arg(long, default_value_t = 20)]
    runs: u32,
}

/// Every u8 tensor of five networks against ONNX Runtime's. Builds the agent first.
pub(crate) fn parity(options: &ParityOptions) -> Result<()> {
    let mut script = script("parity.py", &["requirements.txt"])?;
    script.arg("--agent").arg(agent()?).args(["--threads", &options.threads.to_string()]);
    only(&mut script, &options.only).args(options.each.then_some("--each"));
    shell::run("parity", &mut script)
}

/// The table of ratios, and the results as JSON under `bench/results`.
pub(crate) fn contest(options: &ContestOptions) -> Result<()> {
    let mut script = script("contest.py", &["requirements.txt", "requirements-contest.txt"])?;
    script.arg("--ours").arg(format!("{} bench", agent()?.display()));
    script.args(["--rounds", &options.rounds.to_string(), "--runs", &options.runs.to_string()]);
    script.arg("--threads").args(options.threads.iter().map(u16::to_string));
    // A part of the contest is no result to keep.
    if options.only.is_empty() {
        script.arg("--json").arg(shell::root().join("bench").join("results"));
    }
    shell::run("bench", only(&mut script, &options.only))
}

fn only<'a>(script: &'a mut Command, names: &[String]) -> &'a mut Command {
    if names.is_empty() { script } else { script.arg("--only").args(names) }
}

fn agent() -> Result<PathBuf> {
    shell::run("build", shell::cargo().args(["build", "--workspace", "--locked"]))?;
    shell::program("andon-agent")
}

fn folder() -> PathBuf {
    shell::root().join("bench").join("peers")
}

/// A script of `bench/peers` with the packages it needs and the networks.
fn script(name: &str, requirements: &[&str]) -> Result<Command> {
    let packages: Vec<PathBuf> = requirements.iter().map(|r| packages(r)).collect::<Result<_>>()?;
    let python = |script: &Path| -> Result<Command> {
        let mut command = Command::new(shell::python()?);
        command.env("PYTHONPATH", std::env::join_paths(&packages)?).env("PYTHONDONTWRITEBYTECODE", "1");
        command.arg(script);
        Ok(command)
    };
    let maker = folder().join("models.py");
    let made = made("peers-models", &[&maker, &folder().join("requirements.txt")], |work| {
        eprintln!("==> peers: making the networks, half a minute");
        shell::run_quietly("peers", python(&maker)?.arg("--out").arg(work)).map(drop)
    })?;
    let mut command = python(&folder().join(name))?;
    command.arg("--models").arg(made);
    Ok(command)
}

/// The packages of a file of requirements, unpacked.
fn packages(requirements: &str) -> Result<PathBuf> {
    let file = folder().join(requirements);
    made("peers-packages", &[&file], |work| {
        eprintln!("==> peers: fetching the packages of {} from PyPI", file.display());
        shell::pip_install(&["-r", &file.to_string_lossy()], work)
    })
}

/// The folder in the cache that `make` makes of `sources`, made now if it is not there.
fn made(name: &str, sources: &[&Path], make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let mut hasher = Sha256::new();
    for source in sources {
        hasher.update(fs::read(source).with_context(|| format!("cannot read {}", source.display()))?);
    }
    let digest = hex::encode(hasher.finalize());
    let folder = data::cache()?.join(format!("{name}-{}", &digest[..16]));
    if !folder.is_dir() {
        let work = folder.with_extension(format!("making-{}", std::process::id()));
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        let result = make(&work).and_then(|()| Ok(fs::rename(&work, &folder)?));
        // Also after a failure: a later run starts from nothing.
        fs::remove_dir_all(&work).ok();
        result?;
    }
    Ok(folder)
}
