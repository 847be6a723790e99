//! Training jobs in their folders: claimed, done, judged, given up and taken over.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use andon_protocol::{
    ids::{DeviceId, Digest, ReleaseId},
    job::{
        CANCEL_FILE, CLAIM_FILE, FieldImage, Gate, Item, JobResult, JobSpec, LEASE_S, Outcome, PROGRESS_FILE,
        Part, RESULT_FILE, Recipe, SPEC_FILE,
    },
    release::Manifest,
};

use super::*;
use crate::{
    clock,
    fit::fit,
    worker::{Once, next, work},
};

/// A queue with one job, on the release of a first fit.
struct Queue {
    dir: tempfile::TempDir,
}

impl Queue {
    fn new() -> Self {
        let dir = workplace(200);
        fit(&options(dir.path()), &go).unwrap();
        fs::create_dir_all(dir.path().join("queue/run-1")).unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("queue")
    }

    fn job(&self, file: &str) -> PathBuf {
        self.path().join("run-1").join(file)
    }

    fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let hex = digest.to_string();
        let folder = self.dir.path().join("blobs").join(&hex[..2]);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(&hex[2..]), bytes).unwrap();
        digest
    }

    /// Old images as fitted, and a device whose pictures are dark: 20 labelled, 30 not.
    fn spec(&self) -> JobSpec {
        let device: DeviceId = "line-2".parse().unwrap();
        let mut items = Vec::new();
        for i in 0..200usize {
            let striped = (i / 10) % 2 == 1;
            let image = self.blob(&plate(striped, i as u64, 1.0));
            let part = match split(i) {
                "train" => Part::Train,
                "validation" => Part::Validation,
                _ => Part::Golden,
            };
            items.push(Item { image, class: u32::from(!striped), part, device: None, drifted: false });
        }
        for i in 0..20usize {
            let striped = i % 2 == 0;
            let image = self.blob(&plate(striped, 1000 + i as u64, 2.5));
            let part = if i < 12 { Part::Train } else { Part::HeldBack };
            items.push(Item {
                image,
                class: u32::from(!striped),
                part,
                device: Some(device.clone()),
                drifted: true,
            });
        }
        let field = |i: u64| FieldImage {
            image: self.blob(&plate(i.is_multiple_of(2), 2000 + i, 2.5)),
            device: device.clone(),
        };
        let out = self.dir.path().join("out");
        JobSpec {
            schema: JobSpec::SCHEMA.into(),
            run: "run-1".into(),
            release: ReleaseId::new("plates", 2).unwrap(),
            parent: ReleaseId::new("plates", 1).unwrap(),
            parent_dir: out.join("release"),
            parent_float: out.join("float.onnx"),
            blobs: self.dir.path().join("blobs"),
            dataset: Digest::of(b"data"),
            items,
            unlabelled: (0..30).map(field).collect(),
            seed: 1,
            recipe: Recipe { epochs: Some(2), ..Recipe::default() },
            gate: Gate { agreement_min: 0.9, clean_loss_max: 0.05, drift_gain_min: 0.0 },
        }
    }

    fn put(&self, spec: &JobSpec) {
        fs::write(self.job(SPEC_FILE), serde_json::to_vec(spec).unwrap()).unwrap();
    }

    fn work(&self) {
        work(&self.path(), Once::Yes, &|| ControlFlow::Continue(())).unwrap();
    }

    fn result(&self) -> JobResult {
        serde_json::from_slice(&fs::read(self.job(RESULT_FILE)).unwrap()).unwrap()
    }

    fn forget(&self) {
        fs::remove_file(self.job(RESULT_FILE)).unwrap();
    }
}

#[test]
fn a_job_is_claimed_done_and_judged() {
    let queue = Queue::new();
    let spec = queue.spec();
    queue.put(&spec);
    queue.work();
    let result = queue.result();
    assert_eq!(result.outcome, Outcome::Succeeded, "{}", result.verdict);
    for key in ["golden.balanced_accuracy.old", "held_back.balanced_accuracy.new", "agreement"] {
        assert!(result.metrics.contains_key(key), "{key} of {:?}", result.metrics.keys());
    }
    assert!(!queue.job(CLAIM_FILE).exists() && queue.job(PROGRESS_FILE).exists());
    let manifest = Manifest::from_json(&fs::read(queue.job("out/release/manifest.json")).unwrap()).unwrap();
    assert_eq!(
        (manifest.release, manifest.lineage.parent),
        (spec.release.clone(), Some(spec.parent.clone()))
    );
    let report = fs::read_to_string(queue.job("out/report.json")).unwrap();
    assert!(report.contains("level 128 now"), "the darker lamp is seen: {report}");

    // Over is over: nobody does it again.
    assert!(next(&queue.path()).unwrap().is_none());

    // The same spec gives the same network.
    let first = fs::read(queue.job("out/release/model.onnx")).unwrap();
    queue.forget();
    queue.work();
    assert_eq!(first, fs::read(queue.job("out/release/model.onnx")).unwrap());

    // A gain that nobody can reach.
    queue.forget();
    queue.put(&JobSpec { gate: Gate { drift_gain_min: 0.99, ..spec.gate }, ..spec });
    queue.work();
    let result = queue.result();
    assert_eq!(result.outcome, Outcome::Refused);
    assert!(
        result.verdict.starts_with("Refused: ") && result.verdict.contains("0.990"),
        "{}",
        result.verdict
    );
    assert!(!queue.job("out/release").exists(), "what was refused is no release");
}

