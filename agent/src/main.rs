//! `andon-agent`: the program on the device. Parses the command line; the work is in the library and in
//! [`commands`].

mod commands;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Parser)]
#[command(
    name = "andon-agent",
    version,
    about = "Sees, decides, watches for drift and updates itself, on the device"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make this device a member of a fleet, with a one-time token
    Enrol(commands::enrol::EnrolArgs),
    /// Be the agent: judge, watch, upload, update
    Run(commands::run::RunArgs),
    /// Judge image files with a release or any ONNX classifier
    Infer(commands::infer::InferArgs),
    /// Show what a network is made of and what would run it
    Explain(commands::explain::ExplainArgs),
    /// Time a network on this machine; prints one JSON line
    Bench(commands::bench::BenchArgs),
    /// Show this machine's GPUs and measure what they can do at most
    Gpu(commands::gpu::GpuArgs),
    /// Measure a network on GPU and CPU, and write down which kernels and which engine are fastest
    Tune(commands::tune::TuneArgs),
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    start_log();
    // The TLS library asks for the process's provider once; an error says that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Enrol(args) => commands::enrol::run(&args),
        Command::Run(args) => commands::run::run(&args),
        Command::Infer(args) => commands::infer::run(&args),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Gpu(args) => commands::gpu::run(&args),
        Command::Tune(args) => commands::tune::run(&args),
    }
}

/// To standard error, which the service manager keeps; what is said is chosen by `ANDON_LOG` (`info`,
/// `andon_agent=debug`…).
fn start_log() {
    let filter = EnvFilter::try_from_env("ANDON_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
}
