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

use crate::{camera, drift_watch, output::verdicts, selection};

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

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Relative paths in the file are taken from the folder that the agent is started in.
    pub data_dir: PathBuf,
    pub camera: camera::Config,
    #[serde(default)]
    pub decision: Decision,
    #[serde(default)]
    pub drift: drift_watch::Config,
    #[serde(default)]
    pub upload: selection::Config,
    #[serde(default)]
    pub spool: Spool,
    pub output: Option<verdicts::Config>,
    #[serde(default)]
    pub local: Local,
    #[serde(default)]
    pub telemetry: Telemetry,
    #[serde(default)]
    pub uplink: Uplink,
    #[serde(default)]
    pub update: Update,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Decision {
    pub deadline_ms: u32,
    pub frozen_frames: u32,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    pub bytes_max: u64,
    pub files_max: u64,
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

impl Default for Decision {
    fn default() -> Self {
        Self { deadline_ms: 2000, frozen_frames: 100 }
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
        let uplink = &self.uplink;
        let update = &self.update;
        let rules: [(bool, &'static str, String, &'static str); 16] = [
            (
                (1..=600_000).contains(&self.decision.deadline_ms),
                "decision.deadline_ms",
                self.decision.deadline_ms.to_string(),
                "1 to 600000",
            ),
            (
                self.upload.period_s >= 0.1 && self.upload.period_s <= 3600.0,
                "upload.period_s",
                self.upload.period_s.to_string(),
                "0.1 to 3600",
            ),
            (
                self.drift.false_alarm_frames >= 100.0,
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
        let minimal = format!("{minimal}\nframes_per_second = 5.0");
        assert_eq!(format!("{shipped:?}"), format!("{:?}", parse(&minimal).unwrap()));
        // What is commented out there must be legal, too.
        let all = DEFAULTS
            .replace("# only", "only")
            .replace("# [camera.degrade]", "[camera.degrade]")
            .replace("# kind = \"gamma\"", "kind = \"gamma\"")
            .replace("# value", "value")
            .replace("# from_frame", "from_frame")
            .replace("# [output]", "[output]")
            .replace("# verdicts", "verdicts")
            .replace("# bytes_max", "bytes_max");
        let all = parse(&all).unwrap();
        assert!(all.output.is_some());
        let camera::Config::Replay(replay) = all.camera;
        assert!(replay.degrade.is_some() && replay.only.is_some());
    }

    #[test]
    fn errors_say_where_and_what_to_do() {
        let base = "data_dir = 'd'\n[camera]\nkind = 'replay'\nfolder = 'f'\nframes_per_second = 5.0\n";
        for (extra, expected) in [
            ("colour = 1", "unknown field `colour`"),
            ("[spool]\nbytes_maxx = 1", "unknown field `bytes_maxx`"),
            ("[spool]\nbytes_max = -1", "line 7, column 13"),
            ("[spool]\nbytes_max = 5", "spool.bytes_max = 5 is not allowed: at least 1048576"),
            ("[decision]\ndeadline_ms = 0", "decision.deadline_ms = 0 is not allowed"),
            ("[upload]\nperiod_s = nan", "upload.period_s"),
            ("[uplink]\nbackoff_min_s = 5\nbackoff_max_s = 1", "uplink.backoff_max_s"),
            ("[local]\nlisten = 'here'", "line 7"),
            ("[camera", "line 6"),
        ] {
            let error = parse(&format!("{base}{extra}")).unwrap_err().to_string();
            assert!(error.starts_with("agent.toml: ") && error.contains(expected), "{extra}: {error}");
        }
        let error = Config::load(Path::new("/nonexistent/agent.toml")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/agent.toml"), "{error}");
    }
}
