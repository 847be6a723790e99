//! The server as an MQTT 5 client: one connection for everything that comes from and goes to devices, the same with the
//! embedded broker and with one outside.
//!
//! The client library is never the queue. What devices send is acknowledged to the broker once ingest has dealt with
//! it, and to the device by an `Ack` once it is durable; what the server wants of devices is in the database and is
//! published again after every connection. Any error rebuilds client and event loop.

use std::{sync::Arc, time::Duration};

use rumqttc::{
    TlsConfiguration, Transport,
    v5::{
        AsyncClient, Event, Incoming, MqttOptions,
        mqttbytes::{QoS, v5::Publish},
    },
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use andon_protocol::{
    DeviceId,
    ack::Ack,
    codec::Wire,
    encode,
    state::Desired,
    topics::{self, Channel},
};

/// Publishes that wait for the connection.
const OUTGOING_MAX: usize = 256;
/// Publishes that the broker may have sent us and that we have not acknowledged. Every queue behind it is at least as
/// long, so that the event loop never waits.
pub const RECEIVE_MAX: u16 = 256;
/// Of publishes in flight to the broker.
const INFLIGHT_MAX: u16 = 16;
/// A chunk, its header and the topic, twice over.
pub const PACKET_BYTES_MAX: u32 = 256 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Publishes to devices. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mqtt(mpsc::Sender<Outgoing>);

#[derive(Debug)]
pub struct Outgoing {
    topic: String,
    payload: Vec<u8>,
    retain: bool,
}

impl Mqtt {
    /// The handle, and what [`run`] takes.
    pub fn new() -> (Self, mpsc::Receiver<Outgoing>) {
        let (sender, receiver) = mpsc::channel(OUTGOING_MAX);
        (Self(sender), receiver)
    }

    /// Publishes what `device` should be, retained. Lost while there is no connection: it is published again after
    /// each, and when the device comes online or reports an older generation.
    pub async fn publish_desired(&self, device: &DeviceId, desired: &Desired) {
        self.publish(device, Channel::Desired, desired, true).await;
    }

    /// Lost while there is no connection: the device sends again what nobody acknowledged.
    pub async fn publish_ack(&self, device: &DeviceId, ack: &Ack) {
        self.publish(device, Channel::Ack, ack, false).await;
    }

    async fn publish<T: Wire>(&self, device: &DeviceId, channel: Channel, message: &T, retain: bool) {
        let payload = encode(message);
        if payload.len() > T::BYTES_MAX {
            tracing::error!(%device, bytes = payload.len(), "{} is too large to be sent", T::KIND);
            return;
        }
        let topic = topics::topic(device, channel);
        // Closed only when the server stops.
        let _ = self.0.send(Outgoing { topic, payload, retain }).await;
    }
}

/// Where the broker is and who we are there.
#[derive(Clone)]
pub struct Broker {
    pub host: String,
    pub port: u16,
    pub tls: Arc<rustls::ClientConfig>,
}

/// A publish of a device, with what acknowledges it to the broker.
pub struct Received {
    pub publish: Publish,
    client: AsyncClient,
}

impl Received {
    #[cfg(test)]
    pub fn for_test(topic: &str, payload: Vec<u8>) -> Self {
        let (client, _) = AsyncClient::new(MqttOptions::new("test", "localhost", 1), 1);
        Self { publish: Publish::new(topic, QoS::AtLeastOnce, payload, None), client }
    }

    pub fn topic(&self) -> &str {
        std::str::from_utf8(&self.publish.topic).unwrap_or_default()
    }

    /// Frees its place in the broker's window. Fails only if the connection is gone, and the window with it.
    pub async fn acknowledge(&self) {
        let _ = self.client.ack(&self.publish).await;
    }
}

/// Runs until shutdown. `deliver` is called in the event loop and must not wait; it says whether the message found a
/// place. `connected` is bumped after every (re)subscription.
pub async fn run(
    broker: Broker,
    mut outgoing: mpsc::Receiver<Outgoing>,
    deliver: impl Fn(Received) -> bool,
    connected: watch::Sender<u64>,
    shutdown: CancellationToken,
) {
    let (current, mut client) = watch::channel(None::<AsyncClient>);
    let pump = async {
        while let Some(message) = outgoing.recv().await {
            let Some(client) = client.borrow_and_update().clone() else { continue };
            let publish = client.publish(message.topic, QoS::AtLeastOnce, message.retain, message.payload);
            if tokio::time::timeout(KEEP_ALIVE, publish).await.is_err() {
                tracing::warn!("the broker takes no messages; one is dropped");
            }
        }
    };
    let connection = async {
        let mut failures = 0u32;
        loop {
            let reason = connect(&broker, &current, &deliver, &connected, &mut failures).await;
            current.send_replace(None);
            failures += 1;
            let pause = Duration::from_millis(250 * (1 << failures.min(7))).min(BACKOFF_MAX);
            tracing::warn!(host = %broker.host, port = broker.port, failures, "MQTT connection: {reason}; again in {pause:?}");
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {
            if let Some(client) = current.borrow().as_ref() {
                let _ = client.try_disconnect();
            }
        }
        () = pump => {}
        never = connection => never,
    }
}

/// One connection from CONNECT to its end; returns why it ended.
async fn connect(
    broker: &Broker,
    current: &watch::Sender<Option<AsyncClient>>,
    deliver: &impl Fn(Received) -> bool,
    connected: &watch::Sender<u64>,
    failures: &mut u32,
) -> String {
    let mut options = MqttOptions::new(crate::pki::SERVER_NAME, broker.host.clone(), broker.port);
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(&broker.tls))))
        .set_keep_alive(KEEP_ALIVE)
        .set_clean_start(true)
        .set_receive_maximum(Some(RECEIVE_MAX))
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        .set_outgoing_inflight_upper_limit(INFLIGHT_MAX)
        .set_manual_acks(true);
    let (client, mut events) = AsyncClient::new(options, usize::from(RECEIVE_MAX) + OUTGOING_MAX);
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                for filter in topics::UP_FILTERS {
                    if let Err(error) = client.try_subscribe(filter, QoS::AtLeastOnce) {
                        return format!("cannot subscribe to {filter}: {error}");
                    }
                }
            }
            Ok(Event::Incoming(Incoming::SubAck(ack))) => {
                use rumqttc::v5::mqttbytes::v5::SubscribeReasonCode::Success;
                if !ack.return_codes.iter().all(|code| matches!(code, Success(_))) {
                    return format!("the broker refuses our subscription: {:?}", ack.return_codes);
                }
                *failures = 0;
                if current.borrow().is_none() {
                    tracing::info!(host = %broker.host, port = broker.port, "connected to the MQTT broker");
                    current.send_replace(Some(client.clone()));
                    connected.send_modify(|count| *count += 1);
                }
            }
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                let at_least_once = publish.qos != QoS::AtMostOnce;
                // The broker's window is smaller than the queues, so only QoS 0, which is outside it, finds no place.
                if !deliver(Received { publish, client: client.clone() }) && at_least_once {
                    return "the broker sends more than its window allows".into();
                }
            }
            Ok(Event::Incoming(Incoming::Disconnect(reason))) => {
                return format!("closed by the broker: {:?}", reason.reason_code);
            }
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}
