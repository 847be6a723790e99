//! The TUF repository of the fleet: what devices trust. On disk under `DATA/tuf/`, with consistent snapshots:
//!
//! | path | what |
//! |---|---|
//! | `metadata/N.root.json`, `N.targets.json`, `N.snapshot.json` | never changed once a timestamp names them |
//! | `metadata/timestamp.json` | replaced last: a release is published when this file is |
//! | `targets/MODEL/VERSION/DIGEST.FILE` | hard links to the files of `DATA/releases` |
//!
//! Keys lie in `DATA/keys/tuf-ROLE.pem` (PKCS#8, mode 0600), made at the first start. Root has a threshold of one key,
//! which is needed only to make a new root (once in years, or when another key must be replaced).
//!
//! **To take the root key offline**: move `DATA/keys/tuf-root.pem` to a medium that you lock away. The server goes on
//! without it; when the root has less than a year left, the log says so once a day: put the file back, start the
//! server (it signs the next root at once), and take the file away again.
//!
//! Not here: HTTP. One server process writes the repository; the lock of the data folder keeps a second one out.

mod keys;
mod repository;

use std::{
    sync::{Arc, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    app::App,
    problem::{Problem, Result},
    reconcile,
};

pub use repository::{PublishedFile, Repository, TufRepositoryError};

/// How often it is looked whether something must be signed anew. The timestamp lives for a week.
const RENEW_EVERY: Duration = Duration::from_secs(3600);

/// The repository of an [`App`], opened when it is first needed.
#[derive(Default)]
pub struct Handle {
    repository: OnceLock<Arc<Repository>>,
    opening: std::sync::Mutex<()>,
}

/// Runs blocking work on the repository.
pub async fn with<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&Repository) -> Result<T, TufRepositoryError> + Send + 'static,
) -> Result<T> {
    let app = app.clone();
    tokio::task::spawn_blocking(move || work(&*open(&app)?).map_err(Problem::internal))
        .await
        .map_err(Problem::internal)?
}

fn open(app: &App) -> Result<Arc<Repository>> {
    let handle = &app.tuf;
    let _opening = handle.opening.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(repository) = handle.repository.get() {
        return Ok(Arc::clone(repository));
    }
    let repository =
        Repository::open(app.paths.data(), app.now_ms()).map(Arc::new).map_err(Problem::internal)?;
    Ok(Arc::clone(handle.repository.get_or_init(|| repository)))
}

/// Makes keys and the first metadata if there are none, and signs anew what was about to expire while the server was
/// down; called at every start before any listener is up. From then on a task does.
pub async fn prepare(app: &App) -> Result<()> {
    with(app, |_| Ok(())).await?;
    reconcile::spawn(app, "tuf", RENEW_EVERY, Arc::new(Notify::new()), |app| async move {
        let now_ms = app.now_ms();
        with(&app, move |repository| repository.renew(now_ms)).await.map_err(Into::into)
    });
    Ok(())
}

/// Root metadata version 1 as text: what a device trusts at enrolment.
pub async fn first_root(app: &App) -> Result<String> {
    with(app, Repository::first_root).await
}
