//! Convolutions as jobs: where their weights lie, and which variant of a kernel runs them.

use andon_shaders::{ConvolutionParams, DepthwiseParams, NONE, Variant};

use super::{
    choice::Task,
    constants::{JoinFields, Packed},
    exact,
    layout::Spot,
    lower::{Bases, Lowering, at, word_of},
    program::SLACK,
};
use crate::cpu::{Shape, Target, describe::Convolution};

/// What happens to sums.
#[derive(Clone, Copy)]
struct Ending {
    target: Target,
    table: u32,
    join: JoinFields,
    /// The output itself where nothing is joined.
    skip: Spot,
    skip_first: u32,
}

/// Where results lie in their buffer, in bytes: the first, the next row's, the next pixel's.
#[derive(Clone, Copy)]
struct Lies {
    offset: usize,
    row: usize,
    pixel: usize,
}

impl Ending {
    fn skip(&self, bases: Bases<'_>) -> (u32, u32) {
        (at(self.skip, bases), self.skip.stride as u32 / 4)
    }
}

impl Lowering {
    pub(super) fn convolution(&mut self, what: &Convolution<'_>, inputs: &[Spot], out: Spot) -> Option<()> {
        let Shape { w, .. } = what.output;
        self.convolution_at(
            what,
            inputs,
            out,
            Lies { offset: out.offset, row: w * out.stride, pixel: out.stride },
        )
    }

