//! What waits for the server, on disk, for weeks if need be: telemetry records in append-only segments, samples as
//! files.
//!
//! ```text
//! FOLDER/segments/NUMBER.seg   `segment`: of one boot each, at most SEGMENT_BYTES_MAX
//! FOLDER/samples/DIGEST.smp    `sample_file`
//! FOLDER/index/                `index`: sled; can be deleted at any time while the agent is stopped
//! ```
//!
//! Invariants:
//! - What [`Spool::append`] and [`Spool::put_sample`] returned `Ok` for survives a power cut, until the server's
//!   acknowledgement or an eviction that is counted.
//! - Segments and sample files are the truth; the index is reconciled with them at every start. Losing it loses no
//!   record and doubles none.
//! - Bytes and files stay below the budget. The least valuable goes first ([`eviction`]): routine samples, useful
//!   ones, windows of telemetry, evidence, events; within a kind the oldest. The open segment is never touched.
//! - What is dropped is counted, told as `Event::SpoolDropped` with the next records, and stands in the report.
//!
//! It does not know the network, and it blocks on the disk: the frame path reaches it through [`writer`] only.

mod eviction;
mod index;
mod recovery;
mod sample_file;
mod segment;
#[cfg(test)]
mod tests;
pub mod writer;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use andon_protocol::{
    BootId, Digest,
    ack::TelemetryAck,
    sample::SampleManifest,
    state::SpoolReport,
    telemetry::{Body, Event, Record, TelemetryBatch},
};

use crate::{clock::Clock, files, files::Disk};
use index::{Index, SampleEntry};
pub use recovery::Recovery;
pub use sample_file::Value;
use segment::{Class, Entry};

/// A segment is closed when it is larger than this.
pub const SEGMENT_BYTES_MAX: u64 = 256 * 1024;
/// What one segment file may be at most: the limit, and one batch over it.
const SEGMENT_READ_MAX: u64 = SEGMENT_BYTES_MAX + APPEND_BYTES_MAX as u64;
/// Records of one call beyond this are dropped and counted.
const APPEND_BYTES_MAX: usize = 1024 * 1024;
/// Payload bytes of a batch; leaves room for what is around the records.
const BATCH_BYTES_MAX: u32 = 56 * 1024;
/// A sample file: the largest image and its description.
const SAMPLE_READ_MAX: u64 = andon_protocol::sample::SAMPLE_BYTES_MAX + 32 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("spool: {0}")]
    Disk(#[from] io::Error),
    #[error(transparent)]
    Index(#[from] index::IndexError),
    #[error("spool: a sample breaks a rule: {0}")]
    Sample(String),
}

/// What the spool may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub bytes_max: u64,
    /// Inodes: segments and samples.
    pub files_max: u64,
}

/// Where a record lies. Orders records by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub segment: u64,
    pub seq: u64,
}

/// Consecutive records of one boot that wait, to be sent as one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchKey {
    pub boot: BootId,
    pub first: Position,
    pub last_seq: u64,
}

pub struct Spool {
    inner: Mutex<Inner>,
}

struct Inner {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    folder: PathBuf,
    boot: BootId,
    budget: Budget,
    index: Index,
    segments: BTreeMap<u64, Segment>,
    /// The segment that is written to.
    open: Option<u64>,
    next_segment: u64,
    next_seq: u64,
    samples: BTreeMap<(Value, u64), (Digest, u64)>,
    by_digest: HashMap<Digest, (Value, u64)>,
    next_arrival: u64,
    sample_bytes: u64,
    dropped: Dropped,
    /// Dropped, and not yet told in a record.
    untold: Dropped,
}

