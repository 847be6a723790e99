//! Operators on two tensors that broadcast, and the choice between two.

use super::{Call, broadcast, get, one, pick, stretched};
use crate::tensor::{Data, Tensor};

/// Two tensors stretched to one shape.
fn pair(a: &Tensor, b: &Tensor) -> Result<(Vec<usize>, Data, Data), String> {
    let dims = broadcast(a, b)?;
    let all = |t: &Tensor| match t.shape() == dims {
        true => Ok(t.data().clone()),
        false => pick(t.data(), &stretched(t.shape(), &dims)?),
    };
    let (a, b) = (all(a)?, all(b)?);
    Ok((dims, a, b))
}

/// Add, Sub, Mul, Div, Pow, Mod; Max and Min of any number. Integers wrap; a division by 0 gives 0.
pub(super) fn arithmetic(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let first = get(inputs, 0)?;
    if inputs.len() == 1 {
        return Ok(vec![first.clone()]);
    }
    let mut total = two(call, first, get(inputs, 1)?)?;
    for index in 2..inputs.len() {
        total = two(call, &total, get(inputs, index)?)?;
    }
    Ok(vec![total])
}

/// f32 of which one side has the shape of the result and the other repeats without a gap: all but its leading dimensions
/// are the same.
fn streamed(call: &Call, a: &Tensor, b: &Tensor) -> Result<Option<Tensor>, String> {
    let (Some(x), Some(y)) = (a.as_f32(), b.as_f32()) else { return Ok(None) };
    let repeats = |small: &Tensor, large: &Tensor| {
        let dims = small.shape();
        let own = &dims[dims.iter().position(|d| *d != 1).unwrap_or(dims.len())..];
        dims.len() <= large.shape().len() && large.shape().ends_with(own)
    };
    let (long, short, turned) = match (repeats(b, a), repeats(a, b)) {
        (true, _) => (x, y, false),
        (_, true) => (y, x, true),
        _ => return Ok(None),
    };
    let mut out = call.pool.empty(long.len());
    for long in long.chunks(short.len().max(1)) {
        let pairs = long.iter().zip(short.iter().cycle());
        match (call.node.op_type.as_str(), turned) {
            ("Add", _) => out.extend(pairs.map(|(a, b)| a + b)),
            ("Mul", _) => out.extend(pairs.map(|(a, b)| a * b)),
            ("Sub", false) => out.extend(pairs.map(|(a, b)| a - b)),
            ("Sub", true) => out.extend(pairs.map(|(b, a)| a - b)),
            ("Div", false) => out.extend(pairs.map(|(a, b)| a / b)),
            ("Div", true) => out.extend(pairs.map(|(b, a)| a / b)),
            _ => return Ok(None),
        }
    }
    let dims = if turned { b } else { a }.shape().to_vec();
    super::tensor(dims, Data::F32(out)).map(Some)
}

macro_rules! whole {
    ($operator:expr, $a:expr, $b:expr) => {
        $a.iter()
            .zip(&$b)
            .map(|(a, b)| match $operator {
                "Add" => a.wrapping_add(*b),
                "Sub" => a.wrapping_sub(*b),
                "Mul" => a.wrapping_mul(*b),
                "Div" => a.checked_div(*b).unwrap_or(0),
                // The sign of the divisor: Python's `%`.
                "Mod" => match a.checked_rem(*b) {
                    Some(rest) if rest != 0 && (rest as i64 ^ *b as i64) < 0 => rest.wrapping_add(*b),
                    rest => rest.unwrap_or(0),
                },
                "Pow" => a.wrapping_pow(u32::try_from(*b).unwrap_or(0)),
                "Max" => *a.max(b),
                _ => *a.min(b),
            })
            .collect()
    };
}

