//! Kernels of float networks, in f32 or with f16 in memory. Bindings and limits are those of all kernels, the content of the
//! buffers is not: see `wgsl/float_common.wgsl`.

use serde::{Deserialize, Serialize};

use crate::params::*;

/// What a kernel does to a result at once, see `wgsl/float_common.wgsl`.
pub mod activation {
    pub const NOTHING: u32 = 0;
    /// Not below `a`, then not above `b`.
    pub const CLIP: u32 = 1;
    /// `a * x` below 0.
    pub const LEAKY: u32 = 2;
    pub const SIGMOID: u32 = 3;
    /// `a * x + b`, between 0 and 1.
    pub const HARD_SIGMOID: u32 = 4;
    /// `x` times that.
    pub const HARD_GATE: u32 = 5;
    /// `x` times its sigmoid.
    pub const GATE: u32 = 6;
    pub const TANH: u32 = 7;
}

/// What [`Float::Binary`] does to two operands.
pub mod operation {
    /// The first as it is.
    pub const FIRST: u32 = 0;
    pub const ADD: u32 = 1;
    pub const SUBTRACT: u32 = 2;
    pub const MULTIPLY: u32 = 3;
    pub const DIVIDE: u32 = 4;
}

/// A kernel with its compile-time numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Float {
    Convolution {
        /// Pixels and quads of output channels a thread.
        pixels: u32,
        out: u32,
        /// One tap, no padding, every pixel.
        pointwise: bool,
        /// Threads that share the input channels of a tile; 1 needs no workgroup memory.
        split: u32,
    },
    Depthwise {
        pixels: u32,
        /// Height, width, step to the right; dilation 1. Without: any window.
        window: Option<[u32; 3]>,
    },
    Pool {
        /// The largest of a window, else its mean.
        maximum: bool,
    },
    Mean {
        /// Threads that share the pixels of a quad; 1 needs no workgroup memory.
        parts: u32,
    },
    Binary,
    Copy {
        /// Lane of a quad at which the first channel goes.
        shift: u32,
    },
    /// Pixels of the input, or a number.
    Select,
    /// Four neighbours.
    Mix,
    /// An input from planes of f32, an output to them.
    Take,
    Give,
}

impl Float {
    pub(crate) const LANES: u32 = 64;

    /// Threads that work on one tile.
    pub(crate) fn sharers(self) -> u32 {
        match self {
            Self::Convolution { split, .. } => split,
            Self::Mean { parts } => parts,
            _ => 1,
        }
    }

    /// Texts, and the numbers of the template. `half`: memory is of f16.
    pub(crate) fn parts(self, half: bool) -> (Vec<&'static str>, Vec<(&'static str, u32)>) {
        let flag = u32::from;
        let quad = if half { "enable f16;\nalias Quad = vec4<f16>;" } else { "alias Quad = vec4<f32>;" };
        let common = include_str!("../wgsl/float_common.wgsl");
        let finish = include_str!("../wgsl/float_finish.wgsl");
        let (params, texts, numbers) = match self {
            Self::Convolution { pixels, out, pointwise, split } => (
                FloatConvolutionParams::WGSL,
                vec![finish, include_str!("../wgsl/float_convolution.wgsl")],
                vec![("PIXELS", pixels), ("OUT", out), ("POINTWISE", flag(pointwise)), ("SPLIT", split)],
            ),
            Self::Depthwise { pixels, window } => {
                let [h, w, stride] = window.unwrap_or_default();
                (
                    FloatDepthwiseParams::WGSL,
                    vec![finish, include_str!("../wgsl/float_depthwise.wgsl")],
                    vec![("PIXELS", pixels), ("KERNEL_H", h), ("KERNEL_W", w), ("STRIDE_W", stride)],
                )
            }
            Self::Pool { maximum } => (
                FloatPoolParams::WGSL,
                vec![include_str!("../wgsl/float_pool.wgsl")],
                vec![("MAXIMUM", flag(maximum))],
            ),
            Self::Mean { parts } => {
                (FloatMeanParams::WGSL, vec![include_str!("../wgsl/float_mean.wgsl")], vec![("PARTS", parts)])
            }
            Self::Binary => {
                (FloatBinaryParams::WGSL, vec![include_str!("../wgsl/float_binary.wgsl")], vec![])
            }
            Self::Copy { shift } => {
                (FloatCopyParams::WGSL, vec![include_str!("../wgsl/float_copy.wgsl")], vec![("SHIFT", shift)])
            }
            Self::Select => {
                (FloatSelectParams::WGSL, vec![include_str!("../wgsl/float_select.wgsl")], vec![])
            }
            Self::Take => (FloatPlanesParams::WGSL, vec![include_str!("../wgsl/float_take.wgsl")], vec![]),
            Self::Give => (FloatPlanesParams::WGSL, vec![include_str!("../wgsl/float_give.wgsl")], vec![]),
            Self::Mix => (FloatMixParams::WGSL, vec![include_str!("../wgsl/float_mix.wgsl")], vec![]),
        };
        ([vec![quad, params, common], texts].concat(), numbers)
    }

    /// Convolutions that do the same, the largest tiles first.
    pub fn convolutions(pointwise: bool) -> Vec<Self> {
        let mut all = vec![];
        for (pixels, out) in [(4, 2), (4, 1), (2, 1), (1, 1)] {
            for split in [1, 4, 16] {
                all.push(Self::Convolution { pixels, out, pointwise, split });
            }
        }
        all
    }

    /// Depthwise convolutions that do the same, the largest tiles first. `window` as in [`Float::Depthwise`]: one of those
    /// that there are kernels for, or none.
    pub fn depthwise(window: Option<[u32; 3]>) -> Vec<Self> {
        let all: &[u32] = if window.is_some() { &[4, 2, 1] } else { &[1] };
        all.iter().map(|pixels| Self::Depthwise { pixels: *pixels, window }).collect()
    }

    /// Windows that there are kernels of their own for.
    pub const WINDOWS: [[u32; 3]; 4] = [[3, 3, 1], [3, 3, 2], [5, 5, 1], [5, 5, 2]];

    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Binary, Self::Select, Self::Mix, Self::Take, Self::Give];
        all.extend([false, true].map(|maximum| Self::Pool { maximum }));
        all.extend([1, 8].map(|parts| Self::Mean { parts }));
        all.extend([0, 1, 2, 3].map(|shift| Self::Copy { shift }));
        all.extend(Self::depthwise(None));
        all.extend(Self::WINDOWS.iter().flat_map(|window| Self::depthwise(Some(*window))));
        all.extend([false, true].into_iter().flat_map(Self::convolutions));
        all
    }
}