#[derive(Debug, Clone)]
struct Segment {
    boot: BootId,
    bytes: u64,
    waiting: u64,
    windows: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Dropped {
    records: u64,
    samples: u64,
    bytes: u64,
}

impl Dropped {
    fn add(&mut self, other: Dropped) {
        self.records += other.records;
        self.samples += other.samples;
        self.bytes += other.bytes;
    }
}

impl Spool {
    /// Opens, repairs and reconciles what lies in `folder`. Records of this process get the boot id `boot`.
    pub fn open(
        folder: &Path,
        boot: BootId,
        budget: Budget,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), SpoolError> {
        let (inner, recovery) = recovery::open(folder, boot, budget, disk, clock)?;
        Ok((Self { inner: Mutex::new(inner) }, recovery))
    }

    /// Makes records durable, in one append and one fsync, and numbers them.
    pub fn append(&self, records: Vec<Record>) -> Result<(), SpoolError> {
        let mut inner = self.lock();
        inner.append(records)?;
        inner.enforce_budget()
    }

    /// Makes a sample durable. One that waits already is left as it is. `false`: it has no room beside more valuable
    /// ones and was dropped.
    pub fn put_sample(
        &self,
        value: Value,
        manifest: &SampleManifest,
        image: &[u8],
    ) -> Result<bool, SpoolError> {
        if manifest.size != image.len() as u64 || manifest.digest != Digest::of(image) {
            return Err(SpoolError::Sample("the manifest's digest or size is not the image's".into()));
        }
        andon_protocol::codec::Wire::check(manifest).map_err(SpoolError::Sample)?;
        let mut inner = self.lock();
        inner.put_sample(value, manifest, image)?;
        inner.enforce_budget()?;
        Ok(inner.by_digest.contains_key(&manifest.digest))
    }

    /// The next records that wait after a position: of one boot, consecutive, as many as fit one batch.
    pub fn next_batch(&self, after: Option<Position>) -> Result<Option<BatchKey>, SpoolError> {
        let inner = self.lock();
        let mut batch: Option<BatchKey> = None;
        let (mut records, mut bytes) = (0, 0);
        for item in inner.index.records_after(after) {
            let (position, entry) = item?;
            let Some(segment) = inner.segments.get(&position.segment) else { continue };
            match &mut batch {
                None => {
                    batch = Some(BatchKey {
                        boot: segment.boot.clone(),
                        first: position,
                        last_seq: position.seq,
                    });
                }
                Some(batch) => {
                    let fits =
                        records < TelemetryBatch::RECORDS_MAX && bytes + entry.bytes <= BATCH_BYTES_MAX;
                    let next = batch.first.segment == position.segment && batch.last_seq + 1 == position.seq;
                    if !(fits && next) {
                        break;
                    }
                    batch.last_seq = position.seq;
                }
            }
            records += 1;
            bytes += entry.bytes;
        }
        Ok(batch)
    }

    /// The records of a batch that still wait, up to the first gap. `None`: none is left.
    pub fn read_batch(&self, key: &BatchKey) -> Result<Option<TelemetryBatch>, SpoolError> {
        self.lock().read_batch(key)
    }

    /// The server has these records: they are forgotten. Unknown ones are no error.
    pub fn acknowledge(&self, ack: &TelemetryAck) -> Result<u64, SpoolError> {
        self.lock().acknowledge(ack)
    }

    /// The sample to send next, evidence first, then the oldest.
    pub fn next_sample(&self, skip: &dyn Fn(&Digest) -> bool) -> Option<(Digest, u64)> {
        let inner = self.lock();
        let evidence = inner.samples.range((Value::Evidence, 0)..).map(|(_, sample)| *sample);
        if let Some(found) = evidence.into_iter().find(|(digest, _)| !skip(digest)) {
            return Some(found);
        }
        let rest = inner.samples.range(..(Value::Evidence, 0)).filter(|(_, (digest, _))| !skip(digest));
        rest.min_by_key(|((_, arrival), _)| *arrival).map(|(_, sample)| *sample)
    }

