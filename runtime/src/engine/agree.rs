//! Whether two engines compute the same: [`agree`].

use crate::tensor::{Data, Tensor};

/// How far f32 may be away.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Near {
    /// Of its range.
    pub(crate) part: f32,
    /// Of the range of its channel, where that is less and an output has channels: what is large in one of them hides
    /// nothing in another.
    pub(crate) by_channel: bool,
}

/// Outputs of a network of int8: a few steps of a byte, whose size the whole output shares.
pub(crate) const NEAR: Near = Near { part: 1.0 / 64.0, by_channel: false };

/// Whether two results are of one network: drivers may round a byte otherwise in a thousand.
pub(crate) fn agree(expected: &[Tensor], actual: &[Tensor], near: Near) -> Result<(), String> {
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
                let far = near.first_far((a, b), expected[at].shape());
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

impl Near {
    /// The first pair that is too far from each other.
    fn first_far(&self, (expected, actual): (&[f32], &[f32]), dims: &[usize]) -> Option<(f32, f32)> {
        /// A channel of next to nothing is compared by that part of the range of all.
        const LEAST: f32 = 0.1;
        /// Elements of a channel that say what its range is.
        const ENOUGH: usize = 64;
        let range = |values: &[f32]| {
            let finite = || values.iter().copied().filter(|v| v.is_finite());
            finite().fold(0.0, f32::max) - finite().fold(0.0, f32::min)
        };
        let whole = range(expected);
        let channel = dims.iter().skip(2).product::<usize>();
        let by_channel = self.by_channel && dims.len() > 2 && channel >= ENOUGH;
        let size = if by_channel { channel } else { expected.len().max(1) };
        let mut rows = expected.chunks(size).zip(actual.chunks(size));
        rows.find_map(|(expected, actual)| {
            let own = if by_channel { range(expected).max(LEAST * whole) } else { whole };
            let far = |(a, b): &(&f32, &f32)| {
                let is_near = (**a - **b).abs() <= self.part * own;
                !(is_near || a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
            };
            expected.iter().zip(actual).find(far).map(|(a, b)| (*a, *b))
        })
    }
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

    #[test]
    fn a_large_channel_hides_nothing_in_a_small_one() {
        // Boxes up to 640 and scores up to 1.
        let values: Vec<f32> =
            (0..200).map(|i| if i < 100 { 6.4 * i as f32 } else { 0.01 * (i - 100) as f32 }).collect();
        let output = |values: &[f32]| [Tensor::f32(vec![1, 2, 100], values.to_vec()).unwrap()];
        let off = |at: usize, by: f32| {
            let mut other = values.clone();
            other[at] += by;
            output(&other)
        };
        let by_channel =
            |actual: &[Tensor]| agree(&output(&values), actual, Near { part: 1e-3, by_channel: true });
        assert!(by_channel(&off(3, 0.5)).is_ok() && by_channel(&off(150, 0.05)).is_ok());
        assert!(by_channel(&off(3, 0.7)).is_err() && by_channel(&off(150, 0.1)).is_err());
        assert!(near(&output(&values), &off(150, 0.5)).is_ok());
    }
}
