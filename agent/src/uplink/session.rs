//! One MQTT 5 session over rumqttc, from connecting to the first error. A thin adapter: it turns what
//! [`Window`](super::window::Window) wants sent into publishes and what the broker says into calls of it.
//!
//! What rumqttc needs to be told, or must not be trusted with:
//! - its default in-flight limit takes 14 MB per client; its default packet limit is 10 KiB; a packet over the limit
//!   is retried for ever: sizes are checked before every publish;
//! - it drops what is unacknowledged without a word when the broker lost the session: the session dies with the
//!   first error, and the window starts anew;
//! - `publish` waits when its queue is full, which would be for ever in the task that polls: only `try_publish`;
//! - `poll` must not be cancelled while it connects: one poll future lives until it is ready;
//! - it does not say which packet id a publish got: on a fresh client they come in the order of the publishes.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::atomic::Ordering,
    time::Duration,
};

use andon_protocol::{
    Digest,
    ack::Ack,
    codec::Wire,
    sample::{CHUNK_BYTES, SampleChunk, SampleManifest},
    state::{Desired, Status},
    telemetry::TelemetryBatch,
    topics::{self, Channel},
};
use rumqttc::{
    Outgoing as Sent, TlsConfiguration, Transport,
    v5::{
        AsyncClient, ConnectionError, Event, Incoming, MqttOptions,
        mqttbytes::{
            QoS,
            v5::{
                ConnAck, LastWill, LastWillProperties, PubAckReason, Publish, PublishProperties,
                SubscribeReasonCode,
            },
        },
    },
};

use super::{
    Uplink,
    backoff::Backoff,
    window::{Forget, Limits, Outgoing, Waiting, Window},
};
use crate::spool::{BatchKey, Position, Spool, SpoolError};

/// Publishes without PUBACK that client and broker agree on.
const INFLIGHT_MAX: u16 = 16;
const QUEUE_MAX: usize = 32;
const PACKET_BYTES_MAX: u32 = 128 * 1024;
/// Fixed header, topic, packet id and properties of our publishes stay well below this.
const PACKET_OVERHEAD: usize = 512;
/// A broker that allows less cannot carry a chunk.
const PACKET_BYTES_NEEDED: u32 = (CHUNK_BYTES + 2 * PACKET_OVERHEAD) as u32;
const SESSION_EXPIRY_S: u32 = 3600;
const WILL_DELAY_S: u32 = 10;
/// Looks at the clock at least this often while connected.
const TICK: Duration = Duration::from_secs(1);
/// For the farewell at an orderly stop.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("connection to the broker: {0}")]
    Connection(#[from] Box<ConnectionError>),
    #[error("the broker takes packets of at most {allowed} bytes, samples need {needed}; raise its limit")]
    PacketLimit { allowed: u32, needed: u32 },
    #[error("the broker refuses the subscription to {filter} ({reason}); check its access rules")]
    Subscription { filter: String, reason: String },
    #[error("the broker's acknowledgements do not fit what was sent (packet {0})")]
    Desync(u16),
    #[error("the client's queue is full or closed")]
    Queue,
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// What a publish was, until its PUBACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Status,
    Report,
    Item,
    Chunk,
}

struct Session<'a> {
    uplink: &'a mut Uplink,
    client: AsyncClient,
    window: Window,
    /// Handed to rumqttc, packet id unknown yet.
    queued: VecDeque<Kind>,
    in_flight: HashMap<u16, Kind>,
    subscribed: bool,
    report_in_flight: bool,
    images: ImageCache,
}

