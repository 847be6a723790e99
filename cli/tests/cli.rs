//! The binary against an in-process server that plays the few routes it needs: what is sent, what is printed, and the
//! exit status. The real server is used in the end-to-end tests of the workspace.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests: a missing value is the failure")]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use andon_protocol::api::{NewApiToken, Policy, Problem, Wave};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use serde_json::{Value, json};

const PASSWORD: &str = "correct horse";
const TOKEN: &str = "andon_c2VjcmV0";

/// What the server saw.
#[derive(Default)]
struct Seen {
    tar: Vec<(String, Vec<u8>)>,
    query: BTreeMap<String, String>,
    policy: Option<Policy>,
    if_match: Option<String>,
    revoked: bool,
}
type Shared = Arc<Mutex<Seen>>;

struct Fake {
    address: SocketAddr,
    seen: Shared,
    home: tempfile::TempDir,
    // Stops the server when the test ends.
    _runtime: tokio::runtime::Runtime,
}

fn problem(status: u16, code: &str, detail: &str) -> Response {
    let body = Problem { code: code.into(), title: code.into(), status, detail: detail.into() };
    let status = StatusCode::from_u16(status).unwrap();
    (status, [(header::CONTENT_TYPE, "application/problem+json")], serde_json::to_string(&body).unwrap())
        .into_response()
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> String {
    headers.get(name).map_or_else(String::new, |v| v.to_str().unwrap().to_owned())
}

fn device(id: &str) -> Value {
    json!({
        "id": id, "site": "brno", "line": "el-a", "online": true, "last_seen_ms": 1_795_548_904_000_i64,
        "enrolled_ms": 1_795_000_000_000_i64, "agent_version": "0.1.0",
        "running": {"release": "solar-cell/1", "model": "ab".repeat(32), "engine": "tract"}, "previous": null,
        "desired": "solar-cell/2", "update": null, "drift": "armed",
        "spool": {"bytes": 1200, "records": 3, "samples": 0, "records_dropped": 0, "samples_dropped": 0},
        "window": null, "open_alarms": 0
    })
}

fn rollout() -> Value {
    json!({
        "id": "r1", "release": "solar-cell/2", "state": "running", "created_ms": 0, "created_by": "policy",
        "finished_ms": null, "waves": [{"percent": 100, "soak_s": 0}], "wave": 0,
        "devices": [{"device": "cell-1", "wave": 0, "state": "trial", "detail": null, "since_ms": 0}],
        "decisions": [{"at_ms": 0, "what": "start", "why": "asked for", "by": "eva"}], "rev": 3
    })
}

fn release() -> Value {
    json!({
        "id": "solar-cell/1", "state": "released", "created_ms": 0, "model": "ab".repeat(32), "bytes": 4_652_100,
        "labels": ["ok", "defect"], "reject": 1, "parent": null, "dataset": "cd".repeat(32), "run": null,
        "metrics": {"golden.balanced_accuracy": 0.853}, "devices": 0
    })
}

async fn login(Json(body): Json<Value>) -> Response {
    if body["password"] != PASSWORD {
        return problem(401, "unauthorised", "wrong user or password");
    }
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, "andon=s3ss10n; HttpOnly; SameSite=Lax")]).into_response()
}

async fn make_token(headers: HeaderMap, Json(new): Json<NewApiToken>) -> Response {
    // As the real server does: a cookie alone is not enough for a write.
    if text(&headers, header::COOKIE) != "andon=s3ss10n" || text(&headers, header::ORIGIN).is_empty() {
        return problem(403, "forbidden", "not from this server's own pages");
    }
    let made = json!({"id": "t1", "name": new.name, "role": new.role, "token": TOKEN, "expires_ms": new.expires_ms, "created_ms": 0});
    (StatusCode::CREATED, Json(made)).into_response()
}

async fn me(headers: HeaderMap) -> Response {
    let known = text(&headers, header::COOKIE) == "andon=s3ss10n"
        || text(&headers, header::AUTHORIZATION) == format!("Bearer {TOKEN}");
    if known {
        Json(json!({"user": "eva", "role": "operator"})).into_response()
    } else {
        problem(401, "unauthorised", "log in first")
    }
}

