//! The first release of a model: from a base network and a labelled folder to a release folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use andon_drift::Reference;
use andon_protocol::{
    ids::{Digest, ReleaseId},
    release::{Decision, Fit, Input, Lineage, Preprocessing},
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    clock::Stopwatch,
    cut,
    data::{self, DataSet, Example, Pixels, Source},
    finish::{self, Finished},
    golden,
    graph::{self, Engine, Graph},
    progress::{Sink, Stage},
    reference,
    release::{self, Release, TRAINER, Task},
    report::Report,
    team::Team,
    train::{Cache, Keep, Sample, Schedule, fit_head, logits, tail, tune},
    zoo,
};

/// Largest ONNX file taken as a base.
const BASE_BYTES_MAX: u64 = 512 << 20;

/// Where the network comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Published weights of EfficientNet-Lite0.
    EfficientNetLite0(PathBuf),
    /// A float classifier as ONNX.
    Onnx(PathBuf),
}

#[derive(Debug, Clone, PartialEq)]
pub struct FitOptions {
    pub images: PathBuf,
    pub base: Base,
    pub model: String,
    pub out: PathBuf,
    /// Side of the network's input; for an ONNX base only where it leaves that open.
    pub size: usize,
    pub seed: u64,
    pub epochs: usize,
    pub train_images_max: usize,
    pub learning_rate: f32,
    /// Class that rejects a part; guessed from common names if not given.
    pub reject: Option<String>,
    /// Per channel; the base's usual values if not given.
    pub mean: Option<Vec<f32>>,
    pub std: Option<Vec<f32>>,
    /// The grey beside images whose aspect ratio is kept; without, they are stretched.
    pub letterbox: Option<u8>,
    pub agreement_min: f64,
    pub created_ms: i64,
}

/// Multiply-adds per image that are trained.
const TAIL_MACS_MAX: usize = 48_000_000;
const HEAD_PENALTY: f32 = 0.02;
const GOLDEN_IMAGES: usize = 24;

/// The images of one split, decoded.
pub(crate) struct Split<'a> {
    pub(crate) examples: Vec<&'a Example>,
    pub(crate) pixels: Vec<Pixels>,
}

impl Split<'_> {
    pub(crate) fn labels(&self) -> Vec<usize> {
        self.examples.iter().map(|e| e.class).collect()
    }

    pub(crate) fn refs(&self) -> Vec<&Pixels> {
        self.pixels.iter().collect()
    }
}

