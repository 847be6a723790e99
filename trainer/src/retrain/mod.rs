//! The next release of a model: learns today's look from yesterday's labels, and proves that it helped.
//!
//! What is at hand is little: old labelled images, at most some hundred labelled field images, and unlabelled field
//! images of the drifted devices. So the field images say how each drifted device sees now ([`Appearance`]), copies of
//! the old images are put into that look, and the tail is trained on clean and matched images together, with the parent
//! as a teacher on the clean side so that nothing there is unlearnt. Labelled field images join with a larger weight.
//!
//! The [`gate`] compares old and new int8 models with the device's engine: on golden and validation images nothing may be
//! lost, on the same images in the drifted looks something must be won, and labelled field images that were kept out
//! must not speak against it.

mod gate;
mod inputs;
mod plan;

use std::collections::BTreeMap;

use andon_protocol::{
    ids::{DeviceId, Digest},
    job::{JobResult, JobSpec, Outcome, Part},
    release::Lineage,
};

use self::{
    gate::Exam,
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
    progress::{Sink, Stage},
    reference,
    release::{self, Release, TRAINER},
    report::Report,
    team::Team,
    train::{Cache, Keep, Schedule, logits, tune},
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
/// Validation images that choose the epoch and the decision point, in each look.
const WATCHED_MAX: usize = 300;

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
        keep: Keep::Last,
        seed: spec.seed,
    };
    let tuned =
        tune(&team, &engine, &mut graph, &cache, &training, &checks, &schedule, &|d| stage.report(d))?;
    (report.training_loss, report.validation_loss, report.best_epoch) =
        (tuned.training_loss, tuned.validation_loss, tuned.best_epoch);
    report.lap(&mut watch, "tune");

    let stage = Stage::new(sink, "quantising and judging", 0.85, 1.0);
    let versions: Vec<usize> = plan.validation.clone().collect();
    // The best decision point over all looks at once, found as the first release's was.
    let classes: Vec<usize> = versions.iter().map(|i| plan.class(*i, &watched)).collect();
    let float = logits(&team, &engine, &graph, &cache, &versions)?;
    finish::centre(&mut graph, task, &classes, &float);
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
    let mut exam = |name: &str, labels: Vec<usize>, pixels: &[&Pixels]| -> anyhow::Result<Exam> {
        let old = judge(&team, &parent.int8, &parent.manifest, pixels)?;
        let new = judge(&team, &int8, &manifest, pixels)?;
        if !labels.is_empty() {
            for (era, judged) in [("old", &old), ("new", &new)] {
                book(&mut report, (name, Some(era)), task, &labels, &scores(judged));
            }
        }
        Ok(Exam { labels, old, new })
    };
    let labels_of = |shots: &[&Shot]| shots.iter().map(|s| s.class).collect::<Vec<_>>();
    let mut of_shots = |name: &str, shots: &[&Shot]| {
        exam(name, labels_of(shots), &shots.iter().map(|s| &s.pixels).collect::<Vec<_>>())
    };
    let on_validation = of_shots("validation", &validation)?;
    let on_golden = of_shots("golden", &golden)?;
    let on_held = of_shots("held_back", &held)?;
    let unseen: Vec<&Shot> = validation.iter().chain(&golden).copied().collect();
    let mut in_look = Vec::new();
    for (i, (device, look)) in looks.iter().enumerate() {
        let seed = |k: usize| spec.seed ^ (0x6761_7465 + ((i as u64) << 32) + k as u64);
        let seen =
            team.map(unseen.len(), |k| Ok::<_, anyhow::Error>(look.apply(&unseen[k].pixels, 1.0, seed(k))))?;
        in_look.push(exam(
            &format!("in_look.{device}"),
            labels_of(&unseen),
            &seen.iter().collect::<Vec<_>>(),
        )?);
    }
    cancelled(stage.report(0.8))?;

    let change = |exam: &Exam| exam.change(rule(task), graph.classes());
    let clean = change(&Exam::joined(&[&on_validation, &on_golden]));
    let clean = clean.ok_or_else(|| anyhow::anyhow!("there is no clean image to compare on"))?;
    report.numbers.insert("clean.balanced_accuracy.old".into(), clean.old);
    report.numbers.insert("clean.balanced_accuracy.new".into(), clean.new);
    let in_look = change(&Exam::joined(&in_look.iter().collect::<Vec<_>>()));
    let verdict = gate::judge(&spec.gate, clean, in_look, change(&on_held));

    if verdict.passed {
        let golden_pixels: Vec<&Pixels> = golden.iter().map(|s| &s.pixels).collect();
        let golden_float = softmaxes(&whole_logits(&team, &engine, &graph, constants, &golden_pixels)?);
        let paths: Vec<_> = golden.iter().map(|s| s.path.as_path()).collect();
        let (cases, tolerance) =
            golden::choose(&paths, &on_golden.labels, &on_golden.new, &golden_float, GOLDEN_IMAGES)?;
        // Of the clean look only: a drifted device re-centres on its own frames when this release reaches it, and the
        // spread between looks would make the charts blind.
        let images = validation.iter().chain(&golden).map(|s| &s.pixels);
        let reference = reference::fit(images, on_validation.new.iter().chain(&on_golden.new), spec.seed)?;
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

/// How each drifted device sees now. Labelled field images count too: their pixels are as good as any.
fn looks(
    old: &[&Shot],
    shots: &[Shot],
    field: &BTreeMap<DeviceId, Vec<Pixels>>,
    settings: &Settings,
    report: &mut Report,
) -> Vec<(DeviceId, Appearance)> {
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
            looks.extend(look.filter(|l| !l.is_identity()).map(|l| (device.clone(), l)));
        }
    }
    looks
}
