//! Calibration: what range every activation takes over some images, in float.

use std::{collections::BTreeMap, sync::Mutex};

use crate::{
    graph::{Batch, Engine, EngineError, Graph},
    team::{SHARD, Team},
};

/// Smallest and largest value of every activation, the image included. Always contains 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranges(BTreeMap<String, (f32, f32)>);

impl Ranges {
    pub fn get(&self, value: &str) -> Option<(f32, f32)> {
        self.0.get(value).copied()
    }

    pub fn widen(&mut self, value: &str, data: &[f32]) {
        let (low, high) = self.0.entry(value.to_owned()).or_insert((0.0, 0.0));
        for v in data.iter().filter(|v| v.is_finite()) {
            *low = low.min(*v);
            *high = high.max(*v);
        }
    }

    fn merge(&mut self, other: Ranges) {
        for (name, (low, high)) in other.0 {
            self.widen(&name, &[low, high]);
        }
    }
}

/// Runs the graph on `images` (normalised, `[C, H, W]`).
pub fn calibrate(
    team: &Team,
    engine: &Engine,
    graph: &Graph,
    images: &[Vec<f32>],
) -> Result<Ranges, EngineError> {
    let all = Mutex::new(Ranges::default());
    let layout = engine.layout_at(graph, 0);
    team.map(images.len().div_ceil(SHARD), |i| {
        let shard = &images[i * SHARD..(i * SHARD + SHARD).min(images.len())];
        let batch = Batch::gather(layout, shard.iter().map(Vec::as_slice));
        let mut ranges = Ranges::default();
        ranges.widen(&graph.input, &batch.data);
        engine.watch(&graph.weights, &batch, &mut |name, data| ranges.widen(name, data))?;
        // Minimum and maximum do not depend on the order.
        all.lock().unwrap_or_else(|e| e.into_inner()).merge(ranges);
        Ok::<_, EngineError>(())
    })?;
    Ok(all.into_inner().unwrap_or_else(|e| e.into_inner()))
}
