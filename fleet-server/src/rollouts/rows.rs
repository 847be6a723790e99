//! Rollouts as rows: reading and making them.

use sqlx::{AssertSqlSafe, FromRow, Row, any::AnyRow};

use andon_protocol::{
    DeviceId, ReleaseId,
    api::{Decision, Rollout, RolloutDevice, RolloutDeviceState, RolloutState, Wave},
    state::{Desired, Reported},
};

use super::waves;
use crate::{
    db::{Conn, Tx, from_word, word},
    problem::{Problem, Result},
    releases::rows::id as release_id,
};

/// Shown with a rollout: the newest.
const DECISIONS_SHOWN: i64 = 1000;
/// Shown with a rollout, by wave.
const DEVICES_SHOWN: i64 = 5000;

/// A rollout without its devices.
#[derive(Debug, Clone)]
pub struct Stored {
    pub id: String,
    pub release: ReleaseId,
    pub state: RolloutState,
    pub created_ms: i64,
    pub created_by: String,
    pub finished_ms: Option<i64>,
    pub waves: Vec<Wave>,
    pub wave: u32,
    pub trial_s: u32,
    pub rev: i64,
}

pub async fn get(conn: &mut Conn, id: &str) -> Result<Stored> {
    let row: Option<RolloutRow> =
        sqlx::query_as("SELECT * FROM rollout WHERE id = $1").bind(id).fetch_optional(conn).await?;
    row.ok_or_else(|| {
        Problem::not_found(format!("no rollout {:?}", id.chars().take(80).collect::<String>()))
    })?
    .into_stored()
}

/// Rollouts for which something may be left to do.
pub async fn unsettled(conn: &mut Conn) -> Result<Vec<Stored>> {
    let rows: Vec<RolloutRow> =
        sqlx::query_as("SELECT * FROM rollout WHERE settled = 0 ORDER BY created_ms LIMIT 1000")
            .fetch_all(conn)
            .await?;
    rows.into_iter().map(RolloutRow::into_stored).collect()
}

/// Whether a rollout of the model is under way.
pub async fn is_open(conn: &mut Conn, model: &str) -> Result<bool> {
    let open: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM rollout WHERE settled = 0 AND model = $1")
        .bind(model)
        .fetch_one(conn)
        .await?;
    Ok(open > 0)
}

/// Newest first; `before`: the (`created_ms`, id) of the last one shown.
pub async fn page(conn: &mut Conn, before: (i64, &str), limit: i64) -> Result<Vec<Stored>> {
    let rows: Vec<RolloutRow> = sqlx::query_as(
        "SELECT * FROM rollout WHERE created_ms < $1 OR (created_ms = $1 AND id < $2) \
         ORDER BY created_ms DESC, id DESC LIMIT $3",
    )
    .bind(before.0)
    .bind(before.1)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(RolloutRow::into_stored).collect()
}

/// With devices and decisions, as people see it.
pub async fn full(conn: &mut Conn, stored: Stored) -> Result<Rollout> {
    let devices: Vec<(String, i64, String, Option<String>, i64)> = sqlx::query_as(
        "SELECT device, wave, state, detail, since_ms FROM rollout_device WHERE rollout = $1 ORDER BY wave, device LIMIT $2",
    )
    .bind(&stored.id)
    .bind(DEVICES_SHOWN)
    .fetch_all(&mut *conn)
    .await?;
    let devices = devices
        .into_iter()
        .map(|(device, wave, state, detail, since_ms)| {
            let device = device.parse().map_err(Problem::internal)?;
            Ok(RolloutDevice { device, wave: wave as u32, state: from_word(&state)?, detail, since_ms })
        })
        .collect::<Result<_>>()?;
    let mut decisions: Vec<(i64, String, String, String)> = sqlx::query_as(
        "SELECT at_ms, what, why, decided_by FROM rollout_decision WHERE rollout = $1 ORDER BY seq DESC LIMIT $2",
    )
    .bind(&stored.id)
    .bind(DECISIONS_SHOWN)
    .fetch_all(conn)
    .await?;
    decisions.reverse();
    Ok(Rollout {
        id: stored.id,
        release: stored.release,
        state: stored.state,
        created_ms: stored.created_ms,
        created_by: stored.created_by,
        finished_ms: stored.finished_ms,
        waves: stored.waves,
        wave: stored.wave,
        devices,
        decisions: decisions
            .into_iter()
            .map(|(at_ms, what, why, by)| Decision { at_ms, what, why, by })
            .collect(),
        rev: stored.rev,
    })
}

