//! What the `cpu` engine executes: [`Plan`], a list of steps over byte buffers in one arena.
//!
//! Activations are u8, NHWC, batch 1. Two buffers that are never needed at one time may share their place in the arena;
//! a step's output never shares with its inputs. The plan is made once ([`super::lower`]); running it allocates nothing but
//! the outputs.

use std::{ops::Range, sync::Arc};

use super::kernels::Isa;
use crate::{
    graph::NodeId,
    tensor::{Data, Tensor},
};

/// Real value of a byte: `(q - zero) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quantity {
    pub(super) scale: f32,
    pub(super) zero: u8,
}

/// Height, width, channels. A vector has height and width 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) c: usize,
}

impl Shape {
    pub(super) fn bytes(self) -> usize {
        self.h * self.w * self.c
    }
}

/// Index into [`Plan::buffers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BufferId(pub(super) usize);

/// Where an activation lies: a buffer, or some of the channels of each of its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) buffer: BufferId,
    /// Bytes before the first channel of the first pixel.
    pub(super) offset: usize,
    /// Bytes from one pixel to the next: at least the channels.
    pub(super) stride: usize,
    pub(super) shape: Shape,
}

impl Place {
    pub(super) fn whole(buffer: BufferId, shape: Shape) -> Self {
        Self { buffer, offset: 0, stride: shape.c, shape }
    }

    /// From the first byte of the first pixel to the last of the last.
    fn length(&self) -> usize {
        let pixels = self.shape.h * self.shape.w;
        pixels.checked_sub(1).map_or(0, |before| before * self.stride + self.shape.c)
    }
}

/// An input of a step: pixel `i` has its channels from `i * stride` on; nothing comes after the last.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) stride: usize,
}

/// The output of a step. What lies between the channels of two pixels is not the step's to change.
pub(super) struct ViewMut<'a> {
    pub(super) bytes: &'a mut [u8],
    pub(super) stride: usize,
}

impl<'a> View<'a> {
    /// The channels of each pixel, `channels` of them.
    pub(super) fn pixels(self, channels: usize) -> impl Iterator<Item = &'a [u8]> {
        self.bytes.chunks(self.stride.max(1)).map(move |pixel| &pixel[..channels])
    }
}

impl ViewMut<'_> {
    pub(super) fn pixels(&mut self, channels: usize) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_mut(self.stride.max(1)).map(move |pixel| &mut pixel[..channels])
    }
}

/// Memory that steps use while they run, kept from one to the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) bytes: Vec<u8>,
    pub(super) words: Vec<i16>,
}

impl Scratch {
    /// At least so many of each; what is in them is left over from before.
    pub(super) fn reserve(&mut self, bytes: usize, words: usize) {
        if self.bytes.len() < bytes {
            self.bytes.resize(bytes, 0);
        }
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
    }
}

/// What steps have in common while they run.
pub(super) struct Context<'a> {
    pub(super) isa: Isa,
    pub(super) scratch: &'a mut Scratch,
}

/// Bytes to bytes. Implementations check their shapes when they are made: `run` gets inputs and an output of the shapes
/// that were agreed on then; only strides are news.
pub(super) trait Operation: Send + Sync {
    /// `inputs`: as many as the step has.
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>);
}

pub(super) struct Step {
    /// The node whose work this is.
    pub(super) node: NodeId,
    /// The second is the first again where there is only one.
    pub(super) inputs: [Place; 2],
    pub(super) output: Place,
    pub(super) operation: Box<dyn Operation>,
}

/// A float input of the graph, quantised to its buffer.
pub(super) struct Entry {
    /// Index of the input.
    pub(super) input: usize,
    pub(super) shape: Shape,
    pub(super) quantity: Quantity,
    pub(super) buffer: BufferId,
}

/// An output, in the order of the request.
pub(super) struct Exit {
    pub(super) buffer: BufferId,
    pub(super) shape: Shape,
    /// Dimensions of the ONNX value: `[1, c, h, w]` or fewer.
    pub(super) dims: Vec<usize>,
    pub(super) quantity: Quantity,
    pub(super) form: ExitForm,
}

pub(super) enum ExitForm {
    /// u8 as they are.
    Bytes,
    Real(Tail),
}

