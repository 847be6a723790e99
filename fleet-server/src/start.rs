//! From configuration to a running server, and back. The order matters: what devices and people may ask for exists
//! before their listener is up, and `addresses.json` appears last.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use anyhow::Context as _;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use andon_protocol::api::Role;

use crate::{
    api,
    app::{Addresses, App, Parts, Paths, Wake},
    audit,
    auth::{self, Guards},
    blobs::LocalBlobs,
    clock::Clock,
    config::{Config, broker_address},
    db::{Db, word},
    device_api,
    files::{self, Privacy},
    housekeeping, ingest, listen,
    live::Live,
    mqtt::{Broker, Mqtt, Outgoing},
    pki::{self, Ca, Identity},
    releases, rollouts, training, tuf,
};

const PEOPLE_CONNECTIONS_MAX: usize = 2000;
const PEM_BYTES_MAX: u64 = 256 * 1024;

/// What is not in the configuration file.
#[derive(Debug, Default)]
pub struct Options {
    /// Of `admin`, at the first start. Made and printed if not given.
    pub admin_password: Option<String>,
}

pub struct Running {
    pub app: App,
    tasks: Vec<JoinHandle<()>>,
    /// Held as long as the server runs: two servers on one data folder would destroy it.
    _lock: File,
}

impl Running {
    /// Ends connections and tasks in order.
    pub async fn stop(self) {
        self.app.shutdown.cancel();
        for task in self.tasks {
            let abort = task.abort_handle();
            if tokio::time::timeout(std::time::Duration::from_secs(8), task).await.is_err() {
                abort.abort();
            }
        }
        self.app.db.close().await;
    }
}

pub async fn start(config: Config, options: Options) -> anyhow::Result<Running> {
    let clock = Clock::System;
    let paths = Paths::new(&config.data_dir);
    let lock = prepare_folders(&paths).with_context(|| format!("data_dir {}", config.data_dir.display()))?;
    let db = Db::open(&config.database.url, &config.data_dir).await?;
    let ca = Ca::open_or_create(&paths.keys(), clock.now_ms())?;
    let people_tls = people_tls(&config)?;
    let (mqtt, outgoing) = Mqtt::new();
    let app = App::new(Parts {
        blobs: Arc::new(LocalBlobs::open(&paths.blobs())?),
        auth: Guards::new(people_tls.is_some()),
        paths,
        db,
        clock,
        live: Live::default(),
        mqtt,
        wake: Wake::default(),
        ca,
        tuf: tuf::Handle::default(),
        uploads: Default::default(),
        addresses: OnceLock::new(),
        shutdown: CancellationToken::new(),
        config,
    });
    create_admin(&app, options.admin_password).await?;
    // Until the broker says otherwise.
    sqlx::query("UPDATE device SET online = 0 WHERE online <> 0").execute(app.db.writer()).await?;
    tuf::prepare(&app).await.context("update repository")?;
    releases::prepare(&app).await?;
    let tasks = match serve(&app, people_tls, outgoing).await {
        Ok(tasks) => tasks,
        Err(error) => {
            app.shutdown.cancel();
            return Err(error);
        }
    };
    Ok(Running { app, tasks, _lock: lock })
}

async fn serve(
    app: &App,
    people_tls: Option<rustls::ServerConfig>,
    outgoing: mpsc::Receiver<Outgoing>,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let config = &app.config;
    let identity = server_identity(app)?;
    let devices_tls = listen::tls_config(&identity.chain_pem, &identity.key_pem, Some(app.ca.der()))?;
    let (people, people_address) = listen::bind(config.people.listen).await?;
    let (devices, devices_address) = listen::bind(config.devices.listen).await?;
    let mut tasks = Vec::new();
    let (broker, mqtt_address) = broker(app, &mut tasks).await?;
    let scheme = if people_tls.is_some() { "https" } else { "http" };
    let host = bracketed(&config.public_host);
    let addresses = Addresses {
        people: format!("{scheme}://{people_address}"),
        devices: format!("https://{host}:{}", devices_address.port()),
        mqtt: mqtt_address,
    };
    tracing::info!(
        people = addresses.people,
        devices = addresses.devices,
        mqtt = addresses.mqtt,
        "listening"
    );
    let json = serde_json::to_vec_pretty(&addresses)?;
    app.addresses.set(addresses).map_err(|_| anyhow::anyhow!("the server was started twice"))?;

    let stop = || app.shutdown.clone();
    let people_router = api::router(app.clone());
    tasks.push(listen::serve(people, people_tls, people_router, PEOPLE_CONNECTIONS_MAX, stop()));
    let device_router = device_api::router(app.clone());
    tasks.push(listen::serve(
        devices,
        Some(devices_tls),
        device_router,
        config.devices.connections_max,
        stop(),
    ));
    tasks.extend(ingest::start(app, broker, outgoing));
    tasks.push(housekeeping::start(app));
    releases::start(app);
    rollouts::start(app);
    training::start(app);
    files::write_atomically(&app.paths.addresses(), &json, Privacy::Readable)?;
    Ok(tasks)
}

