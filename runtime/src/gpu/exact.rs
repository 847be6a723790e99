//! Integer forms of what the CPU computes in f32, found when a network is loaded and checked on every operand there is:
//! no shading language promises fused multiply-adds or exact divisions, all have the same integers.

use std::array;

/// Two bytes to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Join {
    /// `(a * factors[0] + b * factors[1] + factors[2]) >> shift`, clamped.
    Linear { factors: [i32; 3], shift: u32, low: u8, high: u8 },
    /// `(sums[0][a] + sums[1][b]) >> shift`, clamped.
    Sums { sums: Box<[[i32; 256]; 2]>, shift: u32, low: u8, high: u8 },
    /// `bytes[256 * a + b]`
    Pairs(Vec<u8>),
}

/// The cheapest form that gives `byte` for all pairs. `slopes`: about what is rounded, `a * s[0] + b * s[1] + s[2]`, where
/// the function is of that kind.
pub(crate) fn join(byte: impl Fn(u8, u8) -> u8, slopes: Option<[f32; 3]>) -> Join {
    let pairs: Vec<u8> =
        (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b))).map(|(a, b)| byte(a, b)).collect();
    let found = slopes.and_then(|slopes| linear(&pairs, slopes).or_else(|| sums(&pairs, slopes)));
    found.unwrap_or(Join::Pairs(pairs))
}

fn bounds(pairs: &[u8]) -> (u8, u8) {
    pairs.iter().fold((255, 0), |(low, high), q| (low.min(*q), high.max(*q)))
}

/// The most bits behind the point with which nothing leaves i32.
fn shift_max(slopes: [f32; 3]) -> Option<u32> {
    let most = slopes[0].abs() * 256.0 + slopes[1].abs() * 256.0 + slopes[2].abs() + 512.0;
    // The largest `s` with `most * 2^s < 2^31`.
    let bits = (f64::from(i32::MAX) / f64::from(most)).log2().floor();
    (bits >= 8.0).then_some((bits as u32).min(24))
}

fn linear(pairs: &[u8], slopes: [f32; 3]) -> Option<Join> {
    let (low, high) = bounds(pairs);
    let most = shift_max(slopes)?;
    for shift in (most.saturating_sub(4)..=most).rev() {
        let scaled = |slope: f64| (slope * f64::from(1u32 << shift)).round() as i32;
        let [a, b] = [scaled(slopes[0].into()), scaled(slopes[1].into())];
        let fixed = scaled(f64::from(slopes[2]) + 0.5);
        for nudge in [0, -1, 1, -8, 8, -64, 64] {
            let factors = [a, b, fixed + nudge];
            let holds = |(a, row): (usize, &[u8])| {
                let first = a as i32 * factors[0] + factors[2];
                let form = |b: usize| {
                    let sum = first + b as i32 * factors[1];
                    (sum >> shift).clamp(low.into(), high.into()) as u8
                };
                // All of a row, so that it is a matter of a few instructions.
                row.iter().enumerate().fold(true, |right, (b, q)| right & (form(b) == *q))
            };
            if pairs.chunks(256).enumerate().all(holds) {
                return Some(Join::Linear { factors, shift, low, high });
            }
        }
    }
    None
}

/// Each operand's share in a table; a pair that goes wrong moves its entry by what it lacks, until none does.
fn sums(pairs: &[u8], slopes: [f32; 3]) -> Option<Join> {
    const ROUNDS: usize = 64;
    let (low, high) = bounds(pairs);
    let shift = shift_max(slopes)?.checked_sub(1)?;
    let unit = f64::from(1u32 << shift);
    let scaled = |value: f64| (value * unit).round() as i32;
    let [a, b, fixed] = slopes.map(f64::from);
    let mut sums = Box::new([
        array::from_fn::<i32, 256, _>(|q| scaled(a * q as f64)),
        array::from_fn::<i32, 256, _>(|q| scaled(b * q as f64 + fixed + 0.5)),
    ]);
    for _ in 0..ROUNDS {
        let mut right = true;
        for (i, q) in pairs.iter().enumerate() {
            let sum = sums[0][i / 256] + sums[1][i % 256];
            let least = if *q > low { i32::from(*q) << shift } else { i32::MIN };
            let most = if *q < high { ((i32::from(*q) + 1) << shift) - 1 } else { i32::MAX };
            if (least..=most).contains(&sum) {
                continue;
            }
            right = false;
            // To one side the first operand's entry gives way, to the other the second's, so that they do not fight.
            if sum < least {
                sums[0][i / 256] += least - sum;
            } else {
                sums[1][i % 256] -= sum - most;
            }
        }
        if right {
            return Some(Join::Sums { sums, shift, low, high });
        }
    }
    None
}

/// The least sum that gives each byte, of a function that never falls; what no sum gives is beyond all sums. Entry 0 is of no
/// use. `None` if the function is not of that kind where it was looked at.
pub(crate) fn stairs(byte: impl Fn(i32) -> u8, least: i32, most: i32) -> Option<[i32; 256]> {
    let mut stairs = [i32::MAX; 256];
    stairs[0] = i32::MIN;
    for (q, stair) in stairs.iter_mut().enumerate().skip(1) {
        if usize::from(byte(most)) < q {
            break;
        }
        let (mut below, mut above) = (i64::from(least) - 1, i64::from(most));
        while above - below > 1 {
            let middle = (below + above).div_euclid(2);
            if usize::from(byte(middle as i32)) >= q { above = middle } else { below = middle }
        }
        // Whatever gives more than the least sum's byte gives it there already.
        *stair = if above == i64::from(least) { i32::MIN } else { above as i32 };
    }
    // A function that falls somewhere would be a mistake of whoever described it.
    let at = |sum: i32| stairs[1..].partition_point(|stair| *stair <= sum);
    let span = i64::from(most) - i64::from(least);
    if !stairs.is_sorted() {
        return None;
    }
    let looks = (0..=1000).map(|i| (i64::from(least) + span * i / 1000) as i32);
    looks.into_iter().all(|sum| at(sum) == usize::from(byte(sum))).then_some(stairs)
}

