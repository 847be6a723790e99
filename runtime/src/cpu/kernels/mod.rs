//! Inner loops of the `cpu` engine, in one form for each instruction set: [`scalar`] is the reference, and every other
//! gives the same bytes. Which one runs is decided once, by [`Isa::best`].
//!
//! Arithmetic (ONNX Runtime's on x86): sums in i32, exact; `rint(f32(sum) * multiplier) + zero`, ties to even, clamped
//! to `low..=high`. The multiply of bytes widens to 16 bits and never saturates, so that results are right without
//! VNNI too. Lengths are checked in the functions here, before any kernel reads through a pointer.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Token),
}

impl Isa {
    /// The fastest that this processor has.
    pub(crate) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(token) = avx2::Token::detect() {
            return Self::Avx2(token);
        }
        Self::Scalar
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
        }
    }
}

/// How sums become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) zero: u8,
    /// Bounds of the result: the whole range of a byte, or what an activation leaves of it.
    pub(crate) low: u8,
    pub(crate) high: u8,
}

/// Channels that a full block of a [`Matrix`] has; a last block of at most [`HALF`] has half as many.
pub(super) const BLOCK: usize = 16;
pub(super) const HALF: usize = 8;

/// Weights of a matrix product, packed: blocks of [`BLOCK`] columns (output channels), in each for every pair of rows
/// (inputs) the two weights of each column side by side. Columns are filled up with zeros.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    columns: usize,
    /// Inputs, in pairs; an odd last one has a zero beside it.
    pairs: usize,
    weights: Vec<i8>,
    /// With the input's zero point folded in. One a column, zero beyond the last.
    bias: Vec<i32>,
    multiplier: Vec<f32>,
}

impl Matrix {
    /// `weight(column, input)`; one bias and one multiplier a column.
    pub(crate) fn pack(
        inputs: usize,
        bias: &[i32],
        multiplier: &[f32],
        weight: impl Fn(usize, usize) -> i8,
    ) -> Self {
        let (columns, pairs) = (bias.len(), inputs.div_ceil(2));
        let padded = columns.next_multiple_of(HALF);
        let mut weights = Vec::with_capacity(padded * pairs * 2);
        for start in (0..padded).step_by(BLOCK) {
            for pair in 0..pairs {
                for column in start..(start + BLOCK).min(padded) {
                    for input in [2 * pair, 2 * pair + 1] {
                        weights.push(if column < columns && input < inputs {
                            weight(column, input)
                        } else {
                            0
                        });
                    }
                }
            }
        }
        let mut matrix =
            Self { columns, pairs, weights, bias: bias.to_vec(), multiplier: multiplier.to_vec() };
        matrix.bias.resize(padded, 0);
        matrix.multiplier.resize(padded, 0.0);
        matrix
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// 16-bit inputs that a row of the left side has: the inputs, made even.
    pub(crate) fn row(&self) -> usize {
        2 * self.pairs
    }
}

/// `out[r * stride + offset + column]` for each row `r` of `left` (`rows` of `matrix.row()` values of 0 to 255).
pub(crate) fn product(isa: Isa, left: &[i16], rows: usize, matrix: &Matrix, target: Target, out: Out<'_>) {
    let last = rows.checked_sub(1).map(|r| r * out.stride + out.offset + matrix.columns);
    assert!(left.len() >= rows * matrix.row() && last.is_none_or(|end| end <= out.bytes.len()));
    match isa {
        Isa::Scalar => scalar::product(left, rows, matrix, target, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(token) => avx2::product(token, left, rows, matrix, target, out),
    }
}

/// Where rows of channels go.
pub(crate) struct Out<'a> {
    pub(crate) bytes: &'a mut [u8],
    /// Bytes from one row to the next, and to the first channel in a row.
    pub(crate) stride: usize,
    pub(crate) offset: usize,
}

/// Weights of a depthwise convolution, packed: chunks of [`BLOCK`] channels, in each for every pair of taps the two
/// weights of each channel side by side, in the order that [`CHUNK_ORDER`] says. Channels are filled up with zeros.
#[derive(Debug, Clone)]
pub(crate) struct Taps {
    channels: usize,
    /// Taps, in pairs; an odd last one has a zero weight beside it.
    pairs: usize,
    weights: Vec<i16>,
    bias: Vec<i32>,
    multiplier: Vec<f32>,
}

/// Order of channels within a chunk: what interleaving the halves of two 256-bit registers gives.
const CHUNK_ORDER: [usize; BLOCK] = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15];

