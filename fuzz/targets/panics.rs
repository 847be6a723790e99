//! Which panics are findings.

use std::{backtrace::Backtrace, io::Write, panic, process};

/// tract and what nobody but tract uses: what panics in there, the runtime catches and makes an error of.
const OTHERS: [&str; 4] = ["/tract-", "/ndarray-", "/smallvec-", "/num-"];

/// From now on a panic ends the fuzzer, unless it is of [`OTHERS`].
pub(crate) fn are_findings() {
    panic::set_hook(Box::new(|panic| {
        let file = panic.location().map_or("", |location| location.file());
        if !OTHERS.iter().any(|name| file.contains(name)) {
            // A fuzzer whose output is closed ends all the same.
            drop(writeln!(std::io::stderr(), "{panic}\n{}", Backtrace::force_capture()));
            process::abort();
        }
    }));
}