/// What a network that was left in float at its end does there, f32. One after the other:
#[derive(Clone, Default)]
pub(super) struct Tail {
    /// The mean of each channel.
    pub(super) mean: bool,
    /// A product with a matrix, plus a bias.
    pub(super) dense: Option<Arc<Dense>>,
}

/// `y[o] = sum(x[i] * weights[o * inputs + i]) + bias[o]`, in f32.
pub(super) struct Dense {
    pub(super) inputs: usize,
    pub(super) weights: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl Dense {
    /// Eight running sums, added up in one fixed order: the same bits on every machine.
    fn run(&self, x: &[f32]) -> Vec<f32> {
        let row = |(weights, bias): (&[f32], &f32)| {
            let mut sums = [0.0f32; 8];
            let ((xs, x_rest), (ws, w_rest)) = (x.as_chunks::<8>(), weights.as_chunks::<8>());
            for (x, w) in xs.iter().zip(ws) {
                for (sum, (x, w)) in sums.iter_mut().zip(x.iter().zip(w)) {
                    *sum += x * w;
                }
            }
            let rest = x_rest.iter().zip(w_rest).fold(0.0, |sum, (x, w)| sum + x * w);
            let [a, b, c, d, e, f, g, h] = sums;
            ((a + e) + (b + f)) + ((c + g) + (d + h)) + rest + bias
        };
        self.weights.chunks_exact(self.inputs.max(1)).zip(&self.bias).map(row).collect()
    }
}

pub(super) struct Plan {
    pub(super) entries: Vec<Entry>,
    pub(super) steps: Vec<Step>,
    pub(super) exits: Vec<Exit>,
    /// Where each buffer lies in the arena.
    buffers: Vec<Range<usize>>,
    pub(super) arena_bytes: usize,
}

impl Plan {
    /// `sizes`: bytes of each buffer.
    pub(super) fn new(entries: Vec<Entry>, steps: Vec<Step>, exits: Vec<Exit>, sizes: &[usize]) -> Self {
        let (buffers, arena_bytes) = arrange(sizes, &lifetimes(&entries, &steps, &exits, sizes.len()));
        Self { entries, steps, exits, buffers, arena_bytes }
    }

