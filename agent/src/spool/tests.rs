//! The spool on a real folder: what is put in comes out once, whatever happened in between.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use andon_protocol::{
    sample::Reason,
    telemetry::{DriftState, Window},
};

use super::*;
use crate::{clock::ManualClock, files::SystemDisk};

const AMPLE: Budget = Budget { bytes_max: 64 << 20, files_max: 1000 };

fn boot(n: u8) -> BootId {
    BootId::from_random([n; 16])
}

fn open(folder: &Path, boot_number: u8, budget: Budget) -> (Spool, Recovery) {
    let clock = Arc::new(ManualClock::at(1_000));
    Spool::open(folder, boot(boot_number), budget, Arc::new(SystemDisk), clock).unwrap()
}

fn window(frames: u32) -> Record {
    Record { at_ms: i64::from(frames), body: Body::Window(Window { frames, ..Window::default() }) }
}

fn event(text: &str) -> Record {
    Record { at_ms: 0, body: Body::Event(Event::Fault { what: text.into() }) }
}

fn sample(seed: u32, bytes: usize) -> (SampleManifest, Vec<u8>) {
    let mut image = vec![0u8; bytes];
    image[..4].copy_from_slice(&seed.to_le_bytes());
    let manifest = SampleManifest {
        digest: Digest::of(&image),
        size: bytes as u64,
        content_type: "image/png".into(),
        captured_ms: i64::from(seed),
        boot: boot(1),
        frame: u64::from(seed),
        source: "cell.png".into(),
        release: "solar-cell/1".parse().unwrap(),
        reason: Reason::Random,
        inclusion_probability: 0.5,
        predicted: 0,
        scores: vec![0.9, 0.1],
        drift: DriftState::Armed,
        projection: vec![],
        stats: vec![],
        dhash: 0,
    };
    (manifest, image)
}

/// Everything that waits, as (boot, seq, frames), checked for order and gaps on the way.
fn waiting(spool: &Spool) -> Vec<(BootId, u64, i64)> {
    let mut all = Vec::new();
    let mut after = None;
    while let Some(key) = spool.next_batch(after).unwrap() {
        let batch = spool.read_batch(&key).unwrap().expect("a batch that next_batch named");
        assert_eq!((batch.first_seq, batch.last_seq()), (key.first.seq, key.last_seq));
        for (i, record) in batch.records.iter().enumerate() {
            all.push((batch.boot.clone(), batch.first_seq + i as u64, record.at_ms));
        }
        after = Some(Position { segment: key.first.segment, seq: key.last_seq });
    }
    let distinct: BTreeSet<_> = all.iter().map(|(boot, seq, _)| (boot.clone(), *seq)).collect();
    assert_eq!(distinct.len(), all.len(), "a record twice");
    all
}

fn samples(spool: &Spool) -> BTreeSet<Digest> {
    let mut seen = BTreeSet::new();
    while let Some((digest, _)) = spool.next_sample(&|digest| seen.contains(digest)) {
        let (manifest, image) = spool.read_sample(&digest).unwrap().expect("a sample that next_sample named");
        assert_eq!(Digest::of(&image), manifest.digest);
        seen.insert(digest);
    }
    seen
}

fn ack(spool: &Spool, boot_number: u8, first_seq: u64, last_seq: u64) -> u64 {
    spool.acknowledge(&TelemetryAck { boot: boot(boot_number), first_seq, last_seq }).unwrap()
}

#[test]
fn records_wait_until_acknowledged_across_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, recovery) = open(folder.path(), 1, AMPLE);
    assert_eq!(recovery, Recovery::default());
    spool.append((0..300).map(window).collect()).unwrap();
    assert_eq!(waiting(&spool).len(), 300);
    let first = spool.next_batch(None).unwrap().unwrap();
    assert_eq!((first.first.seq, first.last_seq), (0, 255), "a batch holds at most 256 records");
    assert_eq!(ack(&spool, 1, 10, 19), 10);
    assert_eq!(ack(&spool, 1, 10, 19), 0, "an acknowledgement may come twice");
    assert_eq!(ack(&spool, 9, 0, 1000), 0, "of a boot that is not here");
    drop(spool);

    let (spool, recovery) = open(folder.path(), 2, AMPLE);
    assert_eq!(recovery, Recovery::default());
    spool.append(vec![event("second boot")]).unwrap();
    let all = waiting(&spool);
    assert_eq!(all.len(), 291);
    assert_eq!(all.last().unwrap(), &(boot(2), 0, 0), "sequence numbers start again at every boot");
    assert_eq!(ack(&spool, 1, 0, 299), 290);
    assert_eq!(fs::read_dir(folder.path().join("segments")).unwrap().count(), 1, "a done segment goes");
}

