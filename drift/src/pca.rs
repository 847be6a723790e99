//! The leading principal components of some hundred frames with some thousand features, by subspace iteration and
//! Rayleigh-Ritz. The components need not be exact: any subspace close to the leading one, whitened by its own
//! covariance, makes a good chart.

use rand::{Rng, SeedableRng, rngs::StdRng};

/// `u = W (e - m)`: decorrelated, of variance 1 on the frames it was fitted on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Whitening {
    /// `m`, `d` values.
    pub(crate) mean: Vec<f32>,
    /// `W`, `k` rows of `d`.
    pub(crate) rows: Vec<f32>,
}

impl Whitening {
    /// Vectors beyond those asked for; they speed up convergence.
    const SPARE: usize = 8;
    const ROUNDS: usize = 8;
    /// Components with less than this share of the largest variance are noise that whitening would blow up.
    const VARIANCE_SHARE_MIN: f64 = 1e-4;

    /// At most `k` components of `frames`, which are all of one length; fewer where the frames do not span more.
    /// `None` if there are none.
    pub(crate) fn fit(frames: &[&[f32]], k: usize, seed: u64) -> Option<Self> {
        let d = frames.first()?.len();
        let n = frames.len();
        let mut sums = vec![0.0f64; d];
        for frame in frames {
            sums.iter_mut().zip(*frame).for_each(|(s, v)| *s += f64::from(*v));
        }
        let mean: Vec<f32> = sums.iter().map(|s| (s / n as f64) as f32).collect();
        let centred: Vec<f32> =
            frames.iter().flat_map(|frame| frame.iter().zip(&mean).map(|(v, m)| v - m)).collect();

        let width = (k + Self::SPARE).min(d).min(n);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut basis: Vec<Vec<f32>> =
            (0..width).map(|_| (0..d).map(|_| rng.random_range(-1.0f32..1.0)).collect()).collect();
        orthonormalise(&mut basis);
        for _ in 0..Self::ROUNDS {
            let mut next = vec![vec![0.0f32; d]; basis.len()];
            for row in centred.chunks_exact(d) {
                for (vector, image) in basis.iter().zip(&mut next) {
                    let along = dot(row, vector);
                    image.iter_mut().zip(row).for_each(|(i, r)| *i += along * r);
                }
            }
            basis = next;
            orthonormalise(&mut basis);
        }

        let width = basis.len();
        let mut covariance = vec![0.0f64; width * width];
        for row in centred.chunks_exact(d) {
            let along: Vec<f64> = basis.iter().map(|v| f64::from(dot(row, v))).collect();
            for (i, a) in along.iter().enumerate() {
                covariance[i * width..][..width]
                    .iter_mut()
                    .zip(&along)
                    .for_each(|(c, b)| *c += a * b / n as f64);
            }
        }
        let pairs = symmetric_eigen(covariance, width);
        let largest = pairs.first().map_or(0.0, |(value, _)| *value);
        let mut rows = Vec::new();
        for (value, vector) in pairs.iter().take(k) {
            let is_signal = *value > largest * Self::VARIANCE_SHARE_MIN && *value > 1e-20;
            if !is_signal {
                break;
            }
            let scale = 1.0 / value.sqrt();
            rows.extend((0..d).map(|j| {
                let sum: f64 = vector.iter().zip(&basis).map(|(w, b)| w * f64::from(b[j])).sum();
                (sum * scale) as f32
            }));
        }
        (!rows.is_empty()).then_some(Self { mean, rows })
    }

    pub(crate) fn k(&self) -> usize {
        self.rows.len() / self.mean.len().max(1)
    }

    pub(crate) fn project(&self, embedding: &[f32], out: &mut Vec<f32>) {
        let d = self.mean.len().max(1);
        out.clear();
        out.extend(self.rows.chunks_exact(d).map(|row| {
            row.iter().zip(embedding).zip(&self.mean).map(|((w, e), m)| w * (e - m)).sum::<f32>()
        }));
    }
}

/// Eight sums side by side, which a compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a8.zip(b8) {
        sums.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (x, y))| *sum += x * y);
    }
    sums.iter().sum::<f32>() + rest
}

