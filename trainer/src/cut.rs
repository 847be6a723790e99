//! Where the frozen prefix ends.

use crate::graph::{Engine, Graph};

/// The earliest cut after which at most `macs_max` multiply-adds per image are left to train: as much of the network as
/// the time allows. The head alone, if nothing else is cheap enough.
pub fn choose(engine: &Engine, graph: &Graph, macs_max: usize) -> usize {
    let macs = &engine.shape().macs;
    let tail = |cut: &usize| macs[*cut..].iter().fold(0usize, |a, b| a.saturating_add(*b));
    let cuts = graph.cuts();
    let last = cuts.last().copied().unwrap_or(0);
    cuts.into_iter().find(|cut| tail(cut) <= macs_max).unwrap_or(last)
}
