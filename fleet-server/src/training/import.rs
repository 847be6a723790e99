//! A data set as it comes in: a tar with `labels.csv` (columns `file`, `class`, `split` and any others) and the images,
//! named as in `file`, or so below `images/`. Blocking.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use andon_protocol::{Digest, release::is_plain_file_name};

use super::items::{ITEMS_MAX, ItemList, ListedItem, part_of};
use crate::{
    blobs::Blobs,
    db::from_word,
    files,
    problem::{Problem, Result},
    releases::unpack::{Place, unpack},
};

pub const UPLOAD_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
const LABELS_FILE: &str = "labels.csv";
const LABELS_BYTES_MAX: u64 = 64 * 1024 * 1024;
const IMAGE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const FILES_MAX: usize = 200_000;
const DEPTH_MAX: usize = 4;

/// Unpacks `archive` into the empty folder `scratch`, checks every line and image against the model's `labels`, and
/// stores the images.
pub fn import(
    archive: impl Read,
    scratch: &Path,
    model: &str,
    labels: &[String],
    blobs: &dyn Blobs,
) -> Result<ItemList> {
    let mut unpacked: HashMap<String, PathBuf> = HashMap::new();
    unpack(archive, FILES_MAX, |name| {
        if name == LABELS_FILE {
            return Ok(Place { path: scratch.join(LABELS_FILE), bytes_max: LABELS_BYTES_MAX });
        }
        if name.split('/').count() > DEPTH_MAX || !name.split('/').all(is_plain_file_name) {
            return Err("is no plain relative path of letters, digits, '-', '_' and '.'".into());
        }
        // Not by its own name: the folder stays flat.
        let path = scratch.join(format!("{}.image", unpacked.len()));
        match unpacked.insert(name.to_owned(), path.clone()) {
            None => Ok(Place { path, bytes_max: IMAGE_BYTES_MAX }),
            Some(_) => Err("is there twice".into()),
        }
    })?;
    let text = files::read_bounded(&scratch.join(LABELS_FILE), LABELS_BYTES_MAX)
        .map_err(|e| Problem::invalid(format!("{LABELS_FILE}: {e}; the archive needs it at its top")))?;
    let text = String::from_utf8(text).map_err(|e| Problem::invalid(format!("{LABELS_FILE}: {e}")))?;
    let mut list = ItemList::new(model);
    let mut origin: BTreeMap<Digest, usize> = BTreeMap::new();
    for row in rows(&text)? {
        let at = |what: String| Problem::refused(format!("{LABELS_FILE} line {}: {what}", row.line));
        if !labels.iter().any(|l| l == row.class) {
            return Err(at(format!("class {:?} is none of the model's {labels:?}", short(row.class))));
        }
        let split = from_word(row.split)
            .map_err(|_| at(format!("split {:?} is not train, validation or golden", short(row.split))))?;
        let path = unpacked.get(row.file).or_else(|| unpacked.get(&format!("images/{}", row.file)));
        let path = path.ok_or_else(|| at(format!("the archive has no image {:?}", short(row.file))))?;
        let content = fs::read(path)?;
        check_image(&content).map_err(|e| at(format!("{}: {e}", short(row.file))))?;
        let image = blobs.put(&content)?;
        let item = ListedItem {
            image,
            class: row.class.to_owned(),
            part: part_of(split),
            device: None,
            drifted: false,
        };
        // An image on both sides of a split would flatter every measurement.
        if let Some(before) = list.items.get(&image)
            && *before != item
        {
            let first = origin.get(&image).copied().unwrap_or(0);
            return Err(at(format!("is the same image as line {first}, with another class or split")));
        }
        origin.insert(image, row.line);
        list.items.insert(image, item);
    }
    if list.items.is_empty() {
        return Err(Problem::refused(format!("{LABELS_FILE} names no image")));
    }
    Ok(list)
}

struct LabelRow<'a> {
    /// From 1, the header's.
    line: usize,
    file: &'a str,
    class: &'a str,
    split: &'a str,
}

