//! The lanes on both databases, fed as the MQTT connection feeds them: what is stored, answered and refused.

use std::sync::Arc;

use tokio::sync::mpsc;

use andon_protocol::{
    BootId, DeviceId, Digest,
    ack::{SampleAck, SampleState},
    api::{Alarm, AlarmState, Device, DeviceEvent, Page, Role, Sample, WindowPoint},
    encode,
    sample::{CHUNK_BYTES, Reason, SampleChunk, SampleManifest},
    state::{Reported, SpoolReport, Status},
    telemetry::{Body, DriftCause, DriftState, Event, Record, TelemetryBatch, Window},
    topics::{self, Channel},
};

use crate::{
    app::App,
    ingest::{Acks, Complaints, Item, Lanes},
    mqtt::Received,
    testing::{NOW_MS, TestApp, each_app},
};

struct Bench {
    lanes: Lanes,
    answers: mpsc::Receiver<(DeviceId, Item)>,
    complaints: Arc<Complaints>,
}

impl Bench {
    fn new(app: &App) -> Self {
        let (acks, answers) = Acks::for_test();
        let complaints = Arc::new(Complaints::default());
        Self { lanes: Lanes::new(app, &acks, &complaints), answers, complaints }
    }

    async fn records(&mut self, messages: Vec<Received>) -> Vec<(DeviceId, Item)> {
        self.lanes.records.take(&messages).await;
        self.drain()
    }

    async fn samples(&mut self, messages: Vec<Received>) -> Vec<SampleAck> {
        self.lanes.samples.take(&messages).await;
        let answers = self.drain().into_iter();
        answers.filter_map(|(_, item)| if let Item::Sample(ack) = item { Some(ack) } else { None }).collect()
    }

    fn drain(&mut self) -> Vec<(DeviceId, Item)> {
        std::iter::from_fn(|| self.answers.try_recv().ok()).collect()
    }
}

fn message(device: &DeviceId, channel: Channel, payload: Vec<u8>) -> Received {
    Received::for_test(&topics::topic(device, channel), payload)
}

fn boot(n: u8) -> BootId {
    BootId::from_random([n; 16])
}

fn batch(boot: &BootId, first_seq: u64, records: Vec<(i64, Body)>) -> Vec<u8> {
    let records = records.into_iter().map(|(at_ms, body)| Record { at_ms, body }).collect();
    encode(&TelemetryBatch { boot: boot.clone(), first_seq, records })
}

fn window(frames: u32) -> Body {
    Body::Window(Window { frames, drift: DriftState::Armed, confidence_mean: 0.9, ..Window::default() })
}

