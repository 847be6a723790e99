//! AVX2 and FMA. Bytes are widened to 16 bits and multiplied in pairs (`vpmaddwd`): exact, where the byte multiply
//! (`vpmaddubsw`) would saturate. A product runs in tiles of up to 6 rows by 16 columns: 12 sums, 2 weights and 1
//! input fill the 16 registers.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]

use std::arch::x86_64::*;

use super::{BLOCK, HALF, Matrix, Out, Row, Sum, Taps, Target};

/// Proof that this processor has AVX2 and FMA; only [`Token::detect`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(());

impl Token {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

/// The caller has checked that `left` has `rows` rows and that each row's columns lie in `out`.
pub(super) fn product(_: Token, left: &[i16], rows: usize, matrix: &Matrix, target: Target, out: Out<'_>) {
    // Safety: the token proves the instructions. All columns are walked block by block as `Matrix::pack` laid them
    // out, all rows tile by tile, and `super::product` checked the lengths of `left` and `out`.
    unsafe { product_blocks(left, rows, matrix, target, out) }
}

/// # Safety
/// `left.len() >= rows * matrix.row()`, and `matrix.columns` bytes of `out` from each row's offset.
#[target_feature(enable = "avx2,fma")]
unsafe fn product_blocks(left: &[i16], rows: usize, matrix: &Matrix, target: Target, out: Out<'_>) {
    let padded = matrix.bias.len();
    for first in (0..padded).step_by(BLOCK) {
        let full = padded - first > HALF;
        let tile = Tile {
            stride: matrix.row(),
            pairs: matrix.pairs,
            // In bounds: each column before this block has `row()` weights.
            weights: matrix.weights[first * matrix.row()..].as_ptr(),
            bias: matrix.bias[first..].as_ptr(),
            multiplier: matrix.multiplier[first..].as_ptr(),
            target,
            columns: (matrix.columns - first).min(BLOCK),
            out_stride: out.stride,
        };
        let mut row = 0;
        while row < rows {
            let height = (rows - row).min(6);
            // Safety: rows `row..row + height` of both sides exist; the block has 16 columns if `full`, else 8.
            unsafe {
                let left = left.as_ptr().add(row * tile.stride);
                let to = out.bytes.as_mut_ptr().add(row * out.stride + out.offset + first);
                match (height, full) {
                    (6, true) => tile.run::<6, 2>(left, to),
                    (5, true) => tile.run::<5, 2>(left, to),
                    (4, true) => tile.run::<4, 2>(left, to),
                    (3, true) => tile.run::<3, 2>(left, to),
                    (2, true) => tile.run::<2, 2>(left, to),
                    (_, true) => tile.run::<1, 2>(left, to),
                    (6, false) => tile.run::<6, 1>(left, to),
                    (5, false) => tile.run::<5, 1>(left, to),
                    (4, false) => tile.run::<4, 1>(left, to),
                    (3, false) => tile.run::<3, 1>(left, to),
                    (2, false) => tile.run::<2, 1>(left, to),
                    (_, false) => tile.run::<1, 1>(left, to),
                }
            }
            row += height;
        }
    }
}

/// One block of columns.
struct Tile {
    /// 16-bit values from one row of the left side to the next.
    stride: usize,
    pairs: usize,
    weights: *const i8,
    bias: *const i32,
    multiplier: *const f32,
    target: Target,
    /// Columns to write, at most `8 * V`.
    columns: usize,
    out_stride: usize,
}

impl Tile {
    /// `R` rows by `8 * V` columns.
    ///
    /// # Safety
    /// `left` has `R` rows of `2 * pairs` values `stride` apart; `weights` has `16 * V * pairs` values, `bias` and
    /// `multiplier` have `8 * V`; `out` has `R` rows of `columns` bytes `out_stride` apart.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn run<const R: usize, const V: usize>(&self, left: *const i16, out: *mut u8) {
        let mut sums = [[_mm256_setzero_si256(); V]; R];
        for v in 0..V {
            // Safety: 8 values from `8 * v`, of `8 * V`.
            let bias = unsafe { _mm256_loadu_si256(self.bias.add(8 * v).cast()) };
            for row in &mut sums {
                row[v] = bias;
            }
        }
        for pair in 0..self.pairs {
            let mut weights = [_mm256_setzero_si256(); V];
            for (v, weights) in weights.iter_mut().enumerate() {
                // Safety: 16 bytes from `16 * (V * pair + v)`, of `16 * V * pairs`.
                let bytes = unsafe { _mm_loadu_si128(self.weights.add(16 * (V * pair + v)).cast()) };
                *weights = _mm256_cvtepi8_epi16(bytes);
            }
            for (r, row) in sums.iter_mut().enumerate() {
                // Safety: values `2 * pair` and the next of row `r`.
                let both = unsafe { left.add(r * self.stride + 2 * pair).cast::<i32>().read_unaligned() };
                let both = _mm256_set1_epi32(both);
                for v in 0..V {
                    row[v] = _mm256_add_epi32(row[v], _mm256_madd_epi16(both, weights[v]));
                }
            }
        }
        for (r, row) in sums.iter().enumerate() {
            let mut words = [_mm256_setzero_si256(); 2];
            for v in 0..V {
                // Safety: 8 values from `8 * v`, of `8 * V`.
                let multiplier = unsafe { _mm256_loadu_ps(self.multiplier.add(8 * v)) };
                words[v] = requantise(row[v], multiplier, self.target.zero);
            }
            // Lanes come out as 0-3, 8-11, 4-7, 12-15.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(words[0], words[1]));
            let bytes = narrow(words, self.target.low, self.target.high);
            // Safety: row `r` has `columns` bytes.
            unsafe { store(out.add(r * self.out_stride), bytes, self.columns) };
        }
    }
}

