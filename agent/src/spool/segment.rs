//! The bytes of a segment: append-only, explicit, checked. History of the format: 2026-11-24 version 1.
//!
//! ```text
//! segment = "ANDSEG" version:u16le boot:[u8;16] crc32c:u32le entry*        the sum covers what is before it
//! entry   = length:u32le crc32c:u32le seq:u64le class:u8 record            the length is that of seq, class and record,
//!                                                                          the sum covers length, seq, class and record
//! record  = CBOR of a telemetry record
//! ```
//!
//! A segment ends at its first entry that does not check; what follows is a torn tail. Nothing here does I/O.

use andon_protocol::{BootId, telemetry::Record};

const MAGIC: &[u8; 6] = b"ANDSEG";
const VERSION: u16 = 1;
pub(super) const HEADER_BYTES: usize = 6 + 2 + 16 + 4;
const ENTRY_HEADER_BYTES: usize = 8;
const ENTRY_FIXED_BYTES: usize = 8 + 1;
/// Records are a few hundred bytes; a length beyond this is garbage.
pub(super) const RECORD_BYTES_MAX: usize = 48 * 1024;

/// What an entry is worth when the disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Window,
    Event,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) class: Class,
    /// Where the entry starts in its segment, and how long it is with its header.
    pub(super) offset: u32,
    pub(super) bytes: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scan {
    pub(super) boot: BootId,
    pub(super) entries: Vec<Entry>,
    /// Bytes up to the end of the last good entry.
    pub(super) good_bytes: usize,
    /// Bytes after it.
    pub(super) torn_bytes: usize,
}

pub(super) fn header(boot: &BootId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    let mut raw = [0; 16];
    // A boot id is 32 hexadecimal digits by its type.
    let _ = hex::decode_to_slice(boot.as_str(), &mut raw);
    bytes.extend_from_slice(&raw);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// Appends one entry to `out`. `None` if the record is too large to be one.
pub(super) fn push_entry(out: &mut Vec<u8>, seq: u64, record: &Record) -> Option<(Class, usize)> {
    let class = match record.body {
        andon_protocol::telemetry::Body::Window(_) => Class::Window,
        andon_protocol::telemetry::Body::Event(_) => Class::Event,
    };
    let mut body = Vec::with_capacity(256);
    body.extend_from_slice(&seq.to_le_bytes());
    body.push(class as u8);
    ciborium::into_writer(record, &mut body).ok()?;
    if body.len() > RECORD_BYTES_MAX {
        return None;
    }
    let length = (body.len() as u32).to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&crc32c::crc32c_append(crc32c::crc32c(&length), &body).to_le_bytes());
    out.extend_from_slice(&body);
    Some((class, ENTRY_HEADER_BYTES + body.len()))
}

/// Reads a segment up to its first bad entry. `None` if its header is not one of ours.
pub(super) fn scan(bytes: &[u8]) -> Option<Scan> {
    let (head, sum) = bytes.get(..HEADER_BYTES)?.split_at(HEADER_BYTES - 4);
    if &head[..6] != MAGIC || head[6..8] != VERSION.to_le_bytes() || sum != crc32c::crc32c(head).to_le_bytes()
    {
        return None;
    }
    let boot = BootId::from_random(head[8..24].try_into().ok()?);
    let mut entries = Vec::new();
    let mut at = HEADER_BYTES;
    while let Some((entry, _)) = entry_at(bytes, at) {
        at += entry.bytes as usize;
        entries.push(entry);
    }
    Some(Scan { boot, entries, good_bytes: at, torn_bytes: bytes.len() - at })
}

/// The record of an entry; `None` if the bytes at `offset` are no good entry.
pub(super) fn record_at(bytes: &[u8], offset: u32) -> Option<(u64, Record)> {
    let (entry, record) = entry_at(bytes, offset as usize)?;
    Some((entry.seq, ciborium::from_reader(record).ok()?))
}

fn entry_at(bytes: &[u8], at: usize) -> Option<(Entry, &[u8])> {
    let rest = bytes.get(at..)?;
    let length: [u8; 4] = rest.get(..4)?.try_into().ok()?;
    let sum: [u8; 4] = rest.get(4..8)?.try_into().ok()?;
    let body_bytes = u32::from_le_bytes(length) as usize;
    if !(ENTRY_FIXED_BYTES..=RECORD_BYTES_MAX).contains(&body_bytes) {
        return None;
    }
    let body = rest.get(ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + body_bytes)?;
    if crc32c::crc32c_append(crc32c::crc32c(&length), body) != u32::from_le_bytes(sum) {
        return None;
    }
    let seq = u64::from_le_bytes(body[..8].try_into().ok()?);
    let class = if body[8] == Class::Window as u8 { Class::Window } else { Class::Event };
    let entry = Entry { seq, class, offset: at as u32, bytes: (ENTRY_HEADER_BYTES + body_bytes) as u32 };
    Some((entry, &body[ENTRY_FIXED_BYTES..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use andon_protocol::telemetry::{Body, Event, Window};

    fn sample_segment() -> (Vec<u8>, BootId) {
        let boot = BootId::from_random([7; 16]);
        let mut bytes = header(&boot);
        let window = Record { at_ms: 1, body: Body::Window(Window { frames: 5, ..Window::default() }) };
        let event = Record { at_ms: 2, body: Body::Event(Event::DriftCleared) };
        push_entry(&mut bytes, 0, &window).unwrap();
        push_entry(&mut bytes, 1, &event).unwrap();
        (bytes, boot)
    }

    #[test]
    fn every_truncation_keeps_the_whole_entries_before_it() {
        let (bytes, boot) = sample_segment();
        let whole = scan(&bytes).unwrap();
        assert_eq!((whole.boot.clone(), whole.entries.len(), whole.torn_bytes), (boot, 2, 0));
        assert_eq!(record_at(&bytes, whole.entries[1].offset).unwrap().1.at_ms, 2);
        for cut in 0..bytes.len() {
            let expected = whole.entries.iter().filter(|e| (e.offset + e.bytes) as usize <= cut).count();
            match scan(&bytes[..cut]) {
                None => assert!(cut < HEADER_BYTES),
                Some(scan) => {
                    assert_eq!((scan.entries.len(), scan.good_bytes + scan.torn_bytes), (expected, cut))
                }
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (bytes, _) = sample_segment();
        let whole = scan(&bytes).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Some(scan) = scan(&bad) {
                assert!(scan.entries.len() < whole.entries.len(), "bit {bit}");
            }
        }
    }
}
