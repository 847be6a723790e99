//! The reference: plain loops over the packed layouts, no instruction set assumed.

use super::{BLOCK, Matrix, Out, Row, Sum, Taps, Target, rint};

fn requantise(sum: i32, multiplier: f32, target: Target) -> u8 {
    let value = rint(sum as f32 * multiplier) + i32::from(target.zero);
    value.clamp(target.low.into(), target.high.into()) as u8
}

pub(super) fn product(left: &[i16], rows: usize, matrix: &Matrix, target: Target, out: Out<'_>) {
    for (r, row) in left.chunks_exact(matrix.row()).take(rows).enumerate() {
        let out = &mut out.bytes[r * out.stride + out.offset..][..matrix.columns];
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let first = block * BLOCK;
            let width = BLOCK.min(matrix.bias.len() - first);
            let weights = &matrix.weights[first * matrix.row()..][..width * matrix.row()];
            let mut sums = [0i32; BLOCK];
            sums[..width].copy_from_slice(&matrix.bias[first..][..width]);
            let (pairs, _) = row.as_chunks::<2>();
            for ([x, y], weights) in pairs.iter().zip(weights.chunks_exact(2 * width)) {
                let (columns, _) = weights.as_chunks::<2>();
                for (sum, [u, v]) in sums.iter_mut().zip(columns) {
                    *sum += i32::from(*x) * i32::from(*u) + i32::from(*y) * i32::from(*v);
                }
            }
            for (c, out) in out.iter_mut().enumerate() {
                *out = requantise(sums[c], matrix.multiplier[first + c], target);
            }
        }
    }
}

pub(super) fn depthwise(input: &[u8], row: Row<'_>, taps: &Taps, target: Target, out: &mut [u8]) {
    for (x, out) in out.chunks_exact_mut(taps.channels).enumerate() {
        for (chunk, out) in out.chunks_mut(BLOCK).enumerate() {
            let first = chunk * BLOCK;
            let weights = &taps.weights[first * 2 * taps.pairs..][..BLOCK * 2 * taps.pairs];
            let mut sums = [0i32; BLOCK];
            sums.copy_from_slice(&taps.bias[first..][..BLOCK]);
            let (offsets, _) = row.offsets.as_chunks::<2>();
            for (offsets, weights) in offsets.iter().zip(weights.chunks_exact(2 * BLOCK)) {
                let [a, b] = offsets.map(|o| &input[row.start + x * row.step + o + first..][..BLOCK]);
                for (i, channel) in super::CHUNK_ORDER.into_iter().enumerate() {
                    let (u, v) = (i32::from(weights[2 * i]), i32::from(weights[2 * i + 1]));
                    sums[i] += i32::from(a[channel]) * u + i32::from(b[channel]) * v;
                }
            }
            for (i, channel) in super::CHUNK_ORDER.into_iter().enumerate() {
                if let Some(out) = out.get_mut(channel) {
                    *out = requantise(sums[i], taps.multiplier[first + i], target);
                }
            }
        }
    }
}

pub(super) fn add(a: &[u8], b: &[u8], sum: Sum, out: &mut [u8]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        let inner = f32::from(*b).mul_add(sum.ratio_b, sum.fixed);
        let value = rint(f32::from(*a).mul_add(sum.ratio_a, inner));
        *out = value.clamp(sum.low.into(), sum.high.into()) as u8;
    }
}
