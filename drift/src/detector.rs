//! The watch on the device: one update a frame, constant memory, a handful of states.
//!
//! ```text
//! learning ──► armed ◄──► suspect ──► alarm (latched) ──► cooldown ──► armed
//!     └─────── differs from the fleet ───►┘  ▲                │
//!                                            └────────────────┘
//! ```
//! An alarm is latched: it ends when all charts stay low for [`CALM_FRAMES`], or when a person acknowledges it. While
//! it lasts only another cause alarms again.

use andon_protocol::telemetry::{self, DriftCause, DriftState};
use serde::{Deserialize, Serialize};

use crate::{
    FrameFeatures,
    attribution::{self, Evidence},
    charts::{Bank, Chart, Scores},
    learning::{Centre, Learning},
    reference::{Moments, Reference, Scorer, signature_of},
    stats::{LOG_SD, MEAN, STATS},
};

#[derive(Debug, Clone, PartialEq)]
pub struct DetectorOptions {
    /// Mean frames between two false alarms of the whole detector (ARL0).
    pub false_alarm_frames: f64,
    /// Frames at the start of which the mean is compared with the fleet's; 0: armed at once.
    pub commissioning_frames: u32,
    pub start: Start,
}

/// What the first frames are taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// One more device of the fleet. Its own mean is followed as far as the frames are proof of it; a device that is
    /// too far from the fleet is an alarm, so that a start under drift is not learned as normal.
    Fleet,
    /// The release was made in answer to this device's drift: what it sees now is what the release was made for.
    Answered,
}

/// What is known about a frame beyond its features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gate {
    /// How many frames in a row, this one included, are the same byte for byte.
    pub identical: u32,
}

/// What a frame has changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub state: DriftState,
    /// An alarm whose cause is known now.
    pub alarm: Option<Alarm>,
    /// The alarm has ended.
    pub cleared: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    pub cause: DriftCause,
    /// Names of the charts that fired.
    pub charts: Vec<String>,
    /// Frames from arming to the first chart that fired.
    pub frames: u64,
}

/// Equal frames in a row that no living camera gives.
const IDENTICAL_FRAMES: u32 = 20;
/// Frames in a row that are black, white, flat or not numbers.
const DEAD_FRAMES: u32 = 5;
/// Share of the threshold from which on a chart is suspect, and below which it is calm. A lower share for calm would
/// keep alarms for ever: good frames take the slow chart over a third of its threshold every few dozen frames.
const SUSPECT: f32 = 0.6;
/// Calm frames that end an alarm; as many more end the cooldown.
pub(crate) const CALM_FRAMES: u32 = 200;
/// Name of the hard gates among the charts.
const GATE: &str = "gate";
/// Name under which a device that differs from the fleet from the start alarms.
const COMMISSIONING: &str = "commissioning";

/// Watches one device with one release.
#[derive(Debug, Clone)]
pub struct Detector {
    scorer: Scorer,
    moments: Vec<Moments>,
    labels: usize,
    thresholds: [f32; Chart::COUNT],
    scores: Scores,
    pub(crate) live: Live,
}

/// Everything that changes from frame to frame, and nothing else: what is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Live {
    pub(crate) bank: Bank,
    pub(crate) centre: Centre,
    pub(crate) phase: Phase,
    /// Charts that fired in this alarm.
    pub(crate) fired: [bool; Chart::COUNT],
    /// The newest cause named in this alarm.
    pub(crate) cause: Option<DriftCause>,
    pub(crate) inquiry: Option<Inquiry>,
    /// Frames since the charts were armed or reset.
    pub(crate) frames: u64,
    pub(crate) dead_run: u32,
    pub(crate) identical: u32,
    pub(crate) cleared: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Phase {
    Learning(Learning),
    Armed,
    Alarm { calm: u32 },
    Cooldown { left: u32 },
}

/// A cause being looked for: the sums of the signature since a chart fired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Inquiry {
    pub(crate) frames: u32,
    pub(crate) sums: [f64; STATS + 2],
    /// [`Live::frames`] when the chart fired.
    pub(crate) since: u64,
}

