//! What a byte step computes, said in plain data, so that another executor of the plan can do the same: [`Description`].
//!
//! Bytes in, bytes out, bit for bit what the step's own `run` does. Whatever is neither a sum of products nor a lookup is
//! given as a function of its operands, to be tabulated by who wants it in integers. Steps keep what they were made from
//! only if they were asked to ([`Sources`]), since packed weights are enough to run.

use super::{kernels::Target, plan::Shape};

/// Whether steps keep what they were made from, beside what they run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sources {
    Dropped,
    Kept,
}

/// Weights and what becomes of the sums, one row a result.
#[derive(Debug, Clone)]
pub(crate) struct Filters {
    /// `[results, taps, channels of a group]`
    pub(crate) weights: Vec<i8>,
    /// With the input's zero point folded in: `bias + sum(byte * weight)` is the sum.
    pub(crate) bias: Vec<i32>,
    pub(crate) multiplier: Vec<f32>,
}

/// `rint(sum * multiplier) + zero`, clamped, then looked up.
pub(crate) struct Convolution<'a> {
    pub(crate) filters: &'a Filters,
    pub(crate) input: Shape,
    pub(crate) output: Shape,
    pub(crate) kernel: [usize; 2],
    pub(crate) strides: [usize; 2],
    pub(crate) dilations: [usize; 2],
    /// Rows above, columns to the left.
    pub(crate) before: [usize; 2],
    pub(crate) groups: usize,
    /// The byte that lies around the input.
    pub(crate) zero: u8,
    pub(crate) target: Target,
    pub(crate) table: Option<&'a [u8; 256]>,
    /// The second input is joined with the result.
    pub(crate) skip: Option<Skipped<'a>>,
}

/// Two bytes to one: of a convolution's result and a skip connection.
pub(crate) struct Skipped<'a> {
    pub(crate) byte: OfBytes<'a>,
    /// About what is rounded: `a * s[0] + b * s[1] + s[2]`.
    pub(crate) slopes: [f32; 3],
    /// The skip connection is the first operand.
    pub(crate) first: bool,
    pub(crate) table: Option<&'a [u8; 256]>,
}

/// Input positions along one dimension, for each output position: `out * stride + k * dilation - before`, if inside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) kernel: [usize; 2],
    pub(crate) strides: [usize; 2],
    pub(crate) dilations: [usize; 2],
    pub(crate) before: [usize; 2],
}

/// Which channel of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extreme {
    /// Otherwise the least.
    pub(crate) greatest: bool,
    /// Of equal ones the last, otherwise the first.
    pub(crate) last: bool,
}

/// A function of bytes, or of one number.
pub(crate) type OfBytes<'a> = Box<dyn Fn(u8, u8) -> u8 + 'a>;
pub(crate) type OfSum<'a> = Box<dyn Fn(i32) -> u8 + 'a>;

pub(crate) enum Description<'a> {
    Convolution(Convolution<'a>),
    /// Two bytes to one. A stretched operand has one pixel, which goes with every pixel of the other.
    Binary {
        byte: OfBytes<'a>,
        /// About what is rounded, where that is linear: `a * s[0] + b * s[1] + s[2]`.
        slopes: Option<[f32; 3]>,
        stretched: [bool; 2],
        /// The byte that each byte becomes at last.
        table: Option<&'a [u8; 256]>,
    },
    /// One table, or one a channel.
    Lookup {
        tables: Vec<&'a [u8; 256]>,
    },
    /// The same bytes elsewhere: the output's dimensions as they lie in memory, the last its channels, with how far apart
    /// the inputs of neighbours lie in pixels and in channels.
    Strided {
        dims: Vec<(usize, [isize; 2])>,
        start: [isize; 2],
    },
    /// For each output row, column and channel the input's; `None` is filled.
    Select {
        rows: &'a [Option<usize>],
        columns: &'a [Option<usize>],
        /// All as they are if there are none.
        channels: Option<&'a [Option<usize>]>,
        width: usize,
        fill: u8,
    },
    Maximum {
        window: Window,
        input: Shape,
        output: Shape,
    },
    /// The same bytes every time, pixel by pixel.
    Constant {
        bytes: &'a [u8],
    },
    /// Plain convolutions whose results lie between each other: the first pixel of each, row and column, in an output of
    /// so many columns, and how many rows and columns on its next ones lie.
    Interleaved {
        parts: Vec<([usize; 2], Convolution<'a>)>,
        strides: [usize; 2],
        width: usize,
    },
    /// A function that never falls of the real sum under a window, added up row by row from 0, and of how many it is taken to
    /// be: the product of a row's and a column's count.
    Average {
        window: Window,
        input: Shape,
        output: Shape,
        counts: [Vec<usize>; 2],
        values: &'a [f32; 256],
        byte: Box<dyn Fn(f32, usize) -> u8 + 'a>,
    },
    /// Four neighbours: for each output row and column two of the input's and their weights. A function that never falls of
    /// `w[0][0] * a + w[0][1] * b + w[1][0] * c + w[1][1] * d`, added up from the left, each weight a column's times a row's.
    Mixed {
        rows: Vec<([usize; 2], [f32; 2])>,
        columns: Vec<([usize; 2], [f32; 2])>,
        values: &'a [f32; 256],
        width: usize,
        byte: Box<dyn Fn(f32) -> u8 + 'a>,
    },
    /// Matrices of `m` by `k` times matrices of `k` by `n`: a function that never falls of the sums, then a table.
    Product {
        m: usize,
        k: usize,
        zeros: [i32; 2],
        byte: OfSum<'a>,
        table: Option<&'a [u8; 256]>,
    },
    /// Of each channel how far it is below its pixel's greatest, and what all are worth together, which fits 32 bits: a
    /// function of the two that never rises with the second.
    Softmax {
        channels: usize,
        worth: Box<[u32; 256]>,
        byte: Box<dyn Fn(u8, u32) -> u8 + 'a>,
    },
    /// Of each pixel the channel with its extreme, the lowest byte of its number first.
    Position {
        extreme: Extreme,
        channels: usize,
    },
    /// Over all pixels, or over the channels of each: a function of the sum of the bytes that never falls.
    Mean {
        over_pixels: bool,
        count: usize,
        byte: OfSum<'a>,
    },
}
