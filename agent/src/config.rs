//! The agent's configuration: one TOML file, read once at the start. `agent.default.toml` beside the sources lists
//! every key with its default; a test holds the two together.
//!
//! Invariants: unknown keys are refused; an error says which file, line and column, and what is allowed; no value
//! that would make a loop spin or a buffer grow without bound gets past [`Config::load`]. Each part of the agent is
//! given its own section only.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

/// A configuration file is text that people write.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {reason}; give a readable TOML file, see agent.default.toml", path.display())]
    Read { path: PathBuf, reason: String },
    /// `reason` quotes the line and points at the column.
    #[error("{}: {reason}", path.display())]
    Parse { path: PathBuf, reason: String },
    #[error("{}: {key} = {value} is not allowed: {rule}", path.display())]
    Value { path: PathBuf, key: &'static str, value: String, rule: &'static str },
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Relative paths in the file are taken from the folder that the agent is started in.
    pub data_dir: PathBuf,
    pub camera: Camera,
    #[serde(default)]
    pub drift: Drift,
    #[serde(default)]
    pub upload: Upload,
    #[serde(default)]
    pub spool: Spool,
    #[serde(default)]
    pub output: Output,
    #[serde(default)]
    pub local: Local,
    #[serde(default)]
    pub telemetry: Telemetry,
    #[serde(default)]
    pub uplink: Uplink,
    #[serde(default)]
    pub update: Update,
}

/// A flat table rather than a tagged enum, so that errors point at the key's own line.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Camera {
    pub kind: CameraKind,
    pub folder: PathBuf,
    #[serde(default = "default_frames_per_second")]
    pub frames_per_second: f64,
    /// A file with the names of the images to use.
    pub only: Option<PathBuf>,
    pub degrade: Option<Degrade>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CameraKind {
    /// The images of a folder in the order of their names, over and over.
    Replay,
}

fn default_frames_per_second() -> f64 {
    5.0
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Degrade {
    pub kind: DegradeKind,
    pub value: f64,
    pub from_frame: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DegradeKind {
    Gamma,
    Defocus,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drift {
    pub false_alarm_frames: u64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upload {
    pub bytes_per_hour: u64,
    pub bytes_per_day: u64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    pub bytes_max: u64,
    pub files_max: u64,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    pub verdicts: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Local {
    pub listen: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    pub window_s: u32,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Uplink {
    pub resend_s: f64,
    pub backoff_min_s: f64,
    pub backoff_max_s: f64,
    pub keep_alive_s: u16,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Update {
    pub tries: u8,
    pub trial_frames_min: u64,
    pub trial_fault_share_max: f64,
    pub release_bytes_max: u64,
    pub retry_min_s: f64,
    pub retry_max_s: f64,
}

impl Default for Drift {
    fn default() -> Self {
        Self { false_alarm_frames: 20_000 }
    }
}

impl Default for Upload {
    fn default() -> Self {
        Self { bytes_per_hour: 4_000_000, bytes_per_day: 40_000_000 }
    }
}

impl Default for Spool {
    fn default() -> Self {
        Self { bytes_max: 1_000_000_000, files_max: 20_000 }
    }
}

impl Default for Local {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9464)) }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { window_s: 60 }
    }
}

impl Default for Uplink {
    fn default() -> Self {
        Self { resend_s: 60.0, backoff_min_s: 1.0, backoff_max_s: 60.0, keep_alive_s: 20 }
    }
}

impl Default for Update {
    fn default() -> Self {
        Self {
            tries: 3,
            trial_frames_min: 10,
            trial_fault_share_max: 0.02,
            release_bytes_max: 512 * 1024 * 1024,
            retry_min_s: 1.0,
            retry_max_s: 300.0,
        }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        use std::io::Read;
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
            .map_err(|e| ConfigError::Read { path: path.to_owned(), reason: e.to_string() })?;
        if text.len() as u64 > FILE_BYTES_MAX {
            let reason = format!("over {FILE_BYTES_MAX} bytes");
            return Err(ConfigError::Read { path: path.to_owned(), reason });
        }
        Self::parse(&text, path)
    }

    /// `path` is for the error messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            reason: e.to_string().trim_end().to_owned(),
        })?;
        match config.check() {
            None => Ok(config),
            Some((key, value, rule)) => Err(ConfigError::Value { path: path.to_owned(), key, value, rule }),
        }
    }

    /// The first value that breaks a rule.
    fn check(&self) -> Option<(&'static str, String, &'static str)> {
        let Camera { frames_per_second, degrade, .. } = &self.camera;
        let uplink = &self.uplink;
        let update = &self.update;
        let degrade_value = degrade.map_or(1.0, |d| d.value);
        let rules: [(bool, &'static str, String, &'static str); 16] = [
            (
                (0.01..=1000.0).contains(frames_per_second),
                "camera.frames_per_second",
                frames_per_second.to_string(),
                "0.01 to 1000",
            ),
            (
                degrade_value > 0.0 && degrade_value <= 100.0,
                "camera.degrade.value",
                degrade_value.to_string(),
                "above 0, at most 100",
            ),
            (
                self.drift.false_alarm_frames >= 100,
                "drift.false_alarm_frames",
                self.drift.false_alarm_frames.to_string(),
                "at least 100",
            ),
            (
                self.upload.bytes_per_day >= self.upload.bytes_per_hour,
                "upload.bytes_per_day",
                self.upload.bytes_per_day.to_string(),
                "at least upload.bytes_per_hour",
            ),
            (
                self.spool.bytes_max >= 1 << 20,
                "spool.bytes_max",
                self.spool.bytes_max.to_string(),
                "at least 1048576",
            ),
            (
                (16..=1_000_000).contains(&self.spool.files_max),
                "spool.files_max",
                self.spool.files_max.to_string(),
                "16 to 1000000",
            ),
            (
                (1..=3600).contains(&self.telemetry.window_s),
                "telemetry.window_s",
                self.telemetry.window_s.to_string(),
                "1 to 3600",
            ),
            seconds_rule("uplink.resend_s", uplink.resend_s),
            seconds_rule("uplink.backoff_min_s", uplink.backoff_min_s),
            (
                uplink.backoff_max_s >= uplink.backoff_min_s && uplink.backoff_max_s <= 3600.0,
                "uplink.backoff_max_s",
                uplink.backoff_max_s.to_string(),
                "at least uplink.backoff_min_s, at most 3600",
            ),
            (
                (5..=600).contains(&uplink.keep_alive_s),
                "uplink.keep_alive_s",
                uplink.keep_alive_s.to_string(),
                "5 to 600",
            ),
            ((1..=20).contains(&update.tries), "update.tries", update.tries.to_string(), "1 to 20"),
            (
                (0.0..=1.0).contains(&update.trial_fault_share_max),
                "update.trial_fault_share_max",
                update.trial_fault_share_max.to_string(),
                "0 to 1",
            ),
            (
                update.release_bytes_max >= 1 << 20,
                "update.release_bytes_max",
                update.release_bytes_max.to_string(),
                "at least 1048576",
            ),
            seconds_rule("update.retry_min_s", update.retry_min_s),
            (
                update.retry_max_s >= update.retry_min_s && update.retry_max_s <= 86_400.0,
                "update.retry_max_s",
                update.retry_max_s.to_string(),
                "at least update.retry_min_s, at most 86400",
            ),
        ];
        rules.into_iter().find(|(holds, ..)| !holds).map(|(_, key, value, rule)| (key, value, rule))
    }
}

