//! A simulated device that offers a day of frames.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

fn selector(bytes_per_hour: u64, bytes_per_day: u64, period_s: f64) -> Selector {
    let config = Config { bytes_per_hour, bytes_per_day, period_s, encoding: Encoding::Jpeg };
    Selector::new(config, BootId::from_random([1; 16]), 7, Duration::ZERO)
}

/// A frame of a few kilobytes: random bytes stand for the file.
fn candidate(number: u64, rng: &mut StdRng, drift: DriftState) -> Candidate {
    let bytes: Vec<u8> = (0..rng.random_range(2000..6000)).map(|_| rng.random()).collect();
    let defect =
        if rng.random_bool(0.2) { rng.random_range(0.5..1.0) } else { rng.random_range(0.0..0.5f32) };
    Candidate {
        number,
        captured_ms: number as i64 * 1000,
        source: format!("{number}.png"),
        picture: Picture::File(Arc::new(EncodedImage { content_type: "image/png", bytes })),
        release: "m/1".parse().unwrap(),
        class: usize::from(defect > 0.5),
        scores: vec![1.0 - defect, defect],
        drift,
        projection: (0..4).map(|_| rng.random_range(-2.0..2.0)).collect(),
        ranks: vec![0.0; 6],
        dhash: rng.random(),
    }
}

struct Day {
    /// `(second, manifest, bytes on the wire)`
    samples: Vec<(u64, SampleManifest, u64)>,
}

impl Day {
    /// A frame a second; `drift` says the state of each.
    fn run(selector: &mut Selector, seconds: u64, drift: impl Fn(u64) -> DriftState) -> Self {
        let mut rng = StdRng::seed_from_u64(3);
        let mut samples = Vec::new();
        for second in 0..seconds {
            selector.offer(&candidate(second, &mut rng, drift(second)), second % 500 == 3);
            for (manifest, content) in selector.collect(Duration::from_secs(second)) {
                assert_eq!(Digest::of(&content), manifest.digest);
                let wire =
                    manifest.size + OVERHEAD_BYTES + manifest.size.div_ceil(65536) * OVERHEAD_CHUNK_BYTES;
                samples.push((second, manifest, wire));
            }
        }
        Self { samples }
    }

    fn by_reason(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for (_, manifest, _) in &self.samples {
            let name = match manifest.reason {
                Reason::Random => "random",
                Reason::Uncertain => "uncertain",
                Reason::Novel => "novel",
                Reason::Event => "event",
            };
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    fn bytes_between(&self, from: u64, to: u64) -> u64 {
        self.samples.iter().filter(|(t, ..)| (from..to).contains(t)).map(|(.., bytes)| bytes).sum()
    }
}

#[test]
fn a_quiet_day_spends_its_share_by_the_shares() {
    let mut selector = selector(500_000, 12_000_000, 60.0);
    let day = Day::run(&mut selector, 4 * 3600, |_| DriftState::Armed);
    let counts = day.by_reason();
    let total = day.samples.len() as f64;
    let share = |name: &str| counts.get(name).copied().unwrap_or(0) as f64 / total;
    assert!((0.3..0.5).contains(&share("random")), "{counts:?}");
    assert!((0.3..0.5).contains(&share("uncertain")), "{counts:?}");
    assert!((0.08..0.22).contains(&share("novel")), "{counts:?}");
    assert!(share("event") > 0.0, "{counts:?}");
    // Four fifths of the limit, as the rest is kept for an alarm.
    let spent = day.bytes_between(3600, 7200);
    assert!((250_000..=400_000).contains(&spent), "{spent}");

    let numbers: BTreeSet<u64> = day.samples.iter().map(|(_, m, _)| m.frame).collect();
    assert_eq!(numbers.len(), day.samples.len(), "no frame is sent for two reasons");
    let mut chosen = [0u32; 2];
    for (_, manifest, _) in day.samples.iter().filter(|(_, m, _)| m.reason == Reason::Uncertain) {
        chosen[manifest.predicted as usize] += 1;
        assert!(manifest.scores.iter().all(|s| (0.2..0.8).contains(s)), "{manifest:?} is no doubtful one");
    }
    let defects = f64::from(chosen[1]) / f64::from(chosen[0] + chosen[1]);
    assert!((0.1..=0.7).contains(&defects), "{chosen:?}");
}

/// The inverse of the inclusion probabilities estimates how many frames there were.
#[test]
fn random_samples_carry_their_chance() {
    let mut selector = selector(500_000, 12_000_000, 60.0);
    let day = Day::run(&mut selector, 3 * 3600, |_| DriftState::Armed);
    let random = day.samples.iter().filter(|(_, m, _)| m.reason == Reason::Random);
    let estimate: f64 = random.map(|(_, m, _)| 1.0 / f64::from(m.inclusion_probability)).sum();
    assert!((0.85..=1.01).contains(&(estimate / (3.0 * 3600.0))), "{estimate}");
}

#[test]
fn an_alarm_is_sampled_at_once_and_with_the_reserve() {
    let mut selector = selector(500_000, 12_000_000, 20.0);
    let onset = 7200;
    let state = |second| if second >= onset { DriftState::Alarm } else { DriftState::Armed };
    let day = Day::run(&mut selector, 3 * 3600, state);
    let after: Vec<_> = day.samples.iter().filter(|(_, m, _)| m.drift == DriftState::Alarm).collect();
    assert!(after.len() >= 15, "{}", after.len());
    assert!(after[0].0 <= onset + 6, "the first one came after {} s", after[0].0 - onset);
    assert!(day.samples.iter().all(|(t, m, _)| *t < onset || m.drift == DriftState::Alarm));
    let hour = day.bytes_between(onset - 1800, onset + 1800);
    assert!(hour > 400_000 && hour <= 500_000, "{hour}");
}

#[test]
fn the_same_picture_is_never_sent_twice_and_a_pause_sends_nothing() {
    let mut selector = selector(100_000_000, 100_000_000, 1.0);
    let mut rng = StdRng::seed_from_u64(1);
    let files: Vec<Candidate> = (0..30).map(|i| candidate(i, &mut rng, DriftState::Alarm)).collect();
    let mut digests = Vec::new();
    for number in 0..300 {
        let again = Candidate { number, ..files[number as usize % 30].clone() };
        selector.offer(&again, false);
        digests.extend(selector.collect(Duration::from_secs(number)).into_iter().map(|(m, _)| m.digest));
    }
    let distinct: BTreeSet<&Digest> = digests.iter().collect();
    assert_eq!(distinct.len(), digests.len());
    assert!(digests.len() > 20);

    selector.set_policy(&UploadPolicy { paused: true, bytes_per_hour: None });
    selector.offer(&candidate(1000, &mut rng, DriftState::Alarm), true);
    assert!(selector.collect(Duration::from_secs(5000)).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever the limits, the period and the drift: no hour is over the limit.
    #[test]
    fn no_hour_is_over_the_limit(per_hour in 0u64..600_000, period_s in 1.0f64..400.0, onset in 0u64..9000) {
        let mut selector = selector(per_hour, per_hour * 3, period_s);
        let state = |s| if s > onset { DriftState::Alarm } else { DriftState::Armed };
        let day = Day::run(&mut selector, 9000, state);
        for (end, ..) in &day.samples {
            let hour = day.bytes_between((end + 1).saturating_sub(3600), end + 1);
            prop_assert!(hour <= per_hour, "{hour} of {per_hour} in the hour before {end}");
        }
    }
}
