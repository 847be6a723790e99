//! The whole frame path with a fake camera, judge and sink.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use andon_drift::{FitOptions, Reference};
use andon_protocol::{
    BootId, Digest,
    telemetry::{Body, DriftCause, DriftState, Event},
};
use andon_runtime::{Image, Judgement};

use super::{
    Config, JudgeError, LoadedRelease, Pipeline,
    fake::{Fed, Kept, Lines, eventually, good, release},
    lock,
};
use crate::{
    camera::{
        Camera, CameraError, Frame,
        fake::{Script, noise_frame},
    },
    clock::{Clock, ManualClock, SystemClock},
    decision::{Reason, Verdict},
    drift_watch::{self, features, gray_plane},
    incidents::Incidents,
    output::{Collected, VerdictLine},
    selection,
};

fn config() -> Config {
    Config {
        boot: BootId::from_random([7; 16]),
        deadline: Duration::from_secs(60),
        frozen_frames: 20,
        wait_for_release: true,
        window: Duration::from_millis(50),
        drift: drift_watch::Config::default(),
        drift_state: None,
        upload: selection::Config { bytes_per_hour: 0, ..Default::default() },
        incidents: Incidents::default(),
    }
}

struct Rig {
    pipeline: Pipeline,
    sink: Arc<Kept>,
    lines: Lines,
}

impl Rig {
    fn start(config: Config, camera: impl Camera + 'static, clock: Arc<dyn Clock>) -> Self {
        let (sink, output) = (Arc::new(Kept::default()), Collected::default());
        let lines = Arc::clone(&output.0);
        let pipeline =
            Pipeline::start(config, Box::new(camera), Box::new(output), Arc::clone(&sink) as _, clock)
                .unwrap();
        Self { pipeline, sink, lines }
    }

    /// A rig whose camera is fed by the test.
    fn fed(config: Config) -> (Self, Sender<Result<Frame, CameraError>>) {
        let (feed, frames) = channel();
        (Self::start(config, Fed(frames), Arc::new(SystemClock::new())), feed)
    }

    /// The line of a frame, once there is one.
    fn line(&self, frame: u64) -> VerdictLine {
        eventually(&format!("a verdict for frame {frame}"), || {
            lock(&self.lines).iter().find(|l| l.frame == frame).cloned()
        })
    }
}

fn outcome(line: &VerdictLine) -> (Verdict, Option<Reason>) {
    (line.verdict, line.reason)
}

const PASS: (Verdict, Option<Reason>) = (Verdict::Pass, None);

fn fault(reason: Reason) -> (Verdict, Option<Reason>) {
    (Verdict::Fault, Some(reason))
}

/// More frames at once than the mailbox holds: each gets one line, and all are counted.
#[test]
fn every_frame_gets_exactly_one_verdict() {
    let frames: VecDeque<_> = (0..300).map(|i| Ok(noise_frame(i, 64))).collect();
    let rig = Rig::start(config(), Script(frames), Arc::new(SystemClock::new()));
    let seen = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&seen);
    rig.pipeline.install(release(1, move |image| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(good(image))
    }));
    let health =
        eventually("300 frames counted", || Some(rig.pipeline.health()).filter(|h| h.total.frames == 300));
    assert!(health.alive);
    assert_eq!(health.total.judged(), u64::from(seen.load(Ordering::SeqCst)));
    assert_eq!(health.total.judged() + health.total.dropped, 300);
    assert_eq!(health.total.faults, 0);
    let Rig { pipeline, sink, lines } = rig;
    pipeline.stop();
    let mut numbers: Vec<u64> = lock(&lines).iter().map(|l| l.frame).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=300).collect::<Vec<_>>());
    let (mut frames, mut dropped, mut judged) = (0, 0, 0);
    for record in lock(&sink.records).iter() {
        let Body::Window(window) = &record.body else { continue };
        frames += window.frames;
        dropped += window.frames_dropped;
        judged += window.class_counts.iter().sum::<u32>();
    }
    assert_eq!(
        (frames, u64::from(dropped), u64::from(judged)),
        (300, health.total.dropped, health.total.judged())
    );
}

