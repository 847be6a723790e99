//! A release as it comes in: `release/` with the files that devices get, and `float.onnx`, from which the next one is
//! trained. Everything that can be checked without running the model is checked here, for uploads and for what our
//! own trainer made alike. Blocking.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::Path,
};

use andon_protocol::{
    Digest,
    release::{
        GOLDEN_BYTES_MAX, GOLDEN_FILE, GoldenSet, MANIFEST_BYTES_MAX, MANIFEST_FILE, MODEL_FILE, Manifest,
        REFERENCE_FILE, is_plain_file_name,
    },
};

use super::unpack::{Place, UnpackError, unpack};
use crate::{files, problem::Problem, tuf::PublishedFile};

/// Of a whole upload.
pub const UPLOAD_BYTES_MAX: u64 = 512 * 1024 * 1024;
const MODEL_BYTES_MAX: u64 = 256 * 1024 * 1024;
const REFERENCE_BYTES_MAX: u64 = 4 * 1024 * 1024;
const IMAGE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const FILES_MAX: usize = GoldenSet::CASES_MAX + 5;

pub const RELEASE_DIR: &str = "release";
pub const FLOAT_FILE: &str = "float.onnx";

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{file}: {rule}")]
    Rule { file: String, rule: String },
    #[error("cannot read {file}: {source}")]
    Read { file: String, source: io::Error },
}

impl From<BundleError> for Problem {
    fn from(error: BundleError) -> Self {
        match error {
            BundleError::Rule { .. } => Problem::refused(error.to_string()),
            BundleError::Read { .. } => Problem::internal(error),
        }
    }
}

fn rule<T>(file: &str, rule: impl Into<String>) -> Result<T, BundleError> {
    Err(BundleError::Rule { file: file.to_owned(), rule: rule.into() })
}

/// What was found in a folder that passed every check.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub manifest: Manifest,
    /// The files of `release/`, in the order of their names.
    pub files: Vec<PublishedFile>,
    /// Of `model.onnx`.
    pub model: Digest,
    /// Of all files of `release/`.
    pub bytes: u64,
}

/// Unpacks an upload into the empty folder `into`.
pub fn unpack_into(archive: impl Read, into: &Path) -> Result<(), UnpackError> {
    let golden = into.join(RELEASE_DIR).join("golden");
    files::create_dir(&golden).map_err(UnpackError::Store)?;
    unpack(archive, FILES_MAX, |name| {
        let bytes_max = if name == FLOAT_FILE {
            UPLOAD_BYTES_MAX
        } else {
            name.strip_prefix("release/").and_then(bytes_max).ok_or_else(|| {
                "is no part of a release; expected release/model.onnx, release/manifest.json, release/reference.cbor, \
                 release/golden/cases.json with its images, and float.onnx"
                    .to_owned()
            })?
        };
        Ok(Place { path: into.join(name), bytes_max })
    })
}

/// How large a file of a release may be; `None`: it is none.
fn bytes_max(name: &str) -> Option<u64> {
    match name {
        MODEL_FILE => Some(MODEL_BYTES_MAX),
        MANIFEST_FILE => Some(MANIFEST_BYTES_MAX as u64),
        REFERENCE_FILE => Some(REFERENCE_BYTES_MAX),
        GOLDEN_FILE => Some(GOLDEN_BYTES_MAX as u64),
        _ => name.strip_prefix("golden/").filter(|image| is_plain_file_name(image)).map(|_| IMAGE_BYTES_MAX),
    }
}

/// Checks `folder`: the manifest, that the float model is the one it names, and that the golden set is whole.
pub fn check(folder: &Path) -> Result<Bundle, BundleError> {
    let release = folder.join(RELEASE_DIR);
    let manifest_bytes = required(&release, MANIFEST_FILE)?;
    let manifest = match Manifest::from_json(&manifest_bytes) {
        Ok(manifest) => manifest,
        Err(error) => return rule(MANIFEST_FILE, error.to_string()),
    };
    check_texts(&manifest)?;
    let model = required(&release, MODEL_FILE)?;
    let float = read(folder, FLOAT_FILE, UPLOAD_BYTES_MAX)?;
    match float {
        None => return rule(FLOAT_FILE, "is missing; the next release is trained from it"),
        Some(float) if Digest::of(&float) != manifest.lineage.float_model => {
            return rule(FLOAT_FILE, "is not the model of the manifest's lineage.float_model digest");
        }
        Some(_) => {}
    }
    let golden_bytes = required(&release, GOLDEN_FILE)?;
    let mut files = vec![
        published(MANIFEST_FILE, &manifest_bytes),
        published(MODEL_FILE, &model),
        published(GOLDEN_FILE, &golden_bytes),
    ];
    match read(&release, REFERENCE_FILE, REFERENCE_BYTES_MAX)? {
        Some(reference) if reference.is_empty() => return rule(REFERENCE_FILE, "is empty"),
        Some(reference) => files.push(published(REFERENCE_FILE, &reference)),
        // A release without one runs; its devices watch no drift.
        None => {}
    }
    files.extend(golden(&release, &golden_bytes, manifest.labels.len())?);
    files.sort_by(|a, b| a.name.cmp(&b.name));
    no_strangers(&release, &files)?;
    let bytes = files.iter().map(|f| f.length).sum();
    Ok(Bundle { manifest, model: Digest::of(&model), bytes, files })
}

