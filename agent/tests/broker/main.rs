//! The uplink against a real broker, Debian's mosquitto, with mutual TLS: killed without warning in the middle of an
//! upload and started again with nothing remembered. What the server stored must be what was captured, and the spool
//! must forget nothing that the server has not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fleet;
mod mosquitto;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use andon_agent::{
    clock::{Clock, SystemClock},
    files::SystemDisk,
    spool::{Budget, Spool, Value},
    uplink::{Settings, Stats, Uplink},
};
use andon_protocol::{
    BootId, Digest,
    sample::{Reason, SampleManifest},
    state::{Desired, Reported, SpoolReport},
    telemetry::{Body, DriftState, Event, Record, Window},
};
use fleet::Fleet;
use mosquitto::{Certificates, Mosquitto};
use tokio::sync::{Notify, watch};

const DEVICE: &str = "line-1";
const RECORDS: u32 = 700;
/// The broker is killed once in each.
const ROUNDS: u32 = 3;
/// New ones of a round: some thirteen chunks, so that more than [`CHUNKS_BEFORE_DEATH`] come and some are left.
const SAMPLES: u32 = 4;
const CHUNKS_BEFORE_DEATH: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);

struct Device {
    spool: Arc<Spool>,
    stats: Arc<Stats>,
    desired: Arc<Mutex<Vec<Desired>>>,
    stop: watch::Sender<bool>,
    wake: Arc<Notify>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Device {
    fn start(spool: Arc<Spool>, boot: &BootId, certificates: &Certificates, port: u16) -> Self {
        let identity = certificates.identity(DEVICE, port);
        let (stop, stopped) = watch::channel(false);
        let (reported, reported_seen) = watch::channel(None);
        let reported_state = Reported {
            boot: boot.clone(),
            agent_version: "test".into(),
            generation: 7,
            active: None,
            previous: None,
            update: None,
            drift: DriftState::Armed,
            spool: SpoolReport::default(),
        };
        let _ = reported.send(Some(reported_state));
        let stats = Arc::new(Stats::default());
        let desired = Arc::new(Mutex::new(Vec::new()));
        let wake = Arc::new(Notify::new());
        let uplink = Uplink {
            tls: identity.tls().unwrap(),
            identity,
            boot: boot.clone(),
            clock: Arc::new(SystemClock::new()),
            spool: spool.clone(),
            reported: reported_seen,
            desired: Box::new({
                let desired = desired.clone();
                move |d| desired.lock().unwrap().push(d)
            }),
            wake: wake.clone(),
            stop: stopped,
            settings: Settings {
                resend: Duration::from_secs(2),
                backoff_min: Duration::from_millis(20),
                backoff_max: Duration::from_millis(200),
                keep_alive: Duration::from_secs(5),
            },
            stats: stats.clone(),
        };
        let thread = std::thread::spawn(move || {
            let _reported = reported;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(uplink.run());
        });
        Self { spool, stats, desired, stop, wake, thread: Some(thread) }
    }

    fn stop(mut self) {
        let _ = self.stop.send(true);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn open_spool(folder: &std::path::Path, boot: &BootId) -> Arc<Spool> {
    let budget = Budget { bytes_max: 256 << 20, files_max: 1000 };
    let (spool, _) =
        Spool::open(folder, boot.clone(), budget, Arc::new(SystemDisk), Arc::new(SystemClock::new()))
            .unwrap();
    Arc::new(spool)
}

fn record(n: u32) -> Record {
    let body = match n % 50 {
        0 => Body::Event(Event::Fault { what: format!("fault {n}") }),
        _ => Body::Window(Window { frames: n, ..Window::default() }),
    };
    Record { at_ms: i64::from(n), body }
}

fn sample(n: u32, boot: &BootId) -> (SampleManifest, Vec<u8>) {
    let image: Vec<u8> =
        (0..150_000 + n * 20_000).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ n as u8).collect();
    let manifest = SampleManifest {
        digest: Digest::of(&image),
        size: image.len() as u64,
        content_type: "image/png".into(),
        captured_ms: i64::from(n),
        boot: boot.clone(),
        frame: u64::from(n),
        source: format!("cell{n}.png"),
        release: "solar-cell/1".parse().unwrap(),
        reason: Reason::Random,
        inclusion_probability: 0.5,
        predicted: 0,
        scores: vec![0.9, 0.1],
        drift: DriftState::Armed,
        projection: vec![],
        stats: vec![],
        dhash: 0,
    };
    (manifest, image)
}

/// Polls; a time limit, never a sleep that must be long enough.
#[track_caller]
fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let clock = SystemClock::new();
    while !happened() {
        assert!(clock.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_is_lost_when_the_broker_is_killed_in_the_middle_of_an_upload() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new();
    let mut broker = Mosquitto::start(folder.path(), &certificates);
    let fleet = Fleet::start(&certificates, broker.port());

    let boot = BootId::from_random([5; 16]);
    let spool = open_spool(&folder.path().join("spool"), &boot);
    spool.append((0..RECORDS).map(record).collect()).unwrap();
    let device = Device::start(spool, &boot, &certificates, broker.port());

    let mut images = BTreeMap::new();
    for round in 0..ROUNDS {
        // Each round has an upload of its own: what the rounds before left may be through before this one looks.
        let before = fleet.stored().chunks_received;
        for n in round * SAMPLES..(round + 1) * SAMPLES {
            let (manifest, image) = sample(n, &boot);
            assert!(device.spool.put_sample(Value::Useful, &manifest, &image).unwrap());
            images.insert(manifest.digest, image);
        }
        device.wake.notify_one();
        let came = || fleet.stored().chunks_received - before;
        wait_until(&format!("chunks of round {round}"), || came() >= CHUNKS_BEFORE_DEATH);
        broker.kill();
        check_nothing_forgotten_too_early(&device, &fleet, images.len(), &format!("round {round}"));
        broker = broker.restart();
    }
    wait_until("everything is acknowledged", || {
        let SpoolReport { records, samples, .. } = device.spool.report();
        (records, samples) == (0, 0)
    });
    let stored = fleet.stored();
    assert_eq!(stored.samples, images, "what the server has is what was captured");
    let expected: BTreeMap<_, _> = (0..RECORDS).map(|n| ((boot.clone(), u64::from(n)), record(n))).collect();
    assert!(stored.records == expected, "{} of {} records", stored.records.len(), expected.len());
    assert_eq!(stored.contradictions, 0, "a repeated record is the same record");
    assert!(device.stats.sessions.load(Ordering::Relaxed) >= 4);

    // A desired state that the broker retains arrives, now and after the next connection; the report goes up.
    fleet.publish_desired(DEVICE, &Desired { generation: 3, ..Desired::default() });
    wait_until("the desired state", || device.desired.lock().unwrap().iter().any(|d| d.generation == 3));
    wait_until("the report", || fleet.stored().reported.as_ref().is_some_and(|r| r.generation == 7));

    // New things wake the uplink; an orderly stop says farewell.
    device.spool.append(vec![record(RECORDS)]).unwrap();
    device.wake.notify_one();
    wait_until("the newest record", || device.spool.report().records == 0);
    wait_until("the status", || fleet.stored().online == Some(true));
    device.stop();
    wait_until("the farewell", || fleet.stored().online == Some(false));
}

/// What is not in the spool any more must be at the server.
fn check_nothing_forgotten_too_early(device: &Device, fleet: &Fleet, samples: usize, what: &str) {
    // The spool first: what the server stores between the two looks only makes the check easier to pass.
    let report = device.spool.report();
    let stored = fleet.stored();
    assert!(report.records + stored.records.len() as u64 >= u64::from(RECORDS), "{what}: {report:?}");
    assert!(report.samples + stored.samples.len() as u64 >= samples as u64, "{what}: {report:?}");
}

/// A broker takes every publish, whether anybody listens or not: nothing may be forgotten on its word.
#[test]
fn the_word_of_the_broker_alone_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new();
    let broker = Mosquitto::start(folder.path(), &certificates);
    let port = broker.port();
    let boot = BootId::from_random([6; 16]);
    let spool = open_spool(&folder.path().join("spool"), &boot);
    spool.append((0..20).map(record).collect()).unwrap();
    let device = Device::start(spool, &boot, &certificates, port);
    wait_until("publishes without a subscriber", || device.stats.bytes_sent.load(Ordering::Relaxed) > 0);
    assert_eq!(device.spool.report().records, 20);
    let fleet = Fleet::start(&certificates, port);
    wait_until("the resent records", || device.spool.report().records == 0);
    assert_eq!(fleet.stored().records.len(), 20);
    device.stop();
}