    /// Convolutions whose results lie between each other.
    pub(super) fn interleaved(
        &mut self,
        parts: &[([usize; 2], Convolution<'_>)],
        [down, right]: [usize; 2],
        width: usize,
        inputs: &[Spot],
        out: Spot,
    ) -> Option<()> {
        for ([y, x], part) in parts {
            let lies = Lies {
                offset: out.offset + (y * width + x) * out.stride,
                row: down * width * out.stride,
                pixel: right * out.stride,
            };
            self.convolution_at(part, inputs, out, lies)?;
        }
        Some(())
    }

    fn convolution_at(
        &mut self,
        what: &Convolution<'_>,
        inputs: &[Spot],
        out: Spot,
        lies: Lies,
    ) -> Option<()> {
        let from = self.readable(*inputs.first()?)?;
        let table = self.constants.table(what.table);
        let mut ending =
            Ending { target: what.target, table, join: JoinFields::NOTHING, skip: out, skip_first: 0 };
        if let Some(skipped) = &what.skip {
            ending.skip = self.readable(*inputs.get(1)?)?;
            let join = exact::join(&skipped.byte, Some(skipped.slopes));
            ending.join = self.constants.join(&join, skipped.table);
            ending.skip_first = skipped.first.into();
        }
        if what.groups > 1 && what.groups == what.input.c && what.groups == what.output.c {
            self.depthwise(what, from, out, lies, ending);
            return Some(());
        }
        self.dense(what, from, out, lies, ending)
    }

    fn depthwise(&mut self, what: &Convolution<'_>, from: Spot, out: Spot, lies: Lies, ending: Ending) {
        let Convolution { filters, input, output, kernel, strides, dilations, before, .. } = *what;
        let (taps, words) = (kernel[0] * kernel[1], out.words());
        let Packed { weights, bias, multiplier } = self.constants.depthwise(filters, taps);
        let known = matches!((kernel, strides), ([3, 3] | [5, 5], [1, 1] | [2, 2])) && dilations == [1, 1];
        let window = known.then(|| [kernel[0] as u32, kernel[1] as u32, strides[1] as u32]);
        let variant = self.choose(Task::Depthwise { rows: output.h, columns: output.w, words, window });
        let Variant::Depthwise { pixels: across, .. } = variant else { return };
        let tiles = words * output.w.div_ceil(across as usize) * output.h;
        let pad = word_of(what.zero);
        self.push(variant, tiles, &[from, out, ending.skip], move |bases| {
            let Ending { target, table, join, skip_first, .. } = ending;
            let (skip_base, skip_stride) = ending.skip(bases);
            let params = DepthwiseParams {
                in_base: at(from, bases),
                in_stride: from.stride as u32 / 4,
                in_width: input.w as u32,
                in_height: input.h as u32,
                out_base: at(Spot { offset: lies.offset, ..out }, bases),
                out_stride: lies.pixel as u32 / 4,
                out_row: lies.row as u32 / 4,
                out_width: output.w as u32,
                out_height: output.h as u32,
                out_words: words as u32,
                kernel_h: kernel[0] as u32,
                kernel_w: kernel[1] as u32,
                stride_h: strides[0] as u32,
                stride_w: strides[1] as u32,
                dilation_h: dilations[0] as u32,
                dilation_w: dilations[1] as u32,
                top: before[0] as u32,
                left: before[1] as u32,
                pad,
                weights,
                bias,
                multiplier,
                zero: target.zero.into(),
                low: target.low.into(),
                high: target.high.into(),
                table,
                join: join.kind,
                join_a: join.a,
                join_b: join.b,
                join_c: join.c,
                join_shift: join.shift,
                join_low: join.low,
                join_high: join.high,
                join_table: join.table,
                skip_base,
                skip_stride,
                skip_first,
            };
            params.words()
        });
    }

    fn dense(
        &mut self,
        what: &Convolution<'_>,
        from: Spot,
        out: Spot,
        lies: Lies,
        ending: Ending,
    ) -> Option<()> {
        let Convolution { filters, input, output, kernel, strides, dilations, before, groups, .. } = *what;
        let (taps, words, pixels) = (kernel[0] * kernel[1], out.words(), output.pixels());
        let quads = from.in_quads() && input.c >= 16;
        let grouped = groups > 1;
        let (per_group_in, per_group_out) = (input.c / groups, (output.c / groups).max(1));
        let unit = if quads { 16 } else { 4 };
        // Where the groups of a column's four channels begin and end among the input's channels.
        let first = move |column: usize| {
            if grouped { 4 * column / per_group_out * per_group_in / unit * unit } else { 0 }
        };
        let end = |column: usize| {
            let last = (4 * column + 3).min(output.c - 1);
            if grouped { (last / per_group_out + 1) * per_group_in } else { input.c }
        };
        let depth = (0..words).map(|column| (end(column) - first(column)).div_ceil(unit)).max()?;
        // A column with fewer channels than the most reads on, with weights of 0; not beyond all memory, though.
        if (0..words).any(|column| first(column) + depth * unit > input.c + SLACK) {
            return None;
        }
        let pointwise =
            kernel == [1, 1] && strides == [1, 1] && before == [0, 0] && input.pixels() == pixels && !grouped;
        let variant = if grouped {
            Variant::Convolution { pixels: 4, out: 1, quads, pointwise, grouped, split: 1, real: false }
        } else {
            self.choose(Task::Convolution { pixels, words, taps, depth, quads, pointwise })
        };
        let (across, side) = match variant {
            Variant::Convolution { pixels, out, .. } => (pixels, out),
            Variant::Tiled { pixels, out, .. } => (8 * pixels, 8 * out),
            _ => return None,
        };
        let columns = words.div_ceil(side as usize);
        let packed = self.constants.convolution(
            filters,
            taps,
            groups,
            depth * unit / 4,
            columns * side as usize,
            first,
        );
        let Packed { weights, bias, multiplier } = packed;
        let starts = if grouped {
            self.constants.list((0..words).map(|column| (first(column) / unit) as u32).collect())
        } else {
            NONE
        };
        let pad = if pointwise { from } else { self.pad(what.zero, depth * unit) };
        let tiles = columns * pixels.div_ceil(across as usize);
        let per_unit = unit as u32 / 4;
        self.push(variant, tiles, &[from, out, ending.skip], move |bases| {
            let Ending { target, table, join, skip_first, .. } = ending;
            let (skip_base, skip_stride) = ending.skip(bases);
            let params = ConvolutionParams {
                in_base: at(from, bases) / per_unit,
                in_stride: from.stride as u32 / 4 / per_unit,
                in_width: input.w as u32,
                in_height: input.h as u32,
                out_base: at(Spot { offset: lies.offset, ..out }, bases),
                out_stride: lies.pixel as u32 / 4,
                out_row: lies.row as u32 / 4,
                out_width: output.w as u32,
                out_words: words as u32,
                pixels: pixels as u32,
                columns: columns as u32,
                depth: depth as u32,
                kernel_h: kernel[0] as u32,
                kernel_w: kernel[1] as u32,
                stride_h: strides[0] as u32,
                stride_w: strides[1] as u32,
                dilation_h: dilations[0] as u32,
                dilation_w: dilations[1] as u32,
                top: before[0] as u32,
                left: before[1] as u32,
                pad_base: at(pad, bases) / per_unit,
                weights,
                bias,
                multiplier,
                starts,
                zero: target.zero.into(),
                low: target.low.into(),
                high: target.high.into(),
                table,
                join: join.kind,
                join_a: join.a,
                join_b: join.b,
                join_c: join.c,
                join_shift: join.shift,
                join_low: join.low,
                join_high: join.high,
                join_table: join.table,
                skip_base,
                skip_stride,
                skip_first,
            };
            params.words()
        });
        Some(())
    }
}
