//! For each operator, the shapes and types of a node's outputs.

use super::{
    Shape, ShapeMismatch, Shapes,
    refusals::refuse,
    sizes::{
        axis, broadcast, concat, constant_ints, flatten, made, matmul, reshape, resize, sizes, slice_along,
        transposed,
    },
    window::Window,
};
use crate::{
    graph::{Graph, NodeId},
    onnx::{DataType, NodeProto},
    plain::{split_sizes, squeezed, unsqueezed},
};

/// Type of output `at` of a node; `None` where the rule is not known.
pub(super) fn type_rule(
    proto: &NodeProto,
    at: usize,
    input: impl Fn(usize) -> Option<DataType>,
) -> Option<DataType> {
    let named = |name: &str| proto.int(name).and_then(|t| DataType::try_from(i32::try_from(t).ok()?).ok());
    match (proto.op_type.as_str(), at) {
        ("ArgMax" | "ArgMin" | "NonMaxSuppression" | "NonZero" | "Shape" | "Size", _)
        | ("TopK" | "MaxPool", 1) => Some(DataType::Int64),
        (
            "And" | "Equal" | "Greater" | "GreaterOrEqual" | "IsInf" | "IsNaN" | "Less" | "LessOrEqual"
            | "Not" | "Or" | "Xor",
            _,
        )
        | ("Dropout", 1) => Some(DataType::Bool),
        ("Cast", _) => named("to"),
        ("QuantizeLinear", _) => match input(2) {
            None => {
                Some(named("output_dtype").filter(|t| *t != DataType::Undefined).unwrap_or(DataType::Uint8))
            }
            known => known,
        },
        ("DequantizeLinear", _) => input(1),
        ("DynamicQuantizeLinear", 1) => Some(DataType::Float),
        ("DynamicQuantizeLinear", _) => Some(DataType::Uint8),
        ("ConvInteger" | "MatMulInteger", _) => Some(DataType::Int32),
        ("QLinearConv" | "QLinearMatMul", _) => input(7),
        ("Where", _) => input(1),
        ("Constant" | "ConstantOfShape", _) => match proto.tensor("value") {
            Some(value) => value.element_type().ok(),
            None if proto.attribute("value_ints").or(proto.attribute("value_int")).is_some() => {
                Some(DataType::Int64)
            }
            None => Some(DataType::Float),
        },
        ("If" | "Loop" | "Scan" | "Optional" | "OptionalGetElement", _) => None,
        (operator, _) if operator.starts_with("Sequence") => None,
        _ => input(0),
    }
}

pub(super) fn mismatch(graph: &Graph, id: NodeId, expected: String, actual: String) -> ShapeMismatch {
    let operator = graph.proto(id).op_type.clone();
    ShapeMismatch { node: graph.node(id).name.clone(), operator, expected, actual }
}

/// Operators whose first output has the shape of their first input.
fn keeps_shape(operator: &str) -> bool {
    matches!(
        operator,
        "Abs"
            | "BatchNormalization"
            | "Cast"
            | "Ceil"
            | "Celu"
            | "Clip"
            | "Cos"
            | "CumSum"
            | "DequantizeLinear"
            | "Dropout"
            | "Elu"
            | "Erf"
            | "Exp"
            | "Floor"
            | "Gelu"
            | "GroupNormalization"
            | "HardSigmoid"
            | "HardSwish"
            | "Hardmax"
            | "Identity"
            | "InstanceNormalization"
            | "IsInf"
            | "IsNaN"
            | "LRN"
            | "LayerNormalization"
            | "LeakyRelu"
            | "Log"
            | "LogSoftmax"
            | "Mish"
            | "MeanVarianceNormalization"
            | "Neg"
            | "Not"
            | "PRelu"
            | "QuantizeLinear"
            | "RMSNormalization"
            | "Reciprocal"
            | "Relu"
            | "Round"
            | "Selu"
            | "Sigmoid"
            | "Sign"
            | "Sin"
            | "Softmax"
            | "Softplus"
            | "Softsign"
            | "Sqrt"
            | "Tanh"
            | "ThresholdedRelu"
            | "Trilu"
    )
}

