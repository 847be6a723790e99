//! ConvTranspose as plain convolutions whose results lie between each other: [`parts`].
//!
//! With stride `s`, the output pixels whose place is `r` modulo `s` see the taps for which that is so of `tap * dilation`,
//! and no others: for each `r` they are a plain convolution of the input with stride 1. Nothing is multiplied with zeros.

use super::{Pads, Window};

/// Each has weights of its own.
const PARTS_MAX: usize = 64;

/// Parts that see no tap have weights all the same; all together may have so many times the node's.
const COPIES_MAX: usize = 16;

/// Output pixels of one kind: every so many rows and columns, as the node's strides say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Row and column of the first pixel, and how many rows and columns there are.
    pub(crate) first: [usize; 2],
    pub(crate) size: [usize; 2],
    /// The window over the input, whose strides are 1.
    pub(crate) kernel: [usize; 2],
    pub(crate) dilations: [usize; 2],
    /// Padding of the input.
    pub(crate) before: [usize; 2],
    pub(crate) after: [usize; 2],
    /// For each tap of the window the node's; one that is missing is of zeros.
    pub(crate) taps: Vec<usize>,
}

/// `input` and `output` are heights and widths. Errors say what of the node there is no such form for.
pub(crate) fn parts(
    window: &Window,
    input: [usize; 2],
    output: [usize; 2],
) -> Result<Vec<Part>, &'static str> {
    let Pads::Explicit(pads) = &window.pads else { return Err("its padding is not written out") };
    if window.strides[0].saturating_mul(window.strides[1]) > PARTS_MAX {
        return Err("its strides are large");
    }
    let [kw, taps] = [window.kernel[1], window.kernel[0] * window.kernel[1]];
    let (mut parts, mut copied) = (vec![], 0);
    for y in sides(window, 0, pads[0], input[0], output[0]) {
        let y = y?;
        for x in sides(window, 1, pads[1], input[1], output[1]) {
            let x = x?;
            // None at all where one side has none; the window is there all the same, with zeros.
            let kernel = [y.taps.len().max(1), x.taps.len().max(1)];
            copied += kernel[0] * kernel[1];
            if copied > COPIES_MAX * taps {
                return Err("its strides are far larger than its window");
            }
            let pairs = y.taps.iter().flat_map(|ky| x.taps.iter().map(move |kx| ky * kw + kx));
            parts.push(Part {
                first: [y.first, x.first],
                size: [y.count, x.count],
                kernel,
                dilations: [y.dilation, x.dilation],
                before: [y.before, x.before],
                after: [y.after, x.after],
                taps: pairs.collect(),
            });
        }
    }
    Ok(parts)
}

/// One dimension of the output pixels that are of one kind.
struct Side {
    /// The first of them, and how many there are.
    first: usize,
    count: usize,
    /// Taps that they see, in the order in which the input lies.
    taps: Vec<usize>,
    /// Input pixels from one tap to the next.
    dilation: usize,
    /// Padding of the input.
    before: usize,
    after: usize,
}

