//! A server killed in the middle of a training run: the run is not lost, not doubled, and comes to an end.

use andon_protocol::api::{DataSet, NewRun, Release, RunState, TrainingRun};
use andon_tests::dataset;

use crate::fixture::{MODEL, Rig, small_dataset, turn};

#[tokio::test]
async fn a_server_killed_in_the_middle_of_training() {
    let _turn = turn().await;
    let mut rig = Rig::running().await;
    let tar = dataset::tar_of_folder(small_dataset().await).unwrap();
    let _: DataSet = rig.api.post_tar(&format!("/datasets?model={MODEL}"), tar).await.unwrap();
    let run: TrainingRun = rig.api.post("/runs", &NewRun { model: MODEL.to_owned() }).await.unwrap();
    let path = format!("/runs/{}", run.id);

    let under_way = async || {
        rig.check()?;
        let run: TrainingRun = rig.api.get(&path).await?;
        Ok((run.state == RunState::Running && run.progress > 0.0).then_some(()))
    };
    rig.wait("the training to be under way", under_way).await;
    rig.kill_server();
    rig.restart_server().await;

    let over = async || {
        rig.check()?;
        let run: TrainingRun = rig.api.get(&path).await?;
        Ok(Some(run).filter(|r| !matches!(r.state, RunState::Queued | RunState::Running)))
    };
    let run = rig.wait("the training to be over", over).await;
    // Whether the new model is better is not the question here.
    assert!(matches!(run.state, RunState::Succeeded | RunState::Refused), "{run:?}");
    assert!(run.verdict.is_some_and(|v| !v.is_empty()));

    let runs: Vec<TrainingRun> = rig.api.list(&format!("/runs?model={MODEL}")).await.unwrap();
    assert_eq!(runs.len(), 1, "{runs:?}");
    let releases: Vec<Release> = rig.api.list(&format!("/releases?model={MODEL}")).await.unwrap();
    assert_eq!(releases.len(), if run.state == RunState::Succeeded { 2 } else { 1 }, "{releases:?}");
    rig.check_records().await;
}
