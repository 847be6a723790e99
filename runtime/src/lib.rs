//! Andon's runtime: ONNX files in, numbers out.
//!
//! [`Model`] (read and checked) → [`Session`] (an engine, fixed shapes) → [`Classifier`] (picture in, class out). How a
//! picture becomes a tensor is here too ([`preprocess`]), so that trainer and device do the same.
//!
//! Invariants: knows no network, no clock and no disk; a model and an image are untrusted input, so that every bound
//! is checked and nothing panics.

mod classifier;
mod cpu;
mod engine;
mod explain;
#[cfg(test)]
mod fixtures;
mod gpu;
mod graph;
mod image;
mod model;
pub mod onnx;
mod plain;
mod preprocess;
mod qlinear;
mod resize;
mod session;
pub mod shape;
mod tensor;

pub use classifier::{Classifier, ClassifierSpec, Judgement, softmax};
pub use engine::{Busy, Clock, Failure, GuardEvent, GuardPolicy, StepTime, TimedBy};
pub use explain::{Explanation, PlanStep, Row};
pub use gpu::{
    AdapterKey, Expected, GoldenReport, GpuAdapter, GpuPeaks, PipelineCache, Task, Tuned, Tuning, Variant,
    Workload, WrongCase, chosen_gpu, chosen_gpu_but, gpus, has_gpu_steps, is_float_network, tune,
};
pub use graph::{Graph, GraphError, Node, NodeId, Source, Value, ValueId};
pub use image::{Image, ImageError, ImageLimits};
pub use model::{LoadError, Model, Port};
pub use onnx::Limits;
pub use preprocess::{PreprocessError, preprocess};
pub use session::{EngineChoice, Guarding, Outputs, Pictures, RunError, Session, SessionOptions};
pub use tensor::{Data, ShapeError, Tensor};

/// Does so many rounds of nothing but 8-bit multiply-accumulates, on one thread and the instruction set that networks run
/// on, and returns how many those were: who has a clock learns the most that this machine can do. `None` if the
/// environment asks for an instruction set that there is not.
pub fn multiply_accumulate(rounds: u32) -> Option<u64> {
    Some(cpu::multiply_accumulate(cpu::Isa::chosen().ok()?, rounds))
}
