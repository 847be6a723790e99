//! The ONNX project's own test cases, run through [`andon_runtime::Session`]. They come with the wheel `onnx==1.22.0`, which
//! `cargo xtask data` puts into the cache; nothing of it is part of this repository.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests: a missing value is the failure")]

#[path = "../../../fuzz/targets/attempt.rs"]
mod attempt;
mod case;
mod expectations;
mod findings;
mod graph;
mod hostile;
mod light;
mod node;
#[path = "../../../fuzz/targets/panics.rs"]
mod panics;
mod random;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// `onnx/backend/test/data` of the wheel.
fn data() -> PathBuf {
    let cache = env::var_os("ANDON_CACHE").filter(|f| !f.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache").join("andon")));
    let data = cache.expect("neither ANDON_CACHE nor HOME is set").join("onnx-1.22.0");
    assert!(data.is_dir(), "{} is missing: run `cargo xtask data`", data.display());
    data
}

/// Entries of a folder, by name.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    entries
}
