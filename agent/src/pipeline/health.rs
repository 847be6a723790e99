//! What the frame path counts, and the snapshot of it that the updater, the local endpoint and telemetry read.
//! Constant memory.

use std::time::Duration;

use andon_protocol::{
    ReleaseId,
    state::Running,
    telemetry::{Chart, DriftState, Window},
};

use crate::decision::{Reason, Verdict};

/// Latency in logarithmic buckets, eight to an octave: a percentile is at most 9 % too high.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    buckets: Vec<u32>,
    count: u32,
}

impl Histogram {
    const PER_OCTAVE: u32 = 8;
    /// Up to 2^32 µs, over an hour.
    const BUCKETS: usize = 32 * Self::PER_OCTAVE as usize;

    fn new() -> Self {
        Self { buckets: vec![0; Self::BUCKETS], count: 0 }
    }

    fn push(&mut self, value_us: u32) {
        let octaves = f64::from(value_us.max(1)).log2();
        let bucket = (octaves * f64::from(Self::PER_OCTAVE)) as usize;
        self.buckets[bucket.min(Self::BUCKETS - 1)] += 1;
        self.count = self.count.saturating_add(1);
    }

    /// Upper edge of the bucket in which share `p` of the values is reached; 0 when there are none.
    fn percentile_us(&self, p: f64) -> u32 {
        let rank = (f64::from(self.count) * p).ceil().max(1.0) as u64;
        let mut seen = 0u64;
        let bucket = self.buckets.iter().position(|n| {
            seen += u64::from(*n);
            seen >= rank
        });
        bucket.map_or(0, |b| ((b + 1) as f64 / f64::from(Self::PER_OCTAVE)).exp2() as u32)
    }
}

/// Counts over a stretch of frames.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    frames: u64,
    dropped: u64,
    faults: u64,
    release_faults: u64,
    classes: Vec<u32>,
    latency: Histogram,
    confidence_sum: f64,
}

impl Tally {
    pub(super) fn new(labels: usize) -> Self {
        Self {
            frames: 0,
            dropped: 0,
            faults: 0,
            release_faults: 0,
            classes: vec![0; labels],
            latency: Histogram::new(),
            confidence_sum: 0.0,
        }
    }

    fn judged(&self) -> u64 {
        self.frames - self.dropped - self.faults
    }

    fn confidence_mean(&self) -> f32 {
        match self.judged() {
            0 => 0.0,
            n => (self.confidence_sum / n as f64) as f32,
        }
    }

    fn push(&mut self, entry: &Entry) {
        self.frames += 1;
        match entry.reason {
            Some(Reason::Dropped) => self.dropped += 1,
            Some(reason) => {
                self.faults += 1;
                self.release_faults += u64::from(reason.is_of_the_release());
            }
            None => {
                if let Some(count) = entry.class.and_then(|c| self.classes.get_mut(c)) {
                    *count += 1;
                }
                self.confidence_sum += f64::from(entry.confidence);
                self.latency.push(entry.latency_us);
            }
        }
    }

    fn counters(&self) -> Counters {
        Counters {
            frames: self.frames,
            dropped: self.dropped,
            faults: self.faults,
            release_faults: self.release_faults,
            classes: self.classes.clone(),
            latency_p50_us: self.latency.percentile_us(0.5),
            latency_p99_us: self.latency.percentile_us(0.99),
            confidence_mean: self.confidence_mean(),
        }
    }
}

/// One frame's outcome, as it is counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) verdict: Verdict,
    pub(super) reason: Option<Reason>,
    pub(super) class: Option<usize>,
    pub(super) confidence: f32,
    pub(super) latency_us: u32,
}

/// Counts over a stretch of frames. `frames` = judged + `faults` + `dropped`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Counters {
    pub frames: u64,
    pub dropped: u64,
    pub faults: u64,
    /// Of the faults those that the release may be to blame for: late, failed, panicked, not finite.
    pub release_faults: u64,
    /// Judged frames by class, in the order of the manifest's labels.
    pub classes: Vec<u32>,
    pub latency_p50_us: u32,
    pub latency_p99_us: u32,
    pub confidence_mean: f32,
}

impl Counters {
    pub fn judged(&self) -> u64 {
        self.frames - self.dropped - self.faults
    }
}

/// A snapshot of the pipeline.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Health {
    /// All threads of the frame path run. Once false it stays false: restart the process.
    pub alive: bool,
    /// What frames are judged with now.
    pub running: Option<Running>,
    /// Releases swapped in since the start; tells a guard when the one it waits for has come.
    pub installs: u64,
    /// Frames of the release that runs now; what a trial is judged by.
    pub since_install: Counters,
    pub total: Counters,
    /// Age of the newest verdict; `None` before the first one.
    pub last_verdict_age: Option<Duration>,
    pub drift: DriftState,
    pub charts: Vec<Chart>,
    /// Frames that drift and selection did not see since they were busy.
    pub unwatched: u64,
    /// Verdict lines that could not be written.
    pub output_failures: u64,
}

