//! The uplink's window against a server that loses, repeats and reorders.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
};

use andon_protocol::BootId;

use super::*;

const RESEND: Duration = Duration::from_secs(60);

/// A spool of single-segment records and samples, in memory.
#[derive(Default)]
struct Memory {
    records: RefCell<BTreeSet<u64>>,
    samples: RefCell<Vec<(Digest, u32)>>,
}

impl Memory {
    fn new(records: u64, samples: &[(Digest, u32)]) -> Self {
        Self { records: RefCell::new((0..records).collect()), samples: RefCell::new(samples.to_vec()) }
    }

    fn forget(&self, forget: Vec<Forget>) {
        for item in forget {
            match item {
                Forget::Telemetry(t) => {
                    self.records.borrow_mut().retain(|seq| !(t.first_seq..=t.last_seq).contains(seq));
                }
                Forget::Sample(digest) | Forget::Refused(digest, _) => {
                    self.samples.borrow_mut().retain(|(d, _)| *d != digest);
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.records.borrow().is_empty() && self.samples.borrow().is_empty()
    }
}

impl Waiting for Memory {
    fn next_batch(&self, after: Option<Position>) -> Option<BatchKey> {
        let records = self.records.borrow();
        let mut rest = records.iter().filter(|seq| after.is_none_or(|p| **seq > p.seq)).copied();
        let first = rest.next()?;
        let mut last = first;
        for seq in rest {
            if seq != last + 1 || last - first >= 9 {
                break;
            }
            last = seq;
        }
        Some(BatchKey { boot: boot(), first: Position { segment: 0, seq: first }, last_seq: last })
    }

    fn next_sample(&self, skip: &dyn Fn(&Digest) -> bool) -> Option<(Digest, u32)> {
        self.samples.borrow().iter().find(|(digest, _)| !skip(digest)).copied()
    }
}

fn boot() -> BootId {
    BootId::from_random([1; 16])
}

fn digest(n: u8) -> Digest {
    Digest::of(&[n])
}

fn window() -> Window {
    Window::new(Limits::new(RESEND))
}

/// Sends until the window is shut.
fn drain(window: &mut Window, now: Duration, memory: &Memory) -> Vec<Outgoing> {
    let mut sent = Vec::new();
    while let Some(outgoing) = window.next(now, memory) {
        let chunks = match &outgoing {
            Outgoing::Manifest(d) => memory.samples.borrow().iter().find(|(x, _)| x == d).unwrap().1,
            _ => 0,
        };
        window.sent(&outgoing, chunks, now);
        sent.push(outgoing);
        assert!(sent.len() <= 1000, "the window never shuts");
    }
    sent
}

fn telemetry(first_seq: u64, last_seq: u64) -> Ack {
    Ack { telemetry: vec![TelemetryAck { boot: boot(), first_seq, last_seq }], samples: vec![] }
}

fn sample(digest: Digest, state: SampleState) -> Ack {
    Ack { telemetry: vec![], samples: vec![SampleAck { digest, state }] }
}

#[test]
fn telemetry_first_then_manifests_then_four_chunks() {
    let memory = Memory::new(20, &[(digest(1), 6)]);
    let mut window = window();
    let zero = Duration::ZERO;
    let sent = drain(&mut window, zero, &memory);
    assert!(
        matches!(sent[..], [Outgoing::Telemetry(_), Outgoing::Telemetry(_), Outgoing::Manifest(_)]),
        "{sent:?}"
    );
    window.acknowledged(sample(digest(1), SampleState::Need { missing: vec![(0, 6)] }), zero);
    assert_eq!(drain(&mut window, zero, &memory).len(), 4);
    window.published(true);
    assert_eq!(drain(&mut window, zero, &memory), [Outgoing::Chunk(digest(1), 4)]);
}

#[test]
fn the_window_shuts_at_its_limit_and_a_puback_opens_it_but_forgets_nothing() {
    let memory = Memory::new(1000, &[]);
    let mut window = window();
    window.limits.batches = 100;
    let sent = drain(&mut window, Duration::ZERO, &memory);
    assert_eq!(sent.len(), 14);
    window.published(false);
    assert_eq!(drain(&mut window, Duration::ZERO, &memory).len(), 1);
    assert_eq!(memory.records.borrow().len(), 1000);
}

#[test]
fn only_missing_chunks_are_sent_and_hostile_ranges_are_clipped() {
    let memory = Memory::new(0, &[(digest(1), 5)]);
    let mut window = window();
    drain(&mut window, Duration::ZERO, &memory);
    let missing = vec![(3, u32::MAX), (1, 2), (4, 2), (3, 4), (7, 9)];
    window.acknowledged(sample(digest(1), SampleState::Need { missing }), Duration::ZERO);
    let chunks: Vec<_> = [1, 3, 4].map(|i| Outgoing::Chunk(digest(1), i)).into();
    assert_eq!(drain(&mut window, Duration::ZERO, &memory), chunks);
    // Nothing missing, not yet durable: wait, then ask again.
    window.acknowledged(sample(digest(1), SampleState::Need { missing: vec![] }), Duration::ZERO);
    assert_eq!(drain(&mut window, RESEND - Duration::from_millis(1), &memory), []);
    assert_eq!(drain(&mut window, RESEND, &memory), [Outgoing::Manifest(digest(1))]);
}

#[test]
fn a_silent_server_gets_everything_again_after_the_time_and_not_before() {
    let memory = Memory::new(10, &[(digest(1), 1)]);
    let mut window = window();
    assert_eq!(drain(&mut window, Duration::ZERO, &memory).len(), 2);
    (0..2).for_each(|_| window.published(false));
    assert_eq!(window.next_due(), Some(RESEND));
    assert_eq!(drain(&mut window, RESEND / 2, &memory), []);
    assert_eq!(drain(&mut window, RESEND, &memory).len(), 2);
    assert_eq!(drain(&mut window, RESEND, &memory), []);
}

#[test]
fn a_partial_acknowledgement_leaves_the_rest_to_be_sent_once() {
    let memory = Memory::new(30, &[]);
    let mut window = window();
    assert_eq!(drain(&mut window, Duration::ZERO, &memory).len(), 3);
    memory.forget(window.acknowledged(telemetry(0, 4), Duration::ZERO));
    let sent = drain(&mut window, Duration::ZERO, &memory);
    let [Outgoing::Telemetry(key)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((key.first.seq, key.last_seq), (5, 9), "what is under way is left alone");
}

#[test]
fn a_new_session_announces_again_and_keeps_the_pause() {
    let memory = Memory::new(10, &[(digest(1), 3)]);
    let mut window = window();
    let sent = drain(&mut window, Duration::ZERO, &memory);
    window.reset();
    assert_eq!(drain(&mut window, Duration::ZERO, &memory), sent);
    window.pause_samples(true);
    window.reset();
    assert!(matches!(drain(&mut window, Duration::ZERO, &memory)[..], [Outgoing::Telemetry(_)]));
}

#[test]
fn what_the_spool_lost_is_skipped_and_what_the_server_refuses_is_forgotten() {
    let memory = Memory::new(10, &[(digest(1), 1), (digest(2), 1)]);
    let mut window = window();
    let first = window.next(Duration::ZERO, &memory).unwrap();
    memory.records.borrow_mut().clear();
    window.gone(&first);
    assert_eq!(drain(&mut window, Duration::ZERO, &memory).len(), 2);
    let refused = SampleState::Refused { reason: "quota".into() };
    let forget = window.acknowledged(sample(digest(1), refused), Duration::ZERO);
    assert_eq!(forget, [Forget::Refused(digest(1), "quota".into())]);
    memory.forget(forget);
    // Unknown samples are forgotten in the spool, too: an acknowledgement may come after a restart.
    let forget = window.acknowledged(sample(digest(2), SampleState::Done), Duration::ZERO);
    assert_eq!(forget, [Forget::Sample(digest(2))]);
    let none =
        window.acknowledged(sample(digest(9), SampleState::Need { missing: vec![(0, 1)] }), Duration::ZERO);
    assert_eq!((none, window.next(Duration::ZERO, &memory)), (vec![], Some(Outgoing::Manifest(digest(2)))));
}

/// A server that forgets nothing it stored, behind a link that loses, repeats and reorders: everything arrives, and
/// the device forgets nothing that the server has not stored.
#[test]
fn everything_arrives_over_a_link_that_loses_repeats_and_reorders() {
    for seed in 0..200u64 {
        let mut random = Random(seed * 7919 + 1);
        let samples: Vec<_> = (0..6).map(|n| (digest(n), 1 + u32::from(n) % 5)).collect();
        let memory = Memory::new(100, &samples);
        let sizes: HashMap<Digest, u32> = samples.iter().copied().collect();
        let mut window = window();
        let (mut stored_records, mut stored_chunks) = (BTreeSet::new(), BTreeSet::new());
        let mut acks: Vec<Ack> = Vec::new();
        let mut now = Duration::ZERO;
        for round in 0.. {
            assert!(round < 5_000, "seed {seed}: stuck with {} records", memory.records.borrow().len());
            if memory.is_empty() {
                break;
            }
            now += Duration::from_secs(random.below(30));
            if random.below(20) == 0 {
                window.reset();
                acks.clear();
            }
            for outgoing in drain(&mut window, now, &memory) {
                window.published(matches!(outgoing, Outgoing::Chunk(..)));
                if random.below(4) == 0 {
                    continue;
                }
                match outgoing {
                    Outgoing::Telemetry(key) => {
                        stored_records.extend(key.first.seq..=key.last_seq);
                        acks.push(telemetry(key.first.seq, key.last_seq));
                    }
                    Outgoing::Manifest(d) => acks.push(answer(d, sizes[&d], &stored_chunks)),
                    Outgoing::Chunk(d, index) => {
                        stored_chunks.insert((d, index));
                        acks.push(answer(d, sizes[&d], &stored_chunks));
                    }
                }
            }
            while !acks.is_empty() {
                let at = random.below(acks.len() as u64) as usize;
                let ack = if random.below(4) == 0 { acks[at].clone() } else { acks.swap_remove(at) };
                if random.below(5) == 0 {
                    continue;
                }
                for forget in window.acknowledged(ack, now) {
                    match &forget {
                        Forget::Telemetry(t) => {
                            assert!((t.first_seq..=t.last_seq).all(|seq| stored_records.contains(&seq)));
                        }
                        Forget::Sample(d) => {
                            assert!((0..sizes[d]).all(|index| stored_chunks.contains(&(*d, index))));
                        }
                        Forget::Refused(..) => unreachable!("nothing is refused here"),
                    }
                    memory.forget(vec![forget]);
                }
            }
        }
    }
}

fn answer(digest: Digest, chunks: u32, stored: &BTreeSet<(Digest, u32)>) -> Ack {
    let missing: Vec<_> =
        (0..chunks).filter(|index| !stored.contains(&(digest, *index))).map(|i| (i, i + 1)).collect();
    sample(digest, if missing.is_empty() { SampleState::Done } else { SampleState::Need { missing } })
}

/// SplitMix64, so that a seed replays.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}
