//! Samples from the field and their labels.

use std::{fs, path::PathBuf};

use andon_protocol::{
    api::{NewLabel, Sample},
    ids::{DeviceId, Digest},
};
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Cell;
use reqwest::Method;

use super::Limit;
use crate::{
    client::Client,
    clock::now_ms,
    error::{Error, Result},
    output::{Output, number},
    text::{ago, bytes, percent, word},
};

#[derive(Args)]
pub(crate) struct Samples {
    #[command(subcommand)]
    action: Option<Action>,
    #[arg(long)]
    device: Option<DeviceId>,
    /// Why the device chose it.
    #[arg(long)]
    reason: Option<Reason>,
    /// Only those without a label.
    #[arg(long, conflicts_with = "labelled")]
    unlabelled: bool,
    /// Only those with a label.
    #[arg(long)]
    labelled: bool,
    /// Only those taken while the device saw drift.
    #[arg(long)]
    drifted: bool,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Clone, Copy, ValueEnum)]
enum Reason {
    Random,
    Uncertain,
    Novel,
    Event,
}

#[derive(Subcommand)]
enum Action {
    /// List samples, newest first.
    List,
    /// Say what a sample shows.
    Label { sample: Digest, class: String },
    /// Take a label back.
    Unlabel { sample: Digest },
    /// Download the image.
    Image {
        sample: Digest,
        #[arg(long, short)]
        out: PathBuf,
    },
}

impl Samples {
    pub(crate) async fn run(self, client: &Client, out: &Output) -> Result<()> {
        match self.action {
            Some(Action::Label { sample, class }) => {
                let path = format!("/samples/{sample}/label");
                let sample: Sample =
                    client.json(client.request(Method::PUT, &path).json(&NewLabel { class })).await?;
                let class = sample.label.as_ref().map_or("nothing", |l| &l.class);
                out.done(&sample, format!("{} of {} is {class}", sample.source, sample.device))
            }
            Some(Action::Unlabel { sample }) => {
                client.send(client.request(Method::DELETE, &format!("/samples/{sample}/label"))).await?;
                let sample: Sample = client.get(&format!("/samples/{sample}")).await?;
                out.done(&sample, format!("{} of {} has no label", sample.source, sample.device))
            }
            Some(Action::Image { sample, out: file }) => {
                let response =
                    client.send(client.request(Method::GET, &format!("/samples/{sample}/image"))).await?;
                let image = client.body(response).await?;
                // The name of a sample is the digest of its content.
                if Digest::of(&image) != sample {
                    return Err(client.answer(format!("an image that is not {sample}")));
                }
                fs::write(&file, &image).map_err(Error::file(&file))
            }
            None | Some(Action::List) => self.list(client, out).await,
        }
    }

    async fn list(&self, client: &Client, out: &Output) -> Result<()> {
        let mut query = Vec::new();
        if let Some(device) = &self.device {
            query.push(("device", device.to_string()));
        }
        if let Some(reason) = self.reason.and_then(|r| r.to_possible_value()) {
            query.push(("reason", reason.get_name().to_owned()));
        }
        if self.labelled || self.unlabelled {
            query.push(("labelled", self.labelled.to_string()));
        }
        if self.drifted {
            query.push(("drift", "true".to_owned()));
        }
        let samples: Vec<Sample> = client.list("/samples", &query, self.limit.limit).await?;
        let now = now_ms();
        out.list(
            &samples,
            "no samples",
            &["sample", "device", "source", "reason", "drift", "predicted", "label", "size", "received"],
            |s| {
                let score = s.scores.iter().copied().fold(0.0_f32, f32::max);
                vec![
                    Cell::new(s.id),
                    Cell::new(&s.device),
                    Cell::new(&s.source),
                    Cell::new(word(&s.reason)),
                    Cell::new(word(&s.drift)),
                    Cell::new(format!("{} {}", s.predicted, percent(f64::from(score)))),
                    Cell::new(s.label.as_ref().map_or("-", |l| &l.class)),
                    number(bytes(s.bytes)),
                    Cell::new(ago(Some(s.received_ms), now)),
                ]
            },
        )
    }
}
