//! The server's end of the upload protocol, in memory: it stores, answers with what is missing, and acknowledges what
//! it has. Its own connection breaks with the broker and comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use andon_protocol::{
    BootId, DeviceId, Digest,
    ack::{Ack, SampleAck, SampleState, TelemetryAck},
    codec::Wire,
    decode, encode,
    sample::{CHUNK_BYTES, SampleChunk, SampleManifest},
    state::{Desired, Reported, Status},
    telemetry::{Record, TelemetryBatch},
    topics::{self, Channel},
};
use rumqttc::{
    TlsConfiguration, Transport,
    v5::{
        AsyncClient, Event, Incoming, MqttOptions,
        mqttbytes::{QoS, v5::Publish},
    },
};
use tokio::sync::watch;

use crate::mosquitto::{Certificates, SERVER};

#[derive(Debug, Clone, Default)]
pub(crate) struct Stored {
    pub(crate) records: BTreeMap<(BootId, u64), Record>,
    pub(crate) contradictions: usize,
    pub(crate) samples: BTreeMap<Digest, Vec<u8>>,
    pub(crate) chunks_received: usize,
    pub(crate) reported: Option<Reported>,
    pub(crate) online: Option<bool>,
    parts: BTreeMap<Digest, Part>,
    desired: Option<(DeviceId, Desired)>,
}

#[derive(Debug, Clone, Default)]
struct Part {
    size: u64,
    chunks: u32,
    bytes: Vec<u8>,
    have: BTreeSet<u32>,
}

pub(crate) struct Fleet {
    stored: Arc<Mutex<Stored>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    pub(crate) fn start(certificates: &Certificates, port: u16) -> Self {
        let tls = certificates.identity(SERVER, port).tls().unwrap();
        let stored = Arc::new(Mutex::new(Stored::default()));
        let (stop, mut stopped) = watch::channel(false);
        let thread = std::thread::spawn({
            let stored = stored.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    loop {
                        let mut options = MqttOptions::new(SERVER, "127.0.0.1", port);
                        options
                            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())))
                            .set_max_packet_size(Some(128 * 1024))
                            .set_outgoing_inflight_upper_limit(16);
                        tokio::select! {
                            () = session(options, &stored) => {}
                            _ = stopped.changed() => return,
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                });
            }
        });
        Self { stored, stop, thread: Some(thread) }
    }

    pub(crate) fn stored(&self) -> Stored {
        self.stored.lock().unwrap().clone()
    }

    /// Retained; sent by the session.
    pub(crate) fn publish_desired(&self, device: &str, desired: &Desired) {
        self.stored.lock().unwrap().desired = Some((device.parse().unwrap(), desired.clone()));
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Until the first error.
async fn session(options: MqttOptions, stored: &Mutex<Stored>) {
    let (client, mut events) = AsyncClient::new(options, 64);
    for filter in topics::UP_FILTERS {
        let _ = client.try_subscribe(filter, QoS::AtLeastOnce);
    }
    loop {
        let event = {
            // One poll future until it is ready: cancelled, it would start to connect anew.
            let mut poll = std::pin::pin!(events.poll());
            loop {
                tokio::select! {
                    event = &mut poll => break event,
                    () = tokio::time::sleep(Duration::from_millis(50)) => publish_desired(&client, stored),
                }
            }
        };
        match event {
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                if let Some((device, ack)) = stored.lock().unwrap().take(&publish) {
                    let topic = topics::topic(&device, Channel::Ack);
                    let _ = client.try_publish(topic, QoS::AtLeastOnce, false, encode(&ack));
                }
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

fn publish_desired(client: &AsyncClient, stored: &Mutex<Stored>) {
    if let Some((device, desired)) = stored.lock().unwrap().desired.take() {
        let topic = topics::topic(&device, Channel::Desired);
        let _ = client.try_publish(topic, QoS::AtLeastOnce, true, encode(&desired));
    }
}

impl Stored {
    fn take(&mut self, publish: &Publish) -> Option<(DeviceId, Ack)> {
        let (device, channel) = topics::parse(std::str::from_utf8(&publish.topic).ok()?)?;
        let content_type = publish.properties.as_ref()?.content_type.clone()?;
        let payload = &publish.payload;
        let ack = match channel {
            Channel::Telemetry => {
                assert_eq!(content_type, TelemetryBatch::CONTENT_TYPE);
                self.telemetry(decode(payload).unwrap())
            }
            Channel::Manifest => {
                assert_eq!(content_type, SampleManifest::CONTENT_TYPE);
                self.manifest(decode(payload).unwrap())
            }
            Channel::Chunk => self.chunk(decode(payload).unwrap())?,
            Channel::Reported => {
                self.reported = Some(decode(payload).unwrap());
                return None;
            }
            Channel::Status => {
                self.online = Some(decode::<Status>(payload).unwrap().online);
                return None;
            }
            Channel::Ack | Channel::Desired => return None,
        };
        Some((device, ack))
    }

    fn telemetry(&mut self, batch: TelemetryBatch) -> Ack {
        let (boot, first_seq, last_seq) = (batch.boot.clone(), batch.first_seq, batch.last_seq());
        for (seq, record) in (first_seq..).zip(batch.records) {
            let old = self.records.insert((boot.clone(), seq), record.clone());
            self.contradictions += usize::from(old.is_some_and(|old| old != record));
        }
        Ack { telemetry: vec![TelemetryAck { boot, first_seq, last_seq }], samples: vec![] }
    }

    fn manifest(&mut self, manifest: SampleManifest) -> Ack {
        if !self.samples.contains_key(&manifest.digest) {
            let part = self.parts.entry(manifest.digest).or_default();
            (part.size, part.chunks) = (manifest.size, manifest.chunks());
            part.bytes.resize(manifest.size as usize, 0);
        }
        self.answer(manifest.digest)
    }

    /// `None`: nothing to say before the last chunk.
    fn chunk(&mut self, chunk: SampleChunk) -> Option<Ack> {
        self.chunks_received += 1;
        let part = self.parts.get_mut(&chunk.digest)?;
        let start = chunk.index as usize * CHUNK_BYTES;
        part.bytes[start..start + chunk.bytes.len()].copy_from_slice(&chunk.bytes);
        part.have.insert(chunk.index);
        if part.have.len() < part.chunks as usize {
            return None;
        }
        let part = self.parts.remove(&chunk.digest)?;
        assert_eq!(Digest::of(&part.bytes), chunk.digest);
        self.samples.insert(chunk.digest, part.bytes);
        Some(self.answer(chunk.digest))
    }

    fn answer(&self, digest: Digest) -> Ack {
        let state = match self.parts.get(&digest) {
            _ if self.samples.contains_key(&digest) => SampleState::Done,
            Some(part) => {
                let missing = (0..part.chunks).filter(|index| !part.have.contains(index)).map(|i| (i, i + 1));
                SampleState::Need { missing: missing.collect() }
            }
            None => SampleState::Need { missing: vec![] },
        };
        Ack { telemetry: vec![], samples: vec![SampleAck { digest, state }] }
    }
}
