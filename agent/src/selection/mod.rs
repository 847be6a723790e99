//! Which frames are worth their bytes: 40 % uniform random, 40 % uncertain, 15 % novel, 5 % events; under suspicion
//! and in an alarm 50 / 30 / 20, faster, and with the budget's reserve.
//!
//! Frames are offered one by one and chosen by round: a round ends with the period in which its share of the budget
//! pays for at least one sample. Random picks are a uniform sample of their round and carry its inclusion
//! probability, which makes them the unbiased estimate of everything; the others answer where the network is unsure
//! and carry 1. Measured on ELPV: half random and half uncertain wins at few labels, novelty alone upsets the classes,
//! thus its small share and the class balance.
//!
//! Memory is bounded by [`HELD_BYTES_MAX`] whatever the size of a picture.

mod budget;
mod dhash;
mod round;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use andon_protocol::{
    BootId, Digest, ReleaseId,
    sample::{CHUNK_BYTES, Reason, SAMPLE_BYTES_MAX, SampleManifest},
    state::UploadPolicy,
    telemetry::DriftState,
};
use andon_runtime::Image;
use serde::Deserialize;

use self::{
    budget::{Budget, Purpose},
    dhash::Recent,
    round::{Ranked, Reservoir},
};
use crate::camera::{EncodedImage, Frame};

pub use budget::Ledger;

/// `[upload]` of the agent's configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub bytes_per_hour: u64,
    pub bytes_per_day: u64,
    /// Length of a period of selection. Shorter ones answer faster, longer ones choose from more frames.
    pub period_s: f64,
    /// How a picture is sent that is no file of the camera's.
    pub encoding: Encoding,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Quality 95: half the bytes of PNG.
    Jpeg,
    Png,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bytes_per_hour: 2_000_000,
            bytes_per_day: 20_000_000,
            period_s: 10.0,
            encoding: Encoding::Jpeg,
        }
    }
}

/// Pictures waiting for the end of their round, in bytes of memory.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Samples of one source and round.
const PICKS_MAX: usize = 16;
/// Classes that are kept apart for the balance; the rest shares a list.
const CLASSES_MAX: usize = 8;
/// Projections of the novel samples chosen last.
const NOVEL_KEPT: usize = 64;
/// Digests of the samples chosen last; none of these is sent twice.
const DIGESTS_KEPT: usize = 1024;
/// Of an upload beyond the picture: manifest, chunk heads, packets.
const OVERHEAD_BYTES: u64 = 1024;
const OVERHEAD_CHUNK_BYTES: u64 = 256;

/// A judged frame and what is known about it.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub number: u64,
    pub captured_ms: i64,
    pub source: String,
    pub picture: Picture,
    pub release: ReleaseId,
    pub class: usize,
    pub scores: Vec<f32>,
    pub drift: DriftState,
    pub projection: Vec<f32>,
    pub ranks: Vec<f32>,
    pub dhash: u64,
}

#[derive(Debug, Clone)]
pub enum Picture {
    File(Arc<EncodedImage>),
    Pixels(Arc<Image>),
}

impl Picture {
    pub fn of(frame: &Frame) -> Self {
        match &frame.file {
            Some(file) => Self::File(Arc::clone(file)),
            None => Self::Pixels(Arc::clone(&frame.image)),
        }
    }

    fn bytes_held(&self) -> usize {
        match self {
            Self::File(file) => file.bytes.len(),
            Self::Pixels(image) => image.pixels().len(),
        }
    }
}

/// The hash that finds near-duplicates, of a grey plane.
pub fn difference_hash(width: usize, height: usize, gray: &[f32]) -> u64 {
    dhash::dhash(width, height, gray)
}

pub struct Selector {
    boot: BootId,
    config: Config,
    paused: bool,
    budget: Budget,
    period_end: Duration,
    alarmed: bool,
    /// An alarm has begun: its rounds begin at the next look at the clock.
    restart: bool,
    random: Reservoir<Candidate>,
    uncertain: Vec<Ranked<Candidate>>,
    novel: Ranked<Candidate>,
    events: Ranked<Candidate>,
    /// Bytes that each source may spend, in the order of [`SOURCES`].
    credits: [f64; 4],
    /// Mean size of a sample so far.
    size: f64,
    recent: Recent,
    digests: VecDeque<Digest>,
    novel_kept: VecDeque<Vec<f32>>,
    /// Non-random picks by class; halved now and then, so that the balance is that of the recent past.
    chosen: Vec<u32>,
}

