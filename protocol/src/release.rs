//! `manifest.json` and `golden/cases.json` of a release. A release is a set of TUF targets under `MODEL/VERSION/`:
//!
//! | file | what |
//! |---|---|
//! | `model.onnx` | the network that runs |
//! | `manifest.json` | [`Manifest`] |
//! | `reference.cbor` | what drift is measured against (`andon_drift::Reference`) |
//! | `golden/cases.json`, `golden/NAME.png` | [`GoldenSet`]: images with the outputs that the trainer saw |
//!
//! Everything here was checked by digest before it is parsed, and is checked again for sense: a signature says who
//! wrote it, not that it is right.

use serde::{Deserialize, Serialize};

use crate::{codec::DecodeError, ids::Digest, ids::ReleaseId};

pub const MODEL_FILE: &str = "model.onnx";
pub const MANIFEST_FILE: &str = "manifest.json";
pub const REFERENCE_FILE: &str = "reference.cbor";
pub const GOLDEN_FILE: &str = "golden/cases.json";

pub const MANIFEST_BYTES_MAX: usize = 256 * 1024;
pub const GOLDEN_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`Manifest::schema_for`]
    pub schema: String,
    pub release: ReleaseId,
    pub created_ms: i64,
    pub input: Input,
    pub preprocessing: Preprocessing,
    /// Names of the classes, in the order of the scores.
    pub labels: Vec<String>,
    pub decision: Decision,
    pub outputs: Outputs,
    pub lineage: Lineage,
    /// What the evaluator measured before release, by name (`validation.balanced_accuracy`).
    pub metrics: std::collections::BTreeMap<String, f64>,
}

impl Manifest {
    pub const SCHEMA: &'static str = "andon.release.v1";
    /// Of a release that agents must not run which know the first one alone: they ignore what they do not know.
    /// 2026-11-27: `input.fit`.
    pub const SCHEMA_2: &'static str = "andon.release.v2";

    /// The oldest that says all that an input does.
    pub fn schema_for(input: &Input) -> &'static str {
        if input.fit == Fit::Stretched { Self::SCHEMA } else { Self::SCHEMA_2 }
    }

    /// Reads and checks `manifest.json`.
    pub fn from_json(bytes: &[u8]) -> Result<Self, DecodeError> {
        let manifest: Self = from_json("manifest.json", bytes, MANIFEST_BYTES_MAX)?;
        manifest.check().map_err(|rule| DecodeError::Invalid { kind: "manifest.json", rule })?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        let schema = Self::schema_for(&self.input);
        if ![schema, Self::SCHEMA_2].contains(&&*self.schema) {
            return Err(format!("schema is not {schema}"));
        }
        let Input { width, height, channels, .. } = self.input;
        if !(1..=8192).contains(&width) || !(1..=8192).contains(&height) || !matches!(channels, 1 | 3) {
            return Err(format!("input {width}x{height}x{channels} is not 1..8192 x 1..8192 x 1 or 3"));
        }
        let Preprocessing { mean, std, .. } = &self.preprocessing;
        if mean.len() != channels as usize || std.len() != channels as usize {
            return Err(format!("mean and std need {channels} values each"));
        }
        if mean.iter().any(|m| !m.is_finite()) || std.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err("mean must be finite, std finite and positive".into());
        }
        if !(2..=1024).contains(&self.labels.len()) {
            return Err(format!("{} labels, allowed are 2 to 1024", self.labels.len()));
        }
        if self.decision.reject as usize >= self.labels.len() {
            return Err(format!("decision.reject {} is no label", self.decision.reject));
        }
        if !(0.0..=1.0).contains(&self.decision.threshold) {
            return Err(format!("decision.threshold {} is not in [0, 1]", self.decision.threshold));
        }
        Ok(())
    }
}

/// The network's image input: `[1, channels, height, width]` f32.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub name: String,
    pub width: u32,
    pub height: u32,
    /// 1 (grey) or 3 (RGB; a grey camera's value is repeated).
    pub channels: u32,
    #[serde(default, skip_serializing_if = "Fit::is_stretched")]
    pub fit: Fit,
}

/// How an image becomes one of the input's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// All of it fills all of the input, whatever that does to its aspect ratio.
    #[default]
    Stretched,
    /// All of it in the middle of the input, as large as its aspect ratio allows; what is left is of this grey, 0 to 255.
    Letterboxed { fill: u8 },
}

impl Fit {
    fn is_stretched(&self) -> bool {
        *self == Self::Stretched
    }
}

/// `(resize(pixel) - mean) / std`, in units of 0 to 255, per channel. The whole image is resized, bilinear with
/// half-pixel centres, antialiased when it shrinks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

/// A part is rejected when the score of class `reject` is at least `threshold`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub reject: u32,
    pub threshold: f32,
}

/// Names of graph values. `scores` are logits `[1, labels]`; softmax is applied by the reader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    pub scores: String,
    /// Input of the last Gemm, `[1, d]` f32; what drift charts watch.
    pub embedding: String,
}

/// Where the model comes from, by digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    pub parent: Option<ReleaseId>,
    pub dataset: Digest,
    /// The float model that was quantised.
    pub float_model: Digest,
    pub trainer: String,
    pub seed: u64,
}

/// Images whose outputs every device must reproduce before it trusts a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldenSet {
    /// Largest allowed difference of a score (after softmax). Engines that are bit-exact with the trainer's see 0.
    pub tolerance: f32,
    pub cases: Vec<GoldenCase>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldenCase {
    /// Relative to `golden/`, a plain file name.
    pub image: String,
    pub digest: Digest,
    /// True class.
    pub label: u32,
    /// After softmax, as the trainer's engine gave them.
    pub scores: Vec<f32>,
}

impl GoldenSet {
    pub const CASES_MAX: usize = 1024;

    pub fn from_json(bytes: &[u8]) -> Result<Self, DecodeError> {
        let kind = "golden/cases.json";
        let set: Self = from_json(kind, bytes, GOLDEN_BYTES_MAX)?;
        let invalid = |rule: String| Err(DecodeError::Invalid { kind, rule });
        if set.cases.is_empty() || set.cases.len() > Self::CASES_MAX {
            return invalid(format!("{} cases, allowed are 1 to {}", set.cases.len(), Self::CASES_MAX));
        }
        if let Some(case) = set.cases.iter().find(|c| !is_plain_file_name(&c.image)) {
            return invalid(format!(
                "image {:?} is no plain file name",
                case.image.chars().take(80).collect::<String>()
            ));
        }
        Ok(set)
    }
}

/// A name that stays in its folder on every system.
pub fn is_plain_file_name(name: &str) -> bool {
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(legal)
}

fn from_json<T: serde::de::DeserializeOwned>(
    kind: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLarge { kind, bytes: bytes.len(), max });
    }
    serde_json::from_slice(bytes).map_err(|e| DecodeError::Malformed { kind, reason: e.to_string() })
}
