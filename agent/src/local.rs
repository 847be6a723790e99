//! What people and programs on the device may look at: `GET /health` (JSON; 503 when verdicts do not get on) and
//! `GET /metrics` (Prometheus text). Read-only, meant for loopback; the bound address stands in `DATA_DIR/local.addr`.

use std::{fmt::Write, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use andon_protocol::{DeviceId, state::SpoolReport};
use axum::{
    Json, Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get,
};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::{
    files::{self, SystemDisk},
    line::{Line, Progress, progress},
    pipeline::Health,
    spool::Spool,
    uplink::Stats,
};

pub const ADDRESS_FILE: &str = "local.addr";

#[derive(Clone)]
pub struct Local {
    pub device: DeviceId,
    pub line: Line,
    pub spool: Arc<Spool>,
    pub uplink: Arc<Stats>,
    /// Longest silence between two verdicts that is no fault.
    pub silence_max: Duration,
}

#[derive(Debug, Serialize)]
struct HealthBody {
    /// `judging`, `waiting` (no release yet) or `stalled`.
    status: &'static str,
    device: DeviceId,
    release: Option<String>,
    /// What computes it, and why that.
    engine: Option<String>,
    frames: u64,
    faults: u64,
    last_verdict_age_ms: Option<u64>,
    drift: andon_protocol::telemetry::DriftState,
    connected: bool,
    spool: SpoolReport,
}

/// Binds, writes the address down and serves until the process ends.
pub async fn start(listen: SocketAddr, data_dir: &Path, local: Local) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await.map_err(|e| {
        let advice = "change [local] listen in the configuration, or end what uses the port";
        std::io::Error::new(e.kind(), format!("cannot listen on {listen}: {e}; {advice}"))
    })?;
    let address = listener.local_addr()?;
    files::replace(&SystemDisk, &data_dir.join(ADDRESS_FILE), address.to_string().as_bytes())?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router(local)).await {
            tracing::error!(%error, "the local listener has ended");
        }
    });
    Ok(address)
}

pub fn router(local: Local) -> Router {
    Router::new().route("/health", get(health)).route("/metrics", get(metrics)).with_state(local)
}

async fn health(State(local): State<Local>) -> impl IntoResponse {
    let health = local.line.health();
    let (status, word) = match progress(health.as_ref(), local.silence_max) {
        Progress::Judging => (StatusCode::OK, "judging"),
        Progress::Waiting => (StatusCode::OK, "waiting"),
        Progress::Stalled => (StatusCode::SERVICE_UNAVAILABLE, "stalled"),
    };
    let health = health.unwrap_or_default();
    let body = HealthBody {
        status: word,
        device: local.device.clone(),
        release: health.running.as_ref().map(|running| running.release.to_string()),
        engine: health.running.map(|running| running.engine),
        frames: health.total.frames,
        faults: health.total.faults,
        last_verdict_age_ms: health.last_verdict_age.map(|age| age.as_millis() as u64),
        drift: health.drift,
        connected: local.uplink.connected.load(std::sync::atomic::Ordering::Relaxed),
        spool: local.spool.report(),
    };
    (status, Json(body))
}

async fn metrics(State(local): State<Local>) -> impl IntoResponse {
    let text = render(&local.line.health().unwrap_or_default(), &local.spool.report(), &local.uplink);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// The text format of Prometheus, version 0.0.4.
fn render(health: &Health, spool: &SpoolReport, uplink: &Stats) -> String {
    use std::sync::atomic::Ordering::Relaxed;
    let total = &health.total;
    let seconds = |us: u32| f64::from(us) / 1e6;
    let rows: [(&str, &str, &str, f64); 19] = [
        ("andon_frames_total", "counter", "Frames that got a verdict.", total.frames as f64),
        ("andon_frames_dropped_total", "counter", "Frames that a newer one displaced.", total.dropped as f64),
        ("andon_faults_total", "counter", "Frames with the fail-safe verdict.", total.faults as f64),
        (
            "andon_release_faults_total",
            "counter",
            "Faults that the release may be to blame for.",
            total.release_faults as f64,
        ),
        (
            "andon_latency_p50_seconds",
            "gauge",
            "Capture to verdict since the release was loaded, median.",
            seconds(health.since_install.latency_p50_us),
        ),
        (
            "andon_latency_p99_seconds",
            "gauge",
            "Capture to verdict since the release was loaded, 99th percentile.",
            seconds(health.since_install.latency_p99_us),
        ),
        (
            "andon_release_swaps_total",
            "counter",
            "Releases swapped in since the start.",
            health.installs as f64,
        ),
        (
            "andon_frames_unwatched_total",
            "counter",
            "Frames that drift and selection did not see.",
            health.unwatched as f64,
        ),
        (
            "andon_verdict_write_failures_total",
            "counter",
            "Verdict lines that could not be written.",
            health.output_failures as f64,
        ),
        ("andon_spool_bytes", "gauge", "Bytes that wait for the server.", spool.bytes as f64),
        ("andon_spool_records", "gauge", "Telemetry records that wait.", spool.records as f64),
        ("andon_spool_samples", "gauge", "Samples that wait.", spool.samples as f64),
        (
            "andon_spool_records_dropped_total",
            "counter",
            "Records forgotten for want of room.",
            spool.records_dropped as f64,
        ),
        (
            "andon_spool_samples_dropped_total",
            "counter",
            "Samples forgotten for want of room.",
            spool.samples_dropped as f64,
        ),
        (
            "andon_uplink_connected",
            "gauge",
            "1 while the session with the broker lives.",
            f64::from(u8::from(uplink.connected.load(Relaxed))),
        ),
        (
            "andon_uplink_sessions_total",
            "counter",
            "Sessions with the broker.",
            uplink.sessions.load(Relaxed) as f64,
        ),
        (
            "andon_uplink_bytes_total",
            "counter",
            "Payload bytes sent.",
            uplink.bytes_sent.load(Relaxed) as f64,
        ),
        (
            "andon_uplink_records_acknowledged_total",
            "counter",
            "Records that the server has.",
            uplink.records_acknowledged.load(Relaxed) as f64,
        ),
        (
            "andon_uplink_samples_acknowledged_total",
            "counter",
            "Samples that the server has.",
            uplink.samples_acknowledged.load(Relaxed) as f64,
        ),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in rows {
        // Writing to a string can't fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    let _ = writeln!(
        text,
        "# HELP andon_drift_chart A drift chart, as a share of its threshold.\n# TYPE andon_drift_chart gauge"
    );
    for chart in &health.charts {
        let share = f64::from(chart.value) / f64::from(chart.threshold);
        let _ = writeln!(text, "andon_drift_chart{{chart=\"{}\"}} {share}", chart.name.escape_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use andon_protocol::telemetry::Chart;

    #[test]
    fn every_metric_has_help_type_and_one_value() {
        let charts = vec![Chart { name: "gate".into(), value: 1.0, threshold: 4.0 }];
        let text =
            render(&Health { charts, ..Health::default() }, &SpoolReport::default(), &Stats::default());
        let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert_eq!(names.len(), 20);
        for name in names {
            let (name, kind) = name.split_once(' ').unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            assert_eq!(
                text.lines()
                    .filter(|l| l.starts_with(&format!("{name} ")) || l.starts_with(&format!("{name}{{")))
                    .count(),
                1
            );
        }
        assert!(text.contains("andon_drift_chart{chart=\"gate\"} 0.25\n"));
    }
}
