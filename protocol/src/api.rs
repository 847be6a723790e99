//! Bodies of the people's API, `/api/v1`, as JSON. The server serves them, the dashboard, the command line and the
//! tests read them; with feature `openapi` they describe themselves. Times are UTC milliseconds (`_ms`), ids are text.
//!
//! Lists are pages: `?limit=` (at most 500, default 100) and `?cursor=` (opaque), answered with [`Page`]. Errors are
//! [`Problem`] (RFC 9457). Mutable resources carry an `ETag`; writes to policies and rollouts need `If-Match`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DeviceId, Digest, ReleaseId},
    state::{Running, SpoolReport, UpdateReport},
    telemetry::{DriftCause, DriftState, Window},
};

macro_rules! body {
    ($(#[$meta:meta])* struct $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
    };
}

macro_rules! words {
    ($(#[$meta:meta])* enum $name:ident { $($(#[$vmeta:meta])* $variant:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vmeta])* $variant),* }
    };
}

body! {
    /// RFC 9457, `application/problem+json`.
    struct Problem {
        /// Stable, for programs: `not_found`, `stale`, `invalid`, `unauthorised`, `forbidden`, `conflict`, `too_large`…
        code: String,
        title: String,
        status: u16,
        /// Says what is wrong with this request and what to do.
        detail: String,
    }
}

/// One page of a list. `next` is the cursor of the following page, absent on the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

// ---- people ----

words! {
    /// Each role may do all that the ones before it may.
    enum Role { Viewer, Labeller, Engineer, Operator, Admin }
}

body! { struct Login { user: String, password: String } }
body! { struct Me { user: String, role: Role } }
body! { struct NewApiToken { name: String, role: Role, expires_ms: Option<i64> } }
body! {
    /// `token` is shown once; the server keeps its hash.
    struct ApiToken { id: String, name: String, role: Role, token: Option<String>, expires_ms: Option<i64>, created_ms: i64 }
}

// ---- devices ----

body! {
    struct NewEnrolment { device: DeviceId, site: String, line: String }
}
body! {
    /// The token can be used once, until it expires. It carries the digest of the fleet's CA, so that the device
    /// knows whom it talks to before it has any certificate.
    struct Enrolment { device: DeviceId, token: String, expires_ms: i64, url: String }
}
body! {
    struct Device {
        id: DeviceId,
        site: String,
        line: String,
        online: bool,
        last_seen_ms: Option<i64>,
        enrolled_ms: i64,
        agent_version: Option<String>,
        running: Option<Running>,
        previous: Option<ReleaseId>,
        desired: Option<ReleaseId>,
        update: Option<UpdateReport>,
        drift: DriftState,
        spool: SpoolReport,
        /// The newest window.
        window: Option<Window>,
        open_alarms: u32,
    }
}
body! {
    /// A window of telemetry, with the time of its end.
    struct WindowPoint { boot: String, seq: u64, at_ms: i64, window: Window }
}
body! {
    struct DeviceEvent { boot: String, seq: u64, at_ms: i64, event: crate::telemetry::Event }
}

words! { enum AlarmState { Open, Acknowledged, Cleared } }
body! {
    struct Alarm {
        id: String,
        device: DeviceId,
        cause: DriftCause,
        charts: Vec<String>,
        /// Frames from arming to the alarm.
        frames: u64,
        raised_ms: i64,
        state: AlarmState,
        acknowledged_by: Option<String>,
        /// Samples received from the device since the alarm.
        samples: u32,
    }
}

// ---- samples and labels ----

body! {
    struct Sample {
        id: Digest,
        device: DeviceId,
        captured_ms: i64,
        received_ms: i64,
        boot: String,
        frame: u64,
        source: String,
        release: ReleaseId,
        reason: crate::sample::Reason,
        inclusion_probability: f32,
        /// Name of the predicted class, where the release is known here.
        predicted: String,
        scores: Vec<f32>,
        drift: DriftState,
        bytes: u64,
        label: Option<Label>,
    }
}
body! { struct Label { class: String, by: String, at_ms: i64 } }
body! { struct NewLabel { class: String } }

// ---- models, data sets, training ----

body! {
    struct Model {
        name: String,
        labels: Vec<String>,
        latest: Option<ReleaseId>,
        policy: Policy,
    }
}
body! {
    /// What happens by itself. Written with `If-Match`.
    struct Policy {
        /// Start a training run when a drift alarm is open and at least this many samples of drifted devices are
        /// labelled since the last run; 0: never by itself.
        retrain_labels_min: u32,
        /// Roll out a release that passed the gate without asking.
        auto_rollout: bool,
        waves: Vec<Wave>,
        trial_s: u32,
        /// Quantised, a new release must give the verdict of its float self on at least this share of the images.
        agreement_min: f64,
        /// A new release must not lose more than this (balanced accuracy, 0 to 1) on golden and validation data…
        clean_loss_max: f64,
        /// …and must win at least this on the held-back drifted samples.
        drift_gain_min: f64,
    }
}
body! {
    /// Devices are put into waves by a hash of rollout and device. A wave starts when the one before it is proven.
    struct Wave {
        /// Cumulative share of the fleet, 1 to 100; the first wave has at least one device.
        percent: u8,
        /// Soak: seconds after the last device of the wave committed.
        soak_s: u32,
    }
}

words! { enum Split { Train, Validation, Golden } }
body! {
    struct DataSet {
        /// Digest of the list of its items.
        id: Digest,
        model: String,
        created_ms: i64,
        parent: Option<Digest>,
        /// Items by split.
        items: BTreeMap<String, u32>,
        /// Items that came from the field.
        field_items: u32,
    }
}

words! { enum RunState { Queued, Running, Succeeded, Refused, Failed, Cancelled } }
body! { struct NewRun { model: String } }
body! {
    struct TrainingRun {
        id: String,
        model: String,
        state: RunState,
        created_ms: i64,
        started_ms: Option<i64>,
        finished_ms: Option<i64>,
        attempt: u32,
        dataset: Option<Digest>,
        parent: Option<ReleaseId>,
        release: Option<ReleaseId>,
        /// 0 to 1.
        progress: f32,
        /// `prepare`, `features`, `train`, `quantise`, `evaluate`…
        stage: String,
        /// By name: `golden.balanced_accuracy.old`, `….new`.
        metrics: BTreeMap<String, f64>,
        /// What the gate said, or the error.
        verdict: Option<String>,
    }
}

words! { enum ReleaseState { Candidate, Released, Withdrawn } }
body! {
    struct Release {
        id: ReleaseId,
        state: ReleaseState,
        created_ms: i64,
        model: Digest,
        bytes: u64,
        labels: Vec<String>,
        /// Index into `labels` of the class whose parts are rejected.
        reject: u32,
        parent: Option<ReleaseId>,
        dataset: Digest,
        run: Option<String>,
        metrics: BTreeMap<String, f64>,
        /// Devices that run it now.
        devices: u32,
    }
}

// ---- rollouts ----

words! { enum RolloutState { Running, Paused, Succeeded, Halted, Aborted } }
words! { enum RolloutDeviceState { Waiting, Offered, Downloading, Trial, Committed, RolledBack, Failed, Silent } }
body! { struct NewRollout { release: ReleaseId, waves: Option<Vec<Wave>>, trial_s: Option<u32> } }
body! {
    struct Rollout {
        id: String,
        release: ReleaseId,
        state: RolloutState,
        created_ms: i64,
        created_by: String,
        finished_ms: Option<i64>,
        waves: Vec<Wave>,
        /// Index of the wave that is out.
        wave: u32,
        devices: Vec<RolloutDevice>,
        /// Append-only: every decision with its inputs.
        decisions: Vec<Decision>,
        /// For `If-Match`.
        rev: i64,
    }
}
body! {
    struct RolloutDevice { device: DeviceId, wave: u32, state: RolloutDeviceState, detail: Option<String>, since_ms: i64 }
}
body! { struct Decision { at_ms: i64, what: String, why: String, by: String } }
words! { enum RolloutAction { Pause, Resume, Abort } }

// ---- audit, overview, live events ----

body! {
    /// Hash-chained: `hash` covers the entry and `previous`.
    struct AuditEntry { seq: i64, at_ms: i64, actor: String, action: String, object: String, detail: String, previous: String, hash: String }
}

body! {
    struct Overview {
        devices: u32,
        online: u32,
        open_alarms: u32,
        samples: u32,
        unlabelled: u32,
        bytes_received: u64,
        releases: u32,
        running_rollouts: u32,
        running_runs: u32,
    }
}

/// `GET /api/v1/events`, Server-Sent Events. The event's name is the `topic`; clients re-read what it names.
/// Topics: `device`, `telemetry`, `alarm`, `sample`, `label`, `run`, `release`, `rollout`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LiveEvent {
    pub topic: String,
    pub id: String,
    pub at_ms: i64,
}

// ---- devices' API (mutual TLS, `/device/v1`) ----

body! { struct EnrolRequest { token: String, csr_pem: String } }
body! {
    struct EnrolResponse {
        device: DeviceId,
        certificate_pem: String,
        /// The fleet's CA; trusted from now on for HTTPS and MQTT.
        ca_pem: String,
        mqtt_host: String,
        mqtt_port: u16,
        /// Base URL of `/tuf/metadata/` and `/tuf/targets/`.
        updates_url: String,
        /// TUF root metadata, version 1, as JSON text. The only root taken on trust.
        tuf_root: String,
    }
}
