//! `andon-agent run`: the service, or with `--model` one run of any network over arrays in files.

use std::path::PathBuf;

use andon_agent::{config::Config, run};

use super::run_model::{self, RunModelArgs};

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// The configuration; agent.default.toml lists every key
    #[arg(long, default_value = "/etc/andon/agent.toml", conflicts_with = "model")]
    config: PathBuf,
    #[command(flatten)]
    network: RunModelArgs,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    match &args.network.model {
        Some(model) => run_model::run(model, &args.network),
        None => Ok(run::run(Config::load(&args.config)?, args.network.engine.engine)?),
    }
}
