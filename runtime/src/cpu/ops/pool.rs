//! GlobalAveragePool (i32 sum, one f32 multiplier), AveragePool (f32 sums in the window's order, as ONNX Runtime), means
//! over all pixels or channels, MaxPool and GlobalMaxPool (on the bytes).

use super::{
    super::{
        convert::reals,
        describe::{self, Description},
        kernels::{Target, maxima, rint},
        lower::{Activation, Lowering, Outcome, Pending, Refusal},
        plan::{Context, Operation, Order, Quantity, Shape, View, ViewMut},
    },
    layout::{dimension, ints},
};
use crate::{graph::NodeId, shape};

const NO_SENSE: Refusal = Refusal::Form("its sizes make no sense");
const FAR_APART: Refusal = Refusal::Form("its scales are too far apart");

pub(super) fn lower_average(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let area = input.shape.h * input.shape.w;
    // The sum of that many bytes fits i32.
    if !(1..=1 << 22).contains(&area) {
        return Err(Refusal::Form("its input is empty or too large"));
    }
    let output = lowering.output_shape(id)?;
    if output != (Shape { h: 1, w: 1, c: input.shape.c }) {
        return Err(NO_SENSE);
    }
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let multiplier = input.quantity.scale / (result.scale * area as f32);
        if !multiplier.is_finite() {
            return Err(FAR_APART);
        }
        let zero_sum = i32::from(input.quantity.zero) * area as i32;
        Ok(Box::new(GlobalAverage { channels: input.shape.c, area, zero_sum, multiplier, target }))
    };
    Ok(Outcome::Mean(input, Pending::new(id, &[input], output, finish)))
}

struct GlobalAverage {
    channels: usize,
    area: usize,
    /// What the zero points alone sum up to.
    zero_sum: i32,
    multiplier: f32,
    target: Target,
}

impl GlobalAverage {
    fn byte(&self, sum: i32) -> u8 {
        let value = rint((sum - self.zero_sum) as f32 * self.multiplier) + i32::from(self.target.zero);
        value.clamp(self.target.low.into(), self.target.high.into()) as u8
    }
}

impl Operation for GlobalAverage {
    fn describe(&self) -> Option<Description<'_>> {
        let byte = Box::new(|sum| self.byte(sum));
        Some(Description::Mean { over_pixels: true, count: self.area, byte })
    }

    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let input = inputs[0];
        const CHUNK: usize = 64;
        for (chunk, output) in output.bytes.chunks_mut(CHUNK).enumerate() {
            let mut sums = [0i32; CHUNK];
            for pixel in input.pixels(self.channels) {
                let pixel = &pixel[chunk * CHUNK..][..output.len()];
                sums.iter_mut().zip(pixel).for_each(|(sum, q)| *sum += i32::from(*q));
            }
            output.iter_mut().zip(sums).for_each(|(out, sum)| *out = self.byte(sum));
        }
    }
}

