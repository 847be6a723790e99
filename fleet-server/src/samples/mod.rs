//! Samples as rows: reading them with their labels, and labelling.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, FromRow, Row, any::AnyRow};

use andon_protocol::{
    DeviceId, Digest, ReleaseId,
    api::{Label, Sample},
    sample::{Reason, SampleManifest},
};

use crate::{
    db::{Conn, Tx, word},
    problem::{Problem, Result},
    releases,
};

const CLASS_BYTES_MAX: usize = 200;
const COLUMNS: &str = "s.digest, s.device, s.received_ms, s.manifest, l.class, l.labelled_by, l.at_ms \
    FROM sample s LEFT JOIN label l ON l.sample = s.digest";

/// Which samples.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub device: Option<DeviceId>,
    pub labelled: Option<bool>,
    pub reason: Option<Reason>,
    /// Captured while the device saw, or suspected, drift.
    pub drift: Option<bool>,
}

pub async fn get(conn: &mut Conn, id: Digest) -> Result<Sample> {
    let sql = format!("SELECT {COLUMNS} WHERE s.digest = $1");
    let row: Option<SampleRow> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(&mut *conn).await?;
    let row = row.ok_or_else(|| Problem::not_found(format!("no sample {id}")))?;
    Classes::default().sample(conn, row).await
}

/// Newest first; `before` is the (`received_ms`, digest) of the last one shown.
pub async fn page(conn: &mut Conn, filter: &Filter, before: (i64, &str), limit: i64) -> Result<Vec<Sample>> {
    let flag = |wanted: Option<bool>| wanted.map_or(-1, i64::from);
    let sql = format!(
        "SELECT {COLUMNS} WHERE ($1 = '' OR s.device = $1) AND ($2 = '' OR s.reason = $2) \
         AND ($3 = -1 OR $3 = CASE WHEN l.sample IS NULL THEN 0 ELSE 1 END) \
         AND ($4 = -1 OR $4 = CASE WHEN s.drift IN ('suspect', 'alarm', 'cooldown') THEN 1 ELSE 0 END) \
         AND (s.received_ms < $5 OR (s.received_ms = $5 AND s.digest < $6)) \
         ORDER BY s.received_ms DESC, s.digest DESC LIMIT $7"
    );
    let rows: Vec<SampleRow> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(filter.device.as_ref().map(DeviceId::as_str).unwrap_or_default())
        .bind(filter.reason.map(|r| word(&r)).unwrap_or_default())
        .bind(flag(filter.labelled))
        .bind(flag(filter.drift))
        .bind(before.0)
        .bind(before.1)
        .bind(limit)
        .fetch_all(&mut *conn)
        .await?;
    let mut classes = Classes::default();
    let mut samples = Vec::with_capacity(rows.len());
    for row in rows {
        samples.push(classes.sample(conn, row).await?);
    }
    Ok(samples)
}

/// Sets or replaces the label. The class must be one of the release that judged the sample, where that is known here.
pub async fn label(tx: &mut Tx, id: Digest, class: &str, by: &str, now_ms: i64) -> Result<()> {
    let release: Option<String> = sqlx::query_scalar("SELECT release_id FROM sample WHERE digest = $1")
        .bind(id.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    let release = release.ok_or_else(|| Problem::not_found(format!("no sample {id}")))?;
    if class.is_empty() || class.len() > CLASS_BYTES_MAX {
        return Err(Problem::invalid(format!("class: 1 to {CLASS_BYTES_MAX} bytes")));
    }
    let release: ReleaseId = release.parse().map_err(Problem::internal)?;
    if let Some(classes) = releases::labels(tx, &release).await?
        && !classes.iter().any(|known| known == class)
    {
        return Err(Problem::refused(format!("class {class:?}: {release} knows {}", classes.join(", "))));
    }
    sqlx::query(
        "INSERT INTO label (sample, class, labelled_by, at_ms) VALUES ($1, $2, $3, $4) ON CONFLICT (sample) DO UPDATE SET \
         class = excluded.class, labelled_by = excluded.labelled_by, at_ms = excluded.at_ms",
    )
    .bind(id.to_string())
    .bind(class)
    .bind(by)
    .bind(now_ms)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Returns whether there was a label.
pub async fn unlabel(tx: &mut Tx, id: Digest) -> Result<bool> {
    get(tx, id).await?;
    let gone =
        sqlx::query("DELETE FROM label WHERE sample = $1").bind(id.to_string()).execute(&mut **tx).await?;
    Ok(gone.rows_affected() > 0)
}

/// Names of classes by release, read once a page.
#[derive(Default)]
struct Classes(HashMap<ReleaseId, Option<Vec<String>>>);

impl Classes {
    async fn sample(&mut self, conn: &mut Conn, row: SampleRow) -> Result<Sample> {
        let manifest: SampleManifest = serde_json::from_str(&row.manifest)?;
        if !self.0.contains_key(&manifest.release) {
            let names = releases::labels(conn, &manifest.release).await?;
            self.0.insert(manifest.release.clone(), names);
        }
        let names = self.0.get(&manifest.release).and_then(Option::as_ref);
        let index = manifest.predicted;
        let predicted = names.and_then(|names| names.get(index as usize)).cloned();
        Ok(Sample {
            id: row.digest.parse().map_err(Problem::internal)?,
            device: row.device.parse().map_err(Problem::internal)?,
            captured_ms: manifest.captured_ms,
            received_ms: row.received_ms,
            boot: manifest.boot.to_string(),
            frame: manifest.frame,
            source: manifest.source,
            release: manifest.release,
            reason: manifest.reason,
            inclusion_probability: manifest.inclusion_probability,
            predicted: predicted.unwrap_or_else(|| format!("class {index}")),
            scores: manifest.scores,
            drift: manifest.drift,
            bytes: manifest.size,
            label: row.label,
        })
    }
}

struct SampleRow {
    digest: String,
    device: String,
    received_ms: i64,
    manifest: String,
    label: Option<Label>,
}

impl FromRow<'_, AnyRow> for SampleRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let class: Option<String> = row.try_get("class")?;
        let label = match class {
            Some(class) => {
                Some(Label { class, by: row.try_get("labelled_by")?, at_ms: row.try_get("at_ms")? })
            }
            None => None,
        };
        Ok(Self {
            digest: row.try_get("digest")?,
            device: row.try_get("device")?,
            received_ms: row.try_get("received_ms")?,
            manifest: row.try_get("manifest")?,
            label,
        })
    }
}
