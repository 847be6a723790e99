//! From scores to pass, reject or fault. Anything that is not a sound answer in time is a fault, and a line reads a
//! fault as a reject: there is no way to a pass but a finite score below the threshold.

use andon_protocol::release::Decision;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Reject,
    /// No judgement: the part is to be treated as rejected.
    Fault,
}

/// Why there is no judgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    NoRelease,
    /// The engine had not answered when the deadline came.
    Deadline,
    /// The engine is still at an older frame.
    EngineBusy,
    EngineFailed,
    EnginePanicked,
    /// Scores that are not finite, or not one for each label.
    BadScores,
    CameraFailed,
    /// The camera gives the same picture again and again.
    CameraFrozen,
    /// A newer frame came before this one's turn.
    Dropped,
}

impl Reason {
    /// Whether the release that runs may be to blame. Trials count these.
    pub fn is_of_the_release(self) -> bool {
        matches!(
            self,
            Reason::Deadline
                | Reason::EngineBusy
                | Reason::EngineFailed
                | Reason::EnginePanicked
                | Reason::BadScores
        )
    }
}

/// The class with the highest score, and the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decided {
    pub class: usize,
    pub verdict: Verdict,
}

/// Errors: [`Reason::BadScores`].
pub fn decide(rule: &Decision, labels: usize, scores: &[f32]) -> Result<Decided, Reason> {
    if scores.len() != labels || scores.iter().any(|s| !s.is_finite()) {
        return Err(Reason::BadScores);
    }
    let reject = *scores.get(rule.reject as usize).ok_or(Reason::BadScores)?;
    // Ties go to the lower index, so that equal inputs give equal classes on every platform.
    let best = |best: usize, i: usize| if scores[i] > scores[best] { i } else { best };
    let class = (1..scores.len()).fold(0, best);
    let verdict = if reject >= rule.threshold { Verdict::Reject } else { Verdict::Pass };
    Ok(Decided { class, verdict })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_finite_score_below_the_threshold_passes() {
        let rule = Decision { reject: 1, threshold: 0.4 };
        let decided = |class, verdict| Ok(Decided { class, verdict });
        let cases: &[(&[f32], Result<Decided, Reason>)] = &[
            (&[0.9, 0.1], decided(0, Verdict::Pass)),
            (&[0.6, 0.4], decided(0, Verdict::Reject)),
            (&[0.5, 0.5], decided(0, Verdict::Reject)),
            (&[0.1, 0.9], decided(1, Verdict::Reject)),
            (&[0.1], Err(Reason::BadScores)),
            (&[], Err(Reason::BadScores)),
            (&[0.1, 0.2, 0.7], Err(Reason::BadScores)),
            (&[f32::NAN, 0.1], Err(Reason::BadScores)),
            (&[0.1, f32::INFINITY], Err(Reason::BadScores)),
        ];
        for (scores, expected) in cases {
            assert_eq!(decide(&rule, 2, scores), *expected, "{scores:?}");
        }
        assert_eq!(decide(&Decision { reject: 5, threshold: 0.5 }, 2, &[0.5, 0.5]), Err(Reason::BadScores));
    }
}
