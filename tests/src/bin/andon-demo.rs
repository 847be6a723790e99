//! `andon-demo`: see `cargo xtask demo`, which builds everything and calls it.

use std::process::ExitCode;

use andon_tests::demo::{self, Ending, Options};
use clap::Parser;

/// Shows a fleet that sees a real solar-cell line, drifts, learns and updates itself.
#[derive(Parser)]
#[command(name = "andon-demo", version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// What a shell expects of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { options } = Arguments::parse();
    andon_tests::install_tls_provider();
    match demo::run(&options).await {
        Ok(Ending::Proven(_)) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
