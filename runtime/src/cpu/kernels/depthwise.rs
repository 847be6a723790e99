//! Depthwise convolution: one filter a channel, straight from the activation, without a padded copy.
//!
//! The bytes of four taps of a channel must lie side by side. A *column* is a position across; for some columns of a row of
//! windows, four bytes below each other (or, for the last of 5 rows, four side by side) are interleaved into scratch
//! memory in the first-level cache, where all windows that see the column find them.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]
#![allow(clippy::needless_range_loop, reason = "registers are several arrays, one index")]

mod pack;

use std::mem::MaybeUninit;

use super::{
    Finished, Isa, Target, Team, lookup, requantise,
    simd::{Finish, Simd},
};

pub(crate) use pack::Filters;
use pack::{Chunk, Group, Plain};

/// Rows of a filter that the vector kernels take.
const ROWS_MAX: usize = 16;
/// The rows under a filter.
pub(super) type Rows = [Line; ROWS_MAX];

/// A row of pixels. In one of zero points all pixels are the same.
#[derive(Clone, Copy)]
pub(super) struct Line {
    start: *const u8,
    stride: usize,
}

/// A row of the output.
#[derive(Clone, Copy)]
pub(super) struct To {
    start: *mut u8,
    stride: usize,
}

/// Bytes of interleaved columns: most of a first-level cache.
const SCRATCH: usize = 32 << 10;
/// Terms of a filter that the vector kernels take.
const TERMS_MAX: usize = 64;
/// Pixels computed at one time.
const PIXELS: usize = 4;

/// Sizes of a depthwise convolution. Windows that leave the input see `zero`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planes {
    /// Height and width.
    pub(crate) input: [usize; 2],
    pub(crate) output: [usize; 2],
    pub(crate) channels: usize,
    pub(crate) kernel: [usize; 2],
    pub(crate) strides: [usize; 2],
    pub(crate) dilations: [usize; 2],
    /// Rows above, columns to the left.
    pub(crate) before: [usize; 2],
    pub(crate) zero: u8,
}

/// The whole convolution, into `out`.
///
/// Pixels lie `stride` bytes apart in `input`, `out_stride` in `out`; nothing need come after the last one's channels.
pub(crate) fn depthwise(
    team: &mut Team,
    input: &[u8],
    stride: usize,
    filters: &Filters,
    finished: Finished<'_>,
    out: &mut [u8],
    out_stride: usize,
) {
    let Planes { input: [h, w], output: [height, width], channels, .. } = filters.planes;
    let length =
        |pixels: usize, stride: usize| pixels.checked_sub(1).map_or(0, |last| last * stride + channels);
    assert!(stride >= channels && input.len() >= length(h * w, stride));
    assert!(out_stride >= channels && out.len() == length(height * width, out_stride));
    let line = width * out_stride;
    if line == 0 || height == 0 {
        return;
    }
    // A few microseconds of work.
    let size = team.piece(out.len(), line, (1 << 18) / (4 * filters.terms.len().max(1)));
    team.pieces(out, size, |part, out| {
        for (i, out) in out.chunks_mut(line).enumerate() {
            filters.row(input, stride, part * (size / line) + i, finished.target, out, out_stride);
            match finished.table {
                Some(table) if out_stride == channels => lookup(filters.isa, table, out),
                Some(table) => out
                    .chunks_mut(out_stride)
                    .for_each(|out| lookup(filters.isa, table, &mut out[..channels])),
                None => {}
            }
        }
    });
}

