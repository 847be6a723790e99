//! A camera that follows a script, for tests.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use andon_runtime::Image;

use super::{Camera, CameraError, Frame};

/// Gives what it was made with, one a call, and then nothing more.
#[derive(Debug, Default)]
pub struct Script(pub VecDeque<Result<Frame, CameraError>>);

impl Camera for Script {
    fn next_frame(&mut self, patience: Duration) -> Result<Option<Frame>, CameraError> {
        match self.0.pop_front() {
            Some(step) => step.map(Some),
            None => {
                std::thread::park_timeout(patience);
                Ok(None)
            }
        }
    }
}

/// A grey frame of random pixels, different for each `seed`.
pub fn noise_frame(seed: u64, side: usize) -> Frame {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let mut rng = StdRng::seed_from_u64(seed);
    let pixels = (0..side * side).map(|_| rng.random_range(60..200)).collect();
    let image = Image::new(side, side, 1, pixels).expect("as many pixels as the sides say");
    Frame { source: format!("noise{seed}.png"), image: Arc::new(image), file: None, degraded: false }
}
