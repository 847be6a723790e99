//! Running other programs: what is run is printed, and a failure names the program, its arguments and what it said.
//! Programs inherit the terminal, so that Ctrl-C reaches them too.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// A program of the workspace. Cargo puts them all beside this one, wherever its target folder is.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe().context("cannot tell where this program lies")?.with_file_name(name))
}

/// The folder with the workspace's manifest.
pub(crate) fn root() -> PathBuf {
    // `cargo xtask` sets it; a copy of the binary run by hand uses the working directory.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    manifest.and_then(|m| m.parent().map(Path::to_owned)).unwrap_or_else(|| PathBuf::from("."))
}

/// `cargo`, the one that started us.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    // What cargo told this process about the package `xtask` is no business of the next cargo: it would rebuild.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_BIN_")
            || text.starts_with("CARGO_MANIFEST")
        {
            cargo.env_remove(&name);
        }
    }
    cargo
}

pub(crate) fn run(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("==> {what}: {}", shown(command));
    let status = command.status().with_context(|| format!("{what}: cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{what}: {} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs quietly; what it said is shown only if it fails.
pub(crate) fn run_quietly(what: &str, command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{what}: cannot start {}", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {} ended with {}\n{}", shown(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Python 3 with pip, as `python3`, or `python` where that is 3.
pub(crate) fn python() -> Result<&'static str> {
    let works =
        |name: &&&str| run_quietly("python", Command::new(name).args(["-m", "pip", "--version"])).is_ok();
    match ["python3", "python"].iter().find(works) {
        Some(name) => Ok(name),
        None => bail!(
            "Python 3 with pip is needed to fetch packages; on Debian: apt-get install python3 python3-pip"
        ),
    }
}

/// Unpacks wheels from PyPI, without what they depend on, below `target`; nothing is installed. `what`: a requirement, or
/// `-r` and a file of them.
pub(crate) fn pip_install(what: &[&str], target: &Path) -> Result<()> {
    let mut pip = Command::new(python()?);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--upgrade", "--only-binary=:all:", "--target"]).arg(target).args(what);
    run_quietly("pip", &mut pip).context("is there a way to a Python package index?").map(drop)
}