/// The shared counts, under one short lock.
pub(super) struct Board {
    pub(super) alive: bool,
    running: Option<Running>,
    installs: u64,
    labels: usize,
    since_install: Tally,
    total: Tally,
    window: Tally,
    window_start: Duration,
    /// Windows that a change of release closed early.
    finished: Vec<Window>,
    last_verdict: Option<Duration>,
    pub(super) drift: DriftState,
    pub(super) charts: Vec<Chart>,
    pub(super) unwatched: u64,
    pub(super) output_failures: u64,
}

impl Board {
    /// Changes of release within one window that are told apart.
    const FINISHED_MAX: usize = 16;

    pub(super) fn new(now: Duration) -> Self {
        Self {
            alive: true,
            running: None,
            installs: 0,
            labels: 0,
            since_install: Tally::new(0),
            total: Tally::new(0),
            window: Tally::new(0),
            window_start: now,
            finished: Vec::new(),
            last_verdict: None,
            drift: DriftState::NoReference,
            charts: Vec::new(),
            unwatched: 0,
            output_failures: 0,
        }
    }

    pub(super) fn count(&mut self, entry: &Entry, now: Duration) {
        debug_assert_eq!(entry.verdict == Verdict::Fault, entry.reason.is_some());
        [&mut self.window, &mut self.since_install, &mut self.total].into_iter().for_each(|t| t.push(entry));
        self.last_verdict = Some(now);
    }

    /// Frames that were dropped without a note.
    pub(super) fn count_dropped(&mut self, frames: u64) {
        for tally in [&mut self.window, &mut self.since_install, &mut self.total] {
            tally.frames += frames;
            tally.dropped += frames;
        }
    }

    pub(super) fn install(&mut self, running: Running, labels: usize, now: Duration) {
        if let Some(window) = self.close_window(now).filter(|_| self.finished.len() < Self::FINISHED_MAX) {
            self.finished.push(window);
        }
        self.running = Some(running);
        self.installs += 1;
        self.labels = labels;
        self.since_install = Tally::new(labels);
        self.window = Tally::new(labels);
        // Class counts of different label sets do not add up; the total counts frames, not classes.
        self.total.classes = Vec::new();
        self.drift = DriftState::NoReference;
        self.charts.clear();
    }

    /// The release that runs now runs on another engine.
    pub(super) fn run_on(&mut self, engine: String) {
        if let Some(running) = &mut self.running {
            running.engine = engine;
        }
    }

    pub(super) fn has_release(&self) -> bool {
        self.running.is_some()
    }

    pub(super) fn window_age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.window_start)
    }

    /// Windows that ended early.
    pub(super) fn take_finished(&mut self) -> Vec<Window> {
        std::mem::take(&mut self.finished)
    }

    /// Ends the current window and starts the next. `None` if there is nothing to tell: no release and no frame.
    pub(super) fn close_window(&mut self, now: Duration) -> Option<Window> {
        let age = self.window_age(now);
        let tally = std::mem::replace(&mut self.window, Tally::new(self.labels));
        self.window_start = now;
        let release: Option<ReleaseId> = self.running.as_ref().map(|r| r.release.clone());
        if release.is_none() && tally.frames == 0 {
            return None;
        }
        let clamped = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Some(Window {
            release,
            duration_ms: clamped(age.as_millis() as u64),
            frames: clamped(tally.frames),
            frames_dropped: clamped(tally.dropped),
            faults: clamped(tally.faults),
            latency_p50_us: tally.latency.percentile_us(0.5),
            latency_p99_us: tally.latency.percentile_us(0.99),
            confidence_mean: tally.confidence_mean(),
            class_counts: tally.classes,
            drift: self.drift,
            charts: self.charts.clone(),
        })
    }

    pub(super) fn snapshot(&self, now: Duration) -> Health {
        Health {
            alive: self.alive,
            running: self.running.clone(),
            installs: self.installs,
            since_install: self.since_install.counters(),
            total: self.total.counters(),
            last_verdict_age: self.last_verdict.map(|at| now.saturating_sub(at)),
            drift: self.drift,
            charts: self.charts.clone(),
            unwatched: self.unwatched,
            output_failures: self.output_failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_percentile_is_at_most_nine_percent_high(mut values in proptest::collection::vec(1u32..10_000_000, 1..200)) {
            let mut histogram = Histogram::new();
            values.iter().for_each(|v| histogram.push(*v));
            values.sort_unstable();
            let exact = values[(values.len() as f64 * 0.5).ceil() as usize - 1];
            let told = histogram.percentile_us(0.5);
            prop_assert!(told >= exact && f64::from(told) <= f64::from(exact) * 1.1 + 1.0, "{told} for {exact}");
        }
    }
}
