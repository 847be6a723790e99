//! The MQTT topics, version 1. The third level is the device, which is the common name of its certificate: the topic
//! is the identity, payloads carry none. A device may write its own `status` and `up/…` and read its own `down/…`.
//!
//! | topic | direction | retained | payload |
//! |---|---|---|---|
//! | `andon/v1/DEV/status` | up, and the will | yes | [`Status`](crate::state::Status) |
//! | `andon/v1/DEV/up/t` | up | no | [`TelemetryBatch`](crate::telemetry::TelemetryBatch) |
//! | `andon/v1/DEV/up/m` | up | no | [`SampleManifest`](crate::sample::SampleManifest) |
//! | `andon/v1/DEV/up/c` | up | no | [`SampleChunk`](crate::sample::SampleChunk) |
//! | `andon/v1/DEV/up/r` | up | no | [`Reported`](crate::state::Reported) |
//! | `andon/v1/DEV/down/ack` | down | no | [`Ack`](crate::ack::Ack) |
//! | `andon/v1/DEV/down/desired` | down | yes | [`Desired`](crate::state::Desired) |

use crate::ids::DeviceId;

/// What a device sends, or is sent, on a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    Status,
    Telemetry,
    Manifest,
    Chunk,
    Reported,
    Ack,
    Desired,
}

impl Channel {
    pub const ALL: [Channel; 7] = [
        Channel::Status,
        Channel::Telemetry,
        Channel::Manifest,
        Channel::Chunk,
        Channel::Reported,
        Channel::Ack,
        Channel::Desired,
    ];

    pub fn suffix(self) -> &'static str {
        match self {
            Channel::Status => "status",
            Channel::Telemetry => "up/t",
            Channel::Manifest => "up/m",
            Channel::Chunk => "up/c",
            Channel::Reported => "up/r",
            Channel::Ack => "down/ack",
            Channel::Desired => "down/desired",
        }
    }

    /// Whether the device is the writer.
    pub fn is_up(self) -> bool {
        !matches!(self, Channel::Ack | Channel::Desired)
    }
}

pub fn topic(device: &DeviceId, channel: Channel) -> String {
    format!("andon/v1/{device}/{}", channel.suffix())
}

/// The device and channel of a topic, or nothing if it is none of ours.
pub fn parse(topic: &str) -> Option<(DeviceId, Channel)> {
    let (device, suffix) = topic.strip_prefix("andon/v1/")?.split_once('/')?;
    let channel = Channel::ALL.into_iter().find(|c| c.suffix() == suffix)?;
    Some((device.parse().ok()?, channel))
}

/// What a device subscribes to.
pub fn down_filter(device: &DeviceId) -> String {
    format!("andon/v1/{device}/down/#")
}

/// What the server's ingest subscribes to.
pub const UP_FILTERS: [&str; 2] = ["andon/v1/+/up/#", "andon/v1/+/status"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_round_trip_and_foreign_ones_are_nothing() {
        let device: DeviceId = "line-1".parse().unwrap();
        for channel in Channel::ALL {
            assert_eq!(parse(&topic(&device, channel)), Some((device.clone(), channel)));
        }
        for foreign in ["", "andon/v1/", "andon/v2/line-1/up/t", "andon/v1/LINE/up/t", "andon/v1/line-1/up/x"]
        {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
    }
}
