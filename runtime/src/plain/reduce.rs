//! Operators that leave one element of many: means, sums, extremes and where they are.

use super::{Call, axis, get, integers, offsets, one, size, strides};
use crate::tensor::{Data, Tensor};

/// For each kept index of a tensor the offset of its first element, and for each reduced one how much further.
struct Parts {
    dims: Vec<usize>,
    firsts: Vec<usize>,
    further: Vec<usize>,
}

impl Parts {
    fn of(x: &[usize], axes: &[usize], keeps: bool) -> Result<Self, String> {
        let own = strides(x);
        let part = |reduced: bool| -> Result<Vec<usize>, String> {
            let taken: Vec<usize> = (0..x.len()).filter(|d| axes.contains(d) == reduced).collect();
            let dims: Vec<usize> = taken.iter().map(|d| x[*d]).collect();
            let steps: Vec<isize> = taken.iter().map(|d| own[*d] as isize).collect();
            offsets(&dims, &steps, 0)
        };
        let dim = |d: usize| match axes.contains(&d) {
            true => keeps.then_some(1),
            false => Some(x[d]),
        };
        let dims: Vec<usize> = (0..x.len()).filter_map(dim).collect();
        size(&dims)?;
        Ok(Self { dims, firsts: part(false)?, further: part(true)? })
    }

    fn each<'a, T: Copy>(
        &'a self,
        values: &'a [T],
    ) -> impl Iterator<Item = impl Iterator<Item = T> + 'a> + 'a {
        self.firsts.iter().map(move |first| self.further.iter().map(move |more| values[first + more]))
    }
}

/// ReduceMean, ReduceSum, ReduceMax, ReduceMin, ReduceProd; GlobalAveragePool. Sums of f32 are in f64.
pub(super) fn reduce(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let rank = x.shape().len();
    let operator = call.node.op_type.as_str();
    let axes = match operator {
        "GlobalAveragePool" => (2..rank).collect(),
        _ => {
            let axes = call.list(inputs, 1, "axes")?.unwrap_or_default();
            let axes = axes.into_iter().map(|a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
            match axes.is_empty() {
                true if call.node.int("noop_with_empty_axes") == Some(1) => return Ok(vec![x.clone()]),
                true => (0..rank).collect(),
                false => axes,
            }
        }
    };
    let keeps = operator == "GlobalAveragePool" || call.node.int("keepdims").unwrap_or(1) != 0;
    let parts = Parts::of(x.shape(), &axes, keeps)?;
    let count = parts.further.len();
    let data = match x.data() {
        Data::F32(values) => {
            let f64s = parts.each(values).map(|part| part.map(f64::from));
            Data::F32(match operator {
                "ReduceSum" => f64s.map(|p| p.sum::<f64>() as f32).collect(),
                "ReduceProd" => f64s.map(|p| p.product::<f64>() as f32).collect(),
                "ReduceMax" => f64s.map(|p| p.fold(f64::NEG_INFINITY, f64::max) as f32).collect(),
                "ReduceMin" => f64s.map(|p| p.fold(f64::INFINITY, f64::min) as f32).collect(),
                _ => f64s.map(|p| (p.sum::<f64>() / count as f64) as f32).collect(),
            })
        }
        Data::I64(_) | Data::I32(_) => {
            let values = integers(x)?;
            let sums: Vec<i64> = match operator {
                "ReduceSum" => parts.each(&values).map(|p| p.fold(0i64, i64::wrapping_add)).collect(),
                "ReduceProd" => parts.each(&values).map(|p| p.fold(1i64, i64::wrapping_mul)).collect(),
                "ReduceMax" => parts.each(&values).map(|p| p.fold(i64::MIN, i64::max)).collect(),
                "ReduceMin" => parts.each(&values).map(|p| p.fold(i64::MAX, i64::min)).collect(),
                _ => return Err("a mean of integers".into()),
            };
            match x.data() {
                Data::I64(_) => Data::I64(sums),
                _ => Data::I32(sums.into_iter().map(|v| v as i32).collect()),
            }
        }
        other => return Err(format!("its input is {}", other.type_name())),
    };
    one(parts.dims, data)
}

/// ArgMax and ArgMin: of equal ones the first, or the last where it is asked for.
pub(super) fn extreme(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let d = call.axis("axis", 0, x.shape().len())?;
    let parts = Parts::of(x.shape(), &[d], call.node.int("keepdims").unwrap_or(1) != 0)?;
    if parts.further.is_empty() {
        return Err("it looks for an extreme of nothing".into());
    }
    let (last, greatest) = (call.node.int("select_last_index") == Some(1), call.node.op_type == "ArgMax");
    let values: Vec<f64> = match x.data() {
        Data::F32(v) => v.iter().map(|v| f64::from(*v)).collect(),
        Data::U8(v) => v.iter().map(|v| f64::from(*v)).collect(),
        Data::I8(v) => v.iter().map(|v| f64::from(*v)).collect(),
        _ => integers(x)?.into_iter().map(|v| v as f64).collect(),
    };
    let place = |part: &mut dyn Iterator<Item = f64>| {
        let mut best: Option<(i64, f64)> = None;
        for (i, v) in part.enumerate() {
            let wins = best.is_none_or(|(_, b)| (if greatest { v > b } else { v < b }) || (last && v == b));
            if wins {
                best = Some((i as i64, v));
            }
        }
        best.map_or(0, |(i, _)| i)
    };
    let found = parts.each(&values).map(|mut part| place(&mut part)).collect();
    one(parts.dims, Data::I64(found))
}
