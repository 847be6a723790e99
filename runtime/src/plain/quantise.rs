//! QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear: one scale, one for each index of an axis, or one for each
//! block along it.

use super::{Call, axis, floats, get, one, tensor};
use crate::{
    onnx::DataType,
    tensor::{Data, Tensor},
};

/// u8, i8 and i32 as i32.
pub(super) fn bytes(tensor: &Tensor) -> Result<Vec<i32>, String> {
    Ok(match tensor.data() {
        Data::U8(v) => v.iter().map(|v| i32::from(*v)).collect(),
        Data::I8(v) => v.iter().map(|v| i32::from(*v)).collect(),
        Data::I32(v) => v.clone(),
        other => return Err(format!("{} where quantised values belong", other.type_name())),
    })
}

/// Clamped to the type of `like`.
pub(super) fn to_bytes(like: &Data, values: &[i32]) -> Result<Data, String> {
    Ok(match like {
        Data::U8(_) => Data::U8(values.iter().map(|v| (*v).clamp(0, 255) as u8).collect()),
        Data::I8(_) => Data::I8(values.iter().map(|v| (*v).clamp(-128, 127) as i8).collect()),
        other => return Err(format!("a zero point of {}", other.type_name())),
    })
}

/// For each element the index of its scale.
fn scale_of(call: &Call, x: &[usize], scale: &[usize]) -> Result<Vec<usize>, String> {
    let count = super::size(x)?;
    if scale.iter().product::<usize>() == 1 {
        return Ok(vec![0; count]);
    }
    let d = axis(call.node.int("axis").unwrap_or(1), x.len())?;
    let wrong = || format!("scales of {scale:?} for values of {x:?} along {d}");
    let inner: usize = x.get(d + 1..).ok_or_else(wrong)?.iter().product();
    let block = call.node.int("block_size").and_then(|b| usize::try_from(b).ok()).filter(|b| *b > 0);
    let Some(block) = block else {
        let fits = scale.len() == 1 && scale[0] == x[d];
        return if fits { Ok((0..count).map(|i| i / inner % x[d]).collect()) } else { Err(wrong()) };
    };
    let blocks = x[d].div_ceil(block);
    let fits = scale.len() == x.len() && (0..x.len()).all(|i| scale[i] == if i == d { blocks } else { x[i] });
    if !fits {
        return Err(wrong());
    }
    let at = |i: usize| {
        let (outer, along, rest) = (i / (inner * x[d]), i / inner % x[d], i % inner);
        (outer * blocks + along / block) * inner + rest
    };
    Ok((0..count).map(at).collect())
}

pub(super) fn quantise(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let scales = floats(inputs, 1)?;
    let at = scale_of(call, x.shape(), get(inputs, 1)?.shape())?;
    let unsigned = Data::U8(vec![]);
    let signed = Data::I8(vec![]);
    let (zeros, like) = match inputs.get(2).copied().flatten() {
        Some(zero) => (bytes(zero)?, zero.data()),
        None => match call.node.int("output_dtype").unwrap_or(0) {
            0 => (vec![0; scales.len()], &unsigned),
            to if to == DataType::Uint8 as i64 => (vec![0; scales.len()], &unsigned),
            to if to == DataType::Int8 as i64 => (vec![0; scales.len()], &signed),
            other => return Err(format!("bytes of type {other}")),
        },
    };
    if zeros.len() != scales.len() {
        return Err("scales and zero points are not as many".into());
    }
    let real: Vec<f32> = match x.data() {
        Data::I32(v) => v.iter().map(|v| *v as f32).collect(),
        _ => floats(inputs, 0)?.to_vec(),
    };
    let each = |(v, at): (&f32, &usize)| {
        let steps = v / scales[*at];
        // NaN becomes the lowest byte, as in ONNX Runtime.
        let steps = if steps.is_nan() { i32::MIN } else { steps.round_ties_even() as i32 };
        steps.saturating_add(zeros[*at])
    };
    let values: Vec<i32> = real.iter().zip(&at).map(each).collect();
    one(x.shape().to_vec(), to_bytes(like, &values)?)
}

pub(super) fn dequantise(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let scales = floats(inputs, 1)?;
    let at = scale_of(call, x.shape(), get(inputs, 1)?.shape())?;
    let zeros = match inputs.get(2).copied().flatten() {
        Some(zero) => bytes(zero)?,
        None => vec![0; scales.len()],
    };
    if zeros.len() != scales.len() {
        return Err("scales and zero points are not as many".into());
    }
    let values = bytes(x)?;
    let each = |(q, at): (&i32, &usize)| q.wrapping_sub(zeros[*at]) as f32 * scales[*at];
    one(x.shape().to_vec(), Data::F32(values.iter().zip(&at).map(each).collect()))
}

/// u8 over the range of the values, 0 included; the bytes, the scale, the zero point.
pub(super) fn dynamic(_: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let values = floats(inputs, 0)?;
    let (low, high) = values.iter().fold((0.0f32, 0.0f32), |(low, high), v| (low.min(*v), high.max(*v)));
    let scale = match (high - low) / 255.0 {
        0.0 => 1.0,
        scale => scale,
    };
    let zero = (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8;
    let byte = |v: &f32| ((v / scale).round_ties_even() + f32::from(zero)).clamp(0.0, 255.0) as u8;
    Ok(vec![
        tensor(x.shape().to_vec(), Data::U8(values.iter().map(byte).collect()))?,
        tensor(vec![], Data::F32(vec![scale]))?,
        tensor(vec![], Data::U8(vec![zero]))?,
    ])
}