/// What a new rollout is.
pub struct NewRollout<'a> {
    pub release: &'a ReleaseId,
    pub waves: &'a [Wave],
    pub trial_s: u32,
    pub by: &'a str,
    pub why: &'a str,
    /// The training run that it follows from.
    pub run: Option<&'a str>,
}

/// Makes a rollout for the devices of the release's model. Conflicts: another one of the model is under way, or there
/// is no device for it.
pub async fn create(tx: &mut Tx, new: &NewRollout<'_>, now_ms: i64) -> Result<String> {
    let model = new.release.model();
    if is_open(tx, model).await? {
        return Err(Problem::conflict(format!(
            "a rollout of model {model} is under way; abort it or let it end first"
        )));
    }
    let devices = devices_for(tx, model).await?;
    if devices.is_empty() {
        return Err(Problem::conflict(format!(
            "no device runs model {model} or is free for it; enrol one first"
        )));
    }
    let id = uuid::Uuid::now_v7().to_string();
    sqlx::query(
        "INSERT INTO rollout (id, model, version, state, created_ms, created_by, waves, wave, trial_s, run, settled, rev) \
         VALUES ($1, $2, $3, 'running', $4, $5, $6, 0, $7, $8, 0, 1)",
    )
    .bind(&id)
    .bind(model)
    .bind(i64::from(new.release.version()))
    .bind(now_ms)
    .bind(new.by)
    .bind(serde_json::to_string(new.waves)?)
    .bind(i64::from(new.trial_s))
    .bind(new.run)
    .execute(&mut **tx)
    .await?;
    for (device, wave) in waves::assign(&id, new.waves, &devices) {
        sqlx::query(
            "INSERT INTO rollout_device (rollout, device, wave, state, since_ms) VALUES ($1, $2, $3, 'waiting', $4)",
        )
        .bind(&id)
        .bind(device.as_str())
        .bind(i64::from(wave))
        .bind(now_ms)
        .execute(&mut **tx)
        .await?;
    }
    let what = format!("made for {} devices", devices.len());
    decided(tx, &id, now_ms, &what, new.why, new.by).await?;
    Ok(id)
}

