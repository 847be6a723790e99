//! Depthwise Conv: one filter a channel. Works on a copy of the input with its padding around it, so that the inner
//! loop has no borders.

use super::{
    super::{
        kernels::{Isa, Row, Taps, Target, depthwise},
        plan::{Operation, Quantity, Scratch},
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
    fn run(&self, isa: Isa, inputs: [&[u8]; 2], output: &mut [u8], scratch: &mut Scratch) {
        let Geometry { padded, output: shape, strides, .. } = self.geometry;
        let size = padded.bytes() + SLACK;
        scratch.reserve(size, 0);
        let copy = &mut scratch.bytes[..size];
        self.geometry.pad(inputs[0], self.zero, copy);
        for (y, output) in output.chunks_exact_mut(shape.w * self.taps.channels()).enumerate() {
            let start = y * strides[0] * padded.w * padded.c;
            let row = Row { start, step: strides[1] * padded.c, offsets: &self.offsets };
            depthwise(isa, copy, row, &self.taps, self.target, output);
        }
    }
}