/// Shapes of a node's outputs; shorter than the outputs where nothing is known.
pub(super) fn rule(graph: &Graph, shapes: &Shapes, id: NodeId) -> Result<Vec<Shape>, ShapeMismatch> {
    let (node, proto) = (graph.node(id), graph.proto(id));
    let input = |i: usize| node.inputs.get(i).copied().flatten().and_then(|v| shapes.of(v));
    let fail = |expected: &str, actual: String| mismatch(graph, id, expected.into(), actual);
    let one = |dims: Shape| Ok(vec![dims]);
    // A list that newer versions have as an input and older ones as an attribute.
    let list = |i: usize, name: &str| match node.inputs.get(i).copied().flatten() {
        Some(_) => constant_ints(graph, shapes, node.inputs.get(i)),
        None => proto.ints(name).map(<[i64]>::to_vec),
    };
    refuse(graph, shapes, id)?;
    if let Some(dims) = made(graph, shapes, id) {
        return one(Some(dims));
    }
    let Some(first) = input(0) else { return Ok(vec![]) };
    match proto.op_type.as_str() {
        op if keeps_shape(op) => one(Some(first.to_vec())),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Sum" | "Mean" => {
            let others: Option<Vec<&[usize]>> = (1..node.inputs.len()).map(input).collect();
            let Some(others) = others else { return Ok(vec![]) };
            let mut dims = first.to_vec();
            for other in others {
                let both = broadcast(&dims, other);
                dims =
                    both.ok_or_else(|| fail("shapes that broadcast", format!("{dims:?} and {other:?}")))?;
            }
            one(Some(dims))
        }
        "Conv" | "ConvInteger" => {
            let Some(weight) = input(1) else { return Ok(vec![]) };
            let groups = proto.int("group").unwrap_or(1);
            let fits = first.len() == weight.len()
                && first.len() >= 3
                && groups >= 1
                && usize::try_from(groups)
                    .is_ok_and(|g| weight[1].checked_mul(g) == Some(first[1]) && weight[0] % g == 0);
            if !fits {
                let actual = format!("input {first:?}, weights {weight:?}, group {groups}");
                return Err(fail("input [N, C, …] and weights [M, C / group, …]", actual));
            }
            let kernel = proto.ints("kernel_shape").and_then(sizes);
            if kernel.as_ref().is_some_and(|kernel| kernel != &weight[2..]) {
                return Err(fail(
                    "weights of the kernel's size",
                    format!("kernel {kernel:?}, weights {weight:?}"),
                ));
            }
            if proto.op_type == "Conv" && input(2).is_some_and(|bias| *bias != weight[..1]) {
                return Err(fail("a bias for each output", format!("{:?} for {}", input(2), weight[0])));
            }
            let window = Window::of(proto, &weight[2..]);
            let spatial = window.and_then(|w| w.output(&first[2..]));
            let spatial =
                spatial.ok_or_else(|| fail("a window inside the padded input", window_text(proto, first)))?;
            one(Some([&[first[0], weight[0]], &*spatial].concat()))
        }
        "MaxPool" | "AveragePool" if first.len() >= 3 => {
            let kernel: Option<Vec<usize>> =
                proto.ints("kernel_shape").and_then(|k| k.iter().map(|k| usize::try_from(*k).ok()).collect());
            let window = kernel.filter(|k| k.len() == first.len() - 2).and_then(|k| Window::of(proto, &k));
            let spatial = window.and_then(|w| w.output(&first[2..]));
            let spatial =
                spatial.ok_or_else(|| fail("a window inside the padded input", window_text(proto, first)))?;
            one(Some([&first[..2], &*spatial].concat()))
        }
        "GlobalAveragePool" | "GlobalMaxPool" if first.len() >= 2 => {
            one(Some(first.iter().enumerate().map(|(i, d)| if i < 2 { *d } else { 1 }).collect()))
        }
        "Flatten" => one(flatten(first, proto)),
        "Gemm" => {
            let Some(second) = input(1) else { return Ok(vec![]) };
            let ([a0, a1], [b0, b1]) = (first, second) else {
                return Err(fail("two matrices", format!("{first:?} and {second:?}")));
            };
            let (rows, inner) = if proto.int("transA") == Some(1) { (a1, a0) } else { (a0, a1) };
            let (depth, columns) = if proto.int("transB") == Some(1) { (b1, b0) } else { (b0, b1) };
            if inner != depth {
                return Err(fail("matrices with one inner dimension", format!("{first:?} and {second:?}")));
            }
            one(Some(vec![*rows, *columns]))
        }
        "MatMul" | "MatMulInteger" => one(input(1).and_then(|second| matmul(first, second))),
        "QLinearMatMul" => one(input(3).and_then(|second| matmul(first, second))),
        "Transpose" => {
            let default: Vec<i64> = (0..first.len() as i64).rev().collect();
            let order = proto.ints("perm").unwrap_or(&default).iter();
            one(order.map(|p| usize::try_from(*p).ok().and_then(|p| first.get(p).copied())).collect())
        }
        "Reshape" => one(list(1, "shape").and_then(|to| reshape(first, &to, proto))),
        "Expand" => {
            let to = list(1, "shape").and_then(|dims| sizes(&dims));
            one(to.and_then(|to| broadcast(first, &to)))
        }
        "Tile" => {
            let repeats = list(1, "repeats").and_then(|dims| sizes(&dims));
            let repeats = repeats.filter(|r| r.len() == first.len());
            one(repeats.map(|r| first.iter().zip(r).map(|(d, r)| d.saturating_mul(r)).collect()))
        }
        "Concat" => {
            let parts: Option<Vec<&[usize]>> = (0..node.inputs.len()).map(input).collect();
            one(parts.and_then(|parts| concat(&parts, proto.int("axis")?)))
        }
        "Split" => {
            let sizes = list(1, "split");
            if sizes.is_none() && node.inputs.get(1).is_some_and(Option::is_some) {
                return Ok(vec![]);
            }
            let Some(d) = axis(proto.int("axis").unwrap_or(0), first.len()) else { return Ok(vec![]) };
            let parts = split_sizes(first[d], sizes.as_deref(), node.outputs.len());
            let parts = parts.ok_or_else(|| fail("sizes that add up", format!("{sizes:?} of {first:?}")))?;
            let part = |size: usize| Some([&first[..d], &[size], &first[d + 1..]].concat());
            Ok(parts.into_iter().map(part).collect())
        }
        "Slice" => one(slice_along(graph, shapes, id).map(|along| along.iter().map(Vec::len).collect())),
        "Squeeze" => {
            let axes = list(1, "axes");
            if axes.is_none() && node.inputs.get(1).is_some_and(Option::is_some) {
                return Ok(vec![]);
            }
            one(squeezed(first, axes.as_deref()).ok())
        }
        "Unsqueeze" => one(list(1, "axes").and_then(|axes| unsqueezed(first, &axes).ok())),
        "Gather" => {
            let d = axis(proto.int("axis").unwrap_or(0), first.len());
            one(d.zip(input(1)).map(|(d, indices)| [&first[..d], indices, &first[d + 1..]].concat()))
        }
        op if op.starts_with("Reduce") => {
            let axes = list(1, "axes");
            if axes.is_none() && node.inputs.get(1).is_some_and(Option::is_some) {
                return Ok(vec![]);
            }
            // A scalar may be reduced along its axis 0.
            let axes: Option<Vec<usize>> =
                axes.unwrap_or_default().iter().map(|a| axis(*a, first.len().max(1))).collect();
            let Some(axes) = axes else { return Ok(vec![]) };
            if axes.is_empty() && proto.int("noop_with_empty_axes") == Some(1) {
                return one(Some(first.to_vec()));
            }
            let reduced = |d: usize| axes.is_empty() || axes.contains(&d);
            let keeps = proto.int("keepdims").unwrap_or(1) != 0;
            let dim = |d: usize| if reduced(d) { keeps.then_some(1) } else { Some(first[d]) };
            one(Some((0..first.len()).filter_map(dim).collect()))
        }
        "ArgMax" | "ArgMin" => {
            let Some(d) = axis(proto.int("axis").unwrap_or(0), first.len().max(1)) else { return Ok(vec![]) };
            let keeps = proto.int("keepdims").unwrap_or(1) != 0;
            let dim = |i: usize| if i == d { keeps.then_some(1) } else { Some(first[i]) };
            one(Some((0..first.len()).filter_map(dim).collect()))
        }
        "Pad" => {
            let axes = match node.inputs.get(3).copied().flatten() {
                Some(_) => constant_ints(graph, shapes, node.inputs.get(3)),
                None => Some((0..first.len() as i64).collect()),
            };
            let Some((pads, axes)) = list(1, "pads").zip(axes) else { return Ok(vec![]) };
            let mut dims = first.to_vec();
            let mut pad = |(at, d): (usize, i64)| {
                let pads = pads.get(at)?.checked_add(*pads.get(at + axes.len())?)?;
                let d = axis(d, dims.len())?;
                dims[d] = usize::try_from(pads.checked_add(dims[d] as i64)?).ok()?;
                Some(())
            };
            let all = axes.iter().copied().enumerate().try_for_each(&mut pad);
            one(all.map(|()| dims))
        }
        "TopK" => {
            let k = match node.inputs.get(1).copied().flatten() {
                Some(_) => constant_ints(graph, shapes, node.inputs.get(1)).and_then(|k| k.first().copied()),
                None => proto.int("k"),
            };
            let d = axis(proto.int("axis").unwrap_or(-1), first.len());
            let Some((k, d)) = k.zip(d) else { return Ok(vec![]) };
            let k = usize::try_from(k).ok().filter(|k| *k <= first[d]);
            let k = k.ok_or_else(|| fail("a k of at most what there is", format!("of {first:?}")))?;
            let dims = [&first[..d], &[k], &first[d + 1..]].concat();
            Ok(vec![Some(dims.clone()), Some(dims)])
        }
        "Resize" | "Upsample" => one(resize(graph, shapes, id, first)),
        "DepthToSpace" => {
            let ([n, c, h, w], Some(b)) =
                (first, proto.int("blocksize").and_then(|b| usize::try_from(b).ok()))
            else {
                return Ok(vec![]);
            };
            let area = b.checked_mul(b).filter(|area| *area > 0 && c % area == 0);
            let sides = h.checked_mul(b).zip(w.checked_mul(b));
            one(area.zip(sides).map(|(area, (h, w))| vec![*n, c / area, h, w]))
        }
        "SpaceToDepth" => {
            let ([n, c, h, w], Some(b)) =
                (first, proto.int("blocksize").and_then(|b| usize::try_from(b).ok()))
            else {
                return Ok(vec![]);
            };
            let fits = b > 0 && h % b == 0 && w % b == 0;
            one(c
                .checked_mul(b)
                .and_then(|c| c.checked_mul(b))
                .filter(|_| fits)
                .map(|c| vec![*n, c, h / b, w / b]))
        }
        "Where" | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And" | "Or" | "Xor"
        | "Mod" | "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => {
            let rest: Option<Vec<&[usize]>> = (1..node.inputs.len()).map(input).collect();
            let all = |rest: Vec<&[usize]>| {
                rest.iter().try_fold(first.to_vec(), |dims, other| broadcast(&dims, other))
            };
            one(rest.and_then(all))
        }
        "ConvTranspose" => one(input(1).and_then(|weight| transposed(proto, first, weight))),
        "DynamicQuantizeLinear" => Ok(vec![Some(first.to_vec()), Some(vec![]), Some(vec![])]),
        _ => Ok(vec![]),
    }
}

fn window_text(proto: &NodeProto, input: &[usize]) -> String {
    let of = |name| proto.ints(name).unwrap_or(&[]);
    format!(
        "input {input:?}, kernel {:?}, strides {:?}, pads {:?}, dilations {:?}",
        of("kernel_shape"),
        of("strides"),
        of("pads"),
        of("dilations")
    )
}