impl Taps {
    /// `weight(channel, tap)`; one bias and one multiplier a channel.
    pub(crate) fn pack(
        taps: usize,
        bias: &[i32],
        multiplier: &[f32],
        weight: impl Fn(usize, usize) -> i8,
    ) -> Self {
        let (channels, pairs) = (bias.len(), taps.div_ceil(2));
        let order =
            (0..channels.next_multiple_of(BLOCK)).step_by(BLOCK).flat_map(|c| CHUNK_ORDER.map(|i| c + i));
        let order: Vec<usize> = order.collect();
        let mut weights = Vec::with_capacity(order.len() * pairs * 2);
        for chunk in order.chunks(BLOCK) {
            for pair in 0..pairs {
                for channel in chunk {
                    for tap in [2 * pair, 2 * pair + 1] {
                        let real = *channel < channels && tap < taps;
                        weights.push(if real { i16::from(weight(*channel, tap)) } else { 0 });
                    }
                }
            }
        }
        let bias = order.iter().map(|c| bias.get(*c).copied().unwrap_or(0)).collect();
        let multiplier = order.iter().map(|c| multiplier.get(*c).copied().unwrap_or(0.0)).collect();
        Self { channels, pairs, weights, bias, multiplier }
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels
    }
}

/// One row of a depthwise convolution. Pixel `x` of `out` (`out.len() / channels` of them) reads the channels at
/// `start + x * step + offsets[tap]` of `input`; an odd number of taps has its last offset twice. `input` must hold
/// [`BLOCK`] bytes from wherever a chunk starts: up to 15 bytes after the last channel are read and not used.
pub(crate) fn depthwise(isa: Isa, input: &[u8], row: Row<'_>, taps: &Taps, target: Target, out: &mut [u8]) {
    let pixels = out.len() / taps.channels;
    let chunks = taps.channels.next_multiple_of(BLOCK);
    let furthest = row
        .offsets
        .iter()
        .max()
        .zip(pixels.checked_sub(1))
        .map(|(o, x)| row.start + x * row.step + o + chunks);
    assert!(row.offsets.len() == 2 * taps.pairs && furthest.is_none_or(|end| end <= input.len()));
    match isa {
        Isa::Scalar => scalar::depthwise(input, row, taps, target, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(token) => avx2::depthwise(token, input, row, taps, target, out),
    }
}

/// Where a row of a depthwise convolution reads, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) start: usize,
    pub(crate) step: usize,
    pub(crate) offsets: &'a [usize],
}

/// `rint(a * ratio_a + (b * ratio_b + fixed))`, each a fused multiply-add, clamped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sum {
    pub(crate) ratio_a: f32,
    pub(crate) ratio_b: f32,
    pub(crate) fixed: f32,
    pub(crate) low: u8,
    pub(crate) high: u8,
}

