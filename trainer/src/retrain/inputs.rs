//! What a job brings: its spec, the parent, and the images, all checked.

use std::{collections::BTreeMap, path::PathBuf};

use andon_protocol::{
    ids::{DeviceId, Digest},
    job::{Item, JobSpec, Part},
    release::{MANIFEST_BYTES_MAX, MANIFEST_FILE, MODEL_FILE, Manifest},
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    data::{self, Pixels, Source},
    evaluate::MODEL_BYTES_MAX,
    graph::{self, Graph},
    release::{self, Task},
    report::Report,
    team::Team,
};

/// Most items and field images of a job.
const ITEMS_MAX: usize = 200_000;

/// A decoded item.
pub(super) struct Shot {
    pub(super) class: usize,
    pub(super) part: Part,
    pub(super) device: Option<DeviceId>,
    pub(super) drifted: bool,
    pub(super) path: PathBuf,
    pub(super) pixels: Pixels,
}

/// The parent, as far as training and comparison need it.
pub(super) struct Parent {
    pub(super) manifest: Manifest,
    pub(super) int8: Vec<u8>,
    pub(super) graph: Graph,
    pub(super) task: Task,
}

impl Parent {
    pub(super) fn load(spec: &JobSpec) -> anyhow::Result<Self> {
        let folder = &spec.parent_dir;
        let manifest =
            Manifest::from_json(&release::read(&folder.join(MANIFEST_FILE), MANIFEST_BYTES_MAX as u64)?)?;
        let int8 = release::read(&folder.join(MODEL_FILE), MODEL_BYTES_MAX)?;
        let size = (manifest.input.height as usize, manifest.input.width as usize);
        let graph = graph::read(&release::read(&spec.parent_float, MODEL_BYTES_MAX)?, Some(size))?;
        let input = (graph.channels as u32, graph.height as u32, graph.width as u32);
        anyhow::ensure!(
            input == (manifest.input.channels, manifest.input.height, manifest.input.width)
                && graph.classes() == manifest.labels.len(),
            "the parent's float model (input {input:?}, {} classes) is not the network of its manifest",
            graph.classes()
        );
        let task = Task {
            input: manifest.input.clone(),
            preprocessing: manifest.preprocessing.clone(),
            labels: manifest.labels.clone(),
            decision: manifest.decision.clone(),
        };
        Ok(Self { manifest, int8, graph, task })
    }
}

/// What a spec must hold before anything is read.
pub(super) fn check(spec: &JobSpec) -> anyhow::Result<()> {
    anyhow::ensure!(
        spec.schema == JobSpec::SCHEMA,
        "the job's schema is {:?}, expected {:?}",
        spec.schema,
        JobSpec::SCHEMA
    );
    let n = spec.items.len() + spec.unlabelled.len();
    anyhow::ensure!(n <= ITEMS_MAX, "the job has {n} images, allowed are {ITEMS_MAX}");
    let gate = &spec.gate;
    for (name, value) in [
        ("agreement_min", gate.agreement_min),
        ("clean_loss_max", gate.clean_loss_max),
        ("drift_gain_min", gate.drift_gain_min),
    ] {
        anyhow::ensure!(
            value.is_finite() && value.abs() <= 1.0,
            "gate.{name} is {value}, expected a number from -1 to 1"
        );
    }
    if let Some(rate) = spec.recipe.learning_rate {
        anyhow::ensure!(
            rate > 0.0 && rate <= 1.0,
            "recipe.learning_rate is {rate}, expected a number above 0, at most 1"
        );
    }
    anyhow::ensure!(
        spec.release.model() == spec.parent.model() && spec.release.version() > spec.parent.version(),
        "release {} is no later version of its parent {}",
        spec.release,
        spec.parent
    );
    Ok(())
}

/// Where a blob lies.
fn blob(spec: &JobSpec, digest: &Digest) -> PathBuf {
    let hex = digest.to_string();
    spec.blobs.join(&hex[..2]).join(&hex[2..])
}

pub(super) fn read_items(
    team: &Team,
    spec: &JobSpec,
    task: &Task,
    report: &mut Report,
) -> anyhow::Result<Vec<Shot>> {
    let classes = task.labels.len();
    if let Some(bad) = spec.items.iter().find(|i| i.class as usize >= classes) {
        anyhow::bail!("image {} has class {}, the model has {classes} classes", bad.image, bad.class);
    }
    let items = reduced(&spec.items, spec.recipe.train_images_max, spec.seed);
    let sources: Vec<Source> =
        items.iter().map(|i| Source { name: i.image.to_string(), path: blob(spec, &i.image) }).collect();
    let (pixels, broken) = data::load(team, &sources, &task.input)?;
    report.broken.extend(broken.into_iter().map(|b| (b.name, b.reason)));
    let shots = items.into_iter().zip(sources).zip(pixels).filter_map(|((item, source), pixels)| {
        Some(Shot {
            class: item.class as usize,
            part: item.part,
            device: item.device.clone(),
            drifted: item.drifted,
            path: source.path,
            pixels: pixels?,
        })
    });
    Ok(shots.collect())
}

/// All items but old training images beyond `max`: a seeded choice, each class in proportion.
fn reduced(items: &[Item], max: Option<u32>, seed: u64) -> Vec<&Item> {
    let is_old = |i: &&Item| i.part == Part::Train && i.device.is_none();
    let old = items.iter().filter(is_old).count();
    let Some(max) = max.map(|m| m.max(1) as usize).filter(|m| *m < old) else {
        return items.iter().collect();
    };
    let mut chosen: Vec<&Item> = items.iter().filter(|i| !is_old(i)).collect();
    let mut rng = StdRng::seed_from_u64(seed ^ 0x7261_696e);
    let mut by_class: BTreeMap<u32, Vec<&Item>> = BTreeMap::new();
    for item in items.iter().filter(is_old) {
        by_class.entry(item.class).or_default().push(item);
    }
    for mut members in by_class.into_values() {
        members.shuffle(&mut rng);
        let share = (members.len() * max / old).max(1);
        chosen.extend(members.into_iter().take(share));
    }
    chosen
}

pub(super) fn read_field(
    team: &Team,
    spec: &JobSpec,
    task: &Task,
    report: &mut Report,
) -> anyhow::Result<BTreeMap<DeviceId, Vec<Pixels>>> {
    let sources: Vec<Source> = spec
        .unlabelled
        .iter()
        .map(|f| Source { name: f.image.to_string(), path: blob(spec, &f.image) })
        .collect();
    let (pixels, broken) = data::load(team, &sources, &task.input)?;
    report.broken.extend(broken.into_iter().map(|b| (b.name, b.reason)));
    let mut field: BTreeMap<DeviceId, Vec<Pixels>> = BTreeMap::new();
    for (image, pixels) in spec.unlabelled.iter().zip(pixels) {
        field.entry(image.device.clone()).or_default().extend(pixels);
    }
    Ok(field)
}
