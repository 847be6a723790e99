//! Drift alarms: raised and cleared by devices' events, acknowledged by people.

use sqlx::{FromRow, Row, any::AnyRow};

use andon_protocol::{
    BootId, DeviceId,
    api::{Alarm, AlarmState},
    telemetry::DriftCause,
};

use crate::{
    db::{Conn, Tx, from_word, word},
    problem::{Problem, Result},
};

const COLUMNS: &str = "a.id, a.device, a.cause, a.charts, a.frames, a.raised_ms, a.state, a.acknowledged_by, \
    (SELECT COUNT(*) FROM sample s WHERE s.device = a.device AND s.captured_ms >= a.raised_ms) AS samples";

/// What a device says of an alarm that it raises.
pub struct Raised<'a> {
    pub device: &'a DeviceId,
    pub boot: &'a BootId,
    pub seq: u64,
    pub at_ms: i64,
    pub cause: DriftCause,
    pub charts: &'a [String],
    pub frames: u64,
}

/// Inserts the alarm; its id is that of the record, so that a repeated record makes no second one. Returns the id.
pub async fn raise(tx: &mut Tx, alarm: &Raised<'_>, now_ms: i64) -> Result<String, sqlx::Error> {
    let id = format!("{}-{}-{}", alarm.device, alarm.boot, alarm.seq);
    sqlx::query(
        "INSERT INTO alarm (id, device, cause, charts, frames, raised_ms, state, changed_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, 'open', $7) ON CONFLICT (id) DO NOTHING",
    )
    .bind(&id)
    .bind(alarm.device.as_str())
    .bind(word(&alarm.cause))
    .bind(serde_json::Value::from(alarm.charts.to_vec()).to_string())
    .bind(i64::try_from(alarm.frames).unwrap_or(i64::MAX))
    // By a clock that is ahead of ours, an alarm would stay on top for ever.
    .bind(alarm.at_ms.min(now_ms))
    .bind(now_ms)
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

/// The device sees no drift any more. Returns the ids of the alarms that this clears.
pub async fn clear(tx: &mut Tx, device: &DeviceId, now_ms: i64) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "UPDATE alarm SET state = 'cleared', changed_ms = $1 WHERE device = $2 AND state <> 'cleared' RETURNING id",
    )
    .bind(now_ms)
    .bind(device.as_str())
    .fetch_all(&mut **tx)
    .await
}

/// Marks an open alarm as seen by `actor`. One that is acknowledged already is left as it is.
pub async fn acknowledge(tx: &mut Tx, id: &str, actor: &str, now_ms: i64) -> Result<Alarm> {
    let changed = sqlx::query(
        "UPDATE alarm SET state = 'acknowledged', acknowledged_by = $1, changed_ms = $2 WHERE id = $3 AND state = 'open'",
    )
    .bind(actor)
    .bind(now_ms)
    .bind(id)
    .execute(&mut **tx)
    .await?;
    let alarm = get(tx, id).await?;
    if changed.rows_affected() == 0 && alarm.state == AlarmState::Cleared {
        return Err(Problem::conflict("the alarm has been cleared by the device"));
    }
    Ok(alarm)
}

pub async fn get(conn: &mut Conn, id: &str) -> Result<Alarm> {
    let sql = format!("SELECT {COLUMNS} FROM alarm a WHERE a.id = $1");
    let row: Option<AlarmRow> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(conn).await?;
    row.ok_or_else(|| Problem::not_found(format!("no alarm {id:?}")))?.into_alarm()
}

/// Newest first; `before` is the (`raised_ms`, id) of the last one shown.
pub async fn page(
    conn: &mut Conn,
    state: Option<AlarmState>,
    device: Option<&DeviceId>,
    before: (i64, &str),
    limit: i64,
) -> Result<Vec<Alarm>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM alarm a WHERE ($1 = '' OR a.state = $1) AND ($2 = '' OR a.device = $2) \
         AND (a.raised_ms < $3 OR (a.raised_ms = $3 AND a.id < $4)) ORDER BY a.raised_ms DESC, a.id DESC LIMIT $5"
    );
    let rows: Vec<AlarmRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(state.map(|s| word(&s)).unwrap_or_default())
        .bind(device.map(DeviceId::as_str).unwrap_or_default())
        .bind(before.0)
        .bind(before.1)
        .bind(limit)
        .fetch_all(conn)
        .await?;
    rows.into_iter().map(AlarmRow::into_alarm).collect()
}

struct AlarmRow {
    id: String,
    device: String,
    cause: String,
    charts: String,
    frames: i64,
    raised_ms: i64,
    state: String,
    acknowledged_by: Option<String>,
    samples: i64,
}

impl FromRow<'_, AnyRow> for AlarmRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            device: row.try_get("device")?,
            cause: row.try_get("cause")?,
            charts: row.try_get("charts")?,
            frames: row.try_get("frames")?,
            raised_ms: row.try_get("raised_ms")?,
            state: row.try_get("state")?,
            acknowledged_by: row.try_get("acknowledged_by")?,
            samples: row.try_get("samples")?,
        })
    }
}

impl AlarmRow {
    fn into_alarm(self) -> Result<Alarm> {
        Ok(Alarm {
            id: self.id,
            device: self.device.parse().map_err(Problem::internal)?,
            cause: from_word(&self.cause)?,
            charts: serde_json::from_str(&self.charts)?,
            frames: self.frames.max(0) as u64,
            raised_ms: self.raised_ms,
            state: from_word(&self.state)?,
            acknowledged_by: self.acknowledged_by,
            samples: u32::try_from(self.samples).unwrap_or(u32::MAX),
        })
    }
}
