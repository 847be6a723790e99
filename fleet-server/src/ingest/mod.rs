//! What devices send, into the database and the blobs. Two lanes behind the MQTT connection, so that images never delay
//! telemetry: `records` (telemetry, status, reported state) and `samples` (manifests, chunks). Each takes what has
//! gathered while it was busy and commits it at once.
//!
//! Invariants: a device is told that something is durable only after the commit (and for samples after the file is
//! synced); everything may come twice or in any order; the topic, never the payload, says who speaks; what a device
//! sends can be refused, counted and logged (once a minute), but never stops a lane or harms another device.

mod acks;
mod complaints;
mod parts;
mod records;
mod samples;

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

/// Connects to the broker and starts the lanes.
pub fn start(app: &App, broker: Broker, outgoing: mpsc::Receiver<Outgoing>) -> Vec<JoinHandle<()>> {
    let complaints = Arc::new(Complaints::default());
    let (acks, ack_task) = Acks::start(app);
    let (records, record_task) = records_lane(app, &acks, &complaints);
    let (samples, sample_task) = samples_lane(app, &acks, &complaints);
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
        record_task,
        sample_task,
    ]
}

fn records_lane(
    app: &App,
    acks: &Acks,
    complaints: &Arc<Complaints>,
) -> (mpsc::Sender<Received>, JoinHandle<()>) {
    let (sender, mut receiver) = mpsc::channel(LANE);
    let lane = records::Lane { app: app.clone(), acks: acks.clone(), complaints: Arc::clone(complaints) };
    let task = tokio::spawn(async move {
        let mut batch = Vec::new();
        while receiver.recv_many(&mut batch, BATCH_MAX).await > 0 {
            lane.take(&batch).await;
            for received in batch.drain(..) {
                received.acknowledge().await;
            }
        }
    });
    (sender, task)
}

fn samples_lane(
    app: &App,
    acks: &Acks,
    complaints: &Arc<Complaints>,
) -> (mpsc::Sender<Received>, JoinHandle<()>) {
    let (sender, mut receiver) = mpsc::channel(LANE);
    let mut lane = samples::Lane::new(app.clone(), acks.clone(), Arc::clone(complaints));
    let task = tokio::spawn(async move {
        let mut batch = Vec::new();
        while receiver.recv_many(&mut batch, BATCH_MAX).await > 0 {
            lane.take(&batch).await;
            for received in batch.drain(..) {
                received.acknowledge().await;
            }
        }
    });
    (sender, task)
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
