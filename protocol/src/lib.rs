//! Everything that travels, or lies on disk, between two parts of Andon: ids, topics, telemetry, samples,
//! acknowledgements, desired and reported state, release manifests, TUF metadata and the people's API.
//!
//! Invariants: no I/O, no clock, no randomness; every decoder takes a bound and never panics on any input; payloads
//! of the wire carry their version in the content type. What a peer adds later (unknown fields) is ignored, never
//! an error, except in TUF metadata, where signatures cover the bytes as received.

pub mod ack;
pub mod api;
pub mod codec;
pub mod ids;
pub mod job;
pub mod release;
pub mod sample;
pub mod state;
pub mod telemetry;
pub mod topics;
pub mod tuf;

#[cfg(test)]
mod wire_tests;

pub use codec::{DecodeError, decode, encode};
pub use ids::{BootId, DeviceId, Digest, IdError, ReleaseId};
