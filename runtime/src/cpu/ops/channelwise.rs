//! Functions of one value that differ from channel to channel: PRelu, BatchNormalization, and arithmetic with a constant
//! for each channel. One table a channel.

use super::super::{
    describe::Description,
    kernels::{Target, rint},
    lower::{Activation, Lowering, Outcome, Pending, Refusal},
    plan::{Context, Operation, Order, Quantity, View, ViewMut},
};
use crate::graph::NodeId;

/// Input `index` as one real constant for each channel, and the activation that input `other` is.
fn constants(
    lowering: &mut Lowering<'_>,
    id: NodeId,
    index: usize,
    other: usize,
) -> Result<(Activation, Vec<f32>), Refusal> {
    let none = Refusal::Form("it has no constant for each channel");
    let value = lowering.input(id, other).ok_or(none)?;
    let constant = lowering.input(id, index).ok_or(none)?;
    let rank = lowering.shapes().of(value).map_or(0, <[usize]>::len);
    let order = if rank > 2 { Order::ChannelsLast } else { Order::RowMajor };
    let dims = lowering.shapes().of(constant).ok_or(none)?.to_vec();
    let activation = lowering.activation(id, other)?;
    let input = lowering.ordered(id, activation, value, order)?;
    // Counted from the last dimension, all but that of the channels are 1.
    let channels = rank.saturating_sub(2);
    let fits =
        dims.iter().rev().enumerate().all(|(i, d)| *d == if i == channels { input.shape.c } else { 1 });
    let values = match lowering.fixed(id, index) {
        Some(fixed) if fixed.scales.len() == 1 => {
            let scale = fixed.scales[0];
            fixed.centred().map(|values| values.into_iter().map(|v| f32::from(v) * scale).collect())
        }
        _ => lowering.reals(id, index),
    };
    let values: Vec<f32> = values.filter(|v| fits && v.len() == input.shape.c).ok_or(none)?;
    Ok((input, values))
}

pub(super) fn lower_prelu(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let (input, slopes) = constants(lowering, id, 1, 0)?;
    outcome(id, input, move |x, c| if x < 0.0 { x * slopes[c] } else { x })
}

/// Add, Sub, Mul and Div of an activation and a constant for each channel, which is not quantised.
pub(super) fn lower_arithmetic(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let operator = lowering.graph().proto(id).op_type.clone();
    let first = lowering.activation(id, 0).is_err();
    let (index, other) = if first { (0, 1) } else { (1, 0) };
    let (input, constants) = constants(lowering, id, index, other)?;
    if lowering.shape_in(lowering.output(id)?, input.order)? != input.shape {
        return Err(Refusal::Form("a constant stretches it"));
    }
    outcome(id, input, move |x, c| {
        let (a, b) = if first { (constants[c], x) } else { (x, constants[c]) };
        match operator.as_str() {
            "Add" => a + b,
            "Sub" => a - b,
            "Mul" => a * b,
            _ => a / b,
        }
    })
}

/// BatchNormalization 7 to 15, not in training.
pub(super) fn lower_normalisation(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let proto = lowering.graph().proto(id);
    if proto.int("training_mode").unwrap_or(0) != 0 {
        return Err(Refusal::Form("it is in training"));
    }
    let epsilon = proto.float("epsilon").unwrap_or(1e-5);
    let input = lowering.channels_last(id, 0)?;
    let parameter = |index| lowering.reals(id, index).filter(|v: &Vec<f32>| v.len() == input.shape.c);
    let parameters = [1, 2, 3, 4].map(parameter);
    let [Some(scale), Some(bias), Some(mean), Some(variance)] = parameters else {
        return Err(Refusal::Form("its parameters are no constants"));
    };
    let apply = move |x: f32, c: usize| (x - mean[c]) / (variance[c] + epsilon).sqrt() * scale[c] + bias[c];
    outcome(id, input, apply)
}

/// A table has 256 bytes, and no network this is made for has more channels.
const CHANNELS_MAX: usize = 4096;

fn outcome(
    id: NodeId,
    input: Activation,
    apply: impl Fn(f32, usize) -> f32 + 'static,
) -> Result<Outcome, Refusal> {
    if input.shape.c > CHANNELS_MAX {
        return Err(Refusal::Form("it has too many channels"));
    }
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let real = |q: usize| (q as f32 - f32::from(input.quantity.zero)) * input.quantity.scale;
        let byte = |x: f32| {
            let value = rint(x / result.scale) + i32::from(target.zero);
            value.clamp(target.low.into(), target.high.into()) as u8
        };
        let table = |c: usize| std::array::from_fn(|q| byte(apply(real(q), c)));
        Ok(Box::new(Channelwise { tables: (0..input.shape.c).map(table).collect() }))
    };
    Ok(Outcome::Pending(Pending::new(id, &[input], input.shape, finish)))
}

struct Channelwise {
    /// One a channel.
    tables: Vec<[u8; 256]>,
}

impl Operation for Channelwise {
    fn run(&self, _: &mut Context<'_>, inputs: &[View<'_>], mut output: ViewMut<'_>) {
        let channels = self.tables.len();
        for (out, input) in output.pixels(channels).zip(inputs[0].pixels(channels)) {
            for ((out, q), table) in out.iter_mut().zip(input).zip(&self.tables) {
                *out = table[usize::from(*q)];
            }
        }
    }

    fn fuse_table(&mut self, table: &[u8; 256]) -> bool {
        self.tables.iter_mut().flatten().for_each(|q| *q = table[usize::from(*q)]);
        true
    }

    fn describe(&self) -> Option<Description<'_>> {
        Some(Description::Lookup { tables: self.tables.iter().collect() })
    }
}
