//! What is done with a file that may be anything: read, shapes inferred, explained, planned and run with small limits.

use andon_runtime::{EngineChoice, Limits, Model, Session, SessionOptions, Tensor};

/// An error is fine; a panic, or memory and time without bound, is not.
pub(crate) fn attempt(file: &[u8]) {
    let limits = Limits { elements_max: 1 << 16, nodes_max: 200, ..Limits::default() };
    let Ok(model) = Model::load(file, &limits) else { return };
    model.explain().to_string();
    // tract is not ours to fuzz, and what panics in it is caught.
    let options =
        SessionOptions { engine: EngineChoice::Cpu, memory_limit_bytes: 1 << 24, ..Default::default() };
    let Ok(mut session) = Session::new(&model, &options) else { return };
    let inputs: Vec<(String, Vec<usize>)> =
        session.inputs().map(|(n, d)| (n.to_owned(), d.to_vec())).collect();
    let ones = |dims: &[usize]| Tensor::f32(dims.to_vec(), vec![1.0; dims.iter().product()]).ok();
    let inputs: Option<Vec<(&str, Tensor)>> =
        inputs.iter().map(|(name, dims)| Some((name.as_str(), ones(dims)?))).collect();
    drop(inputs.map(|inputs| session.run(&inputs)));
}
