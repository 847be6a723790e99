//! `report.json` beside a release: what was done and measured, for people and for lineage.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{clock::Stopwatch, metrics::Metrics};

#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    pub images: BTreeMap<String, usize>,
    /// Images that could not be read, and why.
    pub broken: Vec<(String, String)>,
    /// By set and model: `validation.float`, `validation.int8`, ….
    pub metrics: BTreeMap<String, Metrics>,
    /// Single numbers, as in the manifest.
    pub numbers: BTreeMap<String, f64>,
    /// Per epoch; entry 0 of the validation loss is before the first.
    pub training_loss: Vec<f64>,
    pub validation_loss: Vec<f64>,
    pub best_epoch: usize,
    /// What the drifted devices' pictures look like, in words.
    pub looks: BTreeMap<String, String>,
    pub seconds: BTreeMap<String, f64>,
    pub cpu_seconds: BTreeMap<String, f64>,
    pub notes: Vec<String>,
}

impl Report {
    /// Books the time since the last call on `stage`.
    pub fn lap(&mut self, watch: &mut Stopwatch, stage: &str) {
        let (wall, cpu) = watch.lap();
        *self.seconds.entry(stage.into()).or_insert(0.0) += wall;
        *self.cpu_seconds.entry(stage.into()).or_insert(0.0) += cpu.unwrap_or(0.0);
    }
}