impl Detector {
    pub fn new(reference: &Reference, options: &DetectorOptions) -> Self {
        let learning = Learning::new(reference, options);
        let slacks = learning.slacks(reference);
        let components = reference.projection.as_ref().map_or(0, |p| p.k as usize);
        let bank = Bank::new(slacks, STATS, components, reference.predictions());
        let phase = if learning.is_done() { Phase::Armed } else { Phase::Learning(learning) };
        Self {
            scorer: Scorer::of(reference),
            moments: reference.moments.clone(),
            labels: reference.labels(),
            thresholds: reference.thresholds(options.false_alarm_frames),
            scores: Scores::default(),
            live: Live {
                centre: Centre::none(components, reference.predictions()),
                bank,
                phase,
                fired: [false; Chart::COUNT],
                cause: None,
                inquiry: None,
                frames: 0,
                dead_run: 0,
                identical: 0,
                cleared: false,
            },
        }
    }

    pub fn state(&self) -> DriftState {
        match self.live.phase {
            Phase::Learning(_) => DriftState::Learning,
            Phase::Armed if self.highest() >= SUSPECT => DriftState::Suspect,
            Phase::Armed => DriftState::Armed,
            Phase::Alarm { .. } => DriftState::Alarm,
            Phase::Cooldown { .. } => DriftState::Cooldown,
        }
    }

    /// Statistics and thresholds as telemetry shows them. A chart that is off is left out.
    pub fn charts(&self) -> Vec<telemetry::Chart> {
        let values = self.live.bank.values();
        let statistical = Chart::ALL.into_iter().filter(|c| self.thresholds[*c as usize].is_finite());
        let mut charts: Vec<telemetry::Chart> = statistical
            .map(|c| telemetry::Chart {
                name: c.name().into(),
                value: values[c as usize],
                threshold: self.thresholds[c as usize],
            })
            .collect();
        let threshold = IDENTICAL_FRAMES as f32;
        let dead = self.live.dead_run as f32 / DEAD_FRAMES as f32 * threshold;
        let value = dead.max(self.live.identical as f32).min(2.0 * threshold);
        charts.push(telemetry::Chart { name: GATE.into(), value, threshold });
        charts
    }

    /// Normal scores of the newest frame's image statistics; empty before the first sound frame.
    pub fn ranks(&self) -> &[f32] {
        &self.scores.stats
    }

    /// Whitened projection of the newest frame's embedding; empty if it is not watched.
    pub fn projection(&self) -> &[f32] {
        &self.scores.embedding
    }

    /// A person has seen the alarm: it ends, the charts start afresh, and the same cause may alarm again.
    pub fn acknowledge(&mut self) {
        if matches!(self.live.phase, Phase::Alarm { .. }) {
            self.end_alarm();
            self.live.bank.reset();
            self.live.frames = 0;
            self.live.phase = Phase::Armed;
        }
    }

    pub fn push(&mut self, features: &FrameFeatures, gate: Gate) -> Step {
        self.live.frames += 1;
        self.live.identical = if gate.identical > 1 { gate.identical } else { 0 };
        let mut alarm = self.gates(features);
        if self.live.dead_run == 0 && self.live.identical == 0 && alarm.is_none() {
            // Neither a dead frame nor an old one says anything about drift; both would wreck the sums.
            let found = if matches!(self.live.phase, Phase::Learning(_)) {
                self.learn(features)
            } else {
                self.watch(features)
            };
            alarm = found;
        }
        let cleared = std::mem::take(&mut self.live.cleared);
        Step { state: self.state(), alarm, cleared }
    }

    /// A frame that nobody judged: only the camera can be watched.
    pub fn push_unjudged(&mut self, gate: Gate) -> Step {
        self.live.frames += 1;
        self.live.identical = if gate.identical > 1 { gate.identical } else { 0 };
        let alarm = self.fire_gates();
        let cleared = std::mem::take(&mut self.live.cleared);
        Step { state: self.state(), alarm, cleared }
    }

    fn is_sound(&self, features: &FrameFeatures) -> bool {
        let length = self.scorer.whitening.as_ref().is_none_or(|w| w.mean.len() == features.embedding.len());
        length && features.scores.len() == self.labels && features.is_finite()
    }

    /// Alarms at once on what needs no statistics.
    fn gates(&mut self, features: &FrameFeatures) -> Option<Alarm> {
        let [mean, log_sd] = [features.stats[MEAN], features.stats[LOG_SD]];
        let dead = !self.is_sound(features) || !(2.0..=253.0).contains(&mean) || log_sd < 1f32.ln();
        self.live.dead_run = if dead { self.live.dead_run.saturating_add(1) } else { 0 };
        self.fire_gates()
    }

