//! Labelled images on disk: a folder with `labels.csv` (`file,class,split`, more columns are ignored), or one folder per
//! class. Reading decides names, classes and splits; pixels are read later ([`pixels`]).
//!
//! Bounds: 1,000,000 images, 1,024 classes, 64 MB of `labels.csv`. File names are plain, so nothing outside the folder
//! is ever opened.

mod pixels;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use andon_protocol::{ids::Digest, job::Part, release::is_plain_file_name};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

pub use pixels::{Broken, Pixels, PixelsError, Source, load};

const IMAGES_MAX: usize = 1_000_000;
const CLASSES_MAX: usize = 1024;
const CSV_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}:{line}: {reason}")]
    Line { path: PathBuf, line: usize, reason: String },
    #[error("{path}: {reason}")]
    Folder { path: PathBuf, reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    pub file: String,
    pub path: PathBuf,
    pub class: usize,
    /// `train`, `validation`, `golden`, or any other word.
    pub split: String,
}

/// Examples in a fixed order.
#[derive(Debug, Clone)]
pub struct DataSet {
    /// Sorted.
    pub labels: Vec<String>,
    pub examples: Vec<Example>,
}

impl DataSet {
    /// Reads what `folder` lists. Without `labels.csv` the split is drawn by `seed`: 15 % validation, 10 % golden of
    /// each class.
    pub fn open(folder: &Path, seed: u64) -> Result<Self, DataError> {
        let csv = folder.join("labels.csv");
        if csv.is_file() { from_csv(folder, &csv) } else { from_folders(folder, seed) }
    }

    pub fn of(&self, split: &str) -> Vec<&Example> {
        self.examples.iter().filter(|e| e.split == split).collect()
    }

    /// Digest of names, classes and splits of what the trainer may use, for the lineage.
    pub fn digest(&self) -> Digest {
        let used = self.examples.iter().filter(|e| part_of(&e.split).is_some());
        let lines: Vec<String> =
            used.map(|e| format!("{},{},{}\n", e.file, self.labels[e.class], e.split)).collect();
        Digest::of(lines.concat().as_bytes())
    }
}

/// The part that a split's name stands for.
pub fn part_of(split: &str) -> Option<Part> {
    match split {
        "train" => Some(Part::Train),
        "validation" => Some(Part::Validation),
        "golden" => Some(Part::Golden),
        _ => None,
    }
}

fn from_csv(folder: &Path, csv: &Path) -> Result<DataSet, DataError> {
    let read = |source| DataError::Read { path: csv.to_owned(), source };
    let bytes = fs::metadata(csv).map_err(read)?.len();
    if bytes > CSV_BYTES_MAX {
        let reason = format!("{bytes} bytes, allowed are {CSV_BYTES_MAX}");
        return Err(DataError::Folder { path: csv.to_owned(), reason });
    }
    let text = fs::read_to_string(csv).map_err(read)?;
    let fail = |line: usize, reason: String| DataError::Line { path: csv.to_owned(), line: line + 1, reason };
    let mut lines = text.lines().enumerate();
    let header: Vec<&str> = lines.next().map_or(vec![], |(_, l)| l.split(',').map(str::trim).collect());
    let column = |name: &str| {
        header
            .iter()
            .position(|c| *c == name)
            .ok_or_else(|| fail(0, format!("no column {name:?}; expected file,class,split")))
    };
    let (file, class, split) = (column("file")?, column("class")?, column("split")?);
    let images = if folder.join("images").is_dir() { folder.join("images") } else { folder.to_owned() };
    let mut rows = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, line) in lines.filter(|(_, l)| !l.trim().is_empty()) {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        if cells.len() != header.len() {
            return Err(fail(i, format!("{} columns, the header has {}", cells.len(), header.len())));
        }
        if !is_plain_file_name(cells[file]) {
            return Err(fail(
                i,
                format!("{:?} is no plain file name (letters, digits, '-', '_', '.')", cells[file]),
            ));
        }
        if cells[class].is_empty() || cells[class].len() > 64 {
            return Err(fail(i, "a class is a text of 1 to 64 bytes".into()));
        }
        if !seen.insert(cells[file]) {
            return Err(fail(i, format!("{:?} is listed twice", cells[file])));
        }
        rows.push((cells[file].to_owned(), cells[class].to_owned(), cells[split].to_owned()));
        if rows.len() > IMAGES_MAX {
            return Err(fail(i, format!("more than {IMAGES_MAX} images")));
        }
    }
    build(
        csv,
        rows.into_iter().map(|(file, class, split)| (images.join(&file), file, class, split)).collect(),
    )
}

