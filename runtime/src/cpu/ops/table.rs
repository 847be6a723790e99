//! Whatever maps one byte to one byte: a table of 256 entries. Changes of scale, and all functions of one value.
//!
//! Relu and Clip right behind another operator cost nothing: they narrow the bounds of its result. Other functions of an
//! activation, and functions of them, are curves until a `QuantizeLinear` makes a table of them.

use std::rc::Rc;

use super::super::{
    describe::Description,
    kernels::{lookup, rint},
    lower::{Curve, Lowering, Outcome, Pending, Refusal},
    plan::{Context, Operation, Quantity, Shape, View, ViewMut},
};
use crate::{graph::NodeId, onnx::DataType, plain};

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
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let (isa, input) = (context.isa, inputs[0]);
        if [input.stride, output.stride] == [self.channels; 2] {
            let size = context.team.piece(output.bytes.len(), 64, 64 << 10);
            return context.team.pieces(output.bytes, size, |i, output| {
                output.copy_from_slice(&input.bytes[i * size..][..output.len()]);
                lookup(isa, &self.bytes, output);
            });
        }
        for (output, input) in output.pixels(self.channels).zip(input.pixels(self.channels)) {
            output.copy_from_slice(input);
            lookup(isa, &self.bytes, output);
        }
    }

    fn fuse_table(&mut self, table: &[u8; 256]) -> bool {
        self.bytes.iter_mut().for_each(|q| *q = table[usize::from(*q)]);
        true
    }

    fn describe(&self) -> Option<Description<'_>> {
        Some(Description::Lookup { tables: vec![&*self.bytes] })
    }
}

/// Looks up in `table` what `first`, if there is one, gives.
pub(super) fn fuse(first: &mut Option<Box<[u8; 256]>>, table: &[u8; 256]) {
    let fused = first.get_or_insert_with(|| Box::new(std::array::from_fn(|q| q as u8)));
    fused.iter_mut().for_each(|q| *q = table[usize::from(*q)]);
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

/// Cast of plain u8 to f32: images often come that way. The bytes are taken in, and what is done to them is a table.
pub(super) fn lower_cast(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    if lowering.graph().proto(id).int("to") != Some(DataType::Float as i64) {
        return Err(Refusal::Operator);
    }
    lowering.image(id).map(Outcome::Real)
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
