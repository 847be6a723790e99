//! Operators that are rarer than convolutions, as jobs: window averages, linear resizing, matrices times matrices, means of
//! channels, constants.

use std::collections::BTreeMap;

use andon_shaders::{
    AverageParams, ChannelMeanParams, MatrixParams, MixedParams, PositionParams, SoftmaxParams, Variant,
};

use super::{
    choice::Task,
    exact,
    layout::Spot,
    lower::{Lowering, at},
};
use crate::cpu::describe::{Description, Extreme};

/// Weights of linear resizing that get a table each, and counts of averages that get a staircase each.
const TABLES_MAX: usize = 256;

impl Lowering {
    pub(super) fn other(&mut self, description: &Description<'_>, inputs: &[Spot], out: Spot) -> Option<()> {
        match description {
            Description::Constant { bytes } => {
                self.fixtures.push((out, bytes.to_vec()));
                Some(())
            }
            Description::Average { .. } => self.average(description, inputs, out),
            Description::Mixed { .. } => self.mixed(description, inputs, out),
            Description::Product { .. } => self.product(description, inputs, out),
            Description::Softmax { .. } => self.softmax(description, inputs, out),
            Description::Position { extreme, channels } => {
                let from = self.readable(*inputs.first()?)?;
                self.position(*extreme, *channels, from, out)
            }
            Description::Mean { over_pixels: false, count, byte } => {
                let from = self.readable(*inputs.first()?)?;
                let most = i32::try_from(*count).ok()?.checked_mul(255)?;
                let stairs = exact::stairs(byte, 0, most)?;
                let stairs = self.constants.integers(&stairs);
                let pixels = out.shape.pixels();
                if out.shape.c != 1 || pixels != from.shape.pixels() {
                    return None;
                }
                self.push(Variant::ChannelMean, pixels, &[from, out], move |bases| {
                    let params = ChannelMeanParams {
                        in_base: at(from, bases),
                        in_stride: from.stride as u32 / 4,
                        channels: from.shape.c as u32,
                        out_base: at(out, bases),
                        out_stride: out.stride as u32 / 4,
                        out_words: 1,
                        pixels: pixels as u32,
                        stairs,
                    };
                    params.words()
                });
                Some(())
            }
            _ => None,
        }
    }

    fn average(&mut self, description: &Description<'_>, inputs: &[Spot], out: Spot) -> Option<()> {
        let Description::Average { window, input, output, counts, values, byte } = description else {
            return None;
        };
        let from = self.readable(*inputs.first()?)?;
        let seen: std::collections::BTreeSet<usize> =
            counts[0].iter().flat_map(|rows| counts[1].iter().map(move |columns| rows * columns)).collect();
        let most = *seen.last()?;
        if seen.len() > TABLES_MAX || most > 1 << 16 {
            return None;
        }
        let mut stairs = vec![0; most + 1];
        for count in seen {
            let steps = exact::real_stairs(|sum| byte(sum, count))?;
            stairs[count] = self.constants.list(steps.map(f32::to_bits).to_vec());
        }
        let stairs = self.constants.list(stairs);
        let list = |list: &[usize]| list.iter().map(|n| *n as u32).collect();
        let [row_counts, column_counts] = counts.each_ref().map(|counts| self.constants.list(list(counts)));
        let values = self.constants.list(values.map(f32::to_bits).to_vec());
        let (window, input, output) = (*window, *input, *output);
        let (words, pixels) = (out.words(), output.pixels());
        self.push(Variant::Average, words * pixels, &[from, out], move |bases| {
            let params = AverageParams {
                in_base: at(from, bases),
                in_stride: from.stride as u32 / 4,
                in_width: input.w as u32,
                in_height: input.h as u32,
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
                out_width: output.w as u32,
                out_words: words as u32,
                pixels: pixels as u32,
                kernel_h: window.kernel[0] as u32,
                kernel_w: window.kernel[1] as u32,
                stride_h: window.strides[0] as u32,
                stride_w: window.strides[1] as u32,
                dilation_h: window.dilations[0] as u32,
                dilation_w: window.dilations[1] as u32,
                top: window.before[0] as u32,
                left: window.before[1] as u32,
                row_counts,
                column_counts,
                values,
                stairs,
            };
            params.words()
        });
        Some(())
    }

