//! The server's word that something is durable. A device forgets its copy on nothing less: a broker's PUBACK only
//! says that the next hop took the message.

use serde::{Deserialize, Serialize};

use crate::{codec::Wire, ids::BootId, ids::Digest};

/// Batched by the server: at most 100 ms or [`Ack::ITEMS_MAX`] items after the first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ack {
    pub telemetry: Vec<TelemetryAck>,
    pub samples: Vec<SampleAck>,
}

impl Ack {
    pub const ITEMS_MAX: usize = 256;
}

impl Wire for Ack {
    const KIND: &'static str = "acknowledgement";
    const CONTENT_TYPE: &'static str = "application/vnd.andon.ack.v1+cbor";
    const BYTES_MAX: usize = 64 * 1024;

    fn check(&self) -> Result<(), String> {
        if self.telemetry.len() > Self::ITEMS_MAX || self.samples.len() > Self::ITEMS_MAX {
            return Err(format!("over {} items", Self::ITEMS_MAX));
        }
        if self.telemetry.iter().any(|t| t.first_seq > t.last_seq) {
            return Err("a range whose first is after its last".into());
        }
        Ok(())
    }
}

/// Records `first_seq..=last_seq` of a boot are in the server's database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TelemetryAck {
    pub boot: BootId,
    pub first_seq: u64,
    pub last_seq: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleAck {
    pub digest: Digest,
    pub state: SampleState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum SampleState {
    /// Chunks still missing, as half-open ranges of chunk indices; at most 64 ranges, more follow later.
    Need { missing: Vec<(u32, u32)> },
    /// Hash checked, file synced, row committed.
    Done,
    /// Never to be sent again; `reason` is shown to people.
    Refused { reason: String },
}
