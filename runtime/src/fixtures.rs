//! Networks for tests, small enough to be computed by hand.

use crate::{
    onnx::{DataType, GraphProto, Limits, ModelProto, NodeProto, TensorProto, ValueInfoProto},
    tensor::Tensor,
    {Model, graph::Graph},
};

/// Channel 0: 1 2 3 4; channel 1: 0 1 -1 2.
pub(crate) fn image() -> Tensor {
    Tensor::f32(vec![1, 2, 2, 2], vec![1.0, 2.0, 3.0, 4.0, 0.0, 1.0, -1.0, 2.0]).unwrap()
}

/// What both networks make of [`image`]. Conv gives 1.5 1.5 4.5 2.5 and -0.5 2 -1.5 5; then Relu, mean, Gemm.
pub(crate) const EMBEDDING: [f32; 2] = [2.5, 1.75];
pub(crate) const SCORES: [f32; 2] = [6.1, -1.425];

fn head(graph: &mut GraphProto, pooled: &str) {
    graph.initializer.push(TensorProto::f32("head.w", &[2, 2], &[1.0, 2.0, -1.0, 0.5]));
    graph.initializer.push(TensorProto::f32("head.b", &[2], &[0.1, 0.2]));
    graph.node.push(NodeProto::new("Flatten", "flatten", [pooled], ["embedding"]));
    let inputs = ["embedding", "head.w", "head.b"];
    graph.node.push(NodeProto::new("Gemm", "head", inputs, ["scores"]).with_int("transB", 1));
}

fn frame(name: &str) -> GraphProto {
    GraphProto {
        name: name.into(),
        input: vec![ValueInfoProto::new("image", DataType::Float, &[1, 2, 2, 2])],
        output: vec![ValueInfoProto::new("scores", DataType::Float, &[1, 2])],
        ..Default::default()
    }
}

/// Conv 1x1, Relu, GlobalAveragePool, Flatten, Gemm.
pub(crate) fn float_proto() -> ModelProto {
    let mut graph = frame("tiny float");
    graph.initializer.push(TensorProto::f32("conv.w", &[2, 2, 1, 1], &[1.0, -1.0, 0.5, 2.0]));
    graph.initializer.push(TensorProto::f32("conv.b", &[2], &[0.5, -1.0]));
    graph.node.push(NodeProto::new("Conv", "conv", ["image", "conv.w", "conv.b"], ["conv"]));
    graph.node.push(NodeProto::new("Relu", "relu", ["conv"], ["relu"]));
    graph.node.push(NodeProto::new("GlobalAveragePool", "pool", ["relu"], ["pooled"]));
    head(&mut graph, "pooled");
    ModelProto::new(graph, 13)
}

/// The same in static int8, Q/DQ form; scales are powers of two, so that nothing is lost.
pub(crate) fn qdq_proto() -> ModelProto {
    let mut graph = frame("tiny int8");
    quantise(&mut graph, "image", 0.5, 10);
    let weights = TensorProto::i8("conv.w", &[2, 2, 1, 1], &[2, -2, 2, 8]);
    graph.initializer.extend([weights, TensorProto::f32("conv.w.scale", &[2], &[0.5, 0.25])]);
    graph.initializer.push(TensorProto::i8("conv.w.zero", &[2], &[0, 0]));
    let inputs = ["conv.w", "conv.w.scale", "conv.w.zero"];
    graph.node.push(NodeProto::new("DequantizeLinear", "", inputs, ["conv.w.f"]).with_int("axis", 0));
    graph.initializer.push(TensorProto::i32("conv.b", &[2], &[2, -8]));
    graph.initializer.push(TensorProto::f32("conv.b.scale", &[2], &[0.25, 0.125]));
    graph.initializer.push(TensorProto::i32("conv.b.zero", &[2], &[0, 0]));
    let inputs = ["conv.b", "conv.b.scale", "conv.b.zero"];
    graph.node.push(NodeProto::new("DequantizeLinear", "", inputs, ["conv.b.f"]).with_int("axis", 0));
    graph.node.push(NodeProto::new("Conv", "conv", ["image.f", "conv.w.f", "conv.b.f"], ["conv"]));
    // The range starts at 0: this is the Relu.
    quantise(&mut graph, "conv", 0.5, 0);
    graph.node.push(NodeProto::new("GlobalAveragePool", "pool", ["conv.f"], ["pool"]));
    quantise(&mut graph, "pool", 0.25, 3);
    head(&mut graph, "pool.f");
    ModelProto::new(graph, 13)
}

/// `NAME` → `NAME.q` (u8) → `NAME.f`
pub(crate) fn quantise(graph: &mut GraphProto, name: &str, scale: f32, zero: u8) {
    graph.quantise(name, scale, zero);
}

pub(crate) fn model(proto: ModelProto) -> Model {
    Model::from_graph(Graph::new(proto).unwrap(), &Limits::default()).unwrap()
}
