//! Andon's runtime: ONNX files in, numbers out.
//!
//! Invariants: knows no network, no clock and no disk; a model and an image are untrusted input, so that every bound
//! is checked and nothing panics.

pub mod onnx;
