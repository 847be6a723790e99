//! Releases and the data sets they are made from.

use std::path::PathBuf;

use andon_protocol::{
    api::{DataSet, Release, ReleaseState},
    ids::ReleaseId,
};
use clap::{Args, Subcommand};
use comfy_table::Cell;
use reqwest::{Method, header};
use serde::de::DeserializeOwned;

use super::Limit;
use crate::{
    client::Client,
    clock::now_ms,
    error::Result,
    output::{Output, Tone, facts, number, state},
    pack::{self, Packed},
    text::{ago, bytes, optional, percent, short, word},
};

#[derive(Args)]
pub(crate) struct Releases {
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
    /// List releases, newest first.
    List,
    /// Show one with its metrics.
    Show { release: ReleaseId },
    /// Publish what `andon-trainer fit` wrote: DIR/release and DIR/float.onnx.
    Publish { dir: PathBuf },
    /// Take a release back: it can no longer be rolled out or downloaded.
    Withdraw { release: ReleaseId },
}

fn release_state(release: &Release) -> Cell {
    let tone = match release.state {
        ReleaseState::Released => Tone::Good,
        ReleaseState::Candidate => Tone::Busy,
        ReleaseState::Withdrawn => Tone::Plain,
    };
    state(word(&release.state), tone)
}

fn path_of(release: &ReleaseId) -> String {
    format!("/releases/{}/{}", release.model(), release.version())
}

impl Releases {
    pub(crate) async fn run(self, client: &Client, out: &Output) -> Result<()> {
        match self.action {
            None | Some(Action::List) => {
                let query: Vec<_> = self.model.iter().map(|m| ("model", m.clone())).collect();
                let releases: Vec<Release> = client.list("/releases", &query, self.limit.limit).await?;
                let now = now_ms();
                let headers = ["release", "state", "devices", "size", "parent", "balanced accuracy", "made"];
                out.list(
                    &releases,
                    "no releases; publish one with `andon releases publish DIR`",
                    &headers,
                    |r| {
                        vec![
                            Cell::new(&r.id),
                            release_state(r),
                            number(r.devices),
                            number(bytes(r.bytes)),
                            Cell::new(optional(r.parent.as_ref())),
                            Cell::new(headline(r)),
                            Cell::new(ago(Some(r.created_ms), now)),
                        ]
                    },
                )
            }
            Some(Action::Show { release }) => {
                let release: Release = client.get(&path_of(&release)).await?;
                out.show(&release, describe)
            }
            Some(Action::Publish { dir }) => {
                let (packed, manifest) = pack::release(&dir)?;
                eprintln!(
                    "publishing {} as {}: {} files, {}",
                    dir.display(),
                    manifest.release,
                    packed.files,
                    bytes(packed.bytes)
                );
                let release: Release = upload(client, "/releases", &[], packed).await?;
                out.done(&release, format!("{} is {}", release.id, word(&release.state)))
            }
            Some(Action::Withdraw { release }) => {
                let release: Release = client.act(&format!("{}/withdraw", path_of(&release))).await?;
                out.done(
                    &release,
                    format!(
                        "{} is {}; {} devices still run it",
                        release.id,
                        word(&release.state),
                        release.devices
                    ),
                )
            }
        }
    }
}

/// Balanced accuracy where it counts most: on drifted samples, else on the golden set.
fn headline(release: &Release) -> String {
    let at = |name: &str| release.metrics.get(name).copied();
    for part in ["held_back", "golden", "validation"] {
        let name = format!("{part}.balanced_accuracy");
        let new = at(&format!("{name}.new")).or_else(|| at(&name));
        if let Some(new) = new {
            let old =
                at(&format!("{name}.old")).map_or_else(String::new, |old| format!("{} -> ", percent(old)));
            return format!("{old}{} {}", percent(new), part.replace('_', " "));
        }
    }
    "-".into()
}

fn describe(r: &Release) -> String {
    let mut text = facts([
        ("release", format!("{}, {}", r.id, word(&r.state))),
        ("classes", r.labels.join(", ")),
        ("model", format!("{} ({})", r.model, bytes(r.bytes))),
        ("parent", optional(r.parent.as_ref())),
        ("data set", r.dataset.to_string()),
        ("run", optional(r.run.as_ref())),
        ("devices", r.devices.to_string()),
    ]);
    for (name, value) in &r.metrics {
        text.push_str(&format!("\n  {name:<40} {value:.4}"));
    }
    text
}

async fn upload<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    query: &[(&str, String)],
    packed: Packed,
) -> Result<T> {
    let body = reqwest::Body::from(tokio::fs::File::from_std(packed.file));
    let request = client
        .request(Method::POST, path)
        .query(query)
        .header(header::CONTENT_TYPE, "application/x-tar")
        .header(header::CONTENT_LENGTH, packed.bytes)
        .body(body);
    client.json(request).await
}

#[derive(Args)]
pub(crate) struct Datasets {
    #[command(subcommand)]
    action: Option<DatasetAction>,
    /// Of this model only.
    #[arg(long, global = true)]
    model: Option<String>,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Subcommand)]
enum DatasetAction {
    /// List data sets, newest first.
    List,
    /// Import DIR/labels.csv (file,class,split) and its images; only splits train, validation and golden.
    Import { dir: PathBuf },
}

impl Datasets {
    pub(crate) async fn run(self, client: &Client, out: &Output) -> Result<()> {
        let query: Vec<_> = self.model.iter().map(|m| ("model", m.clone())).collect();
        let now = now_ms();
        match self.action {
            None | Some(DatasetAction::List) => {
                let sets: Vec<DataSet> = client.list("/datasets", &query, self.limit.limit).await?;
                let none = "no data sets; import one with `andon datasets import DIR --model MODEL`";
                out.list(&sets, none, &["data set", "model", "items", "field", "parent", "made"], |s| {
                    vec![
                        Cell::new(short(s.id)),
                        Cell::new(&s.model),
                        Cell::new(items(s)),
                        number(s.field_items),
                        Cell::new(optional(s.parent.map(short))),
                        Cell::new(ago(Some(s.created_ms), now)),
                    ]
                })
            }
            Some(DatasetAction::Import { dir }) => {
                if query.is_empty() {
                    return Err(crate::error::Error::Usage(
                        "--model is needed: the model that the images are for".into(),
                    ));
                }
                let packed = pack::dataset(&dir)?;
                eprintln!("importing {}: {} images, {}", dir.display(), packed.files, bytes(packed.bytes));
                let set: DataSet = upload(client, "/datasets", &query, packed).await?;
                out.done(&set, format!("data set {} of {}: {}", short(set.id), set.model, items(&set)))
            }
        }
    }
}

fn items(set: &DataSet) -> String {
    let texts: Vec<String> =
        set.items.iter().map(|(split, n)| format!("{n} {}", split.replace('_', " "))).collect();
    texts.join(", ")
}