fn alarm() -> Body {
    let charts = vec!["stats_slow".to_owned()];
    Body::Event(Event::DriftAlarm { cause: DriftCause::Lighting, charts, frames: 90, frame: 340 })
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_is_stored_once_and_alarms_live_until_the_device_clears_them() {
    each_app(async |test| {
        let device = test.device("line-1").await;
        let token = test.token(Role::Operator).await;
        let mut bench = Bench::new(&test.app);
        let boot = boot(1);
        let first = || {
            message(
                &device,
                Channel::Telemetry,
                batch(&boot, 0, vec![(NOW_MS - 10, window(1)), (NOW_MS, alarm())]),
            )
        };
        // Twice in one batch and once more after it.
        assert_eq!(bench.records(vec![first(), first()]).await.len(), 2);
        assert_eq!(bench.records(vec![first()]).await.len(), 1);
        let windows: Page<WindowPoint> = test.get("/api/v1/devices/line-1/telemetry", &token).await.json();
        assert_eq!(windows.items.len(), 1);
        let events: Page<DeviceEvent> = test.get("/api/v1/devices/line-1/events", &token).await.json();
        assert_eq!(events.items.len(), 1);

        let open = |state: &str| format!("/api/v1/alarms?state={state}&device=line-1");
        let alarms: Page<Alarm> = test.get(&open("open"), &token).await.json();
        let [raised] = &alarms.items[..] else { panic!("{alarms:?}") };
        assert_eq!((raised.cause, raised.frames), (DriftCause::Lighting, 90));
        let shown: Device = test.get("/api/v1/devices/line-1", &token).await.json();
        assert_eq!((shown.open_alarms, shown.window.map(|w| w.frames)), (1, Some(1)));

        let path = format!("/api/v1/alarms/{}/acknowledge", raised.id);
        let seen: Alarm = test.call(axum::http::Method::POST, &path, &token, None).await.json();
        assert_eq!(
            (seen.state, seen.acknowledged_by.as_deref()),
            (AlarmState::Acknowledged, Some("operator"))
        );
        let cleared = batch(&boot, 2, vec![(NOW_MS + 5, Body::Event(Event::DriftCleared))]);
        bench.records(vec![message(&device, Channel::Telemetry, cleared)]).await;
        let alarms: Page<Alarm> = test.get(&open("cleared"), &token).await.json();
        assert_eq!(alarms.items.len(), 1);
        assert_eq!(test.call(axum::http::Method::POST, &path, &token, None).await.problem().code, "conflict");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_paged_and_a_clock_in_the_future_hides_nothing() {
    each_app(async |test| {
        let device = test.device("line-1").await;
        let token = test.token(Role::Viewer).await;
        let mut bench = Bench::new(&test.app);
        let boot = boot(1);
        let far = NOW_MS + 1_000_000_000;
        let times = [far, NOW_MS, NOW_MS + 1, NOW_MS + 2, NOW_MS + 3];
        for (seq, at_ms) in times.into_iter().enumerate() {
            let payload = batch(&boot, seq as u64, vec![(at_ms, window(seq as u32))]);
            bench.records(vec![message(&device, Channel::Telemetry, payload)]).await;
            test.app.clock.advance_ms(1);
        }
        let shown: Device = test.get("/api/v1/devices/line-1", &token).await.json();
        assert_eq!(shown.window.unwrap().frames, 4);

        let mut path = format!("/api/v1/devices/line-1/telemetry?limit=2&to_ms={}", NOW_MS + 3);
        let mut seen = Vec::new();
        loop {
            let page: Page<WindowPoint> = test.get(&path, &token).await.json();
            seen.push(page.items.iter().map(|p| p.seq).collect::<Vec<_>>());
            let Some(next) = page.next else { break };
            path = format!("/api/v1/devices/line-1/telemetry?limit=2&to_ms={}&cursor={next}", NOW_MS + 3);
        }
        assert_eq!(seen, [vec![3, 4], vec![1, 2], vec![]]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_payloads_harm_nobody_else() {
    each_app(async |test| {
        let (good, bad) = (test.device("good").await, test.device("bad").await);
        let unknown: DeviceId = "unknown".parse().unwrap();
        let token = test.token(Role::Viewer).await;
        let mut bench = Bench::new(&test.app);
        let boot = boot(1);
        let fine = batch(&boot, 0, vec![(1, window(1))]);
        let no_number = Body::Window(Window { confidence_mean: f32::NAN, ..Window::default() });
        let answers = bench
            .records(vec![
                message(&bad, Channel::Telemetry, vec![]),
                message(&bad, Channel::Telemetry, vec![0xff; 100]),
                message(&bad, Channel::Telemetry, vec![0x9f; 60_000]),
                message(&bad, Channel::Telemetry, vec![0; 70_000]),
                message(&bad, Channel::Telemetry, fine[..fine.len() - 1].to_vec()),
                message(&bad, Channel::Telemetry, batch(&boot, u64::MAX, vec![(1, window(1))])),
                message(&bad, Channel::Status, vec![1]),
                message(&bad, Channel::Reported, vec![1]),
                message(&unknown, Channel::Telemetry, fine.clone()),
                message(
                    &bad,
                    Channel::Telemetry,
                    batch(&boot, 0, vec![(i64::MIN, no_number), (i64::MAX, window(2))]),
                ),
                message(&good, Channel::Telemetry, fine.clone()),
            ])
            .await;
        let acknowledged: Vec<_> = answers.iter().map(|(device, _)| device.as_str()).collect();
        assert_eq!(acknowledged, ["bad", "good"]);
        assert_eq!(bench.complaints.total(&bad), 9);
        assert_eq!(bench.complaints.total(&unknown), 1);
        assert_eq!(bench.complaints.total(&good), 0);
        // The good record of the bad device is there too, and all can be read.
        for (device, frames) in [("bad", 2), ("good", 1)] {
            let page: Page<WindowPoint> =
                test.get(&format!("/api/v1/devices/{device}/telemetry"), &token).await.json();
            assert_eq!(page.items.iter().map(|p| p.window.frames).collect::<Vec<_>>(), [frames]);
        }
        let devices: Page<Device> = test.get("/api/v1/devices", &token).await.json();
        assert_eq!(devices.items.len(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_will_is_put_right_by_the_next_word() {
    each_app(async |test| {
        let device = test.device("line-1").await;
        let token = test.token(Role::Viewer).await;
        let mut bench = Bench::new(&test.app);
        let gone = encode(&Status { online: false, boot: None });
        let payload = batch(&boot(1), 0, vec![(1, window(1))]);
        for (channel, payload, online) in
            [(Channel::Status, gone, false), (Channel::Telemetry, payload, true)]
        {
            bench.records(vec![message(&device, channel, payload)]).await;
            let shown: Device = test.get("/api/v1/devices/line-1", &token).await.json();
            assert_eq!(shown.online, online, "{channel:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_report_show_and_bring_the_desired_state() {
    each_app(async |mut test| {
        let device = test.device("line-1").await;
        let token = test.token(Role::Viewer).await;
        let mut bench = Bench::new(&test.app);
        let mut tx = test.app.db.begin().await.unwrap();
        let wanted = crate::devices::desired::change(&mut tx, &device, |d| d.trial_s = 9).await.unwrap();
        let same = crate::devices::desired::change(&mut tx, &device, |d| d.trial_s = 9).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!((wanted.generation, same.generation), (1, 1));

        let status = encode(&Status { online: true, boot: Some(boot(1)) });
        bench.records(vec![message(&device, Channel::Status, status)]).await;
        assert!(test.outgoing.try_recv().is_ok(), "coming online brings the desired state");
        for (generation, brings) in [(0, true), (1, false)] {
            let reported = Reported {
                boot: boot(1),
                agent_version: "0.1".into(),
                generation,
                active: None,
                previous: None,
                update: None,
                drift: DriftState::Learning,
                spool: SpoolReport { bytes: 7, ..Default::default() },
            };
            bench.records(vec![message(&device, Channel::Reported, encode(&reported))]).await;
            assert_eq!(test.outgoing.try_recv().is_ok(), brings, "generation {generation}");
        }
        let shown: Device = test.get("/api/v1/devices/line-1", &token).await.json();
        assert!(shown.online && shown.spool.bytes == 7 && shown.drift == DriftState::Learning, "{shown:?}");
    })
    .await;
}

fn png(pixel: u8) -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    image::GrayImage::from_pixel(4, 4, image::Luma([pixel]))
        .write_to(&mut png, image::ImageFormat::Png)
        .unwrap();
    png.into_inner()
}

fn manifest(content: &[u8]) -> SampleManifest {
    SampleManifest {
        digest: Digest::of(content),
        size: content.len() as u64,
        content_type: "image/png".into(),
        captured_ms: NOW_MS,
        boot: boot(1),
        frame: 1,
        source: "a.png".into(),
        release: "solar-cell/1".parse().unwrap(),
        reason: Reason::Random,
        inclusion_probability: 1.0,
        predicted: 0,
        scores: vec![0.9, 0.1],
        drift: DriftState::Armed,
        projection: vec![],
        stats: vec![],
        dhash: 0,
    }
}

async fn upload(
    bench: &mut Bench,
    device: &DeviceId,
    manifest: &SampleManifest,
    content: &[u8],
) -> Vec<SampleState> {
    let chunks = (0..manifest.chunks()).map(|i| encode(&SampleChunk::cut(manifest.digest, content, i)));
    let mut messages = vec![message(device, Channel::Manifest, encode(manifest))];
    messages.extend(chunks.map(|chunk| message(device, Channel::Chunk, chunk)));
    bench.samples(messages).await.into_iter().map(|ack| ack.state).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_are_listed_filtered_and_labelled() {
    each_app(async |test| {
        let token = test.token(Role::Labeller).await;
        let mut bench = Bench::new(&test.app);
        for (i, name) in ["a", "b", "c"].iter().enumerate() {
            let device = test.device(name).await;
            let content = png(i as u8);
            let mut manifest = manifest(&content);
            if i == 2 {
                (manifest.drift, manifest.reason) = (DriftState::Alarm, Reason::Novel);
            }
            let answers = upload(&mut bench, &device, &manifest, &content).await;
            assert_eq!(answers, [SampleState::Done]);
            test.app.clock.advance_ms(1);
        }
        let first = Digest::of(&png(0));
        let path = format!("/api/v1/samples/{first}/label");
        let put = async |class: &str| {
            test.call(axum::http::Method::PUT, &path, &token, Some(serde_json::json!({"class": class}))).await
        };
        assert_eq!(put("").await.problem().code, "invalid");
        let labelled: Sample = put("defect").await.json();
        assert_eq!(labelled.label.unwrap().by, "labeller");
        let labelled: Sample = put("ok").await.json();
        assert_eq!(labelled.label.unwrap().class, "ok");
        for (query, devices) in [
            ("", vec!["c", "b", "a"]),
            ("device=b", vec!["b"]),
            ("labelled=true", vec!["a"]),
            ("labelled=false", vec!["c", "b"]),
            ("reason=novel", vec!["c"]),
            ("drift=true", vec!["c"]),
            ("drift=false&labelled=false", vec!["b"]),
        ] {
            let page: Page<Sample> = test.get(&format!("/api/v1/samples?{query}"), &token).await.json();
            let found: Vec<_> = page.items.iter().map(|s| s.device.as_str()).collect();
            assert_eq!(found, devices, "{query}");
        }
        let page: Page<Sample> = test.get("/api/v1/samples?limit=2", &token).await.json();
        let rest: Page<Sample> =
            test.get(&format!("/api/v1/samples?limit=2&cursor={}", page.next.unwrap()), &token).await.json();
        assert_eq!(rest.items.iter().map(|s| s.device.as_str()).collect::<Vec<_>>(), ["a"]);
        for _ in 0..2 {
            let gone = test.call(axum::http::Method::DELETE, &path, &token, None).await;
            assert_eq!(gone.status, axum::http::StatusCode::NO_CONTENT);
        }
        let audit: Page<andon_protocol::api::AuditEntry> =
            test.get("/api/v1/audit", &test.token(Role::Admin).await).await.json();
        let actions: Vec<_> = audit.items.iter().map(|e| e.action.as_str()).collect();
        assert_eq!(actions, ["label.remove", "label.set", "label.set"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_samples_are_refused_and_known_ones_need_no_upload() {
    each_app(async |test| {
        let device = test.device("line-1").await;
        let other = test.device("line-2").await;
        let mut bench = Bench::new(&test.app);
        let content = png(1);
        let need = SampleState::Need { missing: vec![(0, 1)] };

        // Content that is not what its name says: asked for again, then refused.
        let mut lie = manifest(&content);
        lie.digest = Digest::of(b"another");
        assert_eq!(upload(&mut bench, &device, &lie, &content).await, [need]);
        let second = upload(&mut bench, &device, &lie, &content).await;
        assert!(matches!(&second[..], [SampleState::Refused { .. }]), "{second:?}");

        // No image.
        let text = b"#!/bin/sh".to_vec();
        let answers = upload(&mut bench, &device, &manifest(&text), &text).await;
        assert!(matches!(&answers[..], [SampleState::Refused { .. }]), "{answers:?}");

        // A score that is no number.
        let mut odd = manifest(&content);
        odd.scores = vec![f32::INFINITY];
        let answers = bench.samples(vec![message(&device, Channel::Manifest, encode(&odd))]).await;
        assert!(matches!(&answers[0].state, SampleState::Refused { .. }));

        // A chunk nobody announced, of a wrong length, beyond the end, with a wrong checksum.
        let before = bench.complaints.total(&device);
        let chunk = |digest, index, bytes: Vec<u8>| SampleChunk { digest, index, crc32c: crc(&bytes), bytes };
        let mut broken = chunk(Digest::of(&content), 0, content.clone());
        broken.crc32c ^= 1;
        let hostile = [
            chunk(Digest::of(b"nobody"), 0, vec![1]),
            chunk(Digest::of(&content), 0, vec![1]),
            chunk(Digest::of(&content), u32::MAX, content.clone()),
            broken,
        ];
        bench.samples(vec![message(&device, Channel::Manifest, encode(&manifest(&content)))]).await;
        let messages = hostile.iter().map(|c| message(&device, Channel::Chunk, encode(c))).collect();
        assert_eq!(bench.samples(messages).await, []);
        assert_eq!(bench.complaints.total(&device) - before, 4);

        // What is wrong does not spoil what is right; the same content from another device needs no upload.
        assert_eq!(upload(&mut bench, &device, &manifest(&content), &content).await, [SampleState::Done]);
        let known =
            bench.samples(vec![message(&other, Channel::Manifest, encode(&manifest(&content)))]).await;
        assert_eq!(known[0].state, SampleState::Done);
        assert_eq!(std::fs::read_dir(test.app.paths.uploads().join("line-1")).unwrap().count(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_go_on_after_a_restart_and_quotas_hold() {
    each_app(async |test| {
        let device = test.device("line-1").await;
        let content = vec![7; 3 * CHUNK_BYTES];
        let big = manifest(&content);
        let mut bench = Bench::new(&test.app);
        let announce = || vec![message(&device, Channel::Manifest, encode(&big))];
        bench.samples(announce()).await;
        let chunk = encode(&SampleChunk::cut(big.digest, &content, 1));
        bench.samples(vec![message(&device, Channel::Chunk, chunk)]).await;

        let mut restarted = Bench::new(&test.app);
        let answers = restarted.samples(announce()).await;
        assert_eq!(answers[0].state, SampleState::Need { missing: vec![(0, 1), (2, 3)] });

        // The bytes under way are bounded: further samples are not answered, and not refused.
        sqlx::query("UPDATE upload SET bytes = $1")
            .bind(test.app.config.uploads.open_bytes_max as i64)
            .execute(test.app.db.writer())
            .await
            .unwrap();
        let small = png(3);
        let more = vec![message(&device, Channel::Manifest, encode(&manifest(&small)))];
        assert_eq!(restarted.samples(more).await, []);
        assert_eq!(restarted.complaints.total(&device), 1);
    })
    .await;
}

fn crc(bytes: &[u8]) -> u32 {
    SampleChunk::cut(Digest::of(bytes), bytes, 0).crc32c
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_counts() {
    each_app(async |test: TestApp| {
        let device = test.device("line-1").await;
        let mut bench = Bench::new(&test.app);
        let content = png(1);
        upload(&mut bench, &device, &manifest(&content), &content).await;
        let payload = batch(&boot(1), 0, vec![(1, alarm())]);
        let status = encode(&Status { online: true, boot: None });
        bench
            .records(vec![
                message(&device, Channel::Telemetry, payload),
                message(&device, Channel::Status, status),
            ])
            .await;
        let token = test.token(Role::Viewer).await;
        let overview: andon_protocol::api::Overview = test.get("/api/v1/overview", &token).await.json();
        assert_eq!((overview.devices, overview.online, overview.open_alarms), (1, 1, 1));
        assert_eq!((overview.samples, overview.unlabelled), (1, 1));
        assert_eq!(overview.bytes_received, content.len() as u64);
    })
    .await;
}
