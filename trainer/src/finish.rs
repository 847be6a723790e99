//! From a trained float graph to a proven int8 model: decision point, calibration, quantisation, and what the device's
//! engine makes of it.

use andon_protocol::release::Manifest;
use andon_runtime::Judgement;

use crate::{
    data::Pixels,
    graph::{Engine, EngineError, Graph},
    judge::{self, JudgeError},
    metrics::{self, Rule, best_threshold, softmax},
    quantise::{self, QuantiseError},
    release::Task,
    report::Report,
    team::Team,
    train::{HeadError, check_head},
};

/// Images that calibrate; more hardly move a range.
pub(crate) const CALIBRATION_IMAGES: usize = 96;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FinishError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Quantise(#[from] QuantiseError),
    #[error(transparent)]
    Judge(#[from] JudgeError),
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(
        "int8 and float agree on {agreement:.3} of {images} images, at least {least} is required: train longer or with more images \
         (an undecided network flips easily), or widen what calibration sees; the float model is not to blame if its accuracy is good"
    )]
    Agreement { agreement: f64, least: f64, images: usize },
}

/// An int8 model and what it says of the validation images.
pub(crate) struct Finished {
    pub(crate) int8: Vec<u8>,
    pub(crate) validation: Vec<Judgement>,
    pub(crate) agreement: f64,
}

pub(crate) fn rule(task: &Task) -> Rule {
    Rule { reject: task.decision.reject as usize, threshold: task.decision.threshold }
}

/// With two classes, moves the best threshold on these images into the head's bias, so that 0.5 decides and the larger
/// score is the verdict for every reader.
pub(crate) fn centre(graph: &mut Graph, task: &Task, labels: &[usize], logits: &[Vec<f32>]) {
    if graph.classes() != 2 {
        return;
    }
    let reject = task.decision.reject as usize;
    let scores: Vec<Vec<f32>> = logits.iter().map(|l| softmax(l)).collect();
    let threshold = best_threshold(reject, labels, &scores);
    let shift = (threshold / (1.0 - threshold)).ln();
    let bias = graph.head().inputs[2].clone();
    if let Some(bias) = graph.weights.get_mut(&bias) {
        bias.data[reject] -= shift;
    }
}

/// Quantises and compares. `manifest` needs only names and preprocessing to be right. `validation` and
/// `float_logits` belong together.
#[allow(clippy::too_many_arguments, reason = "one call, at two places")]
pub(crate) fn finish(
    team: &Team,
    engine: &Engine,
    graph: &Graph,
    task: &Task,
    manifest: &Manifest,
    calibration: &[&Pixels],
    validation: &[&Pixels],
    float_logits: &[Vec<f32>],
    agreement_min: f64,
) -> Result<Finished, FinishError> {
    check_head(&graph.weights[&graph.head().inputs[1]])?;
    let chosen = spread(calibration, CALIBRATION_IMAGES);
    let images: Vec<Vec<f32>> = chosen.iter().map(|p| p.normalised(&task.preprocessing)).collect();
    let seen = quantise::calibrate(team, engine, graph, &images)?;
    let unaligned = quantise::write(graph, &seen.ranges)?;
    let embeddings: Vec<Vec<f32>> =
        judge::judge(team, &unaligned, manifest, &chosen)?.into_iter().map(|j| j.embedding).collect();
    let mut aligned = graph.clone();
    let [_, weight, bias] = [0, 1, 2].map(|i| &graph.head().inputs[i]);
    let (weight, bias) =
        quantise::aligned_head(&graph.weights[weight], &graph.weights[bias], &seen.embeddings, &embeddings);
    aligned.set_head(weight, bias);
    let int8 = quantise::write(&aligned, &seen.ranges)?;
    let judged = judge::judge(team, &int8, manifest, validation)?;
    let float: Vec<Vec<f32>> = float_logits.iter().map(|l| softmax(l)).collect();
    let agreement = metrics::agreement(rule(task), &float, &judge::scores(&judged));
    // One image of a small set is chance, whatever share of it that is.
    let differ = ((1.0 - agreement) * validation.len() as f64).round();
    if agreement < agreement_min && differ > 1.0 {
        return Err(FinishError::Agreement { agreement, least: agreement_min, images: validation.len() });
    }
    Ok(Finished { int8, validation: judged, agreement })
}

/// Books one set's figures as `SET.FIGURE`, or `SET.FIGURE.ERA` where two models are compared.
pub(crate) fn book(
    report: &mut Report,
    (set, era): (&str, Option<&str>),
    task: &Task,
    labels: &[usize],
    scores: &[Vec<f32>],
) -> f64 {
    let m = metrics::measure(rule(task), labels, scores);
    let balanced = m.balanced_accuracy;
    for (figure, value) in [("balanced_accuracy", balanced), ("accuracy", m.accuracy), ("auc", m.auc)] {
        let era = era.map(|e| format!(".{e}")).unwrap_or_default();
        report.numbers.insert(format!("{set}.{figure}{era}"), value);
    }
    report.metrics.insert([Some(set), era].into_iter().flatten().collect::<Vec<_>>().join("."), m);
    balanced
}

/// At most `count`, evenly spread.
pub(crate) fn spread<T: Copy>(items: &[T], count: usize) -> Vec<T> {
    let n = items.len().min(count);
    (0..n).map(|i| items[i * items.len() / n]).collect()
}
