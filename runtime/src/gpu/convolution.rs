//! Convolutions as jobs: where their weights lie, and which variant of a kernel runs them.

use andon_shaders::{ConvolutionParams, DepthwiseParams, NONE, Variant};

use super::{
    constants::{JoinFields, Packed},
    exact,
    layout::Spot,
    lower::{Lowering, at, word_of},
};
use crate::cpu::describe::Convolution;

impl Lowering {
    pub(super) fn convolution(&mut self, what: &Convolution<'_>, inputs: &[Spot], out: Spot) -> Option<()> {
        let from = self.readable(*inputs.first()?)?;
        let mut touches = vec![from, out];
        let (mut join, mut skip, mut skip_first) = (JoinFields::NOTHING, out, 0);
        if let Some(skipped) = &what.skip {
            skip = self.readable(*inputs.get(1)?)?;
            touches.push(skip);
            join = self.constants.join(&exact::join(&skipped.byte, Some(skipped.slopes)), skipped.table);
            skip_first = skipped.first.into();
        }
        let Convolution { filters, input, output, kernel, strides, dilations, before, groups, .. } = *what;
        let (zero, target, table) = (what.zero, what.target, self.constants.table(what.table));
        let (taps, words, pixels) = (kernel[0] * kernel[1], out.words(), output.pixels());
        if groups > 1 && groups == input.c && groups == output.c {
            let Packed { weights, bias, multiplier } = self.constants.depthwise(filters, taps);
            let known = kernel[0] == kernel[1]
                && matches!(kernel[0], 3 | 5)
                && strides[0] == strides[1]
                && matches!(strides[0], 1 | 2)
                && dilations == [1, 1];
            let window = known.then(|| [kernel[0] as u32, kernel[1] as u32, strides[1] as u32]);
            let across: usize = if known { 4 } else { 1 };
            let variant = Variant::Depthwise { pixels: across as u32, window };
            let threads = words * output.w.div_ceil(across) * output.h;
            self.push(variant, threads, &touches, move |bases| {
                let params = DepthwiseParams {
                    in_base: at(from, bases),
                    in_stride: from.stride as u32 / 4,
                    in_width: input.w as u32,
                    in_height: input.h as u32,
                    out_base: at(out, bases),
                    out_stride: out.stride as u32 / 4,
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
                    pad: word_of(zero),
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
                    skip_base: at(skip, bases),
                    skip_stride: skip.stride as u32 / 4,
                    skip_first,
                };
                params.words()
            });
            return Some(());
        }
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
        let (across, side): (usize, usize) = match (grouped, words) {
            (true, _) => (4, 1),
            (false, words) if words >= 8 => (4, 2),
            (false, _) => (4, 1),
        };
        let columns = words.div_ceil(side);
        let pointwise =
            kernel == [1, 1] && strides == [1, 1] && before == [0, 0] && input.pixels() == pixels && !grouped;
        let packed =
            self.constants.convolution(filters, taps, groups, depth * unit / 4, columns * side, first);
        let Packed { weights, bias, multiplier } = packed;
        let starts = if grouped {
            let start = |column: usize| (first(column) / unit) as u32;
            self.constants.list((0..words).map(start).collect())
        } else {
            NONE
        };
        let variant =
            Variant::Convolution { pixels: across as u32, out: side as u32, quads, pointwise, grouped };
        let threads = columns * pixels.div_ceil(across);
        let per_unit = if quads { 4 } else { 1 };
        self.push(variant, threads, &touches, move |bases| {
            let params = ConvolutionParams {
                in_base: at(from, bases) / per_unit,
                in_stride: from.stride as u32 / 4 / per_unit,
                in_width: input.w as u32,
                in_height: input.h as u32,
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
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
                pad: word_of(zero),
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
                skip_base: at(skip, bases),
                skip_stride: skip.stride as u32 / 4,
                skip_first,
            };
            params.words()
        });
        Some(())
    }
}