const SOURCES: [Reason; 4] = [Reason::Random, Reason::Uncertain, Reason::Novel, Reason::Event];
const SHARES: [f64; 4] = [0.40, 0.40, 0.15, 0.05];
const SHARES_ALARM: [f64; 4] = [0.50, 0.30, 0.20, 0.0];

impl Selector {
    /// `seed` decides which frames are random.
    pub fn new(config: Config, boot: BootId, seed: u64, now: Duration) -> Self {
        let budget = Budget::new(config.bytes_per_hour, config.bytes_per_day);
        let period_end = now + period(&config);
        Self {
            boot,
            config,
            paused: false,
            budget,
            period_end,
            alarmed: false,
            restart: false,
            random: Reservoir::new(seed),
            uncertain: (0..=CLASSES_MAX).map(|_| Ranked::default()).collect(),
            novel: Ranked::default(),
            events: Ranked::default(),
            credits: [0.0; 4],
            size: 32_000.0,
            recent: Recent::default(),
            digests: VecDeque::new(),
            novel_kept: VecDeque::new(),
            chosen: vec![0; CLASSES_MAX + 1],
        }
    }

    pub fn set_policy(&mut self, policy: &UploadPolicy) {
        self.paused = policy.paused;
        self.budget.set_bytes_per_hour(policy.bytes_per_hour.unwrap_or(self.config.bytes_per_hour));
    }

    pub fn ledger(&mut self, now: Duration) -> Ledger {
        self.budget.ledger(now)
    }

    /// Takes over what was spent before a restart that took `pause`.
    pub fn restore(&mut self, ledger: &Ledger, pause: Duration) {
        self.budget.restore(ledger, pause);
    }

    /// Another release: its embeddings lie elsewhere, and so do its doubts.
    pub fn new_release(&mut self) {
        self.novel_kept.clear();
        self.chosen.fill(0);
        self.clear_rounds();
    }

    fn clear_rounds(&mut self) {
        self.random.clear();
        self.uncertain.iter_mut().for_each(Ranked::clear);
        self.novel.clear();
        self.events.clear();
    }

    /// `event`: an operator or a change of the drift state asks for this frame.
    pub fn offer(&mut self, candidate: &Candidate, event: bool) {
        if self.paused {
            return;
        }
        // What an alarm is about comes after it; what waited from before would only eat its bytes.
        let alarmed = matches!(candidate.drift, DriftState::Suspect | DriftState::Alarm);
        if alarmed && !self.alarmed {
            self.clear_rounds();
            self.restart = true;
        }
        self.alarmed = alarmed;
        let lists = CLASSES_MAX + 4;
        let room = (HELD_BYTES_MAX / candidate.picture.bytes_held().max(1) / lists).clamp(1, PICKS_MAX);
        self.random.offer(candidate, room);
        if event {
            self.events.offer(candidate, candidate.number as f32, room);
        }
        self.uncertain[class_slot(candidate.class)].offer(candidate, -margin(&candidate.scores), room);
        if !candidate.projection.is_empty() {
            let novelty = self.novelty(&candidate.projection);
            self.novel.offer(candidate, novelty, room);
        }
    }

    /// Squared distance to the nearest of those kept.
    fn novelty(&self, projection: &[f32]) -> f32 {
        let to = |kept: &Vec<f32>| kept.iter().zip(projection).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let nearest = self.novel_kept.iter().map(to).fold(f32::INFINITY, f32::min);
        // Before anything was kept, novel is what is far from the mean.
        if nearest.is_finite() { nearest } else { projection.iter().map(|u| u * u).sum() }
    }

    /// The samples of the period, if it is over.
    pub fn collect(&mut self, now: Duration) -> Vec<(SampleManifest, Vec<u8>)> {
        if std::mem::take(&mut self.restart) {
            self.period_end = now + period(&self.config) / 4;
        }
        if now < self.period_end || self.paused {
            return Vec::new();
        }
        self.period_end = now + period(&self.config);
        self.pay_credits(now);
        let purpose = if self.alarmed { Purpose::Alarm } else { Purpose::Routine };
        let mut picks = Picks { now, purpose, taken: Vec::new(), out: Vec::new() };
        for (source, reason) in SOURCES.into_iter().enumerate() {
            let wanted = ((self.credits[source] / self.size) as usize).min(PICKS_MAX);
            if wanted > 0 {
                self.pick(reason, wanted, &mut picks);
            }
        }
        picks.out
    }

