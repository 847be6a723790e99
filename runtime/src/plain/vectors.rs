//! Loops over many f32, compiled for the widest vectors that the processor has: the same source and the same operations,
//! so the same bits everywhere.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]

use std::{
    iter,
    marker::PhantomData,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// `$name` calls `$inner` as it was compiled for this processor.
macro_rules! widest {
    ($(#[$doc:meta])* $name:ident = $inner:ident($($argument:ident: $type:ty),*)) => {
        $(#[$doc])*
        pub(super) fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) {
                    $inner($($argument),*);
                }
                #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($argument: $type),*) {
                    $inner($($argument),*);
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx2")
                {
                    // Safety: all features were detected.
                    return unsafe { avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // Safety: the feature was detected.
                    return unsafe { avx2($($argument),*) };
                }
            }
            $inner($($argument),*);
        }
    };
}

widest! {
    /// `1 / (1 + e^-x)` of each.
    sigmoid = sigmoid_of(values: &[f32], out: &mut [f32])
}

widest! {
    /// A block of [`softmax`].
    softmax_block = softmax_block_of(values: &[f32], shape: [usize; 2], block: usize, out: &Columns<'_>)
}

/// Softmax along the middle of `[.., length, inner]`; `share` calls what it is given with each of `0..blocks`, in any order
/// and on any threads, and returns when all calls have.
pub(super) fn softmax(
    values: &[f32],
    [length, inner]: [usize; 2],
    out: &mut [f32],
    share: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
) {
    assert!(values.len() == out.len() && length > 0 && inner > 0, "{} {}", values.len(), out.len());
    let blocks = values.len() / (length * inner) * inner.div_ceil(WIDTH);
    let taken: Vec<AtomicBool> = iter::repeat_with(AtomicBool::default).take(blocks).collect();
    let out = Columns { start: out.as_mut_ptr(), length: out.len(), lent: PhantomData };
    share(blocks, &|block| {
        // Each once, whatever `share` does.
        if taken.get(block).is_some_and(|taken| !taken.swap(true, Relaxed)) {
            softmax_block(values, [length, inner], block, &out);
        }
    });
}

/// Columns of a softmax that stay in the first-level cache: a block.
const WIDTH: usize = 256;

/// What blocks of columns are written to, each by one thread.
pub(super) struct Columns<'a> {
    start: *mut f32,
    length: usize,
    lent: PhantomData<&'a mut [f32]>,
}

// Safety: whoever writes has a block of its own, see `softmax`; f32 can be written by any thread.
unsafe impl Sync for Columns<'_> {}

#[inline(always)]
fn sigmoid_of(values: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(values).for_each(|(out, x)| *out = 1.0 / (1.0 + exp(-*x)));
}

#[inline(always)]
fn softmax_block_of(values: &[f32], [length, inner]: [usize; 2], block: usize, out: &Columns<'_>) {
    let across = inner.div_ceil(WIDTH);
    let (start, first) = (block / across * length * inner, block % across * WIDTH);
    let width = WIDTH.min(inner - first);
    let rows = (0..length).map(|row| start + row * inner + first);
    let own = |at: usize| {
        assert!(at + width <= out.length, "{at}");
        // Safety: inside the list, which is lent for as long as `out` lives. These columns of these rows are this block's
        // alone, which one thread computes, and each slice is gone before the next one is made.
        unsafe { std::slice::from_raw_parts_mut(out.start.add(at), width) }
    };
    let (mut highest, mut sums) = ([f32::NEG_INFINITY; WIDTH], [0.0f32; WIDTH]);
    for row in rows.clone().map(|at| &values[at..at + width]) {
        highest.iter_mut().zip(row).for_each(|(highest, x)| *highest = highest.max(*x));
    }
    for at in rows.clone() {
        let (row, out) = (&values[at..at + width], own(at));
        for (((out, x), highest), sum) in out.iter_mut().zip(row).zip(&highest).zip(&mut sums) {
            *out = exp(x - highest);
            *sum += *out;
        }
    }
    for out in rows.map(own) {
        out.iter_mut().zip(&sums).for_each(|(out, sum)| *out /= sum);
    }
}

/// `e^x` within a few units in the last place, in operations that a compiler makes vectors of: the same bits everywhere.
/// Range reduction and polynomial of Cephes' `expf`. Below -87.3 it stays at the smallest normal number or 0.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.7);
    let whole = x * std::f32::consts::LOG2_E + SHIFT - SHIFT;
    let rest = x - whole * 0.693_359_4 - whole * -2.121_944_4e-4;
    let poly = 1.987_569_1e-4;
    let poly = poly * rest + 1.398_199_9e-3;
    let poly = poly * rest + 8.333_452e-3;
    let poly = poly * rest + 4.166_579_6e-2;
    let poly = poly * rest + 1.666_666_5e-1;
    let poly = poly * rest + 0.5;
    let value = poly * rest * rest + rest + 1.0;
    // Of two halves, since 2^128 is no f32.
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    let (whole, half) = (to_int(whole), to_int(whole) >> 1);
    value * power(half) * power(whole.wrapping_sub(half))
}

/// An integral value of at most 22 bits; NaN gives some integer. By the bits of a sum with 1.5 * 2^23, which vectors
/// need no check for.
#[inline(always)]
fn to_int(whole: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    ((whole + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_near() {
        for i in -8_700..8_870 {
            let x = i as f32 / 100.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 3e-7, "{x}: {ours} {exact}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 2e-38 && exp(1e30).is_finite() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn wide_loops_give_the_same_bits() {
        let values: Vec<f32> = (0..3 * 5 * 301).map(|i| ((i * 7919) % 4001) as f32 / 40.0 - 50.0).collect();
        let mut pair = [vec![0.0; values.len()], vec![0.0; values.len()]];
        sigmoid(&values, &mut pair[0]);
        sigmoid_of(&values, &mut pair[1]);
        assert_eq!(pair[0], pair[1]);
        // In another order, and one of them twice.
        softmax(&values, [5, 301], &mut pair[0], |blocks, work| (0..blocks).chain([1]).rev().for_each(work));
        let [a, b] = &mut pair;
        let whole = Columns { start: b.as_mut_ptr(), length: b.len(), lent: PhantomData };
        (0..6).for_each(|block| softmax_block_of(&values, [5, 301], block, &whole));
        assert_eq!(a, b);
        let sums: Vec<f32> = (0..301).map(|i| (0..5).map(|row| pair[0][row * 301 + i]).sum()).collect();
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6));
    }
}