    /// A sample as it was put. `None`: it isn't here (any more); one that is damaged is dropped and counted.
    pub fn read_sample(&self, digest: &Digest) -> Result<Option<(SampleManifest, Vec<u8>)>, SpoolError> {
        self.lock().read_sample(digest)
    }

    /// The server has the sample, or will never take it: it is forgotten. `false`: it was not here.
    pub fn forget_sample(&self, digest: &Digest) -> Result<bool, SpoolError> {
        let mut inner = self.lock();
        let Some(key) = inner.by_digest.get(digest).copied() else { return Ok(false) };
        inner.remove_sample(key)?;
        Ok(true)
    }

    pub fn report(&self) -> SpoolReport {
        let inner = self.lock();
        SpoolReport {
            bytes: inner.bytes(),
            records: inner.segments.values().map(|s| s.waiting).sum(),
            samples: inner.samples.len() as u64,
            records_dropped: inner.dropped.records,
            samples_dropped: inner.dropped.samples,
        }
    }

    /// Writes the index out; called at an orderly stop.
    pub fn flush(&self) -> Result<(), SpoolError> {
        Ok(self.lock().index.flush()?)
    }

    /// Things that were lost before they reached the spool (a full queue, a failed write) count as dropped, too.
    pub fn count_lost(&self, records: u64, samples: u64) {
        self.lock().count(Dropped { records, samples, bytes: 0 });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock leaves the disk as after a power cut, which the next start repairs.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    fn segment_path(&self, number: u64) -> PathBuf {
        self.folder.join("segments").join(format!("{number:016x}.seg"))
    }

    fn sample_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("samples").join(format!("{digest}.smp"))
    }

    fn bytes(&self) -> u64 {
        self.sample_bytes + self.segments.values().map(|s| s.bytes).sum::<u64>()
    }

    fn count(&mut self, dropped: Dropped) {
        self.dropped.add(dropped);
        self.untold.add(dropped);
    }

    fn append(&mut self, mut records: Vec<Record>) -> Result<(), SpoolError> {
        let told = self.untold;
        if told != Dropped::default() {
            let Dropped { records: lost, samples, bytes } = told;
            let event = Event::SpoolDropped { records: lost, samples, bytes };
            records.push(Record { at_ms: self.clock.now_ms(), body: Body::Event(event) });
        }
        if records.is_empty() {
            return Ok(());
        }
        let number = match self.open {
            Some(number) if self.segments.get(&number).is_some_and(|s| s.bytes < SEGMENT_BYTES_MAX) => number,
            _ => self.next_segment,
        };
        let is_new = Some(number) != self.open;
        let mut bytes = if is_new { segment::header(&self.boot) } else { Vec::new() };
        let start = if is_new { 0 } else { self.segments[&number].bytes };
        let mut entries = Vec::with_capacity(records.len());
        let mut too_large = 0;
        for record in &records {
            let offset = start as u32 + bytes.len() as u32;
            let room = bytes.len() < APPEND_BYTES_MAX - segment::RECORD_BYTES_MAX;
            match room.then(|| segment::push_entry(&mut bytes, self.next_seq, record)).flatten() {
                Some((class, length)) => {
                    entries.push(Entry { seq: self.next_seq, class, offset, bytes: length as u32 });
                    self.next_seq += 1;
                }
                None => too_large += 1,
            }
        }
        if let Err(error) = self.write_segment(number, &bytes, is_new) {
            // The tail may be torn, and what comes after a torn entry is lost: never write to this segment again.
            self.open = None;
            self.next_segment = self.next_segment.max(number + 1);
            self.count(Dropped { records: records.len() as u64, ..Dropped::default() });
            return Err(error.into());
        }
        self.open = Some(number);
        self.next_segment = self.next_segment.max(number + 1);
        self.untold = Dropped::default();
        self.count(Dropped { records: too_large, ..Dropped::default() });
        let boot = self.boot.clone();
        let segment =
            self.segments.entry(number).or_insert(Segment { boot, bytes: 0, waiting: 0, windows: 0 });
        segment.bytes += bytes.len() as u64;
        segment.waiting += entries.len() as u64;
        segment.windows += entries.iter().filter(|e| e.class == Class::Window).count() as u64;
        let mut changes = self.index.begin();
        entries.iter().for_each(|entry| changes.put_record(number, entry));
        changes.set_entered(number, self.next_seq);
        Ok(self.index.apply(changes)?)
    }

