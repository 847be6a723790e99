//! `server.toml`: read once, unknown keys refused, errors with line and column. `server.toml` beside `Cargo.toml` lists
//! every key with its default.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::files;

const BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{path}: {rule}")]
    Rule { path: PathBuf, rule: String },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub data_dir: PathBuf,
    /// Name or address in the server's certificates and in what devices are told at enrolment.
    #[serde(default = "loopback")]
    pub public_host: String,
    #[serde(default)]
    pub people: People,
    #[serde(default)]
    pub devices: Devices,
    #[serde(default)]
    pub mqtt: Mqtt,
    #[serde(default)]
    pub database: Database,
    #[serde(default)]
    pub training: Training,
    #[serde(default)]
    pub uploads: Uploads,
    #[serde(default)]
    pub retention: Retention,
}

/// The dashboard and its API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct People {
    pub listen: SocketAddr,
    /// PEM files. Without them plain HTTP, on loopback only.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Devices {
    pub listen: SocketAddr,
    pub connections_max: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mqtt {
    /// `embedded`, or `mqtts://HOST:PORT` of an MQTT 5 broker.
    pub broker: String,
    /// Of the embedded broker.
    pub listen: SocketAddr,
    pub connections_max: usize,
    /// PEM files for a broker outside: whom to trust, and who we are there (common name `andon-fleet-server`). All three
    /// or none; without them the fleet's own CA is trusted and signs our certificate. Devices trust that CA alone.
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    pub url: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// Worker processes started here; 0 where workers run elsewhere on a shared file system.
    pub workers: u32,
    /// The worker binary.
    pub trainer: PathBuf,
}

/// What one device may have under way.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Uploads {
    pub open_max: u32,
    pub open_bytes_max: u64,
    /// Stored samples of one device.
    pub stored_bytes_max: u64,
    pub abandoned_after_days: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    pub telemetry_days: u32,
}

fn loopback() -> String {
    "127.0.0.1".into()
}

fn on_loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Default for People {
    fn default() -> Self {
        Self { listen: on_loopback(8080), cert: None, key: None }
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self { listen: on_loopback(8444), connections_max: 10_000 }
    }
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            broker: "embedded".into(),
            listen: on_loopback(8883),
            connections_max: 20_000,
            ca: None,
            cert: None,
            key: None,
        }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self { url: "sqlite".into() }
    }
}

impl Default for Training {
    fn default() -> Self {
        Self { workers: 1, trainer: "andon-trainer".into() }
    }
}

impl Default for Uploads {
    fn default() -> Self {
        Self {
            open_max: 1024,
            open_bytes_max: 256 * 1024 * 1024,
            stored_bytes_max: 20 * 1024 * 1024 * 1024,
            abandoned_after_days: 7,
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { telemetry_days: 30 }
    }
}

impl Config {
    /// Relative paths in the file are relative to the working folder.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = files::read_bounded(path, BYTES_MAX)
            .and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other))
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Config = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.check().map_err(|rule| ConfigError::Rule { path: path.to_owned(), rule })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let people = &self.people;
        match (&people.cert, &people.key) {
            (Some(_), None) | (None, Some(_)) => return Err("people.cert and people.key go together".into()),
            (None, None) if !people.listen.ip().is_loopback() => {
                return Err(format!(
                    "people.listen {} can be reached from outside: set people.cert and people.key, or listen on 127.0.0.1",
                    people.listen
                ));
            }
            _ => {}
        }
        let host = &self.public_host;
        if host.is_empty()
            || host.len() > 253
            || !host.bytes().all(|c| c.is_ascii_alphanumeric() || b"-.:".contains(&c))
        {
            return Err(format!("public_host {host:?}: expected a host name or an IP address, without port"));
        }
        match self.mqtt.broker.as_str() {
            "embedded" if cfg!(feature = "embedded-broker") => {}
            "embedded" => {
                return Err(
                    "mqtt.broker: this build has no embedded broker; name one, mqtts://HOST:PORT".into()
                );
            }
            outside => {
                broker_address(outside)?;
                let given = [&self.mqtt.ca, &self.mqtt.cert, &self.mqtt.key].map(Option::is_some);
                if given.contains(&true) && given.contains(&false) {
                    return Err("mqtt.ca, mqtt.cert and mqtt.key go together".into());
                }
            }
        }
        if self.devices.connections_max == 0 || self.mqtt.connections_max == 0 || self.uploads.open_max == 0 {
            return Err(
                "devices.connections_max, mqtt.connections_max and uploads.open_max must be at least 1"
                    .into(),
            );
        }
        if self.training.workers > 64 {
            return Err(format!("training.workers {}: allowed are 0 to 64", self.training.workers));
        }
        Ok(())
    }
}

/// Host and port of `mqtts://HOST:PORT`.
pub fn broker_address(url: &str) -> Result<(String, u16), String> {
    let split = || {
        let (host, port) = url.strip_prefix("mqtts://")?.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Some((host.to_owned(), port.parse().ok().filter(|&p| p != 0)?)).filter(|(h, _)| !h.is_empty())
    };
    split().ok_or_else(|| format!("mqtt.broker {url:?}: expected \"embedded\" or mqtts://HOST:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.toml");
        let cases = [
            ("", Some("data_dir")),
            ("data_dir = \"d\"", None),
            ("data_dir = \"d\"\ntypo = 1", Some("typo")),
            ("data_dir = \"d\"\n[people]\nlisten = \"0.0.0.0:80\"", Some("people.cert")),
            ("data_dir = \"d\"\n[people]\nlisten = \"0.0.0.0:80\"\ncert = \"c\"", Some("go together")),
            ("data_dir = \"d\"\n[people]\nlisten = \"0.0.0.0:80\"\ncert = \"c\"\nkey = \"k\"", None),
            ("data_dir = \"d\"\npublic_host = \"a/b\"", Some("public_host")),
            ("data_dir = \"d\"\n[mqtt]\nbroker = \"mqtt://x:1\"", Some("mqtts://HOST:PORT")),
            ("data_dir = \"d\"\n[mqtt]\nbroker = \"mqtts://x:1\"", None),
            ("data_dir = \"d\"\n[mqtt]\nbroker = \"mqtts://x:1\"\nca = \"c\"", Some("mqtt.ca")),
            ("data_dir = \"d\"\n[training]\nworkers = 65", Some("workers 65")),
        ];
        for (text, expected) in cases {
            std::fs::write(&path, text).unwrap();
            match (Config::read(&path), expected) {
                (Ok(_), None) => {}
                (Err(error), Some(part)) => assert!(error.to_string().contains(part), "{text}: {error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
        assert!(Config::read(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn the_shipped_file_is_the_defaults() {
        let shipped: Config = toml::from_str(include_str!("../server.toml")).unwrap();
        let bare: Config = toml::from_str("data_dir = \"/var/lib/andon-fleet-server\"").unwrap();
        assert_eq!(format!("{shipped:?}"), format!("{bare:?}"));
    }
}
