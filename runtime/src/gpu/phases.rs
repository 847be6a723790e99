//! When each step of a plan runs, and which of those that the GPU could run are better left to the CPU: [`phases`],
//! [`better_left`].
//!
//! A step's phase is the earliest that its operands allow, so that there are as few as the longest chain of changes between
//! the two sides has. What is left then are small steps between two islands on the CPU: each such phase costs a submission,
//! an upload and a download, which takes longer than the CPU needs for the steps.

use std::collections::{HashMap, HashSet};

use crate::cpu::{Cpu, Touched, describe::Description};

/// For each step, the steps whose results it reads, and steps that write into the same buffer before it.
pub(super) fn dependencies(touched: &[Touched]) -> Vec<Vec<usize>> {
    let mut writers: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut values: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut all = Vec::with_capacity(touched.len());
    for (at, step) in touched.iter().enumerate() {
        let mut needs: Vec<usize> =
            step.reads.iter().filter_map(|place| writers.get(&place.buffer.0)).flatten().copied().collect();
        needs.extend(step.values_read.iter().filter_map(|value| values.get(value)).flatten());
        if let Some(place) = &step.writes {
            writers.entry(place.buffer.0).or_default().push(at);
        }
        // Parts of a concatenation are written one by one.
        step.values_written.iter().for_each(|value| values.entry(*value).or_default().push(at));
        all.push(needs);
    }
    all
}

/// For each step its phase: in each the CPU's steps come first.
pub(super) fn phases(touched: &[Touched], needs: &[Vec<usize>], on_gpu: &[bool]) -> Vec<usize> {
    let buffer = |at: usize| touched[at].writes.map(|place| place.buffer.0);
    let by_gpu: HashSet<usize> = (0..touched.len()).filter(|at| on_gpu[*at]).filter_map(buffer).collect();
    let mut phase_of = vec![0; touched.len()];
    for at in 0..touched.len() {
        let after = |need: &usize| phase_of[*need] + usize::from(on_gpu[*need] && !on_gpu[at]);
        phase_of[at] = needs[at].iter().map(after).max().unwrap_or(0);
        // A buffer that both write into is whole once the GPU has run.
        let is_mixed = |need: usize| buffer(need).is_some_and(|buffer| by_gpu.contains(&buffer));
        let mixed = |need: &&usize| !on_gpu[**need] && !on_gpu[at] && is_mixed(**need);
        if let Some(latest) = needs[at].iter().filter(mixed).map(|need| phase_of[*need] + 1).max() {
            phase_of[at] = phase_of[at].max(latest);
        }
    }
    phase_of
}

/// What a phase on the GPU is not worth, in bytes read and written: of multiplications a processor does many at a time.
const COST_MAX: u64 = 1 << 18;
const MACS_A_BYTE: u64 = 16;

/// Phases that are tried to be done without, the cheapest first.
const TRIES_MAX: usize = 32;

/// Those of the steps that run on the GPU without which there are fewer phases; `None` if there are none.
pub(super) fn better_left(cpu: &Cpu, on_gpu: &[bool]) -> Option<Vec<bool>> {
    let touched = cpu.touched();
    let needs = dependencies(&touched);
    let cost: Vec<u64> = (0..touched.len()).map(|at| cost(cpu, &touched, at)).collect();
    better(&touched, &needs, on_gpu, &cost)
}

fn better(touched: &[Touched], needs: &[Vec<usize>], on_gpu: &[bool], cost: &[u64]) -> Option<Vec<bool>> {
    let mut now = on_gpu.to_vec();
    let mut current = on_phases(touched, needs, &now);
    let mut tried = HashSet::new();
    while current.len() > 1 && tried.len() < TRIES_MAX {
        let sum = |steps: &Vec<usize>| steps.iter().fold(0u64, |sum, at| sum.saturating_add(cost[*at]));
        let cheap = current.iter().map(|steps| (sum(steps), steps)).filter(|(cost, _)| *cost <= COST_MAX);
        let Some((_, steps)) = cheap.filter(|(_, steps)| !tried.contains(*steps)).min() else { break };
        tried.insert(steps.clone());
        let mut without = now.clone();
        steps.iter().for_each(|at| without[*at] = false);
        // A buffer that both sides write into goes up and down all the same.
        let buffer = |at: usize| touched[at].writes.map(|place| place.buffer.0);
        let by_gpu: HashSet<usize> =
            (0..touched.len()).filter(|at| without[*at]).filter_map(buffer).collect();
        let is_mixed = steps.iter().filter_map(|at| buffer(*at)).any(|buffer| by_gpu.contains(&buffer));
        let others = on_phases(touched, needs, &without);
        if others.len() < current.len() && !is_mixed {
            (now, current) = (without, others);
        }
    }
    let left: Vec<bool> = on_gpu.iter().zip(&now).map(|(before, now)| *before && !*now).collect();
    left.contains(&true).then_some(left)
}

/// The GPU's steps, phase by phase, without phases that have none.
fn on_phases(touched: &[Touched], needs: &[Vec<usize>], on_gpu: &[bool]) -> Vec<Vec<usize>> {
    let phase_of = phases(touched, needs, on_gpu);
    let count = phase_of.iter().max().map_or(0, |last| last + 1);
    let mut all = vec![vec![]; count];
    (0..touched.len()).filter(|at| on_gpu[*at]).for_each(|at| all[phase_of[at]].push(at));
    all.retain(|steps| !steps.is_empty());
    all
}

fn cost(cpu: &Cpu, touched: &[Touched], at: usize) -> u64 {
    let macs = |weights: usize, pixels: usize| weights as u64 * pixels as u64;
    let macs = match cpu.description(at) {
        Some(Description::Convolution(what)) => macs(what.filters.weights.len(), what.output.pixels()),
        Some(Description::Interleaved { parts, .. }) => {
            parts.iter().map(|(_, what)| macs(what.filters.weights.len(), what.output.pixels())).sum()
        }
        Some(Description::Product { m, k, .. }) => {
            let columns = touched[at].writes.map_or(0, |place| place.shape.bytes() / m.max(1));
            (m as u64).saturating_mul(k as u64).saturating_mul(columns as u64)
        }
        _ => 0,
    };
    let step = &touched[at];
    let bytes: usize = step.reads.iter().chain(&step.writes).map(|place| place.shape.bytes()).sum();
    bytes as u64 + macs / MACS_A_BYTE
}
