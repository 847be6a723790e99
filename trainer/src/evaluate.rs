//! What a release makes of a labelled folder, judged by the device's engine.

use std::path::Path;

use andon_protocol::release::{MANIFEST_BYTES_MAX, MANIFEST_FILE, MODEL_FILE, Manifest};

use crate::{
    data::{self, DataSet, Source},
    judge,
    metrics::{self, Metrics, Rule},
    release,
    team::Team,
};

pub const MODEL_BYTES_MAX: u64 = 512 << 20;

/// Figures of the release in `folder` on one split of `images`.
pub fn evaluate(folder: &Path, images: &Path, split: &str, seed: u64) -> anyhow::Result<Metrics> {
    let manifest =
        Manifest::from_json(&release::read(&folder.join(MANIFEST_FILE), MANIFEST_BYTES_MAX as u64)?)?;
    let model = release::read(&folder.join(MODEL_FILE), MODEL_BYTES_MAX)?;
    let set = DataSet::open(images, seed)?;
    let examples = set.of(split);
    anyhow::ensure!(!examples.is_empty(), "no image has split {split:?}");
    let class = |label: &String| {
        let unknown =
            || anyhow::anyhow!("the release knows no class {label:?}; it has {:?}", manifest.labels);
        manifest.labels.iter().position(|l| l == label).ok_or_else(unknown)
    };
    let classes = set.labels.iter().map(class).collect::<anyhow::Result<Vec<usize>>>()?;
    let team = Team::new()?;
    let sources: Vec<Source> =
        examples.iter().map(|e| Source { name: e.file.clone(), path: e.path.clone() }).collect();
    let (pixels, _) = data::load(&team, &sources, &manifest.input)?;
    let whole = examples.iter().zip(&pixels).filter_map(|(e, p)| p.as_ref().map(|p| (classes[e.class], p)));
    let (labels, pixels): (Vec<usize>, Vec<_>) = whole.unzip();
    let judged = judge::judge(&team, &model, &manifest, &pixels)?;
    let rule = Rule { reject: manifest.decision.reject as usize, threshold: manifest.decision.threshold };
    Ok(metrics::measure(rule, &labels, &judge::scores(&judged)))
}