fn from_folders(folder: &Path, seed: u64) -> Result<DataSet, DataError> {
    let mut by_class: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in entries(folder)?.into_iter().filter(|p| p.is_dir()) {
        let images: Vec<PathBuf> = entries(&path)?.into_iter().filter(|p| is_image(p)).collect();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !images.is_empty() {
            by_class.insert(name, images);
        }
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rows = Vec::new();
    for (class, mut images) in by_class {
        images.shuffle(&mut rng);
        // A small class still has one of each.
        let (validation, golden) = ((images.len() * 15 / 100).max(1), (images.len() / 10).max(1));
        for (i, path) in images.into_iter().enumerate() {
            let split = match i {
                _ if i < validation => "validation",
                _ if i < validation + golden => "golden",
                _ => "train",
            };
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            rows.push((path, format!("{class}/{name}"), class.clone(), split.to_owned()));
        }
    }
    if rows.is_empty() {
        let reason = "neither labels.csv nor folders (one per class) with PNG or JPEG images".into();
        return Err(DataError::Folder { path: folder.to_owned(), reason });
    }
    build(folder, rows)
}

/// Paths in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = |source| DataError::Read { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        paths.push(entry.map_err(read)?.path());
        if paths.len() > IMAGES_MAX {
            return Err(DataError::Folder {
                path: folder.to_owned(),
                reason: format!("more than {IMAGES_MAX} files"),
            });
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) && path.is_file()
}

fn build(origin: &Path, rows: Vec<(PathBuf, String, String, String)>) -> Result<DataSet, DataError> {
    let used = rows.iter().filter(|r| part_of(&r.3).is_some());
    let labels: Vec<String> = used.map(|r| r.2.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    if !(2..=CLASSES_MAX).contains(&labels.len()) {
        let reason =
            format!("{} classes in train, validation and golden; expected 2 to {CLASSES_MAX}", labels.len());
        return Err(DataError::Folder { path: origin.to_owned(), reason });
    }
    // A class that only other splits know cannot be learnt; its images are left out.
    let examples = rows.into_iter().filter_map(|(path, file, class, split)| {
        let class = labels.binary_search(&class).ok()?;
        Some(Example { file, path, class, split })
    });
    let set = DataSet { examples: examples.collect(), labels };
    for (class, label) in set.labels.iter().enumerate() {
        for split in ["train", "validation", "golden"] {
            if !set.examples.iter().any(|e| e.class == class && e.split == split) {
                let reason = format!("class {label:?} has no image in split {split:?}");
                return Err(DataError::Folder { path: origin.to_owned(), reason });
            }
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(csv: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("labels.csv"), csv).unwrap();
        dir
    }

    #[test]
    fn a_bad_table_is_refused_with_its_line() {
        let good = "file,class,split\na.png,ok,train\nb.png,ok,validation\nc.png,ok,golden\n\
                    d.png,defect,train\ne.png,defect,validation\nf.png,defect,golden\ng.png,ok,stream-1\n";
        let set = DataSet::open(folder(good).path(), 0).unwrap();
        assert_eq!(set.labels, ["defect", "ok"]);
        assert_eq!((set.of("train").len(), set.of("stream-1").len()), (2, 1));
        for (csv, why) in [
            ("file,klass,split\n", "labels.csv:1: no column \"class\""),
            ("file,class,split\na.png,ok\n", "labels.csv:2: 2 columns"),
            ("file,class,split\n../a.png,ok,train\n", "labels.csv:2: \"../a.png\" is no plain file name"),
            ("file,class,split\na.png,ok,train\na.png,ok,train\n", "labels.csv:3: \"a.png\" is listed twice"),
            ("file,class,split\na.png,ok,train\n", "1 classes"),
            (
                "file,class,split\na.png,ok,train\nb.png,bad,train\n",
                "class \"bad\" has no image in split \"validation\"",
            ),
        ] {
            let error = DataSet::open(folder(csv).path(), 0).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn folders_are_split_by_seed_and_by_class() {
        let dir = tempfile::tempdir().unwrap();
        for (class, count) in [("good", 40), ("scratch", 20)] {
            fs::create_dir(dir.path().join(class)).unwrap();
            for i in 0..count {
                fs::write(dir.path().join(class).join(format!("{i}.png")), b"").unwrap();
            }
        }
        let set = DataSet::open(dir.path(), 1).unwrap();
        let count = |split: &str, class: usize| set.of(split).iter().filter(|e| e.class == class).count();
        assert_eq!([count("train", 0), count("validation", 0), count("golden", 0)], [30, 6, 4]);
        assert_eq!([count("train", 1), count("validation", 1), count("golden", 1)], [15, 3, 2]);
        assert_eq!(set.examples, DataSet::open(dir.path(), 1).unwrap().examples);
        assert_ne!(set.examples, DataSet::open(dir.path(), 2).unwrap().examples);
    }
}