#[test]
fn an_engine_that_hangs_costs_faults_and_never_a_verdict() {
    let (feed, frames) = channel();
    let config = Config { deadline: Duration::from_millis(40), ..config() };
    // A clock that stands still: what is waited for is real, but no frame is late before its turn.
    let rig = Rig::start(config, Fed(frames), Arc::new(ManualClock::at(0)));
    let (let_go, hold) = channel::<()>();
    let mut first = true;
    rig.pipeline.install(release(1, move |image| {
        if std::mem::take(&mut first) {
            hold.recv().unwrap();
        }
        Ok(good(image))
    }));
    feed.send(Ok(noise_frame(1, 64))).unwrap();
    assert_eq!(outcome(&rig.line(1)), fault(Reason::Deadline));
    feed.send(Ok(noise_frame(2, 64))).unwrap();
    assert_eq!(outcome(&rig.line(2)), fault(Reason::EngineBusy));
    assert_eq!(rig.pipeline.health().since_install.release_faults, 2);
    let_go.send(()).unwrap();
    // The deadline is short for a busy machine, thus several tries.
    let mut frame = 2;
    eventually("a pass after the engine came back", || {
        frame += 1;
        feed.send(Ok(noise_frame(frame, 64))).unwrap();
        (outcome(&rig.line(frame)) == PASS).then_some(())
    });
}

#[test]
fn a_new_release_frees_from_an_engine_that_hangs_for_ever() {
    let (rig, feed) = Rig::fed(Config { deadline: Duration::from_millis(200), ..config() });
    let (_keep, hold) = channel::<()>();
    let hold = Mutex::new(hold);
    rig.pipeline.install(release(1, move |image| {
        let _ = lock(&hold).recv();
        Ok(good(image))
    }));
    feed.send(Ok(noise_frame(1, 64))).unwrap();
    assert_eq!(outcome(&rig.line(1)), fault(Reason::Deadline));
    rig.pipeline.install(release(2, |image| Ok(good(image))));
    eventually("the swap", || (rig.pipeline.health().installs == 2).then_some(()));
    let mut frame = 1;
    let line = eventually("a pass of the new release", || {
        frame += 1;
        feed.send(Ok(noise_frame(frame, 64))).unwrap();
        Some(rig.line(frame)).filter(|l| outcome(l) == PASS)
    });
    assert_eq!(line.release.unwrap().to_string(), "m/2");
    rig.pipeline.stop();
}

#[test]
fn an_answer_after_the_deadline_is_none() {
    let clock = Arc::new(ManualClock::at(1_000));
    let frames = VecDeque::from([Ok(noise_frame(1, 64)), Ok(noise_frame(2, 64))]);
    let rig =
        Rig::start(Config { deadline: Duration::from_secs(5), ..config() }, Script(frames), clock.clone());
    let mut late = true;
    rig.pipeline.install(release(1, move |image| {
        let by = if std::mem::take(&mut late) { 6 } else { 1 };
        clock.advance(Duration::from_secs(by));
        Ok(good(image))
    }));
    let line = rig.line(1);
    assert_eq!((outcome(&line), line.latency_us), (fault(Reason::Deadline), 6_000_000));
    // The second was captured before the first was judged; whether it is late as well depends on when.
    let second = rig.line(2);
    assert!(outcome(&second) == PASS || outcome(&second) == fault(Reason::Deadline), "{second:?}");
}

#[test]
fn whatever_a_judge_does_the_part_does_not_pass() {
    type Answer = fn(&Image) -> Result<Judgement, JudgeError>;
    let answers: Vec<Answer> = vec![
        |_| Err(JudgeError("no".into())),
        |_| panic!("the test's own panic"),
        |image| Ok(Judgement { scores: vec![f32::NAN, 0.1], ..good(image) }),
        |image| Ok(Judgement { scores: vec![1.0], ..good(image) }),
        |image| Ok(Judgement { scores: vec![0.2, 0.8], class: 1, ..good(image) }),
        |image| Ok(good(image)),
    ];
    let expected = [
        fault(Reason::EngineFailed),
        fault(Reason::EnginePanicked),
        fault(Reason::BadScores),
        fault(Reason::BadScores),
        (Verdict::Reject, None),
        PASS,
    ];
    let (rig, feed) = Rig::fed(config());
    let mut next = 0;
    rig.pipeline.install(release(1, move |image| {
        next += 1;
        answers[next - 1](image)
    }));
    for (i, expected) in expected.into_iter().enumerate() {
        feed.send(Ok(noise_frame(i as u64, 64))).unwrap();
        assert_eq!(outcome(&rig.line(i as u64 + 1)), expected, "{i}");
    }
    assert_eq!(rig.pipeline.health().since_install.release_faults, 4);
    assert_eq!(rig.line(5).class.as_deref(), Some("defect"));
}

