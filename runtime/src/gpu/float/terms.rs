//! What a dispatch is described in: where activations lie, windows, what becomes of sums. Where buffers lie in the arena is
//! not known yet when a [`Job`] is made, so that its parameters are a function of that.

use andon_shaders::{Float, NONE, activation};

use super::super::choice::Task;
use crate::cpu::Shape;

/// Where each buffer begins in the arena, in quads.
pub(super) type Bases<'a> = &'a [usize];

/// An activation in a buffer, in quads of four channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) buffer: usize,
    pub(super) first: usize,
    /// From one pixel to the next.
    pub(super) stride: usize,
    pub(super) shape: Shape,
}

impl Spot {
    /// All of a buffer of its own.
    pub(super) fn whole(buffer: usize, shape: Shape) -> Self {
        Self { buffer, first: 0, stride: shape.c.div_ceil(4), shape }
    }

    /// Quads of a pixel's channels.
    pub(super) fn words(&self) -> usize {
        self.shape.c.div_ceil(4)
    }

    /// Quads from its first to its last.
    pub(super) fn span(&self) -> usize {
        (self.shape.pixels() - 1) * self.stride + self.words()
    }

    pub(super) fn at(&self, bases: Bases<'_>) -> u32 {
        (bases[self.buffer] + self.first) as u32
    }
}

/// One dispatch.
pub(super) struct Job {
    pub(super) kernel: Float,
    /// What it is chosen for, where there are others that do the same.
    pub(super) task: Option<Task>,
    /// What threads, or as many as share one, do one by one.
    pub(super) tiles: usize,
    pub(super) params: Box<dyn Fn(Bases<'_>) -> Vec<u32> + Send>,
    /// Buffers that it reads or writes, and the one that it writes.
    pub(super) touches: Vec<usize>,
    pub(super) writes: usize,
}

/// A function of one value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Activation {
    pub(super) kind: u32,
    pub(super) a: f32,
    pub(super) b: f32,
}

impl Activation {
    pub(super) const NOTHING: Self = Self { kind: activation::NOTHING, a: 0.0, b: 0.0 };

    pub(super) fn bits(&self) -> [u32; 3] {
        [self.kind, self.a.to_bits(), self.b.to_bits()]
    }
}

/// What becomes of the sums of a convolution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ending {
    pub(super) first: Activation,
    /// What is added to that, and the function of the sum.
    pub(super) skip: Option<Spot>,
    pub(super) then: Activation,
}

impl Ending {
    pub(super) const NOTHING: Self =
        Self { first: Activation::NOTHING, skip: None, then: Activation::NOTHING };

    pub(super) fn skip(&self, bases: Bases<'_>) -> [u32; 2] {
        self.skip.map_or([NONE, 0], |skip| [skip.at(bases), skip.stride as u32])
    }

    pub(super) fn touches(&self, others: [Spot; 2]) -> Vec<usize> {
        others.iter().chain(&self.skip).map(|spot| spot.buffer).collect()
    }
}

/// A window that slides down and to the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sliding {
    pub(super) kernel: [usize; 2],
    pub(super) strides: [usize; 2],
    pub(super) dilations: [usize; 2],
    /// Padding above and to the left.
    pub(super) before: [usize; 2],
}

impl Sliding {
    /// All of an image, or each pixel alone.
    pub(super) fn over(kernel: [usize; 2]) -> Self {
        Self { kernel, strides: [1, 1], dilations: [1, 1], before: [0, 0] }
    }

    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// Where the pixels of a convolution lie in its output, in pixels of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lattice {
    pub(super) first: usize,
    pub(super) down: usize,
    pub(super) right: usize,
}

impl Lattice {
    /// One after the other.
    pub(super) fn all(shape: Shape) -> Self {
        Self { first: 0, down: shape.w, right: 1 }
    }
}
