//! How activations lie on the GPU: as on the CPU, but with each pixel's channels in whole words, so that kernels read and
//! write four channels at a time, and in whole groups of four words where there are many.

use crate::cpu::{Place, Shape, Touched};

/// Bytes from one pixel to the next that `channels` get.
fn padded(channels: usize) -> usize {
    match channels {
        0..=4 => 4,
        5..=8 => 8,
        more => more.next_multiple_of(16),
    }
}

/// An activation in a buffer of the GPU. Offset and stride are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) buffer: usize,
    pub(crate) offset: usize,
    pub(crate) stride: usize,
    pub(crate) shape: Shape,
    /// What fills up the last word of a pixel's channels belongs to nobody else.
    pub(crate) owns_tail: bool,
}

impl Spot {
    /// All of a buffer of its own.
    pub(crate) fn whole(buffer: usize, shape: Shape) -> Self {
        Self { buffer, offset: 0, stride: padded(shape.c), shape, owns_tail: true }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.stride * self.shape.pixels()
    }

    /// Words of the channels of a pixel.
    pub(crate) fn words(&self) -> usize {
        self.shape.c.div_ceil(4)
    }

    fn in_units_of(&self, bytes: usize) -> bool {
        self.offset.is_multiple_of(bytes) && self.stride.is_multiple_of(bytes)
    }

    /// Kernels can read it word by word.
    pub(crate) fn in_words(&self) -> bool {
        self.in_units_of(4)
    }

    /// Kernels can read it in groups of four words.
    pub(crate) fn in_quads(&self) -> bool {
        self.in_units_of(16)
    }

    /// Kernels can write it word by word.
    pub(crate) fn writable(&self) -> bool {
        self.in_words() && self.owns_tail
    }
}

/// Where the CPU plan's buffers and places lie.
pub(crate) struct Layout {
    /// For each buffer of the plan the one stride that all its places have, if there is one.
    strides: Vec<Option<usize>>,
    /// Bytes of each on the GPU.
    pub(crate) sizes: Vec<usize>,
}

impl Layout {
    pub(crate) fn new(buffers: &[usize], steps: &[Touched]) -> Self {
        let mut strides: Vec<Option<Option<usize>>> = vec![None; buffers.len()];
        for place in steps.iter().flat_map(|step| step.reads.iter().chain(&step.writes)) {
            let seen = &mut strides[place.buffer.0];
            *seen = match *seen {
                None => Some(Some(place.stride)),
                Some(Some(stride)) if stride == place.stride => continue,
                _ => Some(None),
            };
        }
        let strides: Vec<Option<usize>> = strides.into_iter().map(|seen| seen.flatten()).collect();
        let size = |(bytes, stride): (&usize, &Option<usize>)| match stride {
            Some(stride) if *stride > 0 => bytes.div_ceil(*stride) * padded(*stride),
            _ => bytes.next_multiple_of(16),
        };
        let sizes = buffers.iter().zip(&strides).map(size).collect();
        Self { strides, sizes }
    }

    pub(crate) fn spot(&self, place: &Place) -> Spot {
        let Place { buffer, offset, stride, shape } = *place;
        let buffer = buffer.0;
        match self.strides[buffer] {
            Some(all) if all > 0 => {
                let (pixel, channel) = (offset / all, offset % all);
                let owns_tail = shape.c.is_multiple_of(4) || channel + shape.c == all;
                let stride = padded(all);
                Spot { buffer, offset: pixel * stride + channel, stride, shape, owns_tail }
            }
            _ => Spot { buffer, offset, stride, shape, owns_tail: shape.c.is_multiple_of(4) },
        }
    }
}