/// Devices that run the model, were asked to, or run nothing, and are in no rollout that is under way.
async fn devices_for(tx: &mut Tx, model: &str) -> Result<Vec<DeviceId>> {
    let rows: Vec<(String, Option<String>, String)> = sqlx::query_as(
        "SELECT id, running, desired FROM device d WHERE NOT EXISTS (SELECT 1 FROM rollout_device m \
         JOIN rollout r ON r.id = m.rollout WHERE m.device = d.id AND r.settled = 0)",
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut devices = Vec::new();
    for (id, running, desired) in rows {
        let desired: Desired = serde_json::from_str(&desired)?;
        let asked = desired.release.as_ref().map(ReleaseId::model);
        let runs = running.as_deref().and_then(|r| r.split_once('/')).map(|(model, _)| model);
        if asked.or(runs).is_none_or(|m| m == model) {
            devices.push(id.parse().map_err(Problem::internal)?);
        }
    }
    Ok(devices)
}

/// Appends to the record of decisions.
pub async fn decided(tx: &mut Tx, id: &str, at_ms: i64, what: &str, why: &str, by: &str) -> Result<()> {
    sqlx::query(
        "INSERT INTO rollout_decision (rollout, seq, at_ms, what, why, decided_by) VALUES ($1, \
         (SELECT CAST(COALESCE(MAX(seq), 0) + 1 AS BIGINT) FROM rollout_decision WHERE rollout = $1), $2, $3, $4, $5)",
    )
    .bind(id)
    .bind(at_ms)
    .bind(what)
    .bind(why)
    .bind(by)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Another state, by a person. `rev`: the revision that they read; `None`: whatever it is.
pub async fn set_state(
    tx: &mut Tx,
    stored: &Stored,
    rev: Option<i64>,
    state: RolloutState,
    now_ms: i64,
) -> Result<()> {
    let stale = || Problem::stale("the rollout changed since you read it; read it again");
    if rev.is_some_and(|rev| rev != stored.rev) {
        return Err(stale());
    }
    let over = !matches!(state, RolloutState::Running | RolloutState::Paused);
    let changed = sqlx::query(
        "UPDATE rollout SET state = $1, finished_ms = $2, rev = rev + 1 WHERE id = $3 AND rev = $4",
    )
    .bind(word(&state))
    .bind(over.then_some(now_ms))
    .bind(&stored.id)
    .bind(stored.rev)
    .execute(&mut **tx)
    .await?;
    if changed.rows_affected() == 0 { Err(stale()) } else { Ok(()) }
}

/// A device in a rollout, with what is known of it.
#[derive(Debug)]
pub struct Member {
    pub device: DeviceId,
    pub wave: u32,
    pub state: RolloutDeviceState,
    pub since_ms: i64,
    pub offered_ms: Option<i64>,
    pub before: Option<ReleaseId>,
    /// `None` where the device is not enrolled any more.
    pub desired: Option<Desired>,
    pub reported: Option<Reported>,
    pub last_seen_ms: Option<i64>,
}

/// Members of waves up to `wave`: later ones play no part yet.
pub async fn members(conn: &mut Conn, rollout: &str, wave: u32) -> Result<Vec<Member>> {
    let sql = "SELECT m.device, m.wave, m.state, m.since_ms, m.offered_ms, m.before_release, d.desired, d.reported, \
        d.last_seen_ms FROM rollout_device m LEFT JOIN device d ON d.id = m.device \
        WHERE m.rollout = $1 AND m.wave <= $2 ORDER BY m.device";
    let rows: Vec<MemberRow> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(rollout).bind(i64::from(wave)).fetch_all(conn).await?;
    rows.into_iter().map(MemberRow::into_member).collect()
}

struct MemberRow {
    device: String,
    wave: i64,
    state: String,
    since_ms: i64,
    offered_ms: Option<i64>,
    before_release: Option<String>,
    desired: Option<String>,
    reported: Option<String>,
    last_seen_ms: Option<i64>,
}

impl FromRow<'_, AnyRow> for MemberRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            device: row.try_get("device")?,
            wave: row.try_get("wave")?,
            state: row.try_get("state")?,
            since_ms: row.try_get("since_ms")?,
            offered_ms: row.try_get("offered_ms")?,
            before_release: row.try_get("before_release")?,
            desired: row.try_get("desired")?,
            reported: row.try_get("reported")?,
            last_seen_ms: row.try_get("last_seen_ms")?,
        })
    }
}

impl MemberRow {
    fn into_member(self) -> Result<Member> {
        Ok(Member {
            device: self.device.parse().map_err(Problem::internal)?,
            wave: self.wave as u32,
            state: from_word(&self.state)?,
            since_ms: self.since_ms,
            offered_ms: self.offered_ms,
            before: self.before_release.map(|r| r.parse()).transpose().map_err(Problem::internal)?,
            desired: self.desired.as_deref().map(serde_json::from_str).transpose()?,
            reported: self.reported.as_deref().map(serde_json::from_str).transpose()?,
            last_seen_ms: self.last_seen_ms,
        })
    }
}

struct RolloutRow {
    id: String,
    model: String,
    version: i64,
    state: String,
    created_ms: i64,
    created_by: String,
    finished_ms: Option<i64>,
    waves: String,
    wave: i64,
    trial_s: i64,
    rev: i64,
}

impl FromRow<'_, AnyRow> for RolloutRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            model: row.try_get("model")?,
            version: row.try_get("version")?,
            state: row.try_get("state")?,
            created_ms: row.try_get("created_ms")?,
            created_by: row.try_get("created_by")?,
            finished_ms: row.try_get("finished_ms")?,
            waves: row.try_get("waves")?,
            wave: row.try_get("wave")?,
            trial_s: row.try_get("trial_s")?,
            rev: row.try_get("rev")?,
        })
    }
}

impl RolloutRow {
    fn into_stored(self) -> Result<Stored> {
        Ok(Stored {
            release: release_id(&self.model, self.version)?,
            id: self.id,
            state: from_word(&self.state)?,
            created_ms: self.created_ms,
            created_by: self.created_by,
            finished_ms: self.finished_ms,
            waves: serde_json::from_str(&self.waves)?,
            wave: self.wave as u32,
            trial_s: u32::try_from(self.trial_s).unwrap_or(0),
            rev: self.rev,
        })
    }
}