    fn fire_gates(&mut self) -> Option<Alarm> {
        let fires = self.live.dead_run >= DEAD_FRAMES || self.live.identical >= IDENTICAL_FRAMES;
        if !fires || self.live.cause == Some(DriftCause::CameraDead) {
            return None;
        }
        self.live.phase = Phase::Alarm { calm: 0 };
        self.live.inquiry = None;
        self.live.cause = Some(DriftCause::CameraDead);
        Some(Alarm { cause: DriftCause::CameraDead, charts: vec![GATE.into()], frames: self.live.frames })
    }

    fn learn(&mut self, features: &FrameFeatures) -> Option<Alarm> {
        self.scorer.score(features, &mut self.scores);
        let Phase::Learning(learning) = &mut self.live.phase else { return None };
        learning.push(features, &self.scores);
        if !learning.is_done() {
            return None;
        }
        match learning.finish(&self.moments) {
            Ok(centre) => {
                self.live.centre = centre;
                self.live.phase = Phase::Armed;
                self.live.frames = 0;
                None
            }
            Err(change) => {
                let mut fired = [false; Chart::COUNT];
                fired[Chart::StatsSlow as usize] = true;
                let cause = Evidence { fired, change }.cause();
                self.live.phase = Phase::Alarm { calm: 0 };
                self.live.cause = Some(cause);
                Some(Alarm { cause, charts: vec![COMMISSIONING.into()], frames: self.live.frames })
            }
        }
    }

    fn watch(&mut self, features: &FrameFeatures) -> Option<Alarm> {
        self.scorer.score(features, &mut self.scores);
        self.live.centre.apply(features, &mut self.scores);
        let caps = self.thresholds.map(|h| 2.0 * h);
        let values =
            self.live.bank.push(&self.scores.stats, &self.scores.embedding, &self.scores.prediction, &caps);
        let fires: [bool; Chart::COUNT] = std::array::from_fn(|i| values[i] >= self.thresholds[i]);
        let is_new = (0..Chart::COUNT).any(|i| fires[i] && !self.live.fired[i]);
        self.live.fired.iter_mut().zip(fires).for_each(|(fired, now)| *fired |= now);
        if is_new {
            if !matches!(self.live.phase, Phase::Alarm { .. }) {
                self.live.phase = Phase::Alarm { calm: 0 };
                self.live.cause = None;
            }
            let since = self.live.frames;
            self.live.inquiry.get_or_insert(Inquiry { frames: 0, sums: [0.0; STATS + 2], since });
        }
        let alarm = self.inquire(features);
        self.calm_down();
        alarm
    }

    /// Adds a frame to the inquiry, if there is one, and closes it once its answer is clear.
    fn inquire(&mut self, features: &FrameFeatures) -> Option<Alarm> {
        let inquiry = self.live.inquiry.as_mut()?;
        inquiry.frames += 1;
        let signature = signature_of(&features.stats);
        inquiry.sums.iter_mut().zip(signature).for_each(|(sum, value)| *sum += f64::from(value));
        let change = std::array::from_fn(|i| {
            let Moments { mean, sd } = self.moments[i];
            (inquiry.sums[i] as f32 / inquiry.frames as f32 - mean) / sd - self.live.centre.change[i]
        });
        let evidence = Evidence { fired: self.live.fired, change };
        let clear = inquiry.frames >= attribution::FRAMES_MIN && evidence.is_decisive();
        if !clear && inquiry.frames < attribution::FRAMES_MAX {
            return None;
        }
        let frames = inquiry.since;
        self.live.inquiry = None;
        let cause = evidence.cause();
        let names = Chart::ALL.into_iter().filter(|c| self.live.fired[*c as usize]).map(|c| c.name().into());
        let is_new = self.live.cause.is_none_or(|before| before != cause && cause != DriftCause::Unknown);
        is_new.then(|| {
            self.live.cause = Some(cause);
            Alarm { cause, charts: names.collect(), frames }
        })
    }

    /// The highest chart, as a share of its threshold.
    fn highest(&self) -> f32 {
        let values = self.live.bank.values();
        values.iter().zip(&self.thresholds).fold(0.0, |max, (v, h)| max.max(v / h))
    }