/// Trains, proves and writes `out/`. Returns what it did.
pub fn fit(options: &FitOptions, sink: Sink) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let mut watch = Stopwatch::start();
    let team = Team::new()?;
    let set = DataSet::open(&options.images, options.seed)?;
    let release = ReleaseId::new(&options.model, 1)?;
    let mut graph = base_graph(options, set.labels.len())?;
    let task = task(options, &graph, &set.labels)?;
    let engine = Engine::new(&graph)?;

    let stage = Stage::new(sink, "reading images", 0.0, 0.05);
    let chosen = choose(&set.of("train"), options.train_images_max, options.seed);
    let [train, validation, golden] =
        [chosen, set.of("validation"), set.of("golden")].map(|e| read(&team, e, &task.input, &mut report));
    let (train, validation, golden) = (train?, validation?, golden?);
    let kept_out = validation.pixels.len() + golden.pixels.len();
    anyhow::ensure!(
        kept_out >= Reference::FRAMES_MIN,
        "{kept_out} validation and golden images are too few to know drift by: give at least {}, best several hundred",
        Reference::FRAMES_MIN
    );
    for (name, split) in [("train", &train), ("validation", &validation), ("golden", &golden)] {
        report.images.insert(name.into(), split.examples.len());
    }
    cancelled(stage.report(1.0))?;
    report.lap(&mut watch, "read");

    let cut = cut::choose(&engine, &graph, TAIL_MACS_MAX);
    let mut cache = Cache::new(&engine, &graph, cut);
    let constants = &task.preprocessing;
    let stage = Stage::new(sink, "features", 0.05, 0.35);
    let flips = flips(train.pixels.len(), options.seed);
    let n = train.pixels.len();
    let train_image = |i: usize| {
        let image = &train.pixels[i % n];
        let (across, down) = flips[i % n];
        if i < n { image.normalised(constants) } else { image.flipped(across, down).normalised(constants) }
    };
    cache.extend(&team, &engine, &graph, 2 * n, &train_image, &|d| stage.report(d * 0.85))?;
    let validation_image = |i: usize| validation.pixels[i].normalised(constants);
    let first = cache.extend(&team, &engine, &graph, validation.pixels.len(), &validation_image, &|d| {
        stage.report(0.85 + d * 0.15)
    })?;
    report.lap(&mut watch, "features");

    let labels = train.labels();
    let stage = Stage::new(sink, "fitting the head", 0.35, 0.4);
    let embeddings =
        tail(&team, &engine, &graph, &cache, &(0..n).collect::<Vec<_>>(), graph.nodes.len() - 1)?;
    cancelled(stage.report(0.5))?;
    let head = fit_head(&embeddings, &labels, set.labels.len(), HEAD_PENALTY)?;
    graph.set_head(head.weight, head.bias);
    drop(embeddings);
    report.lap(&mut watch, "head");

    let validation_versions: Vec<usize> = (first..first + validation.pixels.len()).collect();
    let before = logits(&team, &engine, &graph, &cache, &validation_versions)?;
    finish::book(
        &mut report,
        ("validation.head_only", None),
        &task,
        &validation.labels(),
        &softmaxes(&before),
    );
    let stage = Stage::new(sink, "fine-tuning", 0.4, 0.85);
    let class_weight = crate::train::class_weights(&labels, set.labels.len());
    let sample = |versions: Vec<usize>, class: usize| Sample {
        versions,
        target: smooth(class, set.labels.len()),
        weight: class_weight[class],
    };
    let training: Vec<Sample> = (0..n).map(|i| sample(vec![i, n + i], labels[i])).collect();
    let held: Vec<Sample> = validation_versions
        .iter()
        .zip(validation.labels())
        .map(|(v, class)| sample(vec![*v], class))
        .collect();
    let schedule = Schedule {
        epochs: options.epochs,
        learning_rate: options.learning_rate,
        momentum: 0.9,
        weight_decay: 1e-4,
        batch: 32,
        gradient_max: 4.0,
        keep: Keep::Best { patience: 4 },
        seed: options.seed,
    };
    let tuned = tune(&team, &engine, &mut graph, &cache, &training, &held, &schedule, &|d| stage.report(d))?;
    (report.training_loss, report.validation_loss, report.best_epoch) =
        (tuned.training_loss, tuned.validation_loss, tuned.best_epoch);
    report.lap(&mut watch, "tune");

    let stage = Stage::new(sink, "quantising and judging", 0.85, 1.0);
    let before = logits(&team, &engine, &graph, &cache, &validation_versions)?;
    finish::centre(&mut graph, &task, &validation.labels(), &before);
    let float = logits(&team, &engine, &graph, &cache, &validation_versions)?;
    drop(cache);
    let lineage = |float_model| Lineage {
        parent: None,
        dataset: set.digest(),
        float_model,
        trainer: TRAINER.into(),
        seed: options.seed,
    };
    let float_bytes = graph::write(&graph);
    let lineage = lineage(Digest::of(&float_bytes));
    let mut manifest =
        release::manifest(&task, &graph, release, lineage, options.created_ms, Default::default());
    cancelled(stage.report(0.1))?;
    let Finished { int8, validation: judged, agreement } = finish::finish(
        &team,
        &engine,
        &graph,
        &task,
        &manifest,
        &train.refs(),
        &validation.refs(),
        &float,
        options.agreement_min,
    )?;
    report.lap(&mut watch, "quantise");
    report.numbers.insert("agreement".into(), agreement);
    finish::book(&mut report, ("validation.float", None), &task, &validation.labels(), &softmaxes(&float));
    finish::book(
        &mut report,
        ("validation", None),
        &task,
        &validation.labels(),
        &crate::judge::scores(&judged),
    );
    let golden_judged = crate::judge::judge(&team, &int8, &manifest, &golden.refs())?;
    finish::book(
        &mut report,
        ("golden", None),
        &task,
        &golden.labels(),
        &crate::judge::scores(&golden_judged),
    );
    cancelled(stage.report(0.8))?;

    let golden_float = whole_logits(&team, &engine, &graph, constants, &golden.refs())?;
    let paths: Vec<&Path> = golden.examples.iter().map(|e| e.path.as_path()).collect();
    let (cases, tolerance) =
        golden::choose(&paths, &golden.labels(), &golden_judged, &softmaxes(&golden_float), GOLDEN_IMAGES)?;
    let images = validation.pixels.iter().chain(&golden.pixels);
    let reference = reference::fit(images, judged.iter().chain(&golden_judged), options.seed)?;
    manifest.metrics = report.numbers.clone();
    let release = Release { manifest, model: int8, float: float_bytes, reference, golden: cases, tolerance };
    release.write(&options.out)?;
    report.lap(&mut watch, "judge");
    release::put(&options.out.join("report.json"), &release::json(&report))?;
    cancelled(stage.report(1.0))?;
    Ok(report)
}