/// Runs one session. `Ok`: told to stop.
pub(super) async fn run(uplink: &mut Uplink, backoff: &mut Backoff) -> Result<(), SessionError> {
    let (client, mut events) = AsyncClient::new(options(uplink), QUEUE_MAX);
    uplink.reported.mark_changed();
    let mut stop = uplink.stop.clone();
    let wake = uplink.wake.clone();
    let mut session = Session {
        window: Window::new(Limits::new(uplink.settings.resend)),
        uplink,
        client,
        queued: VecDeque::new(),
        in_flight: HashMap::new(),
        subscribed: false,
        report_in_flight: false,
        images: ImageCache::default(),
    };
    loop {
        let event = {
            let mut poll = pin!(events.poll());
            loop {
                session.fill()?;
                tokio::select! {
                    event = &mut poll => break Some(event),
                    () = wake.notified() => {}
                    () = tokio::time::sleep(TICK) => {}
                    changed = stop.changed() => if changed.is_err() || *stop.borrow() { break None },
                }
            }
        };
        match event.transpose().map_err(Box::new)? {
            Some(Event::Outgoing(sent)) => session.sent(&sent)?,
            Some(Event::Incoming(packet)) => session.received(packet, backoff)?,
            None => {
                if session.farewell() {
                    // The will says the same, later, if this does not get through.
                    let _ =
                        tokio::time::timeout(FAREWELL, async { while events.poll().await.is_ok() {} }).await;
                }
                return Ok(());
            }
        }
    }
}

fn options(uplink: &Uplink) -> MqttOptions {
    let enrolment = &uplink.identity.enrolment;
    let device = uplink.identity.device();
    let mut options = MqttOptions::new(device.as_str(), &enrolment.mqtt_host, enrolment.mqtt_port);
    let will = andon_protocol::encode(&Status { online: false, boot: Some(uplink.boot.clone()) });
    let will_properties = LastWillProperties {
        delay_interval: Some(WILL_DELAY_S),
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: Some(Status::CONTENT_TYPE.into()),
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    let status_topic = topics::topic(device, Channel::Status);
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(uplink.tls.clone())))
        .set_keep_alive(uplink.settings.keep_alive)
        .set_connection_timeout(10)
        .set_clean_start(false)
        .set_session_expiry_interval(Some(SESSION_EXPIRY_S))
        .set_receive_maximum(Some(INFLIGHT_MAX))
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        .set_outgoing_inflight_upper_limit(INFLIGHT_MAX)
        .set_last_will(LastWill::new(status_topic, will, QoS::AtLeastOnce, true, Some(will_properties)));
    options
}

