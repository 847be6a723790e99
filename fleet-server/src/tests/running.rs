//! A whole server on ephemeral ports with SQLite and the embedded broker, and a device made of `reqwest` and `rumqttc`.

use std::{sync::Arc, time::Duration};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use reqwest::{Client, StatusCode};
use rumqttc::{
    TlsConfiguration, Transport,
    v5::{
        AsyncClient, Event, EventLoop, Incoming, MqttOptions,
        mqttbytes::{QoS, v5::LastWill},
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use andon_protocol::{
    BootId, DeviceId, Digest,
    ack::{Ack, SampleState},
    api::EnrolResponse,
    codec::Wire,
    decode, encode,
    sample::{CHUNK_BYTES, Reason, SampleChunk, SampleManifest},
    state::{Desired, Status},
    telemetry::{Body, DriftState, Record, TelemetryBatch, Window},
    topics::{self, Channel},
};

use crate::{
    app::Addresses,
    config::Config,
    pki::Identity,
    start::{self, Options, Running, client_tls},
};

/// For answers that must come; nothing waits this long where all is well.
const LONG: Duration = Duration::from_secs(20);
const PASSWORD: &str = "for this test";

struct Server {
    running: Running,
    addresses: Addresses,
    people: Client,
    dir: TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), "listen = \"127.0.0.1:0\"").await
    }

    async fn start_with(dir: TempDir, mqtt: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let options = Options { admin_password: Some(PASSWORD.into()) };
        let running = start::start(config(&dir, mqtt), options).await.unwrap();
        let written = std::fs::read(dir.path().join("addresses.json")).unwrap();
        let addresses: Addresses = serde_json::from_slice(&written).unwrap();
        let people = Client::builder().cookie_store(true).build().unwrap();
        let login = json!({"user": "admin", "password": PASSWORD});
        let url = format!("{}/api/v1/session", addresses.people);
        let reply = people.post(url).json(&login).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::NO_CONTENT);
        Self { running, addresses, people, dir }
    }

    async fn get(&self, path: &str) -> Value {
        let reply = self.people.get(format!("{}/api/v1{path}", self.addresses.people)).send().await.unwrap();
        assert!(reply.status().is_success(), "{path}: {}", reply.status());
        reply.json().await.unwrap()
    }

    async fn status(&self, path: &str) -> StatusCode {
        self.people.get(format!("{}/api/v1{path}", self.addresses.people)).send().await.unwrap().status()
    }

    async fn enrolment_token(&self, device: &str) -> String {
        let new = json!({"device": device, "site": "north", "line": "1"});
        let request = self.people.post(format!("{}/api/v1/enrolments", self.addresses.people)).json(&new);
        let reply = request.header("sec-fetch-site", "same-origin").send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::CREATED);
        reply.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned()
    }

    async fn enrol(&self, device: &str) -> Device {
        let token = self.enrolment_token(device).await;
        let (csr_pem, key_pem) = csr(device);
        let reply = self.post_enrol(&token, &csr_pem).await;
        assert_eq!(reply.status(), StatusCode::OK);
        Device { key_pem, response: reply.json().await.unwrap() }
    }

    async fn post_enrol(&self, token: &str, csr_pem: &str) -> reqwest::Response {
        let url = format!("{}/device/v1/enrol", self.addresses.devices);
        self.https(None).post(url).json(&json!({"token": token, "csr_pem": csr_pem})).send().await.unwrap()
    }

    /// Trusts the fleet's CA alone.
    fn https(&self, device: Option<&Device>) -> Client {
        let ca = reqwest::Certificate::from_pem(self.running.app.ca.pem().as_bytes()).unwrap();
        let mut builder = Client::builder().tls_certs_only([ca]);
        if let Some(device) = device {
            let pem = format!("{}{}", device.response.certificate_pem, device.key_pem);
            builder = builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
        }
        builder.build().unwrap()
    }
}

fn config(dir: &TempDir, mqtt: &str) -> Config {
    let text = format!(
        "data_dir = {:?}\n[people]\nlisten = \"127.0.0.1:0\"\n[devices]\nlisten = \"127.0.0.1:0\"\n\
         [mqtt]\n{mqtt}\n[training]\nworkers = 0",
        dir.path()
    );
    toml::from_str(&text).unwrap()
}

fn csr(name: &str) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.serialize_request(&key).unwrap().pem().unwrap(), key.serialize_pem())
}

struct Device {
    response: EnrolResponse,
    key_pem: String,
}

impl Device {
    fn id(&self) -> &DeviceId {
        &self.response.device
    }

