//! Devices, their alarms, and how a new one comes in.

use andon_protocol::{
    api::{Alarm, AlarmState, Device, Enrolment, NewEnrolment, Overview},
    ids::DeviceId,
    telemetry::DriftState,
};
use clap::{Args, Subcommand};
use comfy_table::Cell;

use super::{LIMIT, LIMIT_MAX, Limit};
use crate::{
    client::{Client, segment},
    clock::now_ms,
    error::Result,
    output::{Output, Tone, facts, number, state},
    text::{ago, bytes, optional, word},
};

#[derive(Args)]
pub(crate) struct Devices {
    /// Show this one in full.
    device: Option<DeviceId>,
    /// Of this site only.
    #[arg(long)]
    site: Option<String>,
    #[command(flatten)]
    limit: Limit,
}

fn drift(device: &Device) -> Cell {
    let tone = match device.drift {
        DriftState::Armed => Tone::Good,
        DriftState::Learning => Tone::Busy,
        DriftState::Suspect | DriftState::Cooldown => Tone::Warning,
        DriftState::Alarm => Tone::Bad,
        DriftState::NoReference => Tone::Plain,
    };
    state(word(&device.drift), tone)
}

impl Devices {
    pub(crate) async fn run(self, client: &Client, out: &Output) -> Result<()> {
        if let Some(id) = self.device {
            let device: Device = client.get(&format!("/devices/{id}")).await?;
            return out.show(&device, describe);
        }
        let limit = if self.site.is_some() { LIMIT_MAX } else { self.limit.limit };
        let mut devices: Vec<Device> = client.list("/devices", &[], limit).await?;
        if let Some(site) = &self.site {
            devices.retain(|d| d.site == *site);
            devices.truncate(self.limit.limit);
        }
        let now = now_ms();
        let headers =
            ["device", "site", "line", "online", "drift", "alarms", "release", "wanted", "last seen"];
        out.list(
            &devices,
            "no devices; enrol one with `andon enrol DEVICE --site SITE --line LINE`",
            &headers,
            |d| {
                let (online, tone) = if d.online { ("yes", Tone::Good) } else { ("no", Tone::Plain) };
                vec![
                    Cell::new(&d.id),
                    Cell::new(&d.site),
                    Cell::new(&d.line),
                    state(online, tone),
                    drift(d),
                    number(d.open_alarms),
                    Cell::new(optional(d.running.as_ref().map(|r| &r.release))),
                    Cell::new(optional(d.desired.as_ref())),
                    Cell::new(ago(d.last_seen_ms, now)),
                ]
            },
        )
    }
}

fn describe(d: &Device) -> String {
    let now = now_ms();
    let release = d.running.as_ref().map(|r| format!("{} on {}, model {}", r.release, r.engine, r.model));
    let update = d.update.as_ref().map(|u| {
        let detail = u.detail.as_ref().map_or_else(String::new, |t| format!(": {t}"));
        format!(
            "{} {}, {} of {}{detail}",
            u.release,
            word(&u.phase),
            bytes(u.bytes_done),
            bytes(u.bytes_total)
        )
    });
    let frames = d.window.as_ref().map(|w| {
        let seconds = f64::from(w.duration_ms.max(1)) / 1000.0;
        let rate = f64::from(w.frames) / seconds;
        format!(
            "{rate:.1} a second, {} dropped, {} faults, p99 {} µs",
            w.frames_dropped, w.faults, w.latency_p99_us
        )
    });
    let s = &d.spool;
    facts([
        ("device", d.id.to_string()),
        ("place", format!("{} / {}", d.site, d.line)),
        (
            "online",
            format!("{}, last seen {}", if d.online { "yes" } else { "no" }, ago(d.last_seen_ms, now)),
        ),
        ("agent", optional(d.agent_version.as_ref())),
        ("release", optional(release)),
        ("previous", optional(d.previous.as_ref())),
        ("wanted", optional(d.desired.as_ref())),
        ("update", optional(update)),
        ("drift", format!("{}, {} open alarms", word(&d.drift), d.open_alarms)),
        ("frames", optional(frames)),
        (
            "spool",
            format!(
                "{}, {} records and {} samples waiting, {} and {} dropped",
                bytes(s.bytes),
                s.records,
                s.samples,
                s.records_dropped,
                s.samples_dropped
            ),
        ),
    ])
}

