//! Softmax over the channels: exponentials from a table, since differences of bytes are bytes.

use super::super::{
    kernels::{Target, rint},
    lower::{Lowering, Outcome, Pending, Refusal},
    plan::{Context, Operation, Order, Quantity, View, ViewMut},
};
use crate::graph::NodeId;

/// ONNX Softmax 13; of older versions the cases in which they mean the same.
pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.activation(id, 0)?;
    let value = lowering.input(id, 0).ok_or(Refusal::Form("it has no input"))?;
    let rank = lowering.shapes().of(value).map_or(0, <[usize]>::len) as i64;
    let old = lowering.graph().opset() < 13;
    let axis = lowering.graph().proto(id).int("axis").unwrap_or(if old { 1 } else { -1 });
    let axis = axis.rem_euclid(rank.max(1));
    if old && axis != rank - 1 {
        return Err(Refusal::Form("it spans more than one dimension"));
    }
    let order = match axis {
        last if last == rank - 1 => Order::RowMajor,
        1 => Order::ChannelsLast,
        _ => return Err(Refusal::Form("it runs along another dimension than the channels")),
    };
    let input = lowering.ordered(id, input, value, order)?;
    // How much a byte below the greatest is worth, against the greatest.
    let worth = |d: usize| (-(d as f64) * f64::from(input.quantity.scale)).exp();
    let worth: Box<[f64; 256]> = Box::new(std::array::from_fn(worth));
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        Ok(Box::new(Softmax { channels: input.shape.c, worth: worth.clone(), scale: result.scale, target }))
    };
    Ok(Outcome::Pending(Pending::new(id, &[input], input.shape, finish)))
}

struct Softmax {
    channels: usize,
    worth: Box<[f64; 256]>,
    scale: f32,
    target: Target,
}

impl Operation for Softmax {
    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let Target { zero, low, high } = self.target;
        for (out, input) in output.pixels(self.channels).zip(inputs[0].pixels(self.channels)) {
            let greatest = input.iter().copied().max().unwrap_or(0);
            let worth = |q: &u8| self.worth[usize::from(greatest - q)];
            let sum: f64 = input.iter().map(worth).sum();
            for (out, q) in out.iter_mut().zip(input) {
                let value = rint((worth(q) / sum) as f32 / self.scale) + i32::from(zero);
                *out = value.clamp(low.into(), high.into()) as u8;
            }
        }
    }
}
