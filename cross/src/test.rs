//! `cargo xtask test`: what must hold before a change lands, cheapest first. The continuous integration runs this and
//! nothing else.

use std::process::Command;

use anyhow::Result;

use crate::{data, shell, ui};

pub(crate) fn run() -> Result<()> {
    shell::run("format", shell::cargo().args(["fmt", "--all", "--check"]))?;
    deny()?;
    data::fetch()?;
    ui::build()?;
    ui::script("dashboard tests", &["test"])?;
    let lints = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    shell::run("lints", shell::cargo().args(lints))?;
    // The integration tests start the programs themselves, so these must be there first.
    shell::run("build", shell::cargo().args(["build", "--workspace", "--all-targets", "--locked"]))?;
    shell::run("tests", shell::cargo().args(["test", "--workspace", "--locked"]))
}

/// Known vulnerabilities, licences and doubled crates. cargo-deny is a heavy build, so it is run where it is.
fn deny() -> Result<()> {
    if Command::new("cargo-deny").arg("--version").output().is_err() {
        eprintln!(
            "==> cargo-deny is not on the PATH: licences and advisories are not checked (cargo install cargo-deny)"
        );
        return Ok(());
    }
    shell::run("dependencies", shell::cargo().args(["deny", "--all-features", "check"]))
}
