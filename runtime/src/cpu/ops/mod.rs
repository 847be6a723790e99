//! Operators of the `cpu` engine: each a module with its attributes, its lowering from ONNX, and its work on bytes. A
//! new one is a module and a line in [`lower`].

mod add;
mod channelwise;
mod conv;
mod depthwise;
mod extreme;
mod gemm;
mod layout;
mod matmul;
mod pool;
mod resize;
mod select;
mod softmax;
mod strided;
mod table;
mod transposed;

pub(crate) use resize::{Mix, Sampling};

use super::lower::{Lowering, Outcome, Refusal};
use crate::graph::NodeId;

/// What a node becomes; refuses operators and forms that have no step.
pub(super) fn lower(lowering: &mut Lowering<'_>, id: NodeId) -> Result<Outcome, Refusal> {
    match lowering.graph().proto(id).op_type.as_str() {
        "Add" | "Div" | "Mul" | "Sub" => add::lower(lowering, id)
            .or_else(|why| channelwise::lower_arithmetic(lowering, id).map_err(|_| why)),
        "ArgMax" | "ArgMin" => extreme::lower(lowering, id),
        "AveragePool" => pool::lower_window_average(lowering, id),
        "BatchNormalization" => channelwise::lower_normalisation(lowering, id),
        "Cast" => table::lower_cast(lowering, id),
        "Clip" | "Relu" => table::lower_clamp(lowering, id),
        "Concat" => layout::lower_concat(lowering, id),
        "Conv" => conv::lower(lowering, id),
        "ConvTranspose" => transposed::lower(lowering, id),
        "DepthToSpace" | "SpaceToDepth" => layout::lower_blocks(lowering, id),
        "Expand" => layout::lower_expand(lowering, id),
        "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" => layout::lower_reshape(lowering, id),
        "Gemm" | "MatMul" => gemm::lower(lowering, id),
        "Gather" => select::lower_gather(lowering, id),
        "GlobalAveragePool" => pool::lower_average(lowering, id),
        "GlobalMaxPool" => pool::lower_global_max(lowering, id),
        "MaxPool" => pool::lower_max(lowering, id),
        "PRelu" => channelwise::lower_prelu(lowering, id),
        "Pad" => select::lower_pad(lowering, id),
        "ReduceMean" => pool::lower_mean(lowering, id),
        "Resize" | "Upsample" => resize::lower(lowering, id),
        "Slice" => layout::lower_slice(lowering, id),
        "Softmax" => softmax::lower(lowering, id),
        "Split" => layout::lower_split(lowering, id),
        "Tile" => select::lower_tile(lowering, id),
        "Transpose" => layout::lower_transpose(lowering, id),
        _ => table::lower_function(lowering, id),
    }
}

pub(super) use layout::constant;
pub(super) use strided::{copy, reorder};
pub(super) use table::{requantise_table, table};