/// Whole numbers in the order of the reals.
fn number(real: f32) -> i32 {
    let bits = real.to_bits() as i32;
    if bits < 0 { i32::MIN.wrapping_sub(bits) } else { bits }
}

fn real(number: i32) -> f32 {
    f32::from_bits((if number < 0 { i32::MIN.wrapping_sub(number) } else { number }) as u32)
}

/// The same of a function of real numbers and the two infinities, given as the whole numbers that are in their order.
pub(crate) fn numbered_stairs(byte: impl Fn(f32) -> u8) -> Option<[i32; 256]> {
    let most = number(f32::INFINITY);
    stairs(|n| byte(real(n)), -most, most)
}

/// The same of a function of real numbers. What none gives is infinite.
pub(crate) fn real_stairs(byte: impl Fn(f32) -> u8) -> Option<[f32; 256]> {
    let most = number(f32::MAX);
    let steps = stairs(|n| byte(real(n)), -most, most)?;
    Some(steps.map(|step| match step {
        i32::MAX => f32::INFINITY,
        i32::MIN => f32::NEG_INFINITY,
        step => real(step),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(join: &Join, a: u8, b: u8) -> u8 {
        let (x, y) = (usize::from(a), usize::from(b));
        match join {
            Join::Linear { factors, shift, low, high } => {
                let sum = i32::from(a) * factors[0] + i32::from(b) * factors[1] + factors[2];
                (sum >> shift).clamp((*low).into(), (*high).into()) as u8
            }
            Join::Sums { sums, shift, low, high } => {
                ((sums[0][x] + sums[1][y]) >> shift).clamp((*low).into(), (*high).into()) as u8
            }
            Join::Pairs(pairs) => pairs[256 * x + y],
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn joins_are_exact(
            ratios in (0.001f32..4.0, 0.001f32..4.0), zeros in any::<(u8, u8, u8)>(), bounds in any::<(u8, u8)>(),
        ) {
            let fixed = f32::from(zeros.2) - ratios.0.mul_add(zeros.0.into(), ratios.1 * f32::from(zeros.1));
            let (low, high) = (bounds.0.min(bounds.1), bounds.0.max(bounds.1));
            let byte = |a: u8, b: u8| {
                let real = f32::from(a).mul_add(ratios.0, f32::from(b).mul_add(ratios.1, fixed));
                real.round_ties_even().clamp(low.into(), high.into()) as u8
            };
            let join = join(byte, Some([ratios.0, ratios.1, fixed]));
            for (a, b) in (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b))) {
                prop_assert_eq!(value(&join, a, b), byte(a, b), "{} {}", a, b);
            }
        }

        #[test]
        fn stairs_are_exact(multiplier in 1e-6f32..3.0, zero in any::<u8>(), count in 1i32..60) {
            let byte = |sum: i32| {
                let real = ((sum - 117 * count) as f32 * multiplier).round_ties_even() as i32;
                (real + i32::from(zero)).clamp(0, 255) as u8
            };
            let stairs = stairs(byte, 0, 255 * count).unwrap();
            for sum in 0..=255 * count {
                let climbed = stairs.iter().skip(1).filter(|stair| **stair <= sum).count();
                prop_assert_eq!(climbed, usize::from(byte(sum)));
            }
        }
    }

    #[test]
    fn the_edges_between_bytes_are_found() {
        for (scale, zero) in [(0.02f32, 0u8), (1.0 / 255.0, 128), (1e-30, 7), (3e30, 255), (0.37, 114)] {
            let rint = |real: f32| real.clamp(-65_536.0, 65_536.0).round_ties_even() as i32;
            let byte = |real: f32| (rint(real / scale) + i32::from(zero)).clamp(0, 255) as u8;
            let stairs = numbered_stairs(byte).unwrap();
            let climbed = |n: i32| stairs[1..].partition_point(|stair| *stair <= n);
            let mut edges = vec![number(f32::INFINITY), number(f32::NEG_INFINITY), number(-0.0), number(0.0)];
            let found = stairs[1..].iter().filter(|stair| ![i32::MIN, i32::MAX].contains(stair));
            edges.extend(found.flat_map(|stair| [*stair, stair - 1]));
            assert!(edges.len() > 250);
            for n in edges {
                assert_eq!(climbed(n), usize::from(byte(real(n))), "{} of {scale} {zero}", real(n));
            }
        }
    }

    #[test]
    fn most_sums_need_no_table_of_pairs() {
        let mut kinds = [0; 3];
        for i in 0..60 {
            let (ra, rb, fixed) =
                (0.31 + i as f32 * 0.0137, 1.21 - i as f32 * 0.0119, i as f32 * 1.77 - 50.0);
            let byte = |a: u8, b: u8| {
                let real = f32::from(a).mul_add(ra, f32::from(b).mul_add(rb, fixed));
                real.round_ties_even().clamp(0.0, 255.0) as u8
            };
            match join(byte, Some([ra, rb, fixed])) {
                Join::Linear { .. } => kinds[0] += 1,
                Join::Sums { .. } => kinds[1] += 1,
                Join::Pairs(_) => kinds[2] += 1,
            }
        }
        assert!(kinds[2] <= 2 && kinds[0] > 10, "{kinds:?}");
    }
}
