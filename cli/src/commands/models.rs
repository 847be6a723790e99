//! Models, and the policy of what happens by itself.

use andon_protocol::api::{Model, Policy, Wave};
use clap::{Args, Subcommand};
use comfy_table::Cell;
use reqwest::{Method, header};

use super::Limit;
use crate::{
    client::{Client, segment},
    error::Result,
    output::{Output, facts, number},
    text::{optional, percent},
};

const WAVES_MAX: usize = 100;

#[derive(Args)]
pub(crate) struct Models {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Subcommand)]
enum Action {
    /// Show the policy of a model, or change what is given.
    Policy(Change),
}

#[derive(Args)]
struct Change {
    model: String,
    /// Retrain when drifted devices have this many labelled samples since the last run; 0: never by itself.
    #[arg(long, value_name = "N")]
    retrain_labels_min: Option<u32>,
    /// Roll out a release that passed the gate without asking.
    #[arg(long, value_name = "BOOL")]
    auto_rollout: Option<bool>,
    /// Waves as PERCENT:SOAK_SECONDS, comma between them: 10:600,50:600,100:0.
    #[arg(long, value_parser = parse_waves)]
    waves: Option<Waves>,
    /// Seconds that a new release is tried on a device before it is committed.
    #[arg(long, value_name = "SECONDS")]
    trial_s: Option<u32>,
    /// Share of verdicts that quantising a release must not change.
    #[arg(long, value_name = "SHARE")]
    agreement_min: Option<f64>,
    /// What a release may lose on clean data, as a share (0.01 is one point).
    #[arg(long, value_name = "SHARE")]
    clean_loss_max: Option<f64>,
    /// What it must win on drifted samples, as a share.
    #[arg(long, value_name = "SHARE")]
    drift_gain_min: Option<f64>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Waves(pub(crate) Vec<Wave>);

pub(crate) fn parse_waves(text: &str) -> Result<Waves, String> {
    let waves: Option<Vec<Wave>> = text
        .split(',')
        .take(WAVES_MAX + 1)
        .map(|wave| {
            let (percent, soak) = wave.split_once(':').unwrap_or((wave, "0"));
            let percent = percent.parse::<u8>().ok().filter(|p| (1..=100).contains(p))?;
            Some(Wave { percent, soak_s: soak.parse().ok()? })
        })
        .collect();
    let waves = waves.ok_or("expected PERCENT:SOAK_SECONDS,… with percent from 1 to 100")?;
    if waves.len() > WAVES_MAX {
        return Err(format!("more than {WAVES_MAX} waves"));
    }
    if waves.windows(2).any(|pair| pair[0].percent >= pair[1].percent) {
        return Err("percent is cumulative: each wave must be larger than the one before".into());
    }
    if waves.last().is_none_or(|w| w.percent != 100) {
        return Err("the last wave must be 100".into());
    }
    Ok(Waves(waves))
}

impl Change {
    fn apply(&self, policy: &mut Policy) -> bool {
        let before = policy.clone();
        let Policy {
            retrain_labels_min,
            auto_rollout,
            waves,
            trial_s,
            agreement_min,
            clean_loss_max,
            drift_gain_min,
        } = policy;
        *retrain_labels_min = self.retrain_labels_min.unwrap_or(*retrain_labels_min);
        *auto_rollout = self.auto_rollout.unwrap_or(*auto_rollout);
        *trial_s = self.trial_s.unwrap_or(*trial_s);
        *agreement_min = self.agreement_min.unwrap_or(*agreement_min);
        *clean_loss_max = self.clean_loss_max.unwrap_or(*clean_loss_max);
        *drift_gain_min = self.drift_gain_min.unwrap_or(*drift_gain_min);
        if let Some(Waves(new)) = &self.waves {
            waves.clone_from(new);
        }
        *policy != before
    }
}

impl Models {
    pub(crate) async fn run(self, client: &Client, out: &Output) -> Result<()> {
        match self.action {
            Some(Action::Policy(change)) => set_policy(client, out, &change).await,
            None => {
                let models: Vec<Model> = client.list("/models", &[], self.limit.limit).await?;
                let none = "no models; the first published release makes one";
                out.list(&models, none, &["model", "classes", "latest", "retrain at", "auto rollout"], |m| {
                    vec![
                        Cell::new(&m.name),
                        Cell::new(m.labels.join(", ")),
                        Cell::new(optional(m.latest.as_ref())),
                        number(m.policy.retrain_labels_min),
                        Cell::new(if m.policy.auto_rollout { "yes" } else { "no" }),
                    ]
                })
            }
        }
    }
}

async fn set_policy(client: &Client, out: &Output, change: &Change) -> Result<()> {
    let path = format!("/models/{}/policy", segment(&change.model));
    let mut tagged = client.get_tagged::<Policy>(&path).await?;
    if change.apply(&mut tagged.body) {
        if tagged.etag.is_empty() {
            return Err(client.answer("a policy without an ETag".into()));
        }
        let request =
            client.request(Method::PUT, &path).header(header::IF_MATCH, tagged.etag).json(&tagged.body);
        client.send(request).await?;
        tagged = client.get_tagged(&path).await?;
    }
    out.show(&tagged.body, |p| {
        facts([
            (
                "retrain",
                match p.retrain_labels_min {
                    0 => "never by itself".into(),
                    n => format!("at {n} labelled samples of drifted devices"),
                },
            ),
            ("rollout", if p.auto_rollout { "by itself" } else { "when asked" }.into()),
            ("waves", waves_text(&p.waves)),
            ("trial", format!("{} s", p.trial_s)),
            ("int8 agrees", format!("on {} with its float self", percent(p.agreement_min))),
            ("may lose", format!("{} on clean data", percent(p.clean_loss_max))),
            ("must win", format!("{} under drift", percent(p.drift_gain_min))),
        ])
    })
}

pub(crate) fn waves_text(waves: &[Wave]) -> String {
    let texts: Vec<String> = waves.iter().map(|w| format!("{} % (soak {} s)", w.percent, w.soak_s)).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves() {
        let wave = |percent, soak_s| Wave { percent, soak_s };
        assert_eq!(parse_waves("10:600,50,100:0"), Ok(Waves(vec![wave(10, 600), wave(50, 0), wave(100, 0)])));
        for text in ["", "0,100", "50,50,100", "10,90", "101", "a", "10:x,100", "10:-1,100"] {
            assert!(parse_waves(text).is_err(), "{text:?}");
        }
        assert!(parse_waves(&"1,".repeat(1000)).is_err());
    }
}