/// ReduceMean over all pixels, or over the channels: exact sums, then f32 as ONNX says.
pub(super) fn lower_mean(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.activation(id, 0)?;
    let value = lowering.input(id, 0).ok_or(Refusal::Form("it has no input"))?;
    let rank = lowering.shapes().of(value).map_or(0, <[usize]>::len);
    let axes = ints(lowering, id, 1, "axes")?.unwrap_or_default();
    let axes = axes.into_iter().map(|axis| dimension(axis, rank));
    let mut axes: Vec<usize> = axes.collect::<Result<_, _>>()?;
    axes.sort_unstable();
    let spatial: Vec<usize> = (2..rank).collect();
    let output = lowering.output(id)?;
    let (order, over_pixels) = if rank > 2 && axes == spatial {
        (Order::ChannelsLast, true)
    } else if axes == [1] && rank > 2 {
        (Order::ChannelsLast, false)
    } else if rank > 0 && axes == [rank - 1] {
        (Order::RowMajor, false)
    } else {
        return Err(Refusal::Form("it is no mean of all pixels or of all channels"));
    };
    let input = lowering.ordered(id, input, value, order)?;
    // Without the dimensions that went, what is left lies row by row, the same bytes.
    let Shape { h, w, c } = input.shape;
    let kept = if over_pixels { Shape { h: 1, w: 1, c } } else { Shape { h, w, c: 1 } };
    let keeps = lowering.graph().proto(id).int("keepdims").unwrap_or(1) != 0;
    let rows = Order::RowMajor;
    let (shape, order) = if keeps { (kept, order) } else { (lowering.shape_in(output, rows)?, rows) };
    let count = input.shape.bytes() / kept.bytes();
    if shape.bytes() != kept.bytes() || count > 1 << 22 {
        return Err(NO_SENSE);
    }
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        // The largest sum there can be.
        if !(input.quantity.scale * (255 * count) as f32 / result.scale).is_finite() {
            return Err(FAR_APART);
        }
        let channels = [input.shape.c, shape.c];
        Ok(Box::new(Mean { over_pixels, channels, count, from: input.quantity, scale: result.scale, target }))
    };
    Ok(Outcome::Pending(Pending { order, ..Pending::new(id, &[input], shape, finish) }))
}

struct Mean {
    /// Over all pixels; otherwise over the channels of each.
    over_pixels: bool,
    /// Of the input and of the output.
    channels: [usize; 2],
    /// How many go into one.
    count: usize,
    from: Quantity,
    scale: f32,
    target: Target,
}

impl Mean {
    fn byte(&self, sum: i32) -> u8 {
        let Target { zero, low, high } = self.target;
        let zeros = i32::from(self.from.zero) * self.count as i32;
        let real = (sum - zeros) as f32 * self.from.scale / self.count as f32;
        (rint(real / self.scale) + i32::from(zero)).clamp(low.into(), high.into()) as u8
    }
}

impl Operation for Mean {
    fn describe(&self) -> Option<Description<'_>> {
        let byte = Box::new(|sum| self.byte(sum));
        Some(Description::Mean { over_pixels: self.over_pixels, count: self.count, byte })
    }

    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let byte = |sum| self.byte(sum);
        let pixels = || inputs[0].pixels(self.channels[0]);
        if self.over_pixels {
            /// Channels whose sums stay in registers or close by.
            const CHANNELS: usize = 128;
            for (part, out) in output.bytes.chunks_mut(CHANNELS).enumerate() {
                let mut sums = [0i32; CHANNELS];
                for pixel in pixels() {
                    let channels = pixel[part * CHANNELS..].iter();
                    sums.iter_mut().zip(channels).for_each(|(sum, q)| *sum += i32::from(*q));
                }
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = byte(sum));
            }
        } else {
            let out = output.pixels(self.channels[1]).flatten();
            let sums = pixels().map(|p| p.iter().map(|q| i32::from(*q)).sum());
            out.zip(sums).for_each(|(out, sum)| *out = byte(sum));
        }
    }
}

/// Of two dimensions, that makes such an output of such an input.
fn window(lowering: &Lowering<'_>, id: NodeId, [from, to]: [Shape; 2]) -> Result<shape::Window, Refusal> {
    let rank = lowering.input(id, 0).and_then(|value| lowering.shapes().of(value)).map(<[usize]>::len);
    let proto = lowering.graph().proto(id);
    let kernel: Option<Vec<usize>> =
        proto.ints("kernel_shape").and_then(|k| k.iter().map(|k| usize::try_from(*k).ok()).collect());
    let kernel = kernel
        .filter(|k| k.len() == 2 && rank == Some(4))
        .ok_or(Refusal::Form("it has not two spatial dimensions"))?;
    let window = shape::Window::of(proto, &kernel).ok_or(Refusal::Form("its window makes no sense"))?;
    let fits = from.c == to.c && window.output(&[from.h, from.w]).is_some_and(|out| out == [to.h, to.w]);
    if fits { Ok(window) } else { Err(NO_SENSE) }
}

