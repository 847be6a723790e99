//! Training runs.

use std::time::Duration;

use andon_protocol::api::{NewRun, RunState, TrainingRun};
use clap::{Args, Subcommand};
use comfy_table::Cell;

use super::Limit;
use crate::{
    client::{Client, segment},
    clock::now_ms,
    error::{Error, Result},
    output::{Output, Tone, facts, number, state},
    text::{ago, duration, optional, percent, short, word},
};

const POLL: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(crate) struct Runs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Of this model only.
    #[arg(long)]
    model: Option<String>,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Subcommand)]
enum Action {
    /// List runs, newest first.
    List,
    /// Start one from the newest release and all labels.
    Start {
        model: String,
        /// Wait until it has ended; fails where no release came of it.
        #[arg(long)]
        wait: bool,
    },
    /// Show one with its metrics.
    Show { run: String },
    /// Stop one.
    Cancel { run: String },
}

fn tone(run: RunState) -> Tone {
    match run {
        RunState::Queued | RunState::Cancelled => Tone::Plain,
        RunState::Running => Tone::Busy,
        RunState::Succeeded => Tone::Good,
        RunState::Refused => Tone::Warning,
        RunState::Failed => Tone::Bad,
    }
}

fn has_ended(run: &TrainingRun) -> bool {
    !matches!(run.state, RunState::Queued | RunState::Running)
}

impl Runs {
    pub(crate) async fn run(self, client: &Client, out: &Output) -> Result<()> {
        match self.action {
            None | Some(Action::List) => {
                let query: Vec<_> = self.model.iter().map(|m| ("model", m.clone())).collect();
                let runs: Vec<TrainingRun> = client.list("/runs", &query, self.limit.limit).await?;
                let now = now_ms();
                out.list(
                    &runs,
                    "no runs",
                    &["run", "model", "state", "stage", "done", "release", "started"],
                    |r| {
                        vec![
                            Cell::new(&r.id),
                            Cell::new(&r.model),
                            state(word(&r.state), tone(r.state)),
                            Cell::new(&r.stage),
                            number(percent(f64::from(r.progress))),
                            Cell::new(optional(r.release.as_ref())),
                            Cell::new(ago(Some(r.created_ms), now)),
                        ]
                    },
                )
            }
            Some(Action::Start { model, wait }) => {
                let mut run: TrainingRun = client.post("/runs", &NewRun { model }).await?;
                if wait {
                    run = wait_for(client, run).await?;
                }
                out.show(&run, describe)?;
                if wait && run.state != RunState::Succeeded {
                    return Err(Error::NoRelease { run: run.id, state: word(&run.state) });
                }
                Ok(())
            }
            Some(Action::Show { run }) => {
                let run: TrainingRun = client.get(&format!("/runs/{}", segment(&run))).await?;
                out.show(&run, describe)
            }
            Some(Action::Cancel { run }) => {
                let run: TrainingRun = client.act(&format!("/runs/{}/cancel", segment(&run))).await?;
                out.done(&run, format!("run {} is {}", run.id, word(&run.state)))
            }
        }
    }
}

/// Until the run has ended. Bounded by the server, which ends each run.
async fn wait_for(client: &Client, mut run: TrainingRun) -> Result<TrainingRun> {
    let mut shown = String::new();
    while !has_ended(&run) {
        let line = format!("{}: {}", word(&run.state), run.stage);
        if line != shown {
            eprintln!("{line}");
            shown = line;
        }
        tokio::time::sleep(POLL).await;
        run = client.get(&format!("/runs/{}", segment(&run.id))).await?;
    }
    Ok(run)
}

fn describe(r: &TrainingRun) -> String {
    let took = r.started_ms.map(|started| duration(r.finished_ms.unwrap_or_else(now_ms) - started));
    let mut text = facts([
        ("run", r.id.clone()),
        ("state", format!("{}, {} {}", word(&r.state), r.stage, percent(f64::from(r.progress)))),
        ("took", optional(took)),
        ("from", format!("{} with data set {}", optional(r.parent.as_ref()), optional(r.dataset.map(short)))),
        ("release", optional(r.release.as_ref())),
        ("verdict", optional(r.verdict.as_ref())),
    ]);
    for (name, value) in &r.metrics {
        text.push_str(&format!("\n  {name:<40} {value:.4}"));
    }
    text
}
