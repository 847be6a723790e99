//! Depthwise Conv: one filter a channel. Works on a copy of the input with its padding around it, so that the inner
//! loop has no borders.

use super::{
    super::{
        kernels::{Row, Taps, Target, depthwise},
        plan::{Context, Operation, Quantity, View, ViewMut},
    },
    conv::{Geometry, Sums, Weights},
};

/// Bytes that a kernel may read beyond the last channel.
const SLACK: usize = 16;

pub(super) struct Depthwise {
    geometry: Geometry,
    taps: Taps,
    /// From the window's first byte to each tap's; an even number.
    offsets: Vec<usize>,
    zero: u8,
    target: Target,
}

impl Depthwise {
    /// `weights`: one row a channel, its taps row by row.
    pub(super) fn new(
        geometry: Geometry,
        weights: &Weights,
        sums: &Sums,
        input: Quantity,
        target: Target,
    ) -> Self {
        let Geometry { padded, kernel: [kh, kw], dilations, .. } = geometry;
        let offset = |t: usize| (t / kw * dilations[0] * padded.w + t % kw * dilations[1]) * padded.c;
        let mut offsets: Vec<usize> = (0..kh * kw).map(offset).collect();
        if offsets.len() % 2 == 1 {
            offsets.extend(offsets.last().copied());
        }
        let taps = Taps::pack(kh * kw, &sums.bias, &sums.multiplier, |c, t| weights.at(c, t, sums));
        Self { geometry, taps, offsets, zero: input.zero, target }
    }
}

impl Operation for Depthwise {
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let input = inputs[0];
        let Geometry { padded, output: shape, strides, .. } = self.geometry;
        let size = padded.bytes() + SLACK;
        context.scratch.reserve(size, 0);
        let copy = &mut context.scratch.bytes[..size];
        self.geometry.pad(input, self.zero, copy);
        let (channels, stride) = (self.taps.channels(), output.stride);
        for (y, output) in output.bytes.chunks_mut(shape.w * stride).enumerate() {
            let start = y * strides[0] * padded.w * padded.c;
            let row = Row { start, step: strides[1] * padded.c, offsets: &self.offsets };
            if stride == channels {
                depthwise(context.isa, copy, row, &self.taps, self.target, output);
                continue;
            }
            for (x, pixel) in output.chunks_mut(stride).enumerate() {
                let row = Row { start: start + x * row.step, ..row };
                depthwise(context.isa, copy, row, &self.taps, self.target, &mut pixel[..channels]);
            }
        }
    }
}
