//! The loop, end to end, and everything that must not break it. One binary: linking is slow, and fleets must take turns.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests: a missing value is the failure")]

mod engines;
mod faults;
mod fixture;
mod quick_demo;
mod readme;
mod refusals;
mod tidy;
mod training;
