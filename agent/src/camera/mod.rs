//! Where frames come from. Every camera stands behind [`Camera`]; the pipeline numbers and stamps what it gives.
//!
//! Invariants: a call waits no longer than it is told; a camera that fails says so once per call and can be called
//! again. It does not judge, and it does not know what a release is.

pub mod degrade;
pub mod fake;
pub mod frozen;
pub mod replay;

use std::{path::PathBuf, sync::Arc, time::Duration};

use andon_runtime::Image;
use serde::Deserialize;

use crate::clock::Clock;

/// One picture of one part.
#[derive(Debug, Clone)]
pub struct Frame {
    /// What the camera calls it (a file name in a replay), at most [`SOURCE_BYTES_MAX`] bytes.
    pub source: String,
    pub image: Arc<Image>,
    /// The file that `image` was decoded from, if the two are the same picture.
    pub file: Option<Arc<EncodedImage>>,
    /// The picture was worsened on purpose, for commissioning or a test.
    pub degraded: bool,
}

/// Longest [`Frame::source`].
pub const SOURCE_BYTES_MAX: usize = 256;

/// An image file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedImage {
    /// `image/png` or `image/jpeg`.
    pub content_type: &'static str,
    pub bytes: Vec<u8>,
}

/// Why there is no picture this time.
#[derive(Debug, thiserror::Error)]
pub enum CameraError {
    #[error("{}: {reason}", path.display())]
    Config { path: PathBuf, reason: String },
    #[error("{source_name}: cannot be read: {error}")]
    Read { source_name: String, error: std::io::Error },
    #[error("{source_name}: {reason}")]
    Decode { source_name: String, reason: String },
    /// What a real camera reports when its cable is pulled.
    #[error("no camera: {reason}")]
    Lost { reason: String },
}

pub trait Camera: Send {
    /// The next frame, waiting for it at most `patience`; `None` if there was none in that time.
    fn next_frame(&mut self, patience: Duration) -> Result<Option<Frame>, CameraError>;
}

/// `[camera]` of the agent's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Config {
    Replay(replay::Config),
}

/// Opens the configured camera. Errors name the file or folder that is wrong.
pub fn open(config: &Config, clock: Arc<dyn Clock>) -> Result<Box<dyn Camera>, CameraError> {
    match config {
        Config::Replay(replay) => Ok(Box::new(replay::Replay::open(replay, clock)?)),
    }
}
