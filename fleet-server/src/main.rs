//! `andon-fleet-server run --config server.toml`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use andon_fleet_server::{config::Config, start};

#[derive(Parser)]
#[command(version, about = "Andon's fleet server: API, dashboard, devices, registry, rollouts, training")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or Ctrl-C.
    Run {
        #[arg(long, env = "ANDON_SERVER_CONFIG")]
        config: PathBuf,
        /// Password of the account `admin`, used at the first start only. Without it one is made and printed.
        #[arg(long, env = "ANDON_ADMIN_PASSWORD", hide_env_values = true)]
        admin_password: Option<String>,
        /// Log as JSON lines.
        #[arg(long, env = "ANDON_LOG_JSON")]
        log_json: bool,
    },
    /// Check the audit trail's hash chain; fails where it is broken.
    VerifyAudit {
        #[arg(long, env = "ANDON_SERVER_CONFIG")]
        config: PathBuf,
    },
    /// Make a certificate of the fleet's CA for an MQTT broker outside (it lasts 825 days).
    BrokerCertificate {
        #[arg(long, env = "ANDON_SERVER_CONFIG")]
        config: PathBuf,
        /// Name or address by which devices reach the broker.
        #[arg(long)]
        host: String,
        /// Folder for broker.pem, broker.key and ca.pem.
        #[arg(long)]
        out: PathBuf,
    },
    /// Print the OpenAPI document.
    Openapi,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // The embedded broker forces this provider; nobody else installs one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match args.command {
        Command::Run { config, admin_password, log_json } => {
            init_log(log_json);
            let config = Config::read(&config)?;
            runtime.block_on(async {
                let running = start::start(config, start::Options { admin_password }).await?;
                stop_signal().await?;
                tracing::info!("stopping");
                running.stop().await;
                Ok(())
            })
        }
        Command::VerifyAudit { config } => {
            init_log(false);
            let config = Config::read(&config)?;
            runtime.block_on(start::verify_audit(&config))
        }
        Command::BrokerCertificate { config, host, out } => {
            start::broker_certificate(&Config::read(&config)?, &host, &out)
        }
        Command::Openapi => {
            println!("{}", andon_fleet_server::api::openapi_text());
            Ok(())
        }
    }
}

fn init_log(json: bool) {
    let filter = EnvFilter::try_from_env("ANDON_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,rmqtt=warn,rmqtt_net=error,sqlx=warn"));
    // A file or the journal wants no colours.
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    if json { builder.json().init() } else { builder.init() }
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    Ok(())
}
