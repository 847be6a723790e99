//! What devices send, into the database and the blobs. Two lanes behind the MQTT connection, so that images never delay
//! telemetry: `records` (telemetry, status, reported state) and `samples` (manifests, chunks). Each takes what has
//! gathered while it was busy and commits it at once.
//!
//! Invariants: a device is told that something is durable only after the commit (and for samples after the file is
//! synced); everything may come twice or in any order; the topic, never the payload, says who speaks; what a device
//! sends can be refused, counted and logged (once a minute), but never stops a lane or harms another device.

pub mod acks;
pub mod complaints;
pub mod parts;
pub mod records;
pub mod samples;

use std::sync::Arc;

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use andon_protocol::{
    DeviceId,
    topics::{self, Channel},
};

use crate::{
    app::App,
    devices::desired,
    mqtt::{self, Broker, Outgoing, Received},
};

pub use acks::{Acks, Item};
pub use complaints::Complaints;

/// Longer than the broker's window, so that the connection never waits for a lane.
const LANE: usize = 2 * mqtt::RECEIVE_MAX as usize;
/// Messages of one commit.
const BATCH_MAX: usize = 128;

/// Both lanes.
pub struct Lanes {
    pub records: records::Lane,
    pub samples: samples::Lane,
}

impl Lanes {
    pub fn new(app: &App, acks: &Acks, complaints: &Arc<Complaints>) -> Self {
        Self {
            records: records::Lane::new(app.clone(), acks.clone(), Arc::clone(complaints)),
            samples: samples::Lane::new(app.clone(), acks.clone(), Arc::clone(complaints)),
        }
    }
}

/// Connects to the broker and starts the lanes.
pub fn start(app: &App, broker: Broker, outgoing: mpsc::Receiver<Outgoing>) -> Vec<JoinHandle<()>> {
    let complaints = Arc::new(Complaints::default());
    let (acks, ack_task) = Acks::start(app);
    let Lanes { records: records_lane, samples: mut samples_lane } = Lanes::new(app, &acks, &complaints);
    let (records, mut records_in) = mpsc::channel(LANE);
    let (samples, mut samples_in) = mpsc::channel(LANE);
    let deliver = {
        let (app, complaints) = (app.clone(), Arc::clone(&complaints));
        move |received: Received| match topics::parse(received.topic()) {
            Some((_, Channel::Telemetry | Channel::Status | Channel::Reported)) => {
                records.try_send(received).is_ok()
            }
            Some((_, Channel::Manifest | Channel::Chunk)) => samples.try_send(received).is_ok(),
            Some((_, Channel::Ack | Channel::Desired)) | None => {
                complaints.note(None, &format!("a message on topic {:?}", received.topic()), app.now_ms());
                // Nobody will deal with it; free its place.
                tokio::spawn(async move { received.acknowledge().await });
                true
            }
        }
    };
    let (connected, connections) = watch::channel(0);
    vec![
        tokio::spawn(mqtt::run(broker, outgoing, deliver, connected, app.shutdown.clone())),
        tokio::spawn(republish(app.clone(), connections)),
        ack_task,
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while records_in.recv_many(&mut batch, BATCH_MAX).await > 0 {
                records_lane.take(&batch).await;
                acknowledge(&mut batch).await;
            }
        }),
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while samples_in.recv_many(&mut batch, BATCH_MAX).await > 0 {
                samples_lane.take(&batch).await;
                acknowledge(&mut batch).await;
            }
        }),
    ]
}

/// Dealt with, well or not: what was not stored comes again because the device got no `Ack`.
async fn acknowledge(batch: &mut Vec<Received>) {
    for received in batch.drain(..) {
        received.acknowledge().await;
    }
}

/// After every connection the retained desired states may be gone (a broker restarted without them).
async fn republish(app: App, mut connections: watch::Receiver<u64>) {
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            changed = connections.changed() => if changed.is_err() { return },
        }
        if let Err(problem) = desired::publish_all(&app).await {
            tracing::warn!("cannot publish the desired states again: {problem}");
        }
    }
}

/// The device of a message whose topic was checked by `deliver`.
fn device_of(received: &Received) -> Option<(DeviceId, Channel)> {
    topics::parse(received.topic())
}
