//! Random numbers, and windows made of them.

use super::cases::ints;
use crate::onnx::NodeProto;

/// xorshift64: Marsaglia 2003.
pub(in crate::gpu) struct Random(u64);

impl Random {
    pub(in crate::gpu) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(in crate::gpu) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    pub(in crate::gpu) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(in crate::gpu) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(in crate::gpu) fn zero(&mut self) -> u8 {
        let any = self.next() as u8;
        self.pick(&[0, 255, 128, any])
    }
}

/// A window and the image that it slides over.
pub(in crate::gpu) struct Sliding {
    /// Of the image and of the window: height, width.
    pub(in crate::gpu) size: [usize; 2],
    pub(in crate::gpu) kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    /// As ONNX has them.
    pads: [usize; 4],
}

impl Sliding {
    /// One that fits.
    pub(in crate::gpu) fn any(random: &mut Random) -> Self {
        let size: [usize; 2] = [random.pick(&[1, 2, 5, 7, 12]), random.pick(&[1, 3, 6, 7, 13])];
        let kernels: [[usize; 2]; 8] = [[1, 1], [1, 1], [3, 3], [3, 3], [5, 5], [1, 4], [2, 3], [7, 7]];
        let kernel = random.pick(&kernels);
        let strides = random.pick(&[[1, 1], [1, 1], [2, 2], [1, 2], [3, 1]]);
        let dilations =
            if kernel == [1, 1] { [1, 1] } else { random.pick(&[[1, 1], [1, 1], [2, 1], [2, 2]]) };
        let reach = |d: usize| (kernel[d] - 1) * dilations[d];
        // At least as much padding as a window needs to fit at all.
        let pad = |d: usize, random: &mut Random| {
            let least: usize = (reach(d) + 1usize).saturating_sub(size[d]);
            let before = random.below(reach(d) + 1).max(least.div_ceil(2));
            [before, random.below(reach(d) + 1).max(least - before.min(least))]
        };
        let ([top, bottom], [left, right]) = (pad(0, random), pad(1, random));
        Self { size, kernel, strides, dilations, pads: [top, left, bottom, right] }
    }

    /// Says so in an operator's attributes.
    pub(in crate::gpu) fn describe(&self, node: NodeProto) -> NodeProto {
        node.with_ints("strides", &ints(&self.strides))
            .with_ints("dilations", &ints(&self.dilations))
            .with_ints("pads", &ints(&self.pads))
    }
}
