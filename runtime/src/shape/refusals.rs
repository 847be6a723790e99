//! Nodes that no engine is asked to run, whatever it makes of them: their numbers make no sense, and other engines would follow
//! them, without end or into memory that there is not. Each kind was found by trying.

use std::ops::RangeInclusive;

use super::{
    ShapeMismatch, Shapes,
    rules::mismatch,
    sizes::{axis, constant_ints, reshape, sizes, transposed},
    window::Window,
};
use crate::{
    graph::{Graph, NodeId},
    onnx::NodeProto,
};

/// Far above any real window, and low enough that no engine's sum of a few overflows.
const WINDOW_MAX: i64 = 1 << 20;
/// How often a window that slides may see a pixel, on average.
const LOOKS_MAX: usize = 64 * 64;

/// An error for a node that makes no sense, as far as the shapes of its inputs tell.
pub(super) fn refuse(graph: &Graph, shapes: &Shapes, id: NodeId) -> Result<(), ShapeMismatch> {
    let (node, proto) = (graph.node(id), graph.proto(id));
    let input = |i: usize| node.inputs.get(i).copied().flatten().and_then(|v| shapes.of(v));
    let fail = |expected: &str, actual: String| Err(mismatch(graph, id, expected.into(), actual));
    for at in scalars(&proto.op_type) {
        // Read without a look at its size.
        if let Some(dims) = input(*at).filter(|dims| dims.contains(&0)) {
            return fail(&format!("a number as input {at}"), format!("none, {dims:?}"));
        }
    }
    if proto.op_type == "Scan" {
        // tract counts how many states are left, without end where that is below none.
        let scanned = proto.int("num_scan_inputs");
        // The first version had one more, lengths of sequences.
        let inputs = node.inputs.len() as i64 - i64::from(graph.opset() < 9);
        if let Some(scanned) = scanned.filter(|n| !(1..=inputs).contains(n)) {
            return fail("at most as many scanned inputs as there are inputs", scanned.to_string());
        }
        // And how many outputs are left.
        let body = proto.attribute("body").and_then(|body| body.g.as_ref());
        if let (Some(scanned), Some(body)) = (scanned.filter(|_| graph.opset() >= 9), body) {
            let states = node.inputs.len() - scanned as usize;
            if body.output.len() < states {
                let expected = format!("a body that gives at least its {states} states");
                return fail(&expected, format!("one of {} outputs", body.output.len()));
            }
        }
    }
    if is_window(&proto.op_type) {
        for name in ["kernel_shape", "strides", "dilations", "pads", "output_padding", "output_shape"] {
            let values = proto.ints(name).unwrap_or_default();
            let least = if matches!(name, "strides" | "dilations" | "kernel_shape") { 1 } else { 0 };
            if let Some(value) = values.iter().find(|v| !(least..=WINDOW_MAX).contains(v)) {
                return fail(&format!("{name} of {least} to {WINDOW_MAX}"), value.to_string());
            }
        }
    }
    let Some(first) = input(0) else { return Ok(()) };
    // Whose axis is some dimension even where they do not say which.
    if first.is_empty() && has_dimensions(&proto.op_type) {
        return fail("an input that has dimensions", "a scalar".into());
    }
    // An engine that takes one from outside for a place goes on without end.
    if let Some((at, places)) = proto.int("axis").zip(places(&proto.op_type, first.len()))
        && !places.contains(&at)
    {
        return fail(&format!("an axis of {first:?}"), at.to_string());
    }
    match &*proto.op_type {
        "Transpose" => {
            let order = proto.ints("perm").unwrap_or_default();
            let mut places: Vec<usize> = order.iter().filter_map(|p| axis(*p, first.len())).collect();
            places.sort_unstable();
            // Sought for without end where a place is missing.
            if proto.attribute("perm").is_some() && !places.into_iter().eq(0..first.len()) {
                return fail(&format!("an order of {} dimensions", first.len()), format!("{order:?}"));
            }
        }
        "DFT" if first.len() < 2 => {
            return fail("a signal of numbers that are real or complex", format!("{first:?}"));
        }
        // tract counts the dimensions that are left, without end where that is below none.
        "GatherND" | "ScatterND" => {
            let batch = proto.int("batch_dims").unwrap_or(0);
            let left = usize::try_from(batch).ok().and_then(|batch| first.len().checked_sub(batch));
            match (input(1), left) {
                (Some([]), _) => return fail("indices in rows", "a scalar".into()),
                (_, None) => return fail("as many batch_dims as there are dimensions", batch.to_string()),
                (Some([.., length]), Some(left)) if *length > left => {
                    return fail("indices of at most as many dimensions as there are", length.to_string());
                }
                _ => {}
            }
        }
        "AveragePool" | "Conv" | "LpPool" | "MaxPool" => {
            if first.len() < 3 {
                return fail("an input [N, C, …]", format!("{first:?}"));
            }
            let kernel = match &*proto.op_type {
                "Conv" => input(1).and_then(|weights| weights.get(2..)).map(<[usize]>::to_vec),
                _ => proto.ints("kernel_shape").and_then(sizes),
            };
            let looks = kernel.and_then(|kernel| looks(proto, &kernel, first));
            if let Some(looks) = looks.filter(|looks| *looks > LOOKS_MAX) {
                let expected = format!("a window that sees a pixel at most {LOOKS_MAX} times");
                return fail(&expected, looks.to_string());
            }
        }
        "Reshape" => {
            let to = match node.inputs.get(1).copied().flatten() {
                Some(_) => constant_ints(graph, shapes, node.inputs.get(1)),
                None => proto.ints("shape").map(<[i64]>::to_vec),
            };
            if let Some(to) = to.filter(|to| reshape(first, to, proto).is_none()) {
                return fail(&format!("a shape of as many elements as {first:?}"), format!("{to:?}"));
            }
        }
        "ConvTranspose" => {
            let weights = input(1);
            if let Some(weights) = weights.filter(|weights| transposed(proto, first, weights).is_none()) {
                return fail(
                    "input [N, C, …], weights [C, M / group, …] and a window that gives an output",
                    format!("input {first:?}, weights {weights:?}"),
                );
            }
        }
        _ => {}
    }
    Ok(())
}

