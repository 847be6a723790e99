//! Whatever maps one byte to one byte: a table of 256 entries. Change of scale, Relu and Clip that stand alone.
//!
//! Relu and Clip right behind another operator cost nothing: they narrow the bounds of its result.

use super::super::{
    kernels::{Target, rint},
    lower::{Lowering, Outcome, Pending, Refusal},
    plan::{Context, Operation, Quantity, Shape, View, ViewMut},
};
use crate::graph::NodeId;

pub(super) struct Table {
    pub(super) bytes: [u8; 256],
    /// Of a pixel.
    pub(super) channels: usize,
}

impl Table {
    pub(super) fn apply(&self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|q| *q = self.bytes[usize::from(*q)]);
    }
}

impl Operation for Table {
    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let input = inputs[0];
        if [input.stride, output.stride] == [self.channels; 2] {
            output.bytes.copy_from_slice(input.bytes);
            return self.apply(output.bytes);
        }
        for (output, input) in output.pixels(self.channels).zip(input.pixels(self.channels)) {
            output.copy_from_slice(input);
            self.apply(output);
        }
    }
}

/// The bytes of the same real values under another scale and zero point.
pub(crate) fn requantise(from: Quantity, to: Quantity, shape: Shape) -> Box<dyn Operation> {
    Box::new(Table { bytes: requantise_table(from, to), channels: shape.c })
}

pub(super) fn requantise_table(from: Quantity, to: Quantity) -> [u8; 256] {
    std::array::from_fn(|q| {
        if from == to {
            return q as u8;
        }
        let real = (q as f32 - f32::from(from.zero)) * from.scale;
        (rint(real / to.scale) + i32::from(to.zero)).clamp(0, 255) as u8
    })
}

/// Relu, and Clip with constant bounds (attributes before opset 11, inputs after).
pub(super) fn lower_clamp(lowering: &Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let (low, high) = bounds(lowering, id)?;
    if let Some(before) = lowering.pending(id) {
        // What ONNX says for low above high: the result is high.
        let clamp = |v: f32| v.max(low).min(high);
        return Ok(Outcome::Pending(Pending {
            low: clamp(before.low),
            high: clamp(before.high),
            float: None,
            ..before.clone()
        }));
    }
    let input = lowering.activation(id, 0)?;
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let bytes = requantise_table(input.quantity, result).map(|q| q.clamp(target.low, target.high));
        Ok(Box::new(Table { bytes, channels: input.shape.c }))
    };
    let clamp = |v: f32| v.max(low).min(high);
    let pending = Pending::new(id, [input; 2], input.shape, finish);
    Ok(Outcome::Pending(Pending { low: clamp(f32::NEG_INFINITY), high: clamp(f32::INFINITY), ..pending }))
}

fn bounds(lowering: &Lowering<'_>, id: NodeId) -> Result<(f32, f32), Refusal> {
    let proto = lowering.graph().proto(id);
    if proto.op_type == "Relu" {
        return Ok((0.0, f32::INFINITY));
    }
    let bound = |index: usize, attribute: &str, absent: f32| {
        if lowering.input(id, index).is_none() {
            return Some(proto.float(attribute).unwrap_or(absent));
        }
        let values = lowering.constant(id, index)?.to_f32().ok()?;
        values.first().copied().filter(|v| values.len() == 1 && !v.is_nan())
    };
    let both = bound(1, "min", f32::NEG_INFINITY).zip(bound(2, "max", f32::INFINITY));
    both.ok_or(Refusal::Form("its bounds are no constants"))
}
