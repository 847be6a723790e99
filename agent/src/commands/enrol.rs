//! `andon-agent enrol`: a one-time token becomes this device's identity.

use std::path::PathBuf;

use andon_agent::{
    enrol::{self, Enrolled, Token},
    files::SystemDisk,
};

#[derive(Debug, clap::Args)]
pub(crate) struct EnrolArgs {
    /// The fleet server's address for devices, https://HOST:PORT
    #[arg(long)]
    url: String,
    /// The one-time token, as the dashboard or `andon devices enrol` shows it
    #[arg(long, env = "ANDON_ENROL_TOKEN", hide_env_values = true)]
    token: String,
    /// Where identity, spool and releases are kept
    #[arg(long, default_value = "/var/lib/andon")]
    data_dir: PathBuf,
}

pub(crate) fn run(args: &EnrolArgs) -> anyhow::Result<()> {
    let token: Token = args.token.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(enrol::enrol(&SystemDisk, &args.url, &token, &args.data_dir))? {
        Enrolled::Now(identity) => println!("enrolled as {}", identity.device()),
        Enrolled::Before(identity) => {
            println!("enrolled as {} before; nothing is changed", identity.device())
        }
    }
    Ok(())
}
