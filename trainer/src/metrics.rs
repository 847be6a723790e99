//! Figures of merit of a classifier, from labels and softmax scores.

use serde::Serialize;

/// What was measured on one set of images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metrics {
    pub images: usize,
    pub accuracy: f64,
    /// Mean over the classes of the share that was recognised.
    pub balanced_accuracy: f64,
    /// Area under the ROC curve of the reject class's score (Mann-Whitney, ties count half).
    pub auc: f64,
    /// `confusion[true class][verdict]`.
    pub confusion: Vec<Vec<usize>>,
}

/// How scores become a class: `reject` from `threshold` on, otherwise the best of the others. The same rule as the
/// device's decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    pub reject: usize,
    pub threshold: f32,
}

impl Rule {
    pub fn class(&self, scores: &[f32]) -> usize {
        if scores[self.reject] >= self.threshold {
            return self.reject;
        }
        let others = (0..scores.len()).filter(|c| *c != self.reject);
        others.max_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a))).unwrap_or(self.reject)
    }
}

/// `labels[i]` is the true class of `scores[i]`; all below the number of scores.
pub fn measure(rule: Rule, labels: &[usize], scores: &[Vec<f32>]) -> Metrics {
    let classes = scores.first().map_or(0, Vec::len);
    let mut confusion = vec![vec![0; classes]; classes];
    for (label, row) in labels.iter().zip(scores) {
        confusion[*label][rule.class(row)] += 1;
    }
    let right: usize = (0..classes).map(|c| confusion[c][c]).sum();
    let recall = |c: usize| {
        let all: usize = confusion[c].iter().sum();
        (all > 0).then(|| confusion[c][c] as f64 / all as f64)
    };
    let recalls: Vec<f64> = (0..classes).filter_map(recall).collect();
    Metrics {
        images: labels.len(),
        accuracy: right as f64 / labels.len().max(1) as f64,
        balanced_accuracy: recalls.iter().sum::<f64>() / recalls.len().max(1) as f64,
        auc: auc(rule.reject, labels, scores),
        confusion,
    }
}

fn auc(reject: usize, labels: &[usize], scores: &[Vec<f32>]) -> f64 {
    let mut ranked: Vec<(f32, bool)> =
        labels.iter().zip(scores).map(|(l, s)| (s[reject], *l == reject)).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let positives = ranked.iter().filter(|r| r.1).count();
    let negatives = ranked.len() - positives;
    if positives == 0 || negatives == 0 {
        return 0.5;
    }
    let (mut below, mut wins) = (0usize, 0.0);
    for tied in ranked.chunk_by(|a, b| a.0 == b.0) {
        let up = tied.iter().filter(|r| r.1).count();
        let down = tied.len() - up;
        wins += up as f64 * (below as f64 + down as f64 / 2.0);
        below += down;
    }
    wins / (positives * negatives) as f64
}

/// The threshold in (0, 1) with the best balanced accuracy of reject against rest. Among equals the middle of the
/// widest run, which is the least dependent on these very images; smoothed over neighbours for the same reason.
pub fn best_threshold(reject: usize, labels: &[usize], scores: &[Vec<f32>]) -> f32 {
    const STEPS: usize = 96;
    let at = |i: usize| 0.02 + 0.96 * i as f32 / STEPS as f32;
    let positives = labels.iter().filter(|l| **l == reject).count().max(1) as f64;
    let negatives = labels.iter().filter(|l| **l != reject).count().max(1) as f64;
    let balanced = |threshold: f32| {
        let rejected = |bad: bool| {
            labels
                .iter()
                .zip(scores)
                .filter(|(l, s)| (**l == reject) == bad && s[reject] >= threshold)
                .count() as f64
        };
        (rejected(true) / positives + 1.0 - rejected(false) / negatives) / 2.0
    };
    let curve: Vec<f64> = (0..=STEPS).map(|i| balanced(at(i))).collect();
    const REACH: usize = 10;
    let smooth = |i: usize| {
        let window = &curve[i.saturating_sub(REACH)..(i + REACH + 1).min(curve.len())];
        window.iter().sum::<f64>() / window.len() as f64
    };
    let best = (0..=STEPS).map(smooth).fold(0.0, f64::max);
    let equal: Vec<usize> = (0..=STEPS).filter(|i| smooth(*i) > best - 1e-9).collect();
    at(equal[equal.len() / 2])
}

/// Share of images on which two models come to the same class.
pub fn agreement(rule: Rule, a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let same = a.iter().zip(b).filter(|(a, b)| rule.class(a) == rule.class(b)).count();
    same as f64 / a.len().max(1) as f64
}

pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|l| (l - top).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        let rule = Rule { reject: 0, threshold: 0.5 };
        let scores: Vec<Vec<f32>> =
            [0.9, 0.5, 0.2, 0.6, 0.1, 0.2].iter().map(|p| vec![*p, 1.0 - p]).collect();
        let m = measure(rule, &[0, 0, 0, 1, 1, 1], &scores);
        assert_eq!(m.confusion, [[2, 1], [1, 2]]);
        assert!((m.accuracy - 4.0 / 6.0).abs() < 1e-12 && (m.balanced_accuracy - 4.0 / 6.0).abs() < 1e-12);
        // Pairs won by the positive: .9 all 3; .5 beats .1 and .2; .2 beats .1, ties .2.
        assert!((m.auc - (3.0 + 2.0 + 1.5) / 9.0).abs() < 1e-12);
        assert_eq!(agreement(rule, &scores, &[scores.clone(), vec![]].concat()[..6]), 1.0);
    }

    #[test]
    fn three_classes_use_the_best_of_the_others() {
        let rule = Rule { reject: 1, threshold: 0.4 };
        assert_eq!(rule.class(&[0.3, 0.39, 0.31]), 2);
        assert_eq!(rule.class(&[0.31, 0.4, 0.29]), 1);
        assert_eq!(rule.class(&[0.35, 0.3, 0.35]), 0);
    }

    #[test]
    fn the_threshold_separates() {
        let scores: Vec<Vec<f32>> =
            [0.8, 0.75, 0.7, 0.3, 0.2, 0.1].iter().map(|p| vec![*p, 1.0 - p]).collect();
        let t = best_threshold(0, &[0, 0, 0, 1, 1, 1], &scores);
        assert!((0.35..0.65).contains(&t), "{t}");
    }
}
