//! The updater's state machine, step by step.

use super::*;

const RULES: Rules = Rules { tries: 2 };

fn release(version: u32) -> ReleaseId {
    ReleaseId::new("cell", version).unwrap()
}

fn slot(version: u32) -> Slot {
    Slot { release: release(version), content: Digest::of(&version.to_le_bytes()) }
}

fn desired(generation: u64, version: Option<u32>) -> Event {
    Event::Desired(Desired {
        generation,
        release: version.map(release),
        rollout: Some(format!("r{generation}")),
        trial_s: 5,
        ..Desired::default()
    })
}

/// Applies events; returns the last effects.
fn run(state: &mut State, events: impl IntoIterator<Item = Event>) -> Vec<Effect> {
    let mut last = Vec::new();
    for event in events {
        (*state, last) = step(state.clone(), event, RULES);
    }
    last
}

/// Version 1 committed, and 2 on its way up to `stage`.
fn upgrading(stage: &str) -> State {
    let mut state = State::default();
    run(&mut state, to_trial(1, 1));
    run(&mut state, [Event::TrialPassed]);
    let events = to_trial(2, 2);
    let count = match stage {
        "idle" => 0,
        "fetch" => 1,
        "self-test" => 2,
        "armed" => 3,
        _ => 4,
    };
    run(&mut state, events.into_iter().take(count));
    state
}

fn to_trial(generation: u64, version: u32) -> [Event; 4] {
    [
        desired(generation, Some(version)),
        Event::Fetched(slot(version)),
        Event::SelfTestPassed,
        Event::StartTrial,
    ]
}

fn phase(state: &State) -> (Option<u32>, Option<u32>, UpdatePhase) {
    let version = |slot: &Option<Slot>| slot.as_ref().map(|s| s.release.version());
    (version(&state.active), version(&state.previous), state.report().unwrap().phase)
}

#[test]
fn a_release_goes_all_the_way_and_the_one_before_is_kept() {
    let mut state = upgrading("trial");
    assert_eq!(phase(&state), (Some(1), None, UpdatePhase::Trial));
    assert_eq!(state.to_run(), Some(&slot(2)));
    let effects = run(&mut state, [Event::TrialPassed]);
    assert_eq!(phase(&state), (Some(2), Some(1), UpdatePhase::Committed));
    assert!(matches!(effects[..], [Effect::Announce { phase: UpdatePhase::Committed, .. }, Effect::Collect]));
    assert_eq!(state.kept(), [&slot(2), &slot(1)]);
}

#[test]
fn every_start_takes_a_try_and_without_tries_it_rolls_back_before_loading() {
    let mut state = upgrading("armed");
    assert_eq!(run(&mut state, [Event::Booted])[0], Effect::Load(slot(2)));
    assert_eq!(run(&mut state, [Event::Booted])[0], Effect::Load(slot(2)));
    let effects = run(&mut state, [Event::Booted]);
    assert_eq!(effects[0], Effect::Load(slot(1)));
    assert!(!effects.contains(&Effect::Load(slot(2))));
    assert_eq!(phase(&state), (Some(1), None, UpdatePhase::RolledBack));
}

#[test]
fn power_cycles_without_a_trial_change_nothing() {
    for stage in ["idle", "fetch", "self-test"] {
        let state = upgrading(stage);
        let mut after = state.clone();
        let effects = run(&mut after, (0..20).map(|_| Event::Booted));
        assert_eq!(after, state, "{stage}");
        assert_eq!(effects[0], Effect::Load(slot(1)), "{stage}");
    }
}

#[test]
fn failures_end_where_they_should() {
    for (stage, event, expected) in [
        ("fetch", Event::FetchRefused("x".into()), UpdatePhase::Failed),
        ("self-test", Event::SelfTestFailed("x".into()), UpdatePhase::Failed),
        ("trial", Event::TrialFailed("x".into()), UpdatePhase::RolledBack),
        ("trial", Event::LoadFailed { slot: slot(2), why: "x".into() }, UpdatePhase::RolledBack),
    ] {
        let mut state = upgrading(stage);
        run(&mut state, [event.clone()]);
        assert_eq!(phase(&state), (Some(1), None, expected), "{event:?}");
        // The same rollout is over for this device; the next one is tried.
        assert_eq!(run(&mut state, [desired(2, Some(2))]), [], "{event:?}");
        assert!(state.job.is_none());
        run(&mut state, [desired(3, Some(2))]);
        assert_eq!(state.report().unwrap().phase, UpdatePhase::Downloading, "{event:?}");
    }
}

