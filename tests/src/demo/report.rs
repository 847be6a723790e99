//! The proof: as a table for people, as JSON for programs.

use std::collections::BTreeMap;

use andon_protocol::ids::{DeviceId, ReleaseId};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub devices: Vec<DeviceReport>,
    pub bytes_uploaded: u64,
    pub labels: usize,
    /// By stage.
    pub seconds: BTreeMap<String, f64>,
}

/// Accuracy is balanced accuracy over a whole pass of the device's stream, 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    pub id: DeviceId,
    /// `gamma` or `defocus`; nothing for a device that was left alone.
    pub drift: Option<String>,
    pub accuracy_before: f64,
    pub accuracy_drift: f64,
    pub accuracy_after: f64,
    /// From the first degraded frame to the first in alarm.
    pub frames_to_detection: Option<u64>,
    /// What it runs at the end.
    pub release: Option<ReleaseId>,
}

impl DeviceReport {
    /// Balanced accuracy lost to the drift, in points.
    pub fn lost(&self) -> f64 {
        (self.accuracy_before - self.accuracy_drift) * 100.0
    }

    /// Share of the loss that the update won back.
    pub fn regained(&self) -> Option<f64> {
        let lost = self.accuracy_before - self.accuracy_drift;
        (lost > 0.0).then(|| (self.accuracy_after - self.accuracy_drift) / lost)
    }
}

impl Report {
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<10} {:<9} {:>8} {:>8} {:>8} {:>9} {:>10}  {}\n",
            "device", "drift", "before", "drifted", "after", "regained", "detected", "runs"
        );
        for device in &self.devices {
            let drifted = device.drift.is_some();
            let regained = device.regained().filter(|_| drifted).map(|r| format!("{:.0} %", r * 100.0));
            let detected = device.frames_to_detection.map(|f| format!("{f} frames"));
            text += &format!(
                "{:<10} {:<9} {:>6.1} % {:>6.1} % {:>6.1} % {:>9} {:>10}  {}\n",
                device.id.as_str(),
                device.drift.as_deref().unwrap_or("-"),
                device.accuracy_before * 100.0,
                device.accuracy_drift * 100.0,
                device.accuracy_after * 100.0,
                regained.as_deref().unwrap_or("-"),
                detected.as_deref().unwrap_or("-"),
                device.release.as_ref().map_or_else(|| "-".to_owned(), ReleaseId::to_string),
            );
        }
        let seconds = self.seconds.values().sum::<f64>();
        let stages: Vec<String> = self.seconds.iter().map(|(stage, s)| format!("{stage} {s:.0}")).collect();
        text += &format!(
            "\n(balanced accuracy, every image of the stream once)\n\
             uploaded {:.1} MB, labelled {} images\n{seconds:.0} seconds: {}\n",
            self.bytes_uploaded as f64 / 1e6,
            self.labels,
            stages.join(", "),
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_reads_as_the_contract_says() {
        let report = Report {
            devices: vec![DeviceReport {
                id: "line-2".parse().unwrap(),
                drift: Some("gamma".to_owned()),
                accuracy_before: 0.8,
                accuracy_drift: 0.6,
                accuracy_after: 0.75,
                frames_to_detection: Some(12),
                release: Some("m/2".parse().unwrap()),
            }],
            bytes_uploaded: 1_500_000,
            labels: 7,
            seconds: [("fleet".to_owned(), 1.5)].into(),
        };
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "devices": [{"id": "line-2", "drift": "gamma", "accuracy_before": 0.8, "accuracy_drift": 0.6,
                             "accuracy_after": 0.75, "frames_to_detection": 12, "release": "m/2"}],
                "bytes_uploaded": 1_500_000, "labels": 7, "seconds": {"fleet": 1.5}
            })
        );
        let table = report.table();
        for part in
            ["80.0 %", "60.0 %", "75.0 %", "75 %", "12 frames", "m/2", "1.5 MB", "7 images", "fleet 2"]
        {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }
}
