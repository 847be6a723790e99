//! One report, one expectation, as rows; then whole rollouts with devices that do anything.

use proptest::prelude::*;

use andon_protocol::{
    BootId,
    state::{Running, UpdateReport},
};

use super::*;
use crate::rollouts::waves;

const SOAK_S: u32 = 60;

fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

fn release(version: u32) -> ReleaseId {
    ReleaseId::new("cell", version).unwrap()
}

fn model(version: u32) -> Digest {
    Digest::of(&version.to_be_bytes())
}

/// A report of a device that judges with `active` and says of an update for `rollout` that it is in `phase`.
fn report(active: Option<u32>, update: Option<(u32, &str, UpdatePhase)>) -> Reported {
    Reported {
        boot: BootId::from_random([0; 16]),
        agent_version: "1".into(),
        generation: 1,
        active: active.map(|v| Running { release: release(v), model: model(v), engine: "tract".into() }),
        previous: None,
        update: update.map(|(v, rollout, phase)| UpdateReport {
            release: release(v),
            rollout: Some(rollout.into()),
            phase,
            bytes_done: 0,
            bytes_total: 0,
            detail: Some("detail".into()),
        }),
        drift: Default::default(),
        spool: Default::default(),
    }
}

fn facts(devices: usize, shares: &[u8]) -> RolloutFacts {
    let waves: Vec<_> = shares.iter().map(|&percent| Wave { percent, soak_s: SOAK_S }).collect();
    let ids: Vec<_> = (0..devices).map(|i| id(&format!("d{i}"))).collect();
    let devices = waves::assign("r", &waves, &ids).into_iter().map(|(device, wave)| DeviceFacts {
        device,
        wave,
        state: DeviceState::Waiting,
        since_ms: 0,
        offered_ms: None,
        before: Some(release(1)),
        bound: false,
        reported: Some(report(Some(1), None)),
        last_seen_ms: None,
    });
    RolloutFacts {
        id: "r".into(),
        release: release(2),
        model: model(2),
        release_withdrawn: false,
        state: RolloutState::Running,
        devices: devices.collect(),
        waves,
        wave: 0,
        trial_s: 10,
        deadlines: Deadlines { silence_s: 100, outcome_s: 1000 },
    }
}

/// Decides and applies until nothing is left, and gives what was done.
fn settle(facts: &mut RolloutFacts, now_ms: i64) -> Vec<Action> {
    let mut done = Vec::new();
    for _ in 0..rounds_max(facts) {
        let actions = decide(facts, now_ms);
        if actions.is_empty() {
            return done;
        }
        for action in actions {
            apply(facts, &action, now_ms);
            done.push(action);
        }
    }
    panic!("no end after {} rounds: {:?}", rounds_max(facts), decide(facts, now_ms));
}

