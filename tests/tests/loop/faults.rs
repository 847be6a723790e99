//! Processes die and the network goes, at the worst moments. Afterwards nothing that was acknowledged is lost, nothing
//! is there twice, and the device runs a valid release.

use andon_protocol::{
    api::{Device, Rollout},
    state::UpdatePhase,
};
use andon_tests::{
    broker::Mosquitto,
    fleet::{self, succeeded},
    proxy::Weather,
};
use anyhow::Result;

use crate::fixture::{Rig, another_release, release, turn};

#[tokio::test]
async fn an_agent_killed_in_the_middle_of_an_upload() {
    let _turn = turn().await;
    let mut rig = Rig::running().await;
    let mut captured = rig.wait_for_more_than(2).await;

    // With uploads under way that get nowhere.
    rig.mqtt.set(Weather::Stalled);
    captured.extend(rig.wait_for_spooled(3).await);
    rig.agent.kill().unwrap();
    captured.extend(rig.agent.spooled().unwrap());
    rig.mqtt.set(Weather::Fair);
    rig.agent.start().unwrap();
    rig.wait_until_stored(&captured).await;

    // With uploads under way that succeed.
    let before = rig.samples().await.unwrap().len();
    captured.extend(rig.wait_for_more_than(before).await);
    rig.agent.kill().unwrap();
    captured.extend(rig.agent.spooled().unwrap());
    rig.agent.start().unwrap();
    rig.wait_until_stored(&captured).await;

    rig.check_samples().await;
    rig.check_records().await;
    rig.wait_until_runs(1).await;
}

#[tokio::test]
async fn an_agent_killed_in_the_middle_of_an_update() {
    let _turn = turn().await;
    let mut rig = Rig::running().await;
    let second = another_release(rig.dir.path(), 2).await;
    fleet::publish(&rig.api, &second).await.unwrap();

    // In the middle of the download.
    rig.updates.stall_after(1_000_000);
    let rollout: Rollout = fleet::roll_out(&rig.api, &release(2), 3).await.unwrap();
    let stalled = async || {
        rig.check()?;
        Ok((rig.updates.weather() == Weather::Stalled).then_some(()))
    };
    rig.wait("the download to stall", stalled).await;
    rig.agent.kill().unwrap();
    rig.updates.set(Weather::Fair);
    rig.agent.start().unwrap();

    // In the trial.
    let in_trial = async || {
        rig.check()?;
        let update = rig.device().await?.update;
        Ok(update.is_some_and(|u| u.release == release(2) && u.phase == UpdatePhase::Trial).then_some(()))
    };
    rig.wait("the trial of release 2", in_trial).await;
    rig.agent.kill().unwrap();
    rig.agent.start().unwrap();

    rig.wait_until_runs(2).await;
    let over = async || succeeded(rig.rollout(&rollout.id).await?);
    rig.wait("the rollout to be over", over).await;
    let Device { running, previous, .. } = rig.device().await.unwrap();
    assert_eq!((running.map(|r| r.release), previous), (Some(release(2)), Some(release(1))));
    rig.check_records().await;
}

#[tokio::test]
async fn a_server_killed_and_started_again() {
    let _turn = turn().await;
    let mut rig = Rig::running().await;
    let mut captured = rig.wait_for_more_than(2).await;
    rig.kill_server();
    captured.extend(rig.wait_for_spooled(2).await);
    rig.restart_server().await;
    rig.wait_until_stored(&captured).await;
    rig.check_samples().await;
    rig.check_records().await;
}

#[tokio::test]
async fn a_broker_killed_and_started_again() {
    let _turn = turn().await;
    let dir = tempfile::tempdir().unwrap();
    let server_data = dir.path().join("server").join("data");
    let mut broker = Mosquitto::start(&dir.path().join("broker"), &server_data).await.unwrap();
    let config = broker.config();
    let rig = Rig::in_folder(dir, config).await.run_first().await;
    let mut captured = rig.wait_for_more_than(2).await;

    broker.kill().unwrap();
    captured.extend(rig.wait_for_spooled(2).await);
    broker.restart().await.unwrap();
    rig.wait_until_stored(&captured).await;

    // Both ways: what the server wants still reaches the device.
    let second = another_release(rig.dir.path(), 2).await;
    fleet::publish(&rig.api, &second).await.unwrap();
    fleet::roll_out(&rig.api, &release(2), 1).await.unwrap();
    rig.wait_until_runs(2).await;
    rig.check_samples().await;
    rig.check_records().await;
}

#[tokio::test]
async fn a_network_that_is_away_for_a_while() {
    let _turn = turn().await;
    let mut rig = Rig::running().await;
    let mut captured = rig.wait_for_more_than(2).await;
    rig.mqtt.set(Weather::Cut);
    rig.updates.set(Weather::Cut);
    captured.extend(rig.wait_for_spooled(3).await);

    // The line does not stop: verdicts are given without a network.
    rig.agent.new_verdicts().unwrap();
    let mut judged = 0;
    let agent = &mut rig.agent;
    let judges = async || -> Result<Option<()>> {
        agent.check()?;
        judged += agent.new_verdicts()?.iter().filter(|v| v.release == Some(release(1))).count();
        Ok((judged >= 20).then_some(()))
    };
    andon_tests::clock::wait_for("verdicts without a network", crate::fixture::LIMIT, judges).await.unwrap();

    rig.mqtt.set(Weather::Fair);
    rig.updates.set(Weather::Fair);
    rig.wait_until_stored(&captured).await;
    rig.check_samples().await;
    rig.check_records().await;
}
