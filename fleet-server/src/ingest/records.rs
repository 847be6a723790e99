//! Telemetry, status and reported state. All messages of a batch in one transaction; where that fails, each in its own,
//! so that one device's trouble stays its own.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, Row};

use andon_protocol::{
    DecodeError, DeviceId,
    ack::TelemetryAck,
    decode,
    state::{Desired, Reported, Status},
    telemetry::{Body, Event, Record, TelemetryBatch},
    topics::Channel,
};

use super::{Acks, Complaints, Item, device_of};
use crate::{
    app::App,
    db::{Tx, word},
    devices::{alarms, desired},
    mqtt::Received,
    problem::Problem,
};

pub struct Lane {
    app: App,
    acks: Acks,
    complaints: Arc<Complaints>,
}

enum Message {
    Telemetry(TelemetryBatch),
    Status(Status),
    Reported(Box<Reported>),
}

/// What follows from a message, once it is committed.
#[derive(Default)]
struct Effects {
    ack: Option<TelemetryAck>,
    desired: Option<Desired>,
    live: Vec<(&'static str, String)>,
    wake_rollouts: bool,
    wake_training: bool,
    /// Records that were left out, and why.
    left_out: Option<String>,
}

enum Refusal {
    UnknownDevice,
    Failed(Problem),
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Refusal::Failed(error.into())
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Refusal::Failed(problem)
    }
}

impl Lane {
    pub fn new(app: App, acks: Acks, complaints: Arc<Complaints>) -> Self {
        Self { app, acks, complaints }
    }

    /// Returns when everything in the batch is committed or refused.
    pub async fn take(&self, batch: &[Received]) {
        let now_ms = self.app.now_ms();
        let mut messages = Vec::with_capacity(batch.len());
        for received in batch {
            let Some((device, channel)) = device_of(received) else { continue };
            match read(channel, &received.publish.payload) {
                Ok(Some(message)) => messages.push((device, message)),
                Ok(None) => {}
                Err(error) => {
                    self.complaints.note(Some(&device), &error.to_string(), now_ms);
                }
            }
        }
        if messages.is_empty() {
            return;
        }
        match self.commit(&messages, now_ms).await {
            Ok(effects) => self.act(effects, now_ms).await,
            Err(_) if messages.len() > 1 => {
                for message in &messages {
                    match self.commit(std::slice::from_ref(message), now_ms).await {
                        Ok(effects) => self.act(effects, now_ms).await,
                        Err(problem) => self.failed(&message.0, &problem, now_ms),
                    }
                }
            }
            Err(problem) => self.failed(&messages[0].0, &problem, now_ms),
        }
    }

    /// Not acknowledged, so that the device sends it again.
    fn failed(&self, device: &DeviceId, problem: &Problem, now_ms: i64) {
        self.complaints.note(Some(device), &format!("cannot be stored now: {problem}"), now_ms);
    }

    async fn commit<'m>(
        &self,
        messages: &'m [(DeviceId, Message)],
        now_ms: i64,
    ) -> Result<Vec<(&'m DeviceId, Effects)>, Problem> {
        let mut tx = self.app.db.begin().await?;
        let mut all = Vec::with_capacity(messages.len());
        for (device, message) in messages {
            let applied = match message {
                Message::Telemetry(batch) => telemetry(&mut tx, device, batch, now_ms).await,
                Message::Status(new) => status(&mut tx, device, new, now_ms).await,
                Message::Reported(new) => reported(&mut tx, device, new, now_ms).await,
            };
            match applied {
                Ok(effects) => all.push((device, effects)),
                Err(Refusal::UnknownDevice) => {
                    self.complaints.note(Some(device), "the device is not enrolled here", now_ms);
                }
                Err(Refusal::Failed(problem)) => return Err(problem),
            }
        }
        tx.commit().await?;
        Ok(all)
    }

    async fn act(&self, effects: Vec<(&DeviceId, Effects)>, now_ms: i64) {
        for (device, effects) in effects {
            if let Some(ack) = effects.ack {
                self.acks.push(device, Item::Telemetry(ack)).await;
            }
            if let Some(desired) = effects.desired {
                self.app.mqtt.publish_desired(device, &desired).await;
            }
            for (topic, id) in effects.live {
                self.app.live.publish(topic, id, now_ms);
            }
            if effects.wake_rollouts {
                self.app.wake.rollouts.notify_one();
            }
            if effects.wake_training {
                self.app.wake.training.notify_one();
            }
            if let Some(why) = effects.left_out {
                self.complaints.note(Some(device), &why, now_ms);
            }
        }
    }
}