/// Plain CSV: no quoting, since none of the three columns may hold what would need it.
fn rows(text: &str) -> Result<Vec<LabelRow<'_>>> {
    let mut lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let header: Vec<_> = lines.next().map(|(_, l)| l.split(',').map(str::trim).collect()).unwrap_or_default();
    let column = |name: &str| {
        let found = header.iter().position(|h| *h == name);
        found.ok_or_else(|| {
            Problem::refused(format!("{LABELS_FILE} line 1: no column {name:?}; expected file,class,split"))
        })
    };
    let (file, class, split) = (column("file")?, column("class")?, column("split")?);
    let mut rows = Vec::new();
    for (i, line) in lines {
        if rows.len() == ITEMS_MAX {
            return Err(Problem::refused(format!("{LABELS_FILE} has over {ITEMS_MAX} lines")));
        }
        let fields: Vec<_> = line.split(',').map(str::trim).collect();
        if fields.len() != header.len() || line.contains('"') {
            let expected = header.len();
            return Err(Problem::refused(format!(
                "{LABELS_FILE} line {}: {} fields, expected are {expected}, without quotes",
                i + 1,
                fields.len()
            )));
        }
        rows.push(LabelRow { line: i + 1, file: fields[file], class: fields[class], split: fields[split] });
    }
    Ok(rows)
}

/// PNG or JPEG by its head; the trainer decodes it, with its own bounds.
fn check_image(content: &[u8]) -> Result<(), String> {
    use image::ImageFormat;
    match image::guess_format(content) {
        Ok(ImageFormat::Png | ImageFormat::Jpeg) => Ok(()),
        Ok(other) => Err(format!("is {other:?}, not PNG or JPEG")),
        Err(_) => Err("is neither PNG nor JPEG".into()),
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::blobs::LocalBlobs;
    use andon_protocol::job::Part;

    /// An image file that differs from others by `n`; only its head is looked at.
    pub(crate) fn png(n: u32) -> Vec<u8> {
        [b"\x89PNG\r\n\x1a\n".as_slice(), &n.to_be_bytes()].concat()
    }

    pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn take(files: &[(&str, &[u8])]) -> Result<ItemList, String> {
        let (scratch, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let blobs = LocalBlobs::open(&store.path().join("blobs")).unwrap();
        let labels = ["ok".to_owned(), "defect".to_owned()];
        let list =
            import(tar(files).as_slice(), scratch.path(), "cell", &labels, &blobs).map_err(|p| p.detail)?;
        for image in list.items.keys() {
            assert!(blobs.has(*image).unwrap());
        }
        Ok(list)
    }

    #[test]
    fn labelled_images_become_items() {
        let csv = b"file,class,split,probability\na.png,ok,train,0.0\nb.png,defect,golden,1.0\n\nc/d.png,ok,validation,0.3\n";
        let (a, b, d) = (png(1), png(2), png(3));
        let list =
            take(&[("labels.csv", csv), ("images/a.png", &a), ("b.png", &b), ("c/d.png", &d)]).unwrap();
        let parts: Vec<_> = [a, b, d].iter().map(|i| list.items[&Digest::of(i)].part).collect();
        assert_eq!(parts, [Part::Train, Part::Golden, Part::Validation]);
    }

    #[test]
    fn mistakes_are_named_by_line() {
        let image = png(1);
        let rows: [(&[u8], &str); 11] = [
            (b"", "line 1: no column \"file\""),
            (b"file,class\na.png,ok\n", "no column \"split\""),
            (b"file,class,split\n", "names no image"),
            (b"file,class,split\na.png,ok\n", "line 2: 2 fields"),
            (b"file,class,split\n\"a.png\",ok,train\n", "without quotes"),
            (b"file,class,split\na.png,bad,train\n", "line 2: class \"bad\""),
            (b"file,class,split\na.png,ok,stream-1\n", "line 2: split \"stream-1\""),
            (b"file,class,split\nz.png,ok,train\n", "no image \"z.png\""),
            (
                b"file,class,split\na.png,ok,train\na.png,defect,train\n",
                "line 3: is the same image as line 2",
            ),
            (b"file,class,split\ntext.png,ok,train\n", "neither PNG nor JPEG"),
            (b"file,class,split\n../a.png,ok,train\n", "no image \"../a.png\""),
        ];
        for (csv, expected) in rows {
            let error = take(&[("labels.csv", csv), ("a.png", &image), ("text.png", b"text")]).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(take(&[("a.png", &image)]).unwrap_err().contains("labels.csv"));
        assert!(
            take(&[("labels.csv", b"x"), ("a b.png", &image)]).unwrap_err().contains("plain relative path")
        );
    }
}
