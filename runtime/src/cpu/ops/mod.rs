//! Operators of the `cpu` engine: each a module with its attributes, its lowering from ONNX, and its work on bytes. A
//! new one is a module and a line in [`lower`].

mod add;
mod conv;
mod depthwise;
mod gemm;
mod layout;
mod pool;
mod resize;
mod strided;
mod table;

use super::lower::{Lowering, Outcome, Refusal};
use crate::graph::NodeId;

/// What a node becomes; refuses operators and forms that have no step.
pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    match lowering.graph().proto(id).op_type.as_str() {
        "Add" | "Div" | "Mul" | "Sub" => add::lower(lowering, id),
        "Clip" | "Relu" => table::lower_clamp(lowering, id),
        "Concat" => layout::lower_concat(lowering, id),
        "Conv" => conv::lower(lowering, id),
        "DepthToSpace" | "SpaceToDepth" => layout::lower_blocks(lowering, id),
        "Expand" => layout::lower_expand(lowering, id),
        "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" => layout::lower_reshape(lowering, id),
        "Gemm" | "MatMul" => gemm::lower(lowering, id),
        "GlobalAveragePool" => pool::lower_average(lowering, id),
        "MaxPool" => pool::lower_max(lowering, id),
        "Resize" | "Upsample" => resize::lower(lowering, id),
        "Slice" => layout::lower_slice(lowering, id),
        "Split" => layout::lower_split(lowering, id),
        "Transpose" => layout::lower_transpose(lowering, id),
        _ => table::lower_function(lowering, id),
    }
}

pub(super) use layout::constant;
pub(super) use strided::{copy, reorder};
pub(super) use table::{requantise_table, table};
