//! `cargo xtask fuzz`: coverage-guided fuzzing of the runtime, by the targets in `fuzz/` and LLVM's libFuzzer, with the
//! stable compiler of every other build.
//!
//! The runtime and the targets alone are built with counters of what was reached, and with AddressSanitizer, since the
//! kernels are where `unsafe` is; what is not ours is built as ever. Inputs that reached something new are kept under
//! `target/fuzz/corpus`, those that found something under `target/fuzz/findings`, where a next run does not look.

use std::{fs, path::Path, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use sha2::{Digest, Sha256};

use crate::{data, shell};

#[derive(Args, Clone)]
pub(crate) struct FuzzOptions {
    /// This one only.
    target: Option<Target>,
    /// For all together, shared evenly.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Any bytes as an ONNX file.
    Read,
    /// A random network whose file is damaged.
    Damaged,
    /// A random network on our engine and on tract, once for each instruction set.
    Session,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Damaged => "damaged",
            Self::Session => "session",
        }
    }

    /// `ANDON_ISA` of each turn; `None` is the best that there is.
    fn turns(self) -> &'static [Option<&'static str>] {
        match self {
            Self::Read => &[None],
            Self::Damaged => &[None, Some("avx2")],
            Self::Session => &[None, Some("avx2"), Some("scalar")],
        }
    }
}

/// The one that the sanitiser and the counters are made for here.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// For ours alone. Counters and comparisons are what guides libFuzzer.
const FLAGS: [&str; 6] = [
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Seeds larger than this make every try slow.
const SEED_BYTES_MAX: u64 = 8 << 10;

pub(crate) fn run(options: &FuzzOptions) -> Result<()> {
    let folder = shell::root().join("target").join("fuzz");
    let targets = options.target.map_or(Target::value_variants().to_vec(), |target| vec![target]);
    build(&folder)?;
    let turns: Vec<_> =
        targets.iter().flat_map(|target| target.turns().iter().map(|isa| (*target, *isa))).collect();
    let seconds = (u64::from(options.minutes) * 60 / turns.len() as u64).max(1);
    let before = children_cpu_seconds();
    for (target, isa) in turns {
        turn(&folder, target, isa, seconds)?;
    }
    if let (Some(before), Some(after)) = (before, children_cpu_seconds()) {
        eprintln!("==> fuzz: no finding in {:.3} CPU-hours", (after - before) / 3600.0);
    }
    Ok(())
}

fn build(folder: &Path) -> Result<()> {
    eprintln!("==> fuzz: the first build takes ten minutes");
    let flags = FLAGS.map(|flag| format!("{flag:?}")).join(",");
    let mut cargo = shell::cargo();
    // A sanitiser, and flags for some packages only, are not stable yet; the compiler that has them is the same.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", folder);
    cargo.args(["build", "--manifest-path", "fuzz/Cargo.toml", "--release", "--locked", "--target", TRIPLE]);
    cargo.arg("-Zprofile-rustflags");
    for package in ["andon-runtime", "andon-fuzz"] {
        cargo.args(["--config", &format!("profile.release.package.{package}.rustflags=[{flags}]")]);
    }
    shell::run("fuzz", &mut cargo)
}

fn turn(folder: &Path, target: Target, isa: Option<&str>, seconds: u64) -> Result<()> {
    let name = target.name();
    let [corpus, findings] = ["corpus", "findings"].map(|kind| folder.join(kind).join(name));
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut fuzzer = std::process::Command::new(folder.join(TRIPLE).join("release").join(name));
    fuzzer.current_dir(folder).arg(&corpus).arg(seeds(folder, target)?);
    fuzzer.arg(format!("-artifact_prefix={}/", findings.display()));
    fuzzer.arg(format!("-max_total_time={seconds}"));
    // A network that takes this long or this much is a finding as much as a panic is.
    fuzzer.args([
        "-timeout=25",
        "-rss_limit_mb=2048",
        "-max_len=8192",
        "-print_final_stats=1",
        "-verbosity=0",
    ]);
    match isa {
        Some(isa) => fuzzer.env("ANDON_ISA", isa),
        None => fuzzer.env_remove("ANDON_ISA"),
    };
    shell::run(&format!("fuzz {name} {}", isa.unwrap_or("")), &mut fuzzer)
        .with_context(|| format!("what it was given lies in {}", findings.display()))
}

/// What a target starts from.
fn seeds(folder: &Path, target: Target) -> Result<PathBuf> {
    let seeds = folder.join("seeds").join(target.name());
    if !seeds.is_dir() {
        let making = folder.join("seeds-making");
        fs::create_dir_all(&making).with_context(|| format!("cannot make {}", making.display()))?;
        match target {
            Target::Read => small_networks(&making)?,
            Target::Damaged | Target::Session => noise(&making)?,
        }
        fs::create_dir_all(folder.join("seeds"))?;
        fs::rename(&making, &seeds).with_context(|| format!("cannot make {}", seeds.display()))?;
    }
    Ok(seeds)
}

/// The networks of ONNX's own cases that are small.
fn small_networks(to: &Path) -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(data::fetch()?.join(data::ONNX_CASES).join("node"))? {
        let entry = entry?;
        let model = entry.path().join("model.onnx");
        if fs::metadata(&model).is_ok_and(|m| m.len() <= SEED_BYTES_MAX) {
            fs::copy(&model, to.join(entry.file_name()))?;
            count += 1;
        }
    }
    ensure!(count > 0, "there are no small networks among ONNX's cases");
    Ok(())
}

/// Bytes that decide about networks of all sizes, the same each time.
fn noise(to: &Path) -> Result<()> {
    for seed in 0u8..64 {
        let block = |i: u8| Sha256::digest([seed, i]);
        let bytes: Vec<u8> = (0..=seed).flat_map(block).collect();
        fs::write(to.join(seed.to_string()), bytes)?;
    }
    Ok(())
}

/// Of all programs that ended, as Linux counts them.
fn children_cpu_seconds() -> Option<f64> {
    // proc(5): fields 16 and 17 are cutime and cstime; the second, a name, may have spaces and ends with `)`.
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(13)?.parse::<f64>().ok()? + fields.get(14)?.parse::<f64>().ok()?;
    // Linux counts in hundredths for programs, whatever the kernel's own clock.
    Some(ticks / 100.0)
}
