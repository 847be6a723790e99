//! The classifier head on fixed embeddings: multinomial logistic regression with an L2 penalty, on standardised
//! features, by accelerated gradient descent (Nesterov 1983) on all images at once. Convex, so nothing to tune or seed.
//!
//! Standardising divides by each feature's deviation. A feature that hardly varies would come back with a huge raw
//! weight, which an int8 step cannot share with the others; hence the floor on the deviation, and [`check_head`].

use super::tune::class_weights;
use crate::{graph::Array, metrics::softmax};

/// Largest weight over the 99th percentile of weights.
const OUTLIER_RATIO_MAX: f32 = 20.0;
const ROUNDS: usize = 150;

#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error(
        "the head's largest weight is {ratio:.1} times its 99th percentile (at most {OUTLIER_RATIO_MAX}): it leans on few features; \
         use more images, or a base network whose embedding varies more"
    )]
    Outliers { ratio: f32 },
    #[error("all embeddings are equal: the base network tells these images not apart")]
    Constant,
}

/// What the fit came to.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadReport {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub loss: f64,
}

/// `embeddings` are rows of equal length, `classes[i]` the class of row i. `penalty` is per image, on standardised
/// weights.
pub fn fit_head(
    embeddings: &[Vec<f32>],
    classes: &[usize],
    count: usize,
    penalty: f32,
) -> Result<HeadReport, HeadError> {
    let (n, d) = (embeddings.len(), embeddings.first().map_or(0, Vec::len));
    let (mean, deviation) = moments(embeddings, d)?;
    let rows: Vec<Vec<f32>> = embeddings
        .iter()
        .map(|e| e.iter().zip(mean.iter().zip(&deviation)).map(|(v, (m, s))| (v - m) / s).collect())
        .collect();
    let weights = class_weights(classes, count);
    // Curvature of softmax cross-entropy is at most half the largest eigenvalue of the second moment; its trace is d.
    let top = largest_eigenvalue(&rows, d);
    let step = 1.0 / (0.5 * top * weights.iter().copied().fold(0.0, f32::max) + penalty);
    let mut at = vec![0.0f32; count * (d + 1)];
    let mut previous = at.clone();
    let mut loss = f64::INFINITY;
    for round in 0..ROUNDS {
        let momentum = round as f32 / (round as f32 + 3.0);
        let ahead: Vec<f32> = at.iter().zip(&previous).map(|(a, p)| a + momentum * (a - p)).collect();
        let mut gradient = vec![0.0f32; ahead.len()];
        loss = 0.0;
        for (row, class) in rows.iter().zip(classes) {
            let logits: Vec<f32> =
                (0..count).map(|k| dot(&ahead[k * (d + 1)..][..d], row) + ahead[k * (d + 1) + d]).collect();
            let p = softmax(&logits);
            let weight = weights[*class] / n as f32;
            loss -= (weight * p[*class].max(1e-12).ln()) as f64;
            for (k, p) in p.iter().enumerate() {
                let error = weight * (p - f32::from(k == *class));
                let g = &mut gradient[k * (d + 1)..][..d + 1];
                g[..d].iter_mut().zip(row).for_each(|(g, v)| *g += error * v);
                g[d] += error;
            }
        }
        previous.copy_from_slice(&at);
        for (i, ((a, ahead), g)) in at.iter_mut().zip(&ahead).zip(&gradient).enumerate() {
            let decay = if i % (d + 1) == d { 0.0 } else { penalty * ahead };
            *a = ahead - step * (g + decay);
        }
    }
    let mut report =
        HeadReport { weight: Vec::with_capacity(count * d), bias: Vec::with_capacity(count), loss };
    for k in 0..count {
        let row = &at[k * (d + 1)..][..d + 1];
        let raw: Vec<f32> = row[..d].iter().zip(&deviation).map(|(w, s)| w / s).collect();
        report.bias.push(row[d] - dot(&raw, &mean));
        report.weight.extend(raw);
    }
    let head = Array::new(vec![count, d], report.weight.clone());
    check_head(&head)?;
    Ok(report)
}

