//! Acknowledgements on their way to devices: gathered for at most 100 ms, ranges joined, one message a device.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle, time::Instant};

use andon_protocol::{
    DeviceId,
    ack::{Ack, SampleAck, TelemetryAck},
};

use crate::app::App;

const GATHER: Duration = Duration::from_millis(100);
const QUEUE: usize = 4096;

#[derive(Debug, Clone)]
pub enum Item {
    Telemetry(TelemetryAck),
    Sample(SampleAck),
}

#[derive(Debug, Clone)]
pub struct Acks(mpsc::Sender<(DeviceId, Item)>);

impl Acks {
    pub fn start(app: &App) -> (Self, JoinHandle<()>) {
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let app = app.clone();
        let task = tokio::spawn(async move {
            while let Some(first) = receiver.recv().await {
                for (device, ack) in gather(first, &mut receiver).await {
                    app.mqtt.publish_ack(&device, &ack).await;
                }
            }
        });
        (Self(sender), task)
    }

    /// For tests of the lanes: what would be sent.
    #[cfg(test)]
    pub fn for_test() -> (Self, mpsc::Receiver<(DeviceId, Item)>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Waits where the broker takes no acknowledgements: ingest slows down with it.
    pub async fn push(&self, device: &DeviceId, item: Item) {
        let _ = self.0.send((device.clone(), item)).await;
    }
}

async fn gather(
    first: (DeviceId, Item),
    receiver: &mut mpsc::Receiver<(DeviceId, Item)>,
) -> Vec<(DeviceId, Ack)> {
    let deadline = Instant::now() + GATHER;
    let mut items = vec![first];
    while items.len() < Ack::ITEMS_MAX {
        match tokio::time::timeout_at(deadline, receiver.recv()).await {
            Ok(Some(item)) => items.push(item),
            Ok(None) | Err(_) => break,
        }
    }
    assemble(items)
}

/// One `Ack` a device. No more than `ITEMS_MAX` items go in, so none is over its bound; adjacent ranges are joined, and
/// of several answers about one sample the last stands.
fn assemble(items: Vec<(DeviceId, Item)>) -> Vec<(DeviceId, Ack)> {
    let mut acks: BTreeMap<DeviceId, Ack> = BTreeMap::new();
    for (device, item) in items {
        let ack = match acks.entry(device) {
            Entry::Vacant(entry) => entry.insert(Ack::default()),
            Entry::Occupied(entry) => entry.into_mut(),
        };
        match item {
            Item::Telemetry(range) => match ack.telemetry.last_mut() {
                Some(last)
                    if last.boot == range.boot && last.last_seq.checked_add(1) == Some(range.first_seq) =>
                {
                    last.last_seq = range.last_seq;
                }
                _ => ack.telemetry.push(range),
            },
            Item::Sample(sample) => {
                ack.samples.retain(|s| s.digest != sample.digest);
                ack.samples.push(sample);
            }
        }
    }
    acks.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use andon_protocol::{BootId, Digest, ack::SampleState};

    #[test]
    fn ranges_are_joined_and_the_last_answer_stands() {
        let device: DeviceId = "d".parse().unwrap();
        let boot = BootId::from_random([1; 16]);
        let range = |first_seq, last_seq| {
            (device.clone(), Item::Telemetry(TelemetryAck { boot: boot.clone(), first_seq, last_seq }))
        };
        let sample = |state| (device.clone(), Item::Sample(SampleAck { digest: Digest::of(b"s"), state }));
        let acks = assemble(vec![
            range(0, 3),
            sample(SampleState::Need { missing: vec![(0, 1)] }),
            range(4, 4),
            range(9, 9),
            sample(SampleState::Done),
        ]);
        let [(_, ack)] = &acks[..] else { panic!("{acks:?}") };
        let ranges: Vec<_> = ack.telemetry.iter().map(|t| (t.first_seq, t.last_seq)).collect();
        assert_eq!(ranges, [(0, 4), (9, 9)]);
        assert_eq!(ack.samples, [SampleAck { digest: Digest::of(b"s"), state: SampleState::Done }]);
    }
}