    fn options(&self, client_id: &str) -> MqttOptions {
        let identity =
            Identity { chain_pem: self.response.certificate_pem.clone(), key_pem: self.key_pem.clone() };
        let tls = client_tls(&self.response.ca_pem, &identity).unwrap();
        let mut options =
            MqttOptions::new(client_id, self.response.mqtt_host.clone(), self.response.mqtt_port);
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)))
            .set_outgoing_inflight_upper_limit(16)
            .set_max_packet_size(Some(128 * 1024))
            .set_connection_timeout(LONG.as_secs());
        options
    }

    /// Connected, subscribed and online.
    async fn connect(&self) -> Connection {
        let mut options = self.options(self.id().as_str());
        let gone = encode(&Status { online: false, boot: None });
        let status = topics::topic(self.id(), Channel::Status);
        options.set_last_will(LastWill::new(&*status, gone, QoS::AtLeastOnce, true, None));
        let (client, events) = AsyncClient::new(options, 64);
        let mut connection = Connection { device: self.id().clone(), client, events };
        connection.client.try_subscribe(topics::down_filter(self.id()), QoS::AtLeastOnce).unwrap();
        connection.publish(Channel::Status, &Status { online: true, boot: None });
        connection
    }
}

struct Connection {
    device: DeviceId,
    client: AsyncClient,
    events: EventLoop,
}

impl Connection {
    fn publish<T: Wire>(&mut self, channel: Channel, message: &T) {
        let topic = topics::topic(&self.device, channel);
        let retain = channel == Channel::Status;
        self.client.try_publish(topic, QoS::AtLeastOnce, retain, encode(message)).unwrap();
    }