fn seconds_rule(key: &'static str, value: f64) -> (bool, &'static str, String, &'static str) {
    ((0.01..=3600.0).contains(&value), key, value.to_string(), "0.01 to 3600")
}

/// A checked number of seconds as a duration.
pub fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: &str = include_str!("../agent.default.toml");

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("agent.toml"))
    }

    #[test]
    fn the_file_that_ships_holds_the_defaults() {
        let shipped = parse(DEFAULTS).unwrap();
        let minimal =
            "data_dir = '/var/lib/andon'\n[camera]\nkind = 'replay'\nfolder = '/var/lib/andon/images'";
        assert_eq!(shipped, parse(minimal).unwrap());
        // What is commented out there must be legal, too.
        let all = DEFAULTS
            .replace("# only", "only")
            .replace("# [camera.degrade]", "[camera.degrade]")
            .replace("# kind = \"gamma\"", "kind = \"gamma\"")
            .replace("# value", "value")
            .replace("# from_frame", "from_frame")
            .replace("# verdicts", "verdicts");
        let all = parse(&all).unwrap();
        assert!(all.output.verdicts.is_some());
        assert!(all.camera.degrade.is_some() && all.camera.only.is_some());
    }

    #[test]
    fn errors_say_where_and_what_to_do() {
        let base = "data_dir = 'd'\n[camera]\nkind = 'replay'\nfolder = 'f'\n";
        for (extra, expected) in [
            ("colour = 1", "line 5, column 1"),
            ("[spool]\nbytes_maxx = 1", "unknown field `bytes_maxx`"),
            ("[spool]\nbytes_max = -1", "line 6"),
            ("[spool]\nbytes_max = 5", "spool.bytes_max = 5 is not allowed: at least 1048576"),
            ("frames_per_second = 0.0", "camera.frames_per_second"),
            ("frames_per_second = nan", "camera.frames_per_second"),
            ("[uplink]\nbackoff_min_s = 5\nbackoff_max_s = 1", "uplink.backoff_max_s"),
            ("[local]\nlisten = 'here'", "line 6"),
            ("[camera", "line 5"),
        ] {
            let error = parse(&format!("{base}{extra}")).unwrap_err().to_string();
            assert!(error.starts_with("agent.toml: ") && error.contains(expected), "{extra}: {error}");
        }
        let error = Config::load(Path::new("/nonexistent/agent.toml")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/agent.toml"), "{error}");
    }
}
