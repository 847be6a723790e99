//! Tells a camera that hangs from a line that stands still: real sensors have noise, so two equal pictures in a row
//! are rare and [`Config::frozen_frames`](crate::pipeline::Config) of them mean that the picture is old. Old pictures
//! judge the wrong part.

use std::hash::{DefaultHasher, Hash, Hasher};

use andon_runtime::Image;

/// Length of the current run of equal pictures.
#[derive(Debug, Default)]
pub struct FrozenCheck {
    last: Option<u64>,
    run: u32,
}

impl FrozenCheck {
    /// How many pictures in a row, this one included, are the same byte for byte.
    pub fn push(&mut self, image: &Image) -> u32 {
        let mut hasher = DefaultHasher::new();
        (image.width(), image.height()).hash(&mut hasher);
        image.pixels().hash(&mut hasher);
        let hash = hasher.finish();
        self.run = if self.last == Some(hash) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(hash);
        self.run
    }
}
