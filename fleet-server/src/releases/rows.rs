//! Releases as rows.

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, Row, any::AnyRow};

use andon_protocol::{
    Digest, ReleaseId,
    api::{Release, ReleaseState},
    release::Manifest,
};

use crate::{
    db::{Conn, Tx, from_word, word},
    problem::{Problem, Result},
    tuf::PublishedFile,
};

const COLUMNS: &str = "r.model, r.version, r.state, r.created_ms, r.digest, r.bytes, r.manifest, r.files, r.run, \
    (SELECT COUNT(*) FROM device d WHERE d.running = r.model || '/' || CAST(r.version AS TEXT)) AS devices";

/// A release with what is not shown to people.
#[derive(Debug, Clone)]
pub struct Stored {
    pub id: ReleaseId,
    pub state: ReleaseState,
    pub created_ms: i64,
    /// Of `model.onnx`.
    pub digest: Digest,
    pub bytes: u64,
    pub manifest: Manifest,
    pub files: Vec<PublishedFile>,
    pub run: Option<String>,
    devices: u32,
}

impl Stored {
    pub fn into_release(self) -> Release {
        Release {
            id: self.id,
            state: self.state,
            created_ms: self.created_ms,
            model: self.digest,
            bytes: self.bytes,
            labels: self.manifest.labels,
            reject: self.manifest.decision.reject,
            parent: self.manifest.lineage.parent,
            dataset: self.manifest.lineage.dataset,
            run: self.run,
            metrics: self.manifest.metrics,
            devices: self.devices,
        }
    }
}

pub async fn find(conn: &mut Conn, release: &ReleaseId) -> Result<Option<Stored>> {
    let sql = format!("SELECT {COLUMNS} FROM model_release r WHERE r.model = $1 AND r.version = $2");
    let row: Option<ReleaseRow> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(release.model())
        .bind(i64::from(release.version()))
        .fetch_optional(conn)
        .await?;
    row.map(ReleaseRow::into_stored).transpose()
}

pub async fn get(conn: &mut Conn, release: &ReleaseId) -> Result<Stored> {
    find(conn, release).await?.ok_or_else(|| Problem::not_found(format!("no release {release}")))
}

/// Newest first; of one model, or of all where `model` is empty. `before`: the (`created_ms`, id) of the last one shown.
pub async fn page(conn: &mut Conn, model: &str, before: (i64, &str), limit: i64) -> Result<Vec<Stored>> {
    let key = "r.model || '/' || CAST(r.version AS TEXT)";
    let sql = format!(
        "SELECT {COLUMNS} FROM model_release r WHERE ($1 = '' OR r.model = $1) \
         AND (r.created_ms < $2 OR (r.created_ms = $2 AND {key} < $3)) ORDER BY r.created_ms DESC, {key} DESC LIMIT $4"
    );
    let rows: Vec<ReleaseRow> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(model)
        .bind(before.0)
        .bind(before.1)
        .bind(limit)
        .fetch_all(conn)
        .await?;
    rows.into_iter().map(ReleaseRow::into_stored).collect()
}

/// The newest release of a model that is out.
pub async fn latest(conn: &mut Conn, model: &str) -> Result<Option<ReleaseId>> {
    let version: Option<i64> = sqlx::query_scalar(
        "SELECT version FROM model_release WHERE model = $1 AND state = 'released' ORDER BY version DESC LIMIT 1",
    )
    .bind(model)
    .fetch_optional(conn)
    .await?;
    version.map(|v| id(model, v)).transpose()
}

/// The release that the fleet is meant to run: that of the newest rollout that succeeded, or before any did, the
/// newest one. Not one whose rollout was halted.
pub async fn in_force(conn: &mut Conn, model: &str) -> Result<Option<ReleaseId>> {
    let version: Option<i64> = sqlx::query_scalar(
        "SELECT o.version FROM rollout o JOIN model_release r ON r.model = o.model AND r.version = o.version \
         WHERE o.model = $1 AND o.state = 'succeeded' AND r.state = 'released' ORDER BY o.created_ms DESC LIMIT 1",
    )
    .bind(model)
    .fetch_optional(&mut *conn)
    .await?;
    match version {
        Some(version) => Ok(Some(id(model, version)?)),
        None => latest(conn, model).await,
    }
}

/// The lowest version that no release and no training run of the model has or had.
pub async fn next_version(conn: &mut Conn, model: &str) -> Result<u32> {
    let highest: i64 = sqlx::query_scalar(
        "SELECT CAST(COALESCE(MAX(version), 0) AS BIGINT) FROM (SELECT version FROM model_release WHERE model = $1 \
         UNION ALL SELECT version FROM training_run WHERE model = $1) AS used",
    )
    .bind(model)
    .fetch_one(conn)
    .await?;
    u32::try_from(highest + 1).map_err(|_| Problem::conflict(format!("model {model} has no version left")))
}

