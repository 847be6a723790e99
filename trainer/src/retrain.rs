//! The next release of a model: learns today's look from yesterday's labels, and proves that it helped.
//!
//! What is at hand is little: old labelled images, at most some hundred labelled field images, and unlabelled field
//! images of the drifted devices. So the field images say how each drifted device sees now ([`Appearance`]), copies of
//! the old images are put into that look, and the tail is trained on clean and matched images together, with the parent
//! as a teacher on the clean side so that nothing there is unlearnt. Labelled field images join with a larger weight.
//!
//! The gate compares old and new int8 models with the device's engine: on golden and validation images nothing may be
//! lost, on labelled field images that were kept out something must be won.

use std::{collections::BTreeMap, path::PathBuf};

use andon_protocol::{
    ids::{DeviceId, Digest},
    job::{Item, JobResult, JobSpec, Outcome, Part},
    release::{Lineage, MANIFEST_BYTES_MAX, MANIFEST_FILE, MODEL_FILE, Manifest},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    appearance::Appearance,
    clock::{self, Stopwatch},
    cut,
    data::{self, Pixels, Source},
    evaluate::MODEL_BYTES_MAX,
    finish::{self, Finished, book, rule},
    fit::{cancelled, flips, smooth, softmaxes, whole_logits},
    golden,
    graph::{self, Engine, Graph},
    judge::{judge, scores},
    metrics,
    progress::{Sink, Stage},
    reference,
    release::{self, Release, TRAINER, Task},
    report::Report,
    team::Team,
    train::{Cache, Sample, Schedule, class_weights, logits, tune},
};

/// Settings of the recipe that a job may not change.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Multiply-adds per image that are trained.
    pub tail_macs_max: usize,
    pub epochs: usize,
    pub learning_rate: f32,
    /// Share of the parent's opinion in the target of an old image.
    pub teacher: f32,
    /// Weight of a labelled field image; an old one has 1.
    pub field_weight: f32,
    /// Looks that are learnt at most, those with most field images first.
    pub looks_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tail_macs_max: 75_000_000,
            epochs: 3,
            learning_rate: 0.004,
            teacher: 0.5,
            field_weight: 2.0,
            looks_max: 4,
        }
    }
}

const GOLDEN_IMAGES: usize = 24;
/// Most items and field images of a job.
const ITEMS_MAX: usize = 200_000;

/// A decoded item.
struct Shot {
    class: usize,
    part: Part,
    device: Option<DeviceId>,
    drifted: bool,
    path: PathBuf,
    pixels: Pixels,
}

/// The parent, as far as training and comparison need it.
struct Parent {
    manifest: Manifest,
    int8: Vec<u8>,
    graph: Graph,
    task: Task,
}

