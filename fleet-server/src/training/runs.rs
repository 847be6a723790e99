//! Training runs as rows.

use std::collections::BTreeMap;

use sqlx::{FromRow, Row, any::AnyRow};

use andon_protocol::{
    Digest, ReleaseId,
    api::{RunState, TrainingRun},
    job::{Claim, Progress},
};

use super::step::RunFacts;
use crate::{
    db::{Conn, Tx, from_word, word},
    problem::{Problem, Result},
    releases::rows::id as release_id,
};

const VERDICT_CHARS_MAX: usize = 4000;
const STAGE_CHARS_MAX: usize = 64;

#[derive(Debug, Clone)]
pub struct Stored {
    pub id: String,
    /// The release that it is to make.
    pub release: ReleaseId,
    pub parent: ReleaseId,
    pub dataset: Digest,
    pub created_ms: i64,
    pub facts: RunFacts,
    started_ms: Option<i64>,
    finished_ms: Option<i64>,
    progress: f64,
    stage: String,
    metrics: BTreeMap<String, f64>,
    verdict: Option<String>,
}

impl Stored {
    pub fn into_run(self) -> TrainingRun {
        let made = self.facts.state == RunState::Succeeded;
        TrainingRun {
            model: self.release.model().to_owned(),
            id: self.id,
            state: self.facts.state,
            created_ms: self.created_ms,
            started_ms: self.started_ms,
            finished_ms: self.finished_ms,
            attempt: self.facts.attempt,
            dataset: Some(self.dataset),
            parent: Some(self.parent),
            release: made.then_some(self.release),
            progress: self.progress as f32,
            stage: self.stage,
            metrics: self.metrics,
            verdict: self.verdict,
        }
    }
}

pub async fn get(conn: &mut Conn, id: &str) -> Result<Stored> {
    let row: Option<RunRow> =
        sqlx::query_as("SELECT * FROM training_run WHERE id = $1").bind(id).fetch_optional(conn).await?;
    row.ok_or_else(|| {
        Problem::not_found(format!("no training run {:?}", id.chars().take(80).collect::<String>()))
    })?
    .into_stored()
}

/// Queued and running ones.
pub async fn active(conn: &mut Conn) -> Result<Vec<Stored>> {
    let rows: Vec<RunRow> = sqlx::query_as(
        "SELECT * FROM training_run WHERE state IN ('queued', 'running') ORDER BY created_ms, id LIMIT 1000",
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(RunRow::into_stored).collect()
}

pub async fn is_active(conn: &mut Conn, model: &str) -> Result<bool> {
    let count: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM training_run WHERE model = $1 AND state IN ('queued', 'running')",
    )
    .bind(model)
    .fetch_one(conn)
    .await?;
    Ok(count > 0)
}

/// When the newest run of the model was made.
pub async fn last_created_ms(conn: &mut Conn, model: &str) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar("SELECT MAX(created_ms) FROM training_run WHERE model = $1")
        .bind(model)
        .fetch_one(conn)
        .await?)
}

/// Newest first; of one model, or of all where `model` is empty. `before`: the (`created_ms`, id) of the last one shown.
pub async fn page(conn: &mut Conn, model: &str, before: (i64, &str), limit: i64) -> Result<Vec<Stored>> {
    let rows: Vec<RunRow> = sqlx::query_as(
        "SELECT * FROM training_run WHERE ($1 = '' OR model = $1) AND (created_ms < $2 OR (created_ms = $2 AND id < $3)) \
         ORDER BY created_ms DESC, id DESC LIMIT $4",
    )
    .bind(model)
    .bind(before.0)
    .bind(before.1)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(RunRow::into_stored).collect()
}

pub struct NewRun<'a> {
    pub release: &'a ReleaseId,
    pub parent: &'a ReleaseId,
    pub dataset: &'a Digest,
    pub by: &'a str,
    pub why: &'a str,
}

