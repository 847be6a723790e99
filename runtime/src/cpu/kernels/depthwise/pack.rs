//! How the filters of a depthwise convolution lie in memory.

use super::{
    super::{Isa, aligned::Bytes},
    PIXELS, Planes, ROWS_MAX, SCRATCH, TERMS_MAX,
};

/// Filters, packed for one instruction set.
#[derive(Debug, Clone)]
pub(crate) struct Filters {
    pub(super) isa: Isa,
    pub(super) planes: Planes,
    /// Four taps at a time: distance of their column from the window's first, and which group of the column's.
    pub(super) terms: Vec<Term>,
    pub(super) groups: Vec<Group>,
    pub(super) chunks: Vec<Chunk>,
    /// For each chunk, term and vector of a quad, the four weights of each channel.
    pub(super) weights: Bytes,
    /// By chunk, in the order of a quad.
    pub(super) bias: Vec<i32>,
    pub(super) multiplier: Vec<f32>,
    /// A pixel of the input's zero points.
    pub(super) blank: Vec<u8>,
    /// For channels too few for a vector: `[channel, tap]`, bias and multiplier by channel.
    pub(super) plain: Option<Plain>,
}

#[derive(Debug, Clone)]
pub(super) struct Plain {
    pub(super) weights: Vec<i8>,
    pub(super) bias: Vec<i32>,
    pub(super) multiplier: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    pub(super) column: usize,
    pub(super) group: usize,
    /// Row and column of each tap that there is.
    pub(super) taps: [Option<(usize, usize)>; 4],
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Group {
    /// Of so many rows from this on.
    Below(usize, usize),
    /// Four columns of this row.
    Beside(usize),
}

/// Channels that are worked on together; the last chunks overlap where channels do not divide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) first: usize,
    pub(super) lanes: usize,
    pub(super) weights: usize,
    pub(super) sums: usize,
}

/// How many groups and terms [`terms`] gives.
fn counted([kh, kw]: [usize; 2], dilation: usize) -> [usize; 2] {
    let beside = kh % 4 == 1 && kw > 1 && dilation == 1;
    let below = (kh - usize::from(beside)).div_ceil(4);
    if beside { [below + 1, below * kw + kw.div_ceil(4)] } else { [below, below * kw] }
}

fn terms([kh, kw]: [usize; 2], dilation: usize) -> (Vec<Group>, Vec<Term>) {
    let beside = kh % 4 == 1 && kw > 1 && dilation == 1;
    let below = if beside { kh - 1 } else { kh };
    let mut groups: Vec<Group> = (0..below).step_by(4).map(|y| Group::Below(y, 4.min(below - y))).collect();
    let mut terms = vec![];
    for (group, y) in (0..below).step_by(4).enumerate() {
        for x in 0..kw {
            let taps = [0, 1, 2, 3].map(|i| (y + i < below).then_some((y + i, x)));
            terms.push(Term { column: x * dilation, group, taps });
        }
    }
    if beside {
        for x in (0..kw).step_by(4) {
            let taps = [0, 1, 2, 3].map(|i| (x + i < kw).then_some((below, x + i)));
            terms.push(Term { column: x, group: groups.len(), taps });
        }
        groups.push(Group::Beside(below));
    }
    (groups, terms)
}

/// Widest first, as the instruction set has them.
fn chunks(channels: usize, widths: &[usize]) -> Vec<(usize, usize)> {
    let mut chunks = vec![];
    let mut first = 0;
    while first < channels {
        let left = channels - first;
        let lanes = widths.iter().copied().find(|lanes| 16 * lanes <= left);
        // What is left over is computed with channels before it.
        let (at, lanes) = match lanes {
            Some(lanes) => (first, lanes),
            None => (channels.saturating_sub(16), 1),
        };
        chunks.push((at, lanes));
        first = at + 16 * lanes;
    }
    chunks
}

impl Filters {
    /// `weight(channel, row, column)`; one bias, with the zero point folded in, and one multiplier a channel.
    pub(crate) fn pack(
        isa: Isa,
        planes: Planes,
        bias: &[i32],
        multiplier: &[f32],
        weight: impl Fn(usize, usize, usize) -> i8,
    ) -> Self {
        let Planes { channels, kernel: [kh, kw], strides, dilations, .. } = planes;
        let mut filters = Self {
            isa,
            planes,
            terms: vec![],
            groups: vec![],
            chunks: vec![],
            weights: Bytes::zeroed(0),
            bias: vec![],
            multiplier: vec![],
            blank: vec![],
            plain: None,
        };
        let span = (PIXELS - 1) * strides[1] + (kw - 1) * dilations[1] + 1;
        // Counted first: a huge window would have terms many times its weights.
        let [groups, terms_needed] = counted(planes.kernel, dilations[1]);
        let fits = span * groups * 64 * 4 <= SCRATCH && kh <= ROWS_MAX && channels >= 16;
        let fits = fits && terms_needed <= TERMS_MAX;
        if !fits || isa.widths().is_empty() {
            let weights = (0..channels)
                .flat_map(|c| (0..kh * kw).map(move |t| (c, t)))
                .map(|(c, t)| weight(c, t / kw, t % kw));
            let (bias, multiplier) = (bias.to_vec(), multiplier.to_vec());
            filters.plain = Some(Plain { weights: weights.collect(), bias, multiplier });
            return filters;
        }
        (filters.groups, filters.terms) = terms(planes.kernel, dilations[1]);
        let mut weights = vec![];
        for (first, lanes) in chunks(channels, isa.widths()) {
            filters.chunks.push(Chunk { first, lanes, weights: weights.len(), sums: filters.bias.len() });
            let quads =
                (0..4).map(|q| (0..lanes).flat_map(move |l| (0..4).map(move |i| first + 16 * l + 4 * q + i)));
            for term in &filters.terms {
                for channel in quads.clone().flatten() {
                    weights.extend(term.taps.map(|tap| tap.map_or(0, |(y, x)| weight(channel, y, x) as u8)));
                }
            }
            for channel in quads.flatten() {
                let taps = (0..kh * kw).map(|t| i32::from(weight(channel, t / kw, t % kw)));
                let shift = if isa.shift() == 0 { 0 } else { taps.fold(0i32, i32::wrapping_add) };
                filters.bias.push(bias[channel].wrapping_add(shift.wrapping_mul(isa.shift())));
                filters.multiplier.push(multiplier[channel]);
            }
        }
        filters.weights = Bytes::zeroed(weights.len());
        filters.weights.copy_from_slice(&weights);
        filters.blank = vec![planes.zero; channels];
        filters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_counted_as_they_are() {
        for kernel in (1..11).flat_map(|kh| (1..11).map(move |kw| [kh, kw])) {
            for dilation in 1..3 {
                let (groups, terms) = terms(kernel, dilation);
                assert_eq!(counted(kernel, dilation), [groups.len(), terms.len()], "{kernel:?} {dilation}");
            }
        }
    }
}
