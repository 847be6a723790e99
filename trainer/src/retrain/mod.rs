//! The next release of a model: learns today's look from yesterday's labels, and proves that it helped.
//!
//! What is at hand is little: old labelled images, at most some hundred labelled field images, and unlabelled field
//! images of the drifted devices. So the field images say how each drifted device sees now ([`Appearance`]), copies of
//! the old images are put into that look, and the tail is trained on clean and matched images together, with the parent
//! as a teacher on the clean side so that nothing there is unlearnt. Labelled field images join with a larger weight.
//!
//! The gate compares old and new int8 models with the device's engine: on golden and validation images nothing may be
//! lost, on labelled field images that were kept out something must be won.

mod inputs;
mod plan;

use std::collections::BTreeMap;

use andon_protocol::{
    ids::{DeviceId, Digest},
    job::{JobResult, JobSpec, Outcome, Part},
    release::Lineage,
};

use self::{
    inputs::{Parent, Shot, check, read_field, read_items},
    plan::{Plan, samples},
};
use crate::{
    appearance::Appearance,
    clock::{self, Stopwatch},
    cut,
    data::Pixels,
    finish::{self, Finished, book, rule},
    fit::{cancelled, softmaxes, whole_logits},
    golden,
    graph::{self, Engine},
    judge::{judge, scores},
    metrics,
    progress::{Sink, Stage},
    reference,
    release::{self, Release, TRAINER},
    report::Report,
    team::Team,
    train::{Cache, Schedule, logits, tune},
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
            tail_macs_max: 57_000_000,
            epochs: 2,
            learning_rate: 0.005,
            teacher: 0.5,
            field_weight: 2.0,
            looks_max: 4,
        }
    }
}

const GOLDEN_IMAGES: usize = 24;
/// Validation images that choose the epoch, in each look.
const WATCHED_MAX: usize = 150;

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
    let watched = finish::spread(&validation, WATCHED_MAX);
    let plan = Plan::new(&old, &watched, &labelled, &looks, spec.seed);
    let stage = Stage::new(sink, "features", 0.05, 0.45);
    let image = |i: usize| plan.image(i).normalised(constants);
    cache.extend(&team, &engine, &graph, plan.versions.len(), &image, &|d| stage.report(d))?;
    report.lap(&mut watch, "features");

    let clean: Vec<usize> = (0..old.len()).collect();
    let teacher = softmaxes(&logits(&team, &engine, &graph, &cache, &clean)?);
    let (training, checks) = samples(&plan, &old, &watched, &labelled, &teacher, settings, graph.classes());
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
        tune(&team, &engine, &mut graph, &cache, &training, &checks, &schedule, &|d| stage.report(d))?;
    (report.training_loss, report.validation_loss, report.best_epoch) =
        (tuned.training_loss, tuned.validation_loss, tuned.best_epoch);
    report.lap(&mut watch, "tune");

    let stage = Stage::new(sink, "quantising and judging", 0.85, 1.0);
    let versions: Vec<usize> = plan.validation.clone().collect();
    // On clean images the parent's reject rate stays; a matched look is trained to give the clean look's scores.
    let pixels: Vec<&Pixels> = validation.iter().map(|s| &s.pixels).collect();
    let before = whole_logits(&team, &engine, &parent.graph, constants, &pixels)?;
    let after = whole_logits(&team, &engine, &graph, constants, &pixels)?;
    finish::keep_rate(&mut graph, task, &before, &after);
    let float = logits(&team, &engine, &graph, &cache, &versions)?;
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
    let checked: Vec<Pixels> = versions.iter().map(|i| plan.image(*i)).collect();
    let Finished { int8, agreement, .. } = finish::finish(
        &team,
        &engine,
        &graph,
        task,
        &manifest,
        &calibration.iter().collect::<Vec<_>>(),
        &checked.iter().collect::<Vec<_>>(),
        &float,
        spec.gate.agreement_min,
    )?;
    report.numbers.insert("agreement".into(), agreement);
    report.lap(&mut watch, "quantise");
    cancelled(stage.report(0.4))?;

    // Old against new, set by set, both int8, both through the device's engine.
    let mut exam = |name: &str, shots: &[&Shot]| -> anyhow::Result<Exam> {
        let pixels: Vec<&Pixels> = shots.iter().map(|s| &s.pixels).collect();
        let labels: Vec<usize> = shots.iter().map(|s| s.class).collect();
        let old = judge(&team, &parent.int8, &parent.manifest, &pixels)?;
        let new = judge(&team, &int8, &manifest, &pixels)?;
        if !shots.is_empty() {
            for (era, judged) in [("old", &old), ("new", &new)] {
                book(&mut report, (name, Some(era)), task, &labels, &scores(judged));
            }
        }
        Ok((labels, old, new))
    };
    let on_validation = exam("validation", &validation)?;
    let on_golden = exam("golden", &golden)?;
    let on_held = exam("held_back", &held)?;
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
        let images = validation.iter().chain(&golden).map(|s| &s.pixels);
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