impl Session<'_> {
    fn received(&mut self, packet: Incoming, backoff: &mut Backoff) -> Result<(), SessionError> {
        match packet {
            Incoming::ConnAck(connack) => self.connected(&connack),
            Incoming::SubAck(suback) => {
                let refused = |code: &&SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
                if let Some(code) = suback.return_codes.iter().find(refused) {
                    let filter = topics::down_filter(self.uplink.identity.device());
                    return Err(SessionError::Subscription { filter, reason: format!("{code:?}") });
                }
                self.subscribed = true;
                backoff.reset();
                self.uplink.stats.connected.store(true, Ordering::Relaxed);
                self.uplink.stats.sessions.fetch_add(1, Ordering::Relaxed);
                tracing::info!("connected to the broker");
                let status = Status { online: true, boot: Some(self.uplink.boot.clone()) };
                self.publish(Channel::Status, &status, Kind::Status)
            }
            Incoming::PubAck(puback) => {
                let kind = self.in_flight.remove(&puback.pkid).ok_or(SessionError::Desync(puback.pkid))?;
                if !matches!(puback.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) {
                    tracing::warn!(?kind, reason = ?puback.reason, "the broker refused a publish; it goes again later");
                }
                match kind {
                    Kind::Status => {}
                    Kind::Report => self.report_in_flight = false,
                    Kind::Item => self.window.published(false),
                    Kind::Chunk => self.window.published(true),
                }
                Ok(())
            }
            Incoming::Publish(publish) => self.downlink(&publish),
            _ => Ok(()),
        }
    }

    fn connected(&mut self, connack: &ConnAck) -> Result<(), SessionError> {
        let limit = connack.properties.as_ref().and_then(|p| p.max_packet_size).unwrap_or(u32::MAX);
        if limit < PACKET_BYTES_NEEDED {
            return Err(SessionError::PacketLimit { allowed: limit, needed: PACKET_BYTES_NEEDED });
        }
        // Acknowledgements must have a way back before anything is sent.
        let filter = topics::down_filter(self.uplink.identity.device());
        self.client.try_subscribe(filter, QoS::AtLeastOnce).map_err(|_| SessionError::Queue)
    }

    fn sent(&mut self, sent: &Sent) -> Result<(), SessionError> {
        match sent {
            Sent::Publish(pkid) => {
                let kind = self.queued.pop_front().ok_or(SessionError::Desync(*pkid))?;
                self.in_flight.insert(*pkid, kind);
                Ok(())
            }
            // A packet id came round before its acknowledgement: rumqttc would wait for ever.
            Sent::AwaitAck(pkid) => Err(SessionError::Desync(*pkid)),
            _ => Ok(()),
        }
    }

    fn downlink(&mut self, publish: &Publish) -> Result<(), SessionError> {
        let channel = std::str::from_utf8(&publish.topic).ok().and_then(topics::parse);
        match channel {
            Some((device, Channel::Ack)) if device == *self.uplink.identity.device() => {
                match andon_protocol::decode::<Ack>(&publish.payload) {
                    Ok(ack) => self.acknowledged(ack)?,
                    Err(error) => tracing::warn!(%error, "an acknowledgement is ignored"),
                }
            }
            Some((device, Channel::Desired)) if device == *self.uplink.identity.device() => {
                match andon_protocol::decode::<Desired>(&publish.payload) {
                    Ok(desired) => {
                        self.window.pause_samples(desired.upload.paused);
                        (self.uplink.desired)(desired);
                    }
                    Err(error) => tracing::warn!(%error, "a desired state is ignored"),
                }
            }
            _ => tracing::warn!(topic = ?publish.topic, "a message on an unknown topic is ignored"),
        }
        Ok(())
    }

    fn acknowledged(&mut self, ack: Ack) -> Result<(), SessionError> {
        let stats = self.uplink.stats.clone();
        for forget in self.window.acknowledged(ack, self.uplink.clock.elapsed()) {
            match forget {
                Forget::Telemetry(range) => {
                    let forgotten = self.uplink.spool.acknowledge(&range)?;
                    stats.records_acknowledged.fetch_add(forgotten, Ordering::Relaxed);
                }
                Forget::Sample(digest) => {
                    self.images.forget(&digest);
                    let known = self.uplink.spool.forget_sample(&digest)?;
                    stats.samples_acknowledged.fetch_add(u64::from(known), Ordering::Relaxed);
                }
                Forget::Refused(digest, reason) => {
                    tracing::warn!(%digest, reason, "the server will not take a sample; it is forgotten");
                    self.images.forget(&digest);
                    let known = self.uplink.spool.forget_sample(&digest)?;
                    stats.samples_refused.fetch_add(u64::from(known), Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Sends all that the window allows now.
    fn fill(&mut self) -> Result<(), SessionError> {
        if !self.subscribed {
            return Ok(());
        }
        if !self.report_in_flight && self.uplink.reported.has_changed().unwrap_or(false) {
            let reported = self.uplink.reported.borrow_and_update().clone();
            if let Some(reported) = reported {
                self.publish(Channel::Reported, &reported, Kind::Report)?;
                self.report_in_flight = true;
            }
        }
        let spool = self.uplink.spool.clone();
        loop {
            let now = self.uplink.clock.elapsed();
            let Some(outgoing) = self.window.next(now, &Waits(&spool)) else { return Ok(()) };
            self.send(&outgoing, &spool, now)?;
        }
    }

    fn send(&mut self, outgoing: &Outgoing, spool: &Spool, now: Duration) -> Result<(), SessionError> {
        // Of a sample its number of chunks; `None`: the spool does not have it any more.
        let chunks = match outgoing {
            Outgoing::Telemetry(key) => match spool.read_batch(key)? {
                Some(batch) => {
                    self.publish::<TelemetryBatch>(Channel::Telemetry, &batch, Kind::Item)?;
                    Some(0)
                }
                None => None,
            },
            Outgoing::Manifest(digest) => match self.images.get(digest, spool)? {
                Some((manifest, _)) => {
                    let (manifest, chunks) = (manifest.clone(), manifest.chunks());
                    self.publish::<SampleManifest>(Channel::Manifest, &manifest, Kind::Item)?;
                    Some(chunks)
                }
                None => None,
            },
            Outgoing::Chunk(digest, index) => match self.images.get(digest, spool)? {
                Some((manifest, image)) if *index < manifest.chunks() => {
                    let chunk = SampleChunk::cut(*digest, image, *index);
                    self.publish(Channel::Chunk, &chunk, Kind::Chunk)?;
                    Some(0)
                }
                _ => None,
            },
        };
        match chunks {
            Some(chunks) => self.window.sent(outgoing, chunks, now),
            None => self.window.gone(outgoing),
        }
        Ok(())
    }

    fn publish<T: Wire>(&mut self, channel: Channel, value: &T, kind: Kind) -> Result<(), SessionError> {
        let payload = andon_protocol::encode(value);
        let bytes = payload.len();
        if bytes > T::BYTES_MAX || bytes + PACKET_OVERHEAD > PACKET_BYTES_MAX as usize {
            // Cannot be, by the bounds of what is put into it; sent, it would poison the connection for ever.
            tracing::error!(kind = T::KIND, bytes, "a message is too large and is not sent");
            return Err(SessionError::PacketLimit { allowed: T::BYTES_MAX as u32, needed: bytes as u32 });
        }
        let topic = topics::topic(self.uplink.identity.device(), channel);
        let retain = channel == Channel::Status;
        let properties =
            PublishProperties { content_type: Some(T::CONTENT_TYPE.into()), ..PublishProperties::default() };
        self.client
            .try_publish_with_properties(topic, QoS::AtLeastOnce, retain, payload, properties)
            .map_err(|_| SessionError::Queue)?;
        self.queued.push_back(kind);
        self.uplink.stats.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Whether there is anybody to say it to.
    fn farewell(&mut self) -> bool {
        if self.subscribed {
            let status = Status { online: false, boot: Some(self.uplink.boot.clone()) };
            // The session ends either way.
            let _ = self.publish(Channel::Status, &status, Kind::Status);
            let _ = self.client.try_disconnect();
        }
        self.subscribed
    }
}

/// The window's view of the spool.
struct Waits<'a>(&'a Spool);

impl Waiting for Waits<'_> {
    fn next_batch(&self, after: Option<Position>) -> Option<BatchKey> {
        self.0.next_batch(after).unwrap_or_else(|error| {
            tracing::error!(%error, "telemetry cannot be read");
            None
        })
    }

    fn next_sample(&self, skip: &dyn Fn(&Digest) -> bool) -> Option<(Digest, u32)> {
        let (digest, file_bytes) = self.0.next_sample(skip)?;
        // The true number follows from the manifest when it is sent.
        Some((digest, file_bytes.div_ceil(CHUNK_BYTES as u64) as u32))
    }
}

/// The images under way, so that each chunk isn't a read of the whole file. As many as the window has samples.
#[derive(Default)]
struct ImageCache {
    images: VecDeque<(SampleManifest, Vec<u8>)>,
}

impl ImageCache {
    const MAX: usize = 4;

    fn get(
        &mut self,
        digest: &Digest,
        spool: &Spool,
    ) -> Result<Option<&(SampleManifest, Vec<u8>)>, SpoolError> {
        let known = self.images.iter().position(|(manifest, _)| manifest.digest == *digest);
        let at = match known {
            Some(at) => at,
            None => {
                let Some(image) = spool.read_sample(digest)? else { return Ok(None) };
                if self.images.len() >= Self::MAX {
                    self.images.pop_front();
                }
                self.images.push_back(image);
                self.images.len() - 1
            }
        };
        Ok(self.images.get(at))
    }

    fn forget(&mut self, digest: &Digest) {
        self.images.retain(|(manifest, _)| manifest.digest != *digest);
    }
}
