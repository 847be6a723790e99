//! Gemm and MatMul of one vector with constant weights: s8 as a step, f32 as the head of a network.
//!
//! ONNX Gemm 7 to 13 with alpha and beta 1 and no transposed left side; MatMul 1 to 13.

use std::sync::Arc;

use super::{
    super::{
        kernels::{Matrix, Out, Target, product, widen},
        lower::{Float, Lowering, Outcome, Pending, Refusal},
        plan::{Context, Dense, Operation, Quantity, Tail, View, ViewMut},
    },
    conv::{Weights, is_s8},
};
use crate::graph::NodeId;

pub(super) fn lower(lowering: &Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let output = lowering.output_shape(id)?;
    let proto = lowering.graph().proto(id);
    let scaled = proto.float("alpha").unwrap_or(1.0) != 1.0 || proto.float("beta").unwrap_or(1.0) != 1.0;
    let input = lowering.vector(id, 0).filter(|_| !scaled && proto.int("transA").unwrap_or(0) == 0);
    let input = input.ok_or(Refusal::Form("it is no plain product of a vector and weights"))?;
    let outputs = output.c;
    let transposed = proto.int("transB").unwrap_or(0) == 1;
    if lowering.constant(id, 1).is_some() {
        return dense(lowering, id, input, outputs, transposed);
    }
    let input = lowering.activation(id, 0)?;
    let inputs = input.shape.c;
    let fixed = lowering.fixed(id, 1).filter(|f| is_s8(f.tensor));
    if fixed.is_none_or(|f| f.tensor.elements() != inputs.checked_mul(outputs)) {
        return Err(Refusal::Form("its weights are no s8 constant with zero point 0"));
    }
    let weights =
        Weights::read(lowering, id, outputs, inputs, if transposed { 0 } else { 1 }, input.quantity)?;
    let weights = if transposed { weights } else { weights.transposed() };
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let sums = weights.sums(input.quantity, result, target)?;
        let matrix =
            Matrix::pack(inputs, &sums.bias, &sums.multiplier, |column, i| weights.at(column, i, &sums));
        Ok(Box::new(Gemm { matrix, target }))
    };
    Ok(Outcome::Pending(Pending::new(id, [input; 2], output, finish)))
}

/// Weights that were left in float.
fn dense(
    lowering: &Lowering<'_>,
    id: NodeId,
    input: Float,
    outputs: usize,
    transposed: bool,
) -> Result<Outcome, Refusal> {
    let float = |index| lowering.constant(id, index).and_then(|t| t.to_f32().ok());
    let inputs = input.from.shape.c;
    let weights = float(1).filter(|w| Some(w.len()) == inputs.checked_mul(outputs) && inputs > 0);
    let weights = weights.ok_or(Refusal::Form("its weights are no f32 constant"))?;
    let bias = match lowering.input(id, 2) {
        None => vec![0.0; outputs],
        Some(_) => match float(2).ok_or(Refusal::Form("its bias is no f32 constant"))? {
            one if one.len() == 1 => vec![one[0]; outputs],
            all if all.len() == outputs => all,
            _ => return Err(Refusal::Form("its bias has another size")),
        },
    };
    let weights = if transposed {
        weights
    } else {
        (0..outputs * inputs).map(|i| weights[i % inputs * outputs + i / inputs]).collect()
    };
    let tail = Tail { dense: Some(Arc::new(Dense { inputs, weights, bias })), ..input.tail };
    Ok(Outcome::Float(Float { tail, ..input }))
}

struct Gemm {
    matrix: Matrix,
    target: Target,
}

impl Operation for Gemm {
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let input = inputs[0];
        context.scratch.reserve(0, self.matrix.row());
        let words = &mut context.scratch.words[..self.matrix.row()];
        widen(input.bytes, words);
        let ViewMut { bytes, stride } = output;
        product(context.isa, words, 1, &self.matrix, self.target, Out { bytes, stride, offset: 0 });
    }
}