/// `rint(sum * multiplier) + zero`
#[target_feature(enable = "avx2,fma")]
#[inline]
fn requantise(sums: __m256i, multiplier: __m256, zero: u8) -> __m256i {
    let real = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), multiplier);
    // The conversion gives the least integer for what is too large; too small may stay as it is.
    let real = _mm256_min_ps(real, _mm256_set1_ps(65_536.0));
    _mm256_add_epi32(_mm256_cvtps_epi32(real), _mm256_set1_epi32(zero.into()))
}

/// 16 words to bytes, saturated, then clamped.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn narrow(words: __m256i, low: u8, high: u8) -> __m128i {
    let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    _mm_min_epu8(_mm_max_epu8(bytes, _mm_set1_epi8(low as i8)), _mm_set1_epi8(high as i8))
}

/// The first `count` of 16 bytes.
///
/// # Safety
/// `to` has `count` bytes, at most 16.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn store(to: *mut u8, bytes: __m128i, count: usize) {
    // Safety: what is written is `count` bytes.
    unsafe {
        match count {
            16 => _mm_storeu_si128(to.cast(), bytes),
            8 => _mm_storel_epi64(to.cast(), bytes),
            _ => {
                let mut all = [0u8; 16];
                _mm_storeu_si128(all.as_mut_ptr().cast(), bytes);
                std::ptr::copy_nonoverlapping(all.as_ptr(), to, count);
            }
        }
    }
}

/// The caller has checked that all taps of all pixels, rounded up to whole chunks, lie in `input`.
pub(super) fn depthwise(_: Token, input: &[u8], row: Row<'_>, taps: &Taps, target: Target, out: &mut [u8]) {
    // Safety: the token proves the instructions, `super::depthwise` checked the reads; writes are within pixels of `out`.
    unsafe { depthwise_chunks(input, row, taps, target, out) }
}

