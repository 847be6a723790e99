//! What to send next: a pure state machine over what waits in the spool, what is under way and what the server
//! acknowledged. It does no I/O and is given the time, so that loss, repetition, reordering and reconnection are
//! table tests.
//!
//! Invariants:
//! - At most [`Limits::publishes`] publishes without PUBACK, of which at most [`Limits::chunks`] are chunks.
//! - Telemetry goes ahead of manifests, manifests ahead of chunks; a sample's chunks go only after the server said
//!   which ones it lacks.
//! - A PUBACK moves the window and nothing else. Only the server's acknowledgement forgets ([`Forget`]).
//! - What is not acknowledged [`Limits::resend`] after it was sent goes again; a new session starts from nothing.
//! - Memory is bounded by the limits and by the chunks of the samples under way.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use andon_protocol::{
    Digest,
    ack::{Ack, SampleAck, SampleState, TelemetryAck},
};

use crate::spool::{BatchKey, Position};

/// What the window needs to know of the spool.
pub trait Waiting {
    /// The next records after a position.
    fn next_batch(&self, after: Option<Position>) -> Option<BatchKey>;
    /// The next sample that `skip` does not refuse, and its number of chunks.
    fn next_sample(&self, skip: &dyn Fn(&Digest) -> bool) -> Option<(Digest, u32)>;
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub publishes: usize,
    pub chunks: usize,
    /// Batches that the server has not acknowledged.
    pub batches: usize,
    /// Samples that the server has not acknowledged.
    pub samples: usize,
    pub resend: Duration,
}

impl Limits {
    /// 16 publishes is what client and broker agree on; two are kept for status and report.
    pub fn new(resend: Duration) -> Self {
        Self { publishes: 14, chunks: 4, batches: 8, samples: 4, resend }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    Telemetry(BatchKey),
    Manifest(Digest),
    Chunk(Digest, u32),
}

/// What an acknowledgement allows to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forget {
    Telemetry(TelemetryAck),
    Sample(Digest),
    /// The server will never take it.
    Refused(Digest, String),
}

#[derive(Debug)]
pub struct Window {
    limits: Limits,
    /// Publishes without PUBACK, and the chunks among them.
    publishes: usize,
    chunks: usize,
    batches: Vec<SentBatch>,
    /// Records up to here are under way or were acknowledged.
    cursor: Option<Position>,
    uploads: BTreeMap<Digest, Upload>,
    next_order: u64,
    paused: bool,
}

#[derive(Debug)]
struct SentBatch {
    key: BatchKey,
    sent: Duration,
}

#[derive(Debug)]
struct Upload {
    order: u64,
    chunks: u32,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// The manifest is to be sent.
    Announce,
    /// The server's word is awaited since then.
    Await(Duration),
    /// These chunks are missing.
    Send(VecDeque<u32>),
}

