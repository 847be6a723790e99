//! What never changes while a float network runs, in one list of words: weights and biases as kernels read them, and
//! tables.

use half::f16;

use super::{Precision, terms::Sliding};

/// Words of 32 bits for each that the network's own constants have, and for what does not grow with them: what has few
/// channels is filled up with zeros.
const FILLED_UP: usize = 4;
const SPARE: usize = 16 << 20;

pub(super) struct Constants {
    pub(super) words: Vec<u32>,
    precision: Precision,
    words_max: usize,
}

/// Filters as ONNX has them, `[output][input of its group][row][column]`, and what is added to each output.
pub(super) struct Filters {
    pub(super) weights: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) groups: usize,
}

/// Where the weights of a convolution lie, in quads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed {
    pub(super) weights: u32,
    pub(super) bias: u32,
}

impl Filters {
    /// Multiplies each output, and adds to it.
    pub(super) fn scale(&mut self, scale: &[f32], shift: &[f32]) {
        let each = self.weights.len() / self.bias.len().max(1);
        let rows = self.weights.chunks_mut(each.max(1)).zip(&mut self.bias);
        for ((row, bias), (scale, shift)) in rows.zip(scale.iter().zip(shift)) {
            row.iter_mut().for_each(|weight| *weight *= scale);
            *bias = *bias * scale + shift;
        }
    }
}

impl Constants {
    /// For a network whose constants have so many bytes.
    pub(super) fn new(precision: Precision, bytes: u64) -> Self {
        let words = usize::try_from(bytes / 4).unwrap_or(usize::MAX);
        Self { words: vec![], precision, words_max: words.saturating_mul(FILLED_UP).saturating_add(SPARE) }
    }

    pub(super) fn is_half(&self) -> bool {
        self.precision == Precision::Half
    }

    pub(super) fn words_per_quad(&self) -> usize {
        self.precision.quad() / 4
    }

    /// Zeros for so many numbers.
    fn zeros(&self, count: Option<usize>) -> Result<Vec<f32>, String> {
        let fits =
            |count: &usize| self.words.len().checked_add(*count).is_some_and(|end| end <= self.words_max);
        let count =
            count.filter(fits).ok_or("the weights up to here would be far more on a GPU than in the file")?;
        Ok(vec![0.0; count])
    }

    /// Where the words begin.
    pub(super) fn table(&mut self, words: impl IntoIterator<Item = u32>) -> u32 {
        let begin = self.words.len();
        self.words.extend(words);
        // Whoever comes next begins at a quad of either kind.
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        begin as u32
    }

    /// Where the numbers begin, in quads.
    fn quads(&mut self, numbers: &[f32]) -> Result<u32, String> {
        match self.precision {
            Precision::Single => Ok(self.table(numbers.iter().map(|number| number.to_bits())) / 4),
            Precision::Half => {
                let largest = numbers.iter().fold(0f32, |most, number| most.max(number.abs()));
                if largest > f16::MAX.to_f32() {
                    return Err(format!("a weight or a bias of {largest} is too large for f16"));
                }
                let bits =
                    |number: Option<&f32>| number.map_or(0, |n| u32::from(f16::from_f32(*n).to_bits()));
                let pair = |pair: &[f32]| bits(pair.first()) | bits(pair.get(1)) << 16;
                Ok(self.table(numbers.chunks(2).map(pair)) / 2)
            }
        }
    }

    fn bias(&mut self, bias: &[f32], columns: usize) -> Result<u32, String> {
        let mut own = self.zeros(columns.checked_mul(4))?;
        own[..bias.len()].copy_from_slice(bias);
        self.quads(&own)
    }

    /// Weights as `[tap][input channel][column]`, `columns` of four outputs each and `depth` quads of input channels, which
    /// may be more than there are.
    pub(super) fn convolution(
        &mut self,
        filters: &Filters,
        window: &Sliding,
        depth: usize,
        columns: usize,
    ) -> Result<Packed, String> {
        let taps = window.taps();
        let bias = self.bias(&filters.bias, columns)?;
        let elements = [4 * depth, columns, 4].iter().try_fold(taps, |n, m| n.checked_mul(*m));
        let mut own = self.zeros(elements)?;
        let each = filters.weights.len() / filters.bias.len().max(1);
        for (output, row) in filters.weights.chunks(each.max(1)).enumerate() {
            for (channel, weights) in row.chunks(taps).enumerate() {
                for (tap, weight) in weights.iter().enumerate() {
                    own[(tap * 4 * depth + channel) * columns * 4 + output] = *weight;
                }
            }
        }
        Ok(Packed { weights: self.quads(&own)?, bias })
    }

    /// One filter a channel: `[tap][quad of channels]`.
    pub(super) fn depthwise(&mut self, filters: &Filters, window: &Sliding) -> Result<Packed, String> {
        let (taps, columns) = (window.taps(), filters.bias.len().div_ceil(4));
        let bias = self.bias(&filters.bias, columns)?;
        let mut own = self.zeros(taps.checked_mul(4 * columns))?;
        for (channel, filter) in filters.weights.chunks(taps).enumerate() {
            for (tap, weight) in filter.iter().enumerate() {
                own[tap * 4 * columns + channel] = *weight;
            }
        }
        Ok(Packed { weights: self.quads(&own)?, bias })
    }
}
