//! Add of two activations of one shape: two fused multiply-adds on the raw bytes, as ONNX Runtime's x86 kernel.
//!
//! Off-spec: the zero point joins before rounding, so that exact ties go another way where it is odd.

use super::super::{
    kernels::{Isa, Sum, Target, add},
    lower::{Lowering, Outcome, Pending, Refusal},
    plan::{Operation, Quantity, Scratch},
};
use crate::graph::NodeId;

pub(super) fn lower(lowering: &Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let (a, b) = (lowering.activation(id, 0)?, lowering.activation(id, 1)?);
    if a.shape != b.shape {
        return Err(Refusal::Form("its inputs have two shapes"));
    }
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let (ratio_a, ratio_b) = (a.quantity.scale / result.scale, b.quantity.scale / result.scale);
        let (zero_a, zero_b) = (f32::from(a.quantity.zero), f32::from(b.quantity.zero));
        let fixed = f32::from(result.zero) - ratio_a.mul_add(zero_a, ratio_b * zero_b);
        if ![ratio_a, ratio_b, fixed].iter().all(|v| v.abs() < 1e9) {
            return Err(Refusal::Form("its scales are too far apart"));
        }
        Ok(Box::new(Add(Sum { ratio_a, ratio_b, fixed, low: target.low, high: target.high })))
    };
    Ok(Outcome::Pending(Pending::new(id, [a, b], a.shape, finish)))
}

struct Add(Sum);

impl Operation for Add {
    fn run(&self, isa: Isa, inputs: [&[u8]; 2], output: &mut [u8], _: &mut Scratch) {
        add(isa, inputs[0], inputs[1], self.0, output);
    }
}
