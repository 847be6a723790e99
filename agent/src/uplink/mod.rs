//! The uplink: one MQTT 5 session at a time, rebuilt after any error. What to send is [`window`]'s business, how it
//! travels is [`session`]'s; this file keeps trying.
//!
//! Invariants: rumqttc is never the queue, the spool is; no state of a session outlives it; between two attempts
//! there is a back-off with jitter, so that a fleet does not come back as one. It ends only when it is told to.

pub mod backoff;
mod session;
pub mod window;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use andon_protocol::{
    BootId,
    state::{Desired, Reported},
};
use rustls::ClientConfig;
use tokio::sync::{Notify, watch};

use crate::{clock::Clock, identity::Identity, spool::Spool};
use backoff::Backoff;
pub use session::SessionError;

/// What the uplink needs and whom it tells.
pub struct Uplink {
    pub identity: Identity,
    pub tls: Arc<ClientConfig>,
    pub boot: BootId,
    pub clock: Arc<dyn Clock>,
    pub spool: Arc<Spool>,
    /// The newest state to report; sent after every connection and on change.
    pub reported: watch::Receiver<Option<Reported>>,
    /// Told every desired state that arrives, old ones included.
    pub desired: Box<dyn Fn(Desired) + Send + Sync>,
    /// Notified when something new waits in the spool.
    pub wake: Arc<Notify>,
    pub stop: watch::Receiver<bool>,
    pub settings: Settings,
    pub stats: Arc<Stats>,
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub resend: Duration,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    pub keep_alive: Duration,
}

/// For health and metrics.
#[derive(Debug, Default)]
pub struct Stats {
    pub connected: AtomicBool,
    pub sessions: AtomicU64,
    pub bytes_sent: AtomicU64,
    pub samples_acknowledged: AtomicU64,
    pub samples_refused: AtomicU64,
    pub records_acknowledged: AtomicU64,
}

impl Uplink {
    /// Runs until `stop` becomes true, or its sender is gone.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(self.settings.backoff_min, self.settings.backoff_max);
        let mut stop = self.stop.clone();
        while !*stop.borrow() {
            let ended = session::run(&mut self, &mut backoff).await;
            self.stats.connected.store(false, Ordering::Relaxed);
            let Err(error) = ended else { return };
            let wait = backoff.next(rand::random::<f64>());
            tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "no uplink; what waits stays in the spool");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = stop.changed() => if changed.is_err() { return },
            }
        }
    }
}