impl Filters {
    /// Row `y` of the output. `input` has all its rows, `out` the row.
    fn row(&self, input: &[u8], stride: usize, y: usize, target: Target, out: &mut [u8], out_stride: usize) {
        if let Some(plain) = &self.plain {
            return self.plain_row(plain, input, stride, y, target, out, out_stride);
        }
        let Planes { input: [h, w], channels, kernel, strides, dilations, before, .. } = self.planes;
        let blank = Line { start: self.blank.as_ptr(), stride: 0 };
        let mut rows = [blank; ROWS_MAX];
        for (ky, row) in rows.iter_mut().enumerate().take(kernel[0]) {
            let at = (y * strides[0] + ky * dilations[0]).checked_sub(before[0]).filter(|at| *at < h);
            if let Some(at) = at {
                let line = &input[at * w * stride..][..(w - 1) * stride + channels];
                *row = Line { start: line.as_ptr(), stride };
            }
        }
        let out = To { start: out.as_mut_ptr(), stride: out_stride };
        // Safety: each of the kernel's rows has `w` pixels, `out` has the output's; the isa is what it is packed for.
        unsafe {
            match self.isa {
                Isa::Scalar => {}
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni(token) => super::avx512::depthwise(token, self, &rows, target, out),
                #[cfg(target_arch = "x86_64")]
                Isa::AvxVnni(token) => super::avx2::depthwise_vnni(token, self, &rows, target, out),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(token) => super::avx2::depthwise(token, self, &rows, target, out),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon(token) => super::neon::depthwise(token, self, &rows, target, out),
                #[cfg(target_arch = "aarch64")]
                Isa::DotProd(token) => super::neon::depthwise_dot(token, self, &rows, target, out),
                #[cfg(target_arch = "aarch64")]
                Isa::I8mm(token) => super::neon::depthwise_mixed(token, self, &rows, target, out),
            }
        }
    }

    /// The reference.
    #[expect(clippy::too_many_arguments, reason = "what a row is")]
    fn plain_row(
        &self,
        plain: &Plain,
        input: &[u8],
        stride: usize,
        y: usize,
        target: Target,
        out: &mut [u8],
        out_stride: usize,
    ) {
        let Planes { input: [h, w], channels, kernel: [kh, kw], strides, dilations, before, zero, .. } =
            self.planes;
        for (x, out) in out.chunks_mut(out_stride).enumerate() {
            for (c, out) in out[..channels].iter_mut().enumerate() {
                let mut sum = plain.bias[c];
                for t in 0..kh * kw {
                    let at = |d: usize, out: usize, k: usize, size: usize| {
                        (out * strides[d] + k * dilations[d]).checked_sub(before[d]).filter(|at| *at < size)
                    };
                    let pixel = at(0, y, t / kw, h).zip(at(1, x, t % kw, w));
                    let byte = pixel.map_or(zero, |(y, x)| input[(y * w + x) * stride + c]);
                    sum += i32::from(byte) * i32::from(plain.weights[c * kh * kw + t]);
                }
                *out = requantise(sum, plain.multiplier[c], target);
            }
        }
    }

    /// The chunks that are as wide as `simd`.
    ///
    /// # Safety
    /// Each of the kernel's `rows` has the input's pixels, `out` the output's; the filters are packed for `simd`'s
    /// instruction set.
    #[inline(always)]
    pub(super) unsafe fn vectors<S: Simd>(&self, simd: S, rows: &Rows, target: Target, out: To) {
        for chunk in &self.chunks {
            if chunk.lanes != S::LANES {
                continue;
            }
            let near = self.planes.dilations[1] == 1;
            // Safety: the caller's word, and `pack` laid out the chunk.
            unsafe {
                match (self.planes.kernel, self.planes.strides[1]) {
                    ([3, 3], 1) if near => self.chunk::<S, Three, 1>(simd, chunk, rows, target, out),
                    ([3, 3], 2) if near => self.chunk::<S, Three, 2>(simd, chunk, rows, target, out),
                    ([5, 5], 1) if near => self.chunk::<S, Five, 1>(simd, chunk, rows, target, out),
                    ([5, 5], 2) if near => self.chunk::<S, Five, 2>(simd, chunk, rows, target, out),
                    _ => self.chunk::<S, Any, 0>(simd, chunk, rows, target, out),
                }
            }
        }
    }

