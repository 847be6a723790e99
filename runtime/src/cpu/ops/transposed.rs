//! ConvTranspose: plain convolutions whose results are put between each other.
//!
//! ONNX ConvTranspose 1 and 11; one or two spatial dimensions, any kernel, stride, dilation, padding and number of groups.

use super::{
    super::{
        describe::Description,
        kernels::Target,
        lower::{Lowering, Outcome, Pending, Refusal},
        plan::{Context, Operation, Quantity, Shape, View, ViewMut},
    },
    conv::{Geometry, Weights, filter, operation},
};
use crate::{
    graph::NodeId,
    shape::{self, interleave},
};

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
    let sides = |shape: Shape| [shape.h, shape.w];
    let found = interleave::parts(&window, sides(input.shape), sides(output)).map_err(Refusal::Form)?;
    let (depth, taps) = (c / groups, window.kernel[0] * window.kernel[1]);
    let weights = Weights::read(lowering, id, output.c, depth * taps, 1, input.quantity)?;
    let mut parts = vec![];
    for part in found {
        let shape = Shape { h: part.size[0], w: part.size[1], c: output.c };
        let plain = shape::Window {
            kernel: part.kernel.to_vec(),
            strides: vec![1, 1],
            dilations: part.dilations.to_vec(),
            pads: shape::Pads::Explicit([part.before, part.after].concat()),
            ceil: false,
        };
        let geometry = Geometry::new(&plain, input.shape, shape)?;
        // `[C, M / groups, taps]` becomes `[M, C / groups, taps that are seen]`.
        let seen = geometry.kernel[0] * geometry.kernel[1];
        let weights = weights.picked(depth * seen, |row, column| {
            let (channel, tap) = (row / per_group * depth + column / seen, part.taps.get(column % seen)?);
            Some((channel * per_group + row % per_group) * taps + tap)
        });
        parts.push((geometry, weights, part.first));
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