#[test]
fn camera_faults_and_frozen_pictures_are_faults() {
    let (rig, feed) = Rig::fed(Config { frozen_frames: 3, ..config() });
    rig.pipeline.install(release(1, |image| Ok(good(image))));
    feed.send(Err(CameraError::Lost { reason: "cable".into() })).unwrap();
    assert_eq!(outcome(&rig.line(1)), fault(Reason::CameraFailed));
    let expected = [PASS, PASS, fault(Reason::CameraFrozen), fault(Reason::CameraFrozen)];
    for (i, expected) in expected.into_iter().enumerate() {
        feed.send(Ok(noise_frame(5, 64))).unwrap();
        assert_eq!(outcome(&rig.line(i as u64 + 2)), expected, "{i}");
    }
    feed.send(Ok(noise_frame(6, 64))).unwrap();
    assert_eq!(outcome(&rig.line(6)), PASS);
    assert_eq!(
        rig.pipeline.health().since_install.release_faults,
        0,
        "a camera's fault is not the release's"
    );
}

#[test]
fn incidents_reach_telemetry_without_a_frame() {
    let incidents = Incidents::default();
    incidents.tell("the driver is blocked");
    let (rig, _feed) = Rig::fed(Config { incidents: incidents.clone(), ..config() });
    let told = |text: &str| {
        let fault = Event::Fault { what: text.into() };
        eventually("the incident", || rig.sink.events().contains(&fault).then_some(()));
    };
    told("the driver is blocked");
    incidents.tell("the GPU is late");
    told("the GPU is late");
}

#[test]
fn without_a_release_a_line_camera_gets_faults() {
    let (rig, feed) = Rig::fed(Config { wait_for_release: false, ..config() });
    feed.send(Ok(noise_frame(1, 64))).unwrap();
    let line = rig.line(1);
    assert_eq!((outcome(&line), line.release), (fault(Reason::NoRelease), None));
}

#[test]
fn a_release_is_swapped_between_frames_and_counted_afresh() {
    let (rig, feed) = Rig::fed(config());
    let mut frame = 0;
    for version in 1..=3u32 {
        rig.pipeline.install(release(version, |image| Ok(good(image))));
        eventually("the swap", || (rig.pipeline.health().installs == u64::from(version)).then_some(()));
        for _ in 0..4 {
            frame += 1;
            feed.send(Ok(noise_frame(frame, 64))).unwrap();
            assert_eq!(rig.line(frame).release.unwrap().version(), version);
        }
        let health = rig.pipeline.health();
        assert_eq!((health.since_install.frames, health.total.frames), (4, frame));
        assert_eq!(health.running.unwrap().release.version(), version);
    }
    let Rig { pipeline, sink, .. } = rig;
    pipeline.stop();
    let records = lock(&sink.records);
    for version in 1..=3u32 {
        let of_release = records.iter().filter_map(|r| match &r.body {
            Body::Window(w) if w.release.as_ref().is_some_and(|r| r.version() == version) => Some(w.frames),
            _ => None,
        });
        assert_eq!(of_release.sum::<u32>(), 4, "windows do not mix releases");
    }
}

/// Takes its time to go, and tells when it is gone.
struct Slow(Arc<AtomicU32>);

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(100));
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn engines_are_gone_when_the_pipeline_has_stopped() {
    let gone = Arc::new(AtomicU32::new(0));
    let slow = |version| {
        let slow = Slow(gone.clone());
        release(version, move |image| {
            let _held = &slow;
            Ok(good(image))
        })
    };
    let (rig, feed) = Rig::fed(config());
    let mut number = 0;
    for version in 1..=2 {
        rig.pipeline.install(slow(version));
        show(&rig, &feed, &mut number, black(version as u8));
    }
    let Rig { pipeline, .. } = rig;
    pipeline.stop();
    assert_eq!(gone.load(Ordering::SeqCst), 2);
}