pub async fn candidates(conn: &mut Conn) -> Result<Vec<ReleaseId>> {
    in_state(conn, ReleaseState::Candidate).await
}

/// The newest thousand.
pub async fn withdrawn(conn: &mut Conn) -> Result<Vec<ReleaseId>> {
    in_state(conn, ReleaseState::Withdrawn).await
}

async fn in_state(conn: &mut Conn, state: ReleaseState) -> Result<Vec<ReleaseId>> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT model, version FROM model_release WHERE state = $1 ORDER BY created_ms DESC LIMIT 1000",
    )
    .bind(word(&state))
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(|(model, version)| id(&model, version)).collect()
}

/// What a new row says beyond the bundle.
pub struct NewRelease<'a> {
    pub manifest: &'a Manifest,
    pub digest: Digest,
    pub bytes: u64,
    pub files: &'a [PublishedFile],
    pub run: Option<&'a str>,
    pub created_by: &'a str,
}

/// Inserts a candidate.
pub async fn insert(tx: &mut Tx, new: &NewRelease<'_>, now_ms: i64) -> Result<()> {
    let release = &new.manifest.release;
    let files: Vec<_> = new.files.iter().map(FileRow::from).collect();
    sqlx::query(
        "INSERT INTO model_release (model, version, state, created_ms, created_by, digest, bytes, manifest, files, run) \
         VALUES ($1, $2, 'candidate', $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(release.model())
    .bind(i64::from(release.version()))
    .bind(now_ms)
    .bind(new.created_by)
    .bind(new.digest.to_string())
    .bind(i64::try_from(new.bytes).unwrap_or(i64::MAX))
    .bind(serde_json::to_string(new.manifest)?)
    .bind(serde_json::to_string(&files)?)
    .bind(new.run)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// From `from` to `to`; `false` where it was in another state.
pub async fn set_state(
    tx: &mut Tx,
    release: &ReleaseId,
    from: ReleaseState,
    to: ReleaseState,
) -> Result<bool> {
    let changed =
        sqlx::query("UPDATE model_release SET state = $1 WHERE model = $2 AND version = $3 AND state = $4")
            .bind(word(&to))
            .bind(release.model())
            .bind(i64::from(release.version()))
            .bind(word(&from))
            .execute(&mut **tx)
            .await?;
    Ok(changed.rows_affected() > 0)
}

/// Forgets a candidate whose files never came.
pub async fn delete_candidate(tx: &mut Tx, release: &ReleaseId) -> Result<()> {
    sqlx::query("DELETE FROM model_release WHERE model = $1 AND version = $2 AND state = 'candidate'")
        .bind(release.model())
        .bind(i64::from(release.version()))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// The id of a stored model name and version.
pub fn id(model: &str, version: i64) -> Result<ReleaseId> {
    let version = u32::try_from(version).map_err(Problem::internal)?;
    ReleaseId::new(model, version).map_err(Problem::internal)
}

#[derive(Serialize, Deserialize)]
struct FileRow {
    name: String,
    length: u64,
    digest: Digest,
}

impl From<&PublishedFile> for FileRow {
    fn from(file: &PublishedFile) -> Self {
        Self { name: file.name.clone(), length: file.length, digest: file.digest }
    }
}

struct ReleaseRow {
    model: String,
    version: i64,
    state: String,
    created_ms: i64,
    digest: String,
    bytes: i64,
    manifest: String,
    files: String,
    run: Option<String>,
    devices: i64,
}

impl FromRow<'_, AnyRow> for ReleaseRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            model: row.try_get("model")?,
            version: row.try_get("version")?,
            state: row.try_get("state")?,
            created_ms: row.try_get("created_ms")?,
            digest: row.try_get("digest")?,
            bytes: row.try_get("bytes")?,
            manifest: row.try_get("manifest")?,
            files: row.try_get("files")?,
            run: row.try_get("run")?,
            devices: row.try_get("devices")?,
        })
    }
}

impl ReleaseRow {
    fn into_stored(self) -> Result<Stored> {
        let files: Vec<FileRow> = serde_json::from_str(&self.files)?;
        Ok(Stored {
            id: id(&self.model, self.version)?,
            state: from_word(&self.state)?,
            created_ms: self.created_ms,
            digest: self.digest.parse().map_err(Problem::internal)?,
            bytes: self.bytes.max(0) as u64,
            manifest: serde_json::from_str(&self.manifest)?,
            files: files
                .into_iter()
                .map(|f| PublishedFile { name: f.name, length: f.length, digest: f.digest })
                .collect(),
            run: self.run,
            devices: u32::try_from(self.devices).unwrap_or(u32::MAX),
        })
    }
}
