//! Which panics are findings.

use std::{
    backtrace::Backtrace,
    io::Write,
    panic::{self, PanicHookInfo},
    process,
};

/// tract and what nobody but tract uses: what panics in there, the runtime catches and makes an error of.
const OTHERS: [&str; 4] = ["tract", "ndarray", "smallvec", "num"];

/// From now on a panic ends the fuzzer, unless it is of [`OTHERS`].
#[allow(dead_code, reason = "tests go on")]
pub(crate) fn are_findings() {
    panic::set_hook(Box::new(|panic| {
        if let Some(finding) = finding(panic) {
            // A fuzzer whose output is closed ends all the same.
            drop(writeln!(std::io::stderr(), "{finding}"));
            process::abort();
        }
    }));
}

/// What a panic says and where it comes from, unless it is of [`OTHERS`].
pub(crate) fn finding(panic: &PanicHookInfo<'_>) -> Option<String> {
    let trace = Backtrace::force_capture().to_string();
    let file = panic.location().map_or("", |location| location.file());
    // A panic in the standard library is of whoever called it.
    let is_others = match file.starts_with("/rustc/") {
        true => caller(&trace).is_some_and(|function| !is_ours(function)),
        false => OTHERS.iter().any(|name| file.contains(&format!("/{name}-"))),
    };
    (!is_others).then(|| format!("{panic}\n{trace}"))
}

/// The innermost function that tells whose it is.
fn caller(trace: &str) -> Option<&str> {
    let functions = trace.lines().filter_map(|line| line.trim().split_once(": ")).map(|(_, name)| name);
    let mut inside = functions.skip_while(|name| !name.contains("rust_begin_unwind"));
    inside.find(|name| is_ours(name) || OTHERS.iter().any(|other| mentions(name, other)))
}

fn is_ours(function: &str) -> bool {
    function.contains("andon_")
}

/// Whether a crate whose name begins so is a part of a function's name: `<tract_core::ops::Op as core::clone::Clone>::clone`.
fn mentions(function: &str, name: &str) -> bool {
    function.match_indices(name).any(|(at, _)| {
        let before = function[..at].chars().next_back();
        let path = function[at..].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') && path.starts_with("::")
    })
}
