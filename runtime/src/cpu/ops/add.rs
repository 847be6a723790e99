//! Add of two activations of one shape: two fused multiply-adds on the raw bytes, as ONNX Runtime's x86 kernel.
//!
//! Off-spec: the zero point joins before rounding, so that exact ties go another way where it is odd.

use super::super::{
    kernels::{Sum, Target, add},
    lower::{Lowering, Outcome, Pending, Refusal},
    plan::{Context, Operation, Quantity, View, ViewMut},
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
        let sum = Sum { ratio_a, ratio_b, fixed, low: target.low, high: target.high };
        Ok(Box::new(Add { sum, channels: a.shape.c }))
    };
    Ok(Outcome::Pending(Pending::new(id, [a, b], a.shape, finish)))
}

struct Add {
    sum: Sum,
    channels: usize,
}

impl Operation for Add {
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let (a, b) = (inputs[0], inputs[1]);
        if [a.stride, b.stride, output.stride] == [self.channels; 3] {
            return add(context.isa, a.bytes, b.bytes, self.sum, output.bytes);
        }
        let pixels = a.pixels(self.channels).zip(b.pixels(self.channels));
        for ((a, b), output) in pixels.zip(output.pixels(self.channels)) {
            add(context.isa, a, b, self.sum, output);
        }
    }
}
