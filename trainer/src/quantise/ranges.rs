//! Calibration: what range every activation takes over some images, in float.

use std::collections::BTreeMap;

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

/// What calibration saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Calibration {
    pub ranges: Ranges,
    /// In float, by image.
    pub embeddings: Vec<Vec<f32>>,
}

/// Runs the graph on `images` (normalised, `[C, H, W]`).
pub fn calibrate(
    team: &Team,
    engine: &Engine,
    graph: &Graph,
    images: &[Vec<f32>],
) -> Result<Calibration, EngineError> {
    let layout = engine.layout_at(graph, 0);
    let shards = team.map(images.len().div_ceil(SHARD), |i| {
        let shard = &images[i * SHARD..(i * SHARD + SHARD).min(images.len())];
        let batch = Batch::gather(layout, shard.iter().map(Vec::as_slice));
        let mut seen = Calibration::default();
        seen.ranges.widen(&graph.input, &batch.data);
        engine.watch(&graph.weights, &batch, &mut |name, data| {
            seen.ranges.widen(name, data);
            if name == graph.embedding() {
                seen.embeddings = data.chunks(graph.embedding_len()).map(<[f32]>::to_vec).collect();
            }
        })?;
        Ok::<_, EngineError>(seen)
    })?;
    let mut all = Calibration::default();
    for shard in shards {
        all.ranges.merge(shard.ranges);
        all.embeddings.extend(shard.embeddings);
    }
    Ok(all)
}