/// Makes the folders, takes the lock and removes what a run before left for us to misread.
fn prepare_folders(paths: &Paths) -> io::Result<File> {
    for folder in [paths.data().to_owned(), paths.keys(), paths.tuf(), paths.uploads(), paths.queue()] {
        files::create_dir(&folder)?;
    }
    let lock = File::create(paths.data().join("lock"))?;
    lock.try_lock().map_err(|e| match e {
        std::fs::TryLockError::WouldBlock => io::Error::other("another server uses this folder"),
        std::fs::TryLockError::Error(e) => e,
    })?;
    let _ = std::fs::remove_file(paths.addresses());
    let _ = std::fs::remove_dir_all(paths.scratch());
    files::create_dir(&paths.scratch())?;
    Ok(lock)
}

fn people_tls(config: &Config) -> anyhow::Result<Option<rustls::ServerConfig>> {
    let (Some(cert), Some(key)) = (&config.people.cert, &config.people.key) else { return Ok(None) };
    let tls =
        listen::tls_config(&read_pem(cert)?, &read_pem(key)?, None).context("people.cert, people.key")?;
    Ok(Some(tls))
}

fn read_pem(path: &std::path::Path) -> anyhow::Result<String> {
    let bytes = files::read_bounded(path, PEM_BYTES_MAX).with_context(|| path.display().to_string())?;
    String::from_utf8(bytes).with_context(|| path.display().to_string())
}

/// A fresh certificate for the listeners at every start, under every name that a client may use.
fn server_identity(app: &App) -> anyhow::Result<Identity> {
    let config = &app.config;
    let mut names = vec![config.public_host.clone(), "localhost".into(), "127.0.0.1".into()];
    names.extend(
        [config.devices.listen, config.mqtt.listen]
            .map(|a| a.ip())
            .iter()
            .filter(|ip| !ip.is_unspecified())
            .map(IpAddr::to_string),
    );
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let identity = app.ca.server_identity(&names, app.now_ms())?;
    let keys = app.paths.keys();
    pki::write(&keys.join("server.pem"), &identity.chain_pem, Privacy::Readable)?;
    pki::write(&keys.join("server.key"), &identity.key_pem, Privacy::Secret)?;
    Ok(identity)
}

/// Where the server and the devices find the broker; the embedded one is started.
async fn broker(app: &App, tasks: &mut Vec<JoinHandle<()>>) -> anyhow::Result<(Broker, String)> {
    let config = &app.config;
    if config.mqtt.broker != "embedded" {
        let (host, port) = broker_address(&config.mqtt.broker).map_err(anyhow::Error::msg)?;
        let tls = match (&config.mqtt.ca, &config.mqtt.cert, &config.mqtt.key) {
            (Some(ca), Some(cert), Some(key)) => {
                client_tls(&read_pem(ca)?, &Identity { chain_pem: read_pem(cert)?, key_pem: read_pem(key)? })?
            }
            _ => client_tls(app.ca.pem(), &app.ca.client_identity(app.now_ms())?)?,
        };
        let address = format!("{}:{port}", bracketed(&host));
        return Ok((Broker { host, port, tls }, address));
    }
    let bound = embedded_broker(app, tasks).await?;
    let identity = app.ca.client_identity(app.now_ms())?;
    let tls = client_tls(app.ca.pem(), &identity)?;
    let ip = match bound.ip() {
        ip if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        ip => ip,
    };
    let broker = Broker { host: ip.to_string(), port: bound.port(), tls };
    Ok((broker, format!("{}:{}", bracketed(&config.public_host), bound.port())))
}

