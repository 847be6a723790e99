//! The demo itself, quickly, as a person would start it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use andon_tests::demo::{Plan, Report};

use crate::fixture;

#[tokio::test]
async fn the_quick_demo_closes_the_loop() {
    let _turn = fixture::turn().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let mut demo = Command::new(env!("CARGO_BIN_EXE_andon-demo"));
    demo.args(["--quick", "--exit", "--report"]).arg(&path).arg("--dir").arg(folder.path().join("demo"));
    demo.arg("--then").args(browser());
    let output = demo.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");

    let report: Report = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(report.devices.len(), 3, "{report:?}");
    for (device, degrade) in report.devices.iter().zip(Plan::QUICK.degrade) {
        assert_eq!(device.drift.as_deref(), degrade.map(|d| d.name()), "{device:?}");
        assert_eq!(device.frames_to_detection.is_some(), degrade.is_some(), "{device:?}");
        assert_eq!(device.release.as_ref().map(|r| r.version()), Some(2), "{device:?}");
        // Better than chance before anything happened. How much better is the full demo's business.
        assert!(device.accuracy_before > 0.5, "{device:?}");
        for accuracy in [device.accuracy_before, device.accuracy_drift, device.accuracy_after] {
            assert!((0.0..=1.0).contains(&accuracy), "{device:?}");
        }
    }
    assert_eq!(report.labels, Plan::QUICK.labels);
    assert!(report.bytes_uploaded > 0);
    let stages = ["data", "drift", "first_release", "fleet", "labels", "proof", "retrain"];
    assert_eq!(report.seconds.keys().collect::<Vec<_>>().len(), stages.len());
    for stage in stages {
        assert!(report.seconds.contains_key(stage), "{stage} is missing in {:?}", report.seconds);
    }
    for word in
        [" run on ", "regained", "line-1", "line-2", "line-3", "solar-cell/2", "dashboard http://127.0.0.1:"]
    {
        assert!(said.contains(word), "{word:?} is missing in\n{said}");
    }
    for step in ["labelled by keys", "undo takes the last one back", "no console error"] {
        assert!(said.contains(step), "the browser did not get as far as {step:?}:\n{said}");
    }
}

/// The dashboard's smoke test in a real browser, against the fleet as it is after the proof.
fn browser() -> [PathBuf; 2] {
    let ui = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join("fleet-server").join("ui");
    assert!(
        ui.join("dist").join("index.html").is_file(),
        "there is no dashboard: run `cargo xtask ui`, then build again"
    );
    // Named by `cargo xtask test`, which fetches one where there is none.
    let node = env::var_os("ANDON_NODE").map_or_else(|| "node".into(), PathBuf::from);
    [node, ui.join("test").join("browser.mjs")]
}
