//! Operators that move bytes: Transpose, Slice, Split, Expand, DepthToSpace, and changes of order. One operation serves
//! them all: for each dimension of the output, how far apart the inputs of neighbours lie.

use super::super::{
    describe::Description,
    plan::{Context, Operation, Order, Shape, View, ViewMut},
};

/// How far apart two bytes lie, in pixels and in channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Step {
    pub(super) pixels: isize,
    pub(super) channels: isize,
}

impl Step {
    pub(super) fn pixels(pixels: usize) -> Self {
        Self { pixels: pixels as isize, channels: 0 }
    }

    pub(super) fn channels(channels: usize) -> Self {
        Self { pixels: 0, channels: channels as isize }
    }

    fn bytes(self, stride: usize) -> isize {
        self.pixels * stride as isize + self.channels
    }
}

/// The output's dimensions as they lie in memory, outermost first; the last are its channels.
pub(super) struct Strided {
    sizes: Vec<usize>,
    steps: Vec<Step>,
    /// From the input's first byte to what the output's first is.
    start: Step,
}

impl Strided {
    pub(super) fn new(dims: &[(usize, Step)], start: Step) -> Self {
        let (sizes, steps) = dims.iter().copied().unzip();
        Self { sizes, steps, start }
    }
}

/// The same bytes elsewhere.
pub(crate) fn copy(shape: Shape) -> Box<dyn Operation> {
    let dims = [(shape.pixels(), Step::pixels(1)), (shape.c, Step::channels(1))];
    Box::new(Strided::new(&dims, Step::default()))
}

/// From channels last to row-major or back. `to` is the shape in the other order.
pub(crate) fn reorder(from: Shape, order: Order, to: Shape) -> Box<dyn Operation> {
    let dims = match order {
        Order::ChannelsLast => {
            // Out: channels, then pixels; its own channels are the last dimension of the pixels.
            let (rows, last) = (from.pixels() / to.c.max(1), to.c);
            vec![(from.c, Step::channels(1)), (rows, Step::pixels(last)), (last, Step::pixels(1))]
        }
        Order::RowMajor => {
            // Out: pixels, then channels. In: a plane for each channel, `from.c` bytes in a row.
            let rows = to.pixels() / from.c.max(1);
            vec![(rows, Step::pixels(1)), (from.c, Step::channels(1)), (to.c, Step::pixels(rows))]
        }
    };
    Box::new(Strided::new(&dims, Step::default()))
}

impl Operation for Strided {
    fn describe(&self) -> Option<Description<'_>> {
        let apart = |step: &Step| [step.pixels, step.channels];
        let dims = self.sizes.iter().copied().zip(self.steps.iter().map(apart)).collect();
        Some(Description::Strided { dims, start: apart(&self.start) })
    }

    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let View { bytes, stride } = inputs[0];
        let ([outer @ .., channels], [outer_steps @ .., step]) = (&*self.sizes, &*self.steps) else { return };
        let steps: [isize; DIMENSIONS_MAX] =
            std::array::from_fn(|d| outer_steps.get(d).map_or(0, |step| step.bytes(stride)));
        let step = step.bytes(stride);
        let mut index = [0usize; DIMENSIONS_MAX];
        let mut at = self.start.bytes(stride);
        for pixel in output.pixels(*channels) {
            if step == 1 {
                pixel.copy_from_slice(&bytes[at as usize..][..*channels]);
            } else {
                for (i, out) in pixel.iter_mut().enumerate() {
                    *out = bytes[(at + i as isize * step) as usize];
                }
            }
            for d in (0..outer.len()).rev() {
                index[d] += 1;
                at += steps[d];
                if index[d] < outer[d] {
                    break;
                }
                at -= steps[d] * outer[d] as isize;
                index[d] = 0;
            }
        }
    }
}

/// More than any operator here needs.
pub(super) const DIMENSIONS_MAX: usize = 10;
