//! What a device tells about itself: windows of counts and charts, and events. At-least-once; a record is known by
//! (device, boot, sequence), so a repeated one changes nothing and a gap is a visible loss.

use serde::{Deserialize, Serialize};

use crate::{codec::Wire, ids::BootId, ids::ReleaseId};

/// Consecutive records of one boot: record `i` has the sequence number `first_seq + i`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TelemetryBatch {
    pub boot: BootId,
    pub first_seq: u64,
    pub records: Vec<Record>,
}

impl TelemetryBatch {
    pub const RECORDS_MAX: usize = 256;

    /// The sequence number of the last record.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + (self.records.len() as u64).saturating_sub(1)
    }
}

impl Wire for TelemetryBatch {
    const KIND: &'static str = "telemetry batch";
    const CONTENT_TYPE: &'static str = "application/vnd.andon.telemetry.v1+cbor";
    const BYTES_MAX: usize = 64 * 1024;

    fn check(&self) -> Result<(), String> {
        let n = self.records.len();
        if n == 0 || n > Self::RECORDS_MAX {
            return Err(format!("{n} records, allowed are 1 to {}", Self::RECORDS_MAX));
        }
        if self.first_seq > i64::MAX as u64 - n as u64 {
            return Err("sequence number over 2^63".into());
        }
        self.records.iter().try_for_each(Record::check)
    }
}

/// One thing that happened, at a UTC time of the device's clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub at_ms: i64,
    pub body: Body,
}

impl Record {
    fn check(&self) -> Result<(), String> {
        match &self.body {
            Body::Window(w) if w.charts.len() > 32 => {
                Err(format!("{} charts, allowed are 32", w.charts.len()))
            }
            Body::Window(w) if w.class_counts.len() > 1024 => {
                Err(format!("{} classes, allowed are 1024", w.class_counts.len()))
            }
            Body::Event(e) => e.check(),
            Body::Window(_) => Ok(()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Body {
    Window(Window),
    Event(Event),
}

/// Counts and charts over the frames since the last window.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Window {
    pub release: Option<ReleaseId>,
    pub duration_ms: u32,
    pub frames: u32,
    /// Frames that the camera gave and inference never saw, since a newer one had come.
    pub frames_dropped: u32,
    /// Frames whose verdict was the fail-safe one: deadline missed, camera or engine fault.
    pub faults: u32,
    /// Verdicts by class, in the order of the manifest's labels.
    pub class_counts: Vec<u32>,
    /// Capture to verdict.
    pub latency_p50_us: u32,
    pub latency_p99_us: u32,
    /// Mean of the winning class's probability, 0 to 1.
    pub confidence_mean: f32,
    pub drift: DriftState,
    pub charts: Vec<Chart>,
}

/// A drift chart's statistic at the end of the window. It alarms at `value >= threshold`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Chart {
    /// `stats_slow`, `stats_fast`, `embedding`, `prediction` or `gate`.
    pub name: String,
    pub value: f32,
    pub threshold: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DriftState {
    /// The release has no reference that fits, so nothing is watched.
    #[default]
    NoReference,
    Learning,
    Armed,
    Suspect,
    Alarm,
    Cooldown,
}

/// What the signature of the charts that fired points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DriftCause {
    CameraDead,
    Blur,
    Gain,
    Lighting,
    Vignette,
    Moved,
    ProductOrProcess,
    /// More or fewer defects are made: production must know; retraining would be wrong.
    DefectRate,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    AgentStarted {
        version: String,
    },
    DriftAlarm {
        cause: DriftCause,
        /// Names of the charts that fired.
        charts: Vec<String>,
        /// Frames since the charts were armed or last reset.
        frames: u64,
        /// Number of the frame that raised it, within the boot.
        frame: u64,
    },
    DriftCleared,
    /// A release changed its place on the device. `detail` says why where it went wrong.
    Update {
        release: ReleaseId,
        phase: crate::state::UpdatePhase,
        detail: Option<String>,
    },
    /// The spool was over its budget and forgot these, the least valuable first.
    SpoolDropped {
        records: u64,
        samples: u64,
        bytes: u64,
    },
    Fault {
        what: String,
    },
}

impl Event {
    const TEXT_MAX: usize = 1024;

    fn check(&self) -> Result<(), String> {
        let long = |text: &str| text.len() > Self::TEXT_MAX;
        let too_long = match self {
            Event::AgentStarted { version } => long(version),
            Event::DriftAlarm { charts, .. } => charts.len() > 32 || charts.iter().any(|c| long(c)),
            Event::Update { detail, .. } => detail.as_deref().is_some_and(long),
            Event::Fault { what } => long(what),
            Event::DriftCleared | Event::SpoolDropped { .. } => false,
        };
        if too_long { Err(format!("event with a text over {} bytes", Self::TEXT_MAX)) } else { Ok(()) }
    }
}