/// Gram-Schmidt, twice ("twice is enough", Parlett 1980). Vectors that are combinations of earlier ones go.
fn orthonormalise(basis: &mut Vec<Vec<f32>>) {
    let mut done: Vec<Vec<f32>> = Vec::with_capacity(basis.len());
    for mut vector in basis.drain(..) {
        let before = dot(&vector, &vector).sqrt();
        for _ in 0..2 {
            for unit in &done {
                let along = dot(&vector, unit);
                vector.iter_mut().zip(unit).for_each(|(v, u)| *v -= along * u);
            }
        }
        let length = dot(&vector, &vector).sqrt();
        if length > before * 1e-5 && length.is_normal() {
            vector.iter_mut().for_each(|v| *v /= length);
            done.push(vector);
        }
    }
    *basis = done;
}

/// Eigenvalues, largest first, with their vectors, of a symmetric `n x n` matrix (Jacobi 1846, cyclic by rows).
fn symmetric_eigen(mut a: Vec<f64>, n: usize) -> Vec<(f64, Vec<f64>)> {
    const SWEEPS_MAX: usize = 30;
    let mut v = vec![0.0; n * n];
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    for _ in 0..SWEEPS_MAX {
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * n + j].powi(2)).sum();
        let diagonal: f64 = (0..n).map(|i| a[i * n + i].powi(2)).sum();
        let goes_on = off > diagonal * 1e-22;
        if !goes_on {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, n, p, q);
            }
        }
    }
    let mut pairs: Vec<(f64, Vec<f64>)> =
        (0..n).map(|i| (a[i * n + i], (0..n).map(|j| v[j * n + i]).collect())).collect();
    pairs.sort_by(|x, y| y.0.total_cmp(&x.0));
    pairs
}

/// Makes `a[p][q]` zero by a rotation in the plane of `p` and `q`.
fn rotate(a: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize) {
    let off = a[p * n + q];
    if off == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for i in 0..n {
        let (x, y) = (a[i * n + p], a[i * n + q]);
        (a[i * n + p], a[i * n + q]) = (c * x - s * y, s * x + c * y);
    }
    for i in 0..n {
        let (x, y) = (a[p * n + i], a[q * n + i]);
        (a[p * n + i], a[q * n + i]) = (c * x - s * y, s * x + c * y);
        let (x, y) = (v[i * n + p], v[i * n + q]);
        (v[i * n + p], v[i * n + q]) = (c * x - s * y, s * x + c * y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenpairs_of_a_known_matrix() {
        let pairs = symmetric_eigen(vec![2.0, 1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 5.0], 3);
        let values: Vec<f64> = pairs.iter().map(|p| p.0).collect();
        for (value, expected) in values.iter().zip([5.0, 3.0, 1.0]) {
            assert!((value - expected).abs() < 1e-12);
        }
        assert!((pairs[1].1[0] - pairs[1].1[1]).abs() < 1e-12);
    }

    #[test]
    fn whitened_frames_are_uncorrelated_with_variance_one() {
        let mut rng = StdRng::seed_from_u64(1);
        let (d, n) = (40, 400);
        let frames: Vec<Vec<f32>> = (0..n)
            .map(|_| {
                let (a, b): (f32, f32) = (rng.random_range(-9.0..9.0), rng.random_range(-3.0..3.0));
                let at = |j: usize| 5.0 + a * (j as f32 * 0.3).sin() + b * (j as f32 * 0.7).cos();
                (0..d).map(|j| at(j) + rng.random_range(-0.5..0.5)).collect()
            })
            .collect();
        let views: Vec<&[f32]> = frames.iter().map(Vec::as_slice).collect();
        let whitening = Whitening::fit(&views, 4, 7).unwrap();
        assert_eq!(whitening.k(), 4);
        let mut u = Vec::new();
        let mut second = [0.0f64; 16];
        for frame in &views {
            whitening.project(frame, &mut u);
            (0..16).for_each(|i| second[i] += f64::from(u[i / 4] * u[i % 4]) / n as f64);
        }
        for (i, value) in second.iter().enumerate() {
            let expected = if i / 4 == i % 4 { 1.0 } else { 0.0 };
            assert!((value - expected).abs() < 0.02, "{i}: {value}");
        }
    }

    #[test]
    fn frames_that_span_less_give_fewer_components_or_none() {
        let line: Vec<Vec<f32>> = (0..30).map(|i| vec![i as f32, 2.0 * i as f32, 0.0]).collect();
        let views: Vec<&[f32]> = line.iter().map(Vec::as_slice).collect();
        assert_eq!(Whitening::fit(&views, 3, 1).unwrap().k(), 1);
        let same = vec![1.0f32; 5];
        assert!(Whitening::fit(&[&same, &same], 3, 1).is_none());
        assert!(Whitening::fit(&[], 3, 1).is_none());
    }
}