/// # Safety
/// As for [`depthwise`].
#[target_feature(enable = "avx2,fma")]
unsafe fn depthwise_chunks(input: &[u8], row: Row<'_>, taps: &Taps, target: Target, out: &mut [u8]) {
    let channels = taps.channels;
    let pixels = out.len() / channels;
    for first in (0..channels).step_by(BLOCK) {
        let weights = taps.weights[first * 2 * taps.pairs..].as_ptr();
        let (bias, multiplier) = (taps.bias[first..].as_ptr(), taps.multiplier[first..].as_ptr());
        let columns = (channels - first).min(BLOCK);
        // Safety: `Taps::pack` laid out 16 values of bias and multiplier for each chunk.
        let (bias, multiplier) = unsafe {
            (
                [_mm256_loadu_si256(bias.cast()), _mm256_loadu_si256(bias.add(8).cast())],
                [_mm256_loadu_ps(multiplier), _mm256_loadu_ps(multiplier.add(8))],
            )
        };
        for x in 0..pixels {
            let at = row.start + x * row.step + first;
            let mut sums = bias;
            for (pair, offsets) in row.offsets.as_chunks::<2>().0.iter().enumerate() {
                // Safety: the caller checked the taps; a chunk has 32 weights a pair.
                unsafe {
                    let [a, b] = offsets.map(|offset| input.as_ptr().add(at + offset));
                    let a = _mm256_cvtepu8_epi16(_mm_loadu_si128(a.cast()));
                    let b = _mm256_cvtepu8_epi16(_mm_loadu_si128(b.cast()));
                    let low = _mm256_loadu_si256(weights.add(32 * pair).cast());
                    let high = _mm256_loadu_si256(weights.add(32 * pair + 16).cast());
                    sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), low));
                    sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), high));
                }
            }
            let low = requantise(sums[0], multiplier[0], target.zero);
            let high = requantise(sums[1], multiplier[1], target.zero);
            // Packing puts the interleaved channels back in order.
            let bytes = narrow(_mm256_packs_epi32(low, high), target.low, target.high);
            // Safety: pixel `x` has `channels` bytes, `columns` of them from `first`.
            unsafe { store(out.as_mut_ptr().add(x * channels + first), bytes, columns) };
        }
    }
}

/// All three have one length.
pub(super) fn add(_: Token, a: &[u8], b: &[u8], sum: Sum, out: &mut [u8]) {
    let whole = out.len() / 8 * 8;
    // Safety: the token proves the instructions; `super::add` checked that the lengths are equal.
    unsafe { add_eights(&a[..whole], &b[..whole], sum, &mut out[..whole]) };
    super::scalar::add(&a[whole..], &b[whole..], sum, &mut out[whole..]);
}

/// # Safety
/// Equal lengths, a multiple of 8.
#[target_feature(enable = "avx2,fma")]
unsafe fn add_eights(a: &[u8], b: &[u8], sum: Sum, out: &mut [u8]) {
    let (ratio_a, ratio_b) = (_mm256_set1_ps(sum.ratio_a), _mm256_set1_ps(sum.ratio_b));
    let fixed = _mm256_set1_ps(sum.fixed);
    for i in (0..out.len()).step_by(8) {
        // Safety: 8 bytes from `i` in each.
        let load = |from: &[u8]| unsafe { _mm_loadl_epi64(from.as_ptr().add(i).cast()) };
        let [a, b] = [a, b].map(|from| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load(from))));
        let real = _mm256_fmadd_ps(a, ratio_a, _mm256_fmadd_ps(b, ratio_b, fixed));
        let words = _mm256_cvtps_epi32(_mm256_min_ps(real, _mm256_set1_ps(65_536.0)));
        let words = _mm256_packs_epi32(words, _mm256_setzero_si256());
        let bytes = narrow(_mm256_permute4x64_epi64::<0b11_01_10_00>(words), sum.low, sum.high);
        // Safety: 8 bytes from `i`.
        unsafe { store(out.as_mut_ptr().add(i), bytes, 8) };
    }
}
