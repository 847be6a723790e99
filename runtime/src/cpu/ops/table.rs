//! Whatever maps one byte to one byte: a table of 256 entries. Change of scale, Relu and Clip that stand alone.
//!
//! Relu and Clip right behind another operator cost nothing: they narrow the bounds of its result.

use super::super::{
    kernels::{Isa, Target, rint},
    lower::{Lowering, Outcome, Pending, Refusal},
    plan::{Operation, Quantity, Scratch},
};
use crate::graph::NodeId;

pub(super) struct Table(pub(super) [u8; 256]);

impl Table {
    pub(super) fn apply(&self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|q| *q = self.0[usize::from(*q)]);
    }
}

impl Operation for Table {
    fn run(&self, _: Isa, inputs: [&[u8]; 2], output: &mut [u8], _: &mut Scratch) {
        output.copy_from_slice(inputs[0]);
        self.apply(output);
    }
}

/// The bytes of the same real values under another scale and zero point.
pub(crate) fn requantise(from: Quantity, to: Quantity) -> Box<dyn Operation> {
    Box::new(Table(requantise_table(from, to)))
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
        Ok(Box::new(Table(
            requantise_table(input.quantity, result).map(|q| q.clamp(target.low, target.high)),
        )))
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