/// Three devices, two to a page.
async fn devices(Query(query): Query<BTreeMap<String, String>>) -> Json<Value> {
    let all = ["cell-1", "cell-2", "cell-3"].map(device);
    let from: usize = query.get("cursor").map_or(0, |c| c.parse().unwrap());
    let to = (from + 2).min(all.len());
    let next = (to < all.len()).then(|| to.to_string());
    Json(json!({"items": all[from..to], "next": next}))
}

async fn one_device(Path(id): Path<String>) -> Response {
    if id == "cell-1" {
        Json(device(&id)).into_response()
    } else {
        problem(404, "not_found", "there is no device cell-9")
    }
}

async fn upload(
    State(seen): State<Shared>,
    Query(query): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Response {
    let mut archive = tar::Archive::new(&body[..]);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    });
    let mut seen = seen.lock().unwrap();
    seen.tar = entries.collect();
    seen.query = query;
    if seen.query.contains_key("model") {
        let set = json!({"id": "ef".repeat(32), "model": "solar-cell", "created_ms": 0, "parent": null, "items": {"train": 1}, "field_items": 0});
        return Json(set).into_response();
    }
    Json(release()).into_response()
}

fn policy() -> Policy {
    let waves = vec![Wave { percent: 100, soak_s: 0 }];
    Policy {
        retrain_labels_min: 100,
        auto_rollout: false,
        waves,
        trial_s: 30,
        agreement_min: 0.98,
        clean_loss_max: 0.01,
        drift_gain_min: 0.02,
    }
}

async fn get_policy(State(seen): State<Shared>) -> Response {
    let stored = seen.lock().unwrap().policy.clone();
    ([(header::ETAG, "\"7\"")], Json(stored.unwrap_or_else(policy))).into_response()
}

async fn put_policy(State(seen): State<Shared>, headers: HeaderMap, Json(new): Json<Policy>) -> Response {
    if text(&headers, header::IF_MATCH) != "\"7\"" {
        return problem(428, "precondition", "If-Match is needed");
    }
    if new.retrain_labels_min == 412 {
        return problem(412, "stale", "somebody else changed it");
    }
    seen.lock().unwrap().policy = Some(new.clone());
    Json(new).into_response()
}