    /// Gives each source its share of what the period may spend.
    fn pay_credits(&mut self, now: Duration) {
        let pace = self.config.bytes_per_hour.min(self.budget.bytes_per_hour()) as f64 * self.config.period_s
            / 3600.0;
        let (quota, shares) = if self.alarmed {
            // An eighth of what is left, each period: much at once, and never nothing.
            let left = self.budget.left(now, Purpose::Alarm) as f64;
            ((4.0 * pace).max(left / 8.0).min(left), SHARES_ALARM)
        } else {
            let left = self.budget.left(now, Purpose::Routine) as f64;
            (pace.min(left), SHARES)
        };
        for (credit, share) in self.credits.iter_mut().zip(shares) {
            // Saved up at most for two samples beyond a period's share.
            *credit = (*credit + quota * share).min((quota * share).max(2.0 * self.size));
        }
    }

    fn pick(&mut self, reason: Reason, wanted: usize, picks: &mut Picks) {
        match reason {
            Reason::Random => {
                let round = self.random.finish(wanted);
                for candidate in &round.chosen {
                    self.take(candidate, reason, round.probability, picks);
                }
            }
            Reason::Uncertain => {
                let pools: Vec<Vec<Candidate>> = self.uncertain.iter_mut().map(Ranked::finish).collect();
                self.take_balanced(pools, wanted, picks);
            }
            Reason::Novel => {
                let mut left = self.novel.finish();
                for _ in 0..wanted {
                    // The farthest from all that were kept, which includes those just taken.
                    let farthest = |a: &usize, b: &usize| {
                        self.novelty(&left[*a].projection).total_cmp(&self.novelty(&left[*b].projection))
                    };
                    let Some(best) = (0..left.len()).max_by(farthest) else { break };
                    let candidate = left.swap_remove(best);
                    if self.share_after(class_slot(candidate.class)) <= CLASS_SHARE_MAX
                        && self.take(&candidate, reason, 1.0, picks)
                    {
                        if self.novel_kept.len() >= NOVEL_KEPT {
                            self.novel_kept.pop_front();
                        }
                        self.novel_kept.push_back(candidate.projection);
                    }
                }
            }
            Reason::Event => {
                for candidate in self.events.finish().iter().take(wanted) {
                    self.take(candidate, reason, 1.0, picks);
                }
            }
        }
    }

    /// The least sure first, but of each class neither too many nor too few, as far as there are any.
    fn take_balanced(&mut self, pools: Vec<Vec<Candidate>>, wanted: usize, picks: &mut Picks) {
        let mut pools: Vec<VecDeque<Candidate>> = pools.into_iter().map(VecDeque::from).collect();
        let mut taken = 0;
        while taken < wanted {
            let filled = || (0..pools.len()).filter(|i| !pools[*i].is_empty());
            let rare =
                filled().filter(|i| self.share_after(*i) < CLASS_SHARE_MIN).min_by_key(|i| self.chosen[*i]);
            let allowed = filled().filter(|i| self.share_after(*i) <= CLASS_SHARE_MAX);
            let least_sure =
                |a: &usize, b: &usize| margin(&pools[*a][0].scores).total_cmp(&margin(&pools[*b][0].scores));
            let next = rare.or_else(|| allowed.min_by(least_sure)).or_else(|| filled().min_by(least_sure));
            let Some(candidate) = next.and_then(|i| pools[i].pop_front()) else { return };
            taken += usize::from(self.take(&candidate, Reason::Uncertain, 1.0, picks));
        }
    }

    /// Share of a class among non-random picks if one more were of it. While there are few, no class has too many.
    fn share_after(&self, slot: usize) -> f64 {
        let total: u32 = self.chosen.iter().sum();
        if total < 4 { CLASS_SHARE_MAX } else { f64::from(self.chosen[slot] + 1) / f64::from(total + 1) }
    }

