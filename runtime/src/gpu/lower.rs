//! From what steps of the plan compute to what the GPU runs for them: [`Job`]s, each one dispatch of a kernel.
//!
//! A step whose places do not lie as kernels read and write them gets copies before or behind it. Where buffers lie in the
//! arena is not known yet when a job is made, so that its parameters are a function of that.

use andon_shaders::{
    BinaryParams, CopyParams, LookupParams, MaximumParams, MeanParams, NONE, SelectParams, Variant,
};

use super::{
    choice::{Choices, Task},
    constants::{Constants, JoinFields},
    ends::Given,
    exact,
    layout::{Layout, Spot},
};
use crate::cpu::{
    Place, Shape,
    describe::{Description, Window},
};

/// Where each buffer begins in the arena, in bytes.
pub(crate) type Bases<'a> = &'a [usize];

/// One dispatch.
pub(crate) struct Job {
    pub(crate) variant: Variant,
    /// What threads, or as many as share one, do one by one.
    pub(crate) tiles: usize,
    pub(crate) params: Box<dyn Fn(Bases<'_>) -> Vec<u32> + Send>,
    /// Buffers that it reads or writes.
    pub(crate) touches: Vec<usize>,
    /// The step of the plan whose work it is.
    pub(crate) step: usize,
    /// What the variant was chosen for.
    pub(crate) task: Option<Task>,
    /// It runs only if the first input is that.
    pub(crate) given: Option<Given>,
}

pub(crate) struct Lowering {
    pub(crate) layout: Layout,
    pub(crate) constants: Constants,
    pub(crate) jobs: Vec<Job>,
    /// Bytes of each buffer: the plan's, then those that only the GPU needs.
    pub(crate) sizes: Vec<usize>,
    /// Bytes that lie around the input of convolutions, and the buffers that hold nothing else.
    pub(crate) pads: Vec<(u8, usize)>,
    /// What lies in the arena from the start, byte by byte of each pixel, for good.
    pub(crate) fixtures: Vec<(Spot, Vec<u8>)>,
    pub(super) choices: Choices,
    step: usize,
    /// Of the next job.
    task: Option<Task>,
    given: Option<Given>,
}

/// Bytes in the arena that a copy reads or writes.
#[derive(Debug, Clone)]
struct Bytes {
    buffer: usize,
    offset: isize,
    /// How far apart neighbours are along each dimension of the pixels, outermost first, and from channel to channel.
    dims: Vec<(usize, isize)>,
    channel: isize,
}

impl Bytes {
    fn of(spot: &Spot) -> Self {
        let dims = vec![(spot.shape.pixels(), spot.stride as isize)];
        Self { buffer: spot.buffer, offset: spot.offset as isize, dims, channel: 1 }
    }
}

/// An offset in words.
pub(super) fn at(spot: Spot, bases: Bases<'_>) -> u32 {
    ((bases[spot.buffer] + spot.offset) / 4) as u32
}

/// An activation's word of the byte four times.
pub(super) fn word_of(byte: u8) -> u32 {
    u32::from(byte ^ 0x80) * 0x0101_0101
}

impl Lowering {
    pub(crate) fn new(layout: Layout, choices: Choices) -> Self {
        let sizes = layout.sizes.clone();
        let constants = Constants::default();
        let (jobs, pads, fixtures) = (vec![], vec![], vec![]);
        let (step, task, given) = (0, None, None);
        Self { layout, constants, jobs, sizes, pads, fixtures, choices, step, task, given }
    }

    /// So many bytes that are all the same, whatever runs.
    pub(super) fn pad(&mut self, byte: u8, bytes: usize) -> Spot {
        let bytes = bytes.next_multiple_of(16);
        let shape = Shape { h: 1, w: 1, c: bytes };
        let known = self.pads.iter().find(|(own, _)| *own == byte).map(|(_, buffer)| *buffer);
        let spot = match known {
            Some(buffer) => Spot::whole(buffer, shape),
            None => {
                let spot = self.buffer(shape);
                self.pads.push((byte, spot.buffer));
                spot
            }
        };
        self.sizes[spot.buffer] = self.sizes[spot.buffer].max(bytes);
        spot
    }

    pub(crate) fn buffer(&mut self, shape: Shape) -> Spot {
        let spot = Spot::whole(self.sizes.len(), shape);
        self.sizes.push(spot.bytes());
        spot
    }

