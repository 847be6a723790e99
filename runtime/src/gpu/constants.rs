//! What never changes while a network runs, in one list of words: weights, biases, multipliers, tables, lists.

use std::collections::HashMap;

use andon_shaders::{NONE, join};

use super::exact::Join;
use crate::cpu::describe::Filters;

#[derive(Default)]
pub(crate) struct Constants {
    pub(crate) words: Vec<u32>,
    /// Where each short list lies that was asked for before.
    known: HashMap<Vec<u32>, u32>,
}

/// Fields of a kernel that joins two bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JoinFields {
    pub(crate) kind: u32,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) c: u32,
    pub(crate) shift: u32,
    pub(crate) low: u32,
    pub(crate) high: u32,
    pub(crate) table: u32,
}

impl JoinFields {
    pub(crate) const NOTHING: Self =
        Self { kind: join::NOTHING, a: 0, b: 0, c: 0, shift: 0, low: 0, high: 0, table: NONE };
}

/// Where the weights of a convolution lie, in groups of four words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packed {
    pub(crate) weights: u32,
    pub(crate) bias: u32,
    pub(crate) multiplier: u32,
}

impl Constants {
    /// Room for so many weights and what comes with them, so that the list need not be moved as it grows.
    pub(crate) fn reserve(&mut self, weights: usize) {
        self.words.reserve(weights / 4 + weights / 16);
    }

    fn align(&mut self) -> usize {
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        self.words.len()
    }

    /// A list, once.
    pub(crate) fn list(&mut self, words: Vec<u32>) -> u32 {
        if let Some(at) = self.known.get(&words) {
            return *at;
        }
        let at = self.align() as u32;
        self.words.extend(&words);
        self.known.insert(words, at);
        at
    }

    /// Bytes, four a word.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> u32 {
        self.list(bytes.chunks(4).map(packed).collect())
    }

    pub(crate) fn table(&mut self, table: Option<&[u8; 256]>) -> u32 {
        table.map_or(NONE, |table| self.bytes(table))
    }

    pub(crate) fn integers(&mut self, values: &[i32]) -> u32 {
        self.list(values.iter().map(|v| *v as u32).collect())
    }

    /// `table`: what each byte becomes at last.
    pub(crate) fn join(&mut self, join: &Join, table: Option<&[u8; 256]>) -> JoinFields {
        let nothing = JoinFields::NOTHING;
        match join {
            Join::Linear { factors: [a, b, c], shift, low, high } => JoinFields {
                kind: join::LINEAR,
                a: *a as u32,
                b: *b as u32,
                c: *c as u32,
                shift: *shift,
                low: (*low).into(),
                high: (*high).into(),
                table: self.table(table),
            },
            Join::Sums { sums, shift, low, high } => JoinFields {
                kind: join::SUMS,
                a: self.integers(&sums[0]),
                b: self.integers(&sums[1]),
                shift: *shift,
                low: (*low).into(),
                high: (*high).into(),
                table: self.table(table),
                ..nothing
            },
            Join::Pairs(pairs) => {
                let last = |q: &u8| table.map_or(*q, |table| table[usize::from(*q)]);
                let pairs: Vec<u8> = pairs.iter().map(last).collect();
                JoinFields { kind: join::PAIRS, a: self.bytes(&pairs), ..nothing }
            }
        }
    }

    /// Biases of signed bytes, and multipliers, for whole words of channels and as many more as make `columns` words.
    fn sums(&mut self, filters: &Filters, columns: usize) -> (u32, u32) {
        let per_row = filters.weights.len() / filters.bias.len().max(1);
        // A signed byte is 128 less than the unsigned one of the same meaning. Sums may wrap on their way: none leaves 32
        // bits at the end.
        let shift = |row: usize| {
            let row = &filters.weights[row * per_row..][..per_row];
            row.iter().fold(0i32, |sum, w| sum.wrapping_add(i32::from(*w))).wrapping_mul(1 << 7)
        };
        let bias = self.align();
        self.words.extend(filters.bias.iter().enumerate().map(|(i, b)| b.wrapping_add(shift(i)) as u32));
        self.words.resize(bias + 4 * columns, 0);
        let multiplier = self.words.len();
        self.words.extend(filters.multiplier.iter().map(|m| m.to_bits()));
        self.words.resize(multiplier + 4 * columns, 0);
        (bias as u32 / 4, multiplier as u32 / 4)
    }

    /// Weights as `[tap][word of input channels][column]`, each four by four bytes. `depth`: words of input channels a tap,
    /// which begin at channel `first(column)` of the input for each column (word of output channels).
    pub(crate) fn convolution(
        &mut self,
        filters: &Filters,
        taps: usize,
        groups: usize,
        depth: usize,
        columns: usize,
        first: impl Fn(usize) -> usize,
    ) -> Packed {
        let rows = filters.bias.len();
        let channels = filters.weights.len() / (rows * taps).max(1);
        let (bias, multiplier) = self.sums(filters, columns);
        let weights = self.align();
        self.words.resize(weights + taps * depth * columns * 4, 0);
        let own = &mut self.words[weights..];
        // Words of input channels that lie before those of the row's group, and channels before them in their word.
        let ahead = |row: usize| {
            let group = row / (rows / groups).max(1) * channels;
            let ahead = group.saturating_sub(first(row / 4));
            (ahead / 4, ahead % 4)
        };
        let place = |tap: usize, word: usize| (tap * depth + word) * 4 * columns;
        for block in (0..rows).step_by(16) {
            let block = block..(block + 16).min(rows);
            for tap in 0..taps {
                let of = |row: usize| &filters.weights[(row * taps + tap) * channels..][..channels];
                // A line of the cache is written in one go.
                let whole = if block.clone().all(|row| ahead(row) == (0, 0)) { channels / 4 } else { 0 };
                let rows: Vec<&[[i8; 4]]> = block.clone().map(|row| of(row).as_chunks().0).collect();
                for word in 0..whole {
                    let own = &mut own[place(tap, word) + block.start..][..rows.len()];
                    own.iter_mut().zip(&rows).for_each(|(own, row)| *own = four(&row[word]));
                }
                for row in block.clone() {
                    let (words, bytes) = ahead(row);
                    for (channel, weight) in of(row).iter().enumerate().skip(4 * whole) {
                        let at = bytes + channel;
                        own[place(tap, words + at / 4) + row] |= u32::from(*weight as u8) << (at % 4 * 8);
                    }
                }
            }
        }
        Packed { weights: weights as u32 / 4, bias, multiplier }
    }

    /// One filter a channel: `[tap][word of channels]`, in words.
    pub(crate) fn depthwise(&mut self, filters: &Filters, taps: usize) -> Packed {
        let columns = filters.bias.len().div_ceil(4);
        let (bias, multiplier) = self.sums(filters, columns);
        let weights = self.align();
        self.words.resize(weights + taps * columns, 0);
        for (channel, filter) in filters.weights.chunks_exact(taps).enumerate() {
            for (tap, weight) in filter.iter().enumerate() {
                self.words[weights + tap * columns + channel / 4] |=
                    u32::from(*weight as u8) << (channel % 4 * 8);
            }
        }
        Packed { weights: weights as u32, bias, multiplier }
    }
}

fn packed(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn four(bytes: &[i8; 4]) -> u32 {
    u32::from_le_bytes(bytes.map(|byte| byte as u8))
}
