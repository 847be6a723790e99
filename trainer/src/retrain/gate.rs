//! The gate: whether a retrained model may become a release.
//!
//! Three questions, all to the int8 models, both through the device's engine. Is nothing lost on clean images? Is
//! something won on the same images in the look that each drifted device has now? Does what people said of real field
//! images speak against it? The second has hundreds of sure labels, but its look is an estimate; the third is real, but
//! a few dozen images lie by chance by more than a drift costs. So the third refuses when it falls short by more than
//! chance explains (one-sided, 95 %): with few labels the look decides, with many they do.

use andon_protocol::job::Gate;
use andon_runtime::Judgement;

use crate::{
    judge::scores,
    metrics::{self, Rule},
};

/// One-sided 95 % of the normal distribution.
const CHANCE: f64 = 1.645;

/// What old and new model made of one set of labelled images.
#[derive(Default)]
pub(super) struct Exam {
    pub(super) labels: Vec<usize>,
    pub(super) old: Vec<Judgement>,
    pub(super) new: Vec<Judgement>,
}

impl Exam {
    pub(super) fn joined(exams: &[&Exam]) -> Exam {
        Exam {
            labels: exams.iter().flat_map(|e| e.labels.iter().copied()).collect(),
            old: exams.iter().flat_map(|e| e.old.iter().cloned()).collect(),
            new: exams.iter().flat_map(|e| e.new.iter().cloned()).collect(),
        }
    }

    /// `None` of no images.
    pub(super) fn change(&self, rule: Rule, classes: usize) -> Option<Change> {
        if self.labels.is_empty() {
            return None;
        }
        let right = |judged: &[Judgement]| -> Vec<bool> {
            scores(judged).iter().zip(&self.labels).map(|(s, label)| rule.class(s) == *label).collect()
        };
        let balanced =
            |judged: &[Judgement]| metrics::measure(rule, &self.labels, &scores(judged)).balanced_accuracy;
        let pairs: Vec<(usize, bool, bool)> = self
            .labels
            .iter()
            .zip(right(&self.old).into_iter().zip(right(&self.new)))
            .map(|(label, (old, new))| (*label, old, new))
            .collect();
        Some(Change {
            images: self.labels.len(),
            old: balanced(&self.old),
            new: balanced(&self.new),
            error: standard_error(&pairs, classes),
        })
    }
}

/// Balanced accuracy of old and new.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Change {
    pub(super) images: usize,
    pub(super) old: f64,
    pub(super) new: f64,
    /// Standard error of `new - old`.
    pub(super) error: f64,
}

impl Change {
    fn gain(&self) -> f64 {
        self.new - self.old
    }
}

/// Of the difference of two balanced accuracies on the same images, from (class, old right, new right): pairs, so that
/// images on which both agree add nothing.
fn standard_error(pairs: &[(usize, bool, bool)], classes: usize) -> f64 {
    let (mut variance, mut present) = (0.0, 0.0);
    for class in 0..classes {
        let steps: Vec<f64> = pairs
            .iter()
            .filter(|p| p.0 == class)
            .map(|(_, old, new)| f64::from(u8::from(*new)) - f64::from(u8::from(*old)))
            .collect();
        if steps.is_empty() {
            continue;
        }
        let n = steps.len() as f64;
        let mean = steps.iter().sum::<f64>() / n;
        let spread = steps.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
        // No change among n images does not mean that there is none: as if one more had changed.
        variance += spread.max(1.0 / (n + 1.0)) / n;
        present += 1.0;
    }
    variance.sqrt() / f64::max(present, 1.0)
}

/// What the gate decided, in words.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) passed: bool,
    pub(super) words: String,
}

