//! The images in the cache and the truth about them, and folders and tar files made of parts of them.

use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

pub const REJECT_CLASS: &str = "defect";
/// Splits that a model is made and judged from. The others are streams.
pub const TRAINING_SPLITS: [&str; 3] = ["train", "validation", "golden"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub file: String,
    pub class: String,
    pub split: String,
}

/// What `cargo xtask data` made.
#[derive(Debug, Clone)]
pub struct DataSet {
    folder: PathBuf,
    rows: Vec<Row>,
}

impl DataSet {
    /// The cache: `ANDON_CACHE`, else `~/.cache/andon`.
    pub fn cache() -> Result<PathBuf> {
        let named = env::var_os("ANDON_CACHE").filter(|f| !f.is_empty()).map(PathBuf::from);
        let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cache").join("andon"));
        named.or_else(home).context("neither ANDON_CACHE nor HOME is set")
    }

    pub fn open(cache: &Path) -> Result<Self> {
        let folder = cache.join("elpv");
        let path = folder.join("labels.csv");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}; `cargo xtask data` fetches it", path.display()))?;
        let rows = parse(&text).with_context(|| path.display().to_string())?;
        Ok(Self { folder, rows })
    }

    pub fn images(&self) -> PathBuf {
        self.folder.join("images")
    }

    pub fn rows<'a>(&'a self, split: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |r| r.split == split)
    }

    /// True class by file name.
    pub fn truth(&self) -> HashMap<String, String> {
        self.rows.iter().map(|r| (r.file.clone(), r.class.clone())).collect()
    }

    /// At most `count` rows of a split in the order of the line, with the split's mix of classes, spread evenly over it.
    pub fn part(&self, split: &str, count: usize) -> Vec<Row> {
        let mut by_class: BTreeMap<&str, Vec<(usize, &Row)>> = BTreeMap::new();
        self.rows(split).enumerate().for_each(|(i, r)| by_class.entry(&r.class).or_default().push((i, r)));
        let all: usize = by_class.values().map(Vec::len).sum();
        let count = count.min(all);
        let mut chosen = Vec::with_capacity(count);
        let mut seen = 0;
        for rows in by_class.values() {
            // Rounded on the running sum, so that the parts add up to `count`.
            let share = (seen + rows.len()) * count / all - seen * count / all;
            seen += rows.len();
            chosen.extend((0..share).map(|i| rows[i * rows.len() / share]));
        }
        chosen.sort_by_key(|(i, _)| *i);
        chosen.into_iter().map(|(_, row)| row.clone()).collect()
    }

    /// Makes `folder` with `labels.csv` (`file,class,split`) and the images, as the trainer and `POST /datasets` want it.
    pub fn write(&self, rows: &[Row], folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut table = String::from("file,class,split\n");
        for Row { file, class, split } in rows {
            let (from, to) = (self.images().join(file), folder.join(file));
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            table += &format!("{file},{class},{split}\n");
        }
        fs::write(folder.join("labels.csv"), table)?;
        Ok(())
    }
}

fn parse(text: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines().enumerate();
    let header = lines.next().map(|(_, l)| l).unwrap_or_default();
    ensure!(header.starts_with("file,class,split"), "the header is {header:?}, expected file,class,split,…");
    let row = |(i, line): (usize, &str)| {
        let mut cells = line.split(',').map(str::to_owned);
        match (cells.next(), cells.next(), cells.next()) {
            (Some(file), Some(class), Some(split)) => Ok(Row { file, class, split }),
            _ => bail!("line {}: {line:?} has no three cells", i + 1),
        }
    };
    lines.map(row).collect()
}

/// A file or folder (by its own name) and what is in it, in the order of names, without times and owners: the same
/// content gives the same bytes.
pub fn tar(paths: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.mode(tar::HeaderMode::Deterministic);
    for path in paths {
        let name = path.file_name().context("a path without a name")?;
        append(&mut archive, path, Path::new(name))
            .with_context(|| format!("cannot pack {}", path.display()))?;
    }
    Ok(archive.into_inner()?)
}

/// What is in a folder, as [`tar`] packs it.
pub fn tar_of_folder(folder: &Path) -> Result<Vec<u8>> {
    tar(&sorted(folder)?)
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &Path, name: &Path) -> Result<()> {
    if !path.is_dir() {
        return Ok(archive.append_path_with_name(path, name)?);
    }
    for entry in sorted(path)? {
        let file_name = entry.file_name().context("an entry without a name")?.to_owned();
        append(archive, &entry, &name.join(file_name))?;
    }
    Ok(())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = list.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize) -> String {
        let row = |i: usize| {
            format!("c{i:03}.png,{},train,1.000,mono\n", if i.is_multiple_of(3) { "defect" } else { "ok" })
        };
        "file,class,split,probability,cell_type\n".to_owned() + &(0..count).map(row).collect::<String>()
    }

    #[test]
    fn a_part_has_the_mix_of_the_whole() {
        let data = DataSet { folder: PathBuf::new(), rows: parse(&rows(90)).unwrap() };
        for (count, defects, total) in [(30, 10, 30), (10, 3, 10), (500, 30, 90), (0, 0, 0)] {
            let part = data.part("train", count);
            let files: std::collections::BTreeSet<_> = part.iter().map(|r| &r.file).collect();
            assert_eq!(files.len(), total);
            assert_eq!(part.iter().filter(|r| r.class == REJECT_CLASS).count(), defects);
        }
        assert!(data.part("golden", 5).is_empty());
    }

    #[test]
    fn a_broken_table_is_told_with_its_line() {
        assert!(parse("name,class\n").unwrap_err().to_string().contains("expected file,class,split"));
        assert!(parse("file,class,split\na.png,ok\n").unwrap_err().to_string().starts_with("line 2:"));
    }

    #[test]
    fn folders_are_packed_whole_and_always_alike() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("release/golden")).unwrap();
        fs::write(folder.path().join("release/golden/a.png"), "a").unwrap();
        fs::write(folder.path().join("float.onnx"), "f").unwrap();
        let packed = tar_of_folder(folder.path()).unwrap();
        assert_eq!(packed, tar_of_folder(folder.path()).unwrap());
        let names: Vec<String> = tar::Archive::new(&packed[..])
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["float.onnx", "release/golden/a.png"]);
    }
}