async fn hold(
    State(seen): State<Shared>,
    Path((_id, action)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    seen.lock().unwrap().if_match = Some(text(&headers, header::IF_MATCH));
    let mut body = rollout();
    body["state"] = json!(if action == "pause" { "paused" } else { "aborted" });
    Json(body).into_response()
}

async fn audit() -> Json<Value> {
    let entry = |seq: i64, hash: &str| json!({"seq": seq, "at_ms": 0, "actor": "eva", "action": "a", "object": "o", "detail": "", "previous": "0".repeat(64), "hash": hash});
    Json(json!({"items": [entry(1, &"f".repeat(64))]}))
}

impl Fake {
    fn start() -> Self {
        let seen = Shared::default();
        let api = Router::new()
            .route("/session", post(login).delete(|| async { StatusCode::NO_CONTENT }))
            .route("/me", get(me))
            .route("/tokens", post(make_token))
            .route(
                "/tokens/t1",
                axum::routing::delete(|State(seen): State<Shared>| async move {
                    seen.lock().unwrap().revoked = true;
                    StatusCode::NO_CONTENT
                }),
            )
            .route("/devices", get(devices))
            .route("/devices/{id}", get(one_device))
            .route("/releases", get(|| async { Json(json!({"items": []})) }).post(upload))
            .route("/datasets", post(upload))
            .route("/models/solar-cell/policy", put(put_policy).get(get_policy))
            .route(
                "/runs",
                get(|| async { (StatusCode::BAD_GATEWAY, "<html>proxy</html>") })
                    .post(|| async { problem(409, "conflict", "run r0 is under way") }),
            )
            .route("/rollouts/r1", get(|| async { ([(header::ETAG, "\"3\"")], Json(rollout())) }))
            .route("/rollouts/r1/pause", post(|s, h| hold(s, Path(("r1".into(), "pause".into())), h)))
            .route("/audit", get(audit))
            .route("/overview", get(|| async { Response::new(Body::from("not json")) }))
            .layer(DefaultBodyLimit::max(64 << 20))
            .with_state(seen.clone());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, Router::new().nest("/api/v1", api)).await });
        Self { address, seen, home: tempfile::tempdir().unwrap(), _runtime: runtime }
    }

    fn andon(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_andon"));
        command.args(arguments).env_clear().env("HOME", self.home.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A child that refuses its arguments has closed its input by then.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// With a token given, so that no login is needed.
    fn call(&self, arguments: &[&str]) -> (i32, String, String) {
        let url = format!("http://{}", self.address);
        let given = ["--url", &url, "--token", TOKEN];
        let output = self.andon(&[arguments, &given].concat(), "");
        (output.status.code().unwrap(), utf8(output.stdout), utf8(output.stderr))
    }
}

fn utf8(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn login_keeps_a_token_and_never_the_password() {
    let fake = Fake::start();
    let url = format!("http://{}", fake.address);
    let login = fake.andon(&["login", "--url", &url, "--user", "eva"], &format!("{PASSWORD}\n"));
    assert!(login.status.success(), "{}", utf8(login.stderr));
    let path = fake.home.path().join(".config/andon/credentials.toml");
    let stored = fs::read_to_string(&path).unwrap();
    assert!(stored.contains(TOKEN) && !stored.contains(PASSWORD), "{stored}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let whoami = fake.andon(&["whoami"], "");
    assert_eq!(utf8(whoami.stdout), format!("eva (operator) at {url}\n"));

    assert!(fake.andon(&["logout"], "").status.success());
    assert!(fake.seen.lock().unwrap().revoked);
    assert_eq!(fake.andon(&["whoami"], "").status.code(), Some(4));
}

#[test]
fn a_wrong_password_is_said_in_the_servers_words() {
    let fake = Fake::start();
    let url = format!("http://{}", fake.address);
    let login = fake.andon(&["login", "--url", &url], "wrong\n");
    assert_eq!(login.status.code(), Some(4));
    assert_eq!(utf8(login.stderr), "andon: wrong user or password (unauthorised)\n");
    assert!(!fake.home.path().join(".config").exists());
}

#[test]
fn lists_are_tables_or_json_over_all_pages() {
    let fake = Fake::start();
    let (status, table, _) = fake.call(&["devices"]);
    assert_eq!(status, 0);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.starts_with("DEVICE") && table.contains("cell-3"), "{table}");
    let (_, text, _) = fake.call(&["devices", "--json", "--limit", "3"]);
    let items: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(
        items.iter().map(|d| d["id"].as_str().unwrap()).collect::<Vec<_>>(),
        ["cell-1", "cell-2", "cell-3"]
    );
    let (_, text, _) = fake.call(&["devices", "cell-1"]);
    assert!(text.contains("solar-cell/1 on tract"), "{text}");
    let (_, text, _) = fake.call(&["releases"]);
    assert!(text.contains("andon releases publish"), "an empty list says what to do: {text}");
}

#[test]
fn the_exit_status_says_what_kind_of_failure_it_was() {
    let fake = Fake::start();
    for (arguments, status, message) in [
        (&["devices", "cell-9"][..], 5, "there is no device cell-9 (not_found)"),
        (&["runs", "start", "solar-cell"], 6, "run r0 is under way (conflict)"),
        (
            &["models", "policy", "solar-cell", "--retrain-labels-min", "412"],
            6,
            "somebody else changed it (stale)",
        ),
        (&["runs"], 1, "answered 502 without saying why"),
        (&["status"], 1, "answered what this version does not understand"),
        (&["audit", "--verify"], 7, "breaks at entry 1"),
        (&["devices", "Not A Device"], 2, "allowed are 1 to 63 characters"),
        (&["devices", "--limit", "0"], 2, "expected 1 to"),
        (&["datasets", "import", "."], 2, "--model is needed"),
        (&["releases", "publish", "/nonexistent"], 1, "/nonexistent/release/manifest.json"),
        (&["rollout", "start", "solar-cell"], 2, "expected MODEL/VERSION"),
        (&["rollout", "start", "solar-cell/2", "--waves", "50,10"], 2, "cumulative"),
    ] {
        let (code, out, err) = fake.call(arguments);
        assert_eq!(code, status, "{arguments:?}: {err}");
        assert!(err.contains(message), "{arguments:?}: {err}");
        assert_eq!(out, "", "{arguments:?}");
    }
    let nobody = fake.andon(&["devices", "--url", "http://127.0.0.1:1", "--token", TOKEN], "");
    assert_eq!(nobody.status.code(), Some(3), "{}", utf8(nobody.stderr));
    let nowhere = fake.andon(&["devices"], "");
    assert_eq!(nowhere.status.code(), Some(4));
    assert!(utf8(nowhere.stderr).contains("andon login --url URL"));
}

#[test]
fn writes_carry_the_tag_of_what_was_seen() {
    let fake = Fake::start();
    let (status, text, err) =
        fake.call(&["models", "policy", "solar-cell", "--auto-rollout", "true", "--waves", "10:60,100"]);
    assert_eq!(status, 0, "{err}");
    assert!(text.contains("by itself"), "{text}");
    let stored = fake.seen.lock().unwrap().policy.clone().unwrap();
    assert_eq!(
        stored,
        Policy {
            auto_rollout: true,
            waves: vec![Wave { percent: 10, soak_s: 60 }, Wave { percent: 100, soak_s: 0 }],
            ..policy()
        }
    );

    let (status, text, err) = fake.call(&["rollout", "pause", "r1"]);
    assert_eq!(status, 0, "{err}");
    assert_eq!(text, "rollout r1 of solar-cell/2 is paused\n");
    assert_eq!(fake.seen.lock().unwrap().if_match.as_deref(), Some("\"3\""));
}

#[test]
fn a_release_is_published_as_a_tar_of_its_files() {
    let fake = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    let golden = dir.path().join("release/golden");
    fs::create_dir_all(&golden).unwrap();
    let manifest = json!({
        "schema": "andon.release.v1", "release": "solar-cell/1", "created_ms": 0,
        "input": {"name": "image", "width": 8, "height": 8, "channels": 1},
        "preprocessing": {"mean": [0.0], "std": [1.0]}, "labels": ["ok", "defect"],
        "decision": {"reject": 1, "threshold": 0.5}, "outputs": {"scores": "scores", "embedding": "embedding"},
        "lineage": {"parent": null, "dataset": "ab".repeat(32), "float_model": "cd".repeat(32), "trainer": "t", "seed": 1},
        "metrics": {}
    });
    let files = [
        ("release/model.onnx", b"model".to_vec()),
        ("release/manifest.json", serde_json::to_vec(&manifest).unwrap()),
        ("release/reference.cbor", b"reference".to_vec()),
        ("release/golden/a.png", b"png".to_vec()),
        ("release/golden/cases.json", b"{}".to_vec()),
        ("float.onnx", b"float".to_vec()),
    ];
    for (name, content) in &files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    // What else lies there is not sent.
    fs::write(dir.path().join("report.json"), "{}").unwrap();
    let (status, text, err) = fake.call(&["releases", "publish", dir.path().to_str().unwrap()]);
    assert_eq!(status, 0, "{err}");
    assert_eq!(text, "solar-cell/1 is released\n");
    let sent = std::mem::take(&mut fake.seen.lock().unwrap().tar);
    assert_eq!(sent, files.map(|(name, content)| (name.to_owned(), content)));
}

#[test]
fn a_data_set_is_imported_for_a_model() {
    let fake = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("labels.csv"), "file,class,split\na.png,ok,train\nb.png,ok,stream-1\n")
        .unwrap();
    fs::write(dir.path().join("a.png"), "a").unwrap();
    let (status, text, err) =
        fake.call(&["datasets", "import", dir.path().to_str().unwrap(), "--model", "solar-cell"]);
    assert_eq!(status, 0, "{err}");
    assert!(text.contains("1 train"), "{text}");
    let seen = fake.seen.lock().unwrap();
    assert_eq!(seen.query["model"], "solar-cell");
    assert_eq!(seen.tar.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["labels.csv", "a.png"]);
}
