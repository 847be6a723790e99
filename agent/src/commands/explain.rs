//! `andon-agent explain`: what a network is made of and what would run it.

use std::path::PathBuf;

use super::{load_model, say};

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// ONNX file, or a release's folder
    model: PathBuf,
}

pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    say(load_model(&args.model)?.explain())
}
