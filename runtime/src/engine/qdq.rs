//! Rewrites the Q/DQ form of a quantised network for an engine that computes in float.
//!
//! tract gets to see no Q/DQ: its `QuantizeLinear` multiplies by the reciprocal of the scale, which rounds differently
//! at ties, overflows on values far outside the range, and its int8 convolutions are no faster than its float ones.
//! So dequantised constants become float constants, a `QuantizeLinear` whose readers all dequantise it becomes one
//! step from float to float ([`ROUND_TRIP`]), and a lone `DequantizeLinear` becomes cast, subtract, multiply. Every
//! value that the network rounds to 8 bits is still rounded there, by ONNX's formula; only sums in between are float
//! where integers would be exact.

use std::collections::HashMap;

use prost::bytes::Bytes;

use crate::{
    graph::{Graph, ValueId},
    onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto},
};

/// Operator `x → (clamp(round(x / scale) + zero, low, high) - zero) * scale`, ties to even. Attributes: `scale` f32,
/// `zero`, `low`, `high` integers.
pub(super) const ROUND_TRIP: &str = "AndonRoundTrip";

/// The graph in float, as far as its Q/DQ nodes have constant parameters; others stay as they are.
pub(super) fn to_float(graph: &Graph) -> ModelProto {
    let mut model = graph.model_proto().clone();
    let Some(target) = model.graph.as_mut() else { return model };
    let round_trips = round_trips(graph);
    let mut nodes = Vec::with_capacity(target.node.len());
    for (id, node, proto) in graph.nodes() {
        let input = node.inputs.first().copied().flatten();
        let dequantises = proto.op_type == "DequantizeLinear";
        if let Some(step) = round_trips.get(&id) {
            nodes.push(step.clone());
        } else if let Some(constant) = input.filter(|_| dequantises).and_then(|v| fold(graph, v, proto)) {
            target.initializer.push(constant);
        } else if dequantises
            && input.and_then(|v| graph.producer(v)).is_some_and(|p| round_trips.contains_key(&p))
        {
            nodes.push(NodeProto::new("Identity", &proto.name, [&*proto.input[0]], [&*proto.output[0]]));
        } else if let Some(quantity) = Quantity::of(graph, proto).filter(|_| dequantises) {
            lone(target, &mut nodes, proto, &quantity);
        } else {
            nodes.push(proto.clone());
        }
    }
    target.node = nodes;
    model
}

/// The constant parameters of a Q or DQ node that has one scale for the whole tensor.
#[derive(PartialEq)]
struct Quantity {
    scale: f32,
    zero: i32,
    low: i32,
    high: i32,
}

impl Quantity {
    fn of(graph: &Graph, proto: &NodeProto) -> Option<Self> {
        let constant = |i| proto.input_name(i).and_then(|name| graph.constant(graph.find(name)?));
        let [scale] = constant(1)?.to_f32().ok()?[..] else { return None };
        if proto.input_name(2).is_none() {
            // Without a zero point a QuantizeLinear gives u8; what a DequantizeLinear gets is told by its input.
            return (proto.op_type == "QuantizeLinear").then_some(Self { scale, zero: 0, low: 0, high: 255 });
        }
        let tensor = constant(2)?;
        let (zero, low, high) = match tensor.element_type().ok()? {
            DataType::Uint8 => (i32::from(*tensor.to_u8().ok()?.first()?), 0, 255),
            DataType::Int8 => (i32::from(*tensor.to_i8().ok()?.first()?), -128, 127),
            _ => return None,
        };
        (tensor.elements() == Some(1)).then_some(Self { scale, zero, low, high })
    }
}

/// For each `QuantizeLinear` that only same-parameter `DequantizeLinear` nodes read: what takes its place.
fn round_trips(graph: &Graph) -> HashMap<crate::NodeId, NodeProto> {
    let mut dequantisers: HashMap<ValueId, Vec<Quantity>> = HashMap::new();
    for (_, node, proto) in graph.nodes().filter(|(_, _, proto)| proto.op_type == "DequantizeLinear") {
        if let (Some(Some(input)), Some(quantity)) = (node.inputs.first(), Quantity::of(graph, proto)) {
            dequantisers.entry(*input).or_default().push(quantity);
        }
    }
    let step = |(id, node, proto): (crate::NodeId, &crate::Node, &NodeProto)| {
        let quantity = Quantity::of(graph, proto).filter(|_| proto.op_type == "QuantizeLinear")?;
        let output = node.outputs.first().copied().flatten()?;
        let readers = dequantisers.get(&output)?;
        // A graph output counts as a reader, and is none of these.
        let all =
            readers.len() == graph.value(output).readers as usize && readers.iter().all(|r| *r == quantity);
        let Quantity { scale, zero, low, high } = quantity;
        let node = NodeProto::new(ROUND_TRIP, &proto.name, [&*proto.input[0]], [&*proto.output[0]]);
        let node = node.with_float("scale", scale).with_int("zero", zero.into());
        all.then(|| (id, node.with_int("low", low.into()).with_int("high", high.into())))
    };
    graph.nodes().filter_map(step).collect()
}

