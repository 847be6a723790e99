//! Shapes and types of the values of a graph, as far as they follow from the inputs' shapes; and values that follow
//! from constants and shapes alone.
//!
//! Serves the reader of `explain`, the estimate of memory before an engine allocates any, and planning. Knows the
//! operators that vision networks are made of; for others it falls back to what the file declares, or knows nothing,
//! which is no error. It is one when an operator it knows cannot work on what it is given.

use std::collections::HashMap;

use crate::{
    graph::{Graph, NodeId, ValueId},
    onnx::{DataType, Limits, NodeProto, TensorProto},
    plain::{self, sliced, split_sizes, squeezed, unsqueezed},
    tensor::Tensor,
};

/// Dimensions of a value; `None` where they are not known.
pub type Shape = Option<Vec<usize>>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("node {node:?} ({operator}): expected {expected}, found {actual}")]
pub struct ShapeMismatch {
    pub node: String,
    pub operator: String,
    pub expected: String,
    pub actual: String,
}

/// What is known of each value before anything runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Shapes {
    /// By [`ValueId`], as are the types.
    dims: Vec<Shape>,
    types: Vec<Option<DataType>>,
    /// Values of nodes that read nothing but constants and shapes.
    folded: HashMap<ValueId, TensorProto>,
}

impl Shapes {
    pub fn of(&self, id: ValueId) -> Option<&[usize]> {
        self.dims[id.index()].as_deref()
    }

    pub fn data_type(&self, id: ValueId) -> Option<DataType> {
        self.types[id.index()]
    }

    /// A constant of the file, or one that follows from others and from shapes.
    pub fn constant<'a>(&'a self, graph: &'a Graph, id: ValueId) -> Option<&'a TensorProto> {
        graph.constant(id).or_else(|| self.folded.get(&id))
    }

    pub fn elements(&self, id: ValueId) -> Option<usize> {
        self.of(id).map(|dims| dims.iter().product())
    }
}

/// `inputs`: dimensions of the graph's inputs where known.
pub fn infer(
    graph: &Graph,
    inputs: &[(ValueId, Vec<usize>)],
    limits: &Limits,
) -> Result<Shapes, ShapeMismatch> {
    let count = graph.value_count();
    let mut shapes = Shapes { dims: vec![None; count], types: vec![None; count], folded: HashMap::new() };
    for (id, tensor) in graph.values().filter_map(|id| Some((id, graph.constant(id)?))) {
        shapes.dims[id.index()] = tensor.shape();
        shapes.types[id.index()] = tensor.element_type().ok();
    }
    for (id, dims) in inputs.iter().filter(|(_, dims)| fits(dims, limits)) {
        shapes.dims[id.index()] = Some(dims.clone());
    }
    for (id, info) in graph.inputs() {
        shapes.types[id.index()] = info.data_type();
    }
    for info in graph.declared() {
        let Some(id) = graph.find(&info.name) else { continue };
        shapes.types[id.index()] = info.data_type();
        let known: Option<Vec<usize>> = info.dims().and_then(|dims| dims.into_iter().collect());
        let known = known.filter(|dims| fits(dims, limits));
        // What the file declares holds only for the sizes it was written for; it is kept if the inputs have them.
        if known.is_some() && declares(graph, inputs) {
            shapes.dims[id.index()] = known;
        }
    }
    for (id, node, proto) in graph.nodes() {
        for (at, output) in node.outputs.iter().enumerate() {
            let Some(output) = output else { continue };
            let input = |i: usize| node.inputs.get(i).copied().flatten().and_then(|v| shapes.data_type(v));
            if let Some(known) = type_rule(proto, at, input) {
                shapes.types[output.index()] = Some(known);
            }
        }
        if let Some(values) = fold(graph, &shapes, id) {
            for (output, value) in node.outputs.iter().zip(values) {
                let Some(output) = output else { continue };
                shapes.dims[output.index()] = Some(value.shape().to_vec());
                shapes.folded.insert(*output, value.to_proto(&graph.value(*output).name));
            }
            continue;
        }
        let outputs = rule(graph, &shapes, id)?;
        for (output, dims) in node.outputs.iter().zip(outputs) {
            let (Some(output), Some(dims)) = (output, dims) else { continue };
            if !fits(&dims, limits) {
                let expected = format!(
                    "an output of at most {} elements and {} dimensions",
                    limits.elements_max, limits.rank_max
                );
                return Err(mismatch(graph, id, expected, format!("{dims:?}")));
            }
            shapes.dims[output.index()] = Some(dims);
        }
    }
    Ok(shapes)
}