fn with_reference(version: u32) -> LoadedRelease {
    let mut release = release(version, |image| Ok(good(image)));
    let frames: Vec<_> = (0..150)
        .map(|i| {
            let image = noise_frame(10_000 + i, 64).image;
            features(&gray_plane(&image, &release.manifest.input).unwrap(), &good(&image)).unwrap()
        })
        .collect();
    release.reference = Some(Reference::fit(&frames, &FitOptions { seed: 1 }).unwrap());
    release.reference_digest = Digest::of(b"reference");
    release
}

fn black(i: u8) -> Frame {
    let mut pixels = vec![0; 64 * 64];
    pixels[0] = i % 2;
    let image = Arc::new(Image::new(64, 64, 1, pixels).unwrap());
    Frame { source: "black".into(), image, file: None, degraded: true }
}

/// Sends a frame and waits for its verdict; drift sees it soon after, or never if it is busy.
fn show(rig: &Rig, feed: &Sender<Result<Frame, CameraError>>, number: &mut u64, frame: Frame) {
    *number += 1;
    feed.send(Ok(frame)).unwrap();
    rig.line(*number);
}

#[test]
fn drift_is_told_shown_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let state = |dir: &Path| Some(dir.join("watch.cbor"));
    let drift = drift_watch::Config { commissioning_frames: 16, ..Default::default() };
    let config = Config { drift, drift_state: state(dir.path()), frozen_frames: 0, ..config() };
    let (rig, feed) = Rig::fed(config.clone());
    rig.pipeline.install(with_reference(1));
    let mut number = 0;
    let health = eventually("armed", || {
        let frame = noise_frame(number, 64);
        show(&rig, &feed, &mut number, frame);
        Some(rig.pipeline.health()).filter(|h| h.drift == DriftState::Armed && number > 60)
    });
    assert!(health.charts.iter().any(|c| c.name == "stats_fast"));
    assert!(health.charts.iter().any(|c| c.name == "gate"));
    assert_eq!(rig.sink.events(), []);

    let event = eventually("an alarm", || {
        let frame = black(number as u8);
        show(&rig, &feed, &mut number, frame);
        rig.sink.events().pop()
    });
    assert!(matches!(event, Event::DriftAlarm { cause: DriftCause::CameraDead, .. }), "{event:?}");
    eventually("the state", || (rig.pipeline.health().drift == DriftState::Alarm).then_some(()));
    show(&rig, &feed, &mut number, black(0));
    assert_eq!(rig.line(number).drift, DriftState::Alarm);
    rig.pipeline.stop();

    let (rig, feed) = Rig::fed(config);
    rig.pipeline.install(with_reference(1));
    let mut number = 0;
    show(&rig, &feed, &mut number, noise_frame(1, 64));
    eventually("the alarm goes on", || (rig.pipeline.health().drift == DriftState::Alarm).then_some(()));
    rig.pipeline.acknowledge_drift();
    eventually("acknowledged", || {
        let frame = noise_frame(number, 64);
        show(&rig, &feed, &mut number, frame);
        rig.sink.events().contains(&Event::DriftCleared).then_some(())
    });
}

#[test]
fn samples_reach_the_sink_with_their_content() {
    let upload = selection::Config {
        bytes_per_hour: 10_000_000_000,
        bytes_per_day: 10_000_000_000,
        period_s: 0.1,
        ..Default::default()
    };
    let (rig, feed) = Rig::fed(Config { upload, ..config() });
    rig.pipeline.install(release(1, |image| Ok(good(image))));
    let mut number = 0;
    let (manifest, content) = eventually("a sample", || {
        let frame = noise_frame(number, 64);
        show(&rig, &feed, &mut number, frame);
        lock(&rig.sink.samples).pop()
    });
    assert_eq!((manifest.digest, manifest.size), (Digest::of(&content), content.len() as u64));
    assert_eq!(manifest.content_type, "image/jpeg");
    assert!(
        andon_protocol::decode::<andon_protocol::sample::SampleManifest>(&andon_protocol::encode(&manifest))
            .is_ok()
    );
    let image = Image::decode(&content, &Default::default()).unwrap();
    assert_eq!((image.width(), image.height(), image.channels()), (64, 64, 1));
    // Paused, nothing more comes.
    rig.pipeline.set_upload(andon_protocol::state::UploadPolicy { paused: true, bytes_per_hour: None });
    rig.pipeline.stop();
}
