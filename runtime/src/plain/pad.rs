//! Pad: constant, edge, reflect, wrap.

use super::{Call, arithmetic::joined, axis, get, integers, one, pick, size, strides};
use crate::tensor::{Data, Tensor};

/// Where the elements of a padded tensor come from, for each of its dimensions; `None` is a constant padding.
pub(crate) fn padded(
    dims: &[usize],
    pads: &[i64],
    axes: Option<&[i64]>,
    mode: &str,
) -> Result<Vec<Vec<Option<usize>>>, String> {
    let axes = match axes {
        Some(axes) => axes.iter().map(|a| axis(*a, dims.len())).collect::<Result<_, _>>()?,
        None => (0..dims.len()).collect::<Vec<_>>(),
    };
    if pads.iter().any(|p| p.unsigned_abs() > 1 << 30) || pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} dimensions", pads.len(), axes.len()));
    }
    if axes.len() > dims.len() || (1..axes.len()).any(|i| axes[..i].contains(&axes[i])) {
        return Err("an axis twice".into());
    }
    size(dims)?;
    let mut totals = dims.to_vec();
    for (i, d) in axes.iter().enumerate() {
        let total = dims[*d] as i64 + pads[i] + pads[i + axes.len()];
        totals[*d] = usize::try_from(total).map_err(|_| "pads that leave nothing")?;
    }
    size(&totals)?;
    let mut along: Vec<Vec<Option<usize>>> = dims.iter().map(|d| (0..*d).map(Some).collect()).collect();
    for (i, d) in axes.iter().enumerate() {
        let length = dims[*d] as i64;
        let (before, after) = (pads[i], pads[i + axes.len()]);
        let source = |at: i64| match mode {
            _ if (0..length).contains(&at) => Some(at as usize),
            "constant" => None,
            _ if length == 0 => None,
            "edge" => Some(at.clamp(0, length - 1) as usize),
            "wrap" => Some(at.rem_euclid(length) as usize),
            _ if length == 1 => Some(0),
            _ => {
                let period = 2 * (length - 1);
                let at = at.rem_euclid(period);
                Some(at.min(period - at) as usize)
            }
        };
        along[*d] = (-before..length + after).map(source).collect();
    }
    Ok(along)
}

/// Pad 2 with attributes, 11 to 25 with inputs; constant, edge, reflect, wrap.
pub(super) fn pad(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let pads = call.list(inputs, 1, "pads")?.ok_or("it has no pads")?;
    let axes = inputs.get(3).copied().flatten().map(integers).transpose()?;
    let mode = call.node.string("mode").unwrap_or("constant");
    let along = padded(x.shape(), &pads, axes.as_deref(), mode)?;
    // One more element behind all others: what a constant padding is made of.
    let fill = match inputs.get(2).copied().flatten() {
        Some(value) => value.data().clone(),
        None => cast_like(x.data(), call.node.float("value").unwrap_or(0.0)),
    };
    let (data, border) = joined(x.data(), &fill)?;
    let mut at = vec![Some(0)];
    for (indices, stride) in along.iter().zip(strides(x.shape())) {
        let next = |base: &Option<usize>| {
            let base = *base;
            indices.iter().map(move |i| Some(base? + (*i)? * stride))
        };
        at = at.iter().flat_map(next).collect();
    }
    let at: Vec<usize> = at.into_iter().map(|at| at.unwrap_or(border)).collect();
    one(along.iter().map(Vec::len).collect(), pick(&data, &at)?)
}

fn cast_like(data: &Data, value: f32) -> Data {
    match data {
        Data::F32(_) => Data::F32(vec![value]),
        Data::U8(_) => Data::U8(vec![value as u8]),
        Data::I8(_) => Data::I8(vec![value as i8]),
        Data::I32(_) => Data::I32(vec![value as i32]),
        Data::I64(_) => Data::I64(vec![value as i64]),
        Data::Bool(_) => Data::Bool(vec![value != 0.0]),
    }
}
