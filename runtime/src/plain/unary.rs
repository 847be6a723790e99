//! Operators on one tensor, element by element. [`function`] serves the byte engine's tables too.

use super::{Call, floats, get, one, vectors};
use crate::{
    onnx::{DataType, NodeProto},
    tensor::{Data, Tensor},
};

/// What an operator does to one f32, computed in f64 where that is more than one rounding.
pub(crate) fn function(node: &NodeProto) -> Option<Box<dyn Fn(f32) -> f32>> {
    let float = |name: &str, absent: f32| node.float(name).unwrap_or(absent);
    Some(match node.op_type.as_str() {
        "Abs" => Box::new(f32::abs),
        "Ceil" => Box::new(f32::ceil),
        "Elu" => {
            let alpha = float("alpha", 1.0);
            Box::new(move |x| if x < 0.0 { alpha * f64::from(x).exp_m1() as f32 } else { x })
        }
        "Erf" => Box::new(|x| erf(x.into()) as f32),
        "Exp" => Box::new(|x| f64::from(x).exp() as f32),
        "Floor" => Box::new(f32::floor),
        "Gelu" if node.string("approximate") == Some("tanh") => Box::new(|x| {
            let x = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            (0.5 * x * (1.0 + inner.tanh())) as f32
        }),
        "Gelu" => Box::new(|x| {
            let x = f64::from(x);
            (0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))) as f32
        }),
        "HardSigmoid" => {
            let (alpha, beta) = (float("alpha", 0.2), float("beta", 0.5));
            Box::new(move |x| (alpha * x + beta).clamp(0.0, 1.0))
        }
        "HardSwish" => Box::new(|x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        "LeakyRelu" => {
            let alpha = float("alpha", 0.01);
            Box::new(move |x| if x < 0.0 { alpha * x } else { x })
        }
        "Log" => Box::new(|x| f64::from(x).ln() as f32),
        "Mish" => Box::new(|x| {
            let x = f64::from(x);
            (x * x.exp().ln_1p().tanh()) as f32
        }),
        "Neg" => Box::new(|x| -x),
        "Reciprocal" => Box::new(|x| 1.0 / x),
        "Relu" => Box::new(|x| x.max(0.0)),
        "Round" => Box::new(f32::round_ties_even),
        "Selu" => {
            let (alpha, gamma) = (float("alpha", 1.673_263_2), float("gamma", 1.050_701));
            Box::new(move |x| gamma * if x < 0.0 { alpha * f64::from(x).exp_m1() as f32 } else { x })
        }
        "Sigmoid" => Box::new(|x| (1.0 / (1.0 + (-f64::from(x)).exp())) as f32),
        "Sign" => Box::new(|x| if x == 0.0 { 0.0 } else { x.signum() }),
        "Softplus" => Box::new(|x| f64::from(x).exp().ln_1p() as f32),
        "Softsign" => Box::new(|x| x / (1.0 + x.abs())),
        "Sqrt" => Box::new(f32::sqrt),
        "Tanh" => Box::new(|x| f64::from(x).tanh() as f32),
        _ => return None,
    })
}

/// Within 1e-15. Abramowitz and Stegun 7.1.6 near 0, the continued fraction 7.1.14 elsewhere.
fn erf(x: f64) -> f64 {
    let size = x.abs();
    if size < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum;
    }
    if size > 6.0 {
        return x.signum();
    }
    let fraction = (1..=60).rev().fold(size, |rest, n| size + f64::from(n) / 2.0 / rest);
    x.signum() * (1.0 - (-x * x).exp() / (fraction * std::f64::consts::PI.sqrt()))
}

pub(super) fn unary(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let data = match (x.data(), call.node.op_type.as_str()) {
        // Tables of bytes are made with the function below; where whole tensors go through, time counts.
        (Data::F32(values), "Sigmoid") => {
            let mut out = call.pool.list(values.len());
            vectors::sigmoid(values, &mut out);
            Data::F32(out)
        }
        (Data::F32(values), _) => {
            let function = function(&call.node).ok_or("it is unknown")?;
            Data::F32(values.iter().map(|v| function(*v)).collect())
        }
        (Data::I64(v), "Neg") => Data::I64(v.iter().map(|v| v.wrapping_neg()).collect()),
        (Data::I32(v), "Neg") => Data::I32(v.iter().map(|v| v.wrapping_neg()).collect()),
        (Data::I8(v), "Neg") => Data::I8(v.iter().map(|v| v.wrapping_neg()).collect()),
        (Data::I64(v), "Abs") => Data::I64(v.iter().map(|v| v.wrapping_abs()).collect()),
        (Data::I32(v), "Abs") => Data::I32(v.iter().map(|v| v.wrapping_abs()).collect()),
        (Data::I64(v), "Relu") => Data::I64(v.iter().map(|v| *v.max(&0)).collect()),
        (Data::I32(v), "Relu") => Data::I32(v.iter().map(|v| *v.max(&0)).collect()),
        (Data::I8(v), "Relu") => Data::I8(v.iter().map(|v| *v.max(&0)).collect()),
        (other, _) => return Err(format!("its input is {}", other.type_name())),
    };
    one(x.shape().to_vec(), data)
}

