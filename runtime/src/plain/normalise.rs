//! Softmax and the normalisations. Sums are in f64, but for those of a Softmax over many columns.

use super::{Call, floats, get, one, tensor, vectors};
use crate::tensor::{Data, Tensor};

/// Softmax and LogSoftmax: along one axis since version 13, over all from the axis on before.
pub(super) fn softmax(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let values = floats(inputs, 0)?;
    let dims = x.shape();
    let [length, inner] = middle(call, dims)?;
    let logarithm = call.node.op_type == "LogSoftmax";
    if !logarithm && length > 0 && inner > 1 {
        let mut out = call.pool.list(values.len());
        vectors::softmax(values, [length, inner], &mut out, |blocks, work| (0..blocks).for_each(work));
        return one(dims.to_vec(), Data::F32(out));
    }
    let mut out = vec![0.0; values.len()];
    for first in (0..values.len() / length.max(1)).map(|i| i / inner * inner * length + i % inner) {
        let at = |i: usize| first + i * inner;
        let highest = (0..length).map(|i| values[at(i)]).fold(f32::NEG_INFINITY, f32::max);
        let shifted = |i: usize| f64::from(values[at(i)]) - f64::from(highest);
        let sum: f64 = (0..length).map(|i| shifted(i).exp()).sum();
        for i in 0..length {
            out[at(i)] = if logarithm { shifted(i) - sum.ln() } else { shifted(i).exp() / sum } as f32;
        }
    }
    one(dims.to_vec(), Data::F32(out))
}

/// How many elements a softmax goes over, and how far apart they lie.
pub(super) fn middle(call: &Call, dims: &[usize]) -> Result<[usize; 2], String> {
    let old = call.opset < 13;
    let d = call.axis("axis", if old { 1 } else { -1 }, dims.len())?;
    if old {
        return Ok([dims[d.min(dims.len())..].iter().product(), 1]);
    }
    Ok([dims.get(d).copied().unwrap_or(1), dims.get(d + 1..).unwrap_or(&[]).iter().product()])
}

/// BatchNormalization 7 to 15; in training it gives the new running mean and variance too.
pub(super) fn batch(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let values = floats(inputs, 0)?;
    let channels = *x.shape().get(1).ok_or("its input has no channels")?;
    let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|i| floats(inputs, i));
    let (scale, bias, mean, variance) = (scale?, bias?, mean?, variance?);
    if [scale, bias, mean, variance].iter().any(|v| v.len() != channels) {
        return Err(format!("parameters that are not {channels} each"));
    }
    let area: usize = x.shape()[2..].iter().product();
    let epsilon = f64::from(call.node.float("epsilon").unwrap_or(1e-5));
    let channel = |i: usize| i / area.max(1) % channels.max(1);
    let training = call.node.int("training_mode") == Some(1);
    let widen = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let (mut means, mut variances) = (widen(mean), widen(variance));
    if training {
        let count = (values.len() / channels.max(1)) as f64;
        means.fill(0.0);
        variances.fill(0.0);
        values.iter().enumerate().for_each(|(i, v)| means[channel(i)] += f64::from(*v) / count);
        for (i, v) in values.iter().enumerate() {
            variances[channel(i)] += (f64::from(*v) - means[channel(i)]).powi(2) / count;
        }
    }
    let each = |(i, v): (usize, &f32)| {
        let c = channel(i);
        let unit = (f64::from(*v) - means[c]) / (variances[c] + epsilon).sqrt();
        (unit * f64::from(scale[c]) + f64::from(bias[c])) as f32
    };
    let y = tensor(x.shape().to_vec(), Data::F32(values.iter().enumerate().map(each).collect()))?;
    if !training {
        return Ok(vec![y]);
    }
    let momentum = f64::from(call.node.float("momentum").unwrap_or(0.9));
    let running = |old: &[f32], new: &[f64]| {
        let each = |(old, new): (&f32, &f64)| (f64::from(*old) * momentum + new * (1.0 - momentum)) as f32;
        tensor(vec![channels], Data::F32(old.iter().zip(new).map(each).collect()))
    };
    Ok(vec![y, running(mean, &means)?, running(variance, &variances)?])
}

/// LayerNormalization 17: the result, the means, and the inverses of the deviations.
pub(super) fn layer(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let values = floats(inputs, 0)?;
    let dims = x.shape();
    let d = call.axis("axis", -1, dims.len())?;
    let inner: usize = dims[d..].iter().product();
    let epsilon = f64::from(call.node.float("epsilon").unwrap_or(1e-5));
    let parameter = |index: usize| match inputs.get(index).copied().flatten() {
        None => Ok(None),
        Some(tensor) => {
            let values = floats(inputs, index)?;
            let at = super::stretched(tensor.shape(), &dims[d..])?;
            Ok::<_, String>(Some(at.into_iter().map(|i| f64::from(values[i])).collect::<Vec<_>>()))
        }
    };
    let (scale, bias) = (parameter(1)?, parameter(2)?);
    let (mut out, mut means, mut inverses) = (Vec::with_capacity(values.len()), vec![], vec![]);
    for row in values.chunks_exact(inner.max(1)) {
        let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / inner as f64;
        let variance = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / inner as f64;
        let inverse = 1.0 / (variance + epsilon).sqrt();
        for (i, v) in row.iter().enumerate() {
            let unit = (f64::from(*v) - mean) * inverse * scale.as_ref().map_or(1.0, |s| s[i]);
            out.push((unit + bias.as_ref().map_or(0.0, |b| b[i])) as f32);
        }
        means.push(mean as f32);
        inverses.push(inverse as f32);
    }
    let kept: Vec<usize> = dims.iter().enumerate().map(|(i, n)| if i < d { *n } else { 1 }).collect();
    Ok(vec![
        tensor(dims.to_vec(), Data::F32(out))?,
        tensor(kept.clone(), Data::F32(means))?,
        tensor(kept, Data::F32(inverses))?,
    ])
}
