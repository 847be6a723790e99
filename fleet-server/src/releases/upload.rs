//! Large bodies onto the disk, bounded: a few at a time, each into its own folder below `DATA/scratch`, which is gone
//! when the handle is.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::body::Body;
use futures_util::StreamExt as _;
use tokio::{
    io::AsyncWriteExt as _,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    app::App,
    files,
    problem::{Problem, Result},
};

const AT_ONCE_MAX: usize = 4;

/// Uploads at one time; more do not wait, they are turned away.
pub struct Slots(Arc<Semaphore>);

impl Default for Slots {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE_MAX)))
    }
}

/// A folder of its own, removed with all in it on drop.
pub struct Scratch {
    folder: PathBuf,
    _slot: OwnedSemaphorePermit,
}

impl Scratch {
    pub fn new(app: &App) -> Result<Self> {
        let slot = Arc::clone(&app.uploads.0)
            .try_acquire_owned()
            .map_err(|_| Problem::too_many("too many uploads at one time, try again in a minute"))?;
        let folder = app.paths.scratch().join(uuid::Uuid::new_v4().simple().to_string());
        files::create_dir(&folder)?;
        Ok(Self { folder, _slot: slot })
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!("cannot remove {}: {error}; it goes at the next start", self.folder.display());
        }
    }
}

/// The body as the file `upload.tar` in a scratch folder.
pub async fn receive(app: &App, body: Body, bytes_max: u64) -> Result<Scratch> {
    let scratch = Scratch::new(app)?;
    let mut file = tokio::fs::File::create_new(scratch.path().join(FILE)).await?;
    let mut chunks = body.into_data_stream();
    let mut bytes = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|e| Problem::invalid(format!("the upload broke off after {bytes} bytes: {e}")))?;
        bytes += chunk.len() as u64;
        if bytes > bytes_max {
            return Err(Problem::too_large(format!("the upload is over {bytes_max} bytes")));
        }
        file.write_all(&chunk).await?;
    }
    file.flush().await?;
    Ok(scratch)
}

pub const FILE: &str = "upload.tar";