pub(super) fn not(_: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let Data::Bool(values) = x.data() else { return Err("its input is no bool".into()) };
    one(x.shape().to_vec(), Data::Bool(values.iter().map(|v| !v).collect()))
}

/// Clip 1 and 6 with attributes, 11 to 13 with inputs. Low above high gives high.
pub(super) fn clip(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    fn list<T: PartialOrd + Copy>(values: &[T], low: Option<T>, high: Option<T>) -> Vec<T> {
        let each = |v: &T| {
            let v = low.filter(|low| *v < *low).unwrap_or(*v);
            high.filter(|high| v > *high).unwrap_or(v)
        };
        values.iter().map(each).collect()
    }
    let x = get(inputs, 0)?;
    let bound = |index: usize| inputs.get(index).copied().flatten().map(Tensor::data);
    macro_rules! of {
        ($kind:ident, $values:expr) => {{
            let one = |bound: Option<&Data>| match bound {
                None => Ok(None),
                Some(Data::$kind(v)) => Ok(v.first().copied()),
                Some(other) => Err(format!("a bound of {}", other.type_name())),
            };
            Data::$kind(list($values, one(bound(1))?, one(bound(2))?))
        }};
    }
    let data = match x.data() {
        Data::F32(values) if call.opset < 11 => {
            Data::F32(list(values, call.node.float("min"), call.node.float("max")))
        }
        Data::F32(values) => of!(F32, values),
        Data::U8(values) => of!(U8, values),
        Data::I8(values) => of!(I8, values),
        Data::I32(values) => of!(I32, values),
        Data::I64(values) => of!(I64, values),
        Data::Bool(_) => return Err("its input is bool".into()),
    };
    one(x.shape().to_vec(), data)
}

pub(super) fn cast(call: &Call, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
    let x = get(inputs, 0)?;
    let to = call.node.int("to").and_then(|to| i32::try_from(to).ok());
    let to = to.and_then(|to| DataType::try_from(to).ok()).ok_or("it has no type to cast to")?;
    // i64 and f64 between them hold all values of the types that there are.
    macro_rules! from {
        ($values:expr, $wide:ty) => {{
            let wide = $values.iter().map(|v| *v as $wide);
            match to {
                DataType::Float => Data::F32(wide.map(|v| v as f32).collect()),
                DataType::Uint8 => Data::U8(wide.map(|v| v as i64 as u8).collect()),
                DataType::Int8 => Data::I8(wide.map(|v| v as i64 as i8).collect()),
                DataType::Int32 => Data::I32(wide.map(|v| v as i64 as i32).collect()),
                DataType::Int64 => Data::I64(wide.map(|v| v as i64).collect()),
                DataType::Bool => Data::Bool(wide.map(|v| v != 0 as $wide).collect()),
                other => return Err(format!("a cast to {other:?}")),
            }
        }};
    }
    let data = match x.data() {
        Data::F32(_) => from!(floats(inputs, 0)?, f64),
        Data::U8(v) => from!(v, i64),
        Data::I8(v) => from!(v, i64),
        Data::I32(v) => from!(v, i64),
        Data::I64(v) => from!(v, i64),
        Data::Bool(v) => {
            let v: Vec<u8> = v.iter().map(|v| u8::from(*v)).collect();
            from!(v, i64)
        }
    };
    one(x.shape().to_vec(), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_exact() {
        // Abramowitz and Stegun, table 7.1; 2.5 and 3 to both sides of where the formula changes.
        let table = [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)];
        let more = [(2.49, 0.999_572_016_7), (2.51, 0.999_614_295_0), (3.0, 0.999_977_909_5)];
        for (x, expected) in table.into_iter().chain(more) {
            assert!((erf(x) - expected).abs() < 3e-6, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!((erf(2.499_999) - erf(2.500_001)).abs() < 1e-8);
        assert!((erf(0.5) - 0.520_499_877_813_046_5).abs() < 1e-15);
        assert!((erf(3.0) - 0.999_977_909_503_001_4).abs() < 1e-13);
    }
}
