//! The loop, end to end: a harness that runs the real programs as a fleet, the inspector who plays the human, the
//! scoreboard that compares verdicts with the truth, and the demo that is made of them. Integration tests use the same.
//!
//! Invariants: the programs are talked to only as anybody else could (command lines, configuration files, the people's
//! API, the network between them, their own output files); nothing of their insides is linked. Every wait has a limit.
//! Every process is in a group of its own and dies with its handle.

pub mod api;
pub mod broker;
pub mod clock;
pub mod dataset;
pub mod demo;
pub mod fleet;
pub mod inspector;
pub mod process;
pub mod proxy;
pub mod scoreboard;

/// Makes ring the provider of TLS in this process. May be called again.
pub fn install_tls_provider() {
    // An error says that there is one already, which is as good.
    rustls::crypto::ring::default_provider().install_default().ok();
}