fn two(call: &Call, a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    if let Some(total) = streamed(call, a, b)? {
        return Ok(total);
    }
    let operator = call.node.op_type.as_str();
    let (dims, a, b) = pair(a, b)?;
    let data = match (a, b) {
        (Data::F32(a), Data::F32(b)) => {
            let each = |(a, b): (&f32, &f32)| match operator {
                "Add" => a + b,
                "Sub" => a - b,
                "Mul" => a * b,
                "Div" => a / b,
                "Mod" => a % b,
                "Pow" => a.powf(*b),
                "Max" => a.max(*b),
                _ => a.min(*b),
            };
            Data::F32(a.iter().zip(&b).map(each).collect())
        }
        (Data::I64(a), Data::I64(b)) => Data::I64(whole!(operator, a, b)),
        (Data::I32(a), Data::I32(b)) => Data::I32(whole!(operator, a, b)),
        (Data::U8(a), Data::U8(b)) => Data::U8(whole!(operator, a, b)),
        (Data::I8(a), Data::I8(b)) => Data::I8(whole!(operator, a, b)),
        (a, b) => return Err(format!("operands of {} and {}", a.type_name(), b.type_name())),
    };
    super::tensor(dims, data)
}

pub(super) fn comparison(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    fn list<T: PartialOrd>(operator: &str, a: &[T], b: &[T]) -> Vec<bool> {
        let each = |(a, b): (&T, &T)| match operator {
            "Equal" => a == b,
            "Greater" => a > b,
            "GreaterOrEqual" => a >= b,
            "Less" => a < b,
            _ => a <= b,
        };
        a.iter().zip(b).map(each).collect()
    }
    let operator = call.node.op_type.as_str();
    let (dims, a, b) = pair(get(inputs, 0)?, get(inputs, 1)?)?;
    let result = match (&a, &b) {
        (Data::Bool(a), Data::Bool(b)) => {
            let each = |(a, b): (&bool, &bool)| match operator {
                "And" => a & b,
                "Or" => a | b,
                "Xor" => a ^ b,
                _ => a == b,
            };
            a.iter().zip(b).map(each).collect()
        }
        (Data::F32(a), Data::F32(b)) => list(operator, a, b),
        (Data::I64(a), Data::I64(b)) => list(operator, a, b),
        (Data::I32(a), Data::I32(b)) => list(operator, a, b),
        (Data::U8(a), Data::U8(b)) => list(operator, a, b),
        (Data::I8(a), Data::I8(b)) => list(operator, a, b),
        (a, b) => return Err(format!("operands of {} and {}", a.type_name(), b.type_name())),
    };
    one(dims, Data::Bool(result))
}

/// Where: the second where the first is true, else the third.
pub(super) fn choose(_: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let (condition, a, b) = (get(inputs, 0)?, get(inputs, 1)?, get(inputs, 2)?);
    let Data::Bool(flags) = condition.data() else { return Err("its condition is no bool".into()) };
    let dims = broadcast(a, b)?;
    let dims = crate::shape::broadcast(condition.shape(), &dims).ok_or("shapes that do not broadcast")?;
    let [condition, a_at, b_at] = [condition, a, b].map(|t| stretched(t.shape(), &dims));
    let (condition, a_at, b_at) = (condition?, a_at?, b_at?);
    // Both in one list, so that one pick serves.
    let (both, border) = joined(a.data(), b.data())?;
    let at: Vec<usize> =
        (0..condition.len()).map(|i| if flags[condition[i]] { a_at[i] } else { border + b_at[i] }).collect();
    one(dims, pick(&both, &at)?)
}

/// Two lists one behind the other, and where the second begins.
pub(super) fn joined(a: &Data, b: &Data) -> Result<(Data, usize), String> {
    let data = match (a, b) {
        (Data::F32(a), Data::F32(b)) => Data::F32([&**a, b].concat()),
        (Data::U8(a), Data::U8(b)) => Data::U8([&**a, b].concat()),
        (Data::I8(a), Data::I8(b)) => Data::I8([&**a, b].concat()),
        (Data::I32(a), Data::I32(b)) => Data::I32([&**a, b].concat()),
        (Data::I64(a), Data::I64(b)) => Data::I64([&**a, b].concat()),
        (Data::Bool(a), Data::Bool(b)) => Data::Bool([&**a, b].concat()),
        (a, b) => return Err(format!("values of {} and {}", a.type_name(), b.type_name())),
    };
    Ok((data, a.len()))
}

pub(super) fn prelu(_: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let slope = get(inputs, 1)?;
    let at = stretched(slope.shape(), x.shape())?;
    let (values, slopes) = (super::floats(inputs, 0)?, super::floats(inputs, 1)?);
    let each = |(v, at): (&f32, usize)| if *v < 0.0 { v * slopes[at] } else { *v };
    one(x.shape().to_vec(), Data::F32(values.iter().zip(at).map(each).collect()))
}
