//! Operators as dispatches: which variant of a kernel runs one, and what it is told.

use andon_shaders::{
    Float, FloatBinaryParams, FloatConvolutionParams, FloatCopyParams, FloatDepthwiseParams, FloatMeanParams,
    FloatMixParams, FloatPlanesParams, FloatPoolParams, FloatSelectParams, NONE, Variant,
};

use super::{
    super::choice::{Choices, Task},
    pack::{Constants, Filters},
    terms::{Activation, Bases, Ending, Job, Lattice, Sliding, Spot},
};
use crate::cpu::{Mix, Shape};

/// The kernel for a task.
fn chosen(choices: &Choices, task: Task) -> Result<Float, String> {
    match choices.choose(task) {
        Variant::Float { kernel, .. } => Ok(kernel),
        _ => Err("it has no kernel".into()),
    }
}

/// The shape of `to` is that of the results, which lie in it as `lattice` says.
pub(super) fn convolution(
    constants: &mut Constants,
    choices: &Choices,
    ([from, to], lattice): ([Spot; 2], Lattice),
    window: Sliding,
    filters: &Filters,
    (ending, zeros): (Ending, Spot),
) -> Result<Job, String> {
    let groups = filters.groups;
    let (pixels, words) = (to.shape.pixels(), to.words());
    let depth = (from.shape.c / groups).div_ceil(4);
    let pointwise = window.taps() == 1 && from.shape == Shape { c: from.shape.c, ..to.shape };
    let pointwise = pointwise && window.strides == [1, 1] && window.before == [0, 0];
    let pointwise = pointwise && lattice == Lattice::all(to.shape);
    let group_words = (groups > 1).then(|| words / groups);
    let (taps, group, half) = (window.taps(), group_words, constants.is_half());
    let task = Task::FloatConvolution { pixels, words, taps, depth, group, pointwise, half };
    let kernel = chosen(choices, task)?;
    let Float::Convolution { pixels: p, out, .. } = kernel else { return Err("it has no kernel".into()) };
    let columns = words.div_ceil(out as usize);
    let packed = constants.convolution(filters, &window, depth, columns * out as usize)?;
    let Sliding { kernel: size, strides, dilations, before } = window;
    let mut touches = ending.touches([from, to]);
    touches.push(zeros.buffer);
    let params = move |bases: Bases<'_>| {
        let [skip_base, skip_stride] = ending.skip(bases);
        let [first, first_a, first_b] = ending.first.bits();
        let [then, then_a, then_b] = ending.then.bits();
        let params = FloatConvolutionParams {
            in_base: from.at(bases),
            in_stride: from.stride as u32,
            in_width: from.shape.w as u32,
            in_height: from.shape.h as u32,
            out_base: to.at(bases),
            out_stride: to.stride as u32,
            out_width: to.shape.w as u32,
            out_words: words as u32,
            out_first: lattice.first as u32,
            out_down: lattice.down as u32,
            out_right: lattice.right as u32,
            pixels: pixels as u32,
            columns: columns as u32,
            depth: depth as u32,
            kernel_h: size[0] as u32,
            kernel_w: size[1] as u32,
            stride_h: strides[0] as u32,
            stride_w: strides[1] as u32,
            dilation_h: dilations[0] as u32,
            dilation_w: dilations[1] as u32,
            top: before[0] as u32,
            left: before[1] as u32,
            zeros: zeros.at(bases),
            weights: packed.weights,
            bias: packed.bias,
            group_words: group_words.map_or(u32::MAX, |own| own as u32),
            first,
            first_a,
            first_b,
            skip_base,
            skip_stride,
            then,
            then_a,
            then_b,
        };
        params.words()
    };
    let tiles = columns * pixels.div_ceil(p as usize);
    Ok(Job { kernel, task: Some(task), tiles, params: Box::new(params), touches, writes: to.buffer })
}

