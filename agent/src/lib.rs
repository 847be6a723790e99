//! Andon's device agent: sees, decides, watches for drift, spools, uploads, updates itself. The binary is a thin
//! shell around this library.
//!
//! Invariants: nothing beside the frame path can delay it; a local copy goes only after the server's own
//! acknowledgement; an update that does not prove itself is undone. It holds no server code and never trains.

pub mod camera;
pub mod clock;
pub mod config;
pub mod decision;
pub mod drift_watch;
pub mod engines;
pub mod enrol;
pub mod files;
pub mod golden;
pub mod identity;
pub mod incidents;
pub mod line;
pub mod local;
pub mod output;
pub mod pipeline;
pub mod run;
pub mod selection;
pub mod spool;
pub mod station;
pub mod update;
pub mod uplink;
