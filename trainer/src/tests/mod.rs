//! The commands, end to end, on a small network and small images that are made here.

mod fit;
mod jobs;

use std::{collections::BTreeMap, fs, ops::ControlFlow, path::Path};

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    fit::{Base, FitOptions},
    graph::{self, Graph, INPUT, Op, Window, testing::Builder},
};

const SIDE: usize = 24;

fn go(_: f32, _: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Somebody's own classifier: two convolutions, and a head for other classes than ours.
fn own_network() -> Graph {
    let mut b = Builder::new(1, SIDE);
    let relu = Op::Clip { min: 0.0, max: f32::INFINITY };
    let x = b.conv(INPUT, [8, 1, 3, 3], 1, [1; 4], 1);
    let x = b.op(relu.clone(), &[&x]);
    let pool = Window { kernel: [2, 2], strides: [2, 2], pads: [0; 4], dilations: [1, 1] };
    let x = b.op(Op::MaxPool { window: pool }, &[&x]);
    let x = b.conv(&x, [16, 8, 3, 3], 2, [1; 4], 1);
    let x = b.op(relu, &[&x]);
    let x = b.op(Op::GlobalAveragePool, &[&x]);
    let x = b.op(Op::Flatten, &[&x]);
    b.head(&x, 16, 5)
}

/// An even plate, or one with stripes of a random direction; as PNG.
fn plate(striped: bool, seed: u64, gamma: f32) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (level, tilt, phase) =
        (rng.random_range(110.0..160.0), rng.random_range(-1.0..1.0), rng.random_range(0.0..6.3));
    let (dx, dy): (f32, f32) = (rng.random_range(1.0..1.6), rng.random_range(-1.0..1.0));
    let mut at = |x: u32, y: u32| {
        let stripes = if striped { 38.0 * (dx * x as f32 + dy * y as f32 + phase).sin() } else { 0.0 };
        let value: f32 = level + tilt * x as f32 + stripes + rng.random_range(-6.0..6.0f32);
        image::Luma([(255.0 * (value.clamp(0.0, 255.0) / 255.0).powf(gamma)) as u8])
    };
    let mut picture = image::GrayImage::new(SIDE as u32, SIDE as u32);
    picture.enumerate_pixels_mut().for_each(|(x, y, p)| *p = at(x, y));
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Split of the i-th image.
fn split(i: usize) -> &'static str {
    match i % 10 {
        0..6 => "train",
        6..9 => "validation",
        _ => "golden",
    }
}

fn data_set(folder: &Path, images: usize) {
    let mut csv = "file,class,split,note\n".to_owned();
    for i in 0..images {
        let striped = (i / 10) % 2 == 1;
        fs::write(folder.join(format!("{i:03}.png")), plate(striped, i as u64, 1.0)).unwrap();
        csv += &format!("{i:03}.png,{},{},x\n", if striped { "defect" } else { "ok" }, split(i));
    }
    fs::write(folder.join("labels.csv"), csv).unwrap();
}

fn options(folder: &Path) -> FitOptions {
    fs::write(folder.join("own.onnx"), graph::write(&own_network())).unwrap();
    FitOptions {
        images: folder.join("images"),
        base: Base::Onnx(folder.join("own.onnx")),
        model: "plates".into(),
        out: folder.join("out"),
        size: SIDE,
        seed: 3,
        epochs: 6,
        train_images_max: usize::MAX,
        learning_rate: 0.02,
        reject: None,
        mean: None,
        std: None,
        letterbox: None,
        agreement_min: 0.95,
        created_ms: 1,
    }
}

/// A folder with images and a base network.
fn workplace(images: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("images")).unwrap();
    data_set(&dir.path().join("images"), images);
    dir
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(n, b)| (format!("{name}/{n}"), b)));
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}
