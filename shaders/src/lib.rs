//! The GPU's kernels: one operator a file in `wgsl/`, and what a program must know to run them.
//!
//! All kernels share their bindings (see `wgsl/common.wgsl`): the arena twice, what never changes twice, and one uniform
//! block of parameters; so one bind group serves a whole network, with a dynamic offset for each step. None needs more
//! than [`Limits`]. A [`Variant`] is a kernel with its compile-time numbers filled in; several variants of one kernel
//! compute the same bytes, and which is fastest is a question to the hardware. Knows no GPU library: texts and numbers only.

use serde::{Deserialize, Serialize};

mod float;
mod params;
mod probe;
mod template;

pub use float::{Float, activation, operation};
pub use params::*;
pub use probe::Probe;

/// What the kernels need of a device: WebGPU's lowest common denominator, OpenGL ES 3.1 with compute.
pub struct Limits;

impl Limits {
    pub const STORAGE_BUFFERS: u32 = 4;
    pub const WORKGROUP_BYTES: u32 = 16_352;
    pub const INVOCATIONS: u32 = 256;
    /// Workgroups along one dimension.
    pub const WORKGROUPS: u32 = 65_535;
}

/// Numbers of the bindings, all of group 0.
pub mod binding {
    /// The arena in words.
    pub const WORDS: u32 = 0;
    /// The arena in groups of four words.
    pub const QUADS: u32 = 1;
    /// Where a picture has another size, the picture.
    pub const CONSTANTS: u32 = 2;
    pub const CONSTANT_QUADS: u32 = 3;
    /// Uniform, with a dynamic offset.
    pub const PARAMS: u32 = 4;
}

/// The function that every kernel begins with.
pub const ENTRY_POINT: &str = "main";

/// No table, no list.
pub const NONE: u32 = u32::MAX;

/// How two bytes become one, see `wgsl/join.wgsl`.
pub mod join {
    pub const NOTHING: u32 = 0;
    /// `(a * join_a + b * join_b + join_c) >> join_shift`, clamped.
    pub const LINEAR: u32 = 1;
    /// `(constants[join_a + a] + constants[join_b + b]) >> join_shift`, clamped.
    pub const SUMS: u32 = 2;
    /// A table of 65,536 bytes from `join_a` on.
    pub const PAIRS: u32 = 3;
}

/// A kernel with its compile-time numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    Convolution {
        /// Pixels and words of output channels a thread.
        pixels: u32,
        out: u32,
        /// Reads 16 input channels at a time; their places are multiples of that.
        quads: bool,
        /// One tap, no padding, every pixel.
        pointwise: bool,
        /// Each word of output channels begins to read at a place of its own; `out` is 1.
        grouped: bool,
        /// Threads that share the input channels of a tile; 1 needs no workgroup memory.
        split: u32,
        /// Multiplies in f32, for hardware that is slow with whole numbers.
        #[serde(default)]
        real: bool,
    },
    /// The same, without groups and with `quads`, through workgroup memory: tiles of `8 * pixels` by `8 * out` words.
    Tiled {
        pixels: u32,
        out: u32,
        pointwise: bool,
    },
    Depthwise {
        pixels: u32,
        /// Height, width, step to the right; dilation 1. Without: any window.
        window: Option<[u32; 3]>,
        /// Multiplies in f32; where there is a window.
        #[serde(default)]
        real: bool,
    },
    Binary,
    Lookup,
    Maximum,
    Mean {
        /// Threads that share the pixels of a word; 1 needs no workgroup memory.
        parts: u32,
    },
    Select,
    Copy,
    Average,
    Mixed,
    Matrix,
    ChannelMean,
    Softmax {
        /// Threads that share the channels of a pixel; 1 needs no workgroup memory.
        parts: u32,
    },
    Position {
        parts: u32,
    },
    Quantise,
    Picture,
    /// A picture of another size.
    Resized,
    Dequantise,
    /// Of a float network.
    Float {
        kernel: Float,
        /// Activations and weights are f16, which the GPU must have.
        half: bool,
    },
}

