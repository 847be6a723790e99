//! [`Graph`] to ONNX, opset 17: what ONNX Runtime, OpenVINO and tract of the last years all read. Also the short ways
//! that the quantiser builds its nodes with.

use andon_runtime::onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

use super::{Graph, Node, Op, Window};

pub const OPSET: i64 = 17;

/// The float model. Outputs: the logits, then the embedding.
pub fn write(graph: &Graph) -> Vec<u8> {
    let weights = graph.weights.iter().map(|(name, array)| TensorProto::f32(name, &array.shape, &array.data));
    let mut initializer: Vec<TensorProto> = weights.collect();
    let nodes = graph.nodes.iter().map(|n| node(n, &mut initializer)).collect();
    let proto = GraphProto {
        name: graph.name.clone(),
        node: nodes,
        initializer,
        input: vec![float_value(&graph.input, &[1, graph.channels, graph.height, graph.width])],
        output: vec![
            float_value(graph.scores(), &[1, graph.classes()]),
            float_value(graph.embedding(), &[1, graph.embedding_len()]),
        ],
        ..Default::default()
    };
    ModelProto::new(proto, OPSET).to_bytes()
}

pub fn float_value(name: &str, dims: &[usize]) -> ValueInfoProto {
    ValueInfoProto::new(name, DataType::Float, dims)
}

/// One node in float. Bounds of a clip become initialisers, as the operator wants them since opset 11.
pub fn node(node: &Node, initializer: &mut Vec<TensorProto>) -> NodeProto {
    let make = |op: &str, inputs: &[String]| NodeProto::new(op, &node.name, inputs, [&node.output]);
    match &node.op {
        Op::Conv { window, groups } => slide(make("Conv", &node.inputs), window)
            .with_ints("dilations", &[window.dilations[0] as i64, window.dilations[1] as i64])
            .with_int("group", *groups as i64),
        Op::Clip { min: 0.0, max: f32::INFINITY } => make("Relu", &node.inputs),
        Op::Clip { min, max } => {
            let mut inputs = node.inputs.clone();
            for (label, bound) in [("min", *min), ("max", *max)] {
                let name = format!("{}.{label}", node.output);
                inputs.push(if bound.is_finite() { name.clone() } else { String::new() });
                if bound.is_finite() {
                    initializer.push(TensorProto::f32(&name, &[], &[bound]));
                }
            }
            make("Clip", &inputs)
        }
        Op::LeakyRelu { alpha } => make("LeakyRelu", &node.inputs).with_float("alpha", *alpha),
        Op::HardSigmoid { alpha, beta } => {
            make("HardSigmoid", &node.inputs).with_float("alpha", *alpha).with_float("beta", *beta)
        }
        Op::MaxPool { window } => slide(make("MaxPool", &node.inputs), window)
            .with_ints("dilations", &[window.dilations[0] as i64, window.dilations[1] as i64]),
        Op::AveragePool { window, count_pads } => slide(make("AveragePool", &node.inputs), window)
            .with_int("count_include_pad", (*count_pads).into()),
        Op::Flatten => make("Flatten", &node.inputs).with_int("axis", 1),
        Op::Gemm => make("Gemm", &node.inputs).with_int("transB", 1),
        Op::BatchNormalization { epsilon } => {
            make("BatchNormalization", &node.inputs).with_float("epsilon", *epsilon)
        }
        Op::Concat => make("Concat", &node.inputs).with_int("axis", 1),
        Op::Sigmoid | Op::HardSwish | Op::Add | Op::Mul | Op::GlobalAveragePool => {
            make(node.op.onnx_name(), &node.inputs)
        }
    }
}

fn slide(node: NodeProto, window: &Window) -> NodeProto {
    let ints = |v: &[usize]| v.iter().map(|n| *n as i64).collect::<Vec<_>>();
    node.with_ints("kernel_shape", &ints(&window.kernel))
        .with_ints("strides", &ints(&window.strides))
        .with_ints("pads", &ints(&window.pads))
}