    pub(super) fn push(
        &mut self,
        variant: Variant,
        tiles: usize,
        touches: &[Spot],
        params: impl Fn(Bases<'_>) -> Vec<u32> + Send + 'static,
    ) {
        let touches = touches.iter().map(|spot| spot.buffer).collect();
        let (params, step) = (Box::new(params), self.step);
        let (task, given) = (self.task.take(), self.given.take());
        self.jobs.push(Job { variant, tiles, params, touches, step, task, given });
    }

    /// Jobs from now on are those of a step.
    pub(super) fn begin(&mut self, step: usize) {
        self.step = step;
    }

    /// The next job runs only if the first input is that.
    pub(super) fn given(&mut self, given: Option<Given>) {
        self.given = given;
    }

    /// The variant for the next job.
    pub(super) fn choose(&mut self, task: Task) -> Variant {
        self.task = Some(task);
        self.choices.choose(task)
    }

    /// Whether the step can run on the GPU; then its jobs are there.
    pub(crate) fn step(
        &mut self,
        step: usize,
        description: &Description<'_>,
        inputs: &[Place],
        output: &Place,
    ) -> bool {
        self.step = step;
        let (jobs, sizes) = (self.jobs.len(), self.sizes.len());
        let (pads, fixtures) = (self.pads.len(), self.fixtures.len());
        let inputs: Vec<Spot> = inputs.iter().map(|place| self.layout.spot(place)).collect();
        let to = self.layout.spot(output);
        if self.described(description, &inputs, to).is_none() {
            self.jobs.truncate(jobs);
            self.sizes.truncate(sizes);
            self.pads.truncate(pads);
            self.fixtures.truncate(fixtures);
            return false;
        }
        true
    }

    fn described(&mut self, description: &Description<'_>, inputs: &[Spot], to: Spot) -> Option<()> {
        if let Description::Strided { dims, start } = description {
            let from = inputs.first()?;
            let bytes = |[pixels, channels]: [isize; 2]| pixels * from.stride as isize + channels;
            let ((_, channel), outer) = dims.split_last()?;
            let dims = outer.iter().map(|(size, step)| (*size, bytes(*step))).collect();
            let offset = from.offset as isize + bytes(*start);
            let source = Bytes { buffer: from.buffer, offset, dims, channel: bytes(*channel) };
            // The output's own pixels may be counted in another way than the place does.
            let channels = dims_last(description)?;
            let to = if to.shape.c == channels { to } else { return None };
            return self.copy(source, to);
        }
        let out = if to.writable() { to } else { self.buffer(to.shape) };
        match description {
            Description::Convolution(convolution) => self.convolution(convolution, inputs, out)?,
            Description::Binary { byte, slopes, stretched, table } => {
                let [a, b] = [self.readable(*inputs.first()?)?, self.readable(*inputs.get(1)?)?];
                let join = self.constants.join(&exact::join(byte, *slopes), *table);
                self.binary([a, b], *stretched, out, join);
            }
            Description::Lookup { tables } => {
                let from = self.readable(*inputs.first()?)?;
                let mut all: Vec<u8> = tables.iter().flat_map(|table| table.iter().copied()).collect();
                let apart = if tables.len() > 1 { 64 } else { 0 };
                if apart > 0 {
                    // Channels that fill up the last word are looked up too.
                    all.resize(out.words() * 4 * 256, 0);
                }
                let table = self.constants.bytes(&all);
                self.lookup(from, out, table, apart);
            }
            Description::Select { rows, columns, channels, width, fill } => {
                let from = self.readable(*inputs.first()?)?;
                let list = |list: &[Option<usize>]| -> Vec<u32> {
                    list.iter().map(|at| at.map_or(NONE, |at| at as u32)).collect()
                };
                let lists = [self.constants.list(list(rows)), self.constants.list(list(columns))];
                let channels = channels.map_or(NONE, |channels| {
                    let mut all = list(channels);
                    all.resize(out.words() * 4, NONE);
                    self.constants.list(all)
                });
                self.select(from, out, lists, channels, [*width, columns.len()], *fill);
            }
            Description::Maximum { window, input, output } => {
                let from = self.readable(*inputs.first()?)?;
                self.maximum(from, out, *window, *input, *output);
            }
            Description::Mean { over_pixels: true, count, byte } => {
                let from = self.readable(*inputs.first()?)?;
                let most = i32::try_from(*count).ok()?.checked_mul(255)?;
                let stairs = exact::stairs(byte, 0, most)?;
                let stairs = self.constants.integers(&stairs);
                self.mean(from, out, stairs);
            }
            Description::Interleaved { parts, strides, width } => {
                self.interleaved(parts, *strides, *width, inputs, out)?;
            }
            other => self.other(other, inputs, out)?,
        }
        if out != to {
            self.copy(Bytes::of(&out), to)?;
        }
        Some(())
    }

    /// The same activation where kernels can read it in words.
    pub(super) fn readable(&mut self, from: Spot) -> Option<Spot> {
        if from.in_words() {
            return Some(from);
        }
        let to = self.buffer(from.shape);
        self.copy(Bytes::of(&from), to)?;
        Some(to)
    }

    fn copy(&mut self, from: Bytes, to: Spot) -> Option<()> {
        const DIMENSIONS: usize = 6;
        // Neighbouring dimensions that one step runs through are one; those of size 1 none.
        let mut dims: Vec<(usize, isize)> = vec![];
        for (size, step) in from.dims.iter().copied().filter(|(size, _)| *size != 1) {
            match dims.last_mut() {
                Some((outer, outer_step)) if *outer_step == step * size as isize => {
                    (*outer, *outer_step) = (*outer * size, step);
                }
                _ => dims.push((size, step)),
            }
        }
        if dims.len() > DIMENSIONS {
            return None;
        }
        let (pixels, channels) = (to.shape.pixels(), to.shape.c);
        let last = to.offset + (pixels - 1) * to.stride + channels;
        let count = last.div_ceil(4) - to.offset / 4;
        let source = Spot { buffer: from.buffer, ..to };
        self.push(Variant::Copy, count, &[source, to], move |bases| {
            // The innermost first.
            let dim = |i: usize| {
                dims.iter().rev().nth(i).map_or((1, 0), |(size, step)| (*size as u32, *step as u32))
            };
            let [d0, d1, d2, d3, d4, d5] = std::array::from_fn(dim);
            let params = CopyParams {
                in_base: (bases[from.buffer] as isize + from.offset) as u32,
                channel_step: from.channel as u32,
                out_base: (bases[to.buffer] + to.offset) as u32,
                out_stride: to.stride as u32,
                channels: channels as u32,
                pixels: pixels as u32,
                count: count as u32,
                size_0: d0.0,
                step_0: d0.1,
                size_1: d1.0,
                step_1: d1.1,
                size_2: d2.0,
                step_2: d2.1,
                size_3: d3.0,
                step_3: d3.1,
                size_4: d4.0,
                step_4: d4.1,
                size_5: d5.0,
                step_5: d5.1,
            };
            params.words()
        });
        Some(())
    }

    /// A copy of an activation to another place.
    pub(crate) fn moved(&mut self, step: usize, from: Spot, to: Spot) -> Option<()> {
        self.step = step;
        self.copy(Bytes::of(&from), to)
    }

    fn binary(&mut self, [a, b]: [Spot; 2], stretched: [bool; 2], out: Spot, join: JoinFields) {
        let (words, pixels) = (out.words(), out.shape.pixels());
        let stride = move |spot: Spot, stretched: bool| if stretched { 0 } else { spot.stride as u32 / 4 };
        self.push(Variant::Binary, words * pixels, &[a, b, out], move |bases| {
            let params = BinaryParams {
                a_base: at(a, bases),
                a_stride: stride(a, stretched[0]),
                b_base: at(b, bases),
                b_stride: stride(b, stretched[1]),
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
                out_words: words as u32,
                pixels: pixels as u32,
                join: join.kind,
                join_a: join.a,
                join_b: join.b,
                join_c: join.c,
                join_shift: join.shift,
                join_low: join.low,
                join_high: join.high,
                join_table: join.table,
            };
            params.words()
        });
    }

    fn lookup(&mut self, from: Spot, out: Spot, table: u32, apart: u32) {
        let (words, pixels) = (out.words(), out.shape.pixels());
        self.push(Variant::Lookup, words * pixels, &[from, out], move |bases| {
            let params = LookupParams {
                in_base: at(from, bases),
                in_stride: from.stride as u32 / 4,
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
                out_words: words as u32,
                pixels: pixels as u32,
                table,
                apart,
            };
            params.words()
        });
    }

    fn select(
        &mut self,
        from: Spot,
        out: Spot,
        [rows, columns]: [u32; 2],
        channels: u32,
        [in_width, out_width]: [usize; 2],
        fill: u8,
    ) {
        let (words, pixels) = (out.words(), out.shape.pixels());
        self.push(Variant::Select, words * pixels, &[from, out], move |bases| {
            let params = SelectParams {
                in_base: at(from, bases),
                in_stride: from.stride as u32 / 4,
                in_width: in_width as u32,
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
                out_width: out_width as u32,
                out_words: words as u32,
                pixels: pixels as u32,
                rows,
                columns,
                channels,
                fill: word_of(fill),
            };
            params.words()
        });
    }

    fn maximum(&mut self, from: Spot, out: Spot, window: Window, input: Shape, output: Shape) {
        let (words, pixels) = (out.words(), output.pixels());
        let Window { kernel, strides, dilations, before } = window;
        self.push(Variant::Maximum, words * pixels, &[from, out], move |bases| {
            let params = MaximumParams {
                in_base: at(from, bases),
                in_stride: from.stride as u32 / 4,
                in_width: input.w as u32,
                in_height: input.h as u32,
                out_base: at(out, bases),
                out_stride: out.stride as u32 / 4,
                out_width: output.w as u32,
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
            };
            params.words()
        });
    }

    fn mean(&mut self, from: Spot, out: Spot, stairs: u32) {
        let (words, pixels) = (out.words(), from.shape.pixels());
        let variant = self.choose(Task::Mean { pixels, words });
        self.push(variant, words, &[from, out], move |bases| {
            let params = MeanParams {
                in_base: at(from, bases),
                in_stride: from.stride as u32 / 4,
                pixels: pixels as u32,
                out_base: at(out, bases),
                out_words: words as u32,
                stairs,
            };
            params.words()
        });
    }
}

fn dims_last(description: &Description<'_>) -> Option<usize> {
    match description {
        Description::Strided { dims, .. } => dims.last().map(|(size, _)| *size),
        _ => None,
    }
}