/// Refuses a head that int8 tools, and any later reader, could not represent.
pub fn check_head(weight: &Array) -> Result<(), HeadError> {
    let mut sizes: Vec<f32> = weight.data.iter().map(|v| v.abs()).collect();
    sizes.sort_by(f32::total_cmp);
    let (Some(top), Some(p99)) = (sizes.last(), sizes.get(sizes.len() * 99 / 100)) else { return Ok(()) };
    let ratio = top / p99.max(1e-12);
    if ratio > OUTLIER_RATIO_MAX { Err(HeadError::Outliers { ratio }) } else { Ok(()) }
}

/// Mean and floored deviation of each feature.
fn moments(rows: &[Vec<f32>], d: usize) -> Result<(Vec<f32>, Vec<f32>), HeadError> {
    let n = rows.len().max(1) as f64;
    let mut mean = vec![0.0f64; d];
    let mut square = vec![0.0f64; d];
    for row in rows {
        for (i, v) in row.iter().enumerate() {
            mean[i] += *v as f64 / n;
            square[i] += (*v as f64).powi(2) / n;
        }
    }
    let deviation: Vec<f32> =
        mean.iter().zip(&square).map(|(m, s)| (s - m * m).max(0.0).sqrt() as f32).collect();
    let mut sorted = deviation.clone();
    sorted.sort_by(f32::total_cmp);
    // Half of the median deviation: weights of rarer features stay within the others' range.
    let floor =
        sorted.get(d / 2).copied().unwrap_or(0.0).max(sorted.last().copied().unwrap_or(0.0) * 0.01) * 0.5;
    if floor.is_nan() || floor <= 0.0 {
        return Err(HeadError::Constant);
    }
    Ok((mean.iter().map(|m| *m as f32).collect(), deviation.iter().map(|s| s.max(floor)).collect()))
}

/// Of the second moment of the rows, by power iteration, rounded up.
fn largest_eigenvalue(rows: &[Vec<f32>], d: usize) -> f32 {
    let mut v = vec![1.0f32 / (d as f32).sqrt(); d];
    let mut value = 1.0f32;
    for _ in 0..8 {
        let mut next = vec![0.0f32; d];
        for row in rows {
            let along = dot(row, &v) / rows.len() as f32;
            next.iter_mut().zip(row).for_each(|(n, r)| *n += along * r);
        }
        value = dot(&next, &next).sqrt().max(1e-6);
        v = next.iter().map(|n| n / value).collect();
    }
    // The constant feature of the bias adds at most 1.
    value * 1.2 + 1.0
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums let the compiler use vector registers; the order is fixed, so results are too.
    let (a8, b8) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f32; 8];
    for (a, b) in a8.0.iter().zip(b8.0) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + a8.1.iter().zip(b8.1).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separates_what_is_separable_with_modest_weights() {
        // Two features tell the classes apart, one is constant but for a speck.
        let rows: Vec<Vec<f32>> = (0..60)
            .map(|i| {
                let side = if i % 3 == 0 { 1.0 } else { -1.0 };
                vec![
                    side + 0.3 * (i as f32 * 1.7).sin(),
                    0.5 * side + 0.3 * (i as f32).cos(),
                    1e-4 * (i % 2) as f32,
                ]
            })
            .collect();
        let classes: Vec<usize> = (0..60).map(|i| usize::from(i % 3 != 0)).collect();
        let head = fit_head(&rows, &classes, 2, 1e-2).unwrap();
        for (row, class) in rows.iter().zip(&classes) {
            let logit = |k: usize| dot(&head.weight[k * 3..][..3], row) + head.bias[k];
            assert_eq!(usize::from(logit(1) > logit(0)), *class);
        }
        assert!(matches!(fit_head(&[vec![1.0], vec![1.0]], &[0, 1], 2, 1e-2), Err(HeadError::Constant)));
    }

    #[test]
    fn a_head_with_an_outlier_is_refused() {
        let mut data = vec![1.0; 200];
        data[7] = 612.0;
        let error = check_head(&Array::new(vec![2, 100], data)).unwrap_err();
        assert!(matches!(error, HeadError::Outliers { ratio } if ratio == 612.0));
    }
}