fn base_graph(options: &FitOptions, classes: usize) -> anyhow::Result<Graph> {
    let mut graph = match &options.base {
        Base::EfficientNetLite0(weights) => zoo::efficientnet_lite0(weights, options.size, classes)?,
        Base::Onnx(path) => {
            graph::read(&release::read(path, BASE_BYTES_MAX)?, Some((options.size, options.size)))?
        }
    };
    // The base's own classes mean nothing here.
    let features = graph.embedding_len();
    graph.set_head(vec![0.0; classes * features], vec![0.0; classes]);
    Ok(graph)
}

fn task(options: &FitOptions, graph: &Graph, labels: &[String]) -> anyhow::Result<Task> {
    let channels = graph.channels;
    anyhow::ensure!(
        matches!(channels, 1 | 3),
        "the network has {channels} input channels; images have 1 or 3"
    );
    let zoo = matches!(options.base, Base::EfficientNetLite0(_));
    let usual = |lite: f32, rgb: [f32; 3], grey: f32| match channels {
        _ if zoo => vec![lite; 3],
        3 => rgb.to_vec(),
        _ => vec![grey],
    };
    let given = |values: &Option<Vec<f32>>, usual: Vec<f32>, name: &str| match values {
        Some(v) if v.len() == channels => Ok(v.clone()),
        Some(v) => {
            Err(anyhow::anyhow!("--{name} has {} values, the network has {channels} channels", v.len()))
        }
        None => Ok(usual),
    };
    // torchvision's values for ImageNet, which most public networks expect.
    let mean = given(&options.mean, usual(zoo::MEAN, [123.675, 116.28, 103.53], 127.5), "mean")?;
    let std = given(&options.std, usual(zoo::STD, [58.395, 57.12, 57.375], 127.5), "std")?;
    let (height, width) = (graph.height as u32, graph.width as u32);
    let fit = options.letterbox.map_or(Fit::Stretched, |fill| Fit::Letterboxed { fill });
    Ok(Task {
        input: Input { name: graph.input.clone(), width, height, channels: channels as u32, fit },
        preprocessing: Preprocessing { mean, std },
        labels: labels.to_vec(),
        decision: Decision { reject: reject(options.reject.as_deref(), labels)? as u32, threshold: 0.5 },
    })
}

