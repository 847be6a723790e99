//! Operators of the `cpu` engine: each a module with its attributes, its lowering from ONNX, and its work on bytes. A
//! new one is a module and a line in [`lower`].

mod add;
mod conv;
mod depthwise;
mod gemm;
mod pool;
mod table;

use super::lower::{Lowering, Outcome, Refusal};
use crate::graph::NodeId;

/// What a node becomes; refuses operators and forms that have no step.
pub(super) fn lower(lowering: &Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    match lowering.graph().proto(id).op_type.as_str() {
        "Add" => add::lower(lowering, id),
        "Conv" => conv::lower(lowering, id),
        "Gemm" | "MatMul" => gemm::lower(lowering, id),
        "GlobalAveragePool" => pool::lower_average(lowering, id),
        "MaxPool" => pool::lower_max(lowering, id),
        "Relu" | "Clip" => table::lower_clamp(lowering, id),
        "Flatten" | "Reshape" | "Squeeze" | "Identity" => lowering.reshape(id),
        _ => Err(Refusal::Operator),
    }
}

pub(super) use table::requantise;
