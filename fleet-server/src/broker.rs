//! The embedded MQTT broker: rmqtt as a library. Mutual TLS, the certificate's common name is the user, and this file's
//! rules say what a user may do. Everything else is denied.
//!
//! | who | client id | publish | subscribe |
//! |---|---|---|---|
//! | the server (`andon-fleet-server`) | its name | anything below `andon/v1/` | anything below `andon/v1/` |
//! | a device, with its newest certificate | its name | own `status` and `up/…` | own `down/…` |
//!
//! Retained messages are kept in memory, no older than the process: the server publishes every desired state again when
//! it connects, devices their status when they do.

use std::{net::SocketAddr, num::NonZeroU16, path::Path, time::Duration};

use async_trait::async_trait;
use rmqtt::{
    codec::v5::SubscribeAckReason,
    context::ServerContext,
    hook::{Handler, HookResult, Parameter, ReturnType, Type},
    net::{Builder, Listener},
    retain::{DefaultRetainStorage, RetainStorage},
    server::MqttServer,
    types::{AuthResult, ConnectInfo, PublishAclResult, Retain, SubscribeReturn, TopicFilter, TopicName},
};
use tokio_util::sync::CancellationToken;

use andon_protocol::{
    DeviceId,
    topics::{self, Channel},
};

use crate::{db::Db, mqtt, pki::SERVER_NAME};

/// Topics start `andon/v1/DEVICE/`; what is deeper is nobody's.
const LEVELS_MAX: usize = 6;
const CLIENT_ID_BYTES_MAX: usize = 64;
const HANDSHAKES_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
#[error("the embedded broker cannot start on {listen}: {reason}")]
pub struct BrokerError {
    listen: SocketAddr,
    reason: String,
}

/// PEM files for the listener.
pub struct Files<'a> {
    pub chain: &'a Path,
    pub key: &'a Path,
    pub ca: &'a Path,
}

/// Binds and serves until shutdown. Returns the bound address.
pub async fn start(
    listen: SocketAddr,
    connections_max: usize,
    files: Files<'_>,
    db: Db,
    shutdown: CancellationToken,
) -> Result<(SocketAddr, tokio::task::JoinHandle<()>), BrokerError> {
    let failed = |reason: String| BrokerError { listen, reason };
    let listener = bind(listen, connections_max, &files).map_err(|e| failed(format!("{e:#}")))?;
    let address = listener.local_addr().map_err(|e| failed(e.to_string()))?;
    let context = ServerContext::new()
        .mqtt_max_sessions(isize::try_from(connections_max).unwrap_or(isize::MAX))
        // It would refuse devices while the processor is busy, which a training run makes it for hours.
        .busy_check_enable(false)
        .build()
        .await;
    *context.extends.retain_mut().await = Box::new(Retained(DefaultRetainStorage::new()));
    let hooks = context.extends.hook_mgr().register();
    for kind in [Type::ClientAuthenticate, Type::MessagePublishCheckAcl, Type::ClientSubscribeCheckAcl] {
        hooks.add(kind, Box::new(Rules { db: db.clone() })).await;
    }
    hooks.start().await;
    // The listener's id is only a key here; with port 0 in the configuration the library cannot make one up.
    let server = MqttServer::new(context).listener_by_id(listener, 1).build();
    let task = tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            result = server.run() => tracing::error!("the embedded broker ended: {result:?}"),
        }
    });
    Ok((address, task))
}

fn bind(listen: SocketAddr, connections_max: usize, files: &Files<'_>) -> rmqtt::Result<Listener> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    Builder::new()
        .name("devices")
        .laddr(listen)
        .nodelay(true)
        // Or a server that was killed cannot come back to its port for a minute.
        .reuseaddr(Some(true))
        .max_connections(connections_max)
        .max_handshaking_limit(HANDSHAKES_MAX)
        .handshake_timeout(Duration::from_secs(10))
        .max_packet_size(mqtt::PACKET_BYTES_MAX)
        .allow_anonymous(false)
        .allow_zero_keepalive(false)
        .min_keepalive(5)
        .max_keepalive(600)
        .max_clientid_len(CLIENT_ID_BYTES_MAX)
        .max_topic_levels(LEVELS_MAX)
        .max_subscriptions(8)
        .max_inflight(NonZeroU16::new(mqtt::RECEIVE_MAX).unwrap_or(NonZeroU16::MIN))
        .max_mqueue_len(2048)
        .session_expiry_interval(Duration::from_secs(3600))
        .max_session_expiry_interval(Duration::from_secs(3600))
        .tls_cross_certificate(true)
        .cert_cn_as_username(true)
        .collect_cert_info(true)
        .tls_cert(Some(path(files.chain)))
        .tls_key(Some(path(files.key)))
        .tls_client_ca_certs(Some(path(files.ca)))
        .bind()?
        .tls()
}

struct Rules {
    db: Db,
}