/// Which class rejects a part.
fn reject(wanted: Option<&str>, labels: &[String]) -> anyhow::Result<usize> {
    let position = |name: &str| labels.iter().position(|l| l.eq_ignore_ascii_case(name));
    if let Some(name) = wanted {
        return position(name)
            .ok_or_else(|| anyhow::anyhow!("--reject {name:?} is none of the classes {labels:?}"));
    }
    if let Some(bad) =
        ["defect", "defective", "reject", "bad", "ng", "fail", "nok"].iter().find_map(|n| position(n))
    {
        return Ok(bad);
    }
    match ["ok", "good", "pass"].iter().find_map(|n| position(n)) {
        Some(good) if labels.len() == 2 => Ok(1 - good),
        _ => anyhow::bail!("which of the classes {labels:?} rejects a part? Give --reject CLASS"),
    }
}

/// A seeded choice of at most `max`, each class in proportion, at least one of each.
fn choose<'a>(examples: &[&'a Example], max: usize, seed: u64) -> Vec<&'a Example> {
    if examples.len() <= max {
        return examples.to_vec();
    }
    let classes = examples.iter().map(|e| e.class).max().unwrap_or(0) + 1;
    let mut rng = StdRng::seed_from_u64(seed ^ 0x7261_696e);
    let mut chosen = Vec::with_capacity(max);
    for class in 0..classes {
        let mut members: Vec<&Example> = examples.iter().filter(|e| e.class == class).copied().collect();
        members.shuffle(&mut rng);
        let share = (members.len() * max / examples.len()).max(1);
        chosen.extend(members.into_iter().take(share));
    }
    chosen.sort_by(|a, b| a.file.cmp(&b.file));
    chosen
}

fn read<'a>(
    team: &Team,
    examples: Vec<&'a Example>,
    input: &Input,
    report: &mut Report,
) -> anyhow::Result<Split<'a>> {
    let sources: Vec<Source> =
        examples.iter().map(|e| Source { name: e.file.clone(), path: e.path.clone() }).collect();
    let (pixels, broken) = data::load(team, &sources, input)?;
    report.broken.extend(broken.into_iter().map(|b| (b.name, b.reason)));
    let whole = examples.into_iter().zip(pixels).filter_map(|(e, p)| p.map(|p| (e, p)));
    let (examples, pixels) = whole.unzip();
    Ok(Split { examples, pixels })
}

/// One mirroring per image, never none.
pub(crate) fn flips(count: usize, seed: u64) -> Vec<(bool, bool)> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x666c_6970);
    let all = [(true, false), (false, true), (true, true)];
    (0..count).map(|_| all[rand::Rng::random_range(&mut rng, 0..3)]).collect()
}

/// A target that is not quite certain (label smoothing, Szegedy et al. 2016): labels of people are not either.
pub(crate) fn smooth(class: usize, classes: usize) -> Vec<f32> {
    const DOUBT: f32 = 0.1;
    (0..classes).map(|c| DOUBT / classes as f32 + if c == class { 1.0 - DOUBT } else { 0.0 }).collect()
}

/// Logits of whole images under the graph's present weights.
pub(crate) fn whole_logits(
    team: &Team,
    engine: &Engine,
    graph: &Graph,
    constants: &Preprocessing,
    images: &[&Pixels],
) -> anyhow::Result<Vec<Vec<f32>>> {
    let mut whole = Cache::new(engine, graph, 0);
    let image = |i: usize| images[i].normalised(constants);
    whole.extend(team, engine, graph, images.len(), &image, &|_| std::ops::ControlFlow::Continue(()))?;
    Ok(logits(team, engine, graph, &whole, &(0..images.len()).collect::<Vec<_>>())?)
}

pub(crate) fn softmaxes(logits: &[Vec<f32>]) -> Vec<Vec<f32>> {
    logits.iter().map(|l| crate::metrics::softmax(l)).collect()
}

pub(crate) fn cancelled(flow: std::ops::ControlFlow<()>) -> anyhow::Result<()> {
    if flow.is_break() { Err(Cancelled.into()) } else { Ok(()) }
}

/// Somebody asked the run to stop.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Removes a stale output folder's report so that a failed run leaves none behind.
pub fn prepare(out: &Path) -> std::io::Result<()> {
    fs::create_dir_all(out)?;
    match fs::remove_file(out.join("report.json")) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
