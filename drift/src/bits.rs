//! IEEE 754 half-precision floats in bytes, little-endian: half the size of a reference's projection, at a precision
//! (1/2048) far below the error of estimating it.

/// Nearest half, ties to even; overflow becomes the largest finite half.
pub(crate) fn to_half(value: f32) -> u16 {
    const MAX: f32 = 65_504.0;
    let value = value.clamp(-MAX, MAX);
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let exponent = ((bits >> 23) & 0xff) as i32 - 127;
    let (mantissa, shift) = if exponent < -14 {
        // Subnormal: the implied one becomes visible and moves right.
        ((bits & 0x7f_ffff) | 0x80_0000, 13 + (-14 - exponent))
    } else {
        ((((exponent + 15) as u32) << 23) | (bits & 0x7f_ffff), 13)
    };
    if shift > 24 {
        return sign;
    }
    let half = mantissa >> shift;
    let rest = mantissa & ((1 << shift) - 1);
    let middle = 1 << (shift - 1);
    let up = rest > middle || (rest == middle && half & 1 == 1);
    sign | (half + u32::from(up)) as u16
}

pub(crate) fn from_half(half: u16) -> f32 {
    let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(half >> 10) & 0x1f, f32::from(half & 0x3ff));
    sign * match exponent {
        0 => mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + mantissa / 1024.0) * 2f32.powi(exponent - 15),
    }
}

pub(crate) fn pack(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| to_half(*v).to_le_bytes()).collect()
}

/// An odd byte at the end is ignored; lengths are checked by the caller.
pub(crate) fn unpack(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| from_half(u16::from_le_bytes([b[0], b[1]]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_comes_back() {
        for half in 0..=u16::MAX {
            let value = from_half(half);
            if value.is_finite() && half != 0x8000 {
                assert_eq!(to_half(value), half, "{half:#x} {value}");
            }
        }
    }

    #[test]
    fn rounding_is_to_nearest_even_and_overflow_is_finite() {
        for (value, half) in [
            (1.0f32, 0x3c00u16),
            (-2.0, 0xc000),
            (1.0 + 1.0 / 2048.0, 0x3c00),
            (1.0 + 3.0 / 2048.0, 0x3c02),
            (1e9, 0x7bff),
            (f32::NEG_INFINITY, 0xfbff),
            (2f32.powi(-24), 1),
            (2f32.powi(-26), 0),
            (0.0, 0),
        ] {
            assert_eq!(to_half(value), half, "{value}");
        }
    }
}
