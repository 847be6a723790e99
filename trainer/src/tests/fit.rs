//! First releases, end to end on a small network.

use andon_protocol::{
    ids::Digest,
    release::{Fit, GoldenSet, Manifest},
};
use andon_runtime::{Classifier, Image, ImageLimits, Limits, Model, SessionOptions};

use super::*;
use crate::{evaluate::evaluate, fit::fit};

#[test]
fn an_own_classifier_becomes_a_release_that_a_device_can_prove() {
    let dir = workplace(200);
    let report = fit(&options(dir.path()), &go).unwrap();
    assert!(report.numbers["golden.balanced_accuracy"] > 0.9, "{:?}", report.numbers);

    let release = files(&dir.path().join("out/release"));
    let manifest = Manifest::from_json(&release["manifest.json"]).unwrap();
    assert_eq!((manifest.labels.len(), manifest.decision.reject), (2, 0), "defect rejects");
    assert_eq!(manifest.lineage.float_model, Digest::of(&files(&dir.path().join("out"))["float.onnx"]));
    let golden = GoldenSet::from_json(&release["golden/cases.json"]).unwrap();
    assert!(golden.cases.len() >= 16 && (0.02..=0.05).contains(&golden.tolerance));

    // What a device does at its self-test: from the files alone, the very same scores.
    let model = Model::load(&release["model.onnx"], &Limits::default()).unwrap();
    let mut classifier = Classifier::new(&model, &manifest, SessionOptions::default()).unwrap();
    for case in &golden.cases {
        let bytes = &release[&format!("golden/{}", case.image)];
        assert_eq!(Digest::of(bytes), case.digest);
        let judged = classifier.classify(&Image::decode(bytes, &ImageLimits::default()).unwrap()).unwrap();
        assert_eq!(judged.scores, case.scores);
        assert_eq!(judged.embedding.len(), 16);
    }

    let measured =
        evaluate(&dir.path().join("out/release"), &dir.path().join("images"), "golden", 0).unwrap();
    assert_eq!(measured.balanced_accuracy, report.numbers["golden.balanced_accuracy"]);
    assert!(evaluate(&dir.path().join("out/release"), &dir.path().join("images"), "nowhere", 0).is_err());
}

#[test]
fn one_seed_gives_one_release() {
    let dir = workplace(100);
    let run = |out: &str, seed: u64| {
        let options = FitOptions {
            out: dir.path().join(out),
            seed,
            epochs: 2,
            agreement_min: 0.0,
            letterbox: (seed == 6).then_some(90),
            ..options(dir.path())
        };
        fit(&options, &go).unwrap();
        files(&dir.path().join(out).join("release"))
    };
    let (a, b, c) = (run("a", 5), run("b", 5), run("c", 6));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{name} differs");
    }
    assert_ne!(a["model.onnx"], c["model.onnx"]);
    let [a, c] = [a, c].map(|files| Manifest::from_json(&files["manifest.json"]).unwrap());
    assert_eq!((&*a.schema, a.input.fit), (Manifest::SCHEMA, Fit::Stretched));
    assert_eq!((&*c.schema, c.input.fit), (Manifest::SCHEMA_2, Fit::Letterboxed { fill: 90 }));
}

#[test]
fn a_broken_image_is_named_and_too_many_stop_the_fit() {
    let dir = workplace(200);
    let break_image = |i: usize| {
        fs::write(dir.path().join(format!("images/{i:03}.png")), b"\x89PNG\r\n\x1a\nnonsense").unwrap()
    };
    break_image(1);
    let options = FitOptions { epochs: 1, agreement_min: 0.0, ..options(dir.path()) };
    let report = fit(&options, &go).unwrap();
    assert_eq!((report.broken.len(), report.broken[0].0.as_str()), (1, "001.png"));
    [2, 3, 4].into_iter().for_each(break_image);
    let error = fit(&options, &go).unwrap_err().to_string();
    assert!(error.contains("4 of 120 images cannot be read") && error.contains("001.png"), "{error}");
}

#[test]
fn what_cannot_work_is_said_before_any_training() {
    let dir = workplace(40);
    let good = options(dir.path());
    let fails = |options: FitOptions, why: &str| {
        let error = format!("{:#}", fit(&options, &go).unwrap_err());
        assert!(error.contains(why), "{error}");
    };
    fails(FitOptions { model: "No Such Name".into(), ..good.clone() }, "model \"No Such Name\"");
    fails(FitOptions { mean: Some(vec![1.0, 2.0]), ..good.clone() }, "--mean has 2 values");
    fails(FitOptions { reject: Some("scratch".into()), ..good.clone() }, "none of the classes");
    fails(FitOptions { base: Base::Onnx(dir.path().join("none.onnx")), ..good.clone() }, "none.onnx");
    fs::write(dir.path().join("bad.onnx"), b"not onnx").unwrap();
    fails(
        FitOptions { base: Base::Onnx(dir.path().join("bad.onnx")), ..good.clone() },
        "not a valid ONNX file",
    );
    let lite0 = Base::EfficientNetLite0(dir.path().join("bad.onnx"));
    fails(FitOptions { base: lite0.clone(), ..good.clone() }, "input size 24 is not between 32 and 1024");
    fails(FitOptions { base: lite0, size: 32, ..good }, "bad.onnx");
    assert!(!dir.path().join("out/release").exists());
}
