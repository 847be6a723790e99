//! For tests: both databases, an app without listeners, requests through the real router.
//!
//! PostgreSQL is a private cluster on a Unix socket in a temporary folder, started by the first test that needs it and
//! stopped with the last; every test has a database of its own. `ANDON_TEST_POSTGRES=off` leaves it out, aloud.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, OnceLock, Weak},
};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use andon_protocol::{
    DeviceId,
    api::{self, Role},
    state::Desired,
};

use crate::{
    api::router,
    app::{Addresses, App, Parts, Paths, Wake},
    auth::{self, Guards},
    blobs::LocalBlobs,
    clock::Clock,
    config::Config,
    db::{Db, word},
    live::Live,
    mqtt::{Mqtt, Outgoing},
    pki::Ca,
};

pub(crate) const NOW_MS: i64 = 1_790_000_000_000;

/// Runs `test` on SQLite and on PostgreSQL, one after the other.
pub(crate) async fn each_database(test: impl AsyncFn(Db)) {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open("sqlite", dir.path()).await.unwrap();
    test(db.clone()).await;
    db.close().await;

    let Some(cluster) = tokio::task::spawn_blocking(cluster).await.unwrap() else { return };
    let name = format!("test_{}", uuid::Uuid::new_v4().simple());
    let create = Arc::clone(&cluster);
    let sql = format!("CREATE DATABASE {name}");
    tokio::task::spawn_blocking(move || create.psql(&sql)).await.unwrap();
    let db = Db::open(&cluster.url(&name), dir.path()).await.unwrap();
    test(db.clone()).await;
    db.close().await;
}

/// Runs `test` with an app on each database.
pub(crate) async fn each_app(test: impl AsyncFn(TestApp)) {
    each_database(async |db| test(TestApp::new(db).await).await).await;
}

pub(crate) struct TestApp {
    pub(crate) app: App,
    pub(crate) outgoing: mpsc::Receiver<Outgoing>,
    router: Router,
    _dir: TempDir,
}

impl TestApp {
    pub(crate) async fn new(db: Db) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config: Config = toml::from_str(&format!("data_dir = {:?}", dir.path())).unwrap();
        let paths = Paths::new(dir.path());
        for folder in [paths.keys(), paths.uploads(), paths.queue(), paths.scratch(), paths.tuf()] {
            crate::files::create_dir(&folder).unwrap();
        }
        let (mqtt, outgoing) = Mqtt::new();
        let addresses = Addresses {
            people: "http://127.0.0.1:1".into(),
            devices: "https://127.0.0.1:2".into(),
            mqtt: "127.0.0.1:3".into(),
        };
        let app = App::new(Parts {
            ca: Ca::open_or_create(&paths.keys(), NOW_MS).unwrap(),
            blobs: Arc::new(LocalBlobs::open(&paths.blobs()).unwrap()),
            tuf: Default::default(),
            uploads: Default::default(),
            config,
            paths,
            db,
            clock: Clock::manual(NOW_MS),
            live: Live::default(),
            mqtt,
            wake: Wake::default(),
            auth: Guards::new(false),
            addresses: OnceLock::from(addresses),
            shutdown: CancellationToken::new(),
        });
        Self { router: router(app.clone()), app, outgoing, _dir: dir }
    }

    /// A person with an API token of `role`; returns the token.
    pub(crate) async fn token(&self, role: Role) -> String {
        let name = word(&role);
        let token = format!("{}{}", auth::TOKEN_PREFIX, auth::secret());
        let mut tx = self.app.db.begin().await.unwrap();
        sqlx::query(
            "INSERT INTO person (name, role, password_hash, created_ms) VALUES ($1, $2, $3, 0) ON CONFLICT DO NOTHING",
        )
        .bind(&name)
        .bind(&name)
        .bind(auth::password::hash("a password").unwrap())
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query("INSERT INTO api_token (id, token_sha256, person, name, role, created_ms) VALUES ($1, $2, $3, 'test', $3, 0)")
            .bind(uuid::Uuid::now_v7().to_string())
            .bind(auth::sha256_hex(&token))
            .bind(&name)
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        token
    }

    pub(crate) async fn device(&self, id: &str) -> DeviceId {
        sqlx::query(
            "INSERT INTO device (id, site, line, enrolled_ms, certificate_serial, certificate_expires_ms, drift, desired) \
             VALUES ($1, 'site', 'line', 0, '0', 0, 'no_reference', $2)",
        )
        .bind(id)
        .bind(serde_json::to_string(&Desired::default()).unwrap())
        .execute(self.app.db.writer())
        .await
        .unwrap();
        id.parse().unwrap()
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let mut request = request;
        request
            .extensions_mut()
            .insert(crate::listen::Peer { address: ([127, 0, 0, 1], 9).into(), certificate: None });
        let response = self.router.clone().call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 64 * 1024 * 1024).await.unwrap();
        Reply { status: head.status, headers: head.headers, body: body.to_vec() }
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<serde_json::Value>,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = match body {
            Some(json) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(json.to_string()))
                .unwrap(),
            None => request.body(Body::empty()).unwrap(),
        };
        self.send(request).await
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Reply {
        self.call(Method::GET, path, token, None).await
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    #[track_caller]
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        assert!(self.status.is_success(), "{} {}", self.status, String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    pub(crate) fn problem(&self) -> api::Problem {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json", "{self:?}");
        let problem: api::Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status.as_u16());
        problem
    }
}

