//! Shapes and types of the values of a graph, as far as they follow from the inputs' shapes; and values that follow
//! from constants and shapes alone.
//!
//! Serves the reader of `explain`, the estimate of memory before an engine allocates any, and planning. Knows the
//! operators that vision networks are made of; for others it falls back to what the file declares, or knows nothing,
//! which is no error. It is one when an operator it knows cannot work on what it is given.

pub(crate) mod interleave;
mod refusals;
mod rules;
mod sizes;
mod window;

use std::collections::HashMap;

use rules::{mismatch, rule, type_rule};

pub(crate) use sizes::{broadcast, flatten, reshape, slice_along};
pub(crate) use window::{Pads, Window};

use crate::{
    graph::{Graph, NodeId, ValueId},
    onnx::{DataType, Limits, TensorProto},
    plain,
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

/// Elements of constants that follow from others: the rest is left to engines.
const FOLDED_MAX: usize = 64 << 20;

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
    let declared_hold = declares(graph, inputs);
    for info in graph.declared() {
        // Of constants and inputs it is known better.
        let Some(id) = graph.find(&info.name).filter(|id| graph.producer(*id).is_some()) else { continue };
        shapes.types[id.index()] = info.data_type();
        let known: Option<Vec<usize>> = info.dims().and_then(|dims| dims.into_iter().collect());
        let known = known.filter(|dims| fits(dims, limits));
        // What the file declares holds only for the sizes it was written for; it is kept if the inputs have them.
        if known.is_some() && declared_hold {
            shapes.dims[id.index()] = known;
        }
    }
    // Of all constants that follow from others, together.
    let mut left = FOLDED_MAX;
    for (id, node, proto) in graph.nodes() {
        for (at, output) in node.outputs.iter().enumerate() {
            let Some(output) = output else { continue };
            let input = |i: usize| node.inputs.get(i).copied().flatten().and_then(|v| shapes.data_type(v));
            if let Some(known) = type_rule(proto, at, input) {
                shapes.types[output.index()] = Some(known);
            }
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
        // What is too large was refused by now.
        let folded = fold(graph, &shapes, id, &mut left).unwrap_or_default();
        for (output, value) in node.outputs.iter().zip(folded) {
            let Some(output) = output else { continue };
            shapes.dims[output.index()] = Some(value.shape().to_vec());
            shapes.folded.insert(*output, value.to_proto(&graph.value(*output).name));
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
    let given: HashMap<ValueId, &Vec<usize>> = inputs.iter().map(|(id, dims)| (*id, dims)).collect();
    graph.inputs().all(|(id, info)| {
        let declared: Option<Vec<usize>> = info.dims().and_then(|dims| dims.into_iter().collect());
        declared.is_some_and(|declared| given.get(&id).is_some_and(|dims| **dims == declared))
    })
}

/// The outputs of a node that reads nothing but constants and shapes, where there is an operator of ours.
fn fold(graph: &Graph, shapes: &Shapes, id: NodeId, left: &mut usize) -> Option<Vec<Tensor>> {
    const ELEMENTS_MAX: usize = 16 << 20;
    let most = ELEMENTS_MAX.min(*left);
    let (node, proto) = (graph.node(id), graph.proto(id));
    // A dequantised constant is more than its values, and weights of products are not folded ones.
    let never = matches!(
        &*proto.op_type,
        "DequantizeLinear" | "Conv" | "ConvInteger" | "Gemm" | "MatMul" | "MatMulInteger" | "QLinearMatMul"
    );
    let small = |output: &ValueId| shapes.elements(*output).is_none_or(|n| n <= most);
    let is_stored = proto.op_type == "Constant" && proto.tensor("value").is_some();
    if never || is_stored || !node.outputs.iter().flatten().all(small) {
        return None;
    }
    let call = plain::Call::of(graph, id)?.limited(most);
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
    let total: usize = outputs.iter().map(|t| t.data().len()).sum();
    if !all || total > most {
        return None;
    }
    *left -= total;
    Some(outputs)
}

/// Multiply-accumulates of one run of a node, where shapes are known; 0 for operators that have none.
pub fn macs(graph: &Graph, shapes: &Shapes, id: NodeId) -> Option<u64> {
    let node = graph.node(id);
    let of = |v: &Option<ValueId>| v.and_then(|v| shapes.of(v));
    let output =
        || node.outputs.first().and_then(of).map(|dims| dims.iter().map(|d| *d as u64).product::<u64>());
    let product = |dims: &[usize]| dims.iter().map(|d| *d as u64).product::<u64>();
    match graph.proto(id).op_type.as_str() {
        "Conv" | "ConvInteger" => Some(output()? * product(node.inputs.get(1).and_then(of)?.get(1..)?)),
        "QLinearConv" => Some(output()? * product(node.inputs.get(3).and_then(of)?.get(1..)?)),
        "ConvTranspose" => {
            let input = product(node.inputs.first().and_then(of)?);
            Some(input * product(node.inputs.get(1).and_then(of)?.get(1..)?))
        }
        "Gemm" if graph.proto(id).int("transA") == Some(1) => {
            Some(output()? * *node.inputs.first().and_then(of)?.first()? as u64)
        }
        "Gemm" | "MatMul" | "MatMulInteger" | "QLinearMatMul" => {
            Some(output()? * *node.inputs.first().and_then(of)?.last()? as u64)
        }
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{
        AttributeProto, AttributeType, DataType, GraphProto, ModelProto, NodeProto, TensorProto,
        ValueInfoProto,
    };

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

    /// What other engines follow without end, or into memory that is not there.
    #[test]
    fn what_makes_no_sense_is_refused() {
        const HUGE: i64 = i32::MAX as i64;
        let pool = || op("MaxPool").with_string("auto_pad", "SAME_UPPER");
        let turned = || op("ConvTranspose").with_ints("kernel_shape", &[2, 2]);
        let kept =
            |policy| op("Resize").with_ints("axes", &[0, 1]).with_string("keep_aspect_ratio_policy", policy);
        let (image, filters): (&[usize], &[usize]) = (&[1, 1, 3, 3], &[1, 1, 2, 2]);
        type Case<'a> = (NodeProto, Vec<&'a [usize]>, Option<&'a [i64]>);
        let cases: Vec<Case<'_>> = vec![
            (op("Transpose").with_ints("perm", &[0, 2, 3, 3]), vec![&[2, 4, 3, 8]], None),
            (op("Transpose").with_ints("perm", &[0, 1]), vec![&[2, 4, 3, 8]], None),
            (op("Transpose").with_ints("perm", &[]), vec![&[2]], None),
            (op("OneHot").with_int("axis", HUGE), vec![&[3]], Some(&[4])),
            (op("OneHot").with_int("axis", -3), vec![&[3]], Some(&[4])),
            (op("Softmax").with_int("axis", 1), vec![&[3]], None),
            (op("DFT").with_int("axis", 1), vec![&[]], None),
            // A length that is no number.
            (op("DFT"), vec![&[1, 4, 1]], Some(&[])),
            (op("CumSum"), vec![&[4]], Some(&[])),
            (op("QLinearMatMul"), vec![&[2, 2], &[0]], None),
            (op("LayerNormalization"), vec![&[], &[]], None),
            (op("TopK"), vec![&[4]], Some(&[HUGE])),
            (op("TopK"), vec![&[4]], Some(&[-1])),
            (pool().with_ints("kernel_shape", &[1 << 20, 1 << 20]), vec![image], None),
            (pool().with_ints("kernel_shape", &[1000, 1000]), vec![&[1, 1, 90, 90]], None),
            (turned().with_ints("dilations", &[HUGE, 2]), vec![image, filters], None),
            (turned().with_ints("strides", &[HUGE, 2]), vec![image, filters], None),
            (turned().with_ints("pads", &[5, 5, 5, 5]), vec![image, filters], None),
            (op("Pad"), vec![&[4, 4]], Some(&[0, 1 << 40, 0, 0])),
            (op("Tile"), vec![&[2, 2]], Some(&[i64::MAX, i64::MAX])),
            (kept("not_larger"), vec![&[3, 3], &[], &[]], Some(&[1 << 20, 1 << 20])),
            (kept("not_smaller"), vec![&[3, 3], &[], &[]], Some(&[1 << 30, 1])),
        ];
        for (proto, dims, ints) in cases {
            let text = format!("{} on {dims:?}", proto.op_type);
            let why = check(proto.clone(), &dims, ints).expect_err(&text);
            assert!(why.contains(&format!("({}): expected ", proto.op_type)), "{why}");
        }
        let pool = |name: &str, side| op(name).with_ints("kernel_shape", &[side, side]);
        type Fine<'a> = (NodeProto, Vec<&'a [usize]>, Option<&'a [i64]>, &'a [usize]);
        let fine: Vec<Fine<'_>> = vec![
            (kept("not_larger"), vec![&[4, 2], &[], &[]], Some(&[10, 10]), &[10, 5]),
            (kept("not_smaller"), vec![&[4, 2], &[], &[]], Some(&[10, 10]), &[20, 10]),
            (op("TopK").with_int("axis", 0), vec![&[4, 2]], Some(&[3]), &[3, 2]),
            (op("OneHot").with_int("axis", -3), vec![&[4, 2]], Some(&[3]), &[3, 4, 2]),
            (pool("MaxPool", 3), vec![&[1, 1, 5, 5]], None, &[1, 1, 3, 3]),
            // Over all of a large image.
            (pool("AveragePool", 512), vec![&[1, 3, 512, 512]], None, &[1, 3, 1, 1]),
        ];
        for (proto, dims, ints, expected) in fine {
            let text = format!("{} on {dims:?}", proto.op_type);
            assert_eq!(check(proto, &dims, ints), Ok(Some(expected.to_vec())), "{text}");
        }
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
        // Each of these would be set up by tract while it loads.
        let beyond = |proto: NodeProto, dims: &[&[usize]], ints: &[i64]| {
            let why = check(proto, dims, Some(ints)).unwrap_err();
            assert!(why.contains("(") && why.contains("an output of at most"), "{why}");
        };
        beyond(op("OneHot"), &[&[2, 3]], &[1 << 40]);
        beyond(op("Einsum").with_string("equation", "ab, c -> abc"), &[&[3000, 3000], &[3000]], &[]);
        beyond(op("Mean"), &[&[4000, 1, 1], &[4000, 1], &[4000]], &[1]);
        let body = |outputs: usize| AttributeProto {
            name: "body".into(),
            r#type: AttributeType::Graph.into(),
            g: Some(Box::new(GraphProto {
                input: vec![ValueInfoProto { name: "state".into(), r#type: None }],
                output: vec![ValueInfoProto { name: "state".into(), r#type: None }; outputs],
                ..Default::default()
            })),
            ..Default::default()
        };
        let scan = |outputs| {
            let mut scan = op("Scan").with_int("num_scan_inputs", 1);
            scan.attribute.push(body(outputs));
            check(scan, &[&[], &[5]], None)
        };
        let why = scan(0).unwrap_err();
        assert!(why.contains("(Scan): expected a body that gives at least its 1 states"), "{why}");
        assert_eq!(scan(1), Ok(None));
        let bounds = [("start", 0), ("limit", 1 << 42), ("step", 1)];
        let graph = GraphProto {
            node: vec![NodeProto::new("Range", "n", bounds.map(|(name, _)| name), ["y"])],
            initializer: bounds.map(|(name, value)| TensorProto::i64(name, &[], &[value])).to_vec(),
            output: vec![ValueInfoProto { name: "y".into(), r#type: None }],
            ..Default::default()
        };
        let graph = Graph::new(ModelProto::new(graph, 17)).unwrap();
        let why = infer(&graph, &[], &Limits::default()).unwrap_err().to_string();
        assert!(why.contains("(Range)") && why.contains("[4398046511104]"), "{why}");
        let huge = op("Conv").with_ints("pads", &[1 << 20, 1 << 20, 1 << 20, 1 << 20]);
        assert!(check(huge, &[&[1, 1, 4, 4], &[1, 1, 3, 3]], None).unwrap_err().contains("elements"));
    }
}
