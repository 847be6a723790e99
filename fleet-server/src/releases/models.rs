//! Models and what happens to them by itself.

use sqlx::{FromRow, Row, any::AnyRow};

use andon_protocol::api::{Model, Policy, Wave};

use super::rows;
use crate::{
    db::{Conn, Tx},
    problem::{Problem, Result},
    rollouts::waves,
};

const TRIAL_S_MAX: u32 = 7 * 24 * 3600;

/// What a new model starts with: nothing happens by itself but what was asked for.
pub fn default_policy() -> Policy {
    Policy {
        retrain_labels_min: 0,
        auto_rollout: false,
        waves: [(5, 24 * 3600), (25, 24 * 3600), (100, 3600)]
            .map(|(percent, soak_s)| Wave { percent, soak_s })
            .into(),
        trial_s: 600,
        agreement_min: 0.98,
        clean_loss_max: 0.01,
        drift_gain_min: 0.02,
    }
}

pub fn check(policy: &Policy) -> Result<()> {
    waves::check(&policy.waves).map_err(|rule| Problem::invalid(format!("waves: {rule}")))?;
    check_trial(policy.trial_s)?;
    if !(0.0..=1.0).contains(&policy.agreement_min) {
        return Err(Problem::invalid(format!("agreement_min {} is not in [0, 1]", policy.agreement_min)));
    }
    if !(0.0..=1.0).contains(&policy.clean_loss_max) {
        return Err(Problem::invalid(format!("clean_loss_max {} is not in [0, 1]", policy.clean_loss_max)));
    }
    if !(-1.0..=1.0).contains(&policy.drift_gain_min) {
        return Err(Problem::invalid(format!("drift_gain_min {} is not in [-1, 1]", policy.drift_gain_min)));
    }
    Ok(())
}

pub fn check_trial(trial_s: u32) -> Result<()> {
    if trial_s > TRIAL_S_MAX {
        return Err(Problem::invalid(format!("trial_s {trial_s} is over {TRIAL_S_MAX}")));
    }
    Ok(())
}

/// A model with the revision of its policy.
#[derive(Debug, Clone)]
pub struct Stored {
    pub name: String,
    pub labels: Vec<String>,
    pub policy: Policy,
    pub rev: i64,
}

impl Stored {
    pub async fn into_model(self, conn: &mut Conn) -> Result<Model> {
        let latest = rows::latest(conn, &self.name).await?;
        Ok(Model { name: self.name, labels: self.labels, latest, policy: self.policy })
    }
}

pub async fn find(conn: &mut Conn, name: &str) -> Result<Option<Stored>> {
    let row: Option<ModelRow> =
        sqlx::query_as("SELECT * FROM model WHERE name = $1").bind(name).fetch_optional(conn).await?;
    row.map(ModelRow::into_stored).transpose()
}

pub async fn get(conn: &mut Conn, name: &str) -> Result<Stored> {
    find(conn, name).await?.ok_or_else(|| {
        let name: String = name.chars().take(80).collect();
        Problem::not_found(format!("no model {name:?}; the first release of a model makes it"))
    })
}

/// By name, after `after`.
pub async fn page(conn: &mut Conn, after: &str, limit: i64) -> Result<Vec<Stored>> {
    let rows: Vec<ModelRow> = sqlx::query_as("SELECT * FROM model WHERE name > $1 ORDER BY name LIMIT $2")
        .bind(after)
        .bind(limit)
        .fetch_all(conn)
        .await?;
    rows.into_iter().map(ModelRow::into_stored).collect()
}

/// The model of a release: there is one with these labels, or none yet and it is made.
pub async fn ensure(tx: &mut Tx, name: &str, labels: &[String], now_ms: i64) -> Result<()> {
    sqlx::query(
        "INSERT INTO model (name, labels, policy, rev, created_ms) VALUES ($1, $2, $3, 1, $4) ON CONFLICT (name) DO NOTHING",
    )
    .bind(name)
    .bind(serde_json::to_string(labels)?)
    .bind(serde_json::to_string(&default_policy())?)
    .bind(now_ms)
    .execute(&mut **tx)
    .await?;
    let stored = get(tx, name).await?;
    if stored.labels != labels {
        return Err(Problem::refused(format!(
            "the labels {labels:?} are not those of model {name}, {:?}; other classes are another model",
            stored.labels
        )));
    }
    Ok(())
}

/// `rev`: the revision that was read; `None` overwrites whatever is there. Returns the new revision.
pub async fn set_policy(tx: &mut Tx, name: &str, policy: &Policy, rev: Option<i64>) -> Result<i64> {
    let stored = get(tx, name).await?;
    if rev.is_some_and(|rev| rev != stored.rev) {
        return Err(Problem::stale("the policy was changed since you read it; read it again"));
    }
    // On SQLite nobody else writes now; on PostgreSQL the revision decides.
    let changed = sqlx::query("UPDATE model SET policy = $1, rev = rev + 1 WHERE name = $2 AND rev = $3")
        .bind(serde_json::to_string(policy)?)
        .bind(name)
        .bind(stored.rev)
        .execute(&mut **tx)
        .await?;
    if changed.rows_affected() == 0 {
        return Err(Problem::stale("the policy was changed at the same moment; read it again"));
    }
    Ok(stored.rev + 1)
}

struct ModelRow {
    name: String,
    labels: String,
    policy: String,
    rev: i64,
}

impl FromRow<'_, AnyRow> for ModelRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            name: row.try_get("name")?,
            labels: row.try_get("labels")?,
            policy: row.try_get("policy")?,
            rev: row.try_get("rev")?,
        })
    }
}

impl ModelRow {
    fn into_stored(self) -> Result<Stored> {
        Ok(Stored {
            name: self.name,
            labels: serde_json::from_str(&self.labels)?,
            policy: serde_json::from_str(&self.policy)?,
            rev: self.rev,
        })
    }
}
