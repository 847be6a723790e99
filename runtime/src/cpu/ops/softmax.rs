//! Softmax over the channels: exponentials from a table, since differences of bytes are bytes. They are whole numbers, so that
//! they add up to the same in any order.

use super::{
    super::{
        describe::Description,
        kernels::{Target, rint},
        lower::{Lowering, Outcome, Pending, Refusal},
        plan::{Context, Operation, Order, Quantity, View, ViewMut},
    },
    layout::dimension,
};
use crate::graph::NodeId;

/// Of so many channels the exponentials add up to 32 bits, in units that are still fine enough.
const NARROW_MAX: usize = 2048;

/// ONNX Softmax 13; of older versions the cases in which they mean the same.
pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.activation(id, 0)?;
    let value = lowering.input(id, 0).ok_or(Refusal::Form("it has no input"))?;
    let rank = lowering.shapes().of(value).map_or(0, <[usize]>::len);
    let old = lowering.graph().opset() < 13;
    let axis = lowering.graph().proto(id).int("axis").unwrap_or(if old { 1 } else { -1 });
    let axis = dimension(axis, rank)?;
    if old && axis + 1 != rank {
        return Err(Refusal::Form("it spans more than one dimension"));
    }
    let order = match axis {
        last if last + 1 == rank => Order::RowMajor,
        1 => Order::ChannelsLast,
        _ => return Err(Refusal::Form("it runs along another dimension than the channels")),
    };
    let input = lowering.ordered(id, input, value, order)?;
    let channels = input.shape.c;
    let unit = if channels <= NARROW_MAX { u64::from(u32::MAX) / channels.max(1) as u64 } else { 1 << 40 };
    // How much a byte below the greatest is worth, against the greatest.
    let worth =
        |d: usize| ((-(d as f64) * f64::from(input.quantity.scale)).exp() * unit as f64).round() as u64;
    let worth: Box<[u64; 256]> = Box::new(std::array::from_fn(worth));
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        Ok(Box::new(Softmax { channels, worth: worth.clone(), scale: result.scale, target }))
    };
    Ok(Outcome::Pending(Pending::new(id, &[input], input.shape, finish)))
}

struct Softmax {
    channels: usize,
    worth: Box<[u64; 256]>,
    scale: f32,
    target: Target,
}

impl Softmax {
    /// Of a channel so far below the greatest, if all are worth `sum`. The smaller the sum, the greater the byte.
    fn byte(&self, below: u8, sum: u64) -> u8 {
        let Target { zero, low, high } = self.target;
        let share = (self.worth[usize::from(below)] as f64 / sum as f64) as f32;
        (rint(share / self.scale) + i32::from(zero)).clamp(low.into(), high.into()) as u8
    }

    fn pixel(&self, input: &[u8], out: &mut [u8]) {
        let greatest = input.iter().copied().max().unwrap_or(0);
        let sum = input.iter().map(|q| self.worth[usize::from(greatest - q)]).sum();
        out.iter_mut().zip(input).for_each(|(out, q)| *out = self.byte(greatest - q, sum));
    }
}

impl Operation for Softmax {
    fn describe(&self) -> Option<Description<'_>> {
        if self.channels > NARROW_MAX {
            return None;
        }
        Some(Description::Softmax {
            channels: self.channels,
            worth: Box::new(self.worth.map(|worth| worth as u32)),
            byte: Box::new(|below, sum| self.byte(below, sum.into())),
        })
    }

    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let (channels, input, line) = (self.channels, inputs[0], output.stride.max(1));
        let size = context.team.piece(output.bytes.len(), line, 4 << 10);
        context.team.pieces(output.bytes, size, |part, out| {
            let first = part * (size / line) * input.stride;
            let pixels = input.bytes[first..].chunks(input.stride.max(1));
            for (out, input) in out.chunks_mut(line).zip(pixels) {
                self.pixel(&input[..channels], &mut out[..channels]);
            }
        });
    }
}
