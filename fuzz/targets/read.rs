//! Any bytes as an ONNX file.

#![no_main]

mod attempt;
mod panics;

libfuzzer_sys::fuzz_target!(init: panics::are_findings(), |bytes: &[u8]| attempt::attempt(bytes));
