//! ConvTranspose: plain convolutions whose results are put between each other.
//!
//! ONNX ConvTranspose 1 and 11; one or two spatial dimensions, any kernel, stride, dilation, padding and number of groups.
//! With stride `s`, the output pixels whose place is `r` modulo `s` see the taps for which that is so of `tap * dilation`,
//! and no others: for each `r` they are a plain convolution of the input with stride 1. Nothing is multiplied with zeros.

use super::{
    super::{
        describe::Description,
        kernels::Target,
        lower::{Lowering, Outcome, Pending, Refusal},
        plan::{Context, Operation, Quantity, Shape, View, ViewMut},
    },
    conv::{Geometry, Weights, filter, operation},
};
use crate::{graph::NodeId, shape};

/// Each has weights of its own.
const PARTS_MAX: usize = 64;

/// Parts that see no tap have weights all the same; all together may have so many times the node's.
const COPIES_MAX: usize = 16;

pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.channels_last(id, 0)?;
    let output = lowering.output_shape(id)?;
    let ([c, per_group], window) = filter(lowering, id)?;
    let groups = output.c / per_group.max(1);
    if c != input.shape.c || groups == 0 || c % groups != 0 || per_group * groups != output.c {
        return Err(Refusal::Form("its channels do not fit its groups"));
    }
    if lowering.graph().proto(id).attribute("output_shape").is_some() {
        return Err(Refusal::Form("its padding follows from its output's shape"));
    }
    let shape::Pads::Explicit(pads) = &window.pads else {
        return Err(Refusal::Form("its padding is not written out"));
    };
    if window.strides[0].saturating_mul(window.strides[1]) > PARTS_MAX {
        return Err(Refusal::Form("its strides are large"));
    }
    let [kw, taps] = [window.kernel[1], window.kernel[0] * window.kernel[1]];
    let depth = c / groups;
    let weights = Weights::read(lowering, id, output.c, depth * taps, 1, input.quantity)?;
    let (mut parts, mut copied) = (vec![], 0);
    for y in sides(&window, 0, pads[0], input.shape.h, output.h) {
        let y = y?;
        for x in sides(&window, 1, pads[1], input.shape.w, output.w) {
            let x = x?;
            let shape = Shape { h: y.count, w: x.count, c: output.c };
            let plain = shape::Window {
                kernel: vec![y.taps.len().max(1), x.taps.len().max(1)],
                strides: vec![1, 1],
                dilations: vec![y.dilation, x.dilation],
                pads: shape::Pads::Explicit(vec![y.before, x.before, y.after, x.after]),
                ceil: false,
            };
            let geometry = Geometry::new(&plain, input.shape, shape)?;
            // None at all where one side has none; the window is there all the same, with zeros.
            let pairs = y.taps.iter().flat_map(|ky| x.taps.iter().map(move |kx| ky * kw + kx));
            let taps_seen: Vec<usize> = pairs.collect();
            // `[C, M / groups, taps]` becomes `[M, C / groups, taps that are seen]`.
            let seen = geometry.kernel[0] * geometry.kernel[1];
            copied += seen;
            if copied > COPIES_MAX * taps {
                return Err(Refusal::Form("its strides are far larger than its window"));
            }
            let weights = weights.picked(depth * seen, |row, column| {
                let (channel, tap) = (row / per_group * depth + column / seen, taps_seen.get(column % seen)?);
                Some((channel * per_group + row % per_group) * taps + tap)
            });
            parts.push((geometry, weights, [y.first, x.first]));
        }
    }
    let (packing, strides) = (lowering.packing(), [window.strides[0], window.strides[1]]);
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let part = |(geometry, weights, first): &(Geometry, Weights, [usize; 2])| {
            let sums = weights.sums(input.quantity, result, target)?;
            let operation =
                operation(packing, *geometry, groups, weights, &sums, input.quantity.zero, target);
            Ok(Part { operation, first: *first, shape: geometry.output })
        };
        let parts = parts.iter().map(part).collect::<Result<_, _>>()?;
        Ok(Box::new(Transposed { parts, strides, width: output.w }))
    };
    Ok(Outcome::Pending(Pending::new(id, &[input], output, finish)))
}

/// One dimension of the output pixels that are of one kind.
struct Side {
    /// The first of them, and how many there are.
    first: usize,
    count: usize,
    /// Taps that they see, in the order in which the input lies.
    taps: Vec<usize>,
    /// Input pixels from one tap to the next.
    dilation: usize,
    /// Padding of the input.
    before: usize,
    after: usize,
}

/// Dimension `d` of the output, `pad` of whose pixels are cut off before the first.
fn sides(
    window: &shape::Window,
    d: usize,
    pad: usize,
    input: usize,
    output: usize,
) -> impl Iterator<Item = Result<Side, Refusal>> {
    let (kernel, stride, dilation) = (window.kernel[d], window.strides[d], window.dilations[d]);
    (0..stride.min(output)).map(move |first| {
        let kind = (first + pad) % stride;
        let taps: Vec<usize> = (0..kernel).rev().filter(|tap| tap * dilation % stride == kind).collect();
        // The input pixel that the first output pixel sees through a tap.
        let seen = |tap: &usize| ((first + pad) as i64 - (tap * dilation) as i64) / stride as i64;
        let (least, most) = (taps.first().map_or(0, seen), taps.last().map_or(0, seen));
        let before = usize::try_from(-least);
        let before = before.map_err(|_| Refusal::Form("its padding is larger than its window"))?;
        let count = (output - first).div_ceil(stride);
        let apart = taps.get(1).map_or(1, |tap| (seen(tap) - least) as usize);
        let after = usize::try_from(most + count as i64 - input as i64).unwrap_or(0);
        Ok(Side { first, count, taps, dilation: apart, before, after })
    })
}

struct Part {
    operation: Box<dyn Operation>,
    /// Its first pixel's row and column in the output.
    first: [usize; 2],
    shape: Shape,
}

struct Transposed {
    parts: Vec<Part>,
    strides: [usize; 2],
    /// Pixels of an output row.
    width: usize,
}

impl Operation for Transposed {
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        if let [part] = &*self.parts {
            return part.operation.run(context, inputs, output);
        }
        // The parts use the scratch memory themselves.
        let mut aside = std::mem::take(&mut context.scratch.aside);
        for Part { operation, first, shape } in &self.parts {
            if aside.len() < shape.bytes() {
                aside.resize(shape.bytes(), 0);
            }
            let result = &mut aside[..shape.bytes()];
            operation.run(context, inputs, ViewMut { bytes: &mut *result, stride: shape.c });
            for (row, pixels) in result.chunks_exact(shape.w * shape.c).enumerate() {
                let start = (first[0] + row * self.strides[0]) * self.width + first[1];
                let to = output.bytes[start * output.stride..].chunks_mut(self.strides[1] * output.stride);
                for (to, pixel) in to.zip(pixels.chunks_exact(shape.c)) {
                    to[..shape.c].copy_from_slice(pixel);
                }
            }
        }
        context.scratch.aside = aside;
    }

    fn describe(&self) -> Option<Description<'_>> {
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let Description::Convolution(convolution) = part.operation.describe()? else { return None };
            parts.push((part.first, convolution));
        }
        Some(Description::Interleaved { parts, strides: self.strides, width: self.width })
    }

    fn fuse_table(&mut self, table: &[u8; 256]) -> bool {
        self.parts.iter_mut().all(|part| part.operation.fuse_table(table))
    }
}
