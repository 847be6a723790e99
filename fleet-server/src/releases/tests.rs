//! Releases and policies through the real router, on both databases, and what a crash leaves between two steps.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use serde_json::json;

use andon_protocol::{
    Digest, ReleaseId,
    api::{AuditEntry, Model, Page, Policy, Release, ReleaseState, Role},
};

use super::{bundle, registry};
use crate::{
    testing::{Reply, TestApp, each_app},
    tuf,
};

/// An upload of `cell/VERSION`.
fn upload(version: u32) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    bundle::tests::write(dir.path(), &ReleaseId::new("cell", version).unwrap(), Digest::of(b"set"), None);
    bundle::tests::tar(dir.path())
}

pub(crate) async fn post_tar(test: &TestApp, path: &str, token: &str, tar: Vec<u8>) -> Reply {
    let request = Request::post(path)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/x-tar");
    test.send(request.body(Body::from(tar)).unwrap()).await
}

/// Publishes `cell/VERSION`.
pub(crate) async fn publish(test: &TestApp, version: u32) -> Release {
    let token = test.token(Role::Engineer).await;
    post_tar(test, "/api/v1/releases", &token, upload(version)).await.json()
}

pub(crate) async fn is_published(test: &TestApp, release: &ReleaseId) -> bool {
    let release = release.clone();
    tuf::with(&test.app, move |repository| repository.is_published(&release)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_published_listed_and_withdrawn() {
    each_app(async |test| {
        let engineer = test.token(Role::Engineer).await;
        let operator = test.token(Role::Operator).await;
        let reply = post_tar(&test, "/api/v1/releases", &engineer, upload(1)).await;
        assert_eq!(reply.status, StatusCode::CREATED);
        let release: Release = reply.json();
        assert_eq!((release.state, release.model), (ReleaseState::Released, Digest::of(b"model of cell/1")));
        assert_eq!(release.labels, ["ok", "defect"]);
        assert!(is_published(&test, &release.id).await);
        assert!(registry::folder(&test.app, &release.id).join("float.onnx").exists());
        assert_eq!(std::fs::read_dir(test.app.paths.scratch()).unwrap().count(), 0);

        let model: Model = test.get("/api/v1/models/cell", &engineer).await.json();
        assert_eq!(model.latest, Some(release.id.clone()));
        let got: Release = test.get("/api/v1/releases/cell/1", &engineer).await.json();
        assert_eq!(got, release);
        post_tar(&test, "/api/v1/releases", &engineer, upload(3)).await.json::<Release>();
        let page: Page<Release> = test.get("/api/v1/releases?model=cell&limit=1", &engineer).await.json();
        assert_eq!(page.items[0].id.version(), 3);
        let rest = format!("/api/v1/releases?model=cell&limit=5&cursor={}", page.next.unwrap());
        let page: Page<Release> = test.get(&rest, &engineer).await.json();
        assert_eq!(page.items.iter().map(|r| r.id.version()).collect::<Vec<_>>(), [1]);
        let none: Page<Release> = test.get("/api/v1/releases?model=other", &engineer).await.json();
        assert!(none.items.is_empty());

        let withdrawn: Release =
            test.call(Method::POST, "/api/v1/releases/cell/1/withdraw", &operator, None).await.json();
        assert_eq!(withdrawn.state, ReleaseState::Withdrawn);
        assert!(!is_published(&test, &release.id).await);
        // Its number is used up.
        let again = post_tar(&test, "/api/v1/releases", &engineer, upload(1)).await.problem();
        assert_eq!(
            (again.status, again.detail.contains("next free version of the model is 4")),
            (409, true),
            "{again:?}"
        );
        let older = post_tar(&test, "/api/v1/releases", &engineer, upload(2)).await.problem();
        assert_eq!((older.status, older.detail.contains("the next free one is 4")), (409, true), "{older:?}");
        let audit: Page<AuditEntry> = test.get("/api/v1/audit", &operator).await.json();
        let actions: Vec<_> =
            audit.items.iter().filter(|e| e.object == "cell/1").map(|e| e.action.as_str()).collect();
        assert_eq!(actions, ["release.withdraw", "release.publish", "release.register"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_uploads_change_nothing() {
    each_app(async |test| {
        let token = test.token(Role::Engineer).await;
        let good = upload(1);
        let rows: [(&str, Vec<u8>, u16); 4] = [
            ("no tar", b"hello".repeat(1000), 400),
            ("cut off", good[..good.len() / 2].to_vec(), 400),
            ("empty", Vec::new(), 422),
            ("model missing", without(&good, "release/model.onnx"), 422),
        ];
        for (name, tar, status) in rows {
            let problem = post_tar(&test, "/api/v1/releases", &token, tar).await.problem();
            assert_eq!(problem.status, status, "{name}: {problem:?}");
        }
        assert_eq!(test.get("/api/v1/models/cell", &token).await.status, StatusCode::NOT_FOUND);
        assert_eq!(std::fs::read_dir(test.app.paths.scratch()).unwrap().count(), 0);
        // Other classes under the name of the model.
        publish(&test, 1).await;
        let dir = tempfile::tempdir().unwrap();
        bundle::tests::write(dir.path(), &"cell/2".parse().unwrap(), Digest::of(b"set"), None);
        let manifest = dir.path().join("release/manifest.json");
        let text = std::fs::read_to_string(&manifest).unwrap().replace("\"defect\"", "\"crack\"");
        std::fs::write(&manifest, text).unwrap();
        let problem =
            post_tar(&test, "/api/v1/releases", &token, bundle::tests::tar(dir.path())).await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (422, "refused"), "{problem:?}");
        assert_eq!(test.get("/api/v1/releases/cell/2", &token).await.status, StatusCode::NOT_FOUND);
    })
    .await;
}

/// The archive less one entry.
fn without(tar: &[u8], name: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let entry = entry.unwrap();
        if entry.path().unwrap().to_str() != Some(name) {
            let header = entry.header().clone();
            builder.append(&header, entry).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_leaves_is_completed_or_forgotten() {
    each_app(async |test| {
        let app = &test.app;
        let release = publish(&test, 1).await.id;
        let set = |state: &'static str| {
            sqlx::query("UPDATE model_release SET state = $1 WHERE version = 1")
                .bind(state)
                .execute(app.db.writer())
        };
        // Before it was signed: the folder is there.
        tuf::with(app, |r| r.withdraw(&["cell/1".parse().unwrap()], app_now())).await.unwrap();
        set("candidate").await.unwrap();
        registry::forget_unfinished(app).await.unwrap();
        registry::reconcile(app).await.unwrap();
        assert!(is_published(&test, &release).await);
        // After it was signed, before the row said so.
        set("candidate").await.unwrap();
        registry::reconcile(app).await.unwrap();
        let token = test.token(Role::Viewer).await;
        let got: Release = test.get("/api/v1/releases/cell/1", &token).await.json();
        assert_eq!(got.state, ReleaseState::Released);
        // Withdrawn in the row only.
        set("withdrawn").await.unwrap();
        registry::reconcile(app).await.unwrap();
        assert!(!is_published(&test, &release).await);
        // The row only: the upload never came to its end.
        set("candidate").await.unwrap();
        std::fs::remove_dir_all(registry::folder(app, &release)).unwrap();
        registry::reconcile(app).await.unwrap();
        registry::forget_unfinished(app).await.unwrap();
        assert_eq!(test.get("/api/v1/releases/cell/1", &token).await.status, StatusCode::NOT_FOUND);
    })
    .await;
}

fn app_now() -> i64 {
    crate::testing::NOW_MS
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_changed_by_whoever_read_it() {
    each_app(async |test| {
        publish(&test, 1).await;
        let token = test.token(Role::Operator).await;
        let path = "/api/v1/models/cell/policy";
        let reply = test.get(path, &token).await;
        let tag = reply.headers[header::ETAG].clone();
        let mut policy: Policy = reply.json();
        assert!(!policy.auto_rollout && policy.retrain_labels_min == 0);
        policy.auto_rollout = true;
        let put = async |tag: Option<&str>, policy: &Policy| {
            let mut request = Request::put(path)
                .header(header::AUTHORIZATION, format!("Bearer {token}"))
                .header(header::CONTENT_TYPE, "application/json");
            if let Some(tag) = tag {
                request = request.header(header::IF_MATCH, tag);
            }
            test.send(request.body(Body::from(json!(policy).to_string())).unwrap()).await
        };
        assert_eq!(put(None, &policy).await.problem().code, "if_match_required");
        let changed = put(Some(tag.to_str().unwrap()), &policy).await;
        assert_eq!(changed.json::<Policy>(), policy);
        assert_ne!(changed.headers[header::ETAG], tag);
        assert_eq!(put(Some(tag.to_str().unwrap()), &policy).await.problem().code, "stale");
        assert!(put(Some("*"), &policy).await.status.is_success());
        policy.waves.pop();
        let problem = put(Some("*"), &policy).await.problem();
        assert!(problem.status == 400 && problem.detail.contains("must be 100"), "{problem:?}");
        assert_eq!(test.get("/api/v1/models/none/policy", &token).await.status, StatusCode::NOT_FOUND);
    })
    .await;
}
