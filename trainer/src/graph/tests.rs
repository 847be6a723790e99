//! The engine against the runtime (which runs what `write` wrote) and against finite differences.

use std::collections::BTreeSet;

use andon_runtime::{Limits, Model, Session, SessionOptions, Tensor};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    testing::{Builder, every_operator},
    *,
};

fn image(graph: &Graph, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..graph.channels * graph.height * graph.width).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Logits and embedding of one image in the runtime's engine.
fn in_runtime(onnx: &[u8], graph: &Graph, image: &[f32]) -> [Vec<f32>; 2] {
    let model = Model::load(onnx, &Limits::default()).unwrap();
    let mut session = Session::new(&model, &SessionOptions::default()).unwrap();
    let shape = vec![1, graph.channels, graph.height, graph.width];
    let mut outputs = session.run(&[(&graph.input, Tensor::f32(shape, image.to_vec()).unwrap())]).unwrap();
    [graph.scores(), graph.embedding()].map(|name| outputs.take(name).unwrap().as_f32().unwrap().to_vec())
}

fn in_engine(graph: &Graph, images: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let engine = Engine::new(graph).unwrap();
    let batch = Batch::gather(engine.layout_at(graph, 0), images.iter().map(Vec::as_slice));
    let out = engine.run(&graph.weights, 0..graph.nodes.len(), &batch).unwrap();
    (0..out.count).map(|n| out.image(n)).collect()
}

#[track_caller]
fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} against {b}");
    }
}

#[test]
fn every_operator_equals_the_runtime() {
    let graph = every_operator();
    let onnx = write(&graph);
    let images: Vec<Vec<f32>> = (0..3).map(|s| image(&graph, s)).collect();
    for (image, ours) in images.iter().zip(in_engine(&graph, &images)) {
        // f32 sums in another order.
        assert_close(&ours, &in_runtime(&onnx, &graph, image)[0], 1e-4);
    }
}

#[test]
fn what_is_written_reads_back_to_the_same_function() {
    let graph = every_operator();
    let again = read(&write(&graph), None).unwrap();
    // The batch norm was folded into the convolution before it.
    assert_eq!(again.nodes.len(), graph.nodes.len() - 1);
    let images = [image(&graph, 4)];
    assert_close(&in_engine(&again, &images)[0], &in_engine(&graph, &images)[0], 1e-5);
    // From here on nothing changes any more.
    assert_eq!(write(&read(&write(&again), None).unwrap()), write(&again));
}

