//! A random small int8 network, made of the fuzzer's bytes, on our engine and on tract: the same bytes come out.

#![no_main]

use andon_runtime::{EngineChoice, Graph, Limits, Model, Session, SessionOptions, Tensor};

#[path = "../../runtime/tests/conformance/graph.rs"]
mod graph;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let network = graph::network(bytes);
    let run = |engine| {
        let graph = Graph::new(network.model.clone()).ok()?;
        let model = Model::from_graph(graph, &Limits::default()).ok()?;
        let mut session = Session::new(&model, &SessionOptions { engine, ..Default::default() }).ok()?;
        let image = Tensor::f32(network.dims.to_vec(), network.image.clone()).ok()?;
        Some(session.run(&[(graph::INPUT, image)]))
    };
    let Some(ours) = run(EngineChoice::Cpu) else { return };
    let theirs = run(EngineChoice::Tract);
    assert_eq!(ours.ok(), theirs.and_then(Result::ok));
});