/// Every shape that is kept fits, so that products of its dimensions do not overflow.
fn fits(dims: &[usize], limits: &Limits) -> bool {
    dims.len() <= limits.rank_max
        && dims
            .iter()
            .try_fold(1usize, |n, d| n.checked_mul((*d).max(1)))
            .is_some_and(|n| n <= limits.elements_max)
}

/// Whether the inputs have the very dimensions that the file declares.
fn declares(graph: &Graph, inputs: &[(ValueId, Vec<usize>)]) -> bool {
    graph.inputs().all(|(id, info)| {
        let declared: Option<Vec<usize>> = info.dims().and_then(|dims| dims.into_iter().collect());
        declared.is_some()
            && inputs.iter().any(|(given, dims)| *given == id && Some(dims) == declared.as_ref())
    })
}

/// The outputs of a node that reads nothing but constants and shapes, where there is an operator of ours.
fn fold(graph: &Graph, shapes: &Shapes, id: NodeId) -> Option<Vec<Tensor>> {
    const ELEMENTS_MAX: usize = 16 << 20;
    let (node, proto) = (graph.node(id), graph.proto(id));
    // A dequantised constant is more than its values, and weights of products are not folded ones.
    let never = matches!(&*proto.op_type, "DequantizeLinear" | "Conv" | "MatMul" | "Gemm");
    if never || (proto.op_type == "Constant" && proto.tensor("value").is_some()) {
        return None;
    }
    let call = plain::Call::of(graph, id)?;
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for value in &node.inputs {
        inputs.push(match value {
            None => None,
            Some(value) if matches!(&*proto.op_type, "Shape" | "Size") => {
                Some(Tensor::shape_only(shapes.of(*value)?))
            }
            Some(value) => {
                let constant = shapes.constant(graph, *value)?;
                let small = constant.elements().is_some_and(|n| n <= ELEMENTS_MAX);
                Some(Tensor::from_proto(constant).ok().filter(|_| small)?)
            }
        });
    }
    let outputs = call.run(&inputs.iter().map(Option::as_ref).collect::<Vec<_>>()).ok()?;
    let all = outputs.len() == node.outputs.len();
    (all && outputs.iter().all(|t| t.data().len() <= ELEMENTS_MAX)).then_some(outputs)
}