#[test]
fn depthwise_as_matrix_products_equals_the_plain_way() {
    for (size, kernel, stride, pads) in [
        (8, 3, 1, [1; 4]),
        (8, 5, 1, [2; 4]),
        (16, 3, 2, [0, 0, 1, 1]),
        (8, 5, 2, [1, 1, 2, 2]),
        (4, 5, 1, [2; 4]),
        (7, 3, 2, [1; 4]),
    ] {
        let mut b = Builder::new(6, size);
        let x = b.conv(INPUT, [6, 1, kernel, kernel], stride, pads, 6);
        let x = b.op(Op::GlobalAveragePool, &[&x]);
        let x = b.op(Op::Flatten, &[&x]);
        let graph = b.head(&x, 6, 2);
        let image = image(&graph, 1);
        assert_close(
            &in_engine(&graph, std::slice::from_ref(&image))[0],
            &in_runtime(&write(&graph), &graph, &image)[0],
            1e-5,
        );
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let graph = every_operator();
    let engine = Engine::new(&graph).unwrap();
    let images: Vec<Vec<f32>> = (10..14).map(|s| image(&graph, s)).collect();
    let batch = Batch::gather(engine.layout_at(&graph, 0), images.iter().map(Vec::as_slice));
    let targets = Targets {
        probabilities: [[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]].concat(),
        weights: vec![0.5, 1.0, 0.25, 2.0],
    };
    let all: BTreeSet<String> = graph.weights.keys().cloned().collect();
    let loss = |weights: &BTreeMap<String, Array>| {
        engine
            .gradients(weights, 0, &batch, &targets, &BTreeSet::from([graph.head().inputs[2].clone()]))
            .unwrap()
            .0
    };
    let (_, gradients) = engine.gradients(&graph.weights, 0, &batch, &targets, &all).unwrap();
    assert_eq!(gradients.len(), all.len(), "a gradient for every weight");
    let (mut checked, mut off) = (0, Vec::new());
    for (name, gradient) in &gradients {
        for i in [0, gradient.len() / 2, gradient.len() - 1] {
            let nudged = |by: f32| {
                let mut weights = graph.weights.clone();
                weights.get_mut(name).unwrap().data[i] += by;
                loss(&weights)
            };
            let actual = gradient[i] as f64;
            // A step that meets a kink of a clip or a pool has another slope; a smaller one mostly stays clear of it.
            let slopes =
                [2e-3f32, 1e-3, 5e-4].map(|step| (nudged(step) - nudged(-step)) / (2.0 * step as f64));
            checked += 1;
            if !slopes.iter().any(|slope| (slope - actual).abs() < 0.02 * actual.abs() + 1e-3) {
                off.push(format!("{name}[{i}]: {actual}, slopes {slopes:?}"));
            }
        }
    }
    assert!(checked > 40 && off.len() <= 1, "{checked} checked, off: {off:?}");
}

#[test]
fn a_frozen_prefix_changes_nothing() {
    let graph = every_operator();
    let engine = Engine::new(&graph).unwrap();
    let images: Vec<Vec<f32>> = (0..3).map(|s| image(&graph, s)).collect();
    let batch = Batch::gather(engine.layout_at(&graph, 0), images.iter().map(Vec::as_slice));
    let whole = engine.run(&graph.weights, 0..graph.nodes.len(), &batch).unwrap();
    let cuts = graph.cuts();
    assert!(cuts.len() > 3 && cuts[0] == 0, "{cuts:?}");
    for cut in cuts {
        let middle = engine.run(&graph.weights, 0..cut, &batch).unwrap();
        let end = engine.run(&graph.weights, cut..graph.nodes.len(), &middle).unwrap();
        assert_close(&end.data, &whole.data, 1e-6);
    }
}

#[test]
fn all_unsupported_operators_are_listed_at_once() {
    use andon_runtime::onnx::{DataType, GraphProto, ModelProto, NodeProto, ValueInfoProto};
    let chain = |ops: &[&str]| {
        let node =
            |(i, op): (usize, &&str)| NodeProto::new(op, "", [format!("v{i}")], [format!("v{}", i + 1)]);
        let proto = GraphProto {
            node: ops.iter().enumerate().map(node).collect(),
            input: vec![ValueInfoProto::new("v0", DataType::Float, &[1, 3, 8, 8])],
            output: vec![ValueInfoProto::new(&format!("v{}", ops.len()), DataType::Float, &[1, 2])],
            ..Default::default()
        };
        read(&ModelProto::new(proto, 17).to_bytes(), None).unwrap_err().to_string()
    };
    let error = chain(&["Relu", "LSTM", "Relu", "Erf", "Erf", "Flatten"]);
    assert!(error.contains("Erf x2, LSTM x1"), "{error}");
    assert!(chain(&["Relu", "Flatten"]).contains("no classifier head"));
}

#[test]
fn broken_files_are_refused() {
    let graph = every_operator();
    let good = write(&graph);
    for cut in [0, 1, 10, good.len() / 2, good.len() - 1] {
        assert!(read(&good[..cut], None).is_err());
    }
    let mut wrong = graph.clone();
    wrong.weights.get_mut("w0").unwrap().shape = vec![4, 6, 3, 3];
    let error = read(&write(&wrong), None).unwrap_err().to_string();
    assert!(error.contains("n_v0") && error.contains("Conv"), "{error}");
}