pub(super) fn lower_window_average(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let output = lowering.output_shape(id)?;
    let window = window(lowering, id, [input.shape, output])?;
    let counts_padding = lowering.graph().proto(id).int("count_include_pad").unwrap_or(0) != 0;
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let (window, values) = (window.clone(), Box::new(reals(input.quantity)));
        let base = if input.signed { 0x80 } else { 0 };
        let (input, scale) = (input.shape, result.scale);
        Ok(Box::new(Average { window, input, output, values, counts_padding, scale, base, target }))
    };
    Ok(Outcome::Pending(Pending::new(id, &[input], output, finish)))
}

/// Off-spec: the zero point joins before rounding; it is that of s8 where the bytes are.
struct Average {
    window: shape::Window,
    input: Shape,
    output: Shape,
    values: Box<[f32; 256]>,
    counts_padding: bool,
    scale: f32,
    /// What bytes that stand for s8 have more than those.
    base: u8,
    target: Target,
}

impl Average {
    fn byte(&self, sum: f32, count: usize) -> u8 {
        let Target { zero, low, high } = self.target;
        let zero = f32::from(zero) - f32::from(self.base);
        let value = rint(sum / count.max(1) as f32 / self.scale + zero) + i32::from(self.base);
        value.clamp(low.into(), high.into()) as u8
    }
}

impl Operation for Average {
    fn describe(&self) -> Option<Description<'_>> {
        let Self { window, input, output, counts_padding, values, .. } = self;
        let count = |d: usize, out: usize, size: usize| {
            if *counts_padding {
                with_padding(window, d, out, size)
            } else {
                inside(window, d, out, size).count()
            }
        };
        let rows = (0..output.h).map(|y| count(0, y, input.h)).collect();
        let columns = (0..output.w).map(|x| count(1, x, input.w)).collect();
        Some(Description::Average {
            window: described(window, *input),
            input: *input,
            output: *output,
            counts: [rows, columns],
            values,
            byte: Box::new(|sum, count| self.byte(sum, count)),
        })
    }

    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let Shape { h, w, c } = self.input;
        let mut sums = vec![0.0f32; c];
        for (i, pixel) in output.pixels(c).enumerate() {
            let (y, x) = (i / self.output.w, i % self.output.w);
            sums.fill(0.0);
            let mut count = 0;
            for y in inside(&self.window, 0, y, h) {
                for x in inside(&self.window, 1, x, w) {
                    let from = &inputs[0].bytes[(y * w + x) * inputs[0].stride..][..c];
                    sums.iter_mut().zip(from).for_each(|(sum, q)| *sum += self.values[usize::from(*q)]);
                    count += 1;
                }
            }
            if self.counts_padding {
                count = with_padding(&self.window, 0, y, h) * with_padding(&self.window, 1, x, w);
            }
            pixel.iter_mut().zip(&sums).for_each(|(out, sum)| *out = self.byte(*sum, count));
        }
    }
}

/// Input positions under a window along one dimension.
fn inside(window: &shape::Window, d: usize, out: usize, size: usize) -> impl Iterator<Item = usize> {
    let (before, _) = window.pads(d, size);
    let (first, dilation) = (out * window.strides[d], window.dilations[d]);
    let taps = (0..window.kernel[d]).map(move |k| (first + k * dilation).checked_sub(before));
    taps.flatten().filter(move |at| *at < size)
}

/// Positions under a window, padding counted, but not what a rounded-up size adds behind it.
fn with_padding(window: &shape::Window, d: usize, out: usize, size: usize) -> usize {
    let (before, after) = window.pads(d, size);
    let taps = (0..window.kernel[d]).map(|k| out * window.strides[d] + k * window.dilations[d]);
    taps.filter(|at| *at < before + size + after).count()
}

