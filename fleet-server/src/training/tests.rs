//! Training runs from label to release, on both databases; the worker is played by files.

use std::{fs, path::PathBuf, time::Duration};

use axum::http::{Method, StatusCode};
use serde_json::json;

use andon_protocol::{
    Digest,
    api::{DataSet, Page, Release, Role, Rollout, RunState, TrainingRun},
    job::{Claim, JobResult, JobSpec, Outcome, Part, Progress},
};

use super::{import, queue, reconcile};
use crate::{
    releases::{
        bundle, models,
        tests::{is_published, post_tar, publish},
    },
    testing::{NOW_MS, TestApp, each_app},
};

/// `cell/1`, a data set of six images, one device with an open alarm, and a policy that asks for three labels.
async fn factory(test: &TestApp) {
    publish(test, 1).await;
    test.device("d1").await;
    let token = test.token(Role::Engineer).await;
    let mut csv = "file,class,split\n".to_owned();
    let mut files = Vec::new();
    for (n, split) in
        ["train", "train", "validation", "validation", "golden", "golden"].into_iter().enumerate()
    {
        let class = if n % 2 == 0 { "ok" } else { "defect" };
        csv += &format!("{n}.png,{class},{split}\n");
        files.push((format!("{n}.png"), import::tests::png(n as u32)));
    }
    let mut entries = vec![("labels.csv", csv.as_bytes())];
    entries.extend(files.iter().map(|(name, content)| (name.as_str(), content.as_slice())));
    let reply = post_tar(test, "/api/v1/datasets?model=cell", &token, import::tests::tar(&entries)).await;
    assert_eq!(reply.status, StatusCode::CREATED);
    let set: DataSet = reply.json();
    assert_eq!(set.items, [("golden".to_owned(), 2), ("train".into(), 2), ("validation".into(), 2)].into());
    alarm(test, "lighting").await;
    let mut tx = test.app.db.begin().await.unwrap();
    let mut policy = models::default_policy();
    (policy.retrain_labels_min, policy.auto_rollout) = (3, true);
    models::set_policy(&mut tx, "cell", &policy, None).await.unwrap();
    tx.commit().await.unwrap();
}

async fn alarm(test: &TestApp, cause: &str) {
    sqlx::query(
        "INSERT INTO alarm (id, device, cause, charts, frames, raised_ms, state, changed_ms) \
         VALUES ('a', 'd1', $1, '[]', 1, 0, 'open', 0) ON CONFLICT (id) DO UPDATE SET cause = excluded.cause",
    )
    .bind(cause)
    .execute(test.app.db.writer())
    .await
    .unwrap();
}

/// A sample of device d1, labelled where `class` is given.
async fn sample(test: &TestApp, n: u32, drift: &str, class: Option<&str>) -> Digest {
    let digest = test.app.blobs.put(&import::tests::png(1000 + n)).unwrap();
    sqlx::query(
        "INSERT INTO sample (digest, device, received_ms, captured_ms, bytes, content_type, release_id, reason, drift, \
         manifest) VALUES ($1, 'd1', $2, 0, 12, 'image/png', 'cell/1', 'random', $3, '{}')",
    )
    .bind(digest.to_string())
    .bind(NOW_MS)
    .bind(drift)
    .execute(test.app.db.writer())
    .await
    .unwrap();
    if let Some(class) = class {
        sqlx::query("INSERT INTO label (sample, class, labelled_by, at_ms) VALUES ($1, $2, 'x', $3)")
            .bind(digest.to_string())
            .bind(class)
            .bind(NOW_MS)
            .execute(test.app.db.writer())
            .await
            .unwrap();
    }
    digest
}

async fn runs(test: &TestApp) -> Vec<TrainingRun> {
    let token = test.token(Role::Viewer).await;
    test.get("/api/v1/runs?model=cell", &token).await.json::<Page<TrainingRun>>().items
}

async fn pass(test: &TestApp) {
    reconcile::pass(&test.app).await.unwrap();
}

/// A run that the policy started, and its folder.
async fn started(test: &TestApp) -> (TrainingRun, PathBuf) {
    factory(test).await;
    for n in 0..3 {
        sample(test, n, "alarm", Some("ok")).await;
    }
    pass(test).await;
    pass(test).await;
    let run = runs(test).await.remove(0);
    let folder = queue::folder(&test.app.paths.queue(), &run.id);
    assert!(folder.join("spec.json").exists());
    (run, folder)
}

