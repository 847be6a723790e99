//! Training: a frozen prefix whose outputs are kept ([`Cache`]), a head fitted in one go ([`fit_head`]), then the tail
//! tuned by gradient descent ([`tune`]).
//!
//! Deterministic: the same graph, images, settings and seed give the same bytes, whatever the number of cores.

mod cache;
mod head;
mod tune;

use std::ops::ControlFlow;

pub use cache::{CACHE_BYTES_MAX, Cache, CacheError};
pub use head::{HeadError, HeadReport, check_head, fit_head};
pub use tune::{Keep, Sample, Schedule, TuneError, TuneReport, class_weights, logits, tail, tune};

/// Told how far the work is, from 0 to 1 of the stage; `Break` stops it.
pub type Progress<'a> = &'a (dyn Fn(f32) -> ControlFlow<()> + Sync);
