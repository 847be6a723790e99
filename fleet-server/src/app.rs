//! What every handler and every background task shares. Cheap to clone; nothing in it is changed after the start but
//! what lies behind its own lock.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    auth, blobs::Blobs, clock::Clock, config::Config, db::Db, live::Live, mqtt::Mqtt, pki::Ca, releases, tuf,
};

#[derive(Clone)]
pub struct App(Arc<Parts>);

pub struct Parts {
    pub config: Config,
    pub paths: Paths,
    pub db: Db,
    pub blobs: Arc<dyn Blobs>,
    pub clock: Clock,
    pub live: Live,
    pub mqtt: Mqtt,
    pub wake: Wake,
    pub auth: auth::Guards,
    pub ca: Ca,
    pub tuf: tuf::Handle,
    pub uploads: releases::upload::Slots,
    /// Where this server is reached; set once all listeners are bound.
    pub addresses: OnceLock<Addresses>,
    /// Cancelled when the server stops. Every long wait selects on it.
    pub shutdown: CancellationToken,
}

impl App {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }
}

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Wakes reconcilers before their timer does. Notify after the commit that gave them work; too often does no harm.
#[derive(Debug, Clone, Default)]
pub struct Wake {
    /// A device reported, came or went; a rollout was made, paused, resumed or aborted.
    pub rollouts: Arc<Notify>,
    /// A label was set, an alarm raised or cleared; a run was asked for or cancelled.
    pub training: Arc<Notify>,
    /// A release was made or withdrawn.
    pub releases: Arc<Notify>,
}

/// The layout of the data folder.
#[derive(Debug, Clone)]
pub struct Paths(PathBuf);

impl Paths {
    pub fn new(data_dir: &Path) -> Self {
        Self(data_dir.to_owned())
    }

    pub fn data(&self) -> &Path {
        &self.0
    }

    /// Private keys and certificates of the CA, the listeners and the TUF roles; mode 0600.
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// `metadata/` and `targets/`, served to devices.
    pub fn tuf(&self) -> PathBuf {
        self.0.join("tuf")
    }

    pub fn blobs(&self) -> PathBuf {
        self.0.join("blobs")
    }

    /// Samples that are not complete yet.
    pub fn uploads(&self) -> PathBuf {
        self.0.join("uploads")
    }

    /// The training queue, `protocol::job`.
    pub fn queue(&self) -> PathBuf {
        self.0.join("queue")
    }

    /// Scratch on the same file system; emptied at every start.
    pub fn scratch(&self) -> PathBuf {
        self.0.join("scratch")
    }

    /// Written when every listener is up.
    pub fn addresses(&self) -> PathBuf {
        self.0.join("addresses.json")
    }
}

/// `addresses.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// `http://127.0.0.1:8080`
    pub people: String,
    /// `https://HOST:PORT`
    pub devices: String,
    /// `HOST:PORT`
    pub mqtt: String,
}