pub async fn insert(tx: &mut Tx, new: &NewRun<'_>, now_ms: i64) -> Result<String> {
    let id = uuid::Uuid::now_v7().to_string();
    sqlx::query(
        "INSERT INTO training_run (id, model, version, parent_version, dataset, state, created_ms, created_by, why, attempt, \
         cancel, progress, stage, metrics) VALUES ($1, $2, $3, $4, $5, 'queued', $6, $7, $8, 0, 0, 0, 'queued', '{}')",
    )
    .bind(&id)
    .bind(new.release.model())
    .bind(i64::from(new.release.version()))
    .bind(i64::from(new.parent.version()))
    .bind(new.dataset.to_string())
    .bind(now_ms)
    .bind(new.by)
    .bind(new.why)
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

/// A person wants it to stop.
pub async fn cancel(tx: &mut Tx, id: &str) -> Result<()> {
    let changed =
        sqlx::query("UPDATE training_run SET cancel = 1 WHERE id = $1 AND state IN ('queued', 'running')")
            .bind(id)
            .execute(&mut **tx)
            .await?;
    if changed.rows_affected() == 0 {
        let stored = get(tx, id).await?;
        return Err(Problem::conflict(format!("the run is over: {}", word(&stored.facts.state))));
    }
    Ok(())
}

pub async fn set_running(
    tx: &mut Tx,
    id: &str,
    claim: &Claim,
    attempt: u32,
    progress: Option<&Progress>,
    now_ms: i64,
) -> Result<()> {
    let done = progress.map_or(0.0, |p| f64::from(p.done.clamp(0.0, 1.0)));
    let stage: String =
        progress.map_or("starting", |p| p.stage.as_str()).chars().take(STAGE_CHARS_MAX).collect();
    sqlx::query(
        "UPDATE training_run SET state = 'running', claim = $1, attempt = $2, progress = $3, stage = $4, \
         started_ms = COALESCE(started_ms, $5) WHERE id = $6",
    )
    .bind(serde_json::to_string(claim)?)
    .bind(i64::from(attempt))
    .bind(done)
    .bind(stage)
    .bind(now_ms)
    .bind(id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub async fn set_queued(tx: &mut Tx, id: &str, attempt: u32) -> Result<()> {
    sqlx::query(
        "UPDATE training_run SET state = 'queued', progress = 0, stage = 'queued', claim = NULL, attempt = $1 \
         WHERE id = $2",
    )
    .bind(i64::from(attempt))
    .bind(id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub async fn finish(
    tx: &mut Tx,
    id: &str,
    state: RunState,
    verdict: &str,
    metrics: &BTreeMap<String, f64>,
    now_ms: i64,
) -> Result<()> {
    let verdict: String = verdict.chars().take(VERDICT_CHARS_MAX).collect();
    let metrics: BTreeMap<_, _> = metrics.iter().filter(|(_, v)| v.is_finite()).take(256).collect();
    sqlx::query(
        "UPDATE training_run SET state = $1, verdict = $2, metrics = $3, finished_ms = $4, claim = NULL, \
         progress = CASE WHEN $1 IN ('succeeded', 'refused') THEN 1 ELSE progress END, stage = 'done' \
         WHERE id = $5 AND state IN ('queued', 'running')",
    )
    .bind(word(&state))
    .bind(verdict)
    .bind(serde_json::to_string(&metrics)?)
    .bind(now_ms)
    .bind(id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

struct RunRow {
    id: String,
    model: String,
    version: i64,
    parent_version: i64,
    dataset: String,
    state: String,
    created_ms: i64,
    started_ms: Option<i64>,
    finished_ms: Option<i64>,
    attempt: i64,
    claim: Option<String>,
    cancel: i64,
    progress: f64,
    stage: String,
    metrics: String,
    verdict: Option<String>,
}

impl FromRow<'_, AnyRow> for RunRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            model: row.try_get("model")?,
            version: row.try_get("version")?,
            parent_version: row.try_get("parent_version")?,
            dataset: row.try_get("dataset")?,
            state: row.try_get("state")?,
            created_ms: row.try_get("created_ms")?,
            started_ms: row.try_get("started_ms")?,
            finished_ms: row.try_get("finished_ms")?,
            attempt: row.try_get("attempt")?,
            claim: row.try_get("claim")?,
            cancel: row.try_get("cancel")?,
            progress: row.try_get("progress")?,
            stage: row.try_get("stage")?,
            metrics: row.try_get("metrics")?,
            verdict: row.try_get("verdict")?,
        })
    }
}

impl RunRow {
    fn into_stored(self) -> Result<Stored> {
        Ok(Stored {
            release: release_id(&self.model, self.version)?,
            parent: release_id(&self.model, self.parent_version)?,
            id: self.id,
            dataset: self.dataset.parse().map_err(Problem::internal)?,
            created_ms: self.created_ms,
            facts: RunFacts {
                state: from_word(&self.state)?,
                attempt: u32::try_from(self.attempt).unwrap_or(0),
                claim: self.claim.as_deref().map(serde_json::from_str).transpose()?,
                cancel: self.cancel != 0,
            },
            started_ms: self.started_ms,
            finished_ms: self.finished_ms,
            progress: self.progress,
            stage: self.stage,
            metrics: serde_json::from_str(&self.metrics)?,
            verdict: self.verdict,
        })
    }
}