/// What the manifest's type leaves open and the dashboard shows.
fn check_texts(manifest: &Manifest) -> Result<(), BundleError> {
    let labels = &manifest.labels;
    if labels.iter().any(|l| l.is_empty() || l.len() > 64 || l.chars().any(char::is_control)) {
        return rule(MANIFEST_FILE, "labels need 1 to 64 bytes without control characters");
    }
    if labels.iter().collect::<BTreeSet<_>>().len() != labels.len() {
        return rule(MANIFEST_FILE, "two labels are the same");
    }
    if manifest.metrics.len() > 256 || manifest.metrics.values().any(|v| !v.is_finite()) {
        return rule(MANIFEST_FILE, "metrics: allowed are 256 finite numbers");
    }
    Ok(())
}

fn golden(release: &Path, cases: &[u8], labels: usize) -> Result<Vec<PublishedFile>, BundleError> {
    let set = match GoldenSet::from_json(cases) {
        Ok(set) => set,
        Err(error) => return rule(GOLDEN_FILE, error.to_string()),
    };
    if !(0.0..=1.0).contains(&set.tolerance) {
        return rule(GOLDEN_FILE, format!("tolerance {} is not in [0, 1]", set.tolerance));
    }
    let mut seen = BTreeSet::new();
    let mut files = Vec::with_capacity(set.cases.len());
    for case in &set.cases {
        let name = format!("golden/{}", case.image);
        if !seen.insert(&case.image) || name == GOLDEN_FILE {
            return rule(&name, "is named twice");
        }
        if case.label as usize >= labels || case.scores.len() != labels {
            return rule(&name, format!("label or scores do not fit the manifest's {labels} labels"));
        }
        if case.scores.iter().any(|s| !(0.0..=1.0).contains(s)) {
            return rule(&name, "a score is not in [0, 1]");
        }
        let image = required(release, &name)?;
        if Digest::of(&image) != case.digest {
            return rule(&name, "is not the image of its digest in cases.json");
        }
        files.push(published(&name, &image));
    }
    Ok(files)
}

/// Everything in the folder is listed, so that what is signed is all there is.
fn no_strangers(release: &Path, files: &[PublishedFile]) -> Result<(), BundleError> {
    let known: BTreeSet<_> = files.iter().map(|f| f.name.as_str()).collect();
    for (folder, prefix) in [(release.to_owned(), ""), (release.join("golden"), "golden/")] {
        let cannot = |source| BundleError::Read { file: folder.display().to_string(), source };
        for entry in std::fs::read_dir(&folder).map_err(cannot)? {
            let name = format!("{prefix}{}", entry.map_err(cannot)?.file_name().to_string_lossy());
            if name != "golden" && !known.contains(name.as_str()) {
                return rule(&name, "is no part of the release: golden/cases.json does not name it");
            }
        }
    }
    Ok(())
}

fn published(name: &str, content: &[u8]) -> PublishedFile {
    PublishedFile { name: name.to_owned(), length: content.len() as u64, digest: Digest::of(content) }
}

fn required(release: &Path, name: &str) -> Result<Vec<u8>, BundleError> {
    let max = bytes_max(name).unwrap_or(0);
    match read(release, name, max)? {
        Some(content) if !content.is_empty() => Ok(content),
        Some(_) => rule(name, "is empty"),
        None => rule(name, "is missing"),
    }
}

