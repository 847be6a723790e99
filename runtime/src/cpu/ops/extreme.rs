//! ArgMax and ArgMin along the channels: of the bytes, which are in the order of what they mean.
//!
//! ONNX ArgMax and ArgMin 1 to 13. What comes out is no byte but an index, so that it ends what runs on bytes.

use super::super::{
    convert::Extreme,
    lower::{Lowering, Outcome, Refusal},
    plan::Order,
};
use crate::graph::NodeId;

pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let input = lowering.activation(id, 0)?;
    let value = lowering.input(id, 0).ok_or(Refusal::Form("it has no input"))?;
    let rank = lowering.shapes().of(value).map_or(0, <[usize]>::len) as i64;
    let proto = lowering.graph().proto(id);
    let order = match proto.int("axis").unwrap_or(0).rem_euclid(rank.max(1)) {
        last if last == rank - 1 => Order::RowMajor,
        1 => Order::ChannelsLast,
        _ => return Err(Refusal::Form("it runs along another dimension than the channels")),
    };
    let extreme = Extreme {
        greatest: proto.op_type == "ArgMax",
        last: proto.int("select_last_index").unwrap_or(0) == 1,
    };
    let input = lowering.ordered(id, input, value, order)?;
    Ok(Outcome::Index(input, extreme))
}
