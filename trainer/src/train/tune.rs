//! Fine-tuning of the tail by SGD with momentum (Polyak 1964) under a cosine schedule with a short warm-up, on cached
//! activations of the frozen prefix. Targets are distributions, so that labels and a teacher's opinion (distillation,
//! Hinton et al. 2015) are one loss. Keeps the weights of the best epoch on validation and stops early, or keeps the last.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{Cache, Progress};
use crate::{
    graph::{Engine, EngineError, Gradients, Graph, Op, Targets},
    metrics::softmax,
    team::{SHARD, Team},
};

#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    pub epochs: usize,
    pub learning_rate: f32,
    pub momentum: f32,
    pub weight_decay: f32,
    /// Images per step.
    pub batch: usize,
    /// Largest norm of a step's gradient.
    pub gradient_max: f32,
    /// Which weights are kept.
    pub keep: Keep,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Those of the epoch with the least validation loss; after so many epochs without a better one it stops.
    Best { patience: usize },
    /// The last ones, at the end of the schedule. For a few epochs: in the middle of a cosine the weights still jump, and a
    /// loss that is a little lower there is mostly a network less sure of itself, not one that sorts better.
    Last,
}

/// One training image with its versions in the cache; each epoch draws one of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub versions: Vec<usize>,
    pub target: Vec<f32>,
    pub weight: f32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TuneReport {
    /// Mean training and validation loss by epoch; entry 0 is before the first.
    pub validation_loss: Vec<f64>,
    pub training_loss: Vec<f64>,
    /// Whose weights were kept.
    pub best_epoch: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Weights of the classes that make them count alike: n / (classes * n of the class).
pub fn class_weights(classes: &[usize], count: usize) -> Vec<f32> {
    let n = |c: usize| classes.iter().filter(|k| **k == c).count().max(1);
    (0..count).map(|c| classes.len() as f32 / (count * n(c)) as f32).collect()
}

/// Trains what follows the cache's cut. `validation` are samples with a target; their first version is used.
#[allow(clippy::too_many_arguments, reason = "one call, at two places")]
pub fn tune(
    team: &Team,
    engine: &Engine,
    graph: &mut Graph,
    cache: &Cache,
    training: &[Sample],
    validation: &[Sample],
    schedule: &Schedule,
    progress: Progress,
) -> Result<TuneReport, TuneError> {
    let trainable = trainable(graph, cache.cut);
    let mut rng = StdRng::seed_from_u64(schedule.seed);
    let mut velocity: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut order: Vec<usize> = (0..training.len()).collect();
    let steps_per_epoch = training.len().div_ceil(schedule.batch).max(1);
    let steps = steps_per_epoch * schedule.epochs;
    let mut report = TuneReport {
        validation_loss: vec![loss(team, engine, graph, cache, validation)?],
        training_loss: vec![],
        best_epoch: 0,
    };
    let mut best = graph.weights.clone();
    for epoch in 1..=schedule.epochs {
        order.shuffle(&mut rng);
        let drawn: Vec<usize> = order
            .iter()
            .map(|i| {
                let versions = &training[*i].versions;
                versions[rng.random_range(0..versions.len())]
            })
            .collect();
        let (mut total, mut weight) = (0.0, 0.0);
        for step in 0..steps_per_epoch {
            let done = (epoch - 1) * steps_per_epoch + step;
            if progress(done as f32 / steps as f32).is_break() {
                return Err(TuneError::Cancelled);
            }
            let range = step * schedule.batch..((step + 1) * schedule.batch).min(order.len());
            let (chosen, versions) = (&order[range.clone()], &drawn[range]);
            let sum: f32 = chosen.iter().map(|i| training[*i].weight).sum();
            let (loss, mut gradients) =
                batch_gradients(team, engine, graph, cache, training, chosen, versions, sum, &trainable)?;
            total += loss * sum as f64;
            weight += sum as f64;
            clip(&mut gradients, schedule.gradient_max);
            let rate = schedule.learning_rate * warm_cosine(done, steps);
            descend(graph, &mut velocity, &gradients, rate, schedule);
        }
        report.training_loss.push(total / weight.max(1e-12));
        let now = loss(team, engine, graph, cache, validation)?;
        report.validation_loss.push(now);
        let better = now < report.validation_loss[report.best_epoch];
        match schedule.keep {
            Keep::Best { patience } if !better && epoch - report.best_epoch >= patience => break,
            Keep::Best { .. } if !better => {}
            _ => {
                report.best_epoch = epoch;
                best.clone_from(&graph.weights);
            }
        }
    }
    graph.weights = best;
    Ok(report)
}

/// Logits of cached images under the graph's present weights.
pub fn logits(
    team: &Team,
    engine: &Engine,
    graph: &Graph,
    cache: &Cache,
    images: &[usize],
) -> Result<Vec<Vec<f32>>, EngineError> {
    tail(team, engine, graph, cache, images, graph.nodes.len())
}

/// What the tail makes of cached images up to node `end`, one row each.
pub fn tail(
    team: &Team,
    engine: &Engine,
    graph: &Graph,
    cache: &Cache,
    images: &[usize],
    end: usize,
) -> Result<Vec<Vec<f32>>, EngineError> {
    let shards = team.map(images.len().div_ceil(SHARD), |s| {
        let chosen = &images[s * SHARD..(s * SHARD + SHARD).min(images.len())];
        let out = engine.run(&graph.weights, cache.cut..end, &cache.batch(chosen))?;
        Ok::<_, EngineError>((0..out.count).map(|n| out.image(n)).collect::<Vec<_>>())
    })?;
    Ok(shards.into_iter().flatten().collect())
}

/// Weights after the cut that descend: kernels, biases, scales; not the statistics of a batch norm.
fn trainable(graph: &Graph, cut: usize) -> BTreeSet<String> {
    let inputs = graph.nodes[cut..].iter().flat_map(|node| match node.op {
        Op::BatchNormalization { .. } => &node.inputs[1..3],
        _ => &node.inputs[1..],
    });
    inputs.filter(|n| graph.weights.contains_key(*n)).cloned().collect()
}

/// Mean weighted cross-entropy.
fn loss(
    team: &Team,
    engine: &Engine,
    graph: &Graph,
    cache: &Cache,
    samples: &[Sample],
) -> Result<f64, EngineError> {
    let images: Vec<usize> = samples.iter().map(|s| s.versions[0]).collect();
    let rows = logits(team, engine, graph, cache, &images)?;
    let (mut total, mut weight) = (0.0, 0.0);
    for (sample, row) in samples.iter().zip(&rows) {
        let p = softmax(row);
        let entropy: f32 = sample.target.iter().zip(&p).map(|(t, p)| -t * p.max(1e-12).ln()).sum();
        total += (entropy * sample.weight) as f64;
        weight += sample.weight as f64;
    }
    Ok(total / weight.max(1e-12))
}

#[allow(clippy::too_many_arguments, reason = "the parts of one step of one loop")]
fn batch_gradients(
    team: &Team,
    engine: &Engine,
    graph: &Graph,
    cache: &Cache,
    training: &[Sample],
    chosen: &[usize],
    versions: &[usize],
    sum: f32,
    trainable: &BTreeSet<String>,
) -> Result<(f64, Gradients), EngineError> {
    let shards = team.map(chosen.len().div_ceil(SHARD), |s| {
        let range = s * SHARD..(s * SHARD + SHARD).min(chosen.len());
        let samples = chosen[range.clone()].iter().map(|i| &training[*i]);
        let targets = Targets {
            probabilities: samples.clone().flat_map(|s| s.target.iter().copied()).collect(),
            weights: samples.map(|s| s.weight / sum.max(1e-12)).collect(),
        };
        engine.gradients(&graph.weights, cache.cut, &cache.batch(&versions[range]), &targets, trainable)
    })?;
    // Summed in the order of the shards: floating-point sums depend on it.
    let mut shards = shards.into_iter();
    let (mut loss, mut gradients) = shards.next().unwrap_or_default();
    for (more, others) in shards {
        loss += more;
        for (name, other) in others {
            match gradients.get_mut(&name) {
                Some(mine) => mine.iter_mut().zip(&other).for_each(|(a, b)| *a += b),
                None => drop(gradients.insert(name, other)),
            }
        }
    }
    Ok((loss, gradients))
}

fn clip(gradients: &mut Gradients, norm_max: f32) {
    let square: f64 = gradients.values().flatten().map(|g| (*g as f64).powi(2)).sum();
    let norm = square.sqrt() as f32;
    if norm > norm_max {
        gradients.values_mut().flatten().for_each(|g| *g *= norm_max / norm);
    }
}

fn descend(
    graph: &mut Graph,
    velocity: &mut BTreeMap<String, Vec<f32>>,
    gradients: &Gradients,
    rate: f32,
    schedule: &Schedule,
) {
    for (name, gradient) in gradients {
        let Some(weight) = graph.weights.get_mut(name) else { continue };
        let velocity = velocity.entry(name.clone()).or_insert_with(|| vec![0.0; gradient.len()]);
        // Biases and scales are not decayed: 0 is no natural value for them.
        let decay = if weight.shape.len() > 1 { schedule.weight_decay } else { 0.0 };
        for ((w, v), g) in weight.data.iter_mut().zip(velocity).zip(gradient) {
            *v = schedule.momentum * *v + g + decay * *w;
            *w -= rate * *v;
        }
    }
}

/// From 0 to 1 in the first twentieth, then half a cosine to 0.
fn warm_cosine(step: usize, steps: usize) -> f32 {
    let warm = (steps / 20).max(1);
    if step < warm {
        return (step + 1) as f32 / warm as f32;
    }
    let t = (step - warm) as f32 / (steps - warm).max(1) as f32;
    0.5 * (1.0 + (t * std::f32::consts::PI).cos())
}
