//! Operators that move elements or make shapes: they compute no numbers.

use super::{Call, axis, get, integers, one, pick, size, stretched, strided, strides, tensor};
use crate::{
    onnx::{DataType, TensorProto},
    tensor::{Data, Tensor},
};

/// Of dimensions that an operator makes, one by one.
const RANK_MAX: usize = 64;

pub(super) fn constant(call: &Call, _: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let node = &call.node;
    let ints = |values: &[i64]| Data::I64(values.to_vec());
    Ok(vec![if let Some(value) = node.tensor("value") {
        Tensor::from_proto(value)?
    } else if let Some(value) = node.float("value_float") {
        tensor(vec![], Data::F32(vec![value]))?
    } else if let Some(value) = node.int("value_int") {
        tensor(vec![], ints(&[value]))?
    } else if let Some(values) = node.ints("value_ints") {
        tensor(vec![values.len()], ints(values))?
    } else {
        let floats = node.attribute("value_floats").map(|a| a.floats.clone());
        let floats = floats.ok_or("its value is of a type that is not supported")?;
        tensor(vec![floats.len()], Data::F32(floats))?
    }])
}

fn sizes(values: &[i64]) -> Result<Vec<usize>, String> {
    let size = |v: &i64| usize::try_from(*v).map_err(|_| format!("a size of {v}"));
    values.iter().map(size).collect()
}

fn filled(value: &Tensor, dims: Vec<usize>) -> Result<Tensor, String> {
    let data = pick(value.data(), &vec![0; size(&dims)?])?;
    tensor(dims, data)
}

pub(super) fn constant_of_shape(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let zero = TensorProto::f32("", &[1], &[0.0]);
    let value = Tensor::from_proto(call.node.tensor("value").unwrap_or(&zero))?;
    Ok(vec![filled(&value, sizes(&integers(get(inputs, 0)?)?)?)?])
}

