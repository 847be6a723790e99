//! Which records and samples still wait, in sled. Only an index: everything in it can be rebuilt from the segments
//! and sample files, since sled 0.34 stores are known not to open after some power cuts. What is lost with it: which
//! records were acknowledged in segments that still hold others (they are sent again, the server knows them), and the
//! counters of what was dropped.
//!
//! | key | value |
//! |---|---|
//! | `r` segment seq | offset, bytes, class: a record that waits |
//! | `w` segment | sequence number up to which the segment's records were entered, exclusive |
//! | `s` digest | value, bytes, arrival: a sample that waits |
//! | `c` name | a counter |
//!
//! Numbers are big-endian, so that keys sort like them. Changes of one call are one sled batch.

use std::{
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use andon_protocol::Digest;

use super::{
    Position,
    sample_file::Value,
    segment::{Class, Entry},
};

#[derive(Debug, thiserror::Error)]
#[error("spool index: {0}")]
pub struct IndexError(#[from] sled::Error);

pub(super) struct Index {
    db: sled::Db,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SampleEntry {
    pub(super) value: Value,
    pub(super) bytes: u64,
    /// Counts up; the lower, the older.
    pub(super) arrival: u64,
}

impl Index {
    /// Opens the index, or starts an empty one if what lies there does not open. The flag says that it did so.
    pub(super) fn open(folder: &Path) -> Result<(Self, bool), IndexError> {
        match open_db(folder) {
            Ok(db) => Ok((Self { db }, false)),
            Err(reason) => {
                tracing::warn!(%reason, "the spool's index does not open; it is rebuilt from the segments");
                // If it cannot be removed, opening it again fails and says so.
                let _ = std::fs::remove_dir_all(folder).or_else(|_| std::fs::remove_file(folder));
                Ok((Self { db: config(folder).open()? }, true))
            }
        }
    }

    pub(super) fn begin(&self) -> Changes {
        Changes(sled::Batch::default())
    }

    pub(super) fn apply(&self, changes: Changes) -> Result<(), IndexError> {
        Ok(self.db.apply_batch(changes.0)?)
    }

    pub(super) fn flush(&self) -> Result<(), IndexError> {
        self.db.flush()?;
        Ok(())
    }

    /// Records that wait, in order, after a position. An entry that does not read is left out.
    pub(super) fn records_after(
        &self,
        after: Option<Position>,
    ) -> impl Iterator<Item = Result<(Position, Entry), IndexError>> {
        let start = match after {
            Some(position) => Bound::Excluded(record_key(position)),
            None => Bound::Included(vec![b'r']),
        };
        self.db.range((start, Bound::Excluded(vec![b'r' + 1]))).filter_map(|item| match item {
            Ok((key, value)) => decode_record(&key, &value).map(Ok),
            Err(error) => Some(Err(error.into())),
        })
    }

    pub(super) fn entered(&self, segment: u64) -> Result<u64, IndexError> {
        Ok(self.db.get(watermark_key(segment))?.and_then(|v| number(&v)).unwrap_or(0))
    }

    /// The segments that the index knows of.
    pub(super) fn segments(&self) -> Result<Vec<u64>, IndexError> {
        self.db
            .scan_prefix(b"w")
            .keys()
            .filter_map(|key| key.map(|k| number(&k[1..])).transpose())
            .collect::<Result<_, _>>()
            .map_err(Into::into)
    }

    pub(super) fn samples(&self) -> Result<Vec<(Digest, SampleEntry)>, IndexError> {
        self.db
            .scan_prefix(b"s")
            .filter_map(|item| item.map(|(key, value)| decode_sample(&key, &value)).transpose())
            .collect::<Result<_, _>>()
            .map_err(Into::into)
    }

    pub(super) fn counter(&self, name: &str) -> Result<u64, IndexError> {
        Ok(self.db.get(counter_key(name))?.and_then(|v| number(&v)).unwrap_or(0))
    }
}

/// Changes that happen together or not at all.
pub(super) struct Changes(sled::Batch);

impl Changes {
    pub(super) fn put_record(&mut self, segment: u64, entry: &Entry) {
        let mut value = Vec::with_capacity(9);
        value.extend_from_slice(&entry.offset.to_be_bytes());
        value.extend_from_slice(&entry.bytes.to_be_bytes());
        value.push(entry.class as u8);
        self.0.insert(record_key(Position { segment, seq: entry.seq }), value);
    }

    pub(super) fn remove_record(&mut self, position: Position) {
        self.0.remove(record_key(position));
    }

    pub(super) fn set_entered(&mut self, segment: u64, next_seq: u64) {
        self.0.insert(watermark_key(segment), &next_seq.to_be_bytes());
    }

    pub(super) fn forget_segment(&mut self, segment: u64) {
        self.0.remove(watermark_key(segment));
    }

    pub(super) fn put_sample(&mut self, digest: &Digest, entry: &SampleEntry) {
        let mut value = Vec::with_capacity(17);
        value.push(entry.value as u8);
        value.extend_from_slice(&entry.bytes.to_be_bytes());
        value.extend_from_slice(&entry.arrival.to_be_bytes());
        self.0.insert(sample_key(digest), value);
    }

    pub(super) fn remove_sample(&mut self, digest: &Digest) {
        self.0.remove(sample_key(digest));
    }

    pub(super) fn set_counter(&mut self, name: &str, value: u64) {
        self.0.insert(counter_key(name), &value.to_be_bytes());
    }
}

fn config(folder: &Path) -> sled::Config {
    sled::Config::new()
        .path(folder)
        .cache_capacity(1 << 20)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(Some(1000))
}

/// sled panics on some corruptions that it finds while it opens.
fn open_db(folder: &Path) -> Result<sled::Db, String> {
    match catch_unwind(AssertUnwindSafe(|| config(folder).open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it is corrupt".into()),
    }
}

fn record_key(position: Position) -> Vec<u8> {
    let mut key = Vec::with_capacity(17);
    key.push(b'r');
    key.extend_from_slice(&position.segment.to_be_bytes());
    key.extend_from_slice(&position.seq.to_be_bytes());
    key
}

fn watermark_key(segment: u64) -> Vec<u8> {
    let mut key = vec![b'w'];
    key.extend_from_slice(&segment.to_be_bytes());
    key
}

fn sample_key(digest: &Digest) -> Vec<u8> {
    let mut key = vec![b's'];
    key.extend_from_slice(digest.as_bytes());
    key
}

fn counter_key(name: &str) -> Vec<u8> {
    format!("c{name}").into_bytes()
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn decode_record(key: &[u8], value: &[u8]) -> Option<(Position, Entry)> {
    let position = Position { segment: number(key.get(1..9)?)?, seq: number(key.get(9..)?)? };
    let entry = Entry {
        seq: position.seq,
        offset: u32::from_be_bytes(value.get(..4)?.try_into().ok()?),
        bytes: u32::from_be_bytes(value.get(4..8)?.try_into().ok()?),
        class: if *value.get(8)? == Class::Window as u8 { Class::Window } else { Class::Event },
    };
    Some((position, entry))
}

fn decode_sample(key: &[u8], value: &[u8]) -> Option<(Digest, SampleEntry)> {
    let digest = Digest::from_bytes(key.get(1..)?.try_into().ok()?);
    let entry = SampleEntry {
        value: Value::from_byte(*value.first()?)?,
        bytes: number(value.get(1..9)?)?,
        arrival: number(value.get(9..)?)?,
    };
    Some((digest, entry))
}
