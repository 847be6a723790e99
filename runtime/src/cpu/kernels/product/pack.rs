//! How the weights of a product lie in memory.

use super::{
    super::{Isa, aligned::Bytes},
    STEP,
};

/// Weights of a product, packed for one instruction set.
///
/// Columns (output channels) are cut in blocks of up to 4 vectors. A block holds, for each step of 4 bytes of a row, each
/// of its vectors' weights: 4 for each column side by side. Lane `l`, value `i` of vector `v` of `n` is column
/// `4 * (n * l + v) + i`, which is the order that packing sums to bytes undoes.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    pub(super) isa: Isa,
    pub(super) columns: usize,
    pub(super) runs: usize,
    /// Bytes of a run, and steps: a last step that is not full has weights 0.
    pub(super) run: usize,
    pub(super) blocks: Vec<Block>,
    pub(super) weights: Bytes,
    /// In the blocks' order, with the input's zero point folded in.
    pub(super) bias: Vec<i32>,
    pub(super) multiplier: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    /// 1 to 4.
    pub(super) vectors: usize,
    /// First column.
    pub(super) column: usize,
    /// Where its weights start.
    pub(super) weights: usize,
    /// Where its bias and multiplier start.
    pub(super) sums: usize,
}

/// Lengths of the blocks that `vectors` are cut in: as even as four at most allows.
fn cut(vectors: usize) -> impl Iterator<Item = usize> {
    let blocks = vectors.div_ceil(4);
    // 4 and 1 would leave a narrow one: 3 and 2.
    let even = if vectors % 4 == 1 && blocks > 1 { blocks - 2 } else { vectors / 4 };
    let rest = vectors - 4 * even;
    let rest = if rest == 5 { [3, 2] } else { [rest, 0] };
    std::iter::repeat_n(4, even).chain(rest).filter(|n| *n > 0)
}

impl Matrix {
    /// `weights`: `[columns, runs, run]`; one bias and one multiplier a column.
    pub(crate) fn pack(
        isa: Isa,
        runs: usize,
        run: usize,
        bias: &[i32],
        multiplier: &[f32],
        weights: &[i8],
    ) -> Self {
        let (columns, lanes) = (bias.len(), isa.lanes());
        let (vector, steps) = (4 * lanes, run.div_ceil(STEP));
        let column_of = |c: usize| &weights[c * runs * run..][..runs * run];
        let mut packed = Bytes::zeroed(columns.next_multiple_of(vector) * runs * steps * STEP);
        let (mut blocks, mut biases, mut multipliers) = (vec![], vec![], vec![]);
        let (mut column, mut at) = (0, 0);
        for vectors in cut(columns.div_ceil(vector)) {
            blocks.push(Block { vectors, column, weights: at, sums: biases.len() });
            // Columns in the order of the block's vectors.
            let order = (0..vectors)
                .flat_map(|v| (0..lanes).flat_map(move |l| (0..4).map(move |i| 4 * (vectors * l + v) + i)));
            let order: Vec<usize> = order.map(|c| column + c).collect();
            for (r, step) in (0..runs).flat_map(|r| (0..steps).map(move |step| (r, step))) {
                let to = &mut packed[at..][..order.len() * STEP];
                for (to, c) in
                    to.as_chunks_mut::<STEP>().0.iter_mut().zip(&order).filter(|(_, c)| **c < columns)
                {
                    let rest = &column_of(*c)[r * run..][STEP * step..run];
                    *to = match rest.first_chunk::<STEP>() {
                        Some(from) => from.map(|w| w as u8),
                        None => std::array::from_fn(|i| rest.get(i).map_or(0, |w| *w as u8)),
                    };
                }
                at += order.len() * STEP;
            }
            for c in &order {
                let shift = if *c < columns && isa.shift() != 0 {
                    column_of(*c).iter().fold(0i32, |sum, w| sum.wrapping_add((*w).into()))
                } else {
                    0
                };
                let bias = bias.get(*c).copied().unwrap_or(0);
                biases.push(bias.wrapping_add(shift.wrapping_mul(isa.shift())));
                multipliers.push(multiplier.get(*c).copied().unwrap_or(0.0));
            }
            column += vectors * vector;
        }
        Self { isa, columns, runs, run, blocks, weights: packed, bias: biases, multiplier: multipliers }
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn steps(&self) -> usize {
        self.run.div_ceil(STEP)
    }

    /// Products of one row.
    pub(super) fn products(&self) -> usize {
        self.columns * self.runs * self.run
    }
}
