//! The loop, end to end, and everything that must not break it. One binary: linking is slow, and fleets must take turns.

mod faults;
mod fixture;
mod quick_demo;
mod readme;
mod refusals;
mod tidy;
mod training;
