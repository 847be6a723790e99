//! Gemm and MatMul with constant s8 weights: each row of the left side times the weights.
//!
//! ONNX Gemm 7 to 13 with alpha and beta 1 and no transposed left side; MatMul 1 to 13.

use super::{
    super::{
        describe::{Convolution, Description, Filters},
        kernels::{Finished, Matrix, Place, Target, Windows, product},
        lower::{Lowering, Outcome, Pending, Refusal},
        plan::{Context, Operation, Order, Quantity, Shape, View, ViewMut},
    },
    conv::{SLACK, Weights},
    table::fuse,
};
use crate::graph::NodeId;

pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    let proto = lowering.graph().proto(id);
    let scaled = proto.float("alpha").unwrap_or(1.0) != 1.0 || proto.float("beta").unwrap_or(1.0) != 1.0;
    if scaled || proto.int("transA").unwrap_or(0) != 0 {
        return Err(Refusal::Form("it is no plain product"));
    }
    let input = lowering.activation(id, 0)?;
    if let (Ok(right), true) = (lowering.activation(id, 1), proto.op_type == "MatMul") {
        return super::matmul::lower(lowering, id, input, right);
    }
    let value = lowering.input(id, 0).ok_or(Refusal::Form("it has no input"))?;
    let input = lowering.ordered(id, input, value, Order::RowMajor)?;
    let output = lowering.shape_in(lowering.output(id)?, Order::RowMajor)?;
    let (inputs, outputs) = (input.shape.c, output.c);
    let transposed = proto.int("transB").unwrap_or(0) == 1;
    let fixed = lowering.fixed(id, 1);
    let sides = if transposed { [outputs, inputs] } else { [inputs, outputs] };
    if fixed.is_none_or(|f| f.tensor.shape().is_none_or(|dims| dims != sides)) {
        return Err(Refusal::Form("its weights are no constant matrix"));
    }
    if output.pixels() != input.shape.pixels() {
        return Err(Refusal::Form("its rows are not those of its input"));
    }
    if let Some(bias) = lowering.input(id, 2) {
        // One for each column; as many for the rows would be added elsewhere.
        let dims = lowering.shapes().of(bias).ok_or(Refusal::Form("a shape that is not known"))?;
        let by_column = match dims {
            [] => outputs == 1,
            [rows @ .., columns] => *columns == outputs && rows.iter().all(|d| *d == 1),
        };
        if !by_column {
            return Err(Refusal::Form("its bias is not one for each column"));
        }
    }
    let weights =
        Weights::read(lowering, id, outputs, inputs, if transposed { 0 } else { 1 }, input.quantity)?;
    let weights = if transposed { weights } else { weights.transposed() };
    let (packing, rows) = (lowering.packing(), output.pixels());
    let finish = move |result: Quantity, target: Target| -> Result<Box<dyn Operation>, Refusal> {
        let sums = weights.sums(input.quantity, result, target)?;
        let live = weights.arranged(&sums, 0..sums.bias.len(), 1);
        let matrix = Matrix::pack(packing.isa, 1, inputs, &sums.bias, &sums.multiplier, &live);
        let filters = weights.kept(packing.sources, &sums, 1);
        Ok(Box::new(Gemm { matrix, inputs, rows, target, table: None, filters }))
    };
    Ok(Outcome::Pending(Pending::new(id, &[input], output, finish)))
}

struct Gemm {
    matrix: Matrix,
    inputs: usize,
    rows: usize,
    target: Target,
    table: Option<Box<[u8; 256]>>,
    filters: Option<Box<Filters>>,
}

impl Operation for Gemm {
    fn run(&self, context: &mut Context<'_>, inputs: &[View<'_>], output: ViewMut<'_>) {
        let View { mut bytes, stride } = inputs[0];
        if !self.inputs.is_multiple_of(4) {
            let copy = context.scratch.reserve(bytes.len() + SLACK);
            copy[..bytes.len()].copy_from_slice(bytes);
            bytes = copy;
        }
        let rows = output.bytes.len().div_ceil(output.stride);
        let windows = Windows { rows, start: 0, width: rows.max(1), right: stride, down: 0, runs: &[0] };
        let finished = Finished { target: self.target, table: self.table.as_deref(), skip: None };
        let place = Place { offset: 0, stride: output.stride };
        product(context.team, bytes, windows, &self.matrix, finished, output.bytes, place);
    }

    fn fuse_table(&mut self, table: &[u8; 256]) -> bool {
        fuse(&mut self.table, table);
        true
    }

    /// A convolution of one row of pixels under a window of one.
    fn describe(&self) -> Option<Description<'_>> {
        let row = |c: usize| Shape { h: 1, w: self.rows, c };
        let one = [1, 1];
        Some(Description::Convolution(Convolution {
            filters: self.filters.as_deref()?,
            input: row(self.inputs),
            output: row(self.matrix.columns()),
            kernel: one,
            strides: one,
            dilations: one,
            before: [0, 0],
            groups: 1,
            zero: 0,
            target: self.target,
            table: self.table.as_deref(),
            skip: None,
        }))
    }
}