    fn write_segment(&self, number: u64, bytes: &[u8], is_new: bool) -> io::Result<()> {
        let path = self.segment_path(number);
        self.disk.append(&path, bytes)?;
        self.disk.sync(&path)?;
        if is_new { self.disk.sync(&self.folder.join("segments")) } else { Ok(()) }
    }

    fn put_sample(
        &mut self,
        value: Value,
        manifest: &SampleManifest,
        image: &[u8],
    ) -> Result<(), SpoolError> {
        if self.by_digest.contains_key(&manifest.digest) {
            return Ok(());
        }
        let content = sample_file::encode(value, manifest, image);
        let path = self.sample_path(&manifest.digest);
        if let Err(error) = files::replace(self.disk.as_ref(), &path, &content) {
            self.count(Dropped { samples: 1, ..Dropped::default() });
            return Err(error.into());
        }
        let entry = SampleEntry { value, bytes: content.len() as u64, arrival: self.next_arrival };
        self.next_arrival += 1;
        self.enter_sample(manifest.digest, entry);
        let mut changes = self.index.begin();
        changes.put_sample(&manifest.digest, &entry);
        Ok(self.index.apply(changes)?)
    }

    fn enter_sample(&mut self, digest: Digest, entry: SampleEntry) {
        let key = (entry.value, entry.arrival);
        self.samples.insert(key, (digest, entry.bytes));
        self.by_digest.insert(digest, key);
        self.sample_bytes += entry.bytes;
        self.next_arrival = self.next_arrival.max(entry.arrival + 1);
    }

    fn remove_sample(&mut self, key: (Value, u64)) -> Result<u64, SpoolError> {
        let Some((digest, bytes)) = self.samples.get(&key).copied() else { return Ok(0) };
        self.disk.remove(&self.sample_path(&digest))?;
        self.samples.remove(&key);
        self.by_digest.remove(&digest);
        self.sample_bytes -= bytes;
        let mut changes = self.index.begin();
        changes.remove_sample(&digest);
        self.index.apply(changes)?;
        Ok(bytes)
    }

    fn read_sample(&mut self, digest: &Digest) -> Result<Option<(SampleManifest, Vec<u8>)>, SpoolError> {
        let Some(key) = self.by_digest.get(digest).copied() else { return Ok(None) };
        let read = self.disk.read(&self.sample_path(digest), SAMPLE_READ_MAX);
        let decoded = match &read {
            Ok(bytes) => sample_file::decode(bytes).filter(|(_, manifest, _)| manifest.digest == *digest),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => return Err(SpoolError::Disk(read.err().unwrap_or_else(|| io::Error::other("read")))),
        };
        match decoded {
            Some((_, manifest, image)) => Ok(Some((manifest, image.to_vec()))),
            None => {
                tracing::warn!(%digest, "a sample on disk is damaged; it is dropped");
                let bytes = self.remove_sample(key)?;
                self.count_durably(Dropped { samples: 1, bytes, records: 0 })?;
                Ok(None)
            }
        }
    }

