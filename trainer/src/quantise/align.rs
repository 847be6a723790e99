//! Rounding shifts every feature of the embedding a little, always the same way (Nagel et al. 2019 call it biased error and
//! correct it layer by layer). All of these shifts meet in the head, which is in float: there one affine correction per
//! feature, from the moments of both embeddings on the same images, takes them back at no cost.

use crate::graph::Array;

/// A feature's deviation is trusted to change by this factor at most.
const RATIO_MAX: f32 = 1.25;

/// Weight and bias of a head on the int8 embedding that acts as `weight` and `bias` do on the float one.
/// `float[i]` and `int8[i]` are the embeddings of one image.
pub fn aligned_head(
    weight: &Array,
    bias: &Array,
    float: &[Vec<f32>],
    int8: &[Vec<f32>],
) -> (Vec<f32>, Vec<f32>) {
    let d = weight.shape[1];
    let mut aligned = weight.data.clone();
    let mut shifted: Vec<f64> = bias.data.iter().map(|b| f64::from(*b)).collect();
    for i in 0..d {
        let (mean, deviation) = moments(float.iter().map(|e| e[i]));
        let (mean8, deviation8) = moments(int8.iter().map(|e| e[i]));
        let ratio = (deviation / deviation8.max(1e-9)).clamp(1.0 / RATIO_MAX, RATIO_MAX);
        // A feature that never stirred says nothing about its scale.
        let ratio = if deviation8 < 1e-6 { 1.0 } else { ratio };
        for (k, b) in shifted.iter_mut().enumerate() {
            let w = weight.data[k * d + i];
            aligned[k * d + i] = w * ratio;
            *b += f64::from(w) * f64::from(mean - ratio * mean8);
        }
    }
    (aligned, shifted.iter().map(|b| *b as f32).collect())
}

fn moments(values: impl Iterator<Item = f32> + Clone) -> (f32, f32) {
    let n = values.clone().count().max(1) as f64;
    let mean = values.clone().map(f64::from).sum::<f64>() / n;
    let variance = values.map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    (mean as f32, variance.sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_and_a_scale_are_taken_back() {
        let (weight, bias) =
            (Array::new(vec![2, 2], vec![1.0, -2.0, 0.5, 3.0]), Array::new(vec![2], vec![0.1, -0.1]));
        let float: Vec<Vec<f32>> = (0..50).map(|i| vec![(i as f32).sin(), (i as f32 * 0.7).cos()]).collect();
        let int8: Vec<Vec<f32>> = float.iter().map(|e| vec![e[0] * 0.9 + 0.3, e[1] * 1.1 - 0.2]).collect();
        let (w, b) = aligned_head(&weight, &bias, &float, &int8);
        for (f, q) in float.iter().zip(&int8) {
            for k in 0..2 {
                let before = weight.data[2 * k] * f[0] + weight.data[2 * k + 1] * f[1] + bias.data[k];
                let after = w[2 * k] * q[0] + w[2 * k + 1] * q[1] + b[k];
                assert!((before - after).abs() < 1e-4, "{before} {after}");
            }
        }
        // A dead feature stays finite.
        let (w, b) = aligned_head(&weight, &bias, &vec![vec![0.0, 1.0]; 5], &vec![vec![0.0, 1.0]; 5]);
        assert_eq!((w, b), (weight.data, bias.data));
    }
}
