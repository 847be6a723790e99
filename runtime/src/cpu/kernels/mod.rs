//! Inner loops of the `cpu` engine: written once over the primitive operations of an instruction set ([`simd`]), with a
//! plain reference beside each; every instruction set gives the same bytes. Which one runs is decided when a network is
//! loaded, by [`Isa::chosen`]; weights are packed for it.
//!
//! Arithmetic (ONNX Runtime's on x86): sums in i32, exact; `rint(f32(sum) * multiplier) + zero`, ties to even, clamped
//! to `low..=high`. A multiply of bytes never saturates, so that results are right without VNNI too. Lengths are checked
//! in safe functions, before any kernel reads through a pointer.

mod aligned;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bytewise;
mod depthwise;
#[cfg(target_arch = "aarch64")]
mod neon;
mod peak;
mod product;
mod simd;
mod team;

pub(crate) use aligned::Bytes;
pub(crate) use bytewise::{Sum, add, lookup, maxima, quantise};
pub(crate) use depthwise::{Filters, Planes, depthwise};
pub(crate) use peak::multiply_accumulate;
pub(crate) use product::{Finished, Matrix, Place, Skip, Windows, product};
pub(crate) use team::Team;

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Token),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avx2::VnniToken),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(avx512::Token),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Token),
    #[cfg(target_arch = "aarch64")]
    DotProd(neon::DotToken),
    #[cfg(target_arch = "aarch64")]
    I8mm(neon::MixedToken),
}

/// Forces an instruction set, by its name.
const VARIABLE: &str = "ANDON_ISA";

/// Names of all that this program has kernels for.
#[cfg(target_arch = "x86_64")]
const NAMES: &[&str] = &["scalar", "avx2", "avxvnni", "avx512vnni"];
#[cfg(target_arch = "aarch64")]
const NAMES: &[&str] = &["scalar", "neon", "dotprod", "i8mm"];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const NAMES: &[&str] = &["scalar"];

