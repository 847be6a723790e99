//! What the server wants of a device, and what the device says it is. The server writes `Desired` (retained), the
//! device answers with `Reported` whenever something in it changed and after every connection.

use serde::{Deserialize, Serialize};

use crate::{codec::Wire, ids::BootId, ids::Digest, ids::ReleaseId, telemetry::DriftState};

/// Whether the device's session with the broker is alive. `online: false` is its will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub online: bool,
    pub boot: Option<BootId>,
}

impl Wire for Status {
    const KIND: &'static str = "status";
    const CONTENT_TYPE: &'static str = "application/vnd.andon.status.v1+cbor";
    const BYTES_MAX: usize = 1024;
}

/// The newest generation wins; an older one is ignored. Nothing in it is trusted to be safe: the release it names
/// must still be found in verified TUF metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Desired {
    pub generation: u64,
    /// The release to run. `None`: keep what runs.
    pub release: Option<ReleaseId>,
    /// The rollout that asks for it; comes back in the report.
    pub rollout: Option<String>,
    /// How long the trial of a new release lasts before it is committed.
    pub trial_s: u32,
    pub upload: UploadPolicy,
}

impl Wire for Desired {
    const KIND: &'static str = "desired state";
    const CONTENT_TYPE: &'static str = "application/vnd.andon.desired.v1+cbor";
    const BYTES_MAX: usize = 4096;
}

/// `None` leaves the device's own configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UploadPolicy {
    pub paused: bool,
    pub bytes_per_hour: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    pub boot: BootId,
    pub agent_version: String,
    /// Generation of the desired state that this answers.
    pub generation: u64,
    /// What frames are judged with now: by digest of the loaded model, not by what was installed.
    pub active: Option<Running>,
    pub previous: Option<ReleaseId>,
    pub update: Option<UpdateReport>,
    pub drift: DriftState,
    pub spool: SpoolReport,
}

impl Wire for Reported {
    const KIND: &'static str = "reported state";
    const CONTENT_TYPE: &'static str = "application/vnd.andon.reported.v1+cbor";
    const BYTES_MAX: usize = 8192;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Running {
    pub release: ReleaseId,
    /// Of `model.onnx` as loaded.
    pub model: Digest,
    /// `cpu`, `gpu` or `tract`; after a colon, for people, why that: at most 300 characters.
    pub engine: String,
}

/// The newest update that the device was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateReport {
    pub release: ReleaseId,
    pub rollout: Option<String>,
    pub phase: UpdatePhase,
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Why, where it went wrong. At most 1024 bytes.
    pub detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UpdatePhase {
    Downloading,
    Verifying,
    SelfTest,
    /// Judges live frames; not yet kept.
    Trial,
    Committed,
    RolledBack,
    /// Never got as far as a trial; what ran before runs on.
    Failed,
}

impl UpdatePhase {
    pub fn is_final(self) -> bool {
        matches!(self, UpdatePhase::Committed | UpdatePhase::RolledBack | UpdatePhase::Failed)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SpoolReport {
    pub bytes: u64,
    pub records: u64,
    pub samples: u64,
    pub records_dropped: u64,
    pub samples_dropped: u64,
}