#[test]
fn hostile_jobs_fail_with_the_reason() {
    let queue = Queue::new();
    let good = queue.spec();
    let fails = |change: &dyn Fn(&mut JobSpec), why: &str| {
        let mut spec = good.clone();
        change(&mut spec);
        queue.put(&spec);
        queue.work();
        let result = queue.result();
        assert!(result.outcome == Outcome::Failed && result.verdict.contains(why), "{}", result.verdict);
        queue.forget();
    };
    fails(&|s| s.schema = "andon.job.v9".into(), "schema");
    fails(&|s| s.items[0].class = 7, "class 7");
    fails(&|s| s.items.retain(|i| i.part != Part::Golden), "no golden images");
    fails(&|s| s.blobs = "/nowhere".into(), "images cannot be read");
    fails(&|s| s.parent_float = s.parent_dir.join("manifest.json"), "not a valid ONNX file");
    fails(&|s| s.parent_dir = s.blobs.clone(), "manifest.json");
    fails(&|s| s.gate.clean_loss_max = f64::NAN, "spec.json is no job");
    fails(&|s| s.gate.clean_loss_max = 7.0, "clean_loss_max");
    fails(&|s| s.recipe.learning_rate = Some(-1.0), "learning_rate");
    fails(&|s| s.release = s.parent.clone(), "no later version");
    let broken = queue.blob(b"\x89PNG\r\n\x1a\nnonsense");
    fails(&|s| s.items.iter_mut().take(10).for_each(|i| i.image = broken), &broken.to_string());
    for text in ["", "{", "[]", "{\"schema\":\"andon.job.v1\"}"] {
        fs::write(queue.job(SPEC_FILE), text).unwrap();
        queue.work();
        assert_eq!(queue.result().outcome, Outcome::Failed);
        queue.forget();
    }
}

#[test]
fn a_job_can_be_cancelled_and_a_stopping_worker_leaves_it_to_others() {
    let queue = Queue::new();
    queue.put(&queue.spec());
    let asked = AtomicUsize::new(0);
    let stop_soon = || match asked.fetch_add(1, Ordering::Relaxed) {
        0..10 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    work(&queue.path(), Once::Yes, &stop_soon).unwrap();
    assert!(!queue.job(RESULT_FILE).exists() && !queue.job(CLAIM_FILE).exists());
    fs::write(queue.job(CANCEL_FILE), b"").unwrap();
    queue.work();
    assert_eq!(queue.result().outcome, Outcome::Cancelled);
}

#[test]
fn a_fresh_claim_is_respected_and_a_dead_one_is_not() {
    let queue = Queue::new();
    queue.put(&queue.spec());
    fs::write(queue.job(CLAIM_FILE), b"{}").unwrap();
    assert!(next(&queue.path()).unwrap().is_none());
    age_claim(&queue);
    assert!(next(&queue.path()).unwrap().is_some());
    assert!(next(&queue.path()).unwrap().is_none(), "claimed now");
}

fn age_claim(queue: &Queue) {
    let file = fs::OpenOptions::new().write(true).open(queue.job(CLAIM_FILE)).unwrap();
    let old = clock::now() - Duration::from_secs(LEASE_S + 1);
    file.set_times(fs::FileTimes::new().set_modified(old)).unwrap();
}

const QUEUE_VARIABLE: &str = "ANDON_TRAINER_TEST_QUEUE";

/// What the process does that the next test kills. Does nothing in an ordinary run.
#[test]
fn worker_process() {
    if let Some(queue) = std::env::var_os(QUEUE_VARIABLE) {
        work(Path::new(&queue), Once::Yes, &|| ControlFlow::Continue(())).unwrap();
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_workers_job_is_done_by_the_next() {
    let queue = Queue::new();
    let mut spec = queue.spec();
    spec.recipe.epochs = Some(100);
    queue.put(&spec);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::jobs::worker_process"])
        .env(QUEUE_VARIABLE, queue.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let deep = |text: String| text.contains("training");
    while !fs::read_to_string(queue.job(PROGRESS_FILE)).is_ok_and(deep) {
        assert!(child.0.try_wait().unwrap().is_none(), "the worker ended by itself");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(child);
    assert!(queue.job(CLAIM_FILE).exists() && !queue.job(RESULT_FILE).exists());
    fs::write(queue.job("out/leftover"), b"half a release").unwrap();
    // The dead worker's lease runs out.
    age_claim(&queue);
    spec.recipe.epochs = Some(2);
    queue.put(&spec);
    queue.work();
    assert_eq!(queue.result().outcome, Outcome::Succeeded, "{}", queue.result().verdict);
    assert!(!queue.job("out/leftover").exists());
}