    /// `STRIDE` is 0 where it is not known.
    ///
    /// # Safety
    /// As [`Self::vectors`]; `F` is what the filters are.
    #[inline(always)]
    unsafe fn chunk<S: Simd, F: Form, const STRIDE: usize>(
        &self,
        simd: S,
        chunk: &Chunk,
        rows: &Rows,
        target: Target,
        out: To,
    ) {
        /// A cache line.
        #[repr(align(64))]
        struct Columns([MaybeUninit<u8>; SCRATCH]);
        let mut columns = Columns([const { MaybeUninit::uninit() }; SCRATCH]);
        let columns = columns.0.as_mut_ptr().cast::<u8>();
        let Planes { output: [_, width], kernel, dilations, .. } = self.planes;
        let stride = if STRIDE == 0 { self.planes.strides[1] } else { STRIDE };
        let bytes = 16 * S::LANES;
        let column = self.groups.len() * 4 * bytes;
        let reach = (kernel[1] - 1) * dilations[1] + 1;
        // How many windows' columns fit; `pack` saw to it that they are `PIXELS` at least.
        let many = ((SCRATCH / column - reach) / stride + 1) / PIXELS * PIXELS;
        let mut offsets = [0; TERMS_MAX];
        for (offset, term) in offsets.iter_mut().zip(&self.terms) {
            *offset = term.column * column + term.group * 4 * bytes;
        }
        let tile = Tile {
            simd,
            offsets: &offsets[..self.terms.len()],
            pixel: stride * column,
            // `pack` laid them out for each chunk.
            weights: self.weights[chunk.weights..].as_ptr(),
            bias: self.bias[chunk.sums..].as_ptr().cast(),
            multiplier: self.multiplier[chunk.sums..].as_ptr(),
            finish: Finish::new(simd, target),
        };
        let mut first = 0;
        while first < width {
            let count = many.min(width - first);
            // Pixels beyond the last are computed too, but not written.
            let span = (count.next_multiple_of(PIXELS) - 1) * stride + reach;
            for (g, group) in self.groups.iter().enumerate() {
                // Safety: the columns fit; the caller's word.
                unsafe {
                    let to = columns.add(g * 4 * bytes);
                    self.columns(simd, chunk, rows, *group, first * stride, span, to, column);
                }
            }
            for pixel in (0..count).step_by(PIXELS) {
                // Safety: as many columns as the terms reach, and the chunk's channels of each pixel.
                unsafe {
                    let to = out.start.add((first + pixel) * out.stride + chunk.first);
                    let from = columns.add(pixel * stride * column);
                    tile.run::<F, STRIDE>(from, to, out.stride, count - pixel);
                }
            }
            first += count;
        }
    }

    /// One group of `count` columns from `first` on, counted from the left edge of the padding, into `to` and every
    /// `apart` bytes.
    ///
    /// # Safety
    /// As [`Self::vectors`]; there are four vectors at each place of `to`.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "what a column is")]
    unsafe fn columns<S: Simd>(
        &self,
        simd: S,
        chunk: &Chunk,
        rows: &Rows,
        group: Group,
        first: usize,
        count: usize,
        mut to: *mut u8,
        apart: usize,
    ) {
        let Planes { input: [_, w], before, zero, .. } = self.planes;
        let blank = simd.splat_byte(zero);
        // A tap that there is not has weight 0.
        let (lines, right) = match group {
            Group::Below(y, count) => ([0, 1, 2, 3].map(|i| rows[y + i.min(count - 1)]), [0; 4]),
            Group::Beside(y) => ([rows[y]; 4], [0, 1, 2, 3]),
        };
        let start = lines.map(|line| line.start.wrapping_add(chunk.first));
        for column in first..first + count {
            let mut parts = [blank; 4];
            for i in 0..4 {
                let x = (column + right[i]).wrapping_sub(before[1]);
                if x < w {
                    // Safety: pixel `x` of a row, at a chunk of its channels.
                    parts[i] = unsafe { simd.load(start[i].add(x * lines[i].stride)) };
                }
            }
            let quad = simd.interleave(parts);
            for q in 0..4 {
                // Safety: the caller's word.
                unsafe { simd.store(to.add(q * 16 * S::LANES), quad[q]) };
            }
            to = to.wrapping_add(apart);
        }
    }
}

