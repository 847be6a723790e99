//! The golden images of a release: pictures as its cameras make them, with the scores that the trainer saw.
//!
//! Invariants: reads are bounded; an image is the one that the golden set names, by its digest, or an error.

use std::path::Path;

use andon_protocol::{
    Digest,
    release::{GOLDEN_BYTES_MAX, GOLDEN_FILE, GoldenCase, GoldenSet},
};
use andon_runtime::{Image, ImageLimits};

use crate::files::{Disk, SystemDisk};

const IMAGE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Of the release in `folder`.
pub fn set(folder: &Path) -> Result<GoldenSet, String> {
    GoldenSet::from_json(&read(&folder.join(GOLDEN_FILE), GOLDEN_BYTES_MAX as u64)?)
        .map_err(|error| error.to_string())
}

/// The image of a case; an error names it.
pub fn image(folder: &Path, case: &GoldenCase) -> Result<Image, String> {
    let name = &case.image;
    let bytes = read(&folder.join("golden").join(name), IMAGE_BYTES_MAX)?;
    if Digest::of(&bytes) != case.digest {
        return Err(format!("golden image {name} is not the one of the golden set"));
    }
    Image::decode(&bytes, &ImageLimits::default()).map_err(|error| format!("{name}: {error}"))
}

/// Height, width and channels of the pictures that a release is for, as its first golden image has them. Errors say why that
/// is not known.
pub fn picture(folder: &Path) -> Result<[usize; 3], String> {
    let set = set(folder)?;
    let image = image(folder, set.cases.first().ok_or("the golden set is empty")?)?;
    Ok([image.height(), image.width(), image.channels()])
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    SystemDisk.read(path, bytes_max).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_release_knows_its_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let of = || picture(folder.path());
        assert!(of().unwrap_err().contains("cases.json"));
        fs::create_dir(folder.path().join("golden")).unwrap();
        let path = folder.path().join("golden/one.png");
        image::RgbImage::new(7, 4).save(&path).unwrap();
        let digest = Digest::of(&fs::read(&path).unwrap());
        let cases = vec![GoldenCase { image: "one.png".into(), digest, label: 0, scores: vec![1.0] }];
        let text = serde_json::to_vec(&GoldenSet { tolerance: 0.0, cases }).unwrap();
        fs::write(folder.path().join(GOLDEN_FILE), text).unwrap();
        assert_eq!(of(), Ok([4, 7, 3]));
        image::RgbImage::new(8, 4).save(&path).unwrap();
        assert!(of().unwrap_err().contains("one.png is not the one of the golden set"));
    }
}