fn read(channel: Channel, payload: &[u8]) -> Result<Option<Message>, DecodeError> {
    Ok(match channel {
        Channel::Telemetry => Some(Message::Telemetry(decode(payload)?)),
        // An empty retained message is a deleted one.
        Channel::Status if payload.is_empty() => None,
        Channel::Status => Some(Message::Status(decode(payload)?)),
        Channel::Reported => Some(Message::Reported(Box::new(decode(payload)?))),
        Channel::Manifest | Channel::Chunk | Channel::Ack | Channel::Desired => None,
    })
}

async fn status(tx: &mut Tx, device: &DeviceId, status: &Status, now_ms: i64) -> Result<Effects, Refusal> {
    // The will of an offline device says when the broker gave it up, not when it was last seen.
    let changed = sqlx::query(
        "UPDATE device SET online = $1, last_seen_ms = CASE WHEN $1 = 1 THEN $2 ELSE last_seen_ms END WHERE id = $3",
    )
    .bind(i64::from(status.online))
    .bind(now_ms)
    .bind(device.as_str())
    .execute(&mut **tx)
    .await?;
    if changed.rows_affected() == 0 {
        return Err(Refusal::UnknownDevice);
    }
    let mut effects =
        Effects { wake_rollouts: true, live: vec![("device", device.to_string())], ..Default::default() };
    if status.online {
        effects.desired = Some(desired::read(tx, device).await?);
    }
    Ok(effects)
}

async fn reported(
    tx: &mut Tx,
    device: &DeviceId,
    reported: &Reported,
    now_ms: i64,
) -> Result<Effects, Refusal> {
    let json = serde_json::to_string(reported).map_err(Problem::from)?;
    let changed = sqlx::query(
        "UPDATE device SET reported = $1, drift = $2, last_seen_ms = $3, running = $4, online = 1 WHERE id = $5",
    )
    .bind(json)
    .bind(word(&reported.drift))
    .bind(now_ms)
    .bind(reported.active.as_ref().map(|running| running.release.to_string()))
    .bind(device.as_str())
    .execute(&mut **tx)
    .await?;
    if changed.rows_affected() == 0 {
        return Err(Refusal::UnknownDevice);
    }
    let wanted = desired::read(tx, device).await?;
    Ok(Effects {
        desired: (reported.generation < wanted.generation).then_some(wanted),
        wake_rollouts: true,
        live: vec![("device", device.to_string())],
        ..Default::default()
    })
}

async fn telemetry(
    tx: &mut Tx,
    device: &DeviceId,
    batch: &TelemetryBatch,
    now_ms: i64,
) -> Result<Effects, Refusal> {
    // Who speaks is there, even if the will of a connection before came late and said otherwise.
    let seen = sqlx::query("UPDATE device SET last_seen_ms = $1, online = 1 WHERE id = $2")
        .bind(now_ms)
        .bind(device.as_str())
        .execute(&mut **tx)
        .await?;
    if seen.rows_affected() == 0 {
        return Err(Refusal::UnknownDevice);
    }
    let mut effects = Effects {
        // What is left out is acknowledged too: it would be no better the next time.
        ack: Some(TelemetryAck {
            boot: batch.boot.clone(),
            first_seq: batch.first_seq,
            last_seq: batch.last_seq(),
        }),
        live: vec![("telemetry", device.to_string())],
        ..Default::default()
    };
    let mut rows = Vec::with_capacity(batch.records.len());
    for (seq, record) in (batch.first_seq..).zip(&batch.records) {
        match stored_form(record) {
            Ok((kind, body)) => rows.push((seq as i64, record, kind, body)),
            Err(why) => effects.left_out = Some(format!("record {seq} of boot {}: {why}", batch.boot)),
        }
    }
    if rows.is_empty() {
        return Ok(effects);
    }
    let inserted = insert(tx, device, batch, &rows, now_ms).await?;
    let fresh = rows.iter().filter(|(seq, ..)| inserted.contains(seq));
    // A clock in the future must not hide the windows to come.
    let ended = |record: &Record| record.at_ms.min(now_ms);
    let mut newest: Option<(i64, &str, &Record)> = None;
    for (seq, record, _, body) in fresh {
        match &record.body {
            Body::Window(_) if newest.is_none_or(|(at_ms, ..)| at_ms <= ended(record)) => {
                newest = Some((ended(record), body, record));
            }
            Body::Window(_) => {}
            Body::Event(event) => {
                let seq = u64::try_from(*seq).unwrap_or_default();
                happened(tx, device, batch, seq, record.at_ms, event, now_ms, &mut effects).await?;
            }
        }
    }
    if let Some((at_ms, json, Record { body: Body::Window(window), .. })) = newest {
        sqlx::query(
            "UPDATE device SET newest_window = $1, newest_window_ms = $2, drift = $3 \
             WHERE id = $4 AND (newest_window_ms IS NULL OR newest_window_ms <= $2)",
        )
        .bind(json)
        .bind(at_ms)
        .bind(word(&window.drift))
        .bind(device.as_str())
        .execute(&mut **tx)
        .await?;
    }
    Ok(effects)
}

