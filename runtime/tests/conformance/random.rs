//! Random networks on every engine: the bytes are the same. And damaged files: whatever is in them, nothing panics.

use std::io::Write;

use andon_runtime::{EngineChoice, Graph, Limits, Model, Session, SessionOptions, Tensor};
use proptest::prelude::*;

use crate::graph::{self, Network};

/// All outputs, by name; `None` where the engine cannot run the network.
pub(crate) fn run(network: &Network, engine: EngineChoice) -> Result<Option<Vec<(String, Tensor)>>, String> {
    let graph = Graph::new(network.model.clone()).map_err(|e| e.to_string())?;
    let model = Model::from_graph(graph, &Limits::default()).map_err(|e| e.to_string())?;
    let options = SessionOptions { engine, ..Default::default() };
    let Ok(mut session) = Session::new(&model, &options) else { return Ok(None) };
    let image = Tensor::f32(network.dims.to_vec(), network.image.clone()).map_err(|e| e.to_string())?;
    let outputs = session.run(&[(graph::INPUT, image)]).map_err(|e| e.to_string())?;
    Ok(Some(outputs.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()))
}

#[test]
fn random_networks_give_the_same_bytes_on_every_engine() {
    const CASES: u32 = 400;
    let compared = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(CASES));
    let bytes = prop::collection::vec(any::<u8>(), 50..4000);
    let result = runner.run(&bytes, |bytes| {
        let network = graph::network(&bytes);
        let fail = |e: String| TestCaseError::fail(e);
        let tract = run(&network, EngineChoice::Tract).map_err(fail)?;
        let tract = tract.ok_or_else(|| TestCaseError::fail("tract cannot run it"))?;
        let auto = run(&network, EngineChoice::Auto).map_err(fail)?;
        prop_assert_eq!(auto.as_ref(), Some(&tract));
        if let Some(ours) = run(&network, EngineChoice::Cpu).map_err(fail)? {
            compared.set(compared.get() + 1);
            prop_assert_eq!(ours, tract);
        }
        Ok(())
    });
    let compared = compared.get();
    writeln!(std::io::stderr(), "random networks: {CASES}, {compared} of them whole on the engine cpu")
        .unwrap();
    result.unwrap();
    assert!(compared > CASES / 20, "only {compared} ran on the engine cpu");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damaged_files_are_no_panic(
        bytes in prop::collection::vec(any::<u8>(), 50..600),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut file = graph::network(&bytes).model.to_bytes();
        for (at, value) in flips {
            let at = at.index(file.len());
            file[at] = value;
        }
        let limits = Limits { elements_max: 1 << 16, ..Limits::default() };
        let Ok(model) = Model::load(&file, &limits) else { return Ok(()) };
        model.explain().to_string();
        let options = SessionOptions { memory_limit_bytes: 1 << 24, ..Default::default() };
        let Ok(mut session) = Session::new(&model, &options) else { return Ok(()) };
        let inputs: Vec<(String, Vec<usize>)> = session.inputs().map(|(n, d)| (n.to_owned(), d.to_vec())).collect();
        let zeros = |dims: &[usize]| Tensor::f32(dims.to_vec(), vec![0.0; dims.iter().product()]).unwrap();
        let inputs: Vec<(&str, Tensor)> = inputs.iter().map(|(n, d)| (n.as_str(), zeros(d))).collect();
        // An error is fine.
        drop(session.run(&inputs));
    }
}