/// `looks`: clean images in the looks of drifted devices; `field`: labelled images of drifted devices that training
/// never saw.
pub(super) fn judge(gate: &Gate, clean: Change, looks: Option<Change>, field: Option<Change>) -> Verdict {
    // Comparisons of means of a few hundred images: a rounding error must not decide.
    const NOTHING: f64 = 1e-9;
    let wanted = gate.drift_gain_min;
    let went = |c: &Change| format!("balanced accuracy went from {:.3} to {:.3}", c.old, c.new);
    let mut words = format!(
        "On {} clean images (golden and validation) {} (a loss of at most {:.3} is allowed)",
        clean.images,
        went(&clean),
        gate.clean_loss_max
    );
    let mut passed = -clean.gain() <= gate.clean_loss_max + NOTHING;
    if let Some(looks) = looks {
        passed &= looks.gain() >= wanted - NOTHING;
        words += &format!(
            "; on {} in the look of the drifted devices {} (a gain of at least {wanted:.3} is wanted)",
            looks.images,
            went(&looks)
        );
    }
    match field {
        None => {
            passed = false;
            words +=
                "; no labelled random sample of a drifted device was there to show a gain on: label some";
        }
        Some(field) => {
            let chance = if looks.is_some() { CHANCE * field.error } else { 0.0 };
            passed &= field.gain() >= wanted - chance - NOTHING;
            words += &format!(
                "; on {} labelled images of drifted devices that training never saw {} (at least {:+.3} is wanted, \
                 chance moves it by {:.3})",
                field.images,
                went(&field),
                wanted - chance,
                field.error
            );
        }
    }
    let word = if passed { "Accepted" } else { "Refused" };
    Verdict { passed, words: format!("{word}: {words}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(images: usize, old: f64, new: f64, error: f64) -> Change {
        Change { images, old, new, error }
    }

    #[test]
    fn each_question_can_refuse() {
        let gate = Gate { agreement_min: 0.98, clean_loss_max: 0.01, drift_gain_min: 0.02 };
        let (clean, look) = (change(400, 0.8, 0.795, 0.01), change(800, 0.7, 0.78, 0.01));
        let field = change(40, 0.7, 0.76, 0.08);
        let passed = |clean, look, field| judge(&gate, clean, look, field).passed;
        assert!(passed(clean, Some(look), Some(field)));
        assert!(!passed(change(400, 0.8, 0.78, 0.01), Some(look), Some(field)), "clean images lost");
        assert!(!passed(clean, Some(change(800, 0.7, 0.71, 0.01)), Some(field)), "nothing won in the look");
        assert!(!passed(clean, Some(look), None), "nobody labelled anything");
        // What few images say against it may be chance; what many say is not.
        assert!(passed(clean, Some(look), Some(change(40, 0.7, 0.65, 0.08))));
        assert!(!passed(clean, Some(look), Some(change(40, 0.7, 0.5, 0.08))));
        assert!(!passed(clean, Some(look), Some(change(4000, 0.7, 0.69, 0.008))));
        // Without a look the real images have to show the gain themselves.
        assert!(passed(clean, None, Some(field)));
        assert!(!passed(clean, None, Some(change(40, 0.7, 0.71, 0.08))));
        let words = judge(&gate, clean, Some(look), None).words;
        assert!(words.starts_with("Refused: On 400 clean images") && words.contains("label some"), "{words}");
    }

    #[test]
    fn the_standard_error_by_hand() {
        // Class 0: of 4 images one won, one lost: variance 0.5 / 4. Class 1: of 4 none changed: (1 / 5) / 4.
        let pairs = [
            (0, false, true),
            (0, true, false),
            (0, true, true),
            (0, false, false),
            (1, true, true),
            (1, true, true),
            (1, true, true),
            (1, false, false),
        ];
        let expected = (0.5f64 / 4.0 + 0.2 / 4.0).sqrt() / 2.0;
        assert!((standard_error(&pairs, 2) - expected).abs() < 1e-12);
        // A third class that nothing shows changes nothing.
        assert!((standard_error(&pairs, 3) - expected).abs() < 1e-12);
        assert_eq!(standard_error(&[], 2), 0.0);
    }
}
