//! Engines: what computes a network. Each is a module here, made by one line in [`build`].

mod qdq;
mod tract;

use crate::{
    cpu::Cpu,
    model::LoadError,
    session::{EngineChoice, Request},
    tensor::Tensor,
};

/// One network, loaded for fixed shapes.
///
/// Inputs come in the graph's order, with the shapes and types of the request; outputs go in the order of the
/// request. Errors are texts for people: nothing branches on them. A panic must not get out of `run`.
pub(crate) trait Engine: Send {
    fn name(&self) -> &'static str;

    fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String>;

    /// Bytes kept for intermediate values, where the engine plans them itself.
    fn arena_bytes(&self) -> Option<usize> {
        None
    }
}

/// The engine asked for, or the first that can run the network.
pub(crate) fn build(choice: EngineChoice, request: &Request<'_>) -> Result<Box<dyn Engine>, LoadError> {
    if choice != EngineChoice::Tract {
        match Cpu::new(request.model.graph(), request.shapes, request.outputs) {
            Ok(cpu) => return Ok(Box::new(cpu)),
            Err(refused) if choice == EngineChoice::Cpu => {
                let (model, reason) = (request.model.name().to_owned(), refused.to_string());
                return Err(LoadError::Engine { model, engine: "cpu", reason });
            }
            Err(_) => {}
        }
    }
    Ok(Box::new(tract::Tract::new(request)?))
}

/// Runs code that is not ours and may panic; the panic's message becomes the error's.
pub(crate) fn guarded<T>(code: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // Whoever calls drops the state that `code` may have left half changed.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(code));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("panic: {text}"))
    })
}