#[derive(Args)]
pub(crate) struct Alarms {
    #[command(subcommand)]
    action: Option<AlarmAction>,
    /// Closed ones too.
    #[arg(long)]
    all: bool,
    #[arg(long)]
    device: Option<DeviceId>,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Subcommand)]
enum AlarmAction {
    /// Say that somebody looks after it.
    Ack { alarm: String },
}

impl Alarms {
    pub(crate) async fn run(self, client: &Client, out: &Output) -> Result<()> {
        if let Some(AlarmAction::Ack { alarm }) = self.action {
            let alarm: Alarm = client.act(&format!("/alarms/{}/acknowledge", segment(&alarm))).await?;
            return out.done(&alarm, format!("{} on {} is acknowledged", word(&alarm.cause), alarm.device));
        }
        let mut query = Vec::new();
        if !self.all {
            query.push(("state", "open".to_owned()));
        }
        if let Some(device) = &self.device {
            query.push(("device", device.to_string()));
        }
        let alarms: Vec<Alarm> = client.list("/alarms", &query, self.limit.limit).await?;
        let now = now_ms();
        let none = if self.all { "no alarms" } else { "no open alarms" };
        out.list(
            &alarms,
            none,
            &["alarm", "device", "cause", "state", "charts", "frames", "samples", "raised"],
            |a| {
                let tone = match a.state {
                    AlarmState::Open => Tone::Bad,
                    AlarmState::Acknowledged => Tone::Warning,
                    AlarmState::Cleared => Tone::Good,
                };
                vec![
                    Cell::new(&a.id),
                    Cell::new(&a.device),
                    Cell::new(word(&a.cause)),
                    state(word(&a.state), tone),
                    Cell::new(a.charts.join(", ")),
                    number(a.frames),
                    number(a.samples),
                    Cell::new(ago(Some(a.raised_ms), now)),
                ]
            },
        )
    }
}

#[derive(Args)]
pub(crate) struct Enrol {
    /// The name that the device will have for ever.
    device: DeviceId,
    #[arg(long)]
    site: String,
    #[arg(long)]
    line: String,
}

impl Enrol {
    pub(crate) async fn run(self, client: &Client, out: &Output) -> Result<()> {
        let body = NewEnrolment { device: self.device, site: self.site, line: self.line };
        let made: Enrolment = client.post("/enrolments", &body).await?;
        out.show(&made, |e| {
            format!(
                "run this on {} (the token works once and expires {}):\n\nandon-agent enrol --url {} --token {} --data-dir /var/lib/andon",
                e.device,
                ago(Some(e.expires_ms), now_ms()),
                e.url,
                e.token
            )
        })
    }
}

pub(crate) async fn status(client: &Client, out: &Output) -> Result<()> {
    let overview: Overview = client.get("/overview").await?;
    let alarms: Vec<Alarm> = client.list("/alarms", &[("state", "open".to_owned())], LIMIT).await?;
    out.show(&overview, |o| {
        let mut text = facts([
            ("devices", format!("{} of {} online", o.online, o.devices)),
            ("open alarms", o.open_alarms.to_string()),
            (
                "samples",
                format!("{}, {} to label, {} received", o.samples, o.unlabelled, bytes(o.bytes_received)),
            ),
            ("releases", o.releases.to_string()),
            ("training runs", format!("{} under way", o.running_runs)),
            ("rollouts", format!("{} under way", o.running_rollouts)),
        ]);
        for alarm in &alarms {
            text.push_str(&format!(
                "\nalarm on {}: {}, {}",
                alarm.device,
                word(&alarm.cause),
                ago(Some(alarm.raised_ms), now_ms())
            ));
        }
        text
    })
}
