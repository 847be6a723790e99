//! Opening a spool: what lies on disk is made to agree with itself, whatever a power cut left. Segments and sample
//! files are believed, the index is corrected.
//!
//! - A torn tail is cut off and its bytes are counted. A segment without a good header never held a durable record.
//! - A record beyond the index's watermark of its segment was written and not entered: it is entered. One below it
//!   and not in the index was acknowledged: it stays forgotten.
//! - Entries of the index without a record, and samples without a file, are removed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::Path,
    sync::Arc,
};

use andon_protocol::{BootId, Digest};

use super::{
    Budget, Dropped, Inner, Position, SAMPLE_READ_MAX, SEGMENT_READ_MAX, Segment, SpoolError,
    index::{Index, SampleEntry},
    sample_file,
    segment::{self, Class, Entry},
};
use crate::{clock::Clock, files, files::Disk};

/// What opening found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The index did not open and was made anew.
    pub index_rebuilt: bool,
    /// Bytes of torn tails cut off, and of segments without a header.
    pub torn_bytes: u64,
    /// Records that were on disk and not in the index.
    pub records_entered: u64,
    pub samples_entered: u64,
    /// Sample files that did not check and were removed.
    pub samples_damaged: u64,
}

pub(super) fn open(
    folder: &Path,
    boot: BootId,
    budget: Budget,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
) -> Result<(Inner, Recovery), SpoolError> {
    disk.create_folder(&folder.join("segments"))?;
    disk.create_folder(&folder.join("samples"))?;
    let (index, index_rebuilt) = Index::open(&folder.join("index"))?;
    let mut recovery = Recovery { index_rebuilt, ..Recovery::default() };
    let dropped = Dropped {
        records: index.counter("records_dropped")?,
        samples: index.counter("samples_dropped")?,
        bytes: index.counter("bytes_dropped")?,
    };
    let mut inner = Inner {
        disk,
        clock,
        folder: folder.to_owned(),
        boot,
        budget,
        index,
        segments: BTreeMap::new(),
        open: None,
        next_segment: 1,
        next_seq: 0,
        samples: BTreeMap::new(),
        by_digest: HashMap::new(),
        next_arrival: 0,
        sample_bytes: 0,
        dropped,
        untold: Dropped::default(),
    };
    inner.recover_segments(&mut recovery)?;
    inner.recover_samples(&mut recovery)?;
    inner.enforce_budget()?;
    inner.index.flush()?;
    Ok((inner, recovery))
}

impl Inner {
    fn recover_segments(&mut self, recovery: &mut Recovery) -> Result<(), SpoolError> {
        let mut numbers = Vec::new();
        for name in self.disk.list(&self.folder.join("segments"))? {
            match name.strip_suffix(".seg").and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
                Some(number) => numbers.push(number),
                // Temporary files of a compaction that a power cut ended.
                None => self.disk.remove(&self.folder.join("segments").join(name))?,
            }
        }
        numbers.sort_unstable();
        for number in self.index.segments()? {
            self.next_segment = self.next_segment.max(number.saturating_add(1));
            if numbers.binary_search(&number).is_err() {
                self.forget_index_of(number)?;
            }
        }
        for number in numbers {
            self.next_segment = self.next_segment.max(number.saturating_add(1));
            self.recover_segment(number, recovery)?;
        }
        Ok(())
    }

    fn recover_segment(&mut self, number: u64, recovery: &mut Recovery) -> Result<(), SpoolError> {
        let path = self.segment_path(number);
        let bytes = self.disk.read(&path, SEGMENT_READ_MAX)?;
        let Some(scan) = segment::scan(&bytes) else {
            recovery.torn_bytes += bytes.len() as u64;
            self.disk.remove(&path)?;
            return self.forget_index_of(number);
        };
        if scan.torn_bytes > 0 {
            recovery.torn_bytes += scan.torn_bytes as u64;
            files::replace(self.disk.as_ref(), &path, &bytes[..scan.good_bytes])?;
        }
        let entered = self.index.entered(number)?;
        let known: HashMap<u64, Entry> = self.waiting_in(number)?.into_iter().map(|e| (e.seq, e)).collect();
        let mut changes = self.index.begin();
        let mut segment = Segment { boot: scan.boot, bytes: scan.good_bytes as u64, waiting: 0, windows: 0 };
        let mut next_seq = entered;
        for entry in &scan.entries {
            let indexed = known.get(&entry.seq);
            if indexed.is_none() && entry.seq < entered {
                continue;
            }
            if indexed != Some(entry) {
                changes.put_record(number, entry);
                recovery.records_entered += u64::from(indexed.is_none());
            }
            segment.waiting += 1;
            segment.windows += u64::from(entry.class == Class::Window);
            next_seq = next_seq.max(entry.seq + 1);
        }
        let on_disk: HashSet<u64> = scan.entries.iter().map(|entry| entry.seq).collect();
        for seq in known.keys().filter(|seq| !on_disk.contains(seq)) {
            changes.remove_record(Position { segment: number, seq: *seq });
        }
        changes.set_entered(number, next_seq);
        self.index.apply(changes)?;
        let waits = segment.waiting > 0;
        self.segments.insert(number, segment);
        if waits { Ok(()) } else { self.remove_segment(number) }
    }

    fn forget_index_of(&mut self, number: u64) -> Result<(), SpoolError> {
        let stale = self.waiting_in(number)?;
        let mut changes = self.index.begin();
        stale.iter().for_each(|entry| changes.remove_record(Position { segment: number, seq: entry.seq }));
        changes.forget_segment(number);
        Ok(self.index.apply(changes)?)
    }

    fn recover_samples(&mut self, recovery: &mut Recovery) -> Result<(), SpoolError> {
        let folder = self.folder.join("samples");
        let mut indexed: HashMap<Digest, SampleEntry> = self.index.samples()?.into_iter().collect();
        self.next_arrival = indexed.values().map(|entry| entry.arrival + 1).max().unwrap_or(0);
        let mut unknown = Vec::new();
        for name in self.disk.list(&folder)? {
            let Some(digest) = name.strip_suffix(".smp").and_then(|hex| hex.parse::<Digest>().ok()) else {
                self.disk.remove(&folder.join(name))?;
                continue;
            };
            match indexed.remove(&digest) {
                Some(entry) => self.enter_sample(digest, entry),
                None => unknown.push(digest),
            }
        }
        let mut changes = self.index.begin();
        indexed.keys().for_each(|digest| changes.remove_sample(digest));
        let mut found = Vec::new();
        for digest in unknown {
            let bytes = match self.disk.read(&self.sample_path(&digest), SAMPLE_READ_MAX) {
                Err(error) if error.kind() != io::ErrorKind::FileTooLarge => return Err(error.into()),
                read => read.unwrap_or_default(),
            };
            match sample_file::decode(&bytes).filter(|(_, manifest, _)| manifest.digest == digest) {
                Some((value, manifest, _)) => {
                    found.push((manifest.captured_ms, digest, value, bytes.len() as u64));
                }
                None => {
                    recovery.samples_damaged += 1;
                    self.disk.remove(&self.sample_path(&digest))?;
                }
            }
        }
        // The order of arrival is lost with the index; the time of capture is the next best.
        found.sort_unstable_by_key(|(captured_ms, digest, ..)| (*captured_ms, *digest));
        for (_, digest, value, bytes) in found {
            let entry = SampleEntry { value, bytes, arrival: self.next_arrival };
            self.enter_sample(digest, entry);
            changes.put_sample(&digest, &entry);
            recovery.samples_entered += 1;
        }
        Ok(self.index.apply(changes)?)
    }
}
