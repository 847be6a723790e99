//! A random small int8 network, made of the fuzzer's bytes, a few bytes of whose file are others.

#![no_main]

mod attempt;
mod panics;

#[allow(dead_code, reason = "only the file is used")]
#[path = "../../runtime/tests/conformance/graph.rs"]
mod graph;

libfuzzer_sys::fuzz_target!(init: panics::are_findings(), |bytes: &[u8]| {
    attempt::attempt(&graph::damaged(bytes));
});