    fn mixed(&mut self, description: &Description<'_>, inputs: &[Spot], out: Spot) -> Option<()> {
        let Description::Mixed { rows, columns, values, width, byte } = description else { return None };
        let from = self.readable(*inputs.first()?)?;
        // Pairs of weights, numbered.
        let classes = |mixes: &[([usize; 2], [f32; 2])]| {
            let mut known: BTreeMap<[u32; 2], u32> = BTreeMap::new();
            let mut weights = vec![];
            let mut list = vec![];
            for (at, pair) in mixes {
                let next = known.len() as u32;
                let class = *known.entry(pair.map(f32::to_bits)).or_insert_with(|| {
                    weights.push(*pair);
                    next
                });
                list.extend([at[0] as u32, at[1] as u32, class]);
            }
            (list, weights)
        };
        let ((rows, down), (columns, across)) = (classes(rows), classes(columns));
        let mut tables: BTreeMap<u32, u32> = BTreeMap::new();
        let mut grid = vec![];
        for row in &down {
            for column in &across {
                for (y, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let weight = column[x] * row[y];
                    let table = match tables.get(&weight.to_bits()) {
                        Some(table) => *table,
                        None if tables.len() == TABLES_MAX => return None,
                        None => self.constants.list(values.map(|v| (weight * v).to_bits()).to_vec()),
                    };
                    tables.insert(weight.to_bits(), table);
                    grid.push(table);
                }
            }
        }
        let stairs = exact::real_stairs(byte)?;
        let stairs = self.constants.list(stairs.map(f32::to_bits).to_vec());
        let (classes, out_width, width) = (across.len() as u32, columns.len() / 3, *width as u32);
        let [rows, columns, tables] = [rows, columns, grid].map(|list| self.constants.list(list));
        let (words, pixels) = (out.words(), out.shape.pixels());
        self.push(Variant::Mixed, words * pixels, &[from, out], move |bases| {
            let params = MixedParams {
                in_base: at(from, bases),
                in_stride: from.stride as u32 / 4,
                in_width: width,
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
                out_width: out_width as u32,
                out_words: words as u32,
                pixels: pixels as u32,
                rows,
                columns,
                classes,
                tables,
                stairs,
            };
            params.words()
        });
        Some(())
    }

    fn product(&mut self, description: &Description<'_>, inputs: &[Spot], out: Spot) -> Option<()> {
        let Description::Product { m, k, zeros, byte, table } = description else { return None };
        let [a, b] = [self.readable(*inputs.first()?)?, self.readable(*inputs.get(1)?)?];
        let most = i32::try_from(*k).ok()?.checked_mul(255 * 255)?;
        let stairs = exact::stairs(byte, -most, most)?;
        let (stairs, table) = (self.constants.integers(&stairs), self.constants.table(*table));
        let (m, k, zeros) = (*m as u32, *k as u32, *zeros);
        let (words, pixels) = (out.words(), out.shape.pixels());
        self.push(Variant::Matrix, words * pixels, &[a, b, out], move |bases| {
            let params = MatrixParams {
                a_base: at(a, bases),
                a_stride: a.stride as u32 / 4,
                a_zero: zeros[0] as u32,
                b_base: at(b, bases),
                b_stride: b.stride as u32 / 4,
                b_zero: zeros[1] as u32,
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
                out_words: words as u32,
                pixels: pixels as u32,
                height: m,
                depth: k,
                stairs,
                table,
            };
            params.words()
        });
        Some(())
    }

    fn softmax(&mut self, description: &Description<'_>, inputs: &[Spot], out: Spot) -> Option<()> {
        let Description::Softmax { channels, worth, byte } = description else { return None };
        let from = self.readable(*inputs.first()?)?;
        // Sums in the order in which bytes rise, as signed numbers: the largest sum first.
        let height = |sum: u32| (sum ^ 0x7fff_ffff) as i32;
        let sum = |height: i32| height as u32 ^ 0x7fff_ffff;
        let most = u32::try_from(*channels).ok()?.checked_mul(worth[0])?;
        let mut stairs = Vec::with_capacity(256);
        for below in 0..=255 {
            // The greatest itself is worth that much.
            let steps = exact::stairs(|at| byte(below, sum(at)), height(most), height(worth[0]))?;
            stairs.push(self.constants.integers(&steps));
        }
        let (stairs, worth) = (self.constants.list(stairs), self.constants.list(worth.to_vec()));
        let (words, pixels, channels) = (out.words(), out.shape.pixels(), *channels as u32);
        let variant = self.choose(Task::Softmax { pixels, words });
        self.push(variant, pixels, &[from, out], move |bases| {
            let params = SoftmaxParams {
                in_base: at(from, bases),
                in_stride: from.stride as u32 / 4,
                channels,
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
                out_words: words as u32,
                pixels: pixels as u32,
                worth,
                stairs,
            };
            params.words()
        });
        Some(())
    }

    fn position(&mut self, extreme: Extreme, channels: usize, from: Spot, out: Spot) -> Option<()> {
        /// The largest number of a channel.
        const LAST: u32 = 0xff_ffff;
        let channels = u32::try_from(channels).ok().filter(|channels| *channels <= LAST)?;
        let (words, pixels) = (from.words(), out.shape.pixels());
        if out.words() != 1 || pixels != from.shape.pixels() {
            return None;
        }
        let variant = self.choose(Task::Position { pixels, words });
        self.push(variant, pixels, &[from, out], move |bases| {
            let params = PositionParams {
                in_base: at(from, bases),
                in_stride: from.stride as u32 / 4,
                channels,
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
                pixels: pixels as u32,
                flip: if extreme.greatest { 0 } else { u32::MAX },
                order: if extreme.last { 0 } else { LAST },
            };
            params.words()
        });
        Some(())
    }
}