#[test]
fn an_index_that_is_gone_or_garbage_is_rebuilt_and_nothing_is_lost_or_doubled() {
    for damage in ["delete", "garbage", "truncate"] {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = open(folder.path(), 1, AMPLE);
        spool.append((0..50).map(window).collect()).unwrap();
        let (manifest, image) = sample(1, 1000);
        assert!(spool.put_sample(Value::Routine, &manifest, &image).unwrap());
        drop(spool);
        let before = {
            let (spool, _) = open(folder.path(), 2, AMPLE);
            (waiting(&spool), samples(&spool))
        };
        let index = folder.path().join("index");
        match damage {
            "delete" => fs::remove_dir_all(&index).unwrap(),
            "garbage" => {
                for name in ["db", "conf"] {
                    fs::write(index.join(name), vec![0xA5; 600_000]).unwrap();
                }
            }
            _ => fs::write(index.join("conf"), b"").unwrap(),
        }
        let (spool, _) = open(folder.path(), 3, AMPLE);
        assert_eq!((waiting(&spool), samples(&spool)), before, "{damage}");
        spool.append(vec![window(7)]).unwrap();
        assert_eq!(waiting(&spool).len(), 51, "{damage}: and it goes on");
    }
}

#[test]
fn an_index_older_than_the_segments_learns_what_it_missed() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = open(folder.path(), 1, AMPLE);
    spool.append(vec![window(0), window(1)]).unwrap();
    drop(spool);
    let index = folder.path().join("index");
    let old = folder.path().join("old");
    copy_folder(&index, &old);
    let (spool, _) = open(folder.path(), 2, AMPLE);
    spool.append(vec![window(2)]).unwrap();
    let (manifest, image) = sample(3, 64);
    spool.put_sample(Value::Useful, &manifest, &image).unwrap();
    drop(spool);
    fs::remove_dir_all(&index).unwrap();
    fs::rename(&old, &index).unwrap();
    let (spool, recovery) = open(folder.path(), 3, AMPLE);
    assert_eq!((recovery.records_entered, recovery.samples_entered), (1, 1));
    assert_eq!((waiting(&spool).len(), samples(&spool).len()), (3, 1));
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_torn_tail_is_cut_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = open(folder.path(), 1, AMPLE);
    spool.append(vec![window(0), window(1)]).unwrap();
    drop(spool);
    let segment = fs::read_dir(folder.path().join("segments")).unwrap().next().unwrap().unwrap().path();
    fs::OpenOptions::new().append(true).open(&segment).unwrap().write_all(&[0xEE; 37]).unwrap();
    fs::write(folder.path().join("segments/00000000000000ff.seg"), b"ANDS").unwrap();
    let (spool, recovery) = open(folder.path(), 2, AMPLE);
    assert_eq!(recovery.torn_bytes, 37 + 4);
    assert_eq!(waiting(&spool).len(), 2);
    drop(spool);
    assert_eq!(open(folder.path(), 3, AMPLE).1.torn_bytes, 0);
}

#[test]
fn a_damaged_sample_is_dropped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = open(folder.path(), 1, AMPLE);
    let (manifest, image) = sample(1, 1000);
    spool.put_sample(Value::Evidence, &manifest, &image).unwrap();
    let path = folder.path().join(format!("samples/{}.smp", manifest.digest));
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(spool.read_sample(&manifest.digest).unwrap(), None);
    assert_eq!((spool.report().samples, spool.report().samples_dropped), (0, 1));
    spool.append(vec![]).unwrap();
    let key = spool.next_batch(None).unwrap().unwrap();
    let told = &spool.read_batch(&key).unwrap().unwrap().records[0].body;
    assert!(matches!(told, Body::Event(Event::SpoolDropped { samples: 1, .. })), "{told:?}");
    let (mut wrong, image) = sample(2, 10);
    wrong.size += 1;
    assert!(spool.put_sample(Value::Routine, &wrong, &image).is_err());
}

#[test]
fn the_least_valuable_goes_first_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let budget = Budget { bytes_max: 40_000, files_max: 1000 };
    let (spool, _) = open(folder.path(), 1, budget);
    let put = |seed, value| {
        let (manifest, image) = sample(seed, 9_000);
        spool.put_sample(value, &manifest, &image).unwrap();
        manifest.digest
    };
    let routine = [put(1, Value::Routine), put(2, Value::Routine)];
    let useful = put(3, Value::Useful);
    let evidence = put(4, Value::Evidence);
    assert_eq!(samples(&spool).len(), 4);
    let later = put(5, Value::Evidence);
    assert!(!samples(&spool).contains(&routine[0]), "the oldest routine sample is the first to go");
    let last = put(6, Value::Evidence);
    assert_eq!(samples(&spool), BTreeSet::from([useful, evidence, later, last]));
    let (manifest, image) = sample(7, 9_000);
    assert!(!spool.put_sample(Value::Routine, &manifest, &image).unwrap(), "no room beside better ones");
    assert_eq!(spool.report().samples_dropped, 3);
    assert!(spool.report().bytes <= budget.bytes_max);
}

