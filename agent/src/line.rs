//! A shared handle on the frame path for the parts beside it, and what "it gets on" means: the one judgement that the
//! watchdog, `/health` and the service manager act on.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use andon_protocol::{
    sample::{Reason, SampleManifest},
    state::UploadPolicy,
    telemetry::{DriftState, Record},
};

use crate::{
    pipeline::{Health, LoadedRelease, Pipeline, Sink, lock},
    spool::{
        Value,
        writer::{Intake, Item},
    },
};

#[derive(Clone, Default)]
pub struct Line(Arc<Mutex<Option<Pipeline>>>);

impl Line {
    pub fn new(pipeline: Pipeline) -> Self {
        Self(Arc::new(Mutex::new(Some(pipeline))))
    }

    /// `None` after [`stop`](Self::stop).
    pub fn health(&self) -> Option<Health> {
        lock(&self.0).as_ref().map(Pipeline::health)
    }

    /// `false` after [`stop`](Self::stop).
    pub fn install(&self, release: LoadedRelease) -> bool {
        lock(&self.0).as_ref().map(|pipeline| pipeline.install(release)).is_some()
    }

    pub fn set_upload(&self, policy: UploadPolicy) {
        if let Some(pipeline) = &*lock(&self.0) {
            pipeline.set_upload(policy);
        }
    }

    /// Judges what the camera has given and ends the threads.
    pub fn stop(&self) {
        let pipeline = lock(&self.0).take();
        if let Some(pipeline) = pipeline {
            pipeline.stop();
        }
    }
}

/// How the frame path does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// No release yet: there is nothing to judge with.
    Waiting,
    Judging,
    /// A thread has ended, or no verdict came for too long.
    Stalled,
}

/// Verdicts must come at least this often, whatever the camera's rate.
pub fn progress(health: Option<&Health>, silence_max: Duration) -> Progress {
    match health {
        None => Progress::Stalled,
        Some(health) if !health.alive => Progress::Stalled,
        Some(Health { running: None, .. }) => Progress::Waiting,
        Some(Health { last_verdict_age: Some(age), .. }) if *age > silence_max => Progress::Stalled,
        Some(_) => Progress::Judging,
    }
}

/// The frame path's records and samples go to the spool's queue.
pub struct SpoolSink(pub Intake);

impl Sink for SpoolSink {
    fn record(&self, record: Record) {
        self.0.offer(Item::Record(record));
    }

    fn sample(&self, manifest: SampleManifest, content: Vec<u8>) {
        let value = value_of(&manifest);
        self.0.offer(Item::Sample { value, manifest: Box::new(manifest), image: content });
    }
}

/// What a sample is worth when the disk is full.
fn value_of(manifest: &SampleManifest) -> Value {
    match (manifest.reason, manifest.drift) {
        (Reason::Event, _) => Value::Evidence,
        (_, DriftState::Suspect | DriftState::Alarm | DriftState::Cooldown) => Value::Useful,
        (Reason::Random, _) => Value::Routine,
        (Reason::Uncertain | Reason::Novel, _) => Value::Useful,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verdicts_are_progress() {
        let second = Duration::from_secs(1);
        let waiting = Health { alive: true, ..Health::default() };
        let running = andon_protocol::state::Running {
            release: "cell/1".parse().unwrap(),
            model: andon_protocol::Digest::of(b""),
            engine: "tract".into(),
        };
        let judging =
            |age| Health { running: Some(running.clone()), last_verdict_age: age, ..waiting.clone() };
        for (health, expected) in [
            (None, Progress::Stalled),
            (Some(Health::default()), Progress::Stalled),
            (Some(waiting.clone()), Progress::Waiting),
            (Some(judging(None)), Progress::Judging),
            (Some(judging(Some(second))), Progress::Judging),
            (Some(judging(Some(second * 2))), Progress::Stalled),
        ] {
            assert_eq!(progress(health.as_ref(), second), expected, "{health:?}");
        }
    }
}
