//! Packs what is uploaded as a tar, into an unnamed temporary file: plain files only, in a fixed order, with fixed times
//! and owners, so that the same folder gives the same bytes.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use andon_protocol::release::{GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, Manifest, REFERENCE_FILE};

use crate::error::{Error, Result};

/// What the server takes (`POST /releases`, `POST /datasets`).
pub(crate) const UPLOAD_BYTES_MAX: u64 = 512 * 1024 * 1024;
const FILES_MAX: usize = 200_000;
const LABELS_BYTES_MAX: u64 = 64 * 1024 * 1024;
const RELEASE: &str = "release";
const FLOAT_FILE: &str = "float.onnx";
const LABELS_FILE: &str = "labels.csv";
/// The rest of a labels file (the demo's streams) is not for training.
const SPLITS: [&str; 3] = ["train", "validation", "golden"];

#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    pub(crate) files: usize,
}

/// `release/…` and `float.onnx` of what `andon-trainer fit` wrote.
pub(crate) fn release(dir: &Path) -> Result<(Packed, Manifest)> {
    let root = dir.join(RELEASE);
    let manifest_path = root.join(MANIFEST_FILE);
    let bytes = fs::read(&manifest_path).map_err(Error::file(&manifest_path))?;
    let manifest = Manifest::from_json(&bytes)
        .map_err(|e| Error::Content { path: manifest_path, rule: e.to_string() })?;
    let mut files = Vec::new();
    for file in [MODEL_FILE, MANIFEST_FILE, REFERENCE_FILE] {
        files.push((format!("{RELEASE}/{file}"), root.join(file)));
    }
    let golden = Path::new(GOLDEN_FILE).parent().unwrap_or(Path::new("golden"));
    for name in plain_files(&root.join(golden))? {
        files.push((format!("{RELEASE}/{}/{name}", golden.display()), root.join(golden).join(name)));
    }
    files.push((FLOAT_FILE.into(), dir.join(FLOAT_FILE)));
    Ok((pack(&files, None)?, manifest))
}

/// `labels.csv` with the rows of the three splits, and the files that they name.
pub(crate) fn dataset(dir: &Path) -> Result<Packed> {
    let path = dir.join(LABELS_FILE);
    let (csv, names) = chosen_labels(&path)?;
    // The images lie beside the labels or, as `cargo xtask data` writes them, in `images`.
    let images = dir.join("images");
    let folder = if images.is_dir() { images } else { dir.to_owned() };
    let files: Vec<_> = names.into_iter().map(|name| (name.clone(), folder.join(name))).collect();
    pack(&files, Some((LABELS_FILE, csv.as_bytes())))
}

fn chosen_labels(path: &Path) -> Result<(String, BTreeSet<String>)> {
    let content = |rule: String| Error::Content { path: path.to_owned(), rule };
    let file = File::open(path).map_err(Error::file(path))?;
    let mut lines = BufReader::new(file.take(LABELS_BYTES_MAX)).lines();
    let header = lines.next().transpose().map_err(Error::file(path))?.unwrap_or_default();
    let columns: Vec<&str> = header.trim_end().split(',').collect();
    let column = |name: &str| {
        columns
            .iter()
            .position(|c| *c == name)
            .ok_or_else(|| content(format!("line 1: no column {name:?}; expected file,class,split")))
    };
    let (file, class, split) = (column("file")?, column("class")?, column("split")?);
    let mut csv = String::from("file,class,split\n");
    let mut names = BTreeSet::new();
    for (i, line) in lines.enumerate() {
        let line = line.map_err(Error::file(path))?;
        let cells: Vec<&str> = line.trim_end().split(',').collect();
        let cell = |at: usize| cells.get(at).copied().unwrap_or_default();
        if !SPLITS.contains(&cell(split)) {
            continue;
        }
        let name = cell(file);
        let at = i + 2;
        if !andon_protocol::release::is_plain_file_name(name) {
            return Err(content(format!("line {at}: file {name:?} is no plain file name")));
        }
        if cell(class).is_empty() {
            return Err(content(format!("line {at}: no class")));
        }
        if !names.insert(name.to_owned()) {
            return Err(content(format!("line {at}: {name} is named twice")));
        }
        csv.push_str(&format!("{name},{},{}\n", cell(class), cell(split)));
    }
    if names.is_empty() {
        return Err(content(format!("no row with split {}", SPLITS.join(", "))));
    }
    Ok((csv, names))
}