pub(crate) fn add(isa: Isa, a: &[u8], b: &[u8], sum: Sum, out: &mut [u8]) {
    assert!(a.len() == out.len() && b.len() == out.len());
    match isa {
        Isa::Scalar => scalar::add(a, b, sum, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(token) => avx2::add(token, a, b, sum, out),
    }
}

/// Bytes to 16 bits.
pub(crate) fn widen(from: &[u8], to: &mut [i16]) {
    // Compiles to unpack instructions on every target.
    to.iter_mut().zip(from).for_each(|(to, from)| *to = i16::from(*from));
}

/// `value` to the nearest integer, ties to even, within ±65536; NaN counts as the least.
#[expect(clippy::manual_clamp, reason = "clamp would let NaN through")]
pub(crate) fn rint(value: f32) -> i32 {
    // 1.5 * 2^23: adding it leaves no bits after the point, so that the addition rounds.
    const SHIFT: f32 = 12_582_912.0;
    (value.max(-65_536.0).min(65_536.0) + SHIFT - SHIFT) as i32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rint_is_to_even() {
        for value in [-2.5, -1.5, -0.5, -0.4999, 0.0, 0.5, 1.5, 2.5, 254.5, 255.5, 65_535.5, 3.7, -1000.2f32]
        {
            assert_eq!(rint(value), value.round_ties_even() as i32, "{value}");
        }
        assert_eq!((rint(f32::INFINITY), rint(-1e30), rint(f32::NAN)), (65_536, -65_536, -65_536));
    }

    fn values(length: usize, seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ length as u64 | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> 16
        }
    }

    /// Extremes often, so that saturation is met.
    fn byte(next: &mut impl FnMut() -> u64) -> u8 {
        match next() % 4 {
            0 => 255,
            1 => 0,
            _ => next() as u8,
        }
    }

    proptest! {
        #[test]
        fn products_are_the_same_on_every_instruction_set(
            (rows, inputs, columns) in (1usize..20, 1usize..70, 1usize..50),
            zero in any::<u8>(), bounds in any::<(u8, u8)>(), scale in -20i32..8, seed in any::<u64>(),
        ) {
            let mut next = values(rows, seed);
            let weights: Vec<i8> = (0..inputs * columns).map(|_| byte(&mut next) as i8).collect();
            let bias: Vec<i32> = (0..columns).map(|_| next() as i32 >> 8).collect();
            let multiplier: Vec<f32> = (0..columns).map(|_| (next() % 1000 + 1) as f32 * 2f32.powi(scale)).collect();
            let matrix = Matrix::pack(inputs, &bias, &multiplier, |c, i| weights[c * inputs + i]);
            let left: Vec<i16> = (0..rows * matrix.row()).map(|_| byte(&mut next).into()).collect();
            let target = Target { zero, low: bounds.0.min(bounds.1), high: bounds.0.max(bounds.1) };
            let (stride, offset) = (columns + 3, 2);
            let run = |isa| {
                let mut out = vec![7; rows * stride];
                product(isa, &left, rows, &matrix, target, Out { bytes: &mut out, stride, offset });
                out
            };
            let reference = run(Isa::Scalar);
            for r in 0..rows {
                for c in 0..columns {
                    let terms = (0..inputs).map(|i| i32::from(left[r * matrix.row() + i]) * i32::from(weights[c * inputs + i]));
                    let sum = terms.sum::<i32>() + bias[c];
                    let real = (sum as f32 * multiplier[c]).round_ties_even() as i64 + i64::from(zero);
                    let expected = real.clamp(target.low.into(), target.high.into()) as u8;
                    prop_assert_eq!(reference[r * stride + offset + c], expected);
                }
            }
            prop_assert_eq!(run(Isa::best()), reference);
        }

        #[test]
        fn depthwise_rows_are_the_same_on_every_instruction_set(
            (channels, taps, pixels, step) in (1usize..40, 1usize..12, 1usize..6, 1usize..3),
            zero in any::<u8>(), scale in -16i32..4, seed in any::<u64>(),
        ) {
            let mut next = values(channels, seed);
            let weights: Vec<i8> = (0..taps * channels).map(|_| byte(&mut next) as i8).collect();
            let bias: Vec<i32> = (0..channels).map(|_| next() as i32 >> 10).collect();
            let multiplier: Vec<f32> = (0..channels).map(|_| (next() % 1000 + 1) as f32 * 2f32.powi(scale)).collect();
            let packed = Taps::pack(taps, &bias, &multiplier, |c, t| weights[c * taps + t]);
            let mut offsets: Vec<usize> = (0..taps).map(|t| t * channels + t % 2).collect();
            if taps % 2 == 1 {
                offsets.push(offsets[taps - 1]);
            }
            let (start, step) = (1, step * channels);
            let input: Vec<u8> = (0..start + (pixels + 1) * step + (taps + 2) * channels + 20).map(|_| byte(&mut next)).collect();
            let target = Target { zero, low: 3, high: 250 };
            let run = |isa| {
                let mut out = vec![0; pixels * channels];
                depthwise(isa, &input, Row { start, step, offsets: &offsets }, &packed, target, &mut out);
                out
            };
            let reference = run(Isa::Scalar);
            for x in 0..pixels {
                for c in 0..channels {
                    let at = |t: usize| i32::from(input[start + x * step + offsets[t] + c]) * i32::from(weights[c * taps + t]);
                    let sum = (0..taps).map(at).sum::<i32>() + bias[c];
                    let real = (sum as f32 * multiplier[c]).round_ties_even() as i64 + i64::from(zero);
                    prop_assert_eq!(reference[x * channels + c], real.clamp(3, 250) as u8);
                }
            }
            prop_assert_eq!(run(Isa::best()), reference);
        }

        #[test]
        fn sums_are_the_same_on_every_instruction_set(
            length in 0usize..70, ratios in (0.001f32..4.0, 0.001f32..4.0), fixed in -300f32..300.0, seed in any::<u64>(),
        ) {
            let mut next = values(length, seed);
            let a: Vec<u8> = (0..length).map(|_| byte(&mut next)).collect();
            let b: Vec<u8> = (0..length).map(|_| byte(&mut next)).collect();
            let sum = Sum { ratio_a: ratios.0, ratio_b: ratios.1, fixed, low: 0, high: 255 };
            let run = |isa| {
                let mut out = vec![0; length];
                add(isa, &a, &b, sum, &mut out);
                out
            };
            prop_assert_eq!(run(Isa::best()), run(Isa::Scalar));
        }
    }
}
