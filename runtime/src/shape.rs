//! Shapes of the values of a graph, as far as they follow from the inputs' shapes.
//!
//! Serves the reader of `explain`, the estimate of memory before an engine allocates any, and planning. Knows the
//! operators that vision networks are made of; for others it falls back to what the file declares, or knows nothing,
//! which is no error. It is one when an operator it knows cannot work on what it is given.

use crate::{
    graph::{Graph, NodeId, ValueId},
    onnx::{Limits, NodeProto},
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

/// One shape for each value, by [`ValueId`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shapes(Vec<Shape>);

impl Shapes {
    pub fn of(&self, id: ValueId) -> Option<&[usize]> {
        self.0[id.index()].as_deref()
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
    let mut shapes = Shapes(vec![None; graph.value_count()]);
    for (id, tensor) in graph.values().filter_map(|id| Some((id, graph.constant(id)?))) {
        shapes.0[id.index()] = tensor.shape();
    }
    for (id, dims) in inputs.iter().filter(|(_, dims)| fits(dims, limits)) {
        shapes.0[id.index()] = Some(dims.clone());
    }
    for info in graph.declared() {
        let Some(id) = graph.find(&info.name) else { continue };
        let known: Option<Vec<usize>> = info.dims().and_then(|dims| dims.into_iter().collect());
        let known = known.filter(|dims| fits(dims, limits));
        // What the file declares holds only for the sizes it was written for; it is kept if the inputs have them.
        if known.is_some() && declares(graph, inputs) {
            shapes.0[id.index()] = known;
        }
    }
    for (id, node, _) in graph.nodes() {
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
            shapes.0[output.index()] = Some(dims);
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
            | "Clip"
            | "DequantizeLinear"
            | "Dropout"
            | "Elu"
            | "Erf"
            | "Exp"
            | "Floor"
            | "Gelu"
            | "HardSigmoid"
            | "HardSwish"
            | "Identity"
            | "InstanceNormalization"
            | "LayerNormalization"
            | "LeakyRelu"
            | "Log"
            | "LogSoftmax"
            | "Mish"
            | "Neg"
            | "PRelu"
            | "QuantizeLinear"
            | "Reciprocal"
            | "Relu"
            | "Round"
            | "Selu"
            | "Sigmoid"
            | "Sign"
            | "Softmax"
            | "Softplus"
            | "Softsign"
            | "Sqrt"
            | "Tanh"
    )
}

/// Shapes of a node's outputs; shorter than the outputs where nothing is known.
fn rule(graph: &Graph, shapes: &Shapes, id: NodeId) -> Result<Vec<Shape>, ShapeMismatch> {
    let (node, proto) = (graph.node(id), graph.proto(id));
    let input = |i: usize| node.inputs.get(i).copied().flatten().and_then(|v| shapes.of(v));
    let fail = |expected: &str, actual: String| mismatch(graph, id, expected.into(), actual);
    let one = |dims: Shape| Ok(vec![dims]);
    if proto.op_type == "ConstantOfShape" {
        return one(constant_ints(graph, node.inputs.first()).and_then(|dims| sizes(&dims)));
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
        "Flatten" => {
            let axis = axis(proto.int("axis").unwrap_or(1), first.len() + 1);
            one(axis.map(|at| vec![first[..at].iter().product(), first[at..].iter().product()]))
        }
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
        "Reshape" => one(constant_ints(graph, node.inputs.get(1)).and_then(|to| reshape(first, &to, proto))),
        "Expand" => {
            let to = constant_ints(graph, node.inputs.get(1)).and_then(|dims| sizes(&dims));
            one(to.and_then(|to| broadcast(first, &to)))
        }
        "Tile" => {
            let repeats = constant_ints(graph, node.inputs.get(1)).and_then(|dims| sizes(&dims));
            let repeats = repeats.filter(|r| r.len() == first.len());
            one(repeats.map(|r| first.iter().zip(r).map(|(d, r)| d.saturating_mul(r)).collect()))
        }
        "Concat" => {
            let parts: Option<Vec<&[usize]>> = (0..node.inputs.len()).map(input).collect();
            one(parts.and_then(|parts| concat(&parts, proto.int("axis")?)))
        }
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

pub(crate) fn constant_ints(graph: &Graph, id: Option<&Option<ValueId>>) -> Option<Vec<i64>> {
    graph.constant(id.copied().flatten()?)?.to_i64().ok()
}

fn sizes(dims: &[i64]) -> Shape {
    dims.iter().map(|d| usize::try_from(*d).ok()).collect()
}

fn reshape(from: &[usize], to: &[i64], proto: &NodeProto) -> Shape {
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
