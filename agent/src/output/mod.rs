//! Where verdicts go. An output is called from the frame thread and is part of the takt: it must be quick.

pub mod verdicts;

use serde::Serialize;

use andon_protocol::{ReleaseId, telemetry::DriftState};

use crate::decision::{Reason, Verdict};

/// What is known about a frame once it was judged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerdictLine {
    /// Number of the frame within this boot.
    pub frame: u64,
    /// UTC at capture, as far as the device's clock can be trusted.
    pub at_ms: i64,
    pub source: String,
    pub release: Option<ReleaseId>,
    /// Name of the class with the highest score; `None` for a fault.
    pub class: Option<String>,
    pub scores: Vec<f32>,
    pub verdict: Verdict,
    pub reason: Option<Reason>,
    /// Capture to verdict.
    pub latency_us: u32,
    pub drift: DriftState,
    pub degraded: bool,
}

pub trait Output: Send {
    fn write(&mut self, line: &VerdictLine) -> std::io::Result<()>;
}

impl<O: Output + ?Sized> Output for Box<O> {
    fn write(&mut self, line: &VerdictLine) -> std::io::Result<()> {
        (**self).write(line)
    }
}

/// Keeps lines in memory, for tests.
#[derive(Debug, Clone, Default)]
pub struct Collected(pub std::sync::Arc<std::sync::Mutex<Vec<VerdictLine>>>);

impl Output for Collected {
    fn write(&mut self, line: &VerdictLine) -> std::io::Result<()> {
        crate::pipeline::lock(&self.0).push(line.clone());
        Ok(())
    }
}