fn plain_files(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file(folder))? {
        let entry = entry.map_err(Error::file(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if !entry.file_type().map_err(Error::file(&path))?.is_file() {
            return Err(Error::Content { path, rule: "is no plain file".into() });
        }
        names.push(name);
    }
    names.sort();
    Ok(names)
}

fn pack(files: &[(String, PathBuf)], first: Option<(&str, &[u8])>) -> Result<Packed> {
    let temporary = PathBuf::from("temporary file");
    if files.len() > FILES_MAX {
        return Err(Error::Usage(format!("{} files, allowed are {FILES_MAX}", files.len())));
    }
    let file = tempfile::tempfile().map_err(Error::file(&temporary))?;
    let mut tar = tar::Builder::new(file);
    if let Some((name, bytes)) = first {
        let header = plain_header(bytes.len() as u64);
        append(&mut tar, header, name, bytes).map_err(Error::file(&temporary))?;
    }
    let mut total = 0_u64;
    for (name, path) in files {
        let content = File::open(path).map_err(Error::file(path))?;
        let size = content.metadata().map_err(Error::file(path))?.len();
        total = total.saturating_add(size);
        if total > UPLOAD_BYTES_MAX {
            return Err(Error::Usage(format!(
                "over {UPLOAD_BYTES_MAX} bytes in all, the server takes no more"
            )));
        }
        append(&mut tar, plain_header(size), name, content.take(size)).map_err(Error::file(path))?;
    }
    let mut file = tar.into_inner().map_err(Error::file(&temporary))?;
    let bytes = file.stream_position().map_err(Error::file(&temporary))?;
    file.seek(SeekFrom::Start(0)).map_err(Error::file(&temporary))?;
    Ok(Packed { file, bytes, files: files.len() })
}

fn append(
    tar: &mut tar::Builder<File>,
    mut header: tar::Header,
    name: &str,
    content: impl std::io::Read,
) -> std::io::Result<()> {
    tar.append_data(&mut header, name, content)
}

fn plain_header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn names(packed: &mut Packed) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(&mut packed.file);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (name, text)
        });
        entries.collect()
    }

    #[test]
    fn a_data_set_is_the_rows_of_its_three_splits() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fs::create_dir(&images).unwrap();
        for name in ["a.png", "b.png", "c.png"] {
            fs::write(images.join(name), name).unwrap();
        }
        let csv =
            "file,class,split,probability\nb.png,ok,train,0\na.png,defect,golden,1\nc.png,ok,stream-1,0\n";
        fs::write(dir.path().join("labels.csv"), csv).unwrap();
        let mut packed = dataset(dir.path()).unwrap();
        assert_eq!(packed.files, 2);
        assert_eq!(
            names(&mut packed),
            [
                (
                    "labels.csv".to_owned(),
                    "file,class,split\nb.png,ok,train\na.png,defect,golden\n".to_owned()
                ),
                ("a.png".to_owned(), "a.png".to_owned()),
                ("b.png".to_owned(), "b.png".to_owned()),
            ]
        );
    }

    #[test]
    fn labels_that_cannot_be_right() {
        for (csv, expected) in [
            ("", "no column"),
            ("file,split\n", "no column \"class\""),
            ("file,class,split\na.png,ok,stream-1\n", "no row with split"),
            ("file,class,split\n../a.png,ok,train\n", "line 2: file \"../a.png\" is no plain file name"),
            ("file,class,split\na.png,,train\n", "line 2: no class"),
            ("file,class,split\na.png,ok,train\na.png,ok,train\n", "line 3: a.png is named twice"),
            ("file,class,split\ngone.png,ok,train\n", "gone.png"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("labels.csv"), csv).unwrap();
            let error = dataset(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{csv:?}: {error}");
        }
    }

    #[test]
    fn a_folder_without_a_release_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = release(dir.path()).unwrap_err().to_string();
        assert!(error.contains("manifest.json"), "{error}");
    }
}