impl Variant {
    /// Threads of a workgroup.
    pub fn lanes(&self) -> u32 {
        match self {
            // Their sums would not fit the workgroup's memory.
            Self::Convolution { pixels, out, split: 2.., .. } if pixels * out > 8 => 32,
            Self::Float { .. } => Float::LANES,
            _ => 64,
        }
    }

    /// Threads that work on one tile.
    pub fn sharers(&self) -> u32 {
        match self {
            Self::Convolution { split, .. } => *split,
            Self::Tiled { .. } => self.lanes(),
            Self::Mean { parts } | Self::Softmax { parts } | Self::Position { parts } => *parts,
            Self::Float { kernel, .. } => kernel.sharers(),
            _ => 1,
        }
    }

    /// The WGSL of it. Errors are bugs of this crate; its tests go through all variants that are ever used.
    pub fn source(&self) -> Result<String, String> {
        let common = include_str!("../wgsl/common.wgsl");
        let join = include_str!("../wgsl/join.wgsl");
        let finish = include_str!("../wgsl/finish.wgsl");
        let stairs = include_str!("../wgsl/stairs.wgsl");
        let flag = u32::from;
        let (params, texts, numbers): (_, &[&str], Vec<(&str, u32)>) = match *self {
            Self::Convolution { pixels, out, quads, pointwise, grouped, split, real } => (
                ConvolutionParams::WGSL,
                &[join, finish, include_str!("../wgsl/convolution.wgsl")],
                vec![
                    ("PIXELS", pixels),
                    ("OUT", out),
                    ("QUADS", flag(quads)),
                    ("POINTWISE", flag(pointwise)),
                    ("GROUPED", flag(grouped)),
                    ("SPLIT", split),
                    ("REAL", flag(real)),
                ],
            ),
            Self::Tiled { pixels, out, pointwise } => (
                ConvolutionParams::WGSL,
                &[join, finish, include_str!("../wgsl/tiled.wgsl")],
                vec![("PIXELS", pixels), ("OUT", out), ("POINTWISE", flag(pointwise))],
            ),
            Self::Depthwise { pixels, window, real } => {
                let [h, w, stride] = window.unwrap_or_default();
                (
                    DepthwiseParams::WGSL,
                    &[join, finish, include_str!("../wgsl/depthwise.wgsl")],
                    vec![
                        ("PIXELS", pixels),
                        ("KERNEL_H", h),
                        ("KERNEL_W", w),
                        ("STRIDE_W", stride),
                        ("REAL", flag(real && window.is_some())),
                    ],
                )
            }
            Self::Binary => (BinaryParams::WGSL, &[join, include_str!("../wgsl/binary.wgsl")], vec![]),
            Self::Lookup => (LookupParams::WGSL, &[include_str!("../wgsl/lookup.wgsl")], vec![]),
            Self::Maximum => (MaximumParams::WGSL, &[include_str!("../wgsl/maximum.wgsl")], vec![]),
            Self::Mean { parts } => {
                (MeanParams::WGSL, &[stairs, include_str!("../wgsl/mean.wgsl")], vec![("PARTS", parts)])
            }
            Self::Select => (SelectParams::WGSL, &[include_str!("../wgsl/select.wgsl")], vec![]),
            Self::Average => (AverageParams::WGSL, &[stairs, include_str!("../wgsl/average.wgsl")], vec![]),
            Self::Mixed => (MixedParams::WGSL, &[stairs, include_str!("../wgsl/mixed.wgsl")], vec![]),
            Self::Matrix => (MatrixParams::WGSL, &[stairs, include_str!("../wgsl/matrix.wgsl")], vec![]),
            Self::ChannelMean => {
                (ChannelMeanParams::WGSL, &[stairs, include_str!("../wgsl/channel_mean.wgsl")], vec![])
            }
            Self::Softmax { parts } => {
                (SoftmaxParams::WGSL, &[stairs, include_str!("../wgsl/softmax.wgsl")], vec![("PARTS", parts)])
            }
            Self::Position { parts } => {
                (PositionParams::WGSL, &[include_str!("../wgsl/position.wgsl")], vec![("PARTS", parts)])
            }
            Self::Quantise => {
                (QuantiseParams::WGSL, &[stairs, include_str!("../wgsl/quantise.wgsl")], vec![])
            }
            Self::Picture => (PictureParams::WGSL, &[include_str!("../wgsl/picture.wgsl")], vec![]),
            Self::Resized => (ResizedParams::WGSL, &[include_str!("../wgsl/resized.wgsl")], vec![]),
            Self::Dequantise => (DequantiseParams::WGSL, &[include_str!("../wgsl/dequantise.wgsl")], vec![]),
            Self::Copy => (CopyParams::WGSL, &[include_str!("../wgsl/copy.wgsl")], vec![]),
            Self::Float { kernel, half } => {
                let (texts, numbers) = kernel.parts(half);
                return self.expanded(&texts, numbers);
            }
        };
        self.expanded(&[&[params, common], texts].concat(), numbers)
    }

