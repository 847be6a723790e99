//! Values to ranks to normal scores, so that six statistics of any distribution share one chart and one threshold.

use serde::{Deserialize, Serialize};

/// A distribution as 129 quantiles: of probabilities 0, 1/128 … 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quantiles(Vec<f32>);

impl Quantiles {
    pub(crate) const COUNT: usize = 129;
    /// Beyond this a score says no more: one wild frame must not raise an alarm alone.
    pub(crate) const CLIP: f32 = 4.0;

    /// From a sample; values that are not finite are left out. `None` if nothing is left.
    pub fn fit(values: impl IntoIterator<Item = f32>) -> Option<Self> {
        let mut sorted: Vec<f32> = values.into_iter().filter(|v| v.is_finite()).collect();
        sorted.sort_unstable_by(f32::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let quantile = |i: usize| {
            let place = i as f64 / (Self::COUNT - 1) as f64 * last as f64;
            let (low, share) = (place.floor() as usize, place.fract() as f32);
            let high = (low + 1).min(last);
            sorted[low] + (sorted[high] - sorted[low]) * share
        };
        Some(Self((0..Self::COUNT).map(quantile).collect()))
    }

    /// Exactly [`Self::COUNT`] finite values that do not fall.
    pub(crate) fn is_sound(&self) -> bool {
        let ordered = self.0.windows(2).all(|w| w[0] <= w[1]);
        self.0.len() == Self::COUNT && self.0.iter().all(|v| v.is_finite()) && ordered
    }

    /// The normal score of a value among `n` values of this distribution: mid-rank for ties, as many standard
    /// deviations beyond the ends as the value is beyond them, clipped.
    pub(crate) fn normal_score(&self, value: f32, n: u32) -> f32 {
        let below = self.0.partition_point(|q| *q < value);
        let up_to = self.0.partition_point(|q| *q <= value);
        let steps = (Self::COUNT - 1) as f32;
        let place = if below < up_to {
            // Among equals: their middle.
            (below + up_to - 1) as f32 / 2.0
        } else if below == 0 {
            return self.beyond(self.0[0], value, n);
        } else if below == Self::COUNT {
            return self.beyond(self.0[Self::COUNT - 1], value, n);
        } else {
            let (low, high) = (self.0[below - 1], self.0[below]);
            (below - 1) as f32 + (value - low) / (high - low)
        };
        let n = n.max(2) as f32;
        let p = (0.5 + (n - 1.0) * (place / steps)) / n;
        (normal_quantile(f64::from(p)) as f32).clamp(-Self::CLIP, Self::CLIP)
    }

    fn beyond(&self, end: f32, value: f32, n: u32) -> f32 {
        let outermost = -normal_quantile(0.5 / f64::from(n.max(2))) as f32;
        let excess = ((value - end) / self.spread()).clamp(-Self::CLIP, Self::CLIP);
        (excess + outermost.copysign(excess)).clamp(-Self::CLIP, Self::CLIP)
    }

    /// Half the distance between the 16th and 84th percentile: the standard deviation of a normal distribution.
    /// Never 0.
    pub(crate) fn spread(&self) -> f32 {
        let (low, high) = (self.0[20], self.0[108]);
        let ends = self.0[Self::COUNT - 1] - self.0[0];
        ((high - low) / 2.0).max(ends / 20.0).max(high.abs() * 1e-4).max(1e-5)
    }
}

/// The standard normal's quantile function (Acklam's rational approximation, relative error below 1.2e-9).
pub(crate) fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 5] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 4] = [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416];
    let polynomial = |c: &[f64], x: f64| c.iter().fold(0.0, |sum, c| sum * x + c);
    let p = p.clamp(1e-12, 1.0 - 1e-12);
    let tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        polynomial(&C, q) / (polynomial(&D, q) * q + 1.0)
    };
    if p < 0.02425 {
        tail(p)
    } else if p > 1.0 - 0.02425 {
        -tail(1.0 - p)
    } else {
        let (q, r) = (p - 0.5, (p - 0.5).powi(2));
        polynomial(&A, r) * q / (polynomial(&B, r) * r + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normal_quantiles_are_those_of_the_tables() {
        for (p, z) in
            [(0.5, 0.0), (0.975, 1.959_964), (0.025, -1.959_964), (0.001, -3.090_232), (0.99, 2.326_348)]
        {
            assert!((normal_quantile(p) - z).abs() < 1e-5, "{p}");
        }
    }

    #[test]
    fn ties_get_the_middle_of_their_ranks() {
        // Three quarters of the values are 0, as the share of clipped pixels often is.
        let values = (0..400).map(|i| if i < 300 { 0.0 } else { (i - 299) as f32 });
        let quantiles = Quantiles::fit(values).unwrap();
        assert!((quantiles.normal_score(0.0, 400) - normal_quantile(0.373) as f32).abs() < 0.05);
        assert!(quantiles.normal_score(1.0, 400) > 0.6);
    }

    #[test]
    fn a_constant_reference_still_tells_above_from_below() {
        let quantiles = Quantiles::fit([3.0; 50]).unwrap();
        assert_eq!(quantiles.normal_score(3.0, 50), 0.0);
        assert!(quantiles.normal_score(3.1, 50) > 2.0 && quantiles.normal_score(2.9, 50) < -2.0);
        assert!(Quantiles::fit([f32::NAN]).is_none());
    }

    proptest! {
        #[test]
        fn scores_are_finite_bounded_and_grow_with_the_value(
            values in proptest::collection::vec(-1e6f32..1e6, 1..300),
            a in -2e6f32..2e6,
            b in -2e6f32..2e6,
        ) {
            let n = values.len() as u32;
            let quantiles = Quantiles::fit(values).unwrap();
            prop_assert!(quantiles.is_sound());
            let (low, high) = (a.min(b), a.max(b));
            let (low, high) = (quantiles.normal_score(low, n), quantiles.normal_score(high, n));
            prop_assert!(low.abs() <= 4.0 && high.abs() <= 4.0 && low <= high + 1e-4, "{low} {high}");
        }
    }
}
