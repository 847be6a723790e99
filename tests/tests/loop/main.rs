//! The loop, end to end, and everything that must not break it. One binary: linking is slow, and fleets must take turns.

// Helpers of tests are tests: a value that is missing is the failure.
#![allow(clippy::unwrap_used)]

mod faults;
mod fixture;
mod quick_demo;
mod readme;
mod refusals;
mod tidy;
mod training;