/// One filter a channel.
pub(super) fn depthwise(
    constants: &mut Constants,
    choices: &Choices,
    [from, to]: [Spot; 2],
    window: Sliding,
    filters: &Filters,
    ending: Ending,
) -> Result<Job, String> {
    let Shape { h, w, .. } = to.shape;
    let words = to.words();
    let packed = constants.depthwise(filters, &window)?;
    let Sliding { kernel: size, strides, dilations, before } = window;
    let known = Some([size[0] as u32, size[1] as u32, strides[1] as u32])
        .filter(|known| Float::WINDOWS.contains(known) && dilations == [1, 1]);
    let task = Task::FloatDepthwise { rows: h, columns: w, words, window: known, half: constants.is_half() };
    let kernel = chosen(choices, task)?;
    let Float::Depthwise { pixels, .. } = kernel else { return Err("it has no kernel".into()) };
    let touches = ending.touches([from, to]);
    let params = move |bases: Bases<'_>| {
        let [skip_base, skip_stride] = ending.skip(bases);
        let [first, first_a, first_b] = ending.first.bits();
        let [then, then_a, then_b] = ending.then.bits();
        let params = FloatDepthwiseParams {
            in_base: from.at(bases),
            in_stride: from.stride as u32,
            in_width: from.shape.w as u32,
            in_height: from.shape.h as u32,
            out_base: to.at(bases),
            out_stride: to.stride as u32,
            out_width: w as u32,
            out_height: h as u32,
            out_words: words as u32,
            kernel_h: size[0] as u32,
            kernel_w: size[1] as u32,
            stride_h: strides[0] as u32,
            stride_w: strides[1] as u32,
            dilation_h: dilations[0] as u32,
            dilation_w: dilations[1] as u32,
            top: before[0] as u32,
            left: before[1] as u32,
            weights: packed.weights,
            bias: packed.bias,
            first,
            first_a,
            first_b,
            skip_base,
            skip_stride,
            then,
            then_a,
            then_b,
        };
        params.words()
    };
    let tiles = h * w.div_ceil(pixels as usize) * words;
    Ok(Job { kernel, task: Some(task), tiles, params: Box::new(params), touches, writes: to.buffer })
}

/// What a pool makes of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooled {
    Maximum,
    /// The sum, divided by that or else by as many as lie inside.
    Mean(Option<usize>),
}

pub(super) fn pool(from: Spot, to: Spot, window: Sliding, pooled: Pooled) -> Job {
    let (pixels, words) = (to.shape.pixels(), to.words());
    let Sliding { kernel, strides, dilations, before } = window;
    let divisor = match pooled {
        Pooled::Mean(Some(divisor)) => divisor as u32,
        _ => 0,
    };
    let params = move |bases: Bases<'_>| {
        let params = FloatPoolParams {
            in_base: from.at(bases),
            in_stride: from.stride as u32,
            in_width: from.shape.w as u32,
            in_height: from.shape.h as u32,
            out_base: to.at(bases),
            out_stride: to.stride as u32,
            out_width: to.shape.w as u32,
            out_words: words as u32,
            pixels: pixels as u32,
            kernel_h: kernel[0] as u32,
            kernel_w: kernel[1] as u32,
            stride_h: strides[0] as u32,
            stride_w: strides[1] as u32,
            dilation_h: dilations[0] as u32,
            dilation_w: dilations[1] as u32,
            top: before[0] as u32,
            left: before[1] as u32,
            divisor,
        };
        params.words()
    };
    let kernel = Float::Pool { maximum: pooled == Pooled::Maximum };
    let touches = vec![from.buffer, to.buffer];
    Job { kernel, task: None, tiles: pixels * words, params: Box::new(params), touches, writes: to.buffer }
}

/// Over all pixels.
pub(super) fn mean(choices: &Choices, from: Spot, to: Spot, half: bool) -> Result<Job, String> {
    let words = to.words();
    let params = move |bases: Bases<'_>| {
        let params = FloatMeanParams {
            in_base: from.at(bases),
            in_stride: from.stride as u32,
            pixels: from.shape.pixels() as u32,
            out_base: to.at(bases),
            out_words: words as u32,
        };
        params.words()
    };
    let task = Task::FloatMean { pixels: from.shape.pixels(), words, half };
    let kernel = chosen(choices, task)?;
    let touches = vec![from.buffer, to.buffer];
    Ok(Job { kernel, task: Some(task), tiles: words, params: Box::new(params), touches, writes: to.buffer })
}

/// Two activations to one, of which either may have one pixel or one channel that goes with all; `operation` as in
/// [`andon_shaders::operation`].
pub(super) fn binary([a, b]: [Spot; 2], to: Spot, operation: u32, first: Activation) -> Job {
    let (pixels, words) = (to.shape.pixels(), to.words());
    let stride = move |spot: Spot| if spot.shape.pixels() == 1 { 0 } else { spot.stride as u32 };
    let step = move |spot: Spot| u32::from(spot.shape.c > 1 || to.shape.c == 1);
    let params = move |bases: Bases<'_>| {
        let [first, first_a, first_b] = first.bits();
        let params = FloatBinaryParams {
            a_base: a.at(bases),
            a_stride: stride(a),
            a_step: step(a),
            b_base: b.at(bases),
            b_stride: stride(b),
            b_step: step(b),
            out_base: to.at(bases),
            out_stride: to.stride as u32,
            out_words: words as u32,
            pixels: pixels as u32,
            channels: to.shape.c as u32,
            operation,
            first,
            first_a,
            first_b,
        };
        params.words()
    };
    let touches = vec![a.buffer, b.buffer, to.buffer];
    Job {
        kernel: Float::Binary,
        task: None,
        tiles: pixels * words,
        params: Box::new(params),
        touches,
        writes: to.buffer,
    }
}

