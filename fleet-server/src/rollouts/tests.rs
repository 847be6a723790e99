//! Rollouts through the real router and the reconciler, on both databases; devices are rows that report.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use serde_json::json;

use andon_protocol::{
    BootId, DeviceId, Digest, ReleaseId,
    api::{Page, Role, Rollout, RolloutDeviceState, RolloutState},
    state::{Desired, Reported, Running, UpdatePhase, UpdateReport},
};

use super::runner;
use crate::{
    devices::desired,
    releases::tests::publish,
    testing::{NOW_MS, Reply, TestApp, each_app},
};

const SOAK_S: i64 = 60;

async fn create(test: &TestApp, version: u32) -> Reply {
    let token = test.token(Role::Operator).await;
    let waves = json!([{ "percent": 34, "soak_s": SOAK_S }, { "percent": 100, "soak_s": 0 }]);
    let body = json!({ "release": format!("cell/{version}"), "waves": waves, "trial_s": 5 });
    test.call(Method::POST, "/api/v1/rollouts", &token, Some(body)).await
}

async fn get(test: &TestApp, id: &str) -> Rollout {
    let token = test.token(Role::Viewer).await;
    test.get(&format!("/api/v1/rollouts/{id}"), &token).await.json()
}

async fn act(test: &TestApp, id: &str, action: &str, tag: &str) -> Reply {
    let token = test.token(Role::Operator).await;
    let request = Request::post(format!("/api/v1/rollouts/{id}/{action}"))
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::IF_MATCH, tag);
    test.send(request.body(Body::empty()).unwrap()).await
}

async fn asked(test: &TestApp, device: &DeviceId) -> Desired {
    desired::read(&mut test.app.db.reader().acquire().await.unwrap(), device).await.unwrap()
}

/// What ingest writes when a device reports.
async fn report(test: &TestApp, device: &DeviceId, active: u32, update: Option<(u32, &str, UpdatePhase)>) {
    let release = |version| ReleaseId::new("cell", version).unwrap();
    let reported = Reported {
        boot: BootId::from_random([0; 16]),
        agent_version: "1".into(),
        generation: 1,
        active: Some(Running {
            release: release(active),
            model: Digest::of(format!("model of cell/{active}").as_bytes()),
            engine: "tract".into(),
        }),
        previous: None,
        update: update.map(|(version, rollout, phase)| UpdateReport {
            release: release(version),
            rollout: Some(rollout.into()),
            phase,
            bytes_done: 0,
            bytes_total: 0,
            detail: Some("the self-test gave other scores".into()),
        }),
        drift: Default::default(),
        spool: Default::default(),
    };
    sqlx::query("UPDATE device SET reported = $1, running = $2, last_seen_ms = $3 WHERE id = $4")
        .bind(serde_json::to_string(&reported).unwrap())
        .bind(format!("cell/{active}"))
        .bind(test.app.now_ms())
        .bind(device.as_str())
        .execute(test.app.db.writer())
        .await
        .unwrap();
}

/// Three devices, and `cell/1` to `cell/2` published.
async fn fleet(test: &TestApp) -> Vec<DeviceId> {
    publish(test, 1).await;
    publish(test, 2).await;
    let mut devices = Vec::new();
    for id in ["d1", "d2", "d3"] {
        devices.push(test.device(id).await);
    }
    devices
}

