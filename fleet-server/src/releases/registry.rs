//! From a folder that came in to a release that devices trust, in steps that a crash may separate:
//!
//! 1. the row, as candidate: it claims the version;
//! 2. the folder is renamed to `DATA/releases/MODEL/VERSION/`: from now on the release is completed by itself;
//! 3. its files are signed into the TUF repository;
//! 4. the row says released.
//!
//! A candidate without its folder is forgotten at the next start: nobody was told of it.

use std::path::{Path, PathBuf};

use andon_protocol::{ReleaseId, api::ReleaseState};

use super::{bundle::Bundle, models, rows};
use crate::{
    app::App,
    audit, files,
    problem::{Problem, Result},
    tuf,
};

/// `release/` and `float.onnx` of a release.
pub fn folder(app: &App, release: &ReleaseId) -> PathBuf {
    app.paths.data().join("releases").join(release.model()).join(release.version().to_string())
}

/// Registers and publishes what lies in `source`, which is moved away. Repeated by a training run, it goes on where it
/// stopped; for uploads a version that exists is a conflict.
pub async fn register(
    app: &App,
    source: &Path,
    bundle: &Bundle,
    run: Option<&str>,
    actor: &str,
) -> Result<rows::Stored> {
    let id = &bundle.manifest.release;
    claim(app, bundle, run, actor).await?;
    let (source, folder) = (source.to_owned(), folder(app, id));
    off_thread(move || move_into_place(&source, &folder)).await?;
    complete(app, id).await?;
    rows::get(&mut *app.db.reader().acquire().await?, id).await
}

/// Step 1.
async fn claim(app: &App, bundle: &Bundle, run: Option<&str>, actor: &str) -> Result<()> {
    let now_ms = app.now_ms();
    let id = &bundle.manifest.release;
    let mut tx = app.db.begin().await?;
    if let Some(stored) = rows::find(&mut tx, id).await? {
        return match run {
            Some(run) if stored.run.as_deref() == Some(run) => Ok(()),
            _ => Err(Problem::conflict(format!(
                "release {id} exists; the next free version of the model is {}",
                rows::next_version(&mut tx, id.model()).await?
            ))),
        };
    }
    let next = rows::next_version(&mut tx, id.model()).await?;
    if run.is_none() && id.version() < next {
        return Err(Problem::conflict(format!(
            "version {} is used or past; the next free one is {next}",
            id.version()
        )));
    }
    models::ensure(&mut tx, id.model(), &bundle.manifest.labels, now_ms).await?;
    let new = rows::NewRelease {
        manifest: &bundle.manifest,
        digest: bundle.model,
        bytes: bundle.bytes,
        files: &bundle.files,
        run,
        created_by: actor,
    };
    rows::insert(&mut tx, &new, now_ms).await?;
    let detail = format!("model.onnx {}", bundle.model);
    audit::record(&mut tx, now_ms, actor, "release.register", &id.to_string(), &detail).await?;
    tx.commit().await?;
    Ok(())
}

/// Steps 3 and 4, for a candidate whose folder is in place.
pub async fn complete(app: &App, id: &ReleaseId) -> Result<()> {
    let stored = rows::get(&mut *app.db.reader().acquire().await?, id).await?;
    if stored.state != ReleaseState::Candidate {
        return Ok(());
    }
    let now_ms = app.now_ms();
    let (release, folder) = (id.clone(), folder(app, id).join(super::bundle::RELEASE_DIR));
    tuf::with(app, move |repository| repository.publish(&release, &folder, &stored.files, now_ms)).await?;
    let mut tx = app.db.begin().await?;
    if rows::set_state(&mut tx, id, ReleaseState::Candidate, ReleaseState::Released).await? {
        audit::record(&mut tx, now_ms, "andon", "release.publish", &id.to_string(), "signed").await?;
    }
    tx.commit().await?;
    app.live.publish("release", id, now_ms);
    app.wake.training.notify_one();
    Ok(())
}

/// Completes what a crash left. A candidate that an upload has under way has no folder yet and is left alone.
pub async fn reconcile(app: &App) -> Result<()> {
    let withdrawn = rows::withdrawn(&mut *app.db.reader().acquire().await?).await?;
    if !withdrawn.is_empty() {
        let now_ms = app.now_ms();
        tuf::with(app, move |repository| repository.withdraw(&withdrawn, now_ms)).await?;
    }
    for id in rows::candidates(&mut *app.db.reader().acquire().await?).await? {
        if folder(app, &id).exists() {
            complete(app, &id).await?;
        }
    }
    Ok(())
}

/// Called at the start, before anything can be uploaded: candidates without a folder never will have one, unless a
/// training run makes them again.
pub async fn forget_unfinished(app: &App) -> Result<()> {
    let candidates = rows::candidates(&mut *app.db.reader().acquire().await?).await?;
    for id in candidates.iter().filter(|id| !folder(app, id).exists()) {
        let mut tx = app.db.begin().await?;
        rows::delete_candidate(&mut tx, id).await?;
        tx.commit().await?;
        tracing::info!(release = %id, "an upload that was cut off by the last stop is forgotten");
    }
    Ok(())
}

/// Devices find the release no more; those that run it go on until they are asked to run another.
pub async fn withdraw(app: &App, id: &ReleaseId, actor: &str) -> Result<rows::Stored> {
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    let stored = rows::get(&mut tx, id).await?;
    if stored.state == ReleaseState::Candidate {
        return Err(Problem::conflict(format!("release {id} is being published, try again in a moment")));
    }
    if rows::set_state(&mut tx, id, ReleaseState::Released, ReleaseState::Withdrawn).await? {
        audit::record(&mut tx, now_ms, actor, "release.withdraw", &id.to_string(), "").await?;
    }
    tx.commit().await?;
    // After the row, so that after a crash between the two the reconciler knows what is left to do.
    let release = id.clone();
    tuf::with(app, move |repository| repository.withdraw(&[release], now_ms)).await?;
    app.live.publish("release", id, now_ms);
    app.wake.rollouts.notify_one();
    rows::get(&mut *app.db.reader().acquire().await?, id).await
}

fn move_into_place(source: &Path, folder: &Path) -> Result<()> {
    // Moved before the crash that makes us come here again.
    if folder.exists() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        files::create_dir(parent)?;
        files::sync_parent(parent)?;
    }
    for inner in [source.to_owned(), source.join(super::bundle::RELEASE_DIR)] {
        std::fs::File::open(inner)?.sync_all()?;
    }
    std::fs::rename(source, folder)?;
    Ok(files::sync_parent(folder)?)
}

/// Blocking work away from the executor.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Problem::internal)?
}
