//! Whatever maps one byte to one byte: a table of 256 entries. Changes of scale, and all functions of one value.
//!
//! Relu and Clip right behind another operator cost nothing: they narrow the bounds of its result. Other functions of an
//! activation, and functions of them, are curves until a `QuantizeLinear` makes a table of them.

use std::rc::Rc;

use super::super::{
    kernels::rint,
    lower::{Curve, Lowering, Outcome, Pending, Refusal},
    plan::{Context, Operation, Quantity, Shape, View, ViewMut},
};
use crate::{graph::NodeId, plain};

struct Table {
    bytes: Box<[u8; 256]>,
    /// Of a pixel.
    channels: usize,
}

/// Each byte looked up.
pub(crate) fn table(bytes: [u8; 256], shape: Shape) -> Box<dyn Operation> {
    Box::new(Table { bytes: Box::new(bytes), channels: shape.c })
}

impl Operation for Table {
    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let input = inputs[0];
        let look_up = |to: &mut [u8], from: &[u8]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = self.bytes[usize::from(*from)]);
        };
        if [input.stride, output.stride] == [self.channels; 2] {
            return look_up(output.bytes, input.bytes);
        }
        for (output, input) in output.pixels(self.channels).zip(input.pixels(self.channels)) {
            look_up(output, input);
        }
    }

    fn fuse_table(&mut self, table: &[u8; 256]) -> bool {
        self.bytes.iter_mut().for_each(|q| *q = table[usize::from(*q)]);
        true
    }
}

/// The bytes of the same real values under another scale and zero point.
pub(crate) fn requantise_table(from: Quantity, to: Quantity) -> [u8; 256] {
    std::array::from_fn(|q| {
        if from == to {
            return q as u8;
        }
        let real = (q as f32 - f32::from(from.zero)) * from.scale;
        (rint(real / to.scale) + i32::from(to.zero)).clamp(0, 255) as u8
    })
}

/// Operators of one input that [`plain`] has a function for.
pub(super) fn lower_function(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let function = plain::function(lowering.graph().proto(id)).ok_or(Refusal::Operator)?;
    let Curve { of, values } = lowering.curve(id, 0)?;
    Ok(Outcome::Curve(Curve { of, values: Rc::new(values.map(function)) }))
}

/// Relu, and Clip with constant bounds (attributes before opset 11, inputs after).
pub(super) fn lower_clamp(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let (low, high) = bounds(lowering, id)?;
    // What ONNX says for low above high: the result is high.
    let clamp = |v: f32| v.max(low).min(high);
    if let Some(before) = lowering.pending(id) {
        let (low, high) = (clamp(before.low), clamp(before.high));
        return Ok(Outcome::Pending(Pending { low, high, ..before.clone() }));
    }
    let Curve { of, values } = lowering.curve(id, 0)?;
    Ok(Outcome::Curve(Curve { of, values: Rc::new(values.map(clamp)) }))
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
        let values = lowering.reals(id, index)?;
        values.first().copied().filter(|v| values.len() == 1 && !v.is_nan())
    };
    let both = bound(1, "min", f32::NEG_INFINITY).zip(bound(2, "max", f32::INFINITY));
    both.ok_or(Refusal::Form("its bounds are no constants"))
}