#[test]
fn events_outlive_windows_when_telemetry_alone_fills_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let budget = Budget { bytes_max: 2 * SEGMENT_BYTES_MAX + 50_000, files_max: 1000 };
    let (spool, _) = open(folder.path(), 1, budget);
    for round in 0..60 {
        let mut records: Vec<_> = (0..200).map(window).collect();
        records.push(event(&format!("round {round}")));
        spool.append(records).unwrap();
        assert!(spool.report().bytes <= budget.bytes_max);
    }
    assert!(spool.report().records_dropped > 0);
    let mut events = 0;
    let mut after = None;
    while let Some(key) = spool.next_batch(after).unwrap() {
        let batch = spool.read_batch(&key).unwrap().unwrap();
        let is_fault = |r: &&Record| matches!(&r.body, Body::Event(Event::Fault { .. }));
        events += batch.records.iter().filter(is_fault).count();
        after = Some(Position { segment: key.first.segment, seq: key.last_seq });
    }
    assert_eq!(events, 60, "no event was dropped");
    let before = waiting(&spool);
    drop(spool);
    assert_eq!(
        waiting(&open(folder.path(), 2, budget).0),
        before,
        "a compacted segment reads like any other"
    );
}

#[test]
fn inodes_are_a_budget_too() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = open(folder.path(), 1, Budget { bytes_max: 1 << 30, files_max: 3 });
    for seed in 0..10 {
        let (manifest, image) = sample(seed, 100);
        spool.put_sample(Value::Routine, &manifest, &image).unwrap();
    }
    assert_eq!((samples(&spool).len(), spool.report().samples_dropped), (3, 7));
}

/// A disk that is full when told so; an append writes half.
struct FullDisk {
    full: AtomicBool,
}

impl Disk for FullDisk {
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            SystemDisk.append(path, &bytes[..bytes.len() / 2])?;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        SystemDisk.append(path, bytes)
    }
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        SystemDisk.read(path, bytes_max)
    }
    fn read_at(&self, path: &Path, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        SystemDisk.read_at(path, offset, bytes_max)
    }
    fn length(&self, path: &Path) -> io::Result<u64> {
        SystemDisk.length(path)
    }
    fn sync(&self, path: &Path) -> io::Result<()> {
        SystemDisk.sync(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_folder(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        SystemDisk.list(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        SystemDisk.free_bytes(path)
    }
}

#[test]
fn a_full_disk_costs_what_could_not_be_written_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(FullDisk { full: AtomicBool::new(false) });
    let clock = Arc::new(ManualClock::at(0));
    let (spool, _) = Spool::open(folder.path(), boot(1), AMPLE, disk.clone(), clock).unwrap();
    spool.append(vec![window(0)]).unwrap();
    disk.full.store(true, Ordering::SeqCst);
    assert!(spool.append(vec![window(1), window(2)]).is_err());
    let (manifest, image) = sample(1, 100);
    assert!(spool.put_sample(Value::Useful, &manifest, &image).is_err());
    disk.full.store(false, Ordering::SeqCst);
    spool.append(vec![window(3)]).unwrap();
    let all = waiting(&spool);
    assert_eq!(all.iter().map(|(_, seq, _)| *seq).collect::<Vec<_>>(), [0, 3, 4], "a gap shows the loss");
    assert_eq!((spool.report().records_dropped, spool.report().samples_dropped), (2, 1));
}

#[test]
fn the_writer_thread_writes_all_that_was_offered_before_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Arc::new(open(folder.path(), 1, AMPLE).0);
    let (intake, writer) = writer::spawn(spool.clone(), || ()).unwrap();
    let offered = (0..100).filter(|n| intake.offer(writer::Item::Record(window(*n)))).count();
    let (manifest, image) = sample(1, 100);
    let image_offered =
        intake.offer(writer::Item::Sample { value: Value::Useful, manifest: manifest.into(), image });
    writer.stop();
    assert!(!intake.offer(writer::Item::Record(window(0))), "the writer has ended");
    let report = spool.report();
    assert_eq!(report.records as usize, offered);
    assert_eq!((report.samples, report.samples_dropped + report.samples), (u64::from(image_offered), 1));
}