/// The terms of a filter, where they are known.
trait Form {
    /// Column and group of each term, and groups of a column.
    const TERMS: Option<(&'static [[usize; 2]], usize)>;
}

struct Three;
struct Five;
struct Any;

impl Form for Three {
    const TERMS: Option<(&'static [[usize; 2]], usize)> = Some((&[[0, 0], [1, 0], [2, 0]], 1));
}

impl Form for Five {
    const TERMS: Option<(&'static [[usize; 2]], usize)> =
        Some((&[[0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [0, 1], [4, 1]], 2));
}

impl Form for Any {
    const TERMS: Option<(&'static [[usize; 2]], usize)> = None;
}

/// What the pixels of a chunk have in common.
struct Tile<'a, S: Simd> {
    simd: S,
    /// Of each term, from a window's first column.
    offsets: &'a [usize],
    /// From a window's first column to the next one's.
    pixel: usize,
    weights: *const u8,
    bias: *const u8,
    multiplier: *const f32,
    finish: Finish<S>,
}

impl<S: Simd> Tile<'_, S> {
    /// Writes `count` pixels, at most [`PIXELS`].
    ///
    /// # Safety
    /// `from` has the terms' columns for [`PIXELS`], `to` and every `apart` bytes the chunk's channels; there are four
    /// vectors of biases, multipliers and, for each term, weights. `F` and `STRIDE` are what the filters are.
    #[inline(always)]
    unsafe fn run<F: Form, const STRIDE: usize>(
        &self,
        from: *const u8,
        to: *mut u8,
        apart: usize,
        count: usize,
    ) {
        let (simd, bytes) = (self.simd, 16 * S::LANES);
        let mut quad = [simd.zero(); 4];
        macro_rules! quarters {
            ($($q:literal)*) => {$(
                // Safety: the caller's word.
                quad[$q] = unsafe { self.quarter::<F, STRIDE>(from, $q * bytes) };
            )*};
        }
        quarters!(0 1 2 3);
        let pixels = simd.transpose(quad);
        for p in 0..PIXELS {
            if p < count {
                // Safety: the caller's word.
                unsafe { simd.store(to.add(p * apart), pixels[p]) };
            }
        }
    }

    /// One vector of a quad, for all pixels.
    ///
    /// # Safety
    /// As [`Self::run`]; `at` is where the vector is in a quad.
    #[inline(always)]
    unsafe fn quarter<F: Form, const STRIDE: usize>(&self, from: *const u8, at: usize) -> S::Int {
        let (simd, bytes) = (self.simd, 16 * S::LANES);
        // Safety: the caller's word.
        unsafe {
            let mut sums = [simd.load(self.bias.add(at)); PIXELS];
            match F::TERMS {
                Some((terms, groups)) => {
                    for t in 0..terms.len() {
                        let weights = simd.load(self.weights.add(t * 4 * bytes + at));
                        let [column, group] = terms[t];
                        for p in 0..PIXELS {
                            let place = ((column + p * STRIDE) * groups + group) * 4 * bytes + at;
                            sums[p] = simd.dot(sums[p], simd.load(from.add(place)), weights);
                        }
                    }
                }
                None => {
                    for (t, offset) in self.offsets.iter().enumerate() {
                        let weights = simd.load(self.weights.add(t * 4 * bytes + at));
                        for p in 0..PIXELS {
                            let from = simd.load(from.add(p * self.pixel + offset + at));
                            sums[p] = simd.dot(sums[p], from, weights);
                        }
                    }
                }
            }
            let multiplier = simd.load_real(self.multiplier.add(at / 4));
            for p in 0..PIXELS {
                sums[p] = self.finish.round(simd, sums[p], multiplier);
            }
            self.finish.bytes(simd, sums)
        }
    }
}