/// Brings `cell/VERSION` to all; returns the rollout.
async fn roll_out_whole(test: &TestApp, version: u32) -> Rollout {
    let id = create(test, version).await.json::<Rollout>().id;
    for _ in 0..2 {
        runner::pass(&test.app).await.unwrap();
        for device in get(test, &id).await.devices {
            if device.state == RolloutDeviceState::Offered {
                report(test, &device.device, version, Some((version, &id, UpdatePhase::Committed))).await;
            }
        }
        runner::pass(&test.app).await.unwrap();
        test.app.clock.advance_ms(SOAK_S * 1000);
        for device in get(test, &id).await.devices {
            sqlx::query("UPDATE device SET last_seen_ms = $1 WHERE id = $2")
                .bind(test.app.now_ms())
                .bind(device.device.as_str())
                .execute(test.app.db.writer())
                .await
                .unwrap();
        }
    }
    runner::pass(&test.app).await.unwrap();
    get(test, &id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_goes_from_canary_to_fleet() {
    each_app(async |test| {
        let devices = fleet(&test).await;
        let reply = create(&test, 1).await;
        assert_eq!(reply.status, StatusCode::CREATED);
        let rollout: Rollout = reply.json();
        let again = create(&test, 2).await.problem();
        assert_eq!((again.status, again.detail.contains("under way")), (409, true));

        runner::pass(&test.app).await.unwrap();
        let mut offered = Vec::new();
        for device in &devices {
            if let Some(release) = asked(&test, device).await.release {
                assert_eq!(release.to_string(), "cell/1");
                offered.push(device.clone());
            }
        }
        // One canary; the others are not touched, however often it is looked.
        runner::pass(&test.app).await.unwrap();
        assert_eq!(offered.len(), 1);
        let canary = &offered[0];
        let desired = asked(&test, canary).await;
        assert_eq!((desired.generation, desired.trial_s), (1, 5));
        assert_eq!(desired.rollout.as_deref(), Some(rollout.id.as_str()));

        report(&test, canary, 1, Some((1, &rollout.id, UpdatePhase::Committed))).await;
        runner::pass(&test.app).await.unwrap();
        let now = get(&test, &rollout.id).await;
        assert_eq!((now.state, now.wave), (RolloutState::Running, 0));
        test.app.clock.advance_ms(SOAK_S * 1000);
        runner::pass(&test.app).await.unwrap();
        let now = get(&test, &rollout.id).await;
        assert_eq!(now.wave, 1);
        for device in devices.iter().filter(|d| *d != canary) {
            assert_eq!(asked(&test, device).await.generation, 1);
            report(&test, device, 1, Some((1, &rollout.id, UpdatePhase::Committed))).await;
        }
        runner::pass(&test.app).await.unwrap();
        let done = get(&test, &rollout.id).await;
        assert_eq!(done.state, RolloutState::Succeeded);
        assert!(
            done.finished_ms.is_some()
                && done.devices.iter().all(|d| d.state == RolloutDeviceState::Committed)
        );
        let what: Vec<_> = done.decisions.iter().map(|d| d.what.as_str()).collect();
        assert_eq!(what[0], "made for 3 devices");
        assert_eq!(what[1], format!("cell/1 offered to {canary}"));
        assert_eq!(what[2], "wave 1 begins");
        assert_eq!(*what.last().unwrap(), "succeeded");
        let token = test.token(Role::Viewer).await;
        let release: andon_protocol::api::Release = test.get("/api/v1/releases/cell/1", &token).await.json();
        assert_eq!(release.devices, 3);
        let list: Page<Rollout> = test.get("/api/v1/rollouts", &token).await.json();
        assert_eq!(list.items, [done]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_canary_halts_it_and_goes_back() {
    each_app(async |test| {
        let devices = fleet(&test).await;
        assert_eq!(roll_out_whole(&test, 1).await.state, RolloutState::Succeeded);
        let rollout: Rollout = create(&test, 2).await.json();
        runner::pass(&test.app).await.unwrap();
        let canary = get(&test, &rollout.id).await.devices.into_iter().find(|d| d.wave == 0).unwrap().device;
        assert_eq!(asked(&test, &canary).await.release.unwrap().version(), 2);
        report(&test, &canary, 1, Some((2, &rollout.id, UpdatePhase::Failed))).await;
        runner::pass(&test.app).await.unwrap();
        let halted = get(&test, &rollout.id).await;
        assert_eq!(halted.state, RolloutState::Halted);
        let failed = halted.devices.iter().find(|d| d.device == canary).unwrap();
        assert_eq!(failed.detail.as_deref(), Some("the self-test gave other scores"));
        for device in &devices {
            let desired = asked(&test, device).await;
            assert_eq!(desired.release.unwrap().version(), 1);
        }
        // It is over: nothing changes any more, and another may begin.
        let before = asked(&test, &canary).await;
        test.app.clock.advance_ms(10_000_000);
        runner::pass(&test.app).await.unwrap();
        assert_eq!(asked(&test, &canary).await, before);
        assert_eq!(get(&test, &rollout.id).await, halted);
        assert_eq!(act(&test, &rollout.id, "resume", "*").await.problem().status, 409);
        assert_eq!(create(&test, 2).await.status, StatusCode::CREATED);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_pause_resume_and_abort() {
    each_app(async |test| {
        fleet(&test).await;
        assert_eq!(create(&test, 9).await.problem().status, 404);
        let rollout: Rollout = create(&test, 1).await.json();
        let tag = format!("\"{}\"", rollout.rev);
        let token = test.token(Role::Operator).await;
        let path = format!("/api/v1/rollouts/{}/pause", rollout.id);
        assert_eq!(test.call(Method::POST, &path, &token, None).await.problem().code, "if_match_required");
        let paused: Rollout = act(&test, &rollout.id, "pause", &tag).await.json();
        assert_eq!(paused.state, RolloutState::Paused);
        assert_eq!(act(&test, &rollout.id, "resume", &tag).await.problem().code, "stale");
        runner::pass(&test.app).await.unwrap();
        assert!(get(&test, &rollout.id).await.devices.iter().all(|d| d.state == RolloutDeviceState::Waiting));
        act(&test, &rollout.id, "resume", "*").await.json::<Rollout>();
        runner::pass(&test.app).await.unwrap();
        let canary = get(&test, &rollout.id).await.devices.into_iter().find(|d| d.wave == 0).unwrap();
        assert_eq!(canary.state, RolloutDeviceState::Offered);
        let aborted: Rollout = act(&test, &rollout.id, "abort", "*").await.json();
        assert_eq!(aborted.state, RolloutState::Aborted);
        runner::pass(&test.app).await.unwrap();
        let desired = asked(&test, &canary.device).await;
        assert_eq!((desired.release, desired.rollout, desired.generation), (None, None, 2));
        let last = get(&test, &rollout.id).await;
        assert!(
            last.decisions.iter().any(|d| d.what == "paused" && d.by == "operator"),
            "{:?}",
            last.decisions
        );
        assert_eq!(act(&test, &rollout.id, "burn", "*").await.status, StatusCode::NOT_FOUND);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_for_the_devices_of_its_model() {
    each_app(async |test| {
        publish(&test, 1).await;
        assert_eq!(create(&test, 1).await.problem().status, 409);
        test.device("free").await;
        for (id, running) in [("same", "cell/7"), ("other", "bolt/1")] {
            test.device(id).await;
            sqlx::query("UPDATE device SET running = $1 WHERE id = $2")
                .bind(running)
                .bind(id)
                .execute(test.app.db.writer())
                .await
                .unwrap();
        }
        let rollout: Rollout = create(&test, 1).await.json();
        let mut devices: Vec<_> = rollout.devices.iter().map(|d| d.device.to_string()).collect();
        devices.sort();
        assert_eq!(devices, ["free", "same"]);
        assert_eq!(rollout.created_ms, NOW_MS);
    })
    .await;
}