/// The constant that a DequantizeLinear makes of a constant: `(q - zero) * scale`, per tensor or per `axis`.
fn fold(graph: &Graph, quantised: ValueId, proto: &NodeProto) -> Option<TensorProto> {
    let tensor = graph.constant(quantised)?;
    let constant = |i| proto.input_name(i).and_then(|name| graph.constant(graph.find(name)?));
    let (values, scales) = (integers(tensor)?, constant(1)?.to_f32().ok()?);
    let zeros = match proto.input_name(2) {
        Some(_) => integers(constant(2)?)?,
        None => vec![0; scales.len()],
    };
    let dims = tensor.shape()?;
    let axis = proto.int("axis").unwrap_or(1);
    let axis = usize::try_from(if axis < 0 { axis + dims.len() as i64 } else { axis }).ok()?;
    let inner = match scales.len() {
        1 => values.len().max(1),
        n if dims.get(axis) == Some(&n) => dims[axis + 1..].iter().product::<usize>().max(1),
        _ => return None,
    };
    if zeros.len() != scales.len() || proto.int("block_size").unwrap_or(0) != 0 {
        return None;
    }
    let real = |(i, q): (usize, &i32)| {
        let channel = i / inner % scales.len();
        // i32 biases with a zero point other than 0 are not legal, but must not overflow.
        (q.wrapping_sub(zeros[channel])) as f32 * scales[channel]
    };
    let data: Vec<u8> = values.iter().enumerate().map(real).flat_map(f32::to_le_bytes).collect();
    Some(TensorProto {
        name: proto.output.first()?.clone(),
        dims: tensor.dims.clone(),
        data_type: DataType::Float as i32,
        raw_data: Bytes::from(data),
        ..Default::default()
    })
}

fn integers(tensor: &TensorProto) -> Option<Vec<i32>> {
    match tensor.element_type().ok()? {
        DataType::Uint8 => Some(tensor.to_u8().ok()?.into_iter().map(i32::from).collect()),
        DataType::Int8 => Some(tensor.to_i8().ok()?.into_iter().map(i32::from).collect()),
        DataType::Int32 => tensor.to_i32().ok(),
        _ => None,
    }
}

fn lone(graph: &mut GraphProto, nodes: &mut Vec<NodeProto>, proto: &NodeProto, quantity: &Quantity) {
    let output = &proto.output[0];
    let [cast, zero, difference, scale] =
        ["cast", "zero", "difference", "scale"].map(|s| format!("{output}/andon/{s}"));
    graph.initializer.push(TensorProto::f32(&zero, &[], &[quantity.zero as f32]));
    graph.initializer.push(TensorProto::f32(&scale, &[], &[quantity.scale]));
    nodes.push(
        NodeProto::new("Cast", &cast, [&*proto.input[0]], [&*cast]).with_int("to", DataType::Float as i64),
    );
    nodes.push(NodeProto::new("Sub", &difference, [&*cast, &*zero], [&*difference]));
    nodes.push(NodeProto::new("Mul", &proto.name, [&*difference, &*scale], [&**output]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{qdq_proto, quantise};

    fn operators(model: &ModelProto) -> Vec<&str> {
        model.graph.as_ref().unwrap().node.iter().map(|n| n.op_type.as_str()).collect()
    }

    #[test]
    fn pairs_become_one_step_and_constants_float() {
        let float = to_float(&Graph::new(qdq_proto()).unwrap());
        let pair = [ROUND_TRIP, "Identity"];
        let expected =
            [&pair[..], &["Conv"], &pair, &["GlobalAveragePool"], &pair, &["Flatten", "Gemm"]].concat();
        assert_eq!(operators(&float), expected);
        let graph = float.graph.as_ref().unwrap();
        let constant =
            |name: &str| graph.initializer.iter().find(|t| t.name == name).unwrap().to_f32().unwrap();
        assert_eq!(constant("conv.w.f"), [1.0, -1.0, 0.5, 2.0]);
        assert_eq!(constant("conv.b.f"), [0.5, -1.0]);
    }

    #[test]
    fn bytes_that_something_else_reads_stay_bytes() {
        let mut proto = qdq_proto();
        let graph = proto.graph.as_mut().unwrap();
        quantise(graph, "scores", 0.5, 0);
        graph.output.push(crate::onnx::ValueInfoProto::new("scores.q", DataType::Uint8, &[1, 2]));
        let float = to_float(&Graph::new(proto).unwrap());
        assert_eq!(operators(&float)[10..], ["QuantizeLinear", "Cast", "Sub", "Mul"]);
    }
}
