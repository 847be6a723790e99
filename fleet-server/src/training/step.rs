//! What is next for a training run, as a pure function of its row and its job folder.

use andon_protocol::{
    api::RunState,
    job::{Claim, JobResult, LEASE_S, Outcome, Progress},
};

/// Workers that may die over one job before it is given up.
pub const ATTEMPTS_MAX: u32 = 3;

/// The row.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFacts {
    pub state: RunState,
    /// Claims seen so far.
    pub attempt: u32,
    /// The claim seen last.
    pub claim: Option<Claim>,
    pub cancel: bool,
}

/// The folder.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JobFacts {
    /// Whether `spec.json` is there.
    pub exists: bool,
    pub claim: Option<Claim>,
    /// Milliseconds since the claim was renewed.
    pub claim_age_ms: i64,
    pub progress: Option<Progress>,
    /// `Err`: there is a result and it makes no sense.
    pub result: Option<Result<JobResult, String>>,
    pub cancel: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Write the job folder.
    Queue,
    /// Ask the worker to stop.
    AskToStop,
    /// A worker has it: note its claim and what it says.
    Running { claim: Claim, attempt: u32, progress: Option<Progress> },
    /// The worker is gone; the job waits for another. A worker that gave it back does not count as an attempt.
    Requeue { attempt: u32 },
    /// Take the result: a release to be registered, or the reason why there is none.
    Take(JobResult),
    /// Over without a result.
    End { state: RunState, verdict: String },
}

/// `None`: wait.
pub fn step(run: &RunFacts, job: &JobFacts) -> Option<Step> {
    if !matches!(run.state, RunState::Queued | RunState::Running) {
        return None;
    }
    match &job.result {
        Some(Ok(result)) if run.cancel && result.outcome != Outcome::Cancelled => {
            // It was faster than the request. A person said stop: what it made is not published.
            return Some(end(RunState::Cancelled, "cancelled on request"));
        }
        Some(Ok(result)) => return Some(Step::Take(result.clone())),
        Some(Err(why)) => {
            return Some(end(RunState::Failed, &format!("the worker's result cannot be read: {why}")));
        }
        None => {}
    }
    let held = job.claim.as_ref().filter(|_| job.claim_age_ms < LEASE_S as i64 * 1000);
    if run.cancel {
        return match held {
            Some(_) if job.cancel => None,
            Some(_) => Some(Step::AskToStop),
            None => Some(end(RunState::Cancelled, "cancelled on request")),
        };
    }
    if !job.exists {
        return Some(Step::Queue);
    }
    match held {
        Some(claim) => {
            let attempt = if run.claim.as_ref() == Some(claim) { run.attempt } else { run.attempt + 1 };
            if attempt > ATTEMPTS_MAX {
                return Some(end(RunState::Failed, &format!("{ATTEMPTS_MAX} workers died over it")));
            }
            Some(Step::Running { claim: claim.clone(), attempt, progress: job.progress.clone() })
        }
        None if run.state != RunState::Running => None,
        None if job.claim.is_none() => Some(Step::Requeue { attempt: run.attempt.saturating_sub(1) }),
        None if run.attempt >= ATTEMPTS_MAX => {
            Some(end(RunState::Failed, &format!("{ATTEMPTS_MAX} workers died over it")))
        }
        None => Some(Step::Requeue { attempt: run.attempt }),
    }
}

fn end(state: RunState, verdict: &str) -> Step {
    Step::End { state, verdict: verdict.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(pid: u32) -> Claim {
        Claim { worker: "w".into(), pid }
    }

    fn result(outcome: Outcome) -> JobResult {
        JobResult { outcome, verdict: "v".into(), metrics: Default::default(), seconds: Default::default() }
    }

    #[test]
    fn cases() {
        use RunState::*;
        let queued = RunFacts { state: Queued, attempt: 0, claim: None, cancel: false };
        let running = |attempt| RunFacts { state: Running, attempt, claim: Some(claim(1)), cancel: false };
        let cancelled = |run: RunFacts| RunFacts { cancel: true, ..run };
        let waiting = JobFacts { exists: true, ..Default::default() };
        let held =
            |pid, age_ms| JobFacts { claim: Some(claim(pid)), claim_age_ms: age_ms, ..waiting.clone() };
        let with_result = |outcome| JobFacts { result: Some(Ok(result(outcome))), ..waiting.clone() };
        let lease_ms = LEASE_S as i64 * 1000;
        let runs = |pid, attempt| Some(Step::Running { claim: claim(pid), attempt, progress: None });
        let rows = [
            ("no folder yet", queued.clone(), JobFacts::default(), Some(Step::Queue)),
            ("the folder was lost", running(1), JobFacts::default(), Some(Step::Queue)),
            ("nobody took it", queued.clone(), waiting.clone(), None),
            ("taken", queued.clone(), held(1, 0), runs(1, 1)),
            ("goes on", running(1), held(1, 5), runs(1, 1)),
            ("taken by the next", running(1), held(2, 0), runs(2, 2)),
            ("the worker died", running(1), held(1, lease_ms), Some(Step::Requeue { attempt: 1 })),
            ("given back", running(2), waiting.clone(), Some(Step::Requeue { attempt: 1 })),
            ("a fourth worker", running(3), held(2, 0), Some(end(Failed, "3 workers died over it"))),
            ("the third died", running(3), held(1, lease_ms), Some(end(Failed, "3 workers died over it"))),
            (
                "done",
                running(1),
                with_result(Outcome::Succeeded),
                Some(Step::Take(result(Outcome::Succeeded))),
            ),
            // The server was away all the time.
            (
                "done unseen",
                queued.clone(),
                with_result(Outcome::Refused),
                Some(Step::Take(result(Outcome::Refused))),
            ),
            (
                "bad result",
                running(1),
                JobFacts { result: Some(Err("x".into())), ..waiting.clone() },
                Some(end(Failed, "the worker's result cannot be read: x")),
            ),
            (
                "cancel before start",
                cancelled(queued.clone()),
                JobFacts::default(),
                Some(end(Cancelled, "cancelled on request")),
            ),
            (
                "cancel while queued",
                cancelled(queued.clone()),
                waiting.clone(),
                Some(end(Cancelled, "cancelled on request")),
            ),
            ("cancel while held", cancelled(running(1)), held(1, 0), Some(Step::AskToStop)),
            ("asked already", cancelled(running(1)), JobFacts { cancel: true, ..held(1, 0) }, None),
            (
                "died before it stopped",
                cancelled(running(1)),
                held(1, lease_ms),
                Some(end(Cancelled, "cancelled on request")),
            ),
            (
                "stopped",
                cancelled(running(1)),
                with_result(Outcome::Cancelled),
                Some(Step::Take(result(Outcome::Cancelled))),
            ),
            (
                "too late",
                cancelled(running(1)),
                with_result(Outcome::Succeeded),
                Some(end(Cancelled, "cancelled on request")),
            ),
            ("over", RunFacts { state: Refused, ..running(1) }, held(1, 0), None),
        ];
        for (name, run, job, expected) in rows {
            assert_eq!(step(&run, &job), expected, "{name}");
        }
    }
}
