//! `cargo xtask demo`: fetches the data, builds everything and hands over to `andon-demo` (crate `andon-tests`), which
//! runs the loop. `cargo xtask screenshot` does the same quickly, with a browser looking on.

use std::{path::PathBuf, process::Command};

use anyhow::Result;
use clap::Args;

use crate::{data, shell, ui};

#[derive(Args, Clone, Default)]
pub(crate) struct DemoOptions {
    /// The same on a part of the data, in two minutes.
    #[arg(long)]
    quick: bool,
    /// Stop after the proof; without it the fleet runs on until Ctrl-C.
    #[arg(long)]
    exit: bool,
    /// Write the proof as JSON, too.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(crate) fn run(options: &DemoOptions) -> Result<()> {
    let mut demo = prepare()?;
    demo.args(options.quick.then_some("--quick")).args(options.exit.then_some("--exit"));
    if let Some(report) = &options.report {
        demo.arg("--report").arg(std::path::absolute(report)?);
    }
    shell::run("demo", &mut demo)
}

pub(crate) fn screenshot() -> Result<()> {
    let mut demo = prepare()?;
    let script = shell::root().join("fleet-server").join("ui").join("test").join("screenshot.mjs");
    let picture = shell::root().join("docs").join("dashboard.png");
    std::fs::create_dir_all(shell::root().join("docs"))?;
    demo.args(["--quick", "--exit", "--then"]).arg(ui::node()?).arg(script).arg("--out").arg(picture);
    shell::run("demo", &mut demo)
}

fn prepare() -> Result<Command> {
    let data = data::fetch()?;
    if let Err(error) = ui::build() {
        eprintln!("warning: no dashboard in this build, the loop runs without it: {error:#}");
    }
    shell::run("build", shell::cargo().args(["build", "--workspace", "--locked"]))?;
    let mut demo = Command::new(shell::program("andon-demo")?);
    demo.current_dir(shell::root()).arg("--data").arg(data);
    Ok(demo)
}