/// Type of output `at` of a node; `None` where the rule is not known.
fn type_rule(proto: &NodeProto, at: usize, input: impl Fn(usize) -> Option<DataType>) -> Option<DataType> {
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

fn mismatch(graph: &Graph, id: NodeId, expected: String, actual: String) -> ShapeMismatch {
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
fn rule(graph: &Graph, shapes: &Shapes, id: NodeId) -> Result<Vec<Shape>, ShapeMismatch> {
    let (node, proto) = (graph.node(id), graph.proto(id));
    let input = |i: usize| node.inputs.get(i).copied().flatten().and_then(|v| shapes.of(v));
    let fail = |expected: &str, actual: String| mismatch(graph, id, expected.into(), actual);
    let one = |dims: Shape| Ok(vec![dims]);
    // A list that newer versions have as an input and older ones as an attribute.
    let list = |i: usize, name: &str| match node.inputs.get(i).copied().flatten() {
        Some(_) => constant_ints(graph, shapes, node.inputs.get(i)),
        None => proto.ints(name).map(<[i64]>::to_vec),
    };
    if proto.op_type == "ConstantOfShape" {
        return one(constant_ints(graph, shapes, node.inputs.first()).and_then(|dims| sizes(&dims)));
    }
    let Some(first) = input(0) else { return Ok(vec![]) };
    match proto.op_type.as_str() {
        op if keeps_shape(op) => one(Some(first.to_vec())),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Sum" => {
            let Some(second) = input(1) else { return one((node.inputs.len() == 1).then(|| first.to_vec())) };
            if node.inputs.len() > 2 {
                return Ok(vec![]);
            }
            let dims = broadcast(first, second);
            one(Some(dims.ok_or_else(|| fail("shapes that broadcast", format!("{first:?} and {second:?}")))?))
        }
        "Conv" => {
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
            if input(2).is_some_and(|bias| *bias != weight[..1]) {
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
        "MatMul" => one(input(1).and_then(|second| matmul(first, second))),
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
        "Slice" => {
            let (Some(starts), Some(ends)) = (list(1, "starts"), list(2, "ends")) else { return Ok(vec![]) };
            if [3, 4]
                .iter()
                .any(|i| node.inputs.get(*i).is_some_and(Option::is_some) && list(*i, "").is_none())
            {
                return Ok(vec![]);
            }
            let along = sliced(first, &starts, &ends, list(3, "axes").as_deref(), list(4, "").as_deref());
            one(along.ok().map(|along| along.iter().map(Vec::len).collect()))
        }
        "Squeeze" => {
            let axes = list(1, "axes");
            if axes.is_none() && node.inputs.get(1).is_some_and(Option::is_some) {
                return Ok(vec![]);
            }
            one(squeezed(first, axes.as_deref()).ok())
        }
        "Unsqueeze" => one(list(1, "axes").and_then(|axes| unsqueezed(first, &axes).ok())),
        "Gather" => {
            let d = axis(proto.int("axis").unwrap_or(0), first.len()).filter(|d| *d < first.len());
            one(d.zip(input(1)).map(|(d, indices)| [&first[..d], indices, &first[d + 1..]].concat()))
        }
        op if op.starts_with("Reduce") => {
            let axes = list(1, "axes");
            if axes.is_none() && node.inputs.get(1).is_some_and(Option::is_some) {
                return Ok(vec![]);
            }
            let axes: Option<Vec<usize>> =
                axes.unwrap_or_default().iter().map(|a| axis(*a, first.len())).collect();
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
            let Some(d) = axis(proto.int("axis").unwrap_or(0), first.len()) else { return Ok(vec![]) };
            let keeps = proto.int("keepdims").unwrap_or(1) != 0;
            let dim = |i: usize| if i == d { keeps.then_some(1) } else { Some(first[i]) };
            one(Some((0..first.len()).filter_map(dim).collect()))
        }
        "Pad" => {
            let Some(pads) = list(1, "pads").filter(|_| node.inputs.get(3).copied().flatten().is_none())
            else {
                return Ok(vec![]);
            };
            let rank = first.len();
            let dim = |d: usize| {
                let pads = pads.get(d)?.checked_add(*pads.get(d + rank)?)?;
                usize::try_from(pads.checked_add(first[d] as i64)?).ok()
            };
            one((0..rank).map(dim).collect())
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
        | "Mod" => {
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

/// A sliding window over `n` spatial dimensions, as Conv and the pools describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) kernel: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) dilations: Vec<usize>,
    pub(crate) pads: Pads,
    pub(crate) ceil: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pads {
    /// All at the start, then all at the end.
    Explicit(Vec<usize>),
    /// As many as keep `ceil(input / stride)`; an odd one goes to the end or to the start.
    Same { odd_at_end: bool },
}

impl Window {
    /// `None` where an attribute is out of range or has the wrong length.
    pub(crate) fn of(proto: &NodeProto, kernel: &[usize]) -> Option<Self> {
        let n = kernel.len();
        let list = |name: &str, length: usize, absent: usize| -> Option<Vec<usize>> {
            let Some(values) = proto.ints(name) else { return Some(vec![absent; length]) };
            let values: Vec<usize> =
                values.iter().map(|v| usize::try_from(*v).ok()).collect::<Option<_>>()?;
            // Far above any real one, and low enough that no sum below overflows.
            (values.len() == length && values.iter().all(|v| *v <= 1 << 20)).then_some(values)
        };
        let pads = match proto.string("auto_pad").unwrap_or("NOTSET") {
            "SAME_UPPER" => Pads::Same { odd_at_end: true },
            "SAME_LOWER" => Pads::Same { odd_at_end: false },
            "VALID" => Pads::Explicit(vec![0; 2 * n]),
            "NOTSET" | "" => Pads::Explicit(list("pads", 2 * n, 0)?),
            _ => return None,
        };
        let (strides, dilations) = (list("strides", n, 1)?, list("dilations", n, 1)?);
        let positive = strides.iter().chain(&dilations).chain(kernel).all(|v| (1..=1 << 20).contains(v));
        let ceil = proto.int("ceil_mode") == Some(1);
        positive.then(|| Self { kernel: kernel.to_vec(), strides, dilations, pads, ceil })
    }

    /// The same on a row of pixels: a first dimension of size 1.
    pub(crate) fn on_a_row(mut self) -> Self {
        for list in [&mut self.kernel, &mut self.strides, &mut self.dilations] {
            list.insert(0, 1);
        }
        if let Pads::Explicit(pads) = &mut self.pads {
            pads.insert(0, 0);
            pads.insert(pads.len() / 2 + 1, 0);
        }
        self
    }

    /// Padding before and after dimension `d` of size `input`.
    pub(crate) fn pads(&self, d: usize, input: usize) -> (usize, usize) {
        match &self.pads {
            Pads::Explicit(pads) => (pads[d], pads[d + self.kernel.len()]),
            Pads::Same { odd_at_end } => {
                let needed =
                    (input.div_ceil(self.strides[d]).saturating_sub(1)) * self.strides[d] + self.extent(d);
                let total = needed.saturating_sub(input);
                let small = total / 2;
                if *odd_at_end { (small, total - small) } else { (total - small, small) }
            }
        }
    }

    /// Input positions that one window spans.
    pub(crate) fn extent(&self, d: usize) -> usize {
        (self.kernel[d] - 1) * self.dilations[d] + 1
    }

    pub(crate) fn output(&self, input: &[usize]) -> Option<Vec<usize>> {
        if input.len() != self.kernel.len() {
            return None;
        }
        let size = |(d, input): (usize, &usize)| {
            let (before, after) = self.pads(d, *input);
            let room = input.checked_add(before)?.checked_add(after)?.checked_sub(self.extent(d))?;
            let steps = if self.ceil { room.div_ceil(self.strides[d]) } else { room / self.strides[d] };
            // A last window that would start in the end padding does not count.
            let beyond = self.ceil && steps * self.strides[d] >= input + before;
            Some(steps + 1 - usize::from(beyond))
        };
        input.iter().enumerate().map(size).collect()
    }
}

fn axis(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(axis).ok().filter(|a| *a < rank.max(1))
}

/// Two dimensions: those before the axis together, and the rest. The axis may stand behind the last dimension, but a
/// negative one counts from the last.
pub(crate) fn flatten(dims: &[usize], node: &NodeProto) -> Option<Vec<usize>> {
    let at = node.int("axis").unwrap_or(1);
    let at = if at < 0 { axis(at, dims.len())? } else { usize::try_from(at).ok()? };
    let (before, after) = dims.split_at_checked(at)?;
    Some(vec![before.iter().product(), after.iter().product()])
}

pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], i: usize| (i + dims.len()).checked_sub(rank).map_or(1, |i| dims[i]);
    let fit = |i| match (at(a, i), at(b, i)) {
        (x, y) if x == y => Some(x),
        (1, y) => Some(y),
        (x, 1) => Some(x),
        _ => None,
    };
    (0..rank).map(fit).collect()
}

fn matmul(a: &[usize], b: &[usize]) -> Shape {
    let ([a_batch @ .., m, k], [b_batch @ .., l, n]) = (a, b) else { return None };
    let mut dims = broadcast(a_batch, b_batch).filter(|_| k == l)?;
    dims.extend([*m, *n]);
    Some(dims)
}

fn constant_ints(graph: &Graph, shapes: &Shapes, id: Option<&Option<ValueId>>) -> Option<Vec<i64>> {
    let tensor = shapes.constant(graph, id.copied().flatten()?)?;
    let narrow = || tensor.to_i32().map(|v| v.into_iter().map(i64::from).collect());
    tensor.to_i64().or_else(|_| narrow()).ok()
}

/// Sizes after a Resize 10 to 19, or an Upsample 7 or 9, of which scales or sizes are constants.
fn resize(graph: &Graph, shapes: &Shapes, id: NodeId, first: &[usize]) -> Shape {
    let (node, proto) = (graph.node(id), graph.proto(id));
    let input = |i: usize| node.inputs.get(i).copied().flatten();
    let axes: Vec<usize> = match proto.ints("axes") {
        Some(axes) => axes.iter().map(|a| axis(*a, first.len())).collect::<Option<_>>()?,
        None => (0..first.len()).collect(),
    };
    let mut dims = first.to_vec();
    if let Some(to) = input(3).and_then(|_| constant_ints(graph, shapes, node.inputs.get(3))) {
        if proto.string("keep_aspect_ratio_policy").unwrap_or("stretch") != "stretch" {
            return None;
        }
        for (d, to) in axes.iter().zip(&to) {
            *dims.get_mut(*d)? = usize::try_from(*to).ok()?;
        }
        return (axes.len() == to.len()).then_some(dims);
    }
    let scales = match (input(2), proto.attribute("scales"), input(1)) {
        (Some(scales), _, _) => shapes.constant(graph, scales)?.to_f32().ok()?,
        (None, Some(scales), _) => scales.floats.clone(),
        (None, None, Some(scales)) => shapes.constant(graph, scales)?.to_f32().ok()?,
        _ => return None,
    };
    for (d, scale) in axes.iter().zip(&scales) {
        let size = (*dims.get(*d)? as f64 * f64::from(*scale)).floor();
        *dims.get_mut(*d)? = (0.0..1e9).contains(&size).then_some(size as usize)?;
    }
    (axes.len() == scales.len()).then_some(dims)
}

/// Sizes after a ConvTranspose 1 or 11.
fn transposed(proto: &NodeProto, first: &[usize], weight: &[usize]) -> Shape {
    let ([n, c, spatial @ ..], [m, per_group, kernel @ ..]) = (first, weight) else { return None };
    let groups = usize::try_from(proto.int("group").unwrap_or(1)).ok()?;
    let window = Window::of(proto, kernel).filter(|_| c == m && spatial.len() == kernel.len())?;
    let list =
        |name: &str| proto.ints(name).map(|v| v.iter().map(|v| usize::try_from(*v).ok()).collect::<Shape>());
    if let Some(sizes) = list("output_shape") {
        let sizes = sizes?;
        let spatial = sizes.get(sizes.len().checked_sub(kernel.len())?..)?;
        return Some([&[*n, per_group.checked_mul(groups)?], spatial].concat());
    }
    let extra = list("output_padding").unwrap_or_else(|| Some(vec![0; kernel.len()]))?;
    let size = |d: usize| {
        let full =
            (spatial[d].checked_sub(1)?).checked_mul(window.strides[d])?.checked_add(window.extent(d))?;
        let full = full.checked_add(*extra.get(d)?)?;
        match &window.pads {
            Pads::Explicit(pads) => full.checked_sub(pads[d] + pads[d + kernel.len()]),
            Pads::Same { .. } => spatial[d].checked_mul(window.strides[d]),
        }
    };
    let mut dims = vec![*n, per_group.checked_mul(groups)?];
    dims.extend((0..kernel.len()).map(size).collect::<Option<Vec<_>>>()?);
    Some(dims)
}

fn sizes(dims: &[i64]) -> Shape {
    dims.iter().map(|d| usize::try_from(*d).ok()).collect()
}

pub(crate) fn reshape(from: &[usize], to: &[i64], proto: &NodeProto) -> Shape {
    let copies = proto.int("allowzero") != Some(1);
    let total = from.iter().product::<usize>();
    let size = |(i, d): (usize, &i64)| match *d {
        0 if copies => from.get(i).copied(),
        -1 => Some(1),
        d => usize::try_from(d).ok(),
    };
    let mut dims: Vec<usize> = to.iter().enumerate().map(size).collect::<Option<_>>()?;
    let rest = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    match to.iter().filter(|d| **d == -1).count() {
        0 => (rest == total).then_some(dims),
        1 if rest > 0 && total % rest == 0 => {
            let at = to.iter().position(|d| *d == -1)?;
            dims[at] = total / rest;
            Some(dims)
        }
        _ => None,
    }
}

fn concat(parts: &[&[usize]], along: i64) -> Shape {
    let mut dims = parts.first()?.to_vec();
    let along = axis(along, dims.len())?;
    for part in &parts[1..] {
        let same = part.len() == dims.len() && (0..dims.len()).all(|i| i == along || part[i] == dims[i]);
        dims[along] = same.then(|| dims[along].checked_add(part[along])).flatten()?;
    }
    Some(dims)
}

/// Multiply-accumulates of one run of a node, where shapes are known; 0 for operators that have none.
pub fn macs(graph: &Graph, shapes: &Shapes, id: NodeId) -> Option<u64> {
    let node = graph.node(id);
    let of = |v: &Option<ValueId>| v.and_then(|v| shapes.of(v));
    let output =
        || node.outputs.first().and_then(of).map(|dims| dims.iter().map(|d| *d as u64).product::<u64>());
    let product = |dims: &[usize]| dims.iter().map(|d| *d as u64).product::<u64>();
    match graph.proto(id).op_type.as_str() {
        "Conv" => Some(output()? * product(node.inputs.get(1).and_then(of)?.get(1..)?)),
        "ConvTranspose" => {
            let input = product(node.inputs.first().and_then(of)?);
            Some(input * product(node.inputs.get(1).and_then(of)?.get(1..)?))
        }
        "Gemm" if graph.proto(id).int("transA") == Some(1) => {
            Some(output()? * node.inputs.first().and_then(of)?[0] as u64)
        }
        "Gemm" | "MatMul" => Some(output()? * *node.inputs.first().and_then(of)?.last()? as u64),
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{DataType, GraphProto, ModelProto, TensorProto, ValueInfoProto};

    /// The output shape of one node on `x` of the shape given and constants of the others.
    fn check(proto: NodeProto, dims: &[&[usize]], ints: Option<&[i64]>) -> Result<Shape, String> {
        let names = ["x", "b", "c"];
        let mut initializer: Vec<TensorProto> = (1..dims.len())
            .map(|i| TensorProto::f32(names[i], dims[i], &vec![0.0; dims[i].iter().product()]))
            .collect();
        let mut proto =
            NodeProto { input: names[..dims.len()].iter().map(|n| n.to_string()).collect(), ..proto };
        if let Some(ints) = ints {
            initializer.push(TensorProto::i64("i", &[ints.len()], ints));
            proto.input.push("i".into());
        }
        proto.output = vec!["y".into()];
        let graph = GraphProto {
            node: vec![proto],
            initializer,
            input: vec![ValueInfoProto::new("x", DataType::Float, dims[0])],
            output: vec![ValueInfoProto { name: "y".into(), r#type: None }],
            ..Default::default()
        };
        let graph = Graph::new(ModelProto::new(graph, 17)).unwrap();
        let x = graph.find("x").unwrap();
        let shapes =
            infer(&graph, &[(x, dims[0].to_vec())], &Limits::default()).map_err(|e| e.to_string())?;
        Ok(shapes.of(graph.find("y").unwrap()).map(<[usize]>::to_vec))
    }

    fn op(name: &str) -> NodeProto {
        NodeProto::new(name, "n", [""; 0], [""; 0])
    }

    #[test]
    fn shapes_follow_from_inputs() {
        let conv = || op("Conv").with_ints("strides", &[2, 2]);
        type Case = (NodeProto, Vec<&'static [usize]>, Option<&'static [i64]>, &'static [usize]);
        let cases: Vec<Case> = vec![
            (
                conv().with_ints("pads", &[0, 0, 1, 1]),
                vec![&[1, 3, 8, 9], &[4, 3, 3, 3]],
                None,
                &[1, 4, 4, 4],
            ),
            (
                conv().with_string("auto_pad", "SAME_UPPER"),
                vec![&[1, 3, 7, 8], &[4, 3, 3, 3]],
                None,
                &[1, 4, 4, 4],
            ),
            (op("Conv").with_int("group", 6), vec![&[1, 6, 5, 5], &[6, 1, 5, 5]], None, &[1, 6, 1, 1]),
            (
                op("Conv").with_ints("dilations", &[2, 2]),
                vec![&[1, 1, 7, 7], &[1, 1, 3, 3]],
                None,
                &[1, 1, 3, 3],
            ),
            (
                op("MaxPool")
                    .with_ints("kernel_shape", &[3, 3])
                    .with_ints("strides", &[2, 2])
                    .with_int("ceil_mode", 1),
                vec![&[1, 2, 8, 8]],
                None,
                &[1, 2, 4, 4],
            ),
            (op("GlobalAveragePool"), vec![&[1, 5, 7, 7]], None, &[1, 5, 1, 1]),
            (op("Flatten"), vec![&[1, 5, 2, 3]], None, &[1, 30]),
            (op("Flatten").with_int("axis", -1), vec![&[1, 5, 2, 3]], None, &[10, 3]),
            (op("Flatten").with_int("axis", 4), vec![&[1, 5, 2, 3]], None, &[30, 1]),
            (op("Gemm").with_int("transB", 1), vec![&[1, 30], &[10, 30]], None, &[1, 10]),
            (op("MatMul"), vec![&[2, 1, 30], &[30, 4]], None, &[2, 1, 4]),
            (op("Add"), vec![&[1, 5, 4, 4], &[5, 1, 1]], None, &[1, 5, 4, 4]),
            (op("Transpose").with_ints("perm", &[0, 2, 3, 1]), vec![&[1, 2, 3, 4]], None, &[1, 3, 4, 2]),
            (op("Reshape"), vec![&[2, 3, 4]], Some(&[0, -1]), &[2, 12]),
            (op("Concat").with_int("axis", 1), vec![&[1, 2, 4], &[1, 5, 4]], None, &[1, 7, 4]),
            (op("HardSwish"), vec![&[1, 2]], None, &[1, 2]),
        ];
        for (proto, dims, ints, expected) in cases {
            let text = format!("{} on {dims:?}", proto.op_type);
            assert_eq!(check(proto, &dims, ints), Ok(Some(expected.to_vec())), "{text}");
        }
        assert_eq!(check(op("SomethingNew"), &[&[1, 2]], None), Ok(None));
    }

    #[test]
    fn mismatches_name_the_node() {
        let error = check(op("Conv"), &[&[1, 3, 8, 8], &[4, 5, 3, 3]], None).unwrap_err();
        assert_eq!(
            error,
            "node \"n\" (Conv): expected input [N, C, …] and weights [M, C / group, …], found input [1, 3, 8, 8], \
             weights [4, 5, 3, 3], group 1"
        );
        assert!(
            check(op("Conv"), &[&[1, 3, 2, 2], &[4, 3, 3, 3]], None).unwrap_err().contains("window inside")
        );
        assert!(
            check(op("Conv").with_ints("strides", &[0, 1]), &[&[1, 1, 4, 4], &[1, 1, 3, 3]], None).is_err()
        );
        assert!(
            check(op("Conv").with_ints("pads", &[i64::MAX; 4]), &[&[1, 1, 4, 4], &[1, 1, 3, 3]], None)
                .is_err()
        );
        assert!(
            check(op("Conv").with_int("group", i64::MIN), &[&[1, 1, 4, 4], &[1, 1, 3, 3]], None).is_err()
        );
        assert!(check(op("Gemm"), &[&[1, 3], &[4, 5]], None).is_err());
        assert!(check(op("Add"), &[&[1, 3], &[4]], None).is_err());
        let huge = op("Conv").with_ints("pads", &[1 << 20, 1 << 20, 1 << 20, 1 << 20]);
        assert!(check(huge, &[&[1, 1, 4, 4], &[1, 1, 3, 3]], None).unwrap_err().contains("elements"));
    }
}
