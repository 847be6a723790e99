//! `andon-agent explain`: what a network is made of and what would run it.

use std::path::PathBuf;

use andon_runtime::EngineChoice;

use super::{load_model, say};

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// ONNX file, or a release's folder
    model: PathBuf,
    /// What would run it: `gpu` shows which steps a GPU takes
    #[arg(long, default_value = "auto", env = "ANDON_ENGINE")]
    engine: EngineChoice,
}

pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    say(load_model(&args.model)?.explain_for(args.engine))
}