/// All channels of `from` to where they begin at channel `offset` of `to`. What comes before them in their first quad must be
/// there already.
pub(super) fn copy(from: Spot, to: Spot, offset: usize) -> Job {
    let (pixels, shift) = (from.shape.pixels(), offset % 4);
    let words = (shift + from.shape.c).div_ceil(4);
    let to = Spot { first: to.first + offset / 4, ..to };
    let params = move |bases: Bases<'_>| {
        let params = FloatCopyParams {
            in_base: from.at(bases),
            in_stride: from.stride as u32,
            channels: from.shape.c as u32,
            out_base: to.at(bases),
            out_stride: to.stride as u32,
            out_words: words as u32,
            pixels: pixels as u32,
        };
        params.words()
    };
    let touches = vec![from.buffer, to.buffer];
    let kernel = Float::Copy { shift: shift as u32 };
    Job { kernel, task: None, tiles: pixels * words, params: Box::new(params), touches, writes: to.buffer }
}

/// A buffer of f32 by `[channel][pixel]`, as ONNX has them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planes {
    pub(super) buffer: usize,
    pub(super) words_per_quad: usize,
}

impl Planes {
    fn params(self, own: Spot) -> Box<dyn Fn(Bases<'_>) -> Vec<u32> + Send> {
        Box::new(move |bases: Bases<'_>| {
            let params = FloatPlanesParams {
                base: own.at(bases),
                stride: own.stride as u32,
                columns: own.words() as u32,
                pixels: own.shape.pixels() as u32,
                channels: own.shape.c as u32,
                planes: (bases[self.buffer] * self.words_per_quad) as u32,
            };
            params.words()
        })
    }

    /// What there is of an input.
    pub(super) fn take(self, to: Spot) -> Job {
        let touches = vec![self.buffer, to.buffer];
        let tiles = to.shape.pixels() * to.words();
        Job { kernel: Float::Take, task: None, tiles, params: self.params(to), touches, writes: to.buffer }
    }

    /// What there is to be of an output.
    pub(super) fn give(self, from: Spot) -> Job {
        let touches = vec![self.buffer, from.buffer];
        let tiles = from.shape.pixels() * from.words();
        Job {
            kernel: Float::Give,
            task: None,
            tiles,
            params: self.params(from),
            touches,
            writes: self.buffer,
        }
    }
}

/// Pixels of the input, row by row and column by column, or `fill` where there is none.
pub(super) fn select(
    constants: &mut Constants,
    [from, to]: [Spot; 2],
    [rows, columns]: [&[Option<usize>]; 2],
    fill: f32,
) -> Job {
    let mut table = |all: &[Option<usize>]| constants.table(all.iter().map(|i| i.map_or(NONE, |i| i as u32)));
    let (rows, columns) = (table(rows), table(columns));
    let (pixels, words) = (to.shape.pixels(), to.words());
    let params = move |bases: Bases<'_>| {
        let params = FloatSelectParams {
            in_base: from.at(bases),
            in_stride: from.stride as u32,
            in_width: from.shape.w as u32,
            out_base: to.at(bases),
            out_stride: to.stride as u32,
            out_width: to.shape.w as u32,
            out_words: words as u32,
            pixels: pixels as u32,
            rows,
            columns,
            fill: fill.to_bits(),
        };
        params.words()
    };
    let touches = vec![from.buffer, to.buffer];
    Job {
        kernel: Float::Select,
        task: None,
        tiles: pixels * words,
        params: Box::new(params),
        touches,
        writes: to.buffer,
    }
}

/// Mixed of four neighbours.
pub(super) fn mix(constants: &mut Constants, [from, to]: [Spot; 2], [rows, columns]: [&[Mix]; 2]) -> Job {
    let words_of =
        |Mix { at, weights }: &Mix| [at[0] as u32, at[1] as u32, weights[0].to_bits(), weights[1].to_bits()];
    let mut table = |all: &[Mix]| constants.table(all.iter().flat_map(words_of));
    let (rows, columns) = (table(rows), table(columns));
    let (pixels, words) = (to.shape.pixels(), to.words());
    let params = move |bases: Bases<'_>| {
        let params = FloatMixParams {
            in_base: from.at(bases),
            in_stride: from.stride as u32,
            in_width: from.shape.w as u32,
            out_base: to.at(bases),
            out_stride: to.stride as u32,
            out_width: to.shape.w as u32,
            out_words: words as u32,
            pixels: pixels as u32,
            rows,
            columns,
        };
        params.words()
    };
    let touches = vec![from.buffer, to.buffer];
    Job {
        kernel: Float::Mix,
        task: None,
        tiles: pixels * words,
        params: Box::new(params),
        touches,
        writes: to.buffer,
    }
}
