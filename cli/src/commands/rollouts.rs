//! Rollouts: start, watch, hold.

use andon_protocol::{
    api::{NewRollout, Rollout, RolloutDeviceState, RolloutState},
    ids::ReleaseId,
};
use clap::{Args, Subcommand};
use comfy_table::Cell;
use reqwest::{Method, header};

use super::{
    Limit,
    models::{Waves, parse_waves, waves_text},
};
use crate::{
    client::{Client, segment},
    clock::now_ms,
    error::Result,
    output::{Output, Tone, facts, number, state, table},
    text::{ago, optional, utc, word},
};

#[derive(Args)]
pub(crate) struct Rollouts {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Subcommand)]
enum Action {
    /// List rollouts, newest first.
    List,
    /// Start one; waves and trial come from the model's policy where they are not given.
    Start {
        release: ReleaseId,
        /// PERCENT:SOAK_SECONDS, comma between them: 10:600,50:600,100:0.
        #[arg(long, value_parser = parse_waves)]
        waves: Option<Waves>,
        #[arg(long, value_name = "SECONDS")]
        trial_s: Option<u32>,
    },
    /// Show one with its devices and decisions.
    Show { rollout: String },
    /// Offer the release to no further device for now.
    Pause { rollout: String },
    /// Go on.
    Resume { rollout: String },
    /// End it for good: devices that have not committed stay on what they run.
    Abort { rollout: String },
}

fn tone(rollout: RolloutState) -> Tone {
    match rollout {
        RolloutState::Running => Tone::Busy,
        RolloutState::Paused => Tone::Warning,
        RolloutState::Succeeded => Tone::Good,
        RolloutState::Halted => Tone::Bad,
        RolloutState::Aborted => Tone::Plain,
    }
}

fn device_tone(device: RolloutDeviceState) -> Tone {
    use RolloutDeviceState as S;
    match device {
        S::Waiting => Tone::Plain,
        S::Offered | S::Downloading | S::Trial => Tone::Busy,
        S::Committed => Tone::Good,
        S::RolledBack | S::Failed | S::Silent => Tone::Bad,
    }
}

impl Rollouts {
    pub(crate) async fn run(self, client: &Client, out: &Output) -> Result<()> {
        let (rollout, verb) = match self.action {
            None | Some(Action::List) => return list(client, out, self.limit.limit).await,
            Some(Action::Start { release, waves, trial_s }) => {
                let new = NewRollout { release, waves: waves.map(|w| w.0), trial_s };
                let rollout: Rollout = client.post("/rollouts", &new).await?;
                return out.show(&rollout, describe);
            }
            Some(Action::Show { rollout }) => {
                let rollout: Rollout = client.get(&format!("/rollouts/{}", segment(&rollout))).await?;
                return out.show(&rollout, describe);
            }
            Some(Action::Pause { rollout }) => (rollout, "pause"),
            Some(Action::Resume { rollout }) => (rollout, "resume"),
            Some(Action::Abort { rollout }) => (rollout, "abort"),
        };
        // The tag makes sure that we act on the state that we have seen.
        let path = format!("/rollouts/{}", segment(&rollout));
        let seen = client.get_tagged::<Rollout>(&path).await?;
        let request =
            client.request(Method::POST, &format!("{path}/{verb}")).header(header::IF_MATCH, seen.etag);
        let rollout: Rollout = client.json(request).await?;
        out.done(
            &rollout,
            format!("rollout {} of {} is {}", rollout.id, rollout.release, word(&rollout.state)),
        )
    }
}

fn committed(r: &Rollout) -> usize {
    r.devices.iter().filter(|d| d.state == RolloutDeviceState::Committed).count()
}

async fn list(client: &Client, out: &Output, limit: usize) -> Result<()> {
    let rollouts: Vec<Rollout> = client.list("/rollouts", &[], limit).await?;
    let now = now_ms();
    let none = "no rollouts; start one with `andon rollout start MODEL/VERSION`";
    out.list(&rollouts, none, &["rollout", "release", "state", "wave", "committed", "by", "started"], |r| {
        vec![
            Cell::new(&r.id),
            Cell::new(&r.release),
            state(word(&r.state), tone(r.state)),
            Cell::new(format!("{} of {}", (r.wave as usize + 1).min(r.waves.len()), r.waves.len())),
            number(format!("{} of {}", committed(r), r.devices.len())),
            Cell::new(&r.created_by),
            Cell::new(ago(Some(r.created_ms), now)),
        ]
    })
}

fn describe(r: &Rollout) -> String {
    let now = now_ms();
    let mut text = facts([
        ("rollout", r.id.clone()),
        ("release", r.release.to_string()),
        (
            "state",
            format!(
                "{}, wave {} of {}",
                word(&r.state),
                (r.wave as usize + 1).min(r.waves.len()),
                r.waves.len()
            ),
        ),
        ("waves", waves_text(&r.waves)),
        ("started", format!("{} by {}", ago(Some(r.created_ms), now), r.created_by)),
    ]);
    let mut devices: Vec<_> = r.devices.iter().collect();
    devices.sort_by_key(|d| (d.wave, d.device.as_str()));
    text.push_str("\n\n");
    text.push_str(&table(
        &["device", "wave", "state", "since", "detail"],
        devices.into_iter().map(|d| {
            vec![
                Cell::new(&d.device),
                number(u64::from(d.wave) + 1),
                state(word(&d.state), device_tone(d.state)),
                Cell::new(ago(Some(d.since_ms), now)),
                Cell::new(optional(d.detail.as_ref())),
            ]
        }),
    ));
    text.push('\n');
    for d in &r.decisions {
        text.push_str(&format!("\n{}  {} ({}): {}", utc(d.at_ms), d.what, d.by, d.why));
    }
    text
}
