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
mod graph;
mod image;
mod model;
pub mod onnx;
mod plain;
mod preprocess;
mod session;
pub mod shape;
mod tensor;

pub use classifier::{Classifier, ClassifierSpec, Judgement, softmax};
pub use explain::{Explanation, PlanStep, Row};
pub use graph::{Graph, GraphError, Node, NodeId, Source, Value, ValueId};
pub use image::{Image, ImageError, ImageLimits};
pub use model::{LoadError, Model, Port};
pub use onnx::Limits;
pub use preprocess::{PreprocessError, preprocess};
pub use session::{EngineChoice, Outputs, RunError, Session, SessionOptions};
pub use tensor::{Data, ShapeError, Tensor};
