//! When a release on trial has proven itself. Pure: it is given what the frame path counted since the release was
//! swapped in.

use std::time::Duration;

/// What the frame path says about the release that it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrialHealth {
    /// The threads of the frame path run.
    pub alive: bool,
    /// The release was swapped in; the counts are its own.
    pub installed: bool,
    pub judged: u64,
    /// Faults that the release may be to blame for.
    pub faults: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrialRules {
    pub frames_min: u64,
    pub fault_share_max: f64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    Wait,
    Passed,
    Failed(String),
}

/// A trial passes when its time is over and enough frames were judged with few enough faults. Without frames there
/// is no proof, so it waits. It fails at once when it has shown that it can't pass, or took the frame path with it.
pub fn judge(elapsed: Duration, trial: Duration, health: TrialHealth, rules: TrialRules) -> Judgement {
    if !health.alive {
        return Judgement::Failed("the frame path ended under it".into());
    }
    if !health.installed {
        return Judgement::Wait;
    }
    let frames = health.judged + health.faults;
    let share = if frames == 0 { 0.0 } else { health.faults as f64 / frames as f64 };
    let enough = frames >= rules.frames_min;
    if enough && share > rules.fault_share_max {
        return Judgement::Failed(format!("{} of {frames} frames were faults of the release", health.faults));
    }
    let over = elapsed >= trial;
    if over && enough { Judgement::Passed } else { Judgement::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_needs_time_frames_and_few_faults() {
        let rules = TrialRules { frames_min: 10, fault_share_max: 0.1 };
        let trial = Duration::from_secs(60);
        let health = |judged, faults| TrialHealth { alive: true, installed: true, judged, faults };
        for (elapsed_s, health, expected) in [
            (60, health(10, 0), "Passed"),
            (59, health(1000, 0), "Wait"),
            (600, health(9, 0), "Wait"),
            (600, TrialHealth { installed: false, ..health(100, 0) }, "Wait"),
            (60, health(95, 10), "Passed"),
            (1, health(0, 10), "Failed"),
            (1, health(0, 9), "Wait"),
            (1, health(80, 20), "Failed"),
            (1, TrialHealth { alive: false, ..health(80, 0) }, "Failed"),
        ] {
            let verdict = format!("{:?}", judge(Duration::from_secs(elapsed_s), trial, health, rules));
            assert!(verdict.starts_with(expected), "{elapsed_s} s, {health:?}: {verdict}");
        }
    }
}
