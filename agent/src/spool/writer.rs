//! The thread between the frame path and the spool. Offering never waits: the queue is bounded in items and bytes,
//! what finds it full is dropped and counted, and what one fsync can carry is written together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::{self, JoinHandle},
};

use andon_protocol::{sample::SampleManifest, telemetry::Record};

use super::{Spool, Value};

const QUEUE_ITEMS_MAX: usize = 256;
const QUEUE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Records of one fsync.
const GROUP_MAX: usize = 128;

#[derive(Debug)]
pub enum Item {
    Record(Record),
    Sample { value: Value, manifest: Box<SampleManifest>, image: Vec<u8> },
}

/// The frame path's end of the queue.
#[derive(Clone)]
pub struct Intake {
    queue: SyncSender<Message>,
    queued_bytes: Arc<AtomicU64>,
    lost: Arc<Lost>,
}

#[derive(Default)]
struct Lost {
    records: AtomicU64,
    samples: AtomicU64,
}

impl Intake {
    /// Never waits. `false`: the queue is full, or the writer has ended; counted as dropped.
    pub fn offer(&self, item: Item) -> bool {
        let bytes = item_bytes(&item);
        let lost = match &item {
            Item::Record(_) => &self.lost.records,
            Item::Sample { .. } => &self.lost.samples,
        };
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if queued + bytes <= QUEUE_BYTES_MAX && self.queue.try_send(Message::Item(item)).is_ok() {
            return true;
        }
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        lost.fetch_add(1, Ordering::Relaxed);
        false
    }
}

/// The running writer.
pub struct Writer {
    queue: SyncSender<Message>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Writes all that was offered before, and ends. What is offered afterwards is dropped.
    pub fn stop(self) {
        // An error says that it has ended.
        let _ = self.queue.send(Message::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the spool's writer had panicked");
        }
    }
}

#[derive(Debug)]
enum Message {
    Item(Item),
    Stop,
}

/// Starts the writer. `written` is called after every write.
pub fn spawn(spool: Arc<Spool>, written: impl Fn() + Send + 'static) -> std::io::Result<(Intake, Writer)> {
    let (queue, items) = sync_channel(QUEUE_ITEMS_MAX);
    let queued_bytes = Arc::new(AtomicU64::new(0));
    let lost = Arc::new(Lost::default());
    let intake = Intake { queue: queue.clone(), queued_bytes: queued_bytes.clone(), lost: lost.clone() };
    let thread = thread::Builder::new()
        .name("spool".into())
        .spawn(move || write_all(&spool, &items, &queued_bytes, &lost, &written))?;
    Ok((intake, Writer { queue, thread }))
}

fn write_all(
    spool: &Spool,
    items: &Receiver<Message>,
    queued_bytes: &AtomicU64,
    lost: &Lost,
    written: &dyn Fn(),
) {
    while let Ok(first) = items.recv() {
        let mut records = Vec::new();
        let mut samples = Vec::new();
        let mut next = Ok(first);
        while let Ok(Message::Item(item)) = next {
            queued_bytes.fetch_sub(item_bytes(&item), Ordering::Relaxed);
            match item {
                Item::Record(record) => records.push(record),
                Item::Sample { value, manifest, image } => samples.push((value, manifest, image)),
            }
            let full = records.len() >= GROUP_MAX || samples.len() >= 4;
            next = if full { Err(TryRecvError::Empty) } else { items.try_recv() };
        }
        spool.count_lost(lost.records.swap(0, Ordering::Relaxed), lost.samples.swap(0, Ordering::Relaxed));
        // The spool has counted what it could not write; a full disk must not stop the line.
        if let Err(error) = spool.append(records) {
            tracing::error!(%error, "telemetry records are lost");
        }
        for (value, manifest, image) in samples {
            if let Err(error) = spool.put_sample(value, &manifest, &image) {
                tracing::error!(%error, digest = %manifest.digest, "a sample is lost");
            }
        }
        written();
        if matches!(next, Ok(Message::Stop)) {
            break;
        }
    }
    spool.count_lost(lost.records.swap(0, Ordering::Relaxed), lost.samples.swap(0, Ordering::Relaxed));
}

fn item_bytes(item: &Item) -> u64 {
    match item {
        Item::Record(_) => 256,
        Item::Sample { image, .. } => image.len() as u64,
    }
}