    /// `inputs` have the types and shapes of the request; `arena` has `arena_bytes`.
    pub(super) fn run(
        &self,
        isa: Isa,
        inputs: &[&Tensor],
        arena: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<Vec<Tensor>, String> {
        for entry in &self.entries {
            let values =
                inputs.get(entry.input).and_then(|t| t.as_f32()).ok_or("an input is missing or not f32")?;
            quantise(values, entry, &mut arena[self.buffers[entry.buffer.0].clone()]);
        }
        let mut context = Context { isa, scratch };
        for step in &self.steps {
            let place = &self.buffers[step.output.buffer.0];
            let (before, rest) = arena.split_at_mut(place.start);
            let (output, after) = rest.split_at_mut(place.len());
            // What comes before the output's buffer, and what comes after it: an input never lies in it.
            let input = |from: Place| {
                let Range { start, end } = self.buffers[from.buffer.0];
                let buffer = if end <= place.start {
                    &before[start..end]
                } else {
                    &after[start - place.end..end - place.end]
                };
                View { bytes: &buffer[from.offset..][..from.length()], stride: from.stride }
            };
            let bytes = &mut output[step.output.offset..][..step.output.length()];
            let output = ViewMut { bytes, stride: step.output.stride };
            step.operation.run(&mut context, &step.inputs.map(input), output);
        }
        self.exits.iter().map(|exit| finish(exit, &arena[self.buffers[exit.buffer.0].clone()])).collect()
    }
}

/// NCHW f32 to NHWC u8: `rint(x / scale) + zero`, clamped.
fn quantise(values: &[f32], entry: &Entry, out: &mut [u8]) {
    let Quantity { scale, zero } = entry.quantity;
    let (c, area) = (entry.shape.c, entry.shape.h * entry.shape.w);
    for (channel, plane) in values.chunks_exact(area.max(1)).enumerate().take(c) {
        for (pixel, value) in out.chunks_exact_mut(c).zip(plane) {
            pixel[channel] = (super::kernels::rint(value / scale) + i32::from(zero)).clamp(0, 255) as u8;
        }
    }
}

fn finish(exit: &Exit, bytes: &[u8]) -> Result<Tensor, String> {
    let Shape { h, w, c } = exit.shape;
    let Quantity { scale, zero } = exit.quantity;
    let plane = |channel: usize| bytes.iter().skip(channel).step_by(c.max(1)).take(h * w);
    let real = |q: &u8| (f32::from(*q) - f32::from(zero)) * scale;
    let mean = |channel: usize| {
        // Exact up to the one division.
        let sum: i64 = plane(channel).map(|q| i64::from(*q) - i64::from(zero)).sum();
        sum as f32 * scale / (h * w) as f32
    };
    let data = match &exit.form {
        ExitForm::Bytes => Data::U8((0..c).flat_map(plane).copied().collect()),
        ExitForm::Real(tail) => {
            let values: Vec<f32> = if tail.mean {
                (0..c).map(mean).collect()
            } else {
                (0..c).flat_map(plane).map(real).collect()
            };
            Data::F32(match &tail.dense {
                Some(dense) => dense.run(&values),
                None => values,
            })
        }
    };
    Tensor::new(exit.dims.clone(), data).map_err(|e| e.to_string())
}

/// First and last moment at which each buffer is needed: 0 is before the first step, step `i` runs at `i + 1`.
fn lifetimes(entries: &[Entry], steps: &[Step], exits: &[Exit], count: usize) -> Vec<Range<usize>> {
    let mut lives: Vec<Option<Range<usize>>> = vec![None; count];
    let mut need = |id: BufferId, at: usize| {
        let life = lives[id.0].get_or_insert(at..at + 1);
        *life = life.start.min(at)..life.end.max(at + 1);
    };
    entries.iter().for_each(|entry| need(entry.buffer, 0));
    for (i, step) in steps.iter().enumerate() {
        step.inputs.iter().for_each(|input| need(input.buffer, i + 1));
        need(step.output.buffer, i + 1);
    }
    exits.iter().for_each(|exit| need(exit.buffer, steps.len() + 1));
    lives.into_iter().map(Option::unwrap_or_default).collect()
}

/// Places buffers, largest first, each at the lowest offset that is free during its life. Returns the places and the
/// size of the whole.
fn arrange(sizes: &[usize], lives: &[Range<usize>]) -> (Vec<Range<usize>>, usize) {
    /// A cache line.
    const ALIGNMENT: usize = 64;
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(sizes[*i]), *i));
    let mut places = vec![0..0; sizes.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let meets = |j: &usize| lives[*j].start < lives[i].end && lives[i].start < lives[*j].end;
        let mut taken: Vec<Range<usize>> =
            placed.iter().filter(|j| meets(j)).map(|j| places[*j].clone()).collect();
        taken.sort_by_key(|range| range.start);
        let mut start = 0;
        for range in taken {
            if range.start >= start + sizes[i] {
                break;
            }
            start = start.max(range.end.next_multiple_of(ALIGNMENT));
        }
        places[i] = start..start + sizes[i];
        total = total.max(places[i].end);
        placed.push(i);
    }
    (places, total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn buffers_alive_together_do_not_overlap(
            buffers in prop::collection::vec((1usize..500, 0usize..20, 1usize..6), 1..40),
        ) {
            let sizes: Vec<usize> = buffers.iter().map(|b| b.0).collect();
            let lives: Vec<Range<usize>> = buffers.iter().map(|b| b.1..b.1 + b.2).collect();
            let (places, total) = arrange(&sizes, &lives);
            for i in 0..sizes.len() {
                prop_assert!(places[i].len() == sizes[i] && places[i].end <= total);
                for j in 0..i {
                    let together = lives[i].start < lives[j].end && lives[j].start < lives[i].end;
                    let apart = places[i].end <= places[j].start || places[j].end <= places[i].start;
                    prop_assert!(!together || apart, "{:?} {:?}", places[i], places[j]);
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_buffers() {
        let lives = [0..2, 1..3, 2..4, 3..5];
        assert_eq!(arrange(&[64, 64, 64, 64], &lives).1, 128);
    }
}