pub(super) fn shape(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let dims = get(inputs, 0)?.shape();
    let rank = dims.len() as i64;
    let bound = |name: &str, absent: i64| {
        let at = call.node.int(name).unwrap_or(absent);
        (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize
    };
    let (start, end) = (bound("start", 0), bound("end", rank));
    let part = &dims[start..end.max(start)];
    one(vec![part.len()], Data::I64(part.iter().map(|d| *d as i64).collect()))
}

pub(super) fn count(_: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    one(vec![], Data::I64(vec![get(inputs, 0)?.shape().iter().product::<usize>() as i64]))
}

pub(super) fn range(_: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    if let Ok(start) = super::floats(inputs, 0) {
        let (start, limit, step) =
            (start.first(), super::floats(inputs, 1)?.first(), super::floats(inputs, 2)?.first());
        let (Some(start), Some(limit), Some(step)) = (start, limit, step) else {
            return Err("a bound is empty".into());
        };
        let count = size(&[((limit - start) / step).ceil().max(0.0) as usize])?;
        return one(vec![count], Data::F32((0..count).map(|i| start + i as f32 * step).collect()));
    }
    let bound = |index| integers(get(inputs, index)?)?.first().copied().ok_or("a bound is empty".to_owned());
    let (start, limit, step) = (bound(0)?, bound(1)?, bound(2)?);
    let span = i128::from(limit) - i128::from(start);
    let count = if step == 0 { 0 } else { (span as f64 / step as f64).ceil().max(0.0) as usize };
    let count = size(&[count])?;
    let values: Vec<i64> = (0..count as i64).map(|i| start.wrapping_add(i.wrapping_mul(step))).collect();
    let small = |v: &[i64]| v.iter().map(|v| *v as i32).collect();
    let narrow = matches!(get(inputs, 0)?.data(), Data::I32(_));
    one(vec![count], if narrow { Data::I32(small(&values)) } else { Data::I64(values) })
}

/// Flatten, Identity, Reshape, Squeeze, Unsqueeze, and Dropout outside training: the same elements.
pub(super) fn reshape(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    one(reshaped(call, x.shape(), inputs)?, x.data().clone())
}

/// The shape that a tensor of shape `from` gets.
pub(super) fn reshaped(
    call: &Call,
    from: &[usize],
    inputs: &[Option<&Tensor>],
) -> Result<Vec<usize>, String> {
    Ok(match call.node.op_type.as_str() {
        "Flatten" => crate::shape::flatten(from, &call.node).ok_or("its axis is outside its input")?,
        "Reshape" => {
            let to = call.list(inputs, 1, "shape")?.ok_or("it has no shape")?;
            crate::shape::reshape(from, &to, &call.node)
                .ok_or_else(|| format!("{from:?} does not become {to:?}"))?
        }
        "Squeeze" => squeezed(from, call.list(inputs, 1, "axes")?.as_deref())?,
        "Unsqueeze" => unsqueezed(from, &call.list(inputs, 1, "axes")?.ok_or("it has no axes")?)?,
        "Dropout" if call.node.output.iter().skip(1).any(|o| !o.is_empty()) => {
            return Err("its mask is wanted".into());
        }
        _ => from.to_vec(),
    })
}

pub(crate) fn squeezed(from: &[usize], axes: Option<&[i64]>) -> Result<Vec<usize>, String> {
    let Some(axes) = axes else { return Ok(from.iter().copied().filter(|d| *d != 1).collect()) };
    let axes = axes.iter().map(|a| axis(*a, from.len())).collect::<Result<Vec<_>, _>>()?;
    if axes.iter().any(|a| from.get(*a) != Some(&1)) {
        return Err(format!("axes {axes:?} of {from:?} are not all 1"));
    }
    Ok((0..from.len()).filter(|d| !axes.contains(d)).map(|d| from[d]).collect())
}

pub(crate) fn unsqueezed(from: &[usize], axes: &[i64]) -> Result<Vec<usize>, String> {
    let rank = from.len() + axes.len();
    if rank > RANK_MAX {
        return Err(format!("{rank} dimensions"));
    }
    let axes = axes.iter().map(|a| axis(*a, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut rest = from.iter();
    let dims = (0..rank).map(|d| if axes.contains(&d) { Some(1) } else { rest.next().copied() });
    dims.collect::<Option<Vec<_>>>().filter(|_| rest.next().is_none()).ok_or("an axis twice".into())
}

pub(super) fn transpose(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let rank = x.shape().len() as i64;
    let default: Vec<i64> = (0..rank).rev().collect();
    let order = call.node.ints("perm").unwrap_or(&default);
    let order = order.iter().map(|p| axis(*p, rank as usize)).collect::<Result<Vec<_>, _>>()?;
    permuted(call, x, &order).map(|t| vec![t])
}

fn permuted(call: &Call, x: &Tensor, order: &[usize]) -> Result<Tensor, String> {
    let mut seen = vec![false; x.shape().len()];
    for d in order {
        if let Some(seen) = seen.get_mut(*d) {
            *seen = true;
        }
    }
    if order.len() != seen.len() || seen.contains(&false) {
        return Err(format!("{order:?} is no order of the dimensions of {:?}", x.shape()));
    }
    let own = strides(x.shape());
    let dims: Vec<usize> = order.iter().map(|d| x.shape()[*d]).collect();
    let steps: Vec<isize> = order.iter().map(|d| own[*d] as isize).collect();
    let data = strided(&call.pool, x.data(), &dims, &steps, 0)?;
    tensor(dims, data)
}

pub(super) fn depth_to_space(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let [n, c, h, w] = *x.shape() else { return Err("its input has not four dimensions".into()) };
    let block = call.node.int("blocksize").and_then(|b| usize::try_from(b).ok()).filter(|b| *b > 0);
    let b = block.filter(|b| b.checked_mul(*b).is_some_and(|area| c % area == 0));
    let b = b.ok_or_else(|| format!("{c} channels in blocks of {:?}", call.node.int("blocksize")))?;
    let depth = c / (b * b);
    let (split, order) = if call.node.string("mode") == Some("CRD") {
        (vec![n, depth, b, b, h, w], [0, 1, 4, 2, 5, 3])
    } else {
        (vec![n, b, b, depth, h, w], [0, 3, 4, 1, 5, 2])
    };
    let moved = permuted(call, &tensor(split, x.data().clone())?, &order)?;
    one(vec![n, depth, h * b, w * b], moved.into_data())
}

pub(super) fn expand(_: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let to = sizes(&integers(get(inputs, 1)?)?)?;
    let dims = crate::shape::broadcast(x.shape(), &to).ok_or("shapes that do not broadcast")?;
    let data = pick(x.data(), &stretched(x.shape(), &dims)?)?;
    one(dims, data)
}

pub(super) fn tile(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let repeats = sizes(&integers(get(inputs, 1)?)?)?;
    if repeats.len() != x.shape().len() {
        return Err(format!("repeats {repeats:?} of a shape {:?}", x.shape()));
    }
    let dims: Option<Vec<usize>> = x.shape().iter().zip(&repeats).map(|(d, r)| d.checked_mul(*r)).collect();
    let dims = dims.ok_or("a size that overflows")?;
    size(&dims)?;
    let along: Vec<Vec<usize>> =
        x.shape().iter().zip(&dims).map(|(d, n)| (0..*n).map(|i| i % d).collect()).collect();
    gathered(call, x, &along).map(|t| vec![t])
}

/// The elements at some indices of each dimension.
fn gathered(call: &Call, x: &Tensor, along: &[Vec<usize>]) -> Result<Tensor, String> {
    let dims: Vec<usize> = along.iter().map(Vec::len).collect();
    size(&dims)?;
    // Whole ranges are copied in runs.
    if along.iter().all(|indices| indices.windows(2).all(|pair| pair[1] == pair[0] + 1)) {
        let own = strides(x.shape());
        let first = |(indices, stride): (&Vec<usize>, &usize)| indices.first().map_or(0, |i| i * stride);
        let base: usize = along.iter().zip(&own).map(first).sum();
        let steps: Vec<isize> = own.iter().map(|stride| *stride as isize).collect();
        let data = strided(&call.pool, x.data(), &dims, &steps, base as isize)?;
        return tensor(dims, data);
    }
    let mut at = vec![0];
    for (indices, stride) in along.iter().zip(strides(x.shape())) {
        at = at.iter().flat_map(|base| indices.iter().map(move |i| base + i * stride)).collect();
    }
    let data = pick(x.data(), &at)?;
    tensor(dims, data)
}

fn all(x: &Tensor) -> Vec<Vec<usize>> {
    x.shape().iter().map(|d| (0..*d).collect()).collect()
}

pub(super) fn gather(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let (x, indices) = (get(inputs, 0)?, get(inputs, 1)?);
    let d = call.axis("axis", 0, x.shape().len())?;
    let length = *x.shape().get(d).ok_or("its input is a scalar")?;
    let index = |i: i64| axis(i, length).ok().filter(|i| *i < length).ok_or(format!("index {i} of {length}"));
    let mut along = all(x);
    along[d] = integers(indices)?.into_iter().map(index).collect::<Result<_, _>>()?;
    let picked = gathered(call, x, &along)?;
    let dims = [&x.shape()[..d], indices.shape(), &x.shape()[d + 1..]].concat();
    one(dims, picked.into_data())
}

/// Slice 1 with attributes, 10 to 13 with inputs.
pub(super) fn slice(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let starts = call.list(inputs, 1, "starts")?.ok_or("it has no starts")?;
    let ends = call.list(inputs, 2, "ends")?.ok_or("it has no ends")?;
    let axes = call.list(inputs, 3, "axes")?;
    let steps = call.list(inputs, 4, "steps")?;
    let along = sliced(x.shape(), &starts, &ends, axes.as_deref(), steps.as_deref())?;
    gathered(call, x, &along).map(|t| vec![t])
}

/// The indices that a Slice keeps of each dimension.
pub(crate) fn sliced(
    dims: &[usize],
    starts: &[i64],
    ends: &[i64],
    axes: Option<&[i64]>,
    steps: Option<&[i64]>,
) -> Result<Vec<Vec<usize>>, String> {
    size(dims)?;
    if starts.len() > dims.len() {
        return Err(format!("{} slices of {} dimensions", starts.len(), dims.len()));
    }
    let mut along: Vec<Vec<usize>> = dims.iter().map(|d| (0..*d).collect()).collect();
    for (i, (start, end)) in starts.iter().zip(ends).enumerate() {
        let d = match axes {
            Some(axes) => axis(*axes.get(i).ok_or("an axis is missing")?, dims.len())?,
            None => i,
        };
        let length = *dims.get(d).ok_or("more slices than dimensions")? as i64;
        let step = steps.map_or(Ok(1), |s| s.get(i).copied().ok_or("a step is missing"))?;
        if step == 0 {
            return Err("a step of 0".into());
        }
        if length == 0 {
            continue;
        }
        let from_start = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
        let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
        let (start, end) = (from_start(*start).clamp(low.max(0), high), from_start(*end).clamp(low, high));
        // A negative end beyond the start stays there: it means that the first element is kept too.
        let size = step.unsigned_abs() as usize;
        along[d] = match step {
            1.. => (start..end).step_by(size).map(|i| i as usize).collect(),
            _ => (end + 1..=start).rev().step_by(size).map(|i| i as usize).collect(),
        };
    }
    Ok(along)
}

/// Sizes of the parts along a dimension of `length`.
pub(crate) fn parts(length: usize, sizes: Option<&[i64]>, outputs: usize) -> Option<Vec<usize>> {
    match sizes {
        Some(sizes) => {
            let sizes: Option<Vec<usize>> = sizes.iter().map(|s| usize::try_from(*s).ok()).collect();
            let sizes = sizes.filter(|sizes| sizes.len() == outputs);
            sizes.filter(|s| s.iter().try_fold(0usize, |sum, s| sum.checked_add(*s)) == Some(length))
        }
        None => {
            // The last may be smaller.
            let each = length.div_ceil(outputs.max(1));
            let part = |i: usize| length.saturating_sub(i * each).min(each);
            Some((0..outputs).map(part).collect())
        }
    }
}

pub(super) fn split(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let d = call.axis("axis", 0, x.shape().len())?;
    let sizes = call.list(inputs, 1, "split")?;
    let parts =
        parts(*x.shape().get(d).ok_or("its input is a scalar")?, sizes.as_deref(), call.node.output.len());
    let mut start = 0;
    let part = |size: &usize| {
        let mut along = all(x);
        along[d] = (start..start + size).collect();
        start += size;
        gathered(call, x, &along)
    };
    parts.ok_or("sizes that do not add up")?.iter().map(part).collect()
}

/// The shape of a concatenation, and how many rows each part has.
pub(super) fn concatenated(call: &Call, parts: &[&Tensor]) -> Result<(Vec<usize>, usize), String> {
    let first = *parts.first().ok_or("it has no inputs")?;
    let d = call.axis("axis", 1, first.shape().len())?;
    let mut dims = first.shape().to_vec();
    if d >= dims.len() {
        return Err("a tensor of no dimensions has no axis".into());
    }
    for part in &parts[1..] {
        let (a, b) = (&dims, part.shape());
        let fits = a.len() == b.len() && (0..a.len()).all(|i| i == d || a[i] == b[i]);
        let total = dims[d].checked_add(b.get(d).copied().unwrap_or(0)).filter(|_| fits);
        dims[d] = total.ok_or_else(|| format!("shapes {dims:?} and {b:?} along {d}"))?;
    }
    let outer = dims[..d].iter().product();
    Ok((dims, outer))
}

/// What Slice and Transpose give of an f32 tensor: sizes, how far apart neighbours lie, and where the first lies. `None` where
/// that is not so simple.
pub(super) fn view(call: &Call, inputs: &[Option<&Tensor>]) -> Option<(Vec<usize>, Vec<usize>, usize)> {
    let x = get(inputs, 0).ok()?;
    let own = strides(x.shape());
    let rank = x.shape().len();
    if call.node.op_type == "Transpose" {
        let order = call.node.ints("perm")?;
        let order: Vec<usize> = order.iter().map(|p| axis(*p, rank).ok()).collect::<Option<_>>()?;
        let whole = order.len() == rank && (0..rank).all(|d| order.contains(&d));
        let at = |from: &[usize]| order.iter().map(|d| from[*d]).collect::<Vec<usize>>();
        return whole.then(|| (at(x.shape()), at(&own), 0));
    }
    let starts = call.list(inputs, 1, "starts").ok()??;
    let ends = call.list(inputs, 2, "ends").ok()??;
    let axes = call.list(inputs, 3, "axes").ok()?;
    let steps = call.list(inputs, 4, "steps").ok()?;
    let along = sliced(x.shape(), &starts, &ends, axes.as_deref(), steps.as_deref()).ok()?;
    if !along.iter().all(|kept| kept.windows(2).all(|pair| pair[1] == pair[0] + 1)) {
        return None;
    }
    let base =
        along.iter().zip(&own).map(|(kept, stride)| Some(kept.first()? * stride)).sum::<Option<usize>>()?;
    Some((along.iter().map(Vec::len).collect(), own, base))
}

pub(super) fn concat(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let parts: Vec<&Tensor> = (0..inputs.len()).map(|i| get(inputs, i)).collect::<Result<_, _>>()?;
    let first = *parts.first().ok_or("it has no inputs")?;
    let (dims, outer) = concatenated(call, &parts)?;
    let length = size(&dims)?;
    // What each part adds to each of the outer rows.
    macro_rules! of {
        ($kind:ident, $room:expr) => {{
            let mut out = $room;
            let lists = parts.iter().map(|part| match part.data() {
                Data::$kind(list) => Ok((list, list.len() / outer.max(1))),
                other => Err(format!("values of {} and {}", first.data().type_name(), other.type_name())),
            });
            let lists = lists.collect::<Result<Vec<_>, _>>()?;
            for row in 0..outer {
                for (list, size) in &lists {
                    out.extend_from_slice(&list[row * size..(row + 1) * size]);
                }
            }
            Data::$kind(out)
        }};
    }
    let data = match first.data() {
        Data::F32(_) => of!(F32, call.pool.empty(length)),
        Data::U8(_) => of!(U8, Vec::with_capacity(length)),
        Data::I8(_) => of!(I8, Vec::with_capacity(length)),
        Data::I32(_) => of!(I32, Vec::with_capacity(length)),
        Data::I64(_) => of!(I64, Vec::with_capacity(length)),
        Data::Bool(_) => of!(Bool, Vec::with_capacity(length)),
    };
    one(dims, data)
}

impl Tensor {
    /// A constant of a file, if it is of a type that tensors have.
    pub(crate) fn from_proto(proto: &TensorProto) -> Result<Self, String> {
        let dims = proto.shape().ok_or("a negative dimension")?;
        let list = |e: crate::onnx::TensorError| e.to_string();
        let data = match proto.element_type().map_err(list)? {
            DataType::Float => Data::F32(proto.to_f32().map_err(list)?),
            DataType::Uint8 => Data::U8(proto.to_u8().map_err(list)?),
            DataType::Int8 => Data::I8(proto.to_i8().map_err(list)?),
            DataType::Int32 => Data::I32(proto.to_i32().map_err(list)?),
            DataType::Int64 => Data::I64(proto.to_i64().map_err(list)?),
            DataType::Bool if proto.raw_data.is_empty() => {
                Data::Bool(proto.int32_data.iter().map(|v| *v != 0).collect())
            }
            DataType::Bool => Data::Bool(proto.raw_data.iter().map(|v| *v != 0).collect()),
            other => return Err(format!("a constant of {other:?}")),
        };
        tensor(dims, data)
    }

    pub(crate) fn to_proto(&self, name: &str) -> TensorProto {
        let dims = &self.shape();
        match self.data() {
            Data::F32(v) => TensorProto::f32(name, dims, v),
            Data::U8(v) => TensorProto::u8(name, dims, v),
            Data::I8(v) => TensorProto::i8(name, dims, v),
            Data::I32(v) => TensorProto::i32(name, dims, v),
            Data::I64(v) => TensorProto::i64(name, dims, v),
            Data::Bool(v) => {
                let bytes: Vec<u8> = v.iter().map(|v| u8::from(*v)).collect();
                TensorProto { data_type: DataType::Bool as i32, ..TensorProto::u8(name, dims, &bytes) }
            }
        }
    }
}