/// Dimension `d` of the output, `pad` of whose pixels are cut off before the first.
fn sides(
    window: &Window,
    d: usize,
    pad: usize,
    input: usize,
    output: usize,
) -> impl Iterator<Item = Result<Side, &'static str>> {
    let (kernel, stride, dilation) = (window.kernel[d], window.strides[d], window.dilations[d]);
    (0..stride.min(output)).map(move |first| {
        let kind = (first + pad) % stride;
        let taps: Vec<usize> = (0..kernel).rev().filter(|tap| tap * dilation % stride == kind).collect();
        // The input pixel that the first output pixel sees through a tap.
        let seen = |tap: &usize| ((first + pad) as i64 - (tap * dilation) as i64) / stride as i64;
        let (least, most) = (taps.first().map_or(0, seen), taps.last().map_or(0, seen));
        let before = usize::try_from(-least);
        let before = before.map_err(|_| "its padding is larger than its window")?;
        let count = (output - first).div_ceil(stride);
        let apart = taps.get(1).map_or(1, |tap| (seen(tap) - least) as usize);
        let after = usize::try_from(most + count as i64 - input as i64).unwrap_or(0);
        Ok(Side { first, count, taps, dilation: apart, before, after })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For each output pixel the input pixels that reach it, each with the tap.
    type Reached = Vec<Vec<([usize; 2], usize)>>;

    fn sorted(mut reached: Reached) -> Reached {
        reached.iter_mut().for_each(|pixel| pixel.sort_unstable());
        reached
    }

    fn pairs([h, w]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
        (0..h).flat_map(move |y| (0..w).map(move |x| [y, x]))
    }

    fn by_parts(window: &Window, input: [usize; 2], output: [usize; 2]) -> Reached {
        let mut reached = vec![vec![]; output[0] * output[1]];
        for part in parts(window, input, output).unwrap() {
            for at in pairs(part.size) {
                let to = [0, 1].map(|d| part.first[d] + at[d] * window.strides[d]);
                for (tap, [ky, kx]) in pairs(part.kernel).enumerate() {
                    let from = [ky, kx];
                    let from =
                        [0, 1].map(|d| (at[d] + from[d] * part.dilations[d]).checked_sub(part.before[d]));
                    if let ([Some(y), Some(x)], Some(own)) = (from, part.taps.get(tap))
                        && y < input[0]
                        && x < input[1]
                    {
                        reached[to[0] * output[1] + to[1]].push(([y, x], *own));
                    }
                }
            }
        }
        sorted(reached)
    }

    /// As ONNX says it: each input pixel goes to as many output pixels as the window has taps.
    fn by_definition(window: &Window, pads: [usize; 4], input: [usize; 2], output: [usize; 2]) -> Reached {
        let mut reached = vec![vec![]; output[0] * output[1]];
        for from in pairs(input) {
            for (tap, k) in pairs([window.kernel[0], window.kernel[1]]).enumerate() {
                let to = [0, 1]
                    .map(|d| (from[d] * window.strides[d] + k[d] * window.dilations[d]).checked_sub(pads[d]));
                if let [Some(y), Some(x)] = to
                    && y < output[0]
                    && x < output[1]
                {
                    reached[y * output[1] + x].push((from, tap));
                }
            }
        }
        sorted(reached)
    }

    #[test]
    fn each_output_pixel_sees_the_taps_that_reach_it() {
        // Kernel, strides, dilations, pads, input, and how much larger the output is.
        type Row = ([usize; 2], [usize; 2], [usize; 2], [usize; 4], [usize; 2], [usize; 2]);
        let rows: [Row; 7] = [
            ([3, 3], [2, 2], [1, 1], [1, 1, 1, 1], [4, 5], [0, 0]),
            ([3, 3], [2, 2], [1, 1], [1, 1, 1, 1], [4, 5], [1, 1]),
            ([2, 2], [2, 2], [1, 1], [0; 4], [3, 3], [0, 0]),
            ([1, 4], [3, 2], [1, 1], [0, 1, 0, 0], [5, 2], [2, 1]),
            ([5, 3], [1, 1], [1, 1], [2, 0, 1, 1], [4, 6], [0, 0]),
            ([3, 2], [2, 3], [2, 3], [0; 4], [4, 3], [0, 0]),
            ([3, 3], [4, 2], [2, 1], [1, 0, 0, 1], [3, 4], [0, 0]),
        ];
        for (kernel, strides, dilations, pads, input, more) in rows {
            let window = Window {
                kernel: kernel.to_vec(),
                strides: strides.to_vec(),
                dilations: dilations.to_vec(),
                pads: Pads::Explicit(pads.to_vec()),
                ceil: false,
            };
            let output = [0, 1].map(|d| {
                (input[d] - 1) * strides[d] + (kernel[d] - 1) * dilations[d] + 1 - pads[d] - pads[d + 2]
                    + more[d]
            });
            let seen = by_parts(&window, input, output);
            assert_eq!(seen, by_definition(&window, pads, input, output), "{window:?} over {input:?}");
        }
    }
}