#[cfg(feature = "embedded-broker")]
async fn embedded_broker(app: &App, tasks: &mut Vec<JoinHandle<()>>) -> anyhow::Result<SocketAddr> {
    let keys = app.paths.keys();
    let (chain, key, ca) = (keys.join("server.pem"), keys.join("server.key"), keys.join("ca.pem"));
    let files = crate::broker::Files { chain: &chain, key: &key, ca: &ca };
    let mqtt = &app.config.mqtt;
    let (address, task) =
        crate::broker::start(mqtt.listen, mqtt.connections_max, files, app.db.clone(), app.shutdown.clone())
            .await?;
    tasks.push(task);
    Ok(address)
}

#[cfg(not(feature = "embedded-broker"))]
async fn embedded_broker(_: &App, _: &mut Vec<JoinHandle<()>>) -> anyhow::Result<SocketAddr> {
    anyhow::bail!("this build has no embedded broker; set mqtt.broker")
}

/// TLS towards the broker: trusts `ca_pem` alone.
pub fn client_tls(ca_pem: &str, identity: &Identity) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.context("CA certificate")?)?;
    }
    let chain: Vec<_> = CertificateDer::pem_slice_iter(identity.chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("client certificate")?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).context("client key")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// An IPv6 address needs brackets before a port.
fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// The first account, where there is none.
async fn create_admin(app: &App, password: Option<String>) -> anyhow::Result<()> {
    let people: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM person").fetch_one(app.db.reader()).await?;
    if people > 0 {
        return Ok(());
    }
    let given = password.is_some();
    let password = password.unwrap_or_else(|| auth::secret()[..20].to_owned());
    let allowed = auth::password::BYTES_MIN..=auth::password::BYTES_MAX;
    anyhow::ensure!(
        allowed.contains(&password.len()),
        "the admin's password has {} bytes, allowed are {} to {}",
        password.len(),
        allowed.start(),
        allowed.end()
    );
    let hash = {
        let password = password.clone();
        tokio::task::spawn_blocking(move || auth::password::hash(&password)).await??
    };
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    sqlx::query("INSERT INTO person (name, role, password_hash, created_ms) VALUES ('admin', $1, $2, $3)")
        .bind(word(&Role::Admin))
        .bind(hash)
        .bind(now_ms)
        .execute(&mut *tx)
        .await?;
    audit::record(&mut tx, now_ms, "server", "person.create", "admin", "first start").await?;
    tx.commit().await?;
    if !given {
        println!("First start: log in as \"admin\" with the password {password} (not shown again).");
    }
    Ok(())
}

/// `broker-certificate`: what a broker outside needs to be trusted by devices and to know them, as `broker.pem`,
/// `broker.key` and `ca.pem` in `out`.
pub fn broker_certificate(config: &Config, host: &str, out: &std::path::Path) -> anyhow::Result<()> {
    let paths = Paths::new(&config.data_dir);
    files::create_dir(&paths.keys()).with_context(|| format!("data_dir {}", config.data_dir.display()))?;
    let now_ms = Clock::System.now_ms();
    let ca = Ca::open_or_create(&paths.keys(), now_ms)?;
    let identity = ca.server_identity(&[host.to_owned()], now_ms)?;
    files::create_dir(out).with_context(|| out.display().to_string())?;
    pki::write(&out.join("broker.pem"), &identity.chain_pem, Privacy::Readable)?;
    pki::write(&out.join("broker.key"), &identity.key_pem, Privacy::Secret)?;
    pki::write(&out.join("ca.pem"), ca.pem(), Privacy::Readable)?;
    Ok(())
}

/// `verify-audit`.
pub async fn verify_audit(config: &Config) -> anyhow::Result<()> {
    let db = Db::open(&config.database.url, &config.data_dir).await?;
    match audit::verify(&db).await? {
        audit::Verdict::Whole { entries } => {
            println!("The audit trail is whole: {entries} entries.");
            Ok(())
        }
        audit::Verdict::Broken { seq } => anyhow::bail!("the audit trail is broken at entry {seq}"),
    }
}
