//! `andon-agent`: the program on the device. Parses the command line; the work is in the library and in
//! [`commands`].

mod commands;

use clap::Parser;

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
    /// Judge image files with a release or any ONNX classifier
    Infer(commands::infer::InferArgs),
    /// Show what a network is made of and what would run it
    Explain(commands::explain::ExplainArgs),
    /// Time a network on this machine; prints one JSON line
    Bench(commands::bench::BenchArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Infer(args) => commands::infer::run(&args),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
    }
}