/// Inputs that have one number at least, by their index.
fn scalars(operator: &str) -> &'static [usize] {
    match operator {
        "BlackmanWindow" | "HammingWindow" | "HannWindow" | "If" => &[0],
        "CumSum" | "OneHot" | "SequenceAt" | "TopK" | "Trilu" => &[1],
        "Clip" | "DFT" | "Dropout" => &[1, 2],
        "Loop" => &[0, 1],
        "MelWeightMatrix" => &[0, 1, 2, 3, 4],
        "ConvInteger" | "MatMulInteger" => &[2, 3],
        "DequantizeLinear" | "QuantizeLinear" => &[1, 2],
        "QLinearConv" | "QLinearMatMul" => &[1, 2, 4, 5, 6, 7],
        "NonMaxSuppression" => &[2, 3, 4],
        "Pad" => &[2],
        "Range" => &[0, 1, 2],
        "STFT" => &[1, 3],
        _ => &[],
    }
}

fn has_dimensions(operator: &str) -> bool {
    matches!(
        operator,
        "AveragePool"
            | "BatchNormalization"
            | "Compress"
            | "Concat"
            | "Conv"
            | "ConvInteger"
            | "ConvTranspose"
            | "CumSum"
            | "DepthToSpace"
            | "Gather"
            | "GatherElements"
            | "GatherND"
            | "GlobalAveragePool"
            | "GlobalLpPool"
            | "GlobalMaxPool"
            | "GroupNormalization"
            | "Hardmax"
            | "InstanceNormalization"
            | "LRN"
            | "LayerNormalization"
            | "LpNormalization"
            | "LpPool"
            | "MatMul"
            | "MatMulInteger"
            | "MaxPool"
            | "MaxUnpool"
            | "MeanVarianceNormalization"
            | "QLinearConv"
            | "QLinearMatMul"
            | "RMSNormalization"
            | "ReverseSequence"
            | "ScatterElements"
            | "ScatterND"
            | "SpaceToDepth"
            | "Split"
            | "TopK"
    )
}

fn is_window(operator: &str) -> bool {
    matches!(
        operator,
        "AveragePool"
            | "Conv"
            | "ConvInteger"
            | "ConvTranspose"
            | "LpPool"
            | "MaxPool"
            | "MaxUnpool"
            | "QLinearConv"
    )
}

/// What the attribute `axis` may be, where it says something of the first input's dimensions.
fn places(operator: &str, rank: usize) -> Option<RangeInclusive<i64>> {
    let rank = rank as i64;
    match operator {
        // They look at it only where there is more than one scale; these may add any number of dimensions.
        "QuantizeLinear" | "DequantizeLinear" | "ConcatFromSequence" | "Unsqueeze" => None,
        // Between two dimensions, before the first or behind the last.
        "Flatten" => Some(-rank..=rank),
        "OneHot" => Some(-rank - 1..=rank),
        _ => Some(-rank.max(1)..=rank.max(1) - 1),
    }
}

/// How often each pixel of an image, or of what a pool makes of it if that is more, is looked at. `None` where the window does
/// not say.
fn looks(proto: &NodeProto, kernel: &[usize], input: &[usize]) -> Option<usize> {
    let window = Window::of(proto, kernel)?;
    let spatial = input.get(2..)?;
    let output = window.output(spatial)?;
    let count = |dims: &[usize]| dims.iter().fold(1usize, |n, d| n.saturating_mul(*d));
    let pixels = count(spatial).max(count(&output)).max(1);
    Some(count(kernel).saturating_mul(count(&output)) / pixels)
}
