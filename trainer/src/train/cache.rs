//! Outputs of the frozen prefix, computed once per image and kept in memory as f16: rounding of 5e-4 relative is far
//! below what an augmentation changes. Bounded by [`CACHE_BYTES_MAX`].

use half::{f16, slice::HalfFloatSliceExt};

use super::Progress;
use crate::{
    graph::{Batch, Engine, EngineError, Graph, Layout},
    team::{SHARD, Team},
};

/// 4 GiB: 290,000 images of EfficientNet-Lite0 cut at its last stage.
pub const CACHE_BYTES_MAX: usize = 4 << 30;

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(
        "{images} images would need {bytes} bytes of memory for their features, allowed are {CACHE_BYTES_MAX}; use fewer training images"
    )]
    TooLarge { images: usize, bytes: usize },
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Activations at a cut of the graph.
pub struct Cache {
    pub cut: usize,
    layout: Layout,
    images: Vec<Vec<f16>>,
}

impl Cache {
    pub fn new(engine: &Engine, graph: &Graph, cut: usize) -> Self {
        Self { cut, layout: engine.layout_at(graph, cut), images: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.images.len()
    }

    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Runs `count` images through the prefix; `image(i)` makes the i-th (normalised, `[C, H, W]`) when it is its turn.
    /// Returns the index of the first.
    pub fn extend(
        &mut self,
        team: &Team,
        engine: &Engine,
        graph: &Graph,
        count: usize,
        image: &(dyn Fn(usize) -> Vec<f32> + Sync),
        progress: Progress,
    ) -> Result<usize, CacheError> {
        let first = self.images.len();
        let bytes = (first + count).saturating_mul(self.layout.len() * 2);
        if bytes > CACHE_BYTES_MAX {
            return Err(CacheError::TooLarge { images: first + count, bytes });
        }
        let input = engine.layout_at(graph, 0);
        let shards = count.div_ceil(SHARD);
        let made = team.map(shards, |s| {
            if progress(s as f32 / shards as f32).is_break() {
                return Err(CacheError::Cancelled);
            }
            let images: Vec<Vec<f32>> = (s * SHARD..(s * SHARD + SHARD).min(count)).map(image).collect();
            let batch = Batch::gather(input, images.iter().map(Vec::as_slice));
            let out = engine.run(&graph.weights, 0..self.cut, &batch)?;
            let halves = (0..out.count).map(|n| {
                let values = out.image(n);
                let mut half = vec![f16::ZERO; values.len()];
                half.convert_from_f32_slice(&values);
                half
            });
            Ok(halves.collect::<Vec<_>>())
        })?;
        self.images.extend(made.into_iter().flatten());
        Ok(first)
    }

    /// The activations of some images, side by side.
    pub fn batch(&self, indices: &[usize]) -> Batch {
        let mut wide = vec![0.0; self.layout.len() * indices.len()];
        for (i, out) in indices.iter().zip(wide.chunks_exact_mut(self.layout.len())) {
            self.images[*i].convert_to_f32_slice(out);
        }
        Batch::gather(self.layout, wide.chunks_exact(self.layout.len()))
    }
}
