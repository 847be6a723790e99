//! Andon's trainer: from labelled images and a base network to a signed-ready release, and from a drifted fleet's images
//! to the next one. Runs centrally, on CPU; knows files and folders, no network and no database.
//!
//! | module | what |
//! |---|---|
//! | [`graph`] | ONNX in and out, shapes, and the engine that runs and differentiates (burn lives there only) |
//! | [`zoo`] | published weights to a graph |
//! | [`data`], [`appearance`] | labelled images; how a camera's pictures look now |
//! | [`train`] | frozen prefix with kept activations, head fit, fine-tuning |
//! | [`quantise`], [`judge`], [`metrics`] | static int8; the device's engine as examiner; figures of merit |
//! | [`fit`], [`retrain`], [`worker`] | the commands |
//!
//! Invariants: one seed, one result, whatever the number of cores; a broken image, spec or network is named, never a
//! panic; what a release claims was measured with the runtime's own engine.

pub mod appearance;
pub mod clock;
pub mod cut;
pub mod data;
pub mod evaluate;
mod finish;
pub mod fit;
mod golden;
pub mod graph;
pub mod judge;
pub mod metrics;
pub mod progress;
pub mod quantise;
mod reference;
pub mod release;
pub mod report;
pub mod retrain;
pub mod team;
pub mod train;
pub mod worker;
pub mod zoo;

#[cfg(test)]
mod tests;
