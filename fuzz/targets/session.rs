//! A random small int8 network, made of the fuzzer's bytes, on our engine and on tract: the same bytes come out.

#![no_main]

mod panics;

use andon_runtime::{EngineChoice, Graph, Limits, Model, Session, SessionOptions, Tensor};

#[allow(dead_code, reason = "files are for another target")]
#[path = "../../runtime/tests/conformance/graph.rs"]
mod graph;

libfuzzer_sys::fuzz_target!(init: panics::are_findings(), |bytes: &[u8]| {
    let network = graph::network(bytes);
    let run = |engine| {
        let graph = Graph::new(network.model.clone()).ok()?;
        let model = Model::from_graph(graph, &Limits::default()).ok()?;
        let mut session = Session::new(&model, &SessionOptions { engine, ..Default::default() }).ok()?;
        let image = Tensor::f32(network.dims.to_vec(), network.image.clone()).ok()?;
        Some(session.run(&[(graph::INPUT, image)]))
    };
    if let (Some(ours), Some(Ok(theirs))) = (run(EngineChoice::Cpu), run(EngineChoice::Tract)) {
        assert_eq!(ours.ok(), Some(theirs));
    }
});
