//! `cargo xtask parity` and `cargo xtask bench cpu`: our runtime beside others, by the scripts in `bench/peers`.
//!
//! The other runtimes come from PyPI into the cache, and the networks are made there by `models.py`; each folder's name
//! holds the digest of what it was made from, so that a change makes a new one. Nothing is installed into the system.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
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

#[derive(Args, Clone)]
pub(crate) struct GpuOptions {
    /// Write the folder here and run nothing: it needs no network where it goes
    #[arg(long, value_name = "DIR")]
    pack: Option<PathBuf>,
    /// Version of the Python that will run it, such as 3.12; by default this machine's
    #[arg(long, value_name = "VERSION")]
    python: Option<String>,
    /// Pack the agent as the tests build it, instead of a release build, which takes ten minutes
    #[arg(long)]
    dev: bool,
    /// Float networks, in f32 and f16, instead of int8 ones
    #[arg(long)]
    float: bool,
}

/// The same version as in the report.
const NCNN: &str = "ncnn==1.0.20261020";
const PACK_BYTES_MAX: u64 = 60_000_000;

/// A folder with our agent, networks and a peer, which runs parity and then the benchmark on the GPU of the machine that
/// it is carried to; without `pack`, on this one.
pub(crate) fn gpu(options: &GpuOptions) -> Result<()> {
    let here = shell::root().join("target").join("bench-gpu");
    let pack = options.pack.as_ref().unwrap_or(&here);
    if pack.exists() {
        fs::remove_dir_all(pack).with_context(|| format!("cannot clear {}", pack.display()))?;
    }
    fs::create_dir_all(pack).with_context(|| format!("cannot make {}", pack.display()))?;
    let agent = if options.dev {
        agent()?
    } else {
        let release = ["build", "--release", "--locked", "-p", "andon-agent"];
        shell::run("build", shell::cargo().args(release))?;
        let folder = shell::program("andon-agent")?.parent().map(|p| p.with_file_name("release"));
        folder.context("where Cargo put the release build is not known")?.join("andon-agent")
    };
    let stripped = pack.join("andon-agent");
    shell::run("pack", Command::new("strip").arg("-o").arg(&stripped).arg(&agent))?;
    let compress = "import lzma, sys; open(sys.argv[1] + '.xz', 'wb').write(lzma.compress(open(sys.argv[1], 'rb').read()))";
    shell::run("pack", Command::new(shell::python()?).args(["-c", compress]).arg(&stripped))?;
    fs::remove_file(&stripped).context("cannot remove the agent's copy")?;
    let mut params = script("gpu/params.py", &["requirements.txt", "requirements-gpu.txt"])?;
    shell::run("ncnn", params.arg("--out").arg(pack.join("ncnn")))?;
    let models = networks()?;
    // A float ResNet-50 alone is larger than the folder may be.
    let whole = ["mobilenetv2", "resnet50", "yolov8n"];
    for name in if options.float { &["mobilenetv2.float", "yolov8n.float"][..] } else { &whole } {
        let file = format!("{name}.onnx");
        fs::copy(models.join(&file), pack.join(&file)).with_context(|| format!("cannot copy {file}"))?;
    }
    fs::copy(folder().join("gpu").join("run.py"), pack.join("run.py"))?;
    let mut pip = Command::new(shell::python()?);
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]).arg(pack);
    if let Some(version) = &options.python {
        pip.args([
            "--python-version",
            version,
            "--implementation",
            "cp",
            "--platform",
            "manylinux_2_28_x86_64",
        ]);
    }
    shell::run("ncnn", pip.arg(NCNN))?;
    let size = bytes(pack)?;
    eprintln!(
        "==> {} has {:.1} MB; python3 {}/run.py runs it",
        pack.display(),
        size as f64 / 1e6,
        pack.display()
    );
    ensure!(size <= PACK_BYTES_MAX, "the folder may have {PACK_BYTES_MAX} bytes");
    if options.pack.is_some() {
        return Ok(());
    }
    shell::run("bench", Command::new(shell::python()?).arg(pack.join("run.py")))
}

fn bytes(folder: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        total += if about.is_dir() { bytes(&entry.path())? } else { about.len() };
    }
    Ok(total)
}

/// Every u8 tensor of five networks against ONNX Runtime's, single operators in u8 and s8, and float networks on the GPU. Builds the agent first.
pub(crate) fn parity(options: &ParityOptions) -> Result<()> {
    let mut script = script("parity.py", &["requirements.txt"])?;
    script.arg("--agent").arg(agent()?).args(["--threads", &options.threads.to_string()]);
    only(&mut script, &options.only).args(options.each.then_some("--each"));
    shell::run("parity", &mut script)?;
    if options.only.is_empty() {
        let mut script = self::script("operators.py", &["requirements.txt"])?;
        shell::run("parity of operators", script.arg("--agent").arg(shell::program("andon-agent")?))?;
        let mut script = self::script("floats.py", &["requirements.txt"])?;
        shell::run("floats on the GPU", script.arg("--agent").arg(shell::program("andon-agent")?))?;
    }
    Ok(())
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
    let mut command = python(&packages, &folder().join(name))?;
    command.arg("--models").arg(networks()?);
    Ok(command)
}

/// The networks, made now if they are not there.
pub(crate) fn networks() -> Result<PathBuf> {
    let maker = folder().join("models.py");
    made("peers-models", &[&maker, &folder().join("requirements.txt")], |work| {
        eprintln!("==> peers: making the networks, half a minute");
        let packages = [packages("requirements.txt")?];
        shell::run_quietly("peers", python(&packages, &maker)?.arg("--out").arg(work)).map(drop)
    })
}

fn python(packages: &[PathBuf], script: &Path) -> Result<Command> {
    let mut command = Command::new(shell::python()?);
    command.env("PYTHONPATH", std::env::join_paths(packages)?).env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(script);
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