    fn calm_down(&mut self) {
        let is_calm = self.highest() < SUSPECT && self.live.inquiry.is_none();
        match &mut self.live.phase {
            Phase::Alarm { calm } => {
                *calm = if is_calm { *calm + 1 } else { 0 };
                if *calm >= CALM_FRAMES {
                    self.end_alarm();
                    self.live.phase = Phase::Cooldown { left: CALM_FRAMES };
                }
            }
            Phase::Cooldown { left } => {
                *left -= 1;
                if *left == 0 {
                    self.live.phase = Phase::Armed;
                    self.live.frames = 0;
                }
            }
            Phase::Armed | Phase::Learning(_) => {}
        }
    }

    fn end_alarm(&mut self) {
        self.live.cleared = true;
        self.live.fired = [false; Chart::COUNT];
        self.live.cause = None;
        self.live.inquiry = None;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{FitOptions, rank::normal_quantile};

    /// A simulated line: independent parts, four latent properties that embedding and scores depend on.
    pub(crate) struct Line {
        mixing: Vec<[f32; 4]>,
        labels: usize,
    }

    fn normal(rng: &mut StdRng) -> f32 {
        normal_quantile(rng.random_range(1e-9..1.0)) as f32
    }

    impl Line {
        pub(crate) fn new(d: usize, labels: usize) -> Self {
            let mut rng = StdRng::seed_from_u64(99);
            Self { mixing: (0..d).map(|_| std::array::from_fn(|_| normal(&mut rng))).collect(), labels }
        }

        /// `stats` in standard deviations, `latent` likewise, `defects` is the share of class 1.
        pub(crate) fn frame(&self, rng: &mut StdRng, change: &Change) -> FrameFeatures {
            let means = [150.0, 3.3, 4.7, 0.9, -0.2, 0.0];
            let sds = [29.0, 0.26, 0.8, 0.32, 0.115, 0.0];
            let mut stats: [f32; STATS] =
                std::array::from_fn(|i| means[i] + sds[i] * (normal(rng) + change.stats[i]));
            stats[5] = if rng.random_bool(0.9) { 0.0 } else { rng.random_range(0.0..0.05) };
            let latent: [f32; 4] = std::array::from_fn(|_| normal(rng) + change.latent);
            let embedding = self
                .mixing
                .iter()
                .map(|m| m.iter().zip(&latent).map(|(m, l)| m * l).sum::<f32>() + 0.3 * normal(rng));
            let embedding = embedding.collect();
            let class = usize::from(rng.random_bool(change.defects));
            let sure = rng.random_range(0.55..0.99);
            let scores = (0..self.labels)
                .map(|i| if i == class { sure } else { (1.0 - sure) / (self.labels - 1) as f32 });
            FrameFeatures { stats, embedding, scores: scores.collect() }
        }

        pub(crate) fn frames(&self, n: usize, rng: &mut StdRng) -> Vec<FrameFeatures> {
            (0..n).map(|_| self.frame(rng, &Change::default())).collect()
        }
    }

    #[derive(Clone)]
    pub(crate) struct Change {
        stats: [f32; STATS],
        latent: f32,
        defects: f64,
    }

    impl Default for Change {
        fn default() -> Self {
            Self { stats: [0.0; STATS], latent: 0.0, defects: 0.3 }
        }
    }

    fn changes() -> Vec<(Change, DriftCause)> {
        let stats = |stats| Change { stats, ..Change::default() };
        vec![
            (stats([-2.1, 0.0, 0.1, 0.4, -0.8, 0.0]), DriftCause::Lighting),
            (stats([0.0, -0.4, -2.3, -2.7, 0.0, 0.0]), DriftCause::Blur),
            (stats([0.0, 0.0, 0.9, 3.7, 0.0, 0.0]), DriftCause::Gain),
            (stats([-0.7, 0.3, -0.3, -0.1, -2.4, 0.0]), DriftCause::Vignette),
            (Change { latent: 1.5, ..Change::default() }, DriftCause::ProductOrProcess),
            (Change { defects: 0.85, ..Change::default() }, DriftCause::DefectRate),
        ]
    }

    fn options(false_alarm_frames: f64, commissioning_frames: u32) -> DetectorOptions {
        DetectorOptions { false_alarm_frames, commissioning_frames, start: Start::Fleet }
    }

    fn reference(line: &Line, n: usize, seed: u64) -> Reference {
        Reference::fit(&line.frames(n, &mut StdRng::seed_from_u64(seed)), &FitOptions { seed }).unwrap()
    }

    /// Pushes sound, wild and unsound frames and looks for numbers that are not finite.
    pub(crate) fn feed_and_check(reference: &Reference, line: &Line) {
        let mut rng = StdRng::seed_from_u64(4);
        let mut detector = Detector::new(reference, &options(2000.0, 8));
        for i in 0..40 {
            let mut features = line.frame(&mut rng, &Change::default());
            match i % 8 {
                1 => features.stats[2] = f32::NAN,
                2 => features.embedding = vec![1e30; features.embedding.len()],
                3 => features.scores[0] = f32::INFINITY,
                4 => features.embedding.clear(),
                5 => features.stats = [f32::MAX, f32::MIN, 1e30, -1e30, 0.0, 1.0],
                _ => {}
            }
            detector.push(&features, Gate::default());
            assert!(detector.charts().iter().all(|c| c.value.is_finite() && c.threshold.is_finite()));
            assert!(detector.save().len() <= crate::STATE_BYTES_MAX);
        }
    }

    #[test]
    fn wild_and_unsound_frames_leave_all_charts_finite() {
        let line = Line::new(32, 3);
        feed_and_check(&reference(&line, 200, 1), &line);
    }

    /// Mean frames between false alarms over many frames that the fit never saw. Seeded, bounds wide.
    #[test]
    fn false_alarms_on_unseen_frames_are_as_rare_as_promised() {
        let line = Line::new(24, 2);
        let (mut frames, mut alarms) = (0u32, 0u32);
        for seed in 0..6 {
            let reference = reference(&line, 400, seed);
            let mut rng = StdRng::seed_from_u64(1000 + seed);
            for _ in 0..10 {
                let mut detector = Detector::new(&reference, &options(1000.0, 0));
                for _ in 0..2000 {
                    frames += 1;
                    detector.push(&line.frame(&mut rng, &Change::default()), Gate::default());
                    if detector.state() == DriftState::Alarm {
                        alarms += 1;
                        break;
                    }
                }
            }
        }
        let mean = frames / alarms.max(1);
        assert!((500..8000).contains(&mean), "{mean} frames between false alarms at 1000");
    }

    #[test]
    fn every_kind_of_change_is_noticed_and_named() {
        let line = Line::new(24, 2);
        let reference = reference(&line, 400, 3);
        for (change, cause) in changes() {
            let mut rng = StdRng::seed_from_u64(5);
            let mut detector = Detector::new(&reference, &options(20_000.0, 64));
            for i in 0..300 {
                let step = detector.push(&line.frame(&mut rng, &Change::default()), Gate::default());
                assert!(step.alarm.is_none(), "{cause:?} at {i}: {step:?}");
                assert_eq!(step.state == DriftState::Learning, i < 63);
            }
            let mut alarms = Vec::new();
            for i in 0..400 {
                let step = detector.push(&line.frame(&mut rng, &change), Gate::default());
                alarms.extend(step.alarm.map(|a| (i, a)));
            }
            let (delay, alarm) = alarms.first().unwrap_or_else(|| panic!("{cause:?} was missed"));
            assert_eq!(alarm.cause, cause, "{alarm:?}");
            assert!(*delay < 200, "{cause:?} after {delay}");
            assert_eq!(alarms.len(), 1, "latched: {alarms:?}");
            assert_eq!(detector.state(), DriftState::Alarm);
        }
    }

    #[test]
    fn an_alarm_ends_when_it_stays_calm_or_is_acknowledged() {
        let line = Line::new(24, 2);
        let reference = reference(&line, 400, 3);
        let mut rng = StdRng::seed_from_u64(6);
        let mut detector = Detector::new(&reference, &options(20_000.0, 0));
        let (dark, _) = changes().remove(0);
        let mut drive = |detector: &mut Detector, change: &Change, frames: usize| -> Vec<Step> {
            (0..frames).map(|_| detector.push(&line.frame(&mut rng, change), Gate::default())).collect()
        };
        drive(&mut detector, &dark, 100);
        assert_eq!(detector.state(), DriftState::Alarm);
        let good = drive(&mut detector, &Change::default(), 1500);
        assert_eq!(good.iter().filter(|s| s.cleared).count(), 1);
        assert!(good.iter().any(|s| s.state == DriftState::Cooldown));
        assert!(matches!(detector.state(), DriftState::Armed | DriftState::Suspect));

        drive(&mut detector, &dark, 100);
        detector.acknowledge();
        let again = drive(&mut detector, &dark, 100);
        assert!(again[0].cleared && again.iter().any(|s| s.alarm.is_some()), "the same cause alarms again");
    }

    #[test]
    fn a_dead_camera_alarms_at_once_whatever_the_state() {
        let line = Line::new(24, 2);
        let reference = reference(&line, 200, 3);
        let mut rng = StdRng::seed_from_u64(7);
        let good = line.frame(&mut rng, &Change::default());
        let dead = |mean: f32, log_sd: f32| {
            let mut frame = good.clone();
            (frame.stats[MEAN], frame.stats[LOG_SD]) = (mean, log_sd);
            frame
        };
        for frame in [dead(0.5, 1.0), dead(254.0, 1.0), dead(100.0, -1.0), dead(f32::NAN, 1.0)] {
            let mut detector = Detector::new(&reference, &options(20_000.0, 64));
            let alarms: Vec<usize> =
                (0..50).filter(|_| detector.push(&frame, Gate::default()).alarm.is_some()).collect();
            assert_eq!(alarms, [4]);
        }
        let mut detector = Detector::new(&reference, &options(20_000.0, 0));
        let alarms: Vec<u32> =
            (1..60).filter(|i| detector.push(&good, Gate { identical: *i }).alarm.is_some()).collect();
        assert_eq!(alarms, [20]);
        assert_eq!(detector.state(), DriftState::Alarm);
    }

    #[test]
    fn a_start_under_drift_is_not_learned_as_normal_unless_the_release_answers_it() {
        let line = Line::new(24, 2);
        let reference = reference(&line, 400, 3);
        let dark = Change { stats: [-2.1, -0.5, 0.1, 0.4, -0.8, 0.0], latent: 1.0, defects: 0.4 };
        let mut rng = StdRng::seed_from_u64(8);
        let mut detector = Detector::new(&reference, &options(20_000.0, 64));
        let first = (0..64).find_map(|_| detector.push(&line.frame(&mut rng, &dark), Gate::default()).alarm);
        assert_eq!(first.unwrap().cause, DriftCause::Lighting);

        let answered = DetectorOptions { start: Start::Answered, ..options(20_000.0, 64) };
        let mut detector = Detector::new(&reference, &answered);
        for i in 0..1200 {
            let step = detector.push(&line.frame(&mut rng, &dark), Gate::default());
            assert!(step.alarm.is_none(), "{i}: {step:?}");
        }
        let darker = Change { stats: [-4.0, -1.5, 0.1, 0.4, -0.8, 0.0], ..dark };
        let alarm =
            (0..100).find_map(|_| detector.push(&line.frame(&mut rng, &darker), Gate::default()).alarm);
        assert_eq!(alarm.unwrap().cause, DriftCause::Lighting, "further drift is still seen");
    }

    #[test]
    fn a_restored_detector_goes_on_as_if_nothing_had_been() {
        let line = Line::new(1280, 3);
        let reference = reference(&line, 700, 3);
        let options = options(20_000.0, 32);
        let mut rng = StdRng::seed_from_u64(9);
        let mut detector = Detector::new(&reference, &options);
        for i in 0..150 {
            let change = if i > 100 { changes()[1].0.clone() } else { Change::default() };
            let frame = line.frame(&mut rng, &change);
            if i % 7 == 0 {
                let bytes = detector.save();
                assert!(bytes.len() <= crate::STATE_BYTES_MAX, "{}", bytes.len());
                let restored = Detector::restore(&reference, &options, &bytes).unwrap();
                assert_eq!(restored.live, detector.live);
                detector = restored;
            }
            detector.push(&frame, Gate::default());
        }
        assert_eq!(detector.state(), DriftState::Alarm);

        // A restart does not know that the release answered a drift; the state does.
        let answered = DetectorOptions { start: Start::Answered, ..options.clone() };
        let mut learning = Detector::new(&reference, &answered);
        learning.push(&line.frame(&mut rng, &Change::default()), Gate::default());
        let restored = Detector::restore(&reference, &options, &learning.save()).unwrap();
        assert_eq!(restored.live, learning.live);

        let bytes = detector.save();
        let other = Reference::fit(&Line::new(16, 5).frames(120, &mut rng), &FitOptions { seed: 1 }).unwrap();
        assert!(matches!(
            Detector::restore(&other, &options, &bytes),
            Err(crate::RestoreError::Misfit { .. })
        ));
        assert!(matches!(
            Detector::restore(&reference, &options, &bytes[1..]),
            Err(crate::RestoreError::Decode(_))
        ));
        assert!(Detector::restore(&reference, &options, &[]).is_err());
    }
}