fn read(folder: &Path, name: &str, max: u64) -> Result<Option<Vec<u8>>, BundleError> {
    match files::read_bounded(&folder.join(name), max) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => rule(name, error.to_string()),
        Err(source) => Err(BundleError::Read { file: name.to_owned(), source }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeMap, fs};

    use andon_protocol::{
        ReleaseId,
        release::{Decision, Fit, GoldenCase, Input, Lineage, Outputs, Preprocessing},
    };

    use super::*;

    /// A release that passes, in `folder`. The model is no ONNX: nothing here runs it.
    pub(crate) fn write(folder: &Path, release: &ReleaseId, dataset: Digest, parent: Option<ReleaseId>) {
        let out = folder.join(RELEASE_DIR);
        fs::create_dir_all(out.join("golden")).unwrap();
        let float = format!("float of {release}");
        fs::write(folder.join(FLOAT_FILE), &float).unwrap();
        fs::write(out.join(MODEL_FILE), format!("model of {release}")).unwrap();
        fs::write(out.join(REFERENCE_FILE), b"reference").unwrap();
        fs::write(out.join("golden/a.png"), b"image").unwrap();
        let manifest = Manifest {
            schema: Manifest::SCHEMA.into(),
            release: release.clone(),
            created_ms: 1,
            input: Input { name: "image".into(), width: 8, height: 8, channels: 3, fit: Fit::Stretched },
            preprocessing: Preprocessing { mean: vec![0.0; 3], std: vec![1.0; 3] },
            labels: vec!["ok".into(), "defect".into()],
            decision: Decision { reject: 1, threshold: 0.5 },
            outputs: Outputs { scores: "logits".into(), embedding: "embedding".into() },
            lineage: Lineage {
                parent,
                dataset,
                float_model: Digest::of(float.as_bytes()),
                trainer: "test".into(),
                seed: 1,
            },
            metrics: BTreeMap::from([("validation.balanced_accuracy".into(), 0.9)]),
        };
        fs::write(out.join(MANIFEST_FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
        let case = GoldenCase {
            image: "a.png".into(),
            digest: Digest::of(b"image"),
            label: 1,
            scores: vec![0.25, 0.75],
        };
        let set = GoldenSet { tolerance: 0.0, cases: vec![case] };
        fs::write(out.join(GOLDEN_FILE), serde_json::to_vec(&set).unwrap()).unwrap();
    }

    /// The same as an upload.
    pub(crate) fn tar(folder: &Path) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all(RELEASE_DIR, folder.join(RELEASE_DIR)).unwrap();
        builder.append_path_with_name(folder.join(FLOAT_FILE), FLOAT_FILE).unwrap();
        builder.into_inner().unwrap()
    }

    fn id() -> ReleaseId {
        "cell/3".parse().unwrap()
    }

    #[test]
    fn an_upload_comes_out_as_it_was() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(from.path(), &id(), Digest::of(b"d"), None);
        unpack_into(tar(from.path()).as_slice(), to.path()).unwrap();
        let bundle = check(to.path()).unwrap();
        assert_eq!(bundle.manifest.release, id());
        assert_eq!(bundle.model, Digest::of(b"model of cell/3"));
        let names: Vec<_> = bundle.files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(
            names,
            ["golden/a.png", "golden/cases.json", "manifest.json", "model.onnx", "reference.cbor"]
        );
        assert_eq!(bundle.bytes, bundle.files.iter().map(|f| f.length).sum::<u64>());
    }

    #[test]
    fn releases_that_do_not_fit_together_are_refused() {
        type Row = (&'static str, fn(&Path));
        let rows: [Row; 14] = [
            ("reference.cbor: is empty", |d| fs::write(d.join("release/reference.cbor"), b"").unwrap()),
            ("manifest.json: is missing", |d| fs::remove_file(d.join("release/manifest.json")).unwrap()),
            ("model.onnx: is missing", |d| fs::remove_file(d.join("release/model.onnx")).unwrap()),
            ("model.onnx: is empty", |d| fs::write(d.join("release/model.onnx"), b"").unwrap()),
            ("float.onnx: is missing", |d| fs::remove_file(d.join("float.onnx")).unwrap()),
            ("float.onnx: is not the model", |d| fs::write(d.join("float.onnx"), b"other").unwrap()),
            ("golden/a.png: is missing", |d| fs::remove_file(d.join("release/golden/a.png")).unwrap()),
            ("golden/a.png: is not the image", |d| {
                fs::write(d.join("release/golden/a.png"), b"other").unwrap()
            }),
            ("golden/b.png: is no part", |d| fs::write(d.join("release/golden/b.png"), b"x").unwrap()),
            ("extra: is no part", |d| fs::write(d.join("release/extra"), b"x").unwrap()),
            ("golden/a.png: label or scores", |d| {
                replace(d, "golden/cases.json", "\"label\":1", "\"label\":2")
            }),
            ("golden/a.png: a score", |d| replace(d, "golden/cases.json", "0.75", "1.75")),
            ("two labels are the same", |d| replace(d, "manifest.json", "\"defect\"", "\"ok\"")),
            ("schema is not", |d| replace(d, "manifest.json", "andon.release.v1", "andon.release.v9")),
        ];
        for (expected, spoil) in rows {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &id(), Digest::of(b"d"), None);
            spoil(dir.path());
            let error = check(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    fn replace(folder: &Path, file: &str, from: &str, to: &str) {
        let path = folder.join(RELEASE_DIR).join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }
}
