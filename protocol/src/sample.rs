//! Sample images: a manifest, named by the digest of the content, and chunks in any order. Both may be sent again at
//! will; the server answers with what is missing and, when the content is durable, with `done`.

use serde::{Deserialize, Serialize};

use crate::{codec::Wire, ids::BootId, ids::Digest, ids::ReleaseId, telemetry::DriftState};

/// Bytes of every chunk but the last. Fits the packet limit of every broker studied and lets pings and telemetry
/// through between two chunks on a slow link.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Largest sample. Larger things do not travel by MQTT.
pub const SAMPLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What a sample is and why it was chosen. ~0.5 kB. Never the name of a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleManifest {
    /// Of the image file.
    pub digest: Digest,
    pub size: u64,
    /// `image/png` or `image/jpeg`.
    pub content_type: String,
    pub captured_ms: i64,
    pub boot: BootId,
    /// Number of the frame within the boot.
    pub frame: u64,
    /// What the camera calls the frame (a file name in a replay), at most 256 bytes.
    pub source: String,
    pub release: ReleaseId,
    pub reason: Reason,
    /// Chance that this frame had to be chosen for its reason; weights for unbiased estimates are its inverse.
    pub inclusion_probability: f32,
    /// Index into the manifest's labels.
    pub predicted: u32,
    pub scores: Vec<f32>,
    pub drift: DriftState,
    /// Whitened projection of the embedding, `k` values.
    pub projection: Vec<f32>,
    /// The six rank-normal image statistics.
    pub stats: Vec<f32>,
    /// 64-bit difference hash, for near-duplicates.
    pub dhash: u64,
}

impl SampleManifest {
    pub fn chunks(&self) -> u32 {
        self.size.div_ceil(CHUNK_BYTES as u64) as u32
    }
}

impl Wire for SampleManifest {
    const KIND: &'static str = "sample manifest";
    const CONTENT_TYPE: &'static str = "application/vnd.andon.sample-manifest.v1+cbor";
    const BYTES_MAX: usize = 16 * 1024;

    fn check(&self) -> Result<(), String> {
        if self.size == 0 || self.size > SAMPLE_BYTES_MAX {
            return Err(format!("size {}, allowed are 1 to {SAMPLE_BYTES_MAX}", self.size));
        }
        if !matches!(self.content_type.as_str(), "image/png" | "image/jpeg") {
            return Err("content type is neither image/png nor image/jpeg".into());
        }
        if self.source.len() > 256
            || self.scores.len() > 1024
            || self.projection.len() > 256
            || self.stats.len() > 32
        {
            return Err("source, scores, projection or stats too long".into());
        }
        if !(self.inclusion_probability > 0.0 && self.inclusion_probability <= 1.0) {
            return Err(format!("inclusion probability {} is not in (0, 1]", self.inclusion_probability));
        }
        if self.frame > i64::MAX as u64 {
            return Err("frame number over 2^63".into());
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Uniform: the only unbiased estimate of accuracy and class rates.
    Random,
    Uncertain,
    Novel,
    /// Asked for by an operator or taken at an alarm.
    Event,
}

/// Bytes `index * CHUNK_BYTES ..` of a sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleChunk {
    pub digest: Digest,
    pub index: u32,
    pub crc32c: u32,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl SampleChunk {
    /// Chunk `index` of `content`. Panics if there is no such chunk.
    pub fn cut(digest: Digest, content: &[u8], index: u32) -> Self {
        let start = index as usize * CHUNK_BYTES;
        let bytes = content[start..content.len().min(start + CHUNK_BYTES)].to_vec();
        Self { digest, index, crc32c: crc32c::crc32c(&bytes), bytes }
    }
}

impl Wire for SampleChunk {
    const KIND: &'static str = "sample chunk";
    const CONTENT_TYPE: &'static str = "application/vnd.andon.sample-chunk.v1+cbor";
    const BYTES_MAX: usize = CHUNK_BYTES + 256;

    fn check(&self) -> Result<(), String> {
        if self.bytes.is_empty() || self.bytes.len() > CHUNK_BYTES {
            return Err(format!("{} bytes, allowed are 1 to {CHUNK_BYTES}", self.bytes.len()));
        }
        if crc32c::crc32c(&self.bytes) != self.crc32c {
            return Err("CRC-32C does not match the bytes".into());
        }
        Ok(())
    }
}
