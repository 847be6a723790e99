//! Moves training runs on: rows towards job folders and back, then new runs where a policy asks for one. Every step is
//! safe to repeat: a crash between two of them costs nothing but the time.

use std::collections::BTreeMap;

use andon_protocol::{
    api::RunState,
    job::{JobResult, OUT_DIR, Outcome},
};

use super::{
    queue,
    runs::{self, Stored},
    start_run,
    step::{JobFacts, Step, step},
};
use crate::{
    app::App,
    audit,
    problem::{Problem, Result},
    releases::{
        self,
        bundle::{self, Bundle},
        models, registry,
        registry::off_thread,
    },
    rollouts::rows::{self as rollouts, NewRollout},
};

const BY: &str = "andon";

pub async fn pass(app: &App) -> Result<()> {
    let active = runs::active(&mut *app.db.reader().acquire().await?).await?;
    let mut failure = None;
    for run in &active {
        if let Err(problem) = advance(app, run).await {
            tracing::warn!(run = run.id, "cannot go on now: {problem}");
            failure = Some(problem);
        }
    }
    // Only what was not active before: a run that just ended is swept in the next pass.
    let (folder, now_ms) = (app.paths.queue(), app.now_ms());
    let ids: Vec<_> = active.into_iter().map(|run| run.id).collect();
    off_thread(move || Ok(queue::sweep(&folder, &ids, now_ms)?)).await?;
    if let Err(problem) = start_run::by_policy(app).await {
        tracing::warn!("cannot start a run by policy now: {problem}");
        failure = Some(problem);
    }
    failure.map_or(Ok(()), Err)
}

async fn advance(app: &App, run: &Stored) -> Result<()> {
    let now_ms = app.now_ms();
    let folder = queue::folder(&app.paths.queue(), &run.id);
    let job: JobFacts = {
        let folder = folder.clone();
        off_thread(move || Ok(queue::read(&folder, now_ms)?)).await?
    };
    let Some(next) = step(&run.facts, &job) else { return Ok(()) };
    match next {
        Step::Queue => {
            let spec = start_run::spec(app, run).await?;
            return off_thread(move || Ok(queue::write(&folder, &spec)?)).await;
        }
        Step::AskToStop => return off_thread(move || Ok(queue::ask_to_stop(&folder)?)).await,
        Step::Running { claim, attempt, progress } => {
            let mut tx = app.db.begin().await?;
            runs::set_running(&mut tx, &run.id, &claim, attempt, progress.as_ref(), now_ms).await?;
            tx.commit().await?;
        }
        Step::Requeue { attempt } => {
            let mut tx = app.db.begin().await?;
            runs::set_queued(&mut tx, &run.id, attempt).await?;
            tx.commit().await?;
            tracing::warn!(run = run.id, attempt, "its worker is gone; it waits for another");
        }
        Step::Take(result) => take(app, run, result).await?,
        Step::End { state, verdict } => end(app, run, state, &verdict, &BTreeMap::new()).await?,
    }
    app.live.publish("run", &run.id, now_ms);
    Ok(())
}

async fn take(app: &App, run: &Stored, result: JobResult) -> Result<()> {
    let state = match result.outcome {
        Outcome::Succeeded => {
            // Whatever is wrong with what the worker left is wrong for good.
            match register(app, run).await {
                Ok(()) => RunState::Succeeded,
                Err(problem) if problem.status.is_client_error() => {
                    let verdict = format!("the worker's release is not accepted: {}", problem.detail);
                    return end(app, run, RunState::Failed, &verdict, &result.metrics).await;
                }
                Err(problem) => return Err(problem),
            }
        }
        Outcome::Refused => RunState::Refused,
        Outcome::Failed => RunState::Failed,
        Outcome::Cancelled => RunState::Cancelled,
    };
    if state == RunState::Succeeded {
        roll_out(app, run, &result.verdict).await?;
    }
    end(app, run, state, &result.verdict, &result.metrics).await
}

/// Checks, signs and registers `out/`. Repeated after a crash: what was moved away already is found in its place.
pub async fn register(app: &App, run: &Stored) -> Result<()> {
    let out = queue::folder(&app.paths.queue(), &run.id).join(OUT_DIR);
    let placed = registry::folder(app, &run.release);
    let bundle: Bundle = {
        let out = out.clone();
        off_thread(move || Ok(bundle::check(if placed.exists() { &placed } else { &out })?)).await?
    };
    let manifest = &bundle.manifest;
    if manifest.release != run.release {
        return Err(Problem::refused(format!("it is {}, asked for was {}", manifest.release, run.release)));
    }
    if manifest.lineage.dataset != run.dataset || manifest.lineage.parent.as_ref() != Some(&run.parent) {
        return Err(Problem::refused("its lineage names another data set or parent"));
    }
    registry::register(app, &out, &bundle, Some(&run.id), BY).await.map(|_| ())
}

/// If the policy says so. The run's id keeps a second rollout from being made.
pub async fn roll_out(app: &App, run: &Stored, verdict: &str) -> Result<()> {
    let now_ms = app.now_ms();
    let mut tx = app.db.begin().await?;
    let policy = models::get(&mut tx, run.release.model()).await?.policy;
    let made: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM rollout WHERE run = $1")
        .bind(&run.id)
        .fetch_one(&mut *tx)
        .await?;
    if !policy.auto_rollout || made > 0 {
        return Ok(());
    }
    let why =
        format!("training run {} passed the gate and the policy rolls out by itself: {verdict}", run.id);
    let new = NewRollout {
        release: &run.release,
        waves: &policy.waves,
        trial_s: policy.trial_s,
        by: BY,
        why: &why,
        run: Some(&run.id),
    };
    match rollouts::create(&mut tx, &new, now_ms).await {
        Ok(id) => {
            audit::record(&mut tx, now_ms, BY, "rollout.create", &id, &run.release.to_string()).await?;
            tx.commit().await?;
            app.live.publish("rollout", &id, now_ms);
            app.wake.rollouts.notify_one();
            Ok(())
        }
        // Another rollout is under way, or there is no device: a person decides.
        Err(problem) if problem.code == "conflict" => {
            tracing::warn!(release = %run.release, "not rolled out by itself: {problem}");
            Ok(())
        }
        Err(problem) => Err(problem),
    }
}

async fn end(
    app: &App,
    run: &Stored,
    state: RunState,
    verdict: &str,
    metrics: &BTreeMap<String, f64>,
) -> Result<()> {
    let now_ms = app.now_ms();
    // A candidate that a crash left half made is no release of a run that failed.
    let mut tx = app.db.begin().await?;
    runs::finish(&mut tx, &run.id, state, verdict, metrics, now_ms).await?;
    if state != RunState::Succeeded && !registry::folder(app, &run.release).exists() {
        releases::rows::delete_candidate(&mut tx, &run.release).await?;
    }
    audit::record(&mut tx, now_ms, BY, "run.end", &run.id, &crate::db::word(&state)).await?;
    tx.commit().await?;
    tracing::info!(run = run.id, ?state, "{verdict}");
    app.live.publish("run", &run.id, now_ms);
    Ok(())
}
