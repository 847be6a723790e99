//! ArgMax and ArgMin along the channels: of the bytes, which are in the order of what they mean.
//!
//! ONNX ArgMax and ArgMin 1 to 13. What comes out is an index, in as many bytes as it takes, so that it ends what runs on
//! bytes with a meaning.

use super::{
    super::{
        describe::{Description, Extreme},
        lower::{Activation, Lowering, Outcome, Refusal},
        plan::{Context, Operation, Order, Shape, View, ViewMut},
    },
    layout::dimension,
};
use crate::graph::NodeId;

pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.activation(id, 0)?;
    let value = lowering.input(id, 0).ok_or(Refusal::Form("it has no input"))?;
    let rank = lowering.shapes().of(value).map_or(0, <[usize]>::len);
    let proto = lowering.graph().proto(id);
    let order = match dimension(proto.int("axis").unwrap_or(0), rank)? {
        last if last + 1 == rank => Order::RowMajor,
        1 => Order::ChannelsLast,
        _ => return Err(Refusal::Form("it runs along another dimension than the channels")),
    };
    let extreme = Extreme {
        greatest: proto.op_type == "ArgMax",
        last: proto.int("select_last_index").unwrap_or(0) == 1,
    };
    let input = lowering.ordered(id, input, value, order)?;
    let channels = input.shape.c;
    let bits = usize::BITS - channels.saturating_sub(1).leading_zeros();
    if bits > 32 {
        return Err(Refusal::Form("it has too many channels"));
    }
    let shape = Shape { c: bits.div_ceil(8).max(1) as usize, ..input.shape };
    let made = lowering.step(id, &[input], shape, Box::new(Position { extreme, channels, bytes: shape.c }));
    Ok(Outcome::Index(Activation { made, offset: 0, shape, ..input }))
}

/// The lowest byte first.
struct Position {
    extreme: Extreme,
    channels: usize,
    bytes: usize,
}

impl Position {
    fn of(&self, pixel: &[u8]) -> usize {
        let Extreme { greatest, last } = self.extreme;
        let best = if greatest { pixel.iter().max() } else { pixel.iter().min() };
        let is_best = |byte: &u8| Some(byte) == best;
        let at = if last { pixel.iter().rposition(is_best) } else { pixel.iter().position(is_best) };
        at.unwrap_or(0)
    }
}

impl Operation for Position {
    fn describe(&self) -> Option<Description<'_>> {
        Some(Description::Position { extreme: self.extreme, channels: self.channels })
    }

    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let (input, line) = (inputs[0], output.stride.max(1));
        let size = context.team.piece(output.bytes.len(), line, 1 << 10);
        context.team.pieces(output.bytes, size, |part, out| {
            let first = part * (size / line) * input.stride;
            let pixels = input.bytes[first..].chunks(input.stride.max(1));
            for (out, pixel) in out.chunks_mut(line).zip(pixels) {
                let at = self.of(&pixel[..self.channels]).to_le_bytes();
                out[..self.bytes].copy_from_slice(&at[..self.bytes]);
            }
        });
    }
}