#[test]
fn a_report_is_read_by_what_the_device_judges_with() {
    use DeviceState::*;
    use UpdatePhase as P;
    // (recorded, active, update, seconds since the offer, what is recorded then)
    type Row = (DeviceState, Option<u32>, Option<(u32, &'static str, P)>, i64, DeviceState);
    let rows: [Row; 22] = [
        (Offered, Some(1), None, 1, Offered),
        (Offered, Some(1), Some((2, "r", P::Downloading)), 1, Downloading),
        (Offered, Some(1), Some((2, "r", P::SelfTest)), 1, Downloading),
        (Offered, Some(2), Some((2, "r", P::Trial)), 1, Trial),
        (Trial, Some(2), Some((2, "r", P::Committed)), 1, Committed),
        // It ran the release before it was asked to.
        (Offered, Some(2), None, 1, Committed),
        (Offered, Some(2), Some((2, "earlier", P::Committed)), 1, Committed),
        // Not that of a trial which another rollout began.
        (Offered, Some(2), Some((2, "earlier", P::Trial)), 1, Offered),
        // Told that it is installed, and another model judges (hawkBit #3185).
        (Trial, Some(1), Some((2, "r", P::Committed)), 1, Failed),
        // Its process starts: nothing is loaded yet.
        (Trial, None, Some((2, "r", P::Committed)), 1, Trial),
        (Committed, None, Some((2, "r", P::Committed)), 1, Committed),
        (Trial, Some(1), Some((2, "r", P::RolledBack)), 1, RolledBack),
        (Downloading, Some(1), Some((2, "r", P::Failed)), 1, Failed),
        // Old news of another rollout.
        (Offered, Some(1), Some((2, "earlier", P::Failed)), 1, Offered),
        (Offered, Some(1), Some((3, "r", P::Failed)), 1, Offered),
        // Fell back after the commit.
        (Committed, Some(1), Some((2, "r", P::Committed)), 1, RolledBack),
        (Committed, Some(1), Some((2, "r", P::RolledBack)), 1, RolledBack),
        (Offered, Some(1), None, 100, Offered),
        (Offered, Some(1), None, 101, Silent),
        (Committed, Some(2), Some((2, "r", P::Committed)), 101, Silent),
        (Waiting, Some(1), None, 5000, Waiting),
        // A failure stays one, whatever is said later.
        (Failed, Some(2), Some((2, "r", P::Committed)), 1, Failed),
    ];
    for (i, (recorded, active, update, after_s, expected)) in rows.into_iter().enumerate() {
        let mut facts = facts(1, &[100]);
        let device = &mut facts.devices[0];
        device.state = recorded;
        device.offered_ms = (recorded != Waiting).then_some(0);
        device.reported = Some(report(active, update));
        let news = facts.devices.iter().filter_map(|d| observe(&facts, d, after_s * 1000)).next();
        let found = match &news {
            Some(Action::Record { state, .. }) => *state,
            _ => recorded,
        };
        assert_eq!(found, expected, "row {i}: {news:?}");
    }
    // Another content under the release's name is not the release.
    let mut facts = facts(1, &[100]);
    let mut lying = report(Some(2), Some((2, "r", P::Committed)));
    lying.active.as_mut().unwrap().model = model(7);
    let device = &mut facts.devices[0];
    (device.state, device.offered_ms, device.reported) = (Trial, Some(0), Some(lying));
    assert!(matches!(&decide(&facts, 1)[..], [Action::Record { state: Failed, .. }]));
}

#[test]
fn a_device_that_talks_but_comes_to_no_end_fails_too() {
    let mut facts = facts(1, &[100]);
    settle(&mut facts, 0);
    for now_s in (0..=1010).step_by(50) {
        facts.devices[0].last_seen_ms = Some(now_s * 1000);
        assert_eq!(decide(&facts, now_s * 1000), [], "at {now_s} s");
    }
    facts.devices[0].last_seen_ms = Some(1_011_000);
    let done = settle(&mut facts, 1_011_000);
    assert!(
        matches!(&done[0], Action::Record { state: DeviceState::Failed, detail: Some(d), .. } if d.contains("no outcome within 1010 s"))
    );
    assert_eq!(facts.state, RolloutState::Halted);
}

fn commit(facts: &mut RolloutFacts) {
    for device in facts.devices.iter_mut().filter(|d| d.state == DeviceState::Offered) {
        device.reported = Some(report(Some(2), Some((2, "r", UpdatePhase::Committed))));
    }
}

#[test]
fn a_good_release_goes_wave_by_wave() {
    let mut facts = facts(10, &[10, 50, 100]);
    let mut now_ms = 0;
    for (wave, count) in [(0, 1), (1, 4), (2, 5)] {
        let offers =
            settle(&mut facts, now_ms).into_iter().filter(|a| matches!(a, Action::Offer { .. })).count();
        assert_eq!((facts.wave, offers), (wave, count));
        commit(&mut facts);
        now_ms += 1000;
        settle(&mut facts, now_ms);
        // Not before the soak is over.
        now_ms += i64::from(SOAK_S) * 1000 - 1;
        facts.devices.iter_mut().for_each(|d| d.last_seen_ms = Some(now_ms));
        assert_eq!(settle(&mut facts, now_ms), []);
        now_ms += 1;
    }
    let last = settle(&mut facts, now_ms);
    assert!(
        matches!(&last[..], [Action::Finish { state: RolloutState::Succeeded, why }] if why.contains("5 of 5"))
    );
    assert_eq!(settle(&mut facts, now_ms * 10), []);
}

#[test]
fn a_halt_sends_the_wave_back_and_leaves_the_proven_ones() {
    let mut facts = facts(10, &[10, 50, 100]);
    settle(&mut facts, 0);
    commit(&mut facts);
    settle(&mut facts, 0);
    settle(&mut facts, 60_000);
    assert_eq!(facts.wave, 1);
    commit(&mut facts);
    let bad = facts.devices.iter().position(|d| d.wave == 1).unwrap();
    facts.devices[bad].reported = Some(report(Some(1), Some((2, "r", UpdatePhase::RolledBack))));
    let done = settle(&mut facts, 61_000);
    let halt = done.iter().position(
        |a| matches!(a, Action::Finish { state: RolloutState::Halted, why } if why.contains("rolled back")),
    );
    let back =
        done.iter().filter(|a| matches!(a, Action::SendBack { to: Some(r), .. } if *r == release(1))).count();
    assert!(halt.is_some());
    assert_eq!(back, 4);
    for device in &facts.devices {
        assert_eq!(device.bound, device.wave == 0, "{device:?}");
    }
    // A withdrawn release halts too.
    let mut facts = self::facts(3, &[34, 100]);
    settle(&mut facts, 0);
    facts.release_withdrawn = true;
    settle(&mut facts, 1);
    assert_eq!(facts.state, RolloutState::Halted);
}

#[test]
fn a_pause_stops_the_clock_and_nothing_else() {
    let mut facts = facts(3, &[34, 100]);
    settle(&mut facts, 0);
    facts.state = RolloutState::Paused;
    commit(&mut facts);
    assert!(matches!(&settle(&mut facts, 1)[..], [Action::Record { state: DeviceState::Committed, .. }]));
    assert_eq!(settle(&mut facts, 10_000_000), []);
    facts.state = RolloutState::Running;
    facts.devices.iter_mut().for_each(|d| d.last_seen_ms = Some(10_000_000));
    assert_eq!(settle(&mut facts, 10_000_000).len(), 3);
    facts.state = RolloutState::Paused;
    facts.devices[2].reported = Some(report(Some(1), Some((2, "r", UpdatePhase::Failed))));
    settle(&mut facts, 10_000_001);
    assert_eq!(facts.state, RolloutState::Halted);
}

// ---- devices that do anything ----

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Device by index reports that phase and judges accordingly.
    Report(usize, UpdatePhase),
    /// It says committed, and the old model judges.
    Lie(usize),
    /// It judges with the old model again, and says nothing of an update.
    FallBack(usize),
    /// Its process starts anew.
    Restart(usize),
    Time(i64),
    Seen(usize),
    Pause,
    Resume,
    Abort,
    Withdraw,
    /// The server starts anew between two actions of a pass: only so many of them were done.
    Crash(usize),
}

fn step() -> impl Strategy<Value = Step> {
    use UpdatePhase::*;
    let device = 0..12_usize;
    prop_oneof![
        30 => (device.clone(), proptest::sample::select(vec![Downloading, Trial, Committed, Committed, Committed]))
            .prop_map(|(d, p)| Step::Report(d, p)),
        1 => (device.clone(), proptest::sample::select(vec![RolledBack, Failed])).prop_map(|(d, p)| Step::Report(d, p)),
        1 => device.clone().prop_map(Step::Lie),
        1 => device.clone().prop_map(Step::FallBack),
        3 => device.clone().prop_map(Step::Restart),
        10 => (1..70_000_i64).prop_map(Step::Time),
        10 => device.prop_map(Step::Seen),
        2 => Just(Step::Pause),
        3 => Just(Step::Resume),
        1 => Just(Step::Abort),
        1 => Just(Step::Withdraw),
        4 => (0..3_usize).prop_map(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_devices_and_people_do(
        count in 1..12_usize,
        shares in proptest::sample::select(vec![vec![100], vec![10, 100], vec![20, 60, 100], vec![1, 2, 50, 100]]),
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mut facts = facts(count, &shares);
        let mut now_ms = 0;
        let mut over = false;
        for step in steps {
            let mut actions_max = usize::MAX;
            match step {
                Step::Report(i, phase) => {
                    let active = if matches!(phase, UpdatePhase::Trial | UpdatePhase::Committed) { 2 } else { 1 };
                    let device = &mut facts.devices[i % count];
                    // A device reports on nothing that it was not asked for.
                    if device.offered_ms.is_some() {
                        device.reported = Some(report(Some(active), Some((2, "r", phase))));
                        device.last_seen_ms = Some(now_ms);
                    }
                }
                Step::Lie(i) => {
                    facts.devices[i % count].reported = Some(report(Some(1), Some((2, "r", UpdatePhase::Committed))));
                }
                Step::FallBack(i) => facts.devices[i % count].reported = Some(report(Some(1), None)),
                Step::Restart(i) => {
                    if let Some(reported) = &mut facts.devices[i % count].reported {
                        reported.active = None;
                    }
                }
                Step::Time(ms) => now_ms += ms,
                Step::Seen(i) => facts.devices[i % count].last_seen_ms = Some(now_ms),
                Step::Pause if facts.state == RolloutState::Running => facts.state = RolloutState::Paused,
                Step::Resume if facts.state == RolloutState::Paused => facts.state = RolloutState::Running,
                Step::Abort if !over => facts.state = RolloutState::Aborted,
                Step::Withdraw => facts.release_withdrawn = true,
                Step::Pause | Step::Resume | Step::Abort => {}
                Step::Crash(done) => actions_max = done,
            }
            let mut rounds = 0;
            loop {
                let actions = decide(&facts, now_ms);
                if actions.is_empty() || actions_max == 0 {
                    break;
                }
                rounds += 1;
                prop_assert!(rounds <= rounds_max(&facts));
                for action in actions.into_iter().take(actions_max) {
                    check_action(&facts, &action, over)?;
                    apply(&mut facts, &action, now_ms);
                    actions_max -= 1;
                }
            }
            over |= !matches!(facts.state, RolloutState::Running | RolloutState::Paused);
            let offered = facts.devices.iter().filter(|d| d.offered_ms.is_some()).count();
            prop_assert!(offered <= waves::share(&facts.waves, facts.wave as usize, count));
        }
        // In the end, once the server is left alone, each device is asked for the old or the new release, and the
        // new one only where the rollout went well so far.
        for _ in 0..rounds_max(&facts) {
            for action in decide(&facts, now_ms) {
                apply(&mut facts, &action, now_ms);
            }
        }
        prop_assert_eq!(decide(&facts, now_ms), vec![]);
        for device in &facts.devices {
            match facts.state {
                RolloutState::Halted => prop_assert!(!(device.bound && (device.wave == facts.wave || is_failure(device.state)))),
                RolloutState::Aborted => prop_assert!(!device.bound || device.state == DeviceState::Committed),
                RolloutState::Succeeded => prop_assert!(device.bound && device.state == DeviceState::Committed),
                RolloutState::Running | RolloutState::Paused => prop_assert_eq!(device.bound, device.offered_ms.is_some()),
            }
        }
    }
}

fn check_action(facts: &RolloutFacts, action: &Action, over: bool) -> Result<(), TestCaseError> {
    let runs_new = |d: &DeviceFacts| {
        d.reported.as_ref().is_some_and(|r| r.active.as_ref().is_none_or(|a| a.release == facts.release))
    };
    match action {
        Action::Offer { device } => {
            prop_assert!(!over && facts.state == RolloutState::Running && !facts.release_withdrawn);
            let offered = facts.devices.iter().find(|d| d.device == *device).unwrap();
            for before in facts.devices.iter().filter(|d| d.wave < offered.wave) {
                prop_assert!(
                    before.state == DeviceState::Committed && runs_new(before),
                    "{:?} before {:?}",
                    before,
                    offered
                );
            }
        }
        Action::Advance { wave, .. } => prop_assert_eq!(*wave, facts.wave + 1),
        Action::SendBack { device, to } => {
            let device = facts.devices.iter().find(|d| d.device == *device).unwrap();
            prop_assert!(to == &device.before && over | !matches!(facts.state, RolloutState::Running));
        }
        Action::Record { .. } => prop_assert!(!over),
        Action::Finish { .. } => prop_assert!(!over),
    }
    Ok(())
}
