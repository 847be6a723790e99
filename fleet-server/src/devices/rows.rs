//! Devices as people see them, and their history.

use sqlx::{FromRow, Row, any::AnyRow};

use andon_protocol::{
    DeviceId,
    api::{Device, DeviceEvent, WindowPoint},
    state::{Desired, Reported},
};

use crate::{
    db::{Conn, from_word},
    problem::{Problem, Result},
};

const COLUMNS: &str = "d.id, d.site, d.line, d.online, d.last_seen_ms, d.enrolled_ms, d.reported, d.drift, \
    d.newest_window, d.desired, \
    (SELECT COUNT(*) FROM alarm a WHERE a.device = d.id AND a.state = 'open') AS open_alarms";

pub async fn get(conn: &mut Conn, device: &DeviceId) -> Result<Device> {
    let sql = format!("SELECT {COLUMNS} FROM device d WHERE d.id = $1");
    let row: Option<DeviceRow> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(device.as_str()).fetch_optional(conn).await?;
    row.ok_or_else(|| Problem::not_found(format!("no device {device}")))?.into_device()
}

/// By id, after `after`.
pub async fn page(conn: &mut Conn, after: &str, limit: i64) -> Result<Vec<Device>> {
    let sql = format!("SELECT {COLUMNS} FROM device d WHERE d.id > $1 ORDER BY d.id LIMIT $2");
    let rows: Vec<DeviceRow> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(after).bind(limit).fetch_all(conn).await?;
    rows.into_iter().map(DeviceRow::into_device).collect()
}

/// Which records of a device's history.
#[derive(Debug, Clone)]
pub struct Span {
    pub from_ms: i64,
    pub to_ms: i64,
    /// Only what is older than this (`at_ms`, `BOOT.SEQ`).
    pub before: Option<(i64, String)>,
    pub limit: i64,
}

struct Record {
    boot: String,
    seq: i64,
    at_ms: i64,
    body: String,
}

impl FromRow<'_, AnyRow> for Record {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            boot: row.try_get("boot")?,
            seq: row.try_get("seq")?,
            at_ms: row.try_get("at_ms")?,
            body: row.try_get("body")?,
        })
    }
}

/// The newest records of a kind within the span, newest first.
async fn records(conn: &mut Conn, device: &DeviceId, kind: &'static str, span: &Span) -> Result<Vec<Record>> {
    get(conn, device).await?;
    let (before_ms, before_boot, before_seq) = match &span.before {
        // After every boot id, which are hexadecimal.
        None => (i64::MAX, "g".to_owned(), 0),
        Some((at_ms, key)) => {
            let (boot, seq) =
                key.split_once('.').ok_or_else(|| Problem::invalid("cursor is none of this list"))?;
            let seq = seq.parse().map_err(|_| Problem::invalid("cursor is none of this list"))?;
            (*at_ms, boot.to_owned(), seq)
        }
    };
    Ok(sqlx::query_as(
        "SELECT boot, seq, at_ms, body FROM telemetry WHERE device = $1 AND kind = $2 AND at_ms >= $3 AND at_ms <= $4 \
         AND (at_ms < $5 OR (at_ms = $5 AND (boot < $6 OR (boot = $6 AND seq < $7)))) \
         ORDER BY at_ms DESC, boot DESC, seq DESC LIMIT $8",
    )
    .bind(device.as_str())
    .bind(kind)
    .bind(span.from_ms)
    .bind(span.to_ms)
    .bind(before_ms)
    .bind(before_boot)
    .bind(before_seq)
    .bind(span.limit)
    .fetch_all(conn)
    .await?)
}

/// The newest windows within the span, newest first.
pub async fn windows(conn: &mut Conn, device: &DeviceId, span: &Span) -> Result<Vec<WindowPoint>> {
    let rows = records(conn, device, "window", span).await?;
    rows.into_iter()
        .map(|r| {
            let window = serde_json::from_str(&r.body)?;
            Ok(WindowPoint { boot: r.boot, seq: r.seq.max(0) as u64, at_ms: r.at_ms, window })
        })
        .collect()
}

/// The newest events within the span, newest first.
pub async fn events(conn: &mut Conn, device: &DeviceId, span: &Span) -> Result<Vec<DeviceEvent>> {
    let rows = records(conn, device, "event", span).await?;
    rows.into_iter()
        .map(|r| {
            let event = serde_json::from_str(&r.body)?;
            Ok(DeviceEvent { boot: r.boot, seq: r.seq.max(0) as u64, at_ms: r.at_ms, event })
        })
        .collect()
}

struct DeviceRow {
    id: String,
    site: String,
    line: String,
    online: i64,
    last_seen_ms: Option<i64>,
    enrolled_ms: i64,
    reported: Option<String>,
    drift: String,
    newest_window: Option<String>,
    desired: String,
    open_alarms: i64,
}

impl FromRow<'_, AnyRow> for DeviceRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            site: row.try_get("site")?,
            line: row.try_get("line")?,
            online: row.try_get("online")?,
            last_seen_ms: row.try_get("last_seen_ms")?,
            enrolled_ms: row.try_get("enrolled_ms")?,
            reported: row.try_get("reported")?,
            drift: row.try_get("drift")?,
            newest_window: row.try_get("newest_window")?,
            desired: row.try_get("desired")?,
            open_alarms: row.try_get("open_alarms")?,
        })
    }
}

impl DeviceRow {
    fn into_device(self) -> Result<Device> {
        let reported: Option<Reported> = self.reported.as_deref().map(serde_json::from_str).transpose()?;
        let desired: Desired = serde_json::from_str(&self.desired)?;
        let window = self.newest_window.as_deref().map(serde_json::from_str).transpose()?;
        let drift = from_word(&self.drift)?;
        let (mut device, spool) = (
            Device {
                id: self.id.parse().map_err(Problem::internal)?,
                site: self.site,
                line: self.line,
                online: self.online != 0,
                last_seen_ms: self.last_seen_ms,
                enrolled_ms: self.enrolled_ms,
                agent_version: None,
                running: None,
                previous: None,
                desired: desired.release,
                update: None,
                drift,
                spool: Default::default(),
                window,
                open_alarms: u32::try_from(self.open_alarms).unwrap_or(u32::MAX),
            },
            reported.as_ref().map(|r| r.spool).unwrap_or_default(),
        );
        device.spool = spool;
        if let Some(reported) = reported {
            device.agent_version = Some(reported.agent_version);
            device.running = reported.active;
            device.previous = reported.previous;
            device.update = reported.update;
        }
        Ok(device)
    }
}
