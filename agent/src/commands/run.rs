//! `andon-agent run`: the service.

use std::path::PathBuf;

use andon_agent::{config::Config, run};

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// The configuration; agent.default.toml lists every key
    #[arg(long, default_value = "/etc/andon/agent.toml")]
    config: PathBuf,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    Ok(run::run(Config::load(&args.config)?)?)
}