#[test]
fn a_newer_desired_state_takes_over_at_every_stage() {
    for stage in ["idle", "fetch", "self-test", "armed", "trial"] {
        for (wanted, job) in [(None, None), (Some(1), None), (Some(3), Some(3)), (Some(2), Some(2))] {
            let mut state = upgrading(stage);
            let ran_trial = matches!(stage, "armed" | "trial");
            let effects = run(&mut state, [desired(9, wanted)]);
            let now = state.job.as_ref().map(|job| job.wanted.release.version());
            assert_eq!(now, job, "{stage} {wanted:?}");
            assert_eq!(state.active, Some(slot(1)), "{stage} {wanted:?}");
            assert!(state.bad.is_empty(), "nobody is to blame");
            if ran_trial && wanted != Some(2) {
                assert_eq!(effects[0], Effect::Load(slot(1)), "{stage} {wanted:?}");
            }
            // And an older one changes nothing.
            let before = state.clone();
            assert_eq!(run(&mut state, [desired(8, Some(4))]), []);
            assert_eq!(state, before);
        }
    }
}

#[test]
fn the_same_release_in_a_new_rollout_keeps_what_was_done() {
    let mut state = upgrading("trial");
    run(&mut state, [desired(7, Some(2))]);
    assert_eq!(state.report().unwrap().rollout.as_deref(), Some("r7"));
    assert!(matches!(state.job.as_ref().unwrap().stage, Stage::Trial { tries_left: 1, .. }));
    // A release that runs already is committed for the rollout that asks, once.
    let mut state = upgrading("idle");
    assert_eq!(run(&mut state, [desired(7, Some(1))]).len(), 1);
    assert_eq!(state.report().unwrap().rollout.as_deref(), Some("r7"));
    assert_eq!(run(&mut state, [desired(7, Some(1))]), []);
}

#[test]
fn going_back_is_an_update_like_any_other() {
    let mut state = upgrading("trial");
    run(&mut state, [Event::TrialPassed]);
    run(&mut state, to_trial(3, 1));
    run(&mut state, [Event::TrialPassed]);
    assert_eq!(phase(&state), (Some(1), Some(2), UpdatePhase::Committed));
}

#[test]
fn an_active_release_that_does_not_load_gives_way_to_the_one_before_or_is_fetched_again() {
    let mut state = upgrading("trial");
    run(&mut state, [Event::TrialPassed]);
    let effects = run(&mut state, [Event::LoadFailed { slot: slot(2), why: "bit rot".into() }]);
    assert_eq!(effects[0], Effect::Load(slot(1)));
    assert_eq!(phase(&state), (Some(1), None, UpdatePhase::RolledBack));
    run(&mut state, [Event::LoadFailed { slot: slot(1), why: "bit rot".into() }]);
    assert_eq!((state.active.clone(), state.report().unwrap().phase), (None, UpdatePhase::Downloading));
    assert_eq!(state.job.as_ref().unwrap().wanted.release, release(1));
    // Not the release's fault: it may be had again.
    assert!(state.bad.is_empty());
}

#[test]
fn events_that_do_not_fit_change_nothing() {
    for stage in ["idle", "fetch", "self-test", "trial"] {
        let state = upgrading(stage);
        for event in [
            (stage != "fetch").then(|| Event::Fetched(slot(2))),
            Some(Event::Fetched(slot(9))),
            (stage != "fetch").then(|| Event::FetchRefused("x".into())),
            (stage != "self-test").then_some(Event::SelfTestPassed),
            (stage != "self-test").then(|| Event::SelfTestFailed("x".into())),
            (stage != "trial").then_some(Event::TrialPassed),
            (stage != "trial").then(|| Event::TrialFailed("x".into())),
            (stage != "trial").then_some(Event::StartTrial),
            Some(Event::LoadFailed { slot: slot(9), why: "x".into() }),
        ]
        .into_iter()
        .flatten()
        {
            assert_eq!(
                step(state.clone(), event.clone(), RULES),
                (state.clone(), vec![]),
                "{stage}: {event:?}"
            );
        }
    }
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut state = upgrading("idle");
    for generation in 10..100 {
        run(&mut state, [desired(generation, Some(2)), Event::FetchRefused("ü".repeat(5000))]);
    }
    assert_eq!(state.bad.len(), BAD_MAX);
    assert!(state.outcome.unwrap().detail.unwrap().len() <= DETAIL_BYTES_MAX);
}
