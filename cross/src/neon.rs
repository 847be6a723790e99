//! `cargo xtask neon`: the runtime built for 64-bit Arm, and its unit tests run under qemu, once for each generation of
//! processors: one with everything (dotprod, i8mm) and one with NEON alone. qemu shows what is right, and nothing of speed.
//!
//! Overflows are checked here: the workspace's own build of the runtime, which benchmarks use too, does not.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

const TRIPLE: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Where Debian has the other architecture's C library.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";
/// As qemu names them: all features that there are; a Raspberry Pi 4, which has neither dotprod nor i8mm.
const PROCESSORS: [&str; 2] = ["max", "cortex-a72"];

pub(crate) fn run() -> Result<()> {
    let qemu = tools()?;
    eprintln!("==> neon: the first build takes some minutes");
    let cargo = |runner: &str| {
        let mut cargo = shell::cargo();
        cargo.args(["test", "--package", "andon-runtime", "--lib", "--locked", "--target", TRIPLE]);
        cargo.env("CARGO_TARGET_DIR", shell::root().join("target").join("neon"));
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
        cargo.env("CC_aarch64_unknown_linux_gnu", LINKER);
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner);
        // What is not ours is built to be built quickly; the runtime has its own level.
        cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0");
        for check in ["overflow-checks", "debug-assertions"] {
            cargo.args(["--config", &format!("profile.dev.package.andon-runtime.{check}=true")]);
        }
        cargo.env_remove("ANDON_ISA");
        cargo
    };
    for processor in PROCESSORS {
        let runner = format!("{qemu} -cpu {processor} -L {LIBRARIES}");
        shell::run(&format!("neon on {processor}"), &mut cargo(&runner))?;
    }
    Ok(())
}

/// The name of qemu for programs, once everything is there.
fn tools() -> Result<&'static str> {
    let starts = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let qemu = ["qemu-aarch64-static", "qemu-aarch64"].into_iter().find(|name| starts(name));
    let Some(qemu) = qemu.filter(|_| starts(LINKER)) else {
        bail!(
            "a compiler for C and an emulator for 64-bit Arm are needed; on Debian: apt-get install \
             gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static"
        );
    };
    let mut list = Command::new("rustup");
    list.current_dir(shell::root()).args(["target", "list", "--installed"]);
    let installed = shell::run_quietly("neon", &mut list).context("rustup brings Rust's library for Arm")?;
    if !installed.lines().any(|line| line == TRIPLE) {
        let mut add = Command::new("rustup");
        shell::run("neon", add.current_dir(shell::root()).args(["target", "add", TRIPLE]))?;
    }
    Ok(qemu)
}
