//! A training job as a folder, shared by the fleet server (which writes `spec.json` and reads `result.json`) and a
//! trainer worker (the rest). No network and no database between them: workers scale by sharing the file system.
//!
//! | file in `QUEUE/RUN/` | writer | what |
//! |---|---|---|
//! | `spec.json` | server | [`JobSpec`], renamed into place last: the job exists when this file does |
//! | `claim.json` | worker | [`Claim`], created exclusively; its modification time is the lease, renewed every 2 s |
//! | `progress.json` | worker | [`Progress`], replaced atomically |
//! | `cancel` | server | asks the worker to stop |
//! | `out/` | worker | `release/` (the files of the release), `float.onnx` |
//! | `result.json` | worker | [`JobResult`], renamed into place last: the job is over when this file is there |
//!
//! A claim whose lease is older than [`LEASE_S`] is void; the next worker starts the job afresh in an empty `out/`.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{DeviceId, Digest, ReleaseId};

pub const LEASE_S: u64 = 15;
pub const SPEC_FILE: &str = "spec.json";
pub const CLAIM_FILE: &str = "claim.json";
pub const PROGRESS_FILE: &str = "progress.json";
pub const CANCEL_FILE: &str = "cancel";
pub const RESULT_FILE: &str = "result.json";
pub const OUT_DIR: &str = "out";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// `andon.job.v1`
    pub schema: String,
    pub run: String,
    /// The release to make.
    pub release: ReleaseId,
    pub parent: ReleaseId,
    /// Folder with the parent's release files, and its float model.
    pub parent_dir: PathBuf,
    pub parent_float: PathBuf,
    /// Content-addressed images: `BLOBS/ab/cdef…`, hexadecimal, first two digits as the folder.
    pub blobs: PathBuf,
    /// Digest of the data-set version that `items` is.
    pub dataset: Digest,
    pub items: Vec<Item>,
    /// Field images without a label, of drifted devices: they show how images look now.
    pub unlabelled: Vec<FieldImage>,
    pub seed: u64,
    pub recipe: Recipe,
    pub gate: Gate,
}

impl JobSpec {
    pub const SCHEMA: &'static str = "andon.job.v1";
    pub const BYTES_MAX: usize = 64 * 1024 * 1024;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub image: Digest,
    /// Index into the parent's labels.
    pub class: u32,
    pub part: Part,
    /// Where it comes from, for an image from the field.
    pub device: Option<DeviceId>,
    /// Captured while the device's drift state was suspect, alarm or cooldown.
    pub drifted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Train,
    Validation,
    Golden,
    /// Labelled field images kept out of training; the gate measures the gain on them.
    HeldBack,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FieldImage {
    pub image: Digest,
    pub device: DeviceId,
}

/// How to train. Defaults are the trainer's.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Recipe {
    pub epochs: Option<u32>,
    pub learning_rate: Option<f32>,
    /// Images of the training part used at most (a seeded, stratified choice).
    pub train_images_max: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Int8 against float: share of equal verdicts, at least.
    pub agreement_min: f64,
    pub clean_loss_max: f64,
    pub drift_gain_min: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    pub worker: String,
    pub pid: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 1.
    pub done: f32,
    pub stage: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    pub outcome: Outcome,
    /// One paragraph for people: what the gate compared and decided, or the error.
    pub verdict: String,
    /// `golden.balanced_accuracy.old`, `….new`, `held_back.…`, `agreement`…
    pub metrics: BTreeMap<String, f64>,
    pub seconds: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// `out/` holds a release that passed the gate.
    Succeeded,
    /// Trained, and not better.
    Refused,
    Failed,
    Cancelled,
}
