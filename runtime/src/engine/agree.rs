//! Whether two engines compute the same: [`agree`].

use crate::tensor::{Data, Tensor};

/// How far f32 outputs of a network of int8 may be away, of their range: a few steps of a byte.
pub(crate) const NEAR: f32 = 1.0 / 64.0;

/// Whether two results are of one network: drivers may round a byte otherwise in a thousand. `near`: how far f32 may be
/// away, of its range.
pub(crate) fn agree(expected: &[Tensor], actual: &[Tensor], near: f32) -> Result<(), String> {
    /// Of the elements of bytes, by 1.
    const ROUNDED: f64 = 1e-3;
    if expected.len() != actual.len() {
        return Err(format!("{} outputs, expected {}", actual.len(), expected.len()));
    }
    for (at, (a, b)) in expected.iter().zip(actual).enumerate() {
        if a.shape() != b.shape() {
            return Err(format!("output {at} has shape {:?}, expected {:?}", b.shape(), a.shape()));
        }
        let distances: Vec<u32> = match (a.data(), b.data()) {
            (Data::F32(a), Data::F32(b)) => {
                let finite = || a.iter().copied().filter(|v| v.is_finite());
                let (low, high) = (finite().fold(0.0, f32::min), finite().fold(0.0, f32::max));
                let near = near * (high - low);
                let far = a.iter().zip(b).find(|(a, b)| {
                    !((**a - **b).abs() <= near || a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
                });
                match far {
                    Some((a, b)) => return Err(format!("output {at} has {b} where {a} was expected")),
                    None => continue,
                }
            }
            (Data::U8(a), Data::U8(b)) => a.iter().zip(b).map(|(a, b)| a.abs_diff(*b).into()).collect(),
            (Data::I8(a), Data::I8(b)) => a.iter().zip(b).map(|(a, b)| a.abs_diff(*b).into()).collect(),
            (a, b) if a == b => continue,
            (a, b) if a.type_name() == b.type_name() => return Err(format!("output {at} has other values")),
            (a, b) => {
                return Err(format!("output {at} is other {}, expected {}", b.type_name(), a.type_name()));
            }
        };
        let differ = distances.iter().filter(|d| **d > 0).count();
        if differ as f64 > ROUNDED * distances.len() as f64 || distances.iter().any(|d| *d > 1) {
            let most = distances.iter().max().unwrap_or(&0);
            return Err(format!(
                "output {at}: {differ} of {} bytes differ, by up to {most}",
                distances.len()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(expected: &[Tensor], actual: &[Tensor]) -> Result<(), String> {
        agree(expected, actual, NEAR)
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::f32(vec![values.len()], values.to_vec()).unwrap()
    }

    #[test]
    fn one_byte_in_a_thousand_may_differ_by_one() {
        let bytes = |changed: &[(usize, u8)]| {
            let mut bytes = vec![100u8; 2_000];
            changed.iter().for_each(|(at, value)| bytes[*at] = *value);
            [Tensor::new(vec![2_000], Data::U8(bytes)).unwrap()]
        };
        assert!(near(&bytes(&[]), &bytes(&[(3, 101), (1_999, 99)])).is_ok());
        assert!(near(&bytes(&[]), &bytes(&[(3, 102)])).is_err());
        assert!(near(&bytes(&[]), &bytes(&[(3, 101), (4, 101), (5, 101)])).is_err());
        assert!(near(&[tensor(&[0.0, 1.0])], &[tensor(&[0.01, 1.0])]).is_ok());
        assert!(near(&[tensor(&[0.0, 1.0])], &[tensor(&[0.02, 1.0])]).is_err());
        assert!(near(&[tensor(&[0.0, 1.0])], &[tensor(&[f32::NAN, 1.0])]).is_err());
    }
}