    fn expanded(&self, texts: &[&str], numbers: Vec<(&str, u32)>) -> Result<String, String> {
        let mut values: template::Values =
            numbers.into_iter().map(|(name, value)| (name.to_owned(), i64::from(value))).collect();
        values.insert("LANES".into(), self.lanes().into());
        template::expand(&texts.join("\n"), &values).map_err(|why| format!("{self:?}: {why}"))
    }

    /// Convolutions without groups that do the same.
    pub fn convolutions(quads: bool, pointwise: bool) -> Vec<Self> {
        let mut all = vec![];
        let mut push = |(pixels, out), split, real| {
            all.push(Self::Convolution { pixels, out, quads, pointwise, grouped: false, split, real });
        };
        for size in [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2), (4, 4)] {
            [1, 2, 4, 8, 16].into_iter().for_each(|split| push(size, split, false));
            // Small hardware, which has few threads and few registers.
            if matches!(size, (1 | 2 | 4, 1) | (2 | 4, 2)) {
                [1, 4].into_iter().for_each(|split| push(size, split, true));
            }
        }
        if quads {
            all.extend([(8, 2), (4, 2), (4, 1)].map(|(pixels, out)| Self::Tiled { pixels, out, pointwise }));
        }
        all
    }

    /// Depthwise convolutions of a window that do the same.
    pub fn depthwise(window: [u32; 3]) -> Vec<Self> {
        let with = |real| [4, 2, 1].map(|pixels| Self::Depthwise { pixels, window: Some(window), real });
        [true, false].map(with).concat()
    }

    /// All that the executor ever asks for.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::Binary,
            Self::Lookup,
            Self::Maximum,
            Self::Select,
            Self::Copy,
            Self::Average,
            Self::Mixed,
            Self::Matrix,
            Self::ChannelMean,
            Self::Quantise,
            Self::Picture,
            Self::Resized,
            Self::Dequantise,
        ];
        all.extend([1, 8].map(|parts| Self::Mean { parts }));
        for parts in [1, 16] {
            all.extend([Self::Softmax { parts }, Self::Position { parts }]);
        }
        all.push(Self::Depthwise { pixels: 1, window: None, real: false });
        for (size, stride) in [(3, 1), (3, 2), (5, 1), (5, 2)] {
            all.extend(Self::depthwise([size, size, stride]));
        }
        for quads in [false, true] {
            all.push(Self::Convolution {
                pixels: 4,
                out: 1,
                quads,
                pointwise: false,
                grouped: true,
                split: 1,
                real: false,
            });
            for pointwise in [false, true] {
                all.extend(Self::convolutions(quads, pointwise));
            }
        }
        let float = |half| move |kernel| Self::Float { kernel, half };
        all.extend([false, true].into_iter().flat_map(|half| Float::all().into_iter().map(float(half))));
        all
    }
}

#[cfg(test)]
mod tests;