impl Parent {
    fn load(spec: &JobSpec) -> anyhow::Result<Self> {
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

/// Does the job. `Ok` covers refused as well; an error is a job that could not be done.
pub fn retrain(
    spec: &JobSpec,
    out: &std::path::Path,
    settings: &Settings,
    sink: Sink,
) -> anyhow::Result<JobResult> {
    check(spec)?;
    let mut report = Report::default();
    let mut watch = Stopwatch::start();
    let team = Team::new()?;
    let parent = Parent::load(spec)?;
    let (task, constants) = (&parent.task, &parent.task.preprocessing);
    let mut graph = parent.graph.clone();
    let engine = Engine::new(&graph)?;

    let stage = Stage::new(sink, "reading images", 0.0, 0.05);
    let shots = read_items(&team, spec, task, &mut report)?;
    let field = read_field(&team, spec, task, &mut report)?;
    cancelled(stage.report(1.0))?;
    report.lap(&mut watch, "read");

    let of =
        |part: Part| shots.iter().filter(move |s| s.part == part && s.device.is_none()).collect::<Vec<_>>();
    let (old, validation, golden) = (of(Part::Train), of(Part::Validation), of(Part::Golden));
    for (name, shots) in [("training", &old), ("validation", &validation), ("golden", &golden)] {
        anyhow::ensure!(!shots.is_empty(), "the job has no {name} images from before the drift");
    }
    let labelled: Vec<&Shot> = shots.iter().filter(|s| s.part == Part::Train && s.device.is_some()).collect();
    let held: Vec<&Shot> = shots.iter().filter(|s| s.part == Part::HeldBack && s.drifted).collect();
    let looks = looks(&old, &shots, &field, settings, &mut report);
    report.lap(&mut watch, "appearance");

    // Every image that is trained on or watched during training, at the cut.
    let cut = cut::choose(&engine, &graph, settings.tail_macs_max);
    let mut cache = Cache::new(&engine, &graph, cut);
    let plan = Plan::new(&old, &validation, &labelled, &looks, spec.seed);
    let stage = Stage::new(sink, "features", 0.05, 0.45);
    let image = |i: usize| plan.image(i).normalised(constants);
    cache.extend(&team, &engine, &graph, plan.versions.len(), &image, &|d| stage.report(d))?;
    report.lap(&mut watch, "features");

    let clean: Vec<usize> = (0..old.len()).collect();
    let teacher = softmaxes(&logits(&team, &engine, &graph, &cache, &clean)?);
    let (training, watched) =
        samples(&plan, &old, &validation, &labelled, &teacher, settings, graph.classes());
    let stage = Stage::new(sink, "training", 0.45, 0.85);
    let schedule = Schedule {
        epochs: spec.recipe.epochs.map_or(settings.epochs, |e| e.clamp(1, 100) as usize),
        learning_rate: spec.recipe.learning_rate.unwrap_or(settings.learning_rate),
        momentum: 0.9,
        weight_decay: 1e-4,
        batch: 32,
        gradient_max: 4.0,
        patience: 3,
        seed: spec.seed,
    };
    let tuned =
        tune(&team, &engine, &mut graph, &cache, &training, &watched, &schedule, &|d| stage.report(d))?;
    (report.training_loss, report.validation_loss, report.best_epoch) =
        (tuned.training_loss, tuned.validation_loss, tuned.best_epoch);
    report.lap(&mut watch, "tune");

    let stage = Stage::new(sink, "quantising and judging", 0.85, 1.0);
    let watched_versions: Vec<usize> = plan.validation.clone().collect();
    let labels: Vec<usize> = plan.validation.clone().map(|i| plan.class(i, &validation)).collect();
    let before = logits(&team, &engine, &graph, &cache, &watched_versions)?;
    finish::centre(&mut graph, task, &labels, &before);
    let float = logits(&team, &engine, &graph, &cache, &watched_versions[..validation.len()])?;
    drop(cache);
    let float_bytes = graph::write(&graph);
    let lineage = Lineage {
        parent: Some(spec.parent.clone()),
        dataset: spec.dataset,
        float_model: Digest::of(&float_bytes),
        trainer: TRAINER.into(),
        seed: spec.seed,
    };
    let mut manifest =
        release::manifest(task, &graph, spec.release.clone(), lineage, clock::now_ms(), BTreeMap::new());
    let calibration = plan.calibration();
    let validation_pixels: Vec<&Pixels> = validation.iter().map(|s| &s.pixels).collect();
    let Finished { int8, validation: judged, agreement } = finish::finish(
        &team,
        &engine,
        &graph,
        task,
        &manifest,
        &calibration.iter().collect::<Vec<_>>(),
        &validation_pixels,
        &float,
        spec.gate.agreement_min,
    )?;
    report.numbers.insert("agreement".into(), agreement);
    report.lap(&mut watch, "quantise");
    cancelled(stage.report(0.4))?;

    // Old against new, set by set, both int8, both through the device's engine.
    let mut exam =
        |name: &str, shots: &[&Shot], new: Option<Vec<andon_runtime::Judgement>>| -> anyhow::Result<_> {
            let pixels: Vec<&Pixels> = shots.iter().map(|s| &s.pixels).collect();
            let labels: Vec<usize> = shots.iter().map(|s| s.class).collect();
            let old = judge(&team, &parent.int8, &parent.manifest, &pixels)?;
            let new = match new {
                Some(judged) => judged,
                None => judge(&team, &int8, &manifest, &pixels)?,
            };
            if !shots.is_empty() {
                book(&mut report, &format!("{name}.old"), task, &labels, &scores(&old));
                book(&mut report, &format!("{name}.new"), task, &labels, &scores(&new));
            }
            Ok((labels, old, new))
        };
    let on_validation = exam("validation", &validation, Some(judged))?;
    let on_golden = exam("golden", &golden, None)?;
    let on_held = exam("held_back", &held, None)?;
    cancelled(stage.report(0.8))?;

    let clean = joined(&on_validation, &on_golden);
    let balanced = |(labels, old, new): &Exam| {
        let of = |j: &[andon_runtime::Judgement]| {
            metrics::measure(rule(task), labels, &scores(j)).balanced_accuracy
        };
        (of(old), of(new))
    };
    let (clean_old, clean_new) = balanced(&clean);
    report.numbers.insert("clean.balanced_accuracy.old".into(), clean_old);
    report.numbers.insert("clean.balanced_accuracy.new".into(), clean_new);
    let drift = (!held.is_empty()).then(|| balanced(&on_held));
    let verdict = Verdict::of(spec, clean_old, clean_new, drift, held.len());

    if verdict.passed {
        let golden_pixels: Vec<&Pixels> = golden.iter().map(|s| &s.pixels).collect();
        let golden_float = softmaxes(&whole_logits(&team, &engine, &graph, constants, &golden_pixels)?);
        let paths: Vec<_> = golden.iter().map(|s| s.path.as_path()).collect();
        let (cases, tolerance) =
            golden::choose(&paths, &on_golden.0, &on_golden.2, &golden_float, GOLDEN_IMAGES)?;
        // Of the clean look only: a drifted device re-centres on its own frames when this release reaches it, and the
        // spread between looks would make the charts blind.
        let images = validation_pixels.iter().chain(&golden_pixels).copied();
        let reference = reference::fit(images, on_validation.2.iter().chain(&on_golden.2), spec.seed)?;
        manifest.metrics = report.numbers.clone();
        let release =
            Release { manifest, model: int8, float: float_bytes, reference, golden: cases, tolerance };
        release.write(out)?;
    }
    report.lap(&mut watch, "judge");
    release::put(&out.join("report.json"), &release::json(&report))?;
    cancelled(stage.report(1.0))?;
    let outcome = if verdict.passed { Outcome::Succeeded } else { Outcome::Refused };
    Ok(JobResult { outcome, verdict: verdict.words, metrics: report.numbers, seconds: report.seconds })
}

type Exam = (Vec<usize>, Vec<andon_runtime::Judgement>, Vec<andon_runtime::Judgement>);

fn joined(a: &Exam, b: &Exam) -> Exam {
    (
        [a.0.as_slice(), &b.0].concat(),
        a.1.iter().chain(&b.1).cloned().collect(),
        a.2.iter().chain(&b.2).cloned().collect(),
    )
}

/// What the gate decided, in words.
struct Verdict {
    passed: bool,
    words: String,
}

impl Verdict {
    fn of(spec: &JobSpec, clean_old: f64, clean_new: f64, drift: Option<(f64, f64)>, held: usize) -> Self {
        let (loss, allowed) = (clean_old - clean_new, spec.gate.clean_loss_max);
        let clean = format!(
            "On clean images (golden and validation) balanced accuracy went from {clean_old:.3} to {clean_new:.3} (a loss of at most \
             {allowed:.3} is allowed)"
        );
        let Some((old, new)) = drift else {
            return Self {
                passed: false,
                words: format!("Refused: {clean}; no labelled field image was kept back to show a gain."),
            };
        };
        let (gain, wanted) = (new - old, spec.gate.drift_gain_min);
        let drift = format!(
            "on {held} labelled images of drifted devices that training never saw it went from {old:.3} to {new:.3} (a gain of at \
             least {wanted:.3} is wanted)"
        );
        // Comparisons of means of a few hundred images: a rounding error must not decide.
        let passed = loss <= allowed + 1e-9 && gain >= wanted - 1e-9;
        let word = if passed { "Accepted" } else { "Refused" };
        Self { passed, words: format!("{word}: {clean}; {drift}.") }
    }
}

/// What a spec must hold before anything is read.
fn check(spec: &JobSpec) -> anyhow::Result<()> {
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

fn read_items(team: &Team, spec: &JobSpec, task: &Task, report: &mut Report) -> anyhow::Result<Vec<Shot>> {
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

fn read_field(
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

/// How each drifted device sees now. Labelled field images count too: their pixels are as good as any.
fn looks(
    old: &[&Shot],
    shots: &[Shot],
    field: &BTreeMap<DeviceId, Vec<Pixels>>,
    settings: &Settings,
    report: &mut Report,
) -> Vec<Appearance> {
    let mut by_device: BTreeMap<&DeviceId, Vec<&Pixels>> = BTreeMap::new();
    for (device, pixels) in field {
        by_device.entry(device).or_default().extend(pixels);
    }
    // Held-back images stay out: even their pixels are for the gate alone.
    for shot in shots.iter().filter(|s| s.drifted && s.part != Part::HeldBack) {
        if let Some(device) = &shot.device {
            by_device.entry(device).or_default().push(&shot.pixels);
        }
    }
    let mut devices: Vec<_> = by_device.into_iter().collect();
    devices.sort_by_key(|(_, pixels)| std::cmp::Reverse(pixels.len()));
    let old: Vec<&Pixels> = old.iter().map(|s| &s.pixels).collect();
    let mut looks = Vec::new();
    for (device, pixels) in devices {
        let look = Appearance::estimate(&old, &pixels);
        let words = match &look {
            None => format!("too few images ({}) to say", pixels.len()),
            Some(look) => look.describe(),
        };
        report.looks.insert(device.to_string(), words);
        if looks.len() < settings.looks_max {
            looks.extend(look.filter(|l| !l.is_identity()));
        }
    }
    looks
}

/// One image to run through the prefix.
enum Version<'a> {
    Plain(&'a Pixels),
    Flipped(&'a Pixels, (bool, bool)),
    Matched { image: &'a Pixels, look: &'a Appearance, flip: (bool, bool), strength: f32, seed: u64 },
}

/// All images that training touches, and where each group lies.
struct Plan<'a> {
    versions: Vec<Version<'a>>,
    /// Old images as they are start at 0; mirrored ones follow; then one group per look, then the labelled field images
    /// (each plain and mirrored), then validation plain, then validation per look.
    looks: Vec<usize>,
    labelled: usize,
    validation: std::ops::Range<usize>,
}

impl<'a> Plan<'a> {
    fn new(
        old: &[&'a Shot],
        validation: &[&'a Shot],
        labelled: &[&'a Shot],
        looks: &'a [Appearance],
        seed: u64,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6c6f_6f6b);
        let mut versions: Vec<Version> = old.iter().map(|s| Version::Plain(&s.pixels)).collect();
        versions.extend(old.iter().zip(flips(old.len(), seed)).map(|(s, f)| Version::Flipped(&s.pixels, f)));
        let mut starts = Vec::new();
        for look in looks {
            starts.push(versions.len());
            for shot in old {
                // Mostly the look itself and a little around it; at times a weaker form, as on the way there.
                let strength = if rng.random_bool(0.75) {
                    rng.random_range(0.85..1.1)
                } else {
                    rng.random_range(0.2..0.85)
                };
                let flip = (rng.random_bool(0.5), rng.random_bool(0.5));
                versions.push(Version::Matched {
                    image: &shot.pixels,
                    look,
                    flip,
                    strength,
                    seed: rng.random(),
                });
            }
        }
        let labelled_start = versions.len();
        for (shot, flip) in labelled.iter().zip(flips(labelled.len(), seed ^ 1)) {
            versions.extend([Version::Plain(&shot.pixels), Version::Flipped(&shot.pixels, flip)]);
        }
        let validation_start = versions.len();
        versions.extend(validation.iter().map(|s| Version::Plain(&s.pixels)));
        for look in looks {
            let matched = validation.iter().map(|s| Version::Matched {
                image: &s.pixels,
                look,
                flip: (false, false),
                strength: 1.0,
                seed: rng.random(),
            });
            versions.extend(matched.collect::<Vec<_>>());
        }
        let validation = validation_start..versions.len();
        Self { versions, looks: starts, labelled: labelled_start, validation }
    }

    fn image(&self, i: usize) -> Pixels {
        match &self.versions[i] {
            Version::Plain(pixels) => (*pixels).clone(),
            Version::Flipped(pixels, (across, down)) => pixels.flipped(*across, *down),
            Version::Matched { image, look, flip, strength, seed } => {
                look.apply(image, *strength, *seed).flipped(flip.0, flip.1)
            }
        }
    }

    /// Class of validation version `i`.
    fn class(&self, i: usize, validation: &[&Shot]) -> usize {
        validation[(i - self.validation.start) % validation.len()].class
    }

    /// Some of everything, as the network will see it.
    fn calibration(&self) -> Vec<Pixels> {
        let all: Vec<usize> = (0..self.validation.start).collect();
        finish::spread(&all, finish::CALIBRATION_IMAGES).into_iter().map(|i| self.image(i)).collect()
    }
}

/// Training and validation samples over the plan's versions.
fn samples(
    plan: &Plan,
    old: &[&Shot],
    validation: &[&Shot],
    labelled: &[&Shot],
    teacher: &[Vec<f32>],
    settings: &Settings,
    classes: usize,
) -> (Vec<Sample>, Vec<Sample>) {
    let weight = class_weights(&old.iter().map(|s| s.class).collect::<Vec<_>>(), classes);
    let taught = |i: usize| -> Vec<f32> {
        let label = smooth(old[i].class, classes);
        label
            .iter()
            .zip(&teacher[i])
            .map(|(l, t)| (1.0 - settings.teacher) * l + settings.teacher * t)
            .collect()
    };
    let mut training = Vec::new();
    for (i, shot) in old.iter().enumerate() {
        let target = taught(i);
        training.push(Sample {
            versions: vec![i, old.len() + i],
            target: target.clone(),
            weight: weight[shot.class],
        });
        for start in &plan.looks {
            training.push(Sample {
                versions: vec![start + i],
                target: target.clone(),
                weight: weight[shot.class],
            });
        }
    }
    for (i, shot) in labelled.iter().enumerate() {
        let first = plan.labelled + 2 * i;
        let target = smooth(shot.class, classes);
        let weight = weight[shot.class] * settings.field_weight;
        training.push(Sample { versions: vec![first, first + 1], target, weight });
    }
    let watched = plan.validation.clone().map(|i| {
        let class = plan.class(i, validation);
        Sample { versions: vec![i], target: smooth(class, classes), weight: weight[class] }
    });
    (training, watched.collect())
}