fn claim(folder: &std::path::Path, pid: u32, age_s: u64) {
    let path = folder.join("claim.json");
    fs::write(&path, serde_json::to_vec(&Claim { worker: "w".into(), pid }).unwrap()).unwrap();
    let renewed = std::time::UNIX_EPOCH + Duration::from_millis(NOW_MS as u64) - Duration::from_secs(age_s);
    fs::File::options().write(true).open(path).unwrap().set_modified(renewed).unwrap();
}

fn finish(folder: &std::path::Path, outcome: Outcome) {
    let spec: JobSpec = serde_json::from_slice(&fs::read(folder.join("spec.json")).unwrap()).unwrap();
    if outcome == Outcome::Succeeded {
        bundle::tests::write(&folder.join("out"), &spec.release, spec.dataset, Some(spec.parent));
    }
    let result = JobResult {
        outcome,
        verdict: "compared".into(),
        metrics: [("golden.balanced_accuracy.new".to_owned(), 0.9), ("broken".into(), f64::MAX)].into(),
        seconds: Default::default(),
    };
    fs::write(folder.join("result.json"), serde_json::to_vec(&result).unwrap()).unwrap();
    let _ = fs::remove_file(folder.join("claim.json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_of_drifted_devices_start_a_run() {
    each_app(async |test| {
        factory(&test).await;
        pass(&test).await;
        // Neither labels from before the drift, nor unlabelled images, nor drift that training cannot cure.
        sample(&test, 1, "alarm", Some("ok")).await;
        sample(&test, 2, "cooldown", Some("defect")).await;
        sample(&test, 3, "armed", Some("ok")).await;
        let unlabelled = sample(&test, 4, "alarm", None).await;
        pass(&test).await;
        assert_eq!(runs(&test).await, []);
        alarm(&test, "camera_dead").await;
        sample(&test, 5, "suspect", Some("ok")).await;
        pass(&test).await;
        assert_eq!(runs(&test).await, []);
        alarm(&test, "blur").await;
        pass(&test).await;
        pass(&test).await;
        let run = runs(&test).await.remove(0);
        assert_eq!((run.state, run.parent.unwrap().version()), (RunState::Queued, 1));

        let folder = queue::folder(&test.app.paths.queue(), &run.id);
        let spec: JobSpec = serde_json::from_slice(&fs::read(folder.join("spec.json")).unwrap()).unwrap();
        assert_eq!((spec.release.to_string(), spec.parent.to_string()), ("cell/2".into(), "cell/1".into()));
        assert!(
            spec.parent_dir.join("model.onnx").is_absolute() && spec.parent_dir.join("model.onnx").exists()
        );
        assert!(spec.parent_float.exists());
        assert_eq!(spec.items.len(), 10);
        assert_eq!(spec.items.iter().filter(|i| i.device.is_some()).count(), 4);
        assert_eq!(spec.items.iter().filter(|i| i.drifted).count(), 3);
        assert!(spec.items.iter().all(|i| i.device.is_some() || i.part != Part::HeldBack));
        assert_eq!(spec.unlabelled.iter().map(|u| u.image).collect::<Vec<_>>(), [unlabelled]);
        for item in &spec.items {
            assert!(test.app.blobs.has(item.image).unwrap());
        }
        let token = test.token(Role::Viewer).await;
        let set: DataSet = test.get(&format!("/api/v1/datasets/{}", spec.dataset), &token).await.json();
        assert_eq!(set.field_items, 4);
        assert!(set.parent.is_some());
        // No second one while it is under way.
        pass(&test).await;
        assert_eq!(runs(&test).await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_passed_is_released_and_rolled_out_once() {
    each_app(async |test| {
        let (run, folder) = started(&test).await;
        claim(&folder, 1, 0);
        let progress = Progress { done: 0.5, stage: "training".into() };
        fs::write(folder.join("progress.json"), serde_json::to_vec(&progress).unwrap()).unwrap();
        pass(&test).await;
        let now = runs(&test).await.remove(0);
        assert_eq!(
            (now.state, now.attempt, now.stage.as_str(), now.progress),
            (RunState::Running, 1, "training", 0.5)
        );
        finish(&folder, Outcome::Succeeded);
        // The server dies after the release was registered, and after the rollout was made.
        let stored =
            super::runs::get(&mut test.app.db.reader().acquire().await.unwrap(), &run.id).await.unwrap();
        reconcile::register(&test.app, &stored).await.unwrap();
        reconcile::register(&test.app, &stored).await.unwrap();
        reconcile::roll_out(&test.app, &stored, "v").await.unwrap();
        pass(&test).await;
        let done = runs(&test).await.remove(0);
        assert_eq!((done.state, done.verdict.as_deref()), (RunState::Succeeded, Some("compared")));
        let release = done.release.unwrap();
        assert!(is_published(&test, &release).await);
        let token = test.token(Role::Viewer).await;
        let got: Release = test.get("/api/v1/releases/cell/2", &token).await.json();
        assert_eq!(got.run, Some(run.id));
        let rollouts: Page<Rollout> = test.get("/api/v1/rollouts", &token).await.json();
        assert_eq!(rollouts.items.iter().map(|r| r.release.clone()).collect::<Vec<_>>(), [release]);
        pass(&test).await;
        assert!(!folder.exists());
        assert_eq!(runs(&test).await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_end_in_other_ways_too() {
    each_app(async |test| {
        // (what the worker leaves, state, part of the verdict)
        let (_, folder) = started(&test).await;
        finish(&folder, Outcome::Refused);
        pass(&test).await;
        assert_eq!(runs(&test).await[0].state, RunState::Refused);
        let engineer = test.token(Role::Engineer).await;
        let start = async || -> (TrainingRun, PathBuf) {
            test.app.clock.advance_ms(1);
            let body = Some(json!({ "model": "cell" }));
            let run: TrainingRun = test.call(Method::POST, "/api/v1/runs", &engineer, body).await.json();
            pass(&test).await;
            let folder = queue::folder(&test.app.paths.queue(), &run.id);
            (run, folder)
        };
        let (_, folder) = start().await;
        let second =
            test.call(Method::POST, "/api/v1/runs", &engineer, Some(json!({ "model": "cell" }))).await;
        assert_eq!(second.problem().code, "conflict");
        finish(&folder, Outcome::Failed);
        pass(&test).await;
        assert_eq!(runs(&test).await[0].state, RunState::Failed);

        let (_, folder) = start().await;
        finish(&folder, Outcome::Succeeded);
        fs::write(folder.join("out/release/model.onnx"), b"").unwrap();
        pass(&test).await;
        let bad = runs(&test).await.remove(0);
        assert_eq!(bad.state, RunState::Failed);
        assert!(bad.verdict.unwrap().contains("model.onnx: is empty"));

        let (_, folder) = start().await;
        fs::write(folder.join("result.json"), b"{").unwrap();
        pass(&test).await;
        assert_eq!(runs(&test).await[0].state, RunState::Failed);

        let (run, _) = start().await;
        let cancel = format!("/api/v1/runs/{}/cancel", run.id);
        test.call(Method::POST, &cancel, &engineer, None).await.json::<TrainingRun>();
        pass(&test).await;
        assert_eq!(runs(&test).await[0].state, RunState::Cancelled);
        assert_eq!(test.call(Method::POST, &cancel, &engineer, None).await.problem().code, "conflict");

        let (run, folder) = start().await;
        claim(&folder, 1, 0);
        pass(&test).await;
        test.call(Method::POST, &format!("/api/v1/runs/{}/cancel", run.id), &engineer, None)
            .await
            .json::<TrainingRun>();
        pass(&test).await;
        assert!(folder.join("cancel").exists());
        finish(&folder, Outcome::Cancelled);
        pass(&test).await;
        assert_eq!(runs(&test).await[0].state, RunState::Cancelled);
        // Each had its own number, and none was released.
        let token = test.token(Role::Viewer).await;
        let releases: Page<Release> = test.get("/api/v1/releases", &token).await.json();
        assert_eq!(releases.items.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_outlives_its_workers_but_not_all_of_them() {
    each_app(async |test| {
        let (_, folder) = started(&test).await;
        for pid in 1..=3 {
            claim(&folder, pid, 0);
            pass(&test).await;
            assert_eq!((runs(&test).await[0].state, runs(&test).await[0].attempt), (RunState::Running, pid));
            claim(&folder, pid, 60);
            pass(&test).await;
            if pid < 3 {
                assert_eq!(runs(&test).await[0].state, RunState::Queued);
            }
        }
        let run = runs(&test).await.remove(0);
        assert_eq!(run.state, RunState::Failed);
        assert!(run.verdict.unwrap().contains("3 workers died"));
        pass(&test).await;
        assert!(!folder.exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_gives_its_job_back_did_not_die() {
    each_app(async |test| {
        let (_, folder) = started(&test).await;
        for pid in 1..=5 {
            claim(&folder, pid, 0);
            pass(&test).await;
            fs::remove_file(folder.join("claim.json")).unwrap();
            pass(&test).await;
            assert_eq!((runs(&test).await[0].state, runs(&test).await[0].attempt), (RunState::Queued, 0));
        }
        // A folder that was lost is made again.
        fs::remove_dir_all(&folder).unwrap();
        pass(&test).await;
        assert!(folder.join("spec.json").exists());
    })
    .await;
}
