//! `cargo xtask …`: everything around the code that a person or the continuous integration types. Each command is a
//! module; none of them asks a question, and each says what it does before it takes long.
//!
//! It is compiled before anything else, so it depends on nearly nothing, and on no crate of this repository.

mod data;
mod demo;
mod fuzz;
mod neon;
mod peers;
mod shell;
mod split;
mod test;
mod ui;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and shows Andon")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch the solar-cell images and the pretrained weights into the cache, verified by digest.
    Data,
    /// Build the dashboard, where it changed since it was last built.
    Ui,
    /// Everything that must hold before a change lands: format, lints, dashboard, tests, the loop end to end.
    Test,
    /// Compare every u8 tensor of five int8 networks, and single operators in u8 and s8, with ONNX Runtime's.
    Parity(peers::ParityOptions),
    /// Measure against others, and record the ratios under bench/results.
    #[command(subcommand)]
    Bench(Bench),
    /// Build the runtime for 64-bit Arm and run its unit tests under qemu, with and without dotprod and i8mm.
    Neon,
    /// Look for inputs that make the runtime fail: coverage-guided, with AddressSanitizer.
    Fuzz(fuzz::FuzzOptions),
    /// Show the whole loop on real images.
    Demo(demo::DemoOptions),
    /// Run a quick demo, and take the picture of the dashboard that the README shows.
    Screenshot,
}

#[derive(Subcommand)]
enum Bench {
    /// Int8 networks on the CPU, against ONNX Runtime and OpenVINO.
    Cpu(peers::ContestOptions),
    /// Int8 networks on this machine's GPU, or on another's: against our CPU engine and ncnn on Vulkan.
    Gpu(peers::GpuOptions),
}

fn main() {
    let result = match Arguments::parse().command {
        Command::Data => data::fetch().map(drop),
        Command::Ui => ui::build(),
        Command::Test => test::run(),
        Command::Parity(options) => peers::parity(&options),
        Command::Bench(Bench::Cpu(options)) => peers::contest(&options),
        Command::Bench(Bench::Gpu(options)) => peers::gpu(&options),
        Command::Neon => neon::run(),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Screenshot => demo::screenshot(),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}