/// GlobalMaxPool: a window as large as the input.
pub(super) fn lower_global_max(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let output = lowering.output_shape(id)?;
    if output != (Shape { h: 1, w: 1, c: input.shape.c }) {
        return Err(NO_SENSE);
    }
    let window = shape::Window {
        kernel: vec![input.shape.h, input.shape.w],
        strides: vec![1, 1],
        dilations: vec![1, 1],
        pads: shape::Pads::Explicit(vec![0; 4]),
        ceil: false,
    };
    let made = lowering.step(id, &[input], output, Box::new(Max { window, input: input.shape, output }));
    Ok(Outcome::Real(Activation { made, offset: 0, shape: output, ..input }))
}

pub(super) fn lower_max(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let output = lowering.output_shape(id)?;
    let window = window(lowering, id, [input.shape, output])?;
    // The largest byte has the largest value.
    let made = lowering.step(id, &[input], output, Box::new(Max { window, input: input.shape, output }));
    Ok(Outcome::Real(Activation { made, offset: 0, shape: output, ..input }))
}

/// Taps of a window that are looked at together; further ones come one by one.
const TAPS_MAX: usize = 256;

struct Max {
    window: shape::Window,
    input: Shape,
    output: Shape,
}

/// A window of two dimensions on an input of that shape.
fn described(window: &shape::Window, input: Shape) -> describe::Window {
    let two = |v: &[usize]| [v[0], v[1]];
    describe::Window {
        kernel: two(&window.kernel),
        strides: two(&window.strides),
        dilations: two(&window.dilations),
        before: [window.pads(0, input.h).0, window.pads(1, input.w).0],
    }
}

impl Operation for Max {
    fn describe(&self) -> Option<Description<'_>> {
        let Self { window, input, output } = self;
        let window = described(window, *input);
        Some(Description::Maximum { window, input: *input, output: *output })
    }

    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let (isa, input) = (context.isa, inputs[0]);
        let Shape { h, w, c } = self.input;
        let line = output.stride.max(1);
        let size = context.team.piece(output.bytes.len(), line, 4 << 10);
        // From the first input position of a window that is inside as a whole.
        let [kh, kw] = [self.window.kernel[0], self.window.kernel[1]];
        let [down, right] = [self.window.dilations[0], self.window.dilations[1]];
        let inner: Vec<usize> = if kh * kw <= TAPS_MAX {
            let at = |y: usize, x: usize| (y * down * w + x * right) * input.stride;
            (0..kh).flat_map(|y| (0..kw).map(move |x| at(y, x))).collect()
        } else {
            vec![]
        };
        let first = |d: usize, out: usize, size: usize| {
            let before = self.window.pads(d, size).0;
            let first = (out * self.window.strides[d]).checked_sub(before)?;
            (first + self.window.extent(d) <= size).then_some(first)
        };
        context.team.pieces(output.bytes, size, |part, output| {
            let mut taps = [0; TAPS_MAX];
            for (i, pixel) in output.chunks_mut(line).enumerate() {
                let (i, pixel) = (part * (size / line) + i, &mut pixel[..c]);
                let (y, x) = (i / self.output.w, i % self.output.w);
                if let Some((y, x)) = first(0, y, h).zip(first(1, x, w))
                    && !inner.is_empty()
                {
                    maxima(isa, &input.bytes[(y * w + x) * input.stride..], &inner, pixel);
                    continue;
                }
                // Padding never wins: it counts as the least byte.
                let mut count = 0;
                for y in inside(&self.window, 0, y, h) {
                    for x in inside(&self.window, 1, x, w) {
                        let tap = (y * w + x) * input.stride;
                        if let Some(free) = taps.get_mut(count) {
                            *free = tap;
                        } else if count == TAPS_MAX {
                            maxima(isa, input.bytes, &taps, pixel);
                        }
                        count += 1;
                        if count > TAPS_MAX {
                            pixel
                                .iter_mut()
                                .zip(&input.bytes[tap..])
                                .for_each(|(out, q)| *out = (*out).max(*q));
                        }
                    }
                }
                if count <= TAPS_MAX {
                    maxima(isa, input.bytes, &taps[..count], pixel);
                }
            }
        });
    }
}
