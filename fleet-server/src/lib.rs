//! The fleet server: what people and devices talk to. API and dashboard, enrolment, updates, the embedded MQTT broker,
//! ingest, registry, rollouts and training jobs. Knows nothing of kernels and networks' insides.
//!
//! Everything shared is in [`app::App`]; everything durable in the database ([`db`]), the blobs ([`blobs`]) and the TUF
//! repository. Background work is done by reconcilers ([`reconcile`]).

pub mod api;
pub mod app;
pub mod audit;
pub mod auth;
pub mod blobs;
#[cfg(feature = "embedded-broker")]
pub mod broker;
pub mod clock;
pub mod config;
pub mod dashboard;
pub mod db;
pub mod device_api;
pub mod devices;
pub mod extract;
pub mod files;
pub mod housekeeping;
pub mod ingest;
pub mod listen;
pub mod live;
pub mod mqtt;
pub mod pki;
pub mod problem;
pub mod reconcile;
pub mod releases;
pub mod rollouts;
pub mod samples;
pub mod start;
pub mod training;
pub mod tuf;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