struct Cluster {
    dir: PathBuf,
    bin: PathBuf,
    as_root: bool,
}

/// The running cluster, started if none runs. `None` where it is switched off.
fn cluster() -> Option<Arc<Cluster>> {
    static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    if std::env::var("ANDON_TEST_POSTGRES").is_ok_and(|v| v == "off") {
        eprintln!("ANDON_TEST_POSTGRES=off: not tested on PostgreSQL");
        return None;
    }
    let mut current = CLUSTER.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(running) = current.upgrade() {
        return Some(running);
    }
    let started = Arc::new(Cluster::start());
    *current = Arc::downgrade(&started);
    Some(started)
}

impl Cluster {
    fn start() -> Self {
        let bin = std::fs::read_dir("/usr/lib/postgresql")
            .ok()
            .and_then(|versions| versions.flatten().map(|v| v.path().join("bin")).max())
            .expect("PostgreSQL is not installed (Debian: apt install postgresql); or set ANDON_TEST_POSTGRES=off");
        // The owner of /proc/self is who we are.
        let as_root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0;
        let dir = std::env::temp_dir()
            .join(format!("andon-pg-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]));
        std::fs::create_dir(&dir).unwrap();
        let cluster = Self { dir, bin, as_root };
        if as_root {
            run(Command::new("chown").arg("postgres").arg(&cluster.dir));
        }
        let data = cluster.dir.join("data");
        run(cluster.command("initdb").args(["-A", "trust", "-U", "postgres", "-N", "-D"]).arg(&data));
        // No TCP; nothing here must outlive a crash, so nothing is synced.
        let options = format!(
            "-c listen_addresses= -c unix_socket_directories={} -c fsync=off -c max_connections=300",
            cluster.dir.display()
        );
        run(cluster
            .command("pg_ctl")
            .args(["-w", "-t", "60", "-D"])
            .arg(&data)
            .arg("-o")
            .arg(options)
            .arg("-l")
            .arg(cluster.dir.join("log"))
            .arg("start"));
        cluster
    }

    /// PostgreSQL refuses to run as root.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        if self.as_root {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program).current_dir(&self.dir);
            command
        } else {
            Command::new(program)
        }
    }

    fn psql(&self, sql: &str) {
        run(self
            .command("psql")
            .args(["-q", "-U", "postgres", "-d", "postgres", "-c", sql, "-h"])
            .arg(&self.dir));
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost/{database}?host={}", Path::new(&self.dir).display())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        run(self.command("pg_ctl").args(["-m", "immediate", "-D"]).arg(self.dir.join("data")).arg("stop"));
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn run(command: &mut Command) {
    // To a file, not a pipe: the server that pg_ctl starts would keep the pipe open.
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.as_ref().is_ok_and(|s| s.success()), "{command:?}: {status:?}");
}