#[async_trait]
impl Handler for Rules {
    async fn hook(&self, parameter: &Parameter, passed_on: Option<HookResult>) -> ReturnType {
        match parameter {
            Parameter::ClientAuthenticate(connect) => {
                let verdict = if self.may_connect(connect).await {
                    AuthResult::Allow(false, None)
                } else {
                    AuthResult::NotAuthorized
                };
                (false, Some(HookResult::AuthResult(verdict)))
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                let user = session.id.username.as_deref().unwrap_or_default();
                let verdict = if may_publish(user, &publish.topic, publish.retain) {
                    PublishAclResult::allow()
                } else {
                    tracing::warn!(user, topic = &*publish.topic, "publish refused");
                    // An honest device never does this: close.
                    PublishAclResult::rejected(true, None)
                };
                (false, Some(HookResult::PublishAclResult(verdict)))
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                let user = session.id.username.as_deref().unwrap_or_default();
                let verdict = if may_subscribe(user, &subscribe.topic_filter) {
                    SubscribeReturn::new_success(subscribe.opts.qos(), None)
                } else {
                    tracing::warn!(user, filter = &*subscribe.topic_filter, "subscription refused");
                    SubscribeReturn::new_failure(SubscribeAckReason::NotAuthorized)
                };
                (false, Some(HookResult::SubscribeAclResult(verdict)))
            }
            _ => (true, passed_on),
        }
    }
}

impl Rules {
    /// MQTT 5 only, the client id is the certificate's name (or one device could end another's session), the will obeys
    /// the rules of publishing, and a device's certificate is the newest that was issued to it.
    async fn may_connect(&self, connect: &ConnectInfo) -> bool {
        let ConnectInfo::V5(id, packet) = connect else {
            tracing::warn!(client = ?connect.client_id(), "connection refused: not MQTT 5");
            return false;
        };
        let user = id.username.as_deref().unwrap_or_default();
        let refused = |why: &str| {
            tracing::warn!(user, client = &*id.client_id, "connection refused: {why}");
            false
        };
        if user.is_empty() || *user != *id.client_id {
            return refused("the client id is not the certificate's name");
        }
        if let Some(will) = &packet.last_will
            && !may_publish(user, &will.topic, will.retain)
        {
            return refused("the will's topic is not the device's own");
        }
        if user == SERVER_NAME {
            return true;
        }
        let Some(serial) = packet.cert.as_ref().and_then(|cert| cert.serial.as_deref()) else {
            return refused("no certificate");
        };
        let newest: Result<Option<String>, _> =
            sqlx::query_scalar("SELECT certificate_serial FROM device WHERE id = $1")
                .bind(user)
                .fetch_optional(self.db.reader())
                .await;
        match newest {
            Ok(Some(newest)) if newest == serial => true,
            Ok(Some(_)) => refused("the certificate was replaced by a newer one"),
            Ok(None) => refused("the device is not enrolled here"),
            Err(error) => refused(&format!("database: {error}")),
        }
    }
}

fn may_publish(user: &str, topic: &str, retain: bool) -> bool {
    match topics::parse(topic) {
        _ if user == SERVER_NAME => topic.starts_with("andon/v1/"),
        Some((device, channel)) => {
            device.as_str() == user && channel.is_up() && retain == (channel == Channel::Status)
        }
        None => false,
    }
}

fn may_subscribe(user: &str, filter: &str) -> bool {
    if user == SERVER_NAME {
        return filter.starts_with("andon/v1/");
    }
    // A name with a wildcard in it is no device id, so none can get in here.
    let Ok(device) = user.parse::<DeviceId>() else { return false };
    let own = topics::down_filter(&device);
    filter == own || (topics::parse(filter).is_some_and(|(of, channel)| of == device && !channel.is_up()))
}

/// The library's tree of retained messages, which its own storage does not use. No expiry. Bounded by the rules above:
/// two topics a device.
struct Retained(DefaultRetainStorage);

#[async_trait]
impl RetainStorage for Retained {
    fn enable(&self) -> bool {
        true
    }

    async fn set(&self, topic: &TopicName, retain: Retain, _expiry: Option<Duration>) -> rmqtt::Result<()> {
        self.0.set_with_timeout(topic, retain, None).await
    }

    async fn get(&self, filter: &TopicFilter) -> rmqtt::Result<Vec<(TopicName, Retain)>> {
        self.0.get_message(filter).await
    }

    async fn count(&self) -> isize {
        self.0.count().await
    }

    async fn max(&self) -> isize {
        self.0.max().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_speaks_for_itself_alone() {
        let publish = [
            ("a", "andon/v1/a/up/t", false, true),
            ("a", "andon/v1/a/up/c", false, true),
            ("a", "andon/v1/a/status", true, true),
            ("a", "andon/v1/a/status", false, false),
            ("a", "andon/v1/a/up/t", true, false),
            ("a", "andon/v1/b/up/t", false, false),
            ("a", "andon/v1/a/down/desired", true, false),
            ("a", "andon/v1/a/up/x", false, false),
            ("a", "$SYS/x", false, false),
            ("", "andon/v1//up/t", false, false),
            (SERVER_NAME, "andon/v1/a/down/desired", true, true),
            (SERVER_NAME, "$SYS/x", false, false),
        ];
        for (user, topic, retain, allowed) in publish {
            assert_eq!(may_publish(user, topic, retain), allowed, "{user} {topic} {retain}");
        }
        let subscribe = [
            ("a", "andon/v1/a/down/#", true),
            ("a", "andon/v1/a/down/ack", true),
            ("a", "andon/v1/a/up/#", false),
            ("a", "andon/v1/+/down/#", false),
            ("a", "andon/v1/b/down/ack", false),
            ("a", "#", false),
            ("+", "andon/v1/+/down/#", false),
            ("a", "$share/x/andon/v1/a/down/#", false),
            (SERVER_NAME, "andon/v1/+/up/#", true),
            (SERVER_NAME, "#", false),
        ];
        for (user, filter, allowed) in subscribe {
            assert_eq!(may_subscribe(user, filter), allowed, "{user} {filter}");
        }
    }
}