    /// Encodes and pays, unless it was sent before, looks like one that was, or is too dear.
    fn take(&mut self, candidate: &Candidate, reason: Reason, probability: f32, picks: &mut Picks) -> bool {
        let is_random = reason == Reason::Random;
        if picks.taken.contains(&candidate.number) || (!is_random && self.recent.has_alike(candidate.dhash)) {
            return false;
        }
        let (content_type, content) = match encode(&candidate.picture, self.config.encoding) {
            Ok(encoded) => encoded,
            Err(reason) => {
                tracing::warn!(source = candidate.source, reason, "a sample cannot be encoded");
                return false;
            }
        };
        let (size, digest) = (content.len() as u64, Digest::of(&content));
        let bytes = size + OVERHEAD_BYTES + size.div_ceil(CHUNK_BYTES as u64) * OVERHEAD_CHUNK_BYTES;
        if size > SAMPLE_BYTES_MAX
            || self.digests.contains(&digest)
            || !self.budget.spend(picks.now, bytes, picks.purpose)
        {
            return false;
        }
        self.credits[SOURCES.iter().position(|s| *s == reason).unwrap_or(0)] -= bytes as f64;
        self.size += 0.1 * (bytes as f64 - self.size);
        self.recent.push(candidate.dhash);
        if self.digests.len() >= DIGESTS_KEPT {
            self.digests.pop_front();
        }
        self.digests.push_back(digest);
        if !is_random {
            self.chosen[class_slot(candidate.class)] += 1;
            if self.chosen.iter().sum::<u32>() > 200 {
                self.chosen.iter_mut().for_each(|n| *n /= 2);
            }
        }
        picks.taken.push(candidate.number);
        let manifest = SampleManifest {
            digest,
            size,
            content_type: content_type.into(),
            captured_ms: candidate.captured_ms,
            boot: self.boot.clone(),
            frame: candidate.number,
            source: candidate.source.clone(),
            release: candidate.release.clone(),
            reason,
            inclusion_probability: probability,
            predicted: candidate.class as u32,
            scores: candidate.scores.clone(),
            drift: candidate.drift,
            projection: candidate.projection.clone(),
            stats: candidate.ranks.clone(),
            dhash: candidate.dhash,
        };
        picks.out.push((manifest, content));
        true
    }
}

/// A class may have at most and should have at least this share of the non-random picks.
const CLASS_SHARE_MAX: f64 = 0.6;
const CLASS_SHARE_MIN: f64 = 0.1;

/// What one period has chosen so far.
struct Picks {
    now: Duration,
    purpose: Purpose,
    /// Frames, so that none is sent for two reasons.
    taken: Vec<u64>,
    out: Vec<(SampleManifest, Vec<u8>)>,
}

fn period(config: &Config) -> Duration {
    Duration::try_from_secs_f64(config.period_s.clamp(0.1, 86_400.0)).unwrap_or(Duration::from_secs(10))
}

fn class_slot(class: usize) -> usize {
    class.min(CLASSES_MAX)
}

/// Distance between the two largest scores.
fn margin(scores: &[f32]) -> f32 {
    let (mut first, mut second) = (0.0f32, 0.0f32);
    for &score in scores {
        if score > first {
            (first, second) = (score, first);
        } else if score > second {
            second = score;
        }
    }
    first - second
}

fn encode(picture: &Picture, encoding: Encoding) -> Result<(&'static str, Vec<u8>), String> {
    let image = match picture {
        Picture::File(file) => return Ok((file.content_type, file.bytes.clone())),
        Picture::Pixels(image) => image,
    };
    let color =
        if image.channels() == 1 { image::ExtendedColorType::L8 } else { image::ExtendedColorType::Rgb8 };
    let side = |n: usize| u32::try_from(n).map_err(|_| "too large a picture".to_owned());
    let (width, height) = (side(image.width())?, side(image.height())?);
    let mut bytes = Vec::new();
    let (content_type, written) = match encoding {
        Encoding::Jpeg => {
            let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95);
            ("image/jpeg", encoder.encode(image.pixels(), width, height, color))
        }
        Encoding::Png => {
            let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
            ("image/png", image::ImageEncoder::write_image(encoder, image.pixels(), width, height, color))
        }
    };
    written.map(|()| (content_type, bytes)).map_err(|error| error.to_string())
}