/// The row's kind and JSON. Numbers that JSON cannot hold (not a number, infinite) would make the row unreadable.
fn stored_form(record: &Record) -> Result<(&'static str, String), String> {
    let read_back = |e: serde_json::Error| format!("a number that is none: {e}");
    match &record.body {
        Body::Window(window) => {
            let json = serde_json::to_string(window).map_err(read_back)?;
            serde_json::from_str::<andon_protocol::telemetry::Window>(&json).map_err(read_back)?;
            Ok(("window", json))
        }
        Body::Event(event) => Ok(("event", serde_json::to_string(event).map_err(read_back)?)),
    }
}

/// Inserts the rows that are not there yet and returns their sequence numbers.
async fn insert(
    tx: &mut Tx,
    device: &DeviceId,
    batch: &TelemetryBatch,
    rows: &[(i64, &Record, &'static str, String)],
    now_ms: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    use std::fmt::Write as _;
    let mut sql =
        String::from("INSERT INTO telemetry (device, boot, received_ms, seq, at_ms, kind, body) VALUES ");
    for i in 0..rows.len() {
        let comma = if i == 0 { "" } else { ", " };
        let n = 4 + 4 * i;
        let _ = write!(sql, "{comma}($1, $2, $3, ${n}, ${}, ${}, ${})", n + 1, n + 2, n + 3);
    }
    sql.push_str(" ON CONFLICT (device, boot, seq) DO NOTHING RETURNING seq");
    // Made of constants and numbers only. Statements of rare lengths are not worth a place in the cache.
    let mut query = sqlx::query(AssertSqlSafe(sql))
        .persistent(rows.len() <= 2)
        .bind(device.as_str())
        .bind(batch.boot.as_str())
        .bind(now_ms);
    for (seq, record, kind, body) in rows {
        query = query.bind(*seq).bind(record.at_ms).bind(*kind).bind(body.as_str());
    }
    query.fetch_all(&mut **tx).await?.iter().map(|row| row.try_get(0)).collect()
}

#[allow(clippy::too_many_arguments, reason = "a record with its place and what follows from it")]
async fn happened(
    tx: &mut Tx,
    device: &DeviceId,
    batch: &TelemetryBatch,
    seq: u64,
    at_ms: i64,
    event: &Event,
    now_ms: i64,
    effects: &mut Effects,
) -> Result<(), Refusal> {
    match event {
        Event::DriftAlarm { cause, charts, frames, .. } => {
            let alarm = alarms::Raised {
                device,
                boot: &batch.boot,
                seq,
                at_ms,
                cause: *cause,
                charts,
                frames: *frames,
            };
            let id = alarms::raise(tx, &alarm, now_ms).await?;
            effects.live.push(("alarm", id));
            effects.wake_training = true;
        }
        Event::DriftCleared => {
            for id in alarms::clear(tx, device, now_ms).await? {
                effects.live.push(("alarm", id));
            }
            effects.wake_training = true;
        }
        Event::Update { .. } => {
            effects.live.push(("device", device.to_string()));
            effects.wake_rollouts = true;
        }
        Event::AgentStarted { .. } | Event::SpoolDropped { .. } | Event::Fault { .. } => {}
    }
    Ok(())
}
