//! Static int8 quantisation of a trained graph, written as ONNX in QDQ form: u8 activations with one scale and zero
//! point per tensor, s8 weights per output channel, i32 biases of scale `x * w`. ONNX Runtime, OpenVINO and our own
//! plans fuse that form into integer kernels; every other reader computes the same in float.
//!
//! The head and the pooling before it stay in float: a head may have few large weights and many small ones, which one
//! int8 step would erase, and what the drift charts watch (the embedding) keeps its resolution. It also lets the head take back what rounding shifts: see
//! [`aligned_head`].

mod align;
mod qdq;
mod ranges;

pub use align::aligned_head;
pub use qdq::{Parameters, QuantiseError, write};
pub use ranges::{Calibration, Ranges, calibrate};
