//! `andon`: what operators and machine-learning engineers type. A client of the people's API and of nothing else.
//!
//! Invariants: results go to standard output, everything else to standard error; with `--json` the output is the API's
//! own JSON; the exit status says what kind of failure it was (see `error.rs`). Keeps an API token, never a password.

mod client;
mod clock;
mod commands;
mod credentials;
mod error;
mod output;
mod pack;
mod text;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{client::Client, credentials::Credentials, error::Result, output::Output};

#[derive(Parser)]
#[command(name = "andon", version, about = "Talks to an Andon fleet server", after_help = error::EXIT_CODES, propagate_version = true)]
struct Cli {
    /// The server, as http(s)://HOST[:PORT]; otherwise the one of the last login.
    #[arg(long, global = true, env = "ANDON_URL", value_name = "URL")]
    url: Option<String>,
    /// An API token; otherwise the one that `andon login` stored.
    #[arg(long, global = true, env = "ANDON_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// PEM file with the certificates that the server's certificate must lead to, instead of the system's.
    #[arg(long, global = true, env = "ANDON_CA", value_name = "FILE")]
    ca: Option<std::path::PathBuf>,
    /// Print the API's JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Log in with a password, and store an API token for later calls.
    Login(commands::login::Login),
    /// Revoke the stored token and forget it.
    Logout,
    /// Who the token belongs to.
    Whoami,
    /// What the fleet looks like, in one screen.
    Status,
    /// List devices, or show one.
    Devices(commands::devices::Devices),
    /// List open alarms, or acknowledge one.
    Alarms(commands::devices::Alarms),
    /// Make a one-time token with which a new device enrols.
    Enrol(commands::devices::Enrol),
    /// List models, show or change what happens by itself.
    Models(commands::models::Models),
    /// List, show, publish or withdraw releases.
    Releases(commands::releases::Releases),
    /// List or import data sets.
    Datasets(commands::releases::Datasets),
    /// List, start, show or cancel training runs.
    Runs(commands::runs::Runs),
    /// List, start, show, pause, resume or abort rollouts.
    #[command(alias = "rollouts")]
    Rollout(commands::rollouts::Rollouts),
    /// List, label or download samples from the field.
    Samples(commands::samples::Samples),
    /// Show the audit trail, or verify its chain of hashes.
    Audit(commands::audit::Audit),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // Fails only where a provider is installed already, which is then as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("andon: {error}");
            error.exit_code()
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let out = Output::new(cli.json);
    let store = Credentials::store()?;
    if let Command::Login(login) = cli.command {
        return login.run(&store, cli.url.as_deref(), cli.ca.as_deref(), &out).await;
    }
    let (url, token) = store.choose(cli.url, cli.token)?;
    let client = Client::new(&url, Some(token), cli.ca.as_deref())?;
    match cli.command {
        Command::Login(_) => Ok(()),
        Command::Logout => commands::login::logout(&client, &store, &url).await,
        Command::Whoami => commands::login::whoami(&client, &out).await,
        Command::Status => commands::devices::status(&client, &out).await,
        Command::Devices(c) => c.run(&client, &out).await,
        Command::Alarms(c) => c.run(&client, &out).await,
        Command::Enrol(c) => c.run(&client, &out).await,
        Command::Models(c) => c.run(&client, &out).await,
        Command::Releases(c) => c.run(&client, &out).await,
        Command::Datasets(c) => c.run(&client, &out).await,
        Command::Runs(c) => c.run(&client, &out).await,
        Command::Rollout(c) => c.run(&client, &out).await,
        Command::Samples(c) => c.run(&client, &out).await,
        Command::Audit(c) => c.run(&client, &out).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