impl Isa {
    /// All that this processor has, the slowest first.
    pub(crate) fn all() -> Vec<Self> {
        #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(unused_mut))]
        let mut all = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx2::Token::detect().map(Self::Avx2));
            all.extend(avx2::VnniToken::detect().map(Self::AvxVnni));
            all.extend(avx512::Token::detect().map(Self::Avx512Vnni));
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.extend(neon::Token::detect().map(Self::Neon));
            all.extend(neon::DotToken::detect().map(Self::DotProd));
            all.extend(neon::MixedToken::detect().map(Self::I8mm));
        }
        all
    }

    /// The fastest, unless the environment says which.
    pub(crate) fn chosen() -> Result<Self, String> {
        match std::env::var(VARIABLE) {
            Ok(name) => Self::named(&name),
            Err(_) => Ok(Self::all().last().copied().unwrap_or(Self::Scalar)),
        }
    }

    fn named(name: &str) -> Result<Self, String> {
        let found = Self::all().into_iter().find(|isa| isa.name() == name);
        found.ok_or_else(|| {
            if NAMES.contains(&name) {
                format!("{VARIABLE} asks for {name}, which this processor has not")
            } else {
                format!("{VARIABLE} is {name:?}, known are {}", NAMES.join(", "))
            }
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => "avx512vnni",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Self::DotProd(_) => "dotprod",
            #[cfg(target_arch = "aarch64")]
            Self::I8mm(_) => "i8mm",
        }
    }

    /// Lanes of 16 bytes that weights of products are packed for.
    fn lanes(self) -> usize {
        self.widths().first().copied().unwrap_or(1)
    }

    /// Lanes of each kind of vector that there is, the widest first.
    fn widths(self) -> &'static [usize] {
        match self {
            Self::Scalar => &[],
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) | Self::AvxVnni(_) => &[2, 1],
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => &[4, 2, 1],
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) | Self::DotProd(_) | Self::I8mm(_) => &[1],
        }
    }

    /// What [`simd::Simd::dot`] takes off each unsigned byte before it multiplies; the bias makes up for it.
    fn shift(self) -> i32 {
        match self {
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) | Self::DotProd(_) => 128,
            _ => 0,
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

fn requantise(sum: i32, multiplier: f32, target: Target) -> u8 {
    let value = rint(sum as f32 * multiplier) + i32::from(target.zero);
    value.min(target.high.into()).max(target.low.into()) as u8
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

    #[test]
    fn names_are_known() {
        for isa in Isa::all() {
            assert_eq!(Isa::named(isa.name()), Ok(isa));
            assert!(NAMES.contains(&isa.name()));
        }
        let error = Isa::named("mmx").unwrap_err();
        assert!(error.starts_with(r#"ANDON_ISA is "mmx", known are scalar"#), "{error}");
    }

    fn values(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
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

    fn bytes(count: usize, next: &mut impl FnMut() -> u64) -> Vec<u8> {
        (0..count).map(|_| byte(next)).collect()
    }

    fn weights(count: usize, next: &mut impl FnMut() -> u64) -> Vec<i8> {
        // -128 and 127 as often as all others.
        (0..count).map(|_| [byte(next) as i8, -128, 127, next() as i8][(next() % 4) as usize]).collect()
    }

    fn multipliers(count: usize, scale: i32, next: &mut impl FnMut() -> u64) -> Vec<f32> {
        (0..count).map(|_| (next() % 1000 + 1) as f32 * 2f32.powi(scale)).collect()
    }

    fn teams() -> Vec<Team> {
        Isa::all().into_iter().flat_map(|isa| [1, 3].map(|threads| Team::new(isa, threads))).collect()
    }

    fn expected(sum: i32, multiplier: f32, target: Target) -> u8 {
        let real = (sum as f32 * multiplier).round_ties_even() as i64 + i64::from(target.zero);
        real.min(target.high.into()).max(target.low.into()) as u8
    }

    fn target() -> impl Strategy<Value = Target> {
        let bounds = prop_oneof![Just((0, 255)), any::<(u8, u8)>()];
        (any::<u8>(), bounds).prop_map(|(zero, (a, b))| Target { zero, low: a.min(b), high: a.max(b) })
    }

    proptest! {
        #[test]
        fn products_are_the_same_on_every_instruction_set(
            (rows, width, columns) in (
                1usize..60, 1usize..20, prop_oneof![1usize..50, 50usize..200, prop::sample::select(vec![16usize, 32, 64, 128])],
            ),
            (runs, run, right) in (1usize..4, 1usize..40, 0usize..50),
            target in target(), scale in -20i32..8, seed in any::<u64>(), tabled in any::<bool>(),
            (added, first, signed, apart) in (any::<bool>(), any::<bool>(), any::<bool>(), 0usize..20),
        ) {
            let next = &mut values(seed);
            let weights = weights(runs * run * columns, next);
            let bias: Vec<i32> = (0..columns).map(|_| next() as i32 >> 8).collect();
            let multiplier = multipliers(columns, scale, next);
            let table: [u8; 256] = std::array::from_fn(|_| next() as u8);
            let at: Vec<usize> = (0..runs).map(|r| r * 37 + 5).collect();
            let down = width * right + 11;
            let windows = Windows { rows, start: 3, width, right, down, runs: &at };
            let input = bytes(3 + rows.div_ceil(width) * down + width * right + runs * 37 + run + 12, next);
            let place = Place { offset: 2, stride: columns + if apart > 10 { 3 } else { 0 } };
            let stride = columns + apart % 10;
            let others = bytes(rows * stride, next);
            let base = if signed { 128u8 } else { 0 };
            let sum = Sum { base, ratio_a: 0.7, ratio_b: 0.4, fixed: -3.5, low: 3, high: 250 };
            let last: [u8; 256] = std::array::from_fn(|_| next() as u8);
            let skip = Skip { sum, bytes: &others, stride, first, table: tabled.then_some(&last) };
            let result = Finished { target, table: tabled.then_some(&table), skip: added.then_some(skip) };
            let mut wanted = vec![7; rows * place.stride + 2];
            for r in 0..rows {
                for c in 0..columns {
                    let from = 3 + r / width * down + r % width * right;
                    let terms = (0..runs * run).map(|i| {
                        i32::from(input[from + at[i / run] + i % run]) * i32::from(weights[c * runs * run + i])
                    });
                    let byte = expected(terms.sum::<i32>() + bias[c], multiplier[c], target);
                    let byte = if tabled { table[usize::from(byte)] } else { byte };
                    let other = others[r * stride + c];
                    let (a, b) = if first { (other, byte) } else { (byte, other) };
                    let [a, b] = [a, b].map(|q| f32::from(q) - f32::from(base));
                    let added_up = a.mul_add(0.7, b.mul_add(0.4, -3.5));
                    let sum = (added_up.round_ties_even() as i64 + i64::from(base)).clamp(3, 250) as u8;
                    let sum = if tabled { last[usize::from(sum)] } else { sum };
                    wanted[2 + r * place.stride + c] = if added { sum } else { byte };
                }
            }
            for mut team in teams() {
                let matrix = Matrix::pack(team.isa(), runs, run, &bias, &multiplier, &weights);
                let mut out = vec![7; wanted.len()];
                product(&mut team, &input, windows, &matrix, result, &mut out, place);
                prop_assert!(out == wanted, "{}", team.isa().name());
            }
        }

        #[test]
        fn depthwise_is_the_same_on_every_instruction_set(
            channels in prop_oneof![1usize..40, 64usize..150],
            kernel in prop_oneof![Just([3, 3]), Just([5, 5]), (1usize..6, 1usize..8).prop_map(|(h, w)| [h, w])],
            (input, strides) in ([1usize..12, 1usize..90], [1usize..3, 1usize..3]),
            (dilations, before) in ([1usize..3, 1usize..3], [0usize..4, 0usize..4]),
            (output, apart) in ([1usize..6, 1usize..80], [0usize..3, 0usize..3]),
            zero in any::<u8>(), target in target(), scale in -16i32..4, seed in any::<u64>(), tabled in any::<bool>(),
        ) {
            let next = &mut values(seed);
            let [kh, kw] = kernel;
            let planes = Planes { input, output, channels, kernel, strides, dilations, before, zero };
            let weights = weights(channels * kh * kw, next);
            let bias: Vec<i32> = (0..channels).map(|_| next() as i32 >> 10).collect();
            let multiplier = multipliers(channels, scale, next);
            let (stride, out_stride) = (channels + apart[0], channels + apart[1]);
            let table: [u8; 256] = std::array::from_fn(|_| next() as u8);
            let finished = Finished { target, table: tabled.then_some(&table), skip: None };
            let bytes = bytes(input[0] * input[1] * stride - apart[0], next);
            let mut wanted = vec![7; output[0] * output[1] * out_stride - apart[1]];
            for (y, x, c) in (0..output[0] * output[1] * channels).map(|i| (i / channels / output[1], i / channels % output[1], i % channels)) {
                let at = |d: usize, out: usize, k: usize| {
                    (out * strides[d] + k * dilations[d]).checked_sub(before[d]).filter(|at| *at < input[d])
                };
                let terms = (0..kh * kw).map(|t| {
                    let pixel = at(0, y, t / kw).zip(at(1, x, t % kw));
                    let byte = pixel.map_or(zero, |(y, x)| bytes[(y * input[1] + x) * stride + c]);
                    i32::from(byte) * i32::from(weights[c * kh * kw + t])
                });
                let byte = expected(terms.sum::<i32>() + bias[c], multiplier[c], target);
                let byte = if tabled { table[usize::from(byte)] } else { byte };
                wanted[(y * output[1] + x) * out_stride + c] = byte;
            }
            for mut team in teams() {
                let filters = Filters::pack(team.isa(), planes, &bias, &multiplier, |c, y, x| weights[(c * kh + y) * kw + x]);
                let mut out = vec![7; wanted.len()];
                depthwise(&mut team, &bytes, stride, &filters, finished, &mut out, out_stride);
                prop_assert!(out == wanted, "{}", team.isa().name());
            }
        }

        #[test]
        fn sums_are_the_same_on_every_instruction_set(
            length in 0usize..200, ratios in (0.001f32..4.0, 0.001f32..4.0), fixed in -300f32..300.0,
            bounds in any::<(u8, u8)>(), signed in any::<bool>(), seed in any::<u64>(),
        ) {
            let next = &mut values(seed);
            let (a, b) = (bytes(length, next), bytes(length, next));
            let base = if signed { 128 } else { 0 };
            let (low, high) = (bounds.0.min(bounds.1), bounds.0.max(bounds.1));
            let sum = Sum { base, ratio_a: ratios.0, ratio_b: ratios.1, fixed, low, high };
            let wanted = a.iter().zip(&b).map(|(a, b)| {
                let [a, b] = [a, b].map(|q| (i32::from(*q) - i32::from(base)) as f32);
                let real = a.mul_add(sum.ratio_a, b.mul_add(sum.ratio_b, fixed));
                (real.round_ties_even() as i64 + i64::from(base)).clamp(low.into(), high.into()) as u8
            });
            let wanted: Vec<u8> = wanted.collect();
            for isa in Isa::all() {
                let mut out = vec![0; length];
                add(isa, &a, &b, sum, &mut out);
                prop_assert!(out == wanted, "{}", isa.name());
            }
        }

        #[test]
        fn maxima_are_the_same_on_every_instruction_set(
            (length, taps) in (1usize..200, prop::collection::vec(0usize..100, 0..30)), seed in any::<u64>(),
        ) {
            let input: Vec<u8> = { let mut next = values(seed); (0..300).map(|_| next() as u8).collect() };
            let wanted = (0..length).map(|i| taps.iter().map(|tap| input[tap + i]).max().unwrap_or(0));
            let wanted: Vec<u8> = wanted.collect();
            for isa in Isa::all() {
                let mut out = vec![7; length];
                maxima(isa, &input, &taps, &mut out);
                prop_assert!(out == wanted, "{}", isa.name());
            }
        }

        #[test]
        fn tables_are_the_same_on_every_instruction_set(length in 0usize..200, seed in any::<u64>()) {
            let next = &mut values(seed);
            let from = bytes(length, next);
            let table: [u8; 256] = std::array::from_fn(|_| next() as u8);
            let wanted: Vec<u8> = from.iter().map(|q| table[usize::from(*q)]).collect();
            for isa in Isa::all() {
                let mut out = from.clone();
                lookup(isa, &table, &mut out);
                prop_assert!(out == wanted, "{}", isa.name());
            }
        }

        #[test]
        fn quantisation_is_the_same_on_every_instruction_set(
            (channels, pixels) in (1usize..7, 0usize..200), scale in 0.001f32..3.0, zero in any::<u8>(), seed in any::<u64>(),
        ) {
            let next = &mut values(seed);
            let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, -0.0];
            let planes: Vec<f32> = (0..channels * pixels).map(|_| match next() % 50 {
                n @ 0..6 => special[n as usize],
                n @ 6..20 => (n as f32 - 12.5) * scale,
                _ => (next() % 10_000) as f32 / 30.0 * scale - 150.0 * scale,
            }).collect();
            let at = |i: usize| planes[i % channels * pixels + i / channels];
            let wanted = (0..channels * pixels).map(|i| (rint(at(i) / scale) + i32::from(zero)).clamp(0, 255) as u8);
            let wanted: Vec<u8> = wanted.collect();
            for mut team in teams() {
                let mut out = vec![0; channels * pixels];
                quantise(&mut team, &planes, channels, scale, zero, &mut out);
                prop_assert!(out == wanted, "{}", team.isa().name());
            }
        }
    }
}
