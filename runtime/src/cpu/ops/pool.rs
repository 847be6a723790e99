//! GlobalAveragePool (i32 sum, one f32 multiplier) and MaxPool (on the bytes).

use super::super::{
    kernels::{Target, rint},
    lower::{Activation, Lowering, Outcome, Pending, Refusal},
    plan::{Context, Operation, Quantity, Shape, View, ViewMut},
};
use crate::{graph::NodeId, shape};

pub(super) fn lower_average(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let area = input.shape.h * input.shape.w;
    // The sum of that many bytes fits i32.
    if !(1..=1 << 22).contains(&area) {
        return Err(Refusal::Form("its input is empty or too large"));
    }
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let multiplier = input.quantity.scale / (result.scale * area as f32);
        let zero_sum = i32::from(input.quantity.zero) * area as i32;
        Ok(Box::new(GlobalAverage { channels: input.shape.c, zero_sum, multiplier, target }))
    };
    Ok(Outcome::Mean(input, Pending::new(id, &[input], lowering.output_shape(id)?, finish)))
}

struct GlobalAverage {
    channels: usize,
    /// What the zero points alone sum up to.
    zero_sum: i32,
    multiplier: f32,
    target: Target,
}

impl Operation for GlobalAverage {
    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let input = inputs[0];
        const CHUNK: usize = 64;
        for (chunk, output) in output.bytes.chunks_mut(CHUNK).enumerate() {
            let mut sums = [0i32; CHUNK];
            for pixel in input.pixels(self.channels) {
                let pixel = &pixel[chunk * CHUNK..][..output.len()];
                sums.iter_mut().zip(pixel).for_each(|(sum, q)| *sum += i32::from(*q));
            }
            for (out, sum) in output.iter_mut().zip(sums) {
                let value =
                    rint((sum - self.zero_sum) as f32 * self.multiplier) + i32::from(self.target.zero);
                *out = value.clamp(self.target.low.into(), self.target.high.into()) as u8;
            }
        }
    }
}

pub(super) fn lower_max(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let output = lowering.output_shape(id)?;
    let proto = lowering.graph().proto(id);
    let kernel: Option<Vec<usize>> =
        proto.ints("kernel_shape").and_then(|k| k.iter().map(|k| usize::try_from(*k).ok()).collect());
    let kernel = kernel.filter(|k| k.len() == 2).ok_or(Refusal::Form("it has not two spatial dimensions"))?;
    let window = shape::Window::of(proto, &kernel).ok_or(Refusal::Form("its window makes no sense"))?;
    // The largest byte has the largest value.
    let made = lowering.step(id, &[input], output, Box::new(Max { window, input: input.shape, output }));
    Ok(Outcome::Real(Activation { made, offset: 0, shape: output, ..input }))
}

struct Max {
    window: shape::Window,
    input: Shape,
    output: Shape,
}

impl Operation for Max {
    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let input = inputs[0];
        let Shape { h, w, c } = self.input;
        let (top, left) = (self.window.pads(0, h).0, self.window.pads(1, w).0);
        let [kernel, strides, dilations] =
            [&self.window.kernel, &self.window.strides, &self.window.dilations];
        // Padding never wins: it counts as the least byte.
        let inside = |d: usize, out: usize, before: usize, size: usize| {
            let taps = (0..kernel[d]).map(move |k| (out * strides[d] + k * dilations[d]).checked_sub(before));
            taps.flatten().filter(move |at| *at < size)
        };
        for (i, pixel) in output.pixels(c).enumerate() {
            pixel.fill(0);
            for y in inside(0, i / self.output.w, top, h) {
                for x in inside(1, i % self.output.w, left, w) {
                    let from = &input.bytes[(y * w + x) * input.stride..][..c];
                    pixel.iter_mut().zip(from).for_each(|(out, q)| *out = (*out).max(*q));
                }
            }
        }
    }
}
