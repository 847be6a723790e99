//! Writing a release folder: `release/{model.onnx, manifest.json, reference.cbor, golden/…}` and `float.onnx` beside it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use andon_protocol::{
    ids::{Digest, ReleaseId},
    release::{
        Decision, GOLDEN_FILE, GoldenCase, GoldenSet, Input, Lineage, MANIFEST_FILE, MODEL_FILE, Manifest,
        Outputs, Preprocessing, REFERENCE_FILE,
    },
};

use crate::graph::Graph;

pub const FLOAT_FILE: &str = "float.onnx";
/// What made a release, for the lineage.
pub const TRAINER: &str = concat!("andon-trainer ", env!("CARGO_PKG_VERSION"));

#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Decode(#[from] andon_protocol::codec::DecodeError),
    #[error("{path} is a file or holds something that is no release; give another --out")]
    Occupied { path: PathBuf },
}

/// What stays the same between the releases of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    pub input: Input,
    pub preprocessing: Preprocessing,
    pub labels: Vec<String>,
    pub decision: Decision,
}

/// The manifest of a network for a task.
pub fn manifest(
    task: &Task,
    graph: &Graph,
    release: ReleaseId,
    lineage: Lineage,
    created_ms: i64,
    metrics: BTreeMap<String, f64>,
) -> Manifest {
    Manifest {
        schema: Manifest::schema_for(&task.input).into(),
        release,
        created_ms,
        input: task.input.clone(),
        preprocessing: task.preprocessing.clone(),
        labels: task.labels.clone(),
        decision: task.decision.clone(),
        outputs: Outputs { scores: graph.scores().into(), embedding: graph.embedding().into() },
        lineage,
        metrics,
    }
}

/// A golden image as the release will carry it.
#[derive(Debug, Clone)]
pub struct GoldenImage {
    pub bytes: Vec<u8>,
    pub label: usize,
    /// After softmax, as the device's engine gives them.
    pub scores: Vec<f32>,
}

/// Everything of a release, in memory.
#[derive(Debug, Clone)]
pub struct Release {
    pub manifest: Manifest,
    pub model: Vec<u8>,
    pub float: Vec<u8>,
    pub reference: Vec<u8>,
    pub golden: Vec<GoldenImage>,
    pub tolerance: f32,
}

impl Release {
    /// Writes into `out`, which may not exist, be empty, or hold an older result of ours.
    pub fn write(&self, out: &Path) -> Result<(), ReleaseError> {
        let folder = out.join("release");
        if folder.exists() {
            if !folder.join(MANIFEST_FILE).is_file() {
                return Err(ReleaseError::Occupied { path: folder });
            }
            fs::remove_dir_all(&folder)
                .map_err(|source| ReleaseError::Write { path: folder.clone(), source })?;
        }
        put(&out.join(FLOAT_FILE), &self.float)?;
        put(&folder.join(MODEL_FILE), &self.model)?;
        put(&folder.join(REFERENCE_FILE), &self.reference)?;
        let mut cases = Vec::new();
        for image in &self.golden {
            let digest = Digest::of(&image.bytes);
            let extension = if image.bytes.starts_with(b"\x89PNG") { "png" } else { "jpg" };
            let name = format!("{}.{extension}", &digest.to_string()[..16]);
            put(&folder.join("golden").join(&name), &image.bytes)?;
            cases.push(GoldenCase {
                image: name,
                digest,
                label: image.label as u32,
                scores: image.scores.clone(),
            });
        }
        put(&folder.join(GOLDEN_FILE), &json(&GoldenSet { tolerance: self.tolerance, cases }))?;
        // Last: a folder with a manifest is whole.
        put(&folder.join(MANIFEST_FILE), &json(&self.manifest))
    }
}

/// Reads a file that must not be larger than `max`.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>, ReleaseError> {
    let fail = |source| ReleaseError::Read { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(fail)?.len();
    if bytes > max {
        return Err(fail(io::Error::other(format!("{bytes} bytes, allowed are {max}"))));
    }
    fs::read(path).map_err(fail)
}

/// Writes beside and renames, so that a reader sees the whole file or none.
pub fn put(path: &Path, bytes: &[u8]) -> Result<(), ReleaseError> {
    let fail = |source| ReleaseError::Write { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(fail)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let write = || {
        let mut file = fs::File::create(&part)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(fail)
}

pub fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Our own types have text keys and no foreign serialisers.
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_else(|e| unreachable!("{e}"));
    bytes.push(b'\n');
    bytes
}