impl Window {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            publishes: 0,
            chunks: 0,
            batches: Vec::new(),
            cursor: None,
            uploads: BTreeMap::new(),
            next_order: 0,
            paused: false,
        }
    }

    /// A new session: nothing of the old one is known to have arrived.
    pub fn reset(&mut self) {
        *self = Self { paused: self.paused, ..Self::new(self.limits) };
    }

    /// Samples wait while the server says so; telemetry goes on.
    pub fn pause_samples(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// The most urgent thing that may be sent now. The same again until [`sent`](Self::sent) or
    /// [`gone`](Self::gone).
    pub fn next(&self, now: Duration, waiting: &dyn Waiting) -> Option<Outgoing> {
        if self.publishes >= self.limits.publishes {
            return None;
        }
        self.next_telemetry(now, waiting)
            .or_else(|| if self.paused { None } else { self.next_of_samples(now, waiting) })
    }

    fn next_telemetry(&self, now: Duration, waiting: &dyn Waiting) -> Option<Outgoing> {
        if let Some(overdue) = self.batches.iter().find(|batch| self.is_overdue(batch.sent, now)) {
            return Some(Outgoing::Telemetry(overdue.key.clone()));
        }
        if self.batches.len() >= self.limits.batches {
            return None;
        }
        // After a partial acknowledgement the cursor stands before batches that are still under way: step over them.
        let mut after = self.cursor;
        for _ in 0..=self.batches.len() {
            let mut key = waiting.next_batch(after)?;
            let in_the_way = self.batches.iter().filter(|batch| overlap(&batch.key, &key));
            match in_the_way.map(|batch| &batch.key).min_by_key(|sent| sent.first.seq) {
                None => return Some(Outgoing::Telemetry(key)),
                Some(sent) if sent.first.seq > key.first.seq => {
                    key.last_seq = sent.first.seq - 1;
                    return Some(Outgoing::Telemetry(key));
                }
                Some(sent) => after = after.max(Some(last_position(sent))),
            }
        }
        None
    }

    fn next_of_samples(&self, now: Duration, waiting: &dyn Waiting) -> Option<Outgoing> {
        let due = |upload: &Upload| match upload.phase {
            Phase::Announce => true,
            Phase::Await(since) => self.is_overdue(since, now),
            Phase::Send(_) => false,
        };
        let mut uploads: Vec<_> = self.uploads.iter().collect();
        uploads.sort_unstable_by_key(|(_, upload)| upload.order);
        if let Some((digest, _)) = uploads.iter().find(|(_, upload)| due(upload)) {
            return Some(Outgoing::Manifest(**digest));
        }
        if self.uploads.len() < self.limits.samples {
            let new = waiting.next_sample(&|digest| self.uploads.contains_key(digest));
            if let Some((digest, _)) = new {
                return Some(Outgoing::Manifest(digest));
            }
        }
        if self.chunks >= self.limits.chunks {
            return None;
        }
        uploads.into_iter().find_map(|(digest, upload)| match &upload.phase {
            Phase::Send(missing) => missing.front().map(|index| Outgoing::Chunk(*digest, *index)),
            _ => None,
        })
    }

    /// `outgoing` was handed to the connection. For a manifest, `chunks` is the number of its sample.
    pub fn sent(&mut self, outgoing: &Outgoing, chunks: u32, now: Duration) {
        self.publishes += 1;
        match outgoing {
            Outgoing::Telemetry(key) => {
                self.batches.retain(|batch| batch.key != *key);
                self.batches.push(SentBatch { key: key.clone(), sent: now });
                self.cursor = self.cursor.max(Some(last_position(key)));
            }
            Outgoing::Manifest(digest) => {
                let order = self.next_order;
                self.next_order += 1;
                let new = || Upload { order, chunks, phase: Phase::Announce };
                self.uploads.entry(*digest).or_insert_with(new).phase = Phase::Await(now);
            }
            Outgoing::Chunk(digest, index) => {
                self.chunks += 1;
                let Some(upload) = self.uploads.get_mut(digest) else { return };
                if let Phase::Send(missing) = &mut upload.phase {
                    missing.retain(|i| i != index);
                    if missing.is_empty() {
                        upload.phase = Phase::Await(now);
                    }
                }
            }
        }
    }

    /// The spool does not have it any more (evicted, damaged).
    pub fn gone(&mut self, outgoing: &Outgoing) {
        match outgoing {
            Outgoing::Telemetry(key) => {
                self.batches.retain(|batch| batch.key != *key);
                self.cursor = self.cursor.max(Some(last_position(key)));
            }
            Outgoing::Manifest(digest) | Outgoing::Chunk(digest, _) => {
                self.uploads.remove(digest);
            }
        }
    }

    /// The next hop has taken a publish.
    pub fn published(&mut self, is_chunk: bool) {
        self.publishes = self.publishes.saturating_sub(1);
        if is_chunk {
            self.chunks = self.chunks.saturating_sub(1);
        }
    }

    /// The server's word. Repeated and unknown items are harmless.
    pub fn acknowledged(&mut self, ack: Ack, now: Duration) -> Vec<Forget> {
        let mut forget = Vec::new();
        for range in ack.telemetry {
            self.acknowledged_telemetry(&range);
            forget.push(Forget::Telemetry(range));
        }
        for SampleAck { digest, state } in ack.samples {
            match state {
                SampleState::Done => {
                    self.uploads.remove(&digest);
                    forget.push(Forget::Sample(digest));
                }
                SampleState::Refused { reason } => {
                    self.uploads.remove(&digest);
                    forget.push(Forget::Refused(digest, reason));
                }
                SampleState::Need { missing } => {
                    if let Some(upload) = self.uploads.get_mut(&digest) {
                        let missing = expand(&missing, upload.chunks);
                        upload.phase =
                            if missing.is_empty() { Phase::Await(now) } else { Phase::Send(missing) };
                    }
                }
            }
        }
        forget
    }

    fn acknowledged_telemetry(&mut self, range: &TelemetryAck) {
        let touched = |key: &BatchKey| {
            key.boot == range.boot && key.first.seq <= range.last_seq && range.first_seq <= key.last_seq
        };
        let whole = |key: &BatchKey| range.first_seq <= key.first.seq && key.last_seq <= range.last_seq;
        let partial = self.batches.iter().any(|b| touched(&b.key) && !whole(&b.key));
        self.batches.retain(|batch| !touched(&batch.key));
        if partial {
            // What is left of it is found again from the start.
            self.cursor = None;
        }
    }

    /// When [`next`](Self::next) may say something new without any event: a resend comes due.
    pub fn next_due(&self) -> Option<Duration> {
        let uploads = self.uploads.values().filter_map(|upload| match upload.phase {
            Phase::Await(since) => Some(since),
            _ => None,
        });
        let sent = self.batches.iter().map(|batch| batch.sent).chain(uploads).min()?;
        Some(sent.saturating_add(self.limits.resend))
    }

    fn is_overdue(&self, sent: Duration, now: Duration) -> bool {
        now >= sent.saturating_add(self.limits.resend)
    }
}

fn last_position(key: &BatchKey) -> Position {
    Position { segment: key.first.segment, seq: key.last_seq }
}

fn overlap(a: &BatchKey, b: &BatchKey) -> bool {
    a.first.segment == b.first.segment && a.first.seq <= b.last_seq && b.first.seq <= a.last_seq
}

/// Chunk numbers of half-open ranges, each once, none beyond the sample.
fn expand(ranges: &[(u32, u32)], chunks: u32) -> VecDeque<u32> {
    let mut missing: Vec<u32> =
        ranges.iter().take(256).flat_map(|(from, to)| *from..(*to).min(chunks)).collect();
    missing.sort_unstable();
    missing.dedup();
    missing.into()
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
