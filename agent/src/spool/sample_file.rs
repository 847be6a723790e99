//! A sample as one file, so that one rename makes it whole: what it is, then the image. History of the format:
//! 2026-11-24 version 1.
//!
//! ```text
//! "ANDSMP" version:u16le value:u8 length:u32le crc32c:u32le manifest image
//! ```
//! The sum covers everything before it and the manifest; the image is covered by the digest in the manifest.

use andon_protocol::{Digest, codec::Wire, sample::SampleManifest};

const MAGIC: &[u8; 6] = b"ANDSMP";
const VERSION: u16 = 1;
const FIXED_BYTES: usize = 6 + 2 + 1 + 4;

/// What a sample is worth when the disk is full; the lowest goes first, within a value the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// A random sample of a part that passed: there are many like it.
    Routine,
    /// Uncertain, novel, or a random sample of a rejected part.
    Useful,
    /// Taken at an alarm or asked for by a person.
    Evidence,
}

impl Value {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Value::Routine, Value::Useful, Value::Evidence].into_iter().find(|v| *v as u8 == byte)
    }
}

pub(super) fn encode(value: Value, manifest: &SampleManifest, image: &[u8]) -> Vec<u8> {
    let manifest = andon_protocol::encode(manifest);
    let mut bytes = Vec::with_capacity(FIXED_BYTES + 4 + manifest.len() + image.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.push(value as u8);
    bytes.extend_from_slice(&(manifest.len() as u32).to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes), &manifest);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(&manifest);
    bytes.extend_from_slice(image);
    bytes
}

/// Value, manifest and image; `None` if anything does not check.
pub(super) fn decode(bytes: &[u8]) -> Option<(Value, SampleManifest, &[u8])> {
    let fixed = bytes.get(..FIXED_BYTES)?;
    if &fixed[..6] != MAGIC || fixed[6..8] != VERSION.to_le_bytes() {
        return None;
    }
    let value = Value::from_byte(fixed[8])?;
    let length = u32::from_le_bytes(fixed[9..13].try_into().ok()?) as usize;
    if length > SampleManifest::BYTES_MAX {
        return None;
    }
    let sum: [u8; 4] = bytes.get(FIXED_BYTES..FIXED_BYTES + 4)?.try_into().ok()?;
    let manifest_bytes = bytes.get(FIXED_BYTES + 4..FIXED_BYTES + 4 + length)?;
    if crc32c::crc32c_append(crc32c::crc32c(fixed), manifest_bytes) != u32::from_le_bytes(sum) {
        return None;
    }
    let manifest: SampleManifest = andon_protocol::decode(manifest_bytes).ok()?;
    let image = &bytes[FIXED_BYTES + 4 + length..];
    (image.len() as u64 == manifest.size && Digest::of(image) == manifest.digest)
        .then_some((value, manifest, image))
}