    /// The next message of `channel`.
    async fn next<T: Wire>(&mut self, channel: Channel) -> T {
        let topic = topics::topic(&self.device, channel);
        let wait = async {
            loop {
                if let Event::Incoming(Incoming::Publish(publish)) = self.events.poll().await.unwrap()
                    && *publish.topic == *topic.as_bytes()
                {
                    return decode(&publish.payload).unwrap();
                }
            }
        };
        tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("no message on {topic}"))
    }

    /// The next answer about a sample.
    async fn sample_answer(&mut self, digest: Digest) -> SampleState {
        loop {
            let ack: Ack = self.next(Channel::Ack).await;
            if let Some(answer) = ack.samples.into_iter().find(|s| s.digest == digest) {
                return answer.state;
            }
        }
    }

    /// Whether the broker closes the connection, or refuses it.
    async fn is_closed(&mut self) -> bool {
        let wait = async {
            loop {
                match self.events.poll().await {
                    Err(_) | Ok(Event::Incoming(Incoming::Disconnect(_))) => return,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(LONG, wait).await.is_ok()
    }
}

/// A PNG of noise, so that it stays as large as it is.
fn noise_png(side: u32) -> Vec<u8> {
    let mut state = 1u32;
    let pixels = (0..side * side).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let image = image::GrayImage::from_raw(side, side, pixels.collect()).unwrap();
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

fn manifest(content: &[u8]) -> SampleManifest {
    SampleManifest {
        digest: Digest::of(content),
        size: content.len() as u64,
        content_type: "image/png".into(),
        captured_ms: 1,
        boot: BootId::from_random([7; 16]),
        frame: 3,
        source: "cell0001.png".into(),
        release: "solar-cell/1".parse().unwrap(),
        reason: Reason::Uncertain,
        inclusion_probability: 0.25,
        predicted: 1,
        scores: vec![0.4, 0.6],
        drift: DriftState::Alarm,
        projection: vec![0.5; 32],
        stats: vec![0.0; 6],
        dhash: u64::MAX,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_enrols_and_everything_it_sends_is_acknowledged_when_it_is_durable() {
    let server = Server::start().await;
    let device = server.enrol("line-1").await;
    assert_eq!(server.get("/devices/line-1").await["online"], false);

    let mut connection = device.connect().await;
    let desired: Desired = connection.next(Channel::Desired).await;
    assert_eq!(desired, Desired::default());

    // Telemetry, twice: acknowledged twice, stored once.
    let boot = BootId::from_random([7; 16]);
    let window = Window { frames: 25, drift: DriftState::Armed, ..Window::default() };
    let records = vec![Record { at_ms: 1000, body: Body::Window(window) }];
    let batch = TelemetryBatch { boot: boot.clone(), first_seq: 5, records };
    for _ in 0..2 {
        connection.publish(Channel::Telemetry, &batch);
        let ack: Ack = connection.next(Channel::Ack).await;
        assert_eq!((ack.telemetry[0].first_seq, ack.telemetry[0].last_seq), (5, 5));
        let stored = server.get("/devices/line-1/telemetry").await;
        assert_eq!(stored["items"].as_array().unwrap().len(), 1);
    }
    let shown = server.get("/devices/line-1").await;
    assert_eq!((&shown["online"], &shown["drift"]), (&json!(true), &json!("armed")));

    // A sample of four chunks, repeated and out of order.
    let content = noise_png(450);
    assert_eq!(content.len().div_ceil(CHUNK_BYTES), 4, "{} bytes", content.len());
    let manifest = manifest(&content);
    let digest = manifest.digest;
    connection.publish(Channel::Manifest, &manifest);
    assert_eq!(connection.sample_answer(digest).await, SampleState::Need { missing: vec![(0, 4)] });
    for index in [3, 0, 0, 2] {
        connection.publish(Channel::Chunk, &SampleChunk::cut(digest, &content, index));
    }
    // Asking again says what is missing, and that nothing is acknowledged before all is there.
    connection.publish(Channel::Manifest, &manifest);
    assert_eq!(connection.sample_answer(digest).await, SampleState::Need { missing: vec![(1, 2)] });
    assert_eq!(server.status(&format!("/samples/{digest}")).await, StatusCode::NOT_FOUND);
    connection.publish(Channel::Chunk, &SampleChunk::cut(digest, &content, 1));
    assert_eq!(connection.sample_answer(digest).await, SampleState::Done);
    let hex = digest.to_string();
    let blob = server.dir.path().join("blobs").join(&hex[..2]).join(&hex[2..]);
    assert_eq!(std::fs::read(blob).unwrap(), content);
    let sample = server.get(&format!("/samples/{digest}")).await;
    assert_eq!((&sample["device"], &sample["source"]), (&json!("line-1"), &json!("cell0001.png")));
    let url = format!("{}/api/v1/samples/{digest}/image", server.addresses.people);
    let image = server.people.get(url).send().await.unwrap();
    assert_eq!(image.headers()["content-type"], "image/png");
    assert_eq!(image.bytes().await.unwrap(), content);
    for late in [0, 1] {
        connection.publish(Channel::Chunk, &SampleChunk::cut(digest, &content, late));
        assert_eq!(connection.sample_answer(digest).await, SampleState::Done);
    }
    connection.publish(Channel::Manifest, &manifest);
    assert_eq!(connection.sample_answer(digest).await, SampleState::Done);

    // The will says that it is gone.
    drop(connection);
    let offline = async {
        while server.get("/devices/line-1").await["online"] == true {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, offline).await.unwrap();
    server.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_a_certificate_or_speaks_for_another() {
    let server = Server::start().await;
    let (one, two) = (server.enrol("line-1").await, server.enrol("line-2").await);

    let mut foreign = one.connect().await;
    foreign.next::<Desired>(Channel::Desired).await;
    foreign.device = two.id().clone();
    foreign.publish(Channel::Status, &Status { online: true, boot: None });
    assert!(foreign.is_closed().await, "a foreign topic is accepted");
    assert_eq!(server.get("/devices/line-2").await["online"], false);

    let connection = |options: MqttOptions| {
        let (client, events) = AsyncClient::new(options, 8);
        Connection { device: one.id().clone(), client, events }
    };
    assert!(connection(one.options("line-2")).is_closed().await, "another client id is accepted");

    let mut bare = one.options("line-1");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.running.app.ca.der().clone()).unwrap();
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    bare.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))));
    assert!(connection(bare).is_closed().await, "no certificate is accepted");

    // Enrolling again replaces the certificate everywhere.
    let url = format!("{}/tuf/metadata/1.root.json", one.response.updates_url);
    let read = |device: Option<&Device>| server.https(device).get(url.clone()).send();
    assert_eq!(read(None).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(read(Some(&one)).await.unwrap().status(), StatusCode::OK);
    let again = server.enrol("line-1").await;
    assert_eq!(read(Some(&one)).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert!(connection(one.options("line-1")).is_closed().await, "a replaced certificate is accepted");
    let part = server.https(Some(&again)).get(url.clone()).header("range", "bytes=1-4").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap(), one.response.tuf_root.as_bytes()[1..5]);
    let outside = format!("{}/tuf/metadata/..%2f..%2fkeys%2fca.key", one.response.updates_url);
    assert_eq!(server.https(Some(&again)).get(outside).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    server.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_enrols_its_device_once() {
    let server = Server::start().await;
    let token = server.enrolment_token("line-1").await;
    let (other, _) = csr("line-2");
    assert_eq!(server.post_enrol(&token, &other).await.status(), StatusCode::BAD_REQUEST);
    let (good, _) = csr("line-1");
    assert_eq!(server.post_enrol("andon1.x.y", &good).await.status(), StatusCode::BAD_REQUEST);
    let guess = format!("andon1.{}.{}", "A".repeat(43), server.running.app.ca.digest());
    assert_eq!(server.post_enrol(&guess, &good).await.status(), StatusCode::UNAUTHORIZED);
    // Both at once: one wins.
    let (a, b) = tokio::join!(server.post_enrol(&token, &good), server.post_enrol(&token, &good));
    let mut statuses = [a.status(), b.status()];
    statuses.sort();
    assert_eq!(statuses, [StatusCode::OK, StatusCode::UNAUTHORIZED]);
    server.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_peers_stop_nobody() {
    let server = Server::start().await;
    let device = server.enrol("line-1").await;
    let mut silent = Vec::new();
    for address in [
        &server.addresses.people["http://".len()..],
        &server.addresses.devices["https://".len()..],
        &server.addresses.mqtt,
    ] {
        for _ in 0..20 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
    }
    device.connect().await.next::<Desired>(Channel::Desired).await;
    let (csr_pem, _) = csr("line-2");
    let token = server.enrolment_token("line-2").await;
    assert_eq!(server.post_enrol(&token, &csr_pem).await.status(), StatusCode::OK);
    server.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_comes_back_to_its_folder_and_its_ports() {
    let server = Server::start().await;
    let device = server.enrol("line-1").await;
    let mut connection = device.connect().await;
    connection.next::<Desired>(Channel::Desired).await;
    assert!(
        start::start(config(&server.dir, "listen = \"127.0.0.1:0\""), Options::default()).await.is_err(),
        "two servers"
    );
    let Server { running, addresses, dir, .. } = server;
    running.stop().await;
    drop(connection);
    // The port has connections that the server closed, which still count as used.
    let again = Server::start_with(dir, &format!("listen = {:?}", addresses.mqtt)).await;
    assert_eq!(again.addresses.mqtt, addresses.mqtt);
    device.connect().await.next::<Desired>(Channel::Desired).await;
    again.running.stop().await;
}

/// Debian's mosquitto with the configuration that ships, on another port and other paths.
struct Mosquitto {
    child: std::process::Child,
    conf: std::path::PathBuf,
}

impl Mosquitto {
    async fn start(folder: &std::path::Path, port: u16) -> Self {
        let text = include_str!("../../mosquitto/mosquitto.conf")
            .replace("/etc/mosquitto/andon", folder.to_str().unwrap())
            .replace("listener 8883", &format!("listener {port} 127.0.0.1\nuser root"));
        std::fs::write(folder.join("acl"), include_str!("../../mosquitto/acl")).unwrap();
        let conf = folder.join("mosquitto.conf");
        std::fs::write(&conf, text).unwrap();
        let broker = Self { child: Self::spawn(&conf), conf };
        broker.up(port).await;
        broker
    }

    fn spawn(conf: &std::path::Path) -> std::process::Child {
        let mut command = std::process::Command::new("/usr/sbin/mosquitto");
        let quiet = std::process::Stdio::null;
        command.arg("-c").arg(conf).stdout(quiet()).stderr(quiet());
        command.spawn().expect("mosquitto is not installed (Debian: apt install mosquitto)")
    }

    async fn up(&self, port: u16) {
        let up = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, up).await.expect("mosquitto does not listen");
    }

    /// As a power cut would.
    async fn restart(&mut self, port: u16) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.conf);
        self.up(port).await;
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_outside_does_as_well_and_may_forget_everything() {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mqtt = format!("broker = \"mqtts://127.0.0.1:{port}\"");
    let folder = dir.path().join("broker");
    start::broker_certificate(&config(&dir, &mqtt), "127.0.0.1", &folder).unwrap();
    let mut mosquitto = Mosquitto::start(&folder, port).await;
    let server = Server::start_with(dir, &mqtt).await;
    let device = server.enrol("line-1").await;
    assert_eq!(device.response.mqtt_port, port);
    for first_seq in [0, 1] {
        let mut connection = device.connect().await;
        // The server's subscription came first, or it would not answer; after the restart it had to come again.
        connection.next::<Desired>(Channel::Desired).await;
        let records = vec![Record { at_ms: 1, body: Body::Window(Window::default()) }];
        let boot = BootId::from_random([1; 16]);
        connection.publish(Channel::Telemetry, &TelemetryBatch { boot, first_seq, records });
        let ack: Ack = connection.next(Channel::Ack).await;
        assert_eq!(ack.telemetry[0].last_seq, first_seq);
        mosquitto.restart(port).await;
    }
    server.running.stop().await;
}
