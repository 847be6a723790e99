//! Gemm and MatMul with constant s8 weights: each row of the left side times the weights.
//!
//! ONNX Gemm 7 to 13 with alpha and beta 1 and no transposed left side; MatMul 1 to 13.

use super::{
    super::{
        kernels::{Matrix, Out, Target, product, widen},
        lower::{Lowering, Outcome, Pending, Refusal},
        plan::{Context, Operation, Order, Quantity, View, ViewMut},
    },
    conv::Weights,
};
use crate::{graph::NodeId, onnx::DataType};

pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let proto = lowering.graph().proto(id);
    let scaled = proto.float("alpha").unwrap_or(1.0) != 1.0 || proto.float("beta").unwrap_or(1.0) != 1.0;
    if scaled || proto.int("transA").unwrap_or(0) != 0 {
        return Err(Refusal::Form("it is no plain product"));
    }
    let input = lowering.activation(id, 0)?;
    let value = lowering.input(id, 0).ok_or(Refusal::Form("it has no input"))?;
    let input = lowering.ordered(id, input, value, Order::RowMajor)?;
    let output = lowering.shape_in(lowering.output(id)?, Order::RowMajor)?;
    let (inputs, outputs) = (input.shape.c, output.c);
    let transposed = proto.int("transB").unwrap_or(0) == 1;
    let fixed = lowering.fixed(id, 1).filter(|f| f.tensor.element_type() == Ok(DataType::Int8));
    let is_matrix = |dims: &[i64]| dims.len() == 2;
    if fixed.is_none_or(|f| f.tensor.elements() != inputs.checked_mul(outputs) || !is_matrix(&f.tensor.dims))
    {
        return Err(Refusal::Form("its weights are no s8 matrix with zero point 0"));
    }
    if output.pixels() != input.shape.pixels() {
        return Err(Refusal::Form("its rows are not those of its input"));
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
    Ok(Outcome::Pending(Pending::new(id, &[input], output, finish)))
}

struct Gemm {
    matrix: Matrix,
    target: Target,
}

impl Operation for Gemm {
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        context.scratch.reserve(0, self.matrix.row());
        let words = &mut context.scratch.words[..self.matrix.row()];
        let ViewMut { bytes, stride } = output;
        for (row, bytes) in inputs[0].bytes.chunks(inputs[0].stride).zip(bytes.chunks_mut(stride)) {
            widen(row, words);
            product(context.isa, words, 1, &self.matrix, self.target, Out { bytes, stride, offset: 0 });
        }
    }
}