    fn read_batch(&mut self, key: &BatchKey) -> Result<Option<TelemetryBatch>, SpoolError> {
        let number = key.first.segment;
        if !self.segments.contains_key(&number) {
            return Ok(None);
        }
        let bytes = self.disk.read(&self.segment_path(number), SEGMENT_READ_MAX)?;
        let before = key.first.seq.checked_sub(1).map(|seq| Position { segment: number, seq });
        let start = before.or(number.checked_sub(1).map(|segment| Position { segment, seq: u64::MAX }));
        let mut batch: Option<TelemetryBatch> = None;
        let mut damaged = Vec::new();
        for item in self.index.records_after(start) {
            let (position, entry) = item?;
            if position.segment != number || position.seq > key.last_seq {
                break;
            }
            let Some((_, record)) =
                segment::record_at(&bytes, entry.offset).filter(|(seq, _)| *seq == entry.seq)
            else {
                damaged.push((position, entry));
                continue;
            };
            match &mut batch {
                None => {
                    let boot = key.boot.clone();
                    batch = Some(TelemetryBatch { boot, first_seq: position.seq, records: vec![record] });
                }
                Some(batch) if batch.last_seq() + 1 == position.seq => batch.records.push(record),
                Some(_) => break,
            }
        }
        for (position, entry) in damaged {
            tracing::warn!(?position, "a telemetry record on disk is damaged; it is dropped");
            self.forget_records(number, &[(position, entry.class)])?;
            self.count_durably(Dropped { records: 1, ..Dropped::default() })?;
        }
        Ok(batch)
    }

    fn acknowledge(&mut self, ack: &TelemetryAck) -> Result<u64, SpoolError> {
        let numbers: Vec<u64> =
            self.segments.iter().filter(|(_, s)| s.boot == ack.boot).map(|(n, _)| *n).collect();
        let mut forgotten = 0;
        for number in numbers {
            let start = match ack.first_seq.checked_sub(1) {
                Some(seq) => Some(Position { segment: number, seq }),
                None => number.checked_sub(1).map(|segment| Position { segment, seq: u64::MAX }),
            };
            let mut found = Vec::new();
            for item in self.index.records_after(start) {
                let (position, entry) = item?;
                if position.segment != number || position.seq > ack.last_seq {
                    break;
                }
                found.push((position, entry.class));
            }
            forgotten += found.len() as u64;
            self.forget_records(number, &found)?;
        }
        Ok(forgotten)
    }

    /// Takes records out of the index, and the segment away when nothing in it waits.
    fn forget_records(&mut self, number: u64, records: &[(Position, Class)]) -> Result<(), SpoolError> {
        if records.is_empty() {
            return Ok(());
        }
        let mut changes = self.index.begin();
        records.iter().for_each(|(position, _)| changes.remove_record(*position));
        self.index.apply(changes)?;
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.waiting = segment.waiting.saturating_sub(records.len() as u64);
            let windows = records.iter().filter(|(_, class)| *class == Class::Window).count() as u64;
            segment.windows = segment.windows.saturating_sub(windows);
            if segment.waiting == 0 && self.open != Some(number) {
                self.remove_segment(number)?;
            }
        }
        Ok(())
    }

    fn remove_segment(&mut self, number: u64) -> Result<(), SpoolError> {
        self.disk.remove(&self.segment_path(number))?;
        self.segments.remove(&number);
        let mut changes = self.index.begin();
        changes.forget_segment(number);
        Ok(self.index.apply(changes)?)
    }

    fn waiting_in(&self, number: u64) -> Result<Vec<Entry>, SpoolError> {
        let start = number.checked_sub(1).map(|segment| Position { segment, seq: u64::MAX });
        let mut entries = Vec::new();
        for item in self.index.records_after(start) {
            let (position, entry) = item?;
            if position.segment != number {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn count_durably(&mut self, dropped: Dropped) -> Result<(), SpoolError> {
        self.count(dropped);
        let mut changes = self.index.begin();
        changes.set_counter("records_dropped", self.dropped.records);
        changes.set_counter("samples_dropped", self.dropped.samples);
        changes.set_counter("bytes_dropped", self.dropped.bytes);
        Ok(self.index.apply(changes)?)
    }
}

fn position(segment: u64, entry: &Entry) -> Position {
    Position { segment, seq: entry.seq }
}
