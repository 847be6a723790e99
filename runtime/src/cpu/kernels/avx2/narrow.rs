//! Vectors of 16 bytes.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]

use std::arch::x86_64::*;

use super::{super::simd::Simd, Dot, Narrow};

impl<D: Dot> Simd for Narrow<D> {
    type Int = __m128i;
    type Real = __m128;
    const LANES: usize = 1;

    #[inline(always)]
    fn zero(self) -> __m128i {
        // Safety: the token proves the instruction.
        unsafe { _mm_setzero_si128() }
    }

    #[inline(always)]
    fn splat_byte(self, value: u8) -> __m128i {
        // Safety: the token proves the instruction.
        unsafe { _mm_set1_epi8(value as i8) }
    }

    #[inline(always)]
    fn splat_word(self, value: i16) -> __m128i {
        // Safety: the token proves the instruction.
        unsafe { _mm_set1_epi16(value) }
    }

    #[inline(always)]
    fn splat_real(self, value: f32) -> __m128 {
        // Safety: the token proves the instruction.
        unsafe { _mm_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m128i {
        // Safety: the token proves the instruction, the caller the 16 bytes.
        unsafe { _mm_loadu_si128(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat_four(self, from: *const u8) -> __m128i {
        // Safety: the token proves the instruction, the caller the 4 bytes.
        unsafe { _mm_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_real(self, from: *const f32) -> __m128 {
        // Safety: the token proves the instruction, the caller the 4 values.
        unsafe { _mm_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8, bytes: __m128i) {
        // Safety: the token proves the instruction, the caller the 16 bytes.
        unsafe { _mm_storeu_si128(to.cast(), bytes) }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // Safety: a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn dot(self, sums: __m128i, bytes: __m128i, weights: __m128i) -> __m128i {
        self.0.dot128(sums, bytes, weights)
    }

    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
        // Safety: the token proves the instructions.
        unsafe {
            let (ab, ab_high) = (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b));
            let (cd, cd_high) = (_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d));
            [
                _mm_unpacklo_epi16(ab, cd),
                _mm_unpackhi_epi16(ab, cd),
                _mm_unpacklo_epi16(ab_high, cd_high),
                _mm_unpackhi_epi16(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    fn pack(self, [a, b, c, d]: [__m128i; 4], zero: __m128i) -> __m128i {
        // Safety: the token proves the instructions.
        unsafe {
            let low = _mm_adds_epi16(_mm_packs_epi32(a, b), zero);
            let high = _mm_adds_epi16(_mm_packs_epi32(c, d), zero);
            _mm_packus_epi16(low, high)
        }
    }

    #[inline(always)]
    fn transpose(self, [a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
        // Safety: the token proves the instructions.
        unsafe {
            let (ab, ab_high) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
            [
                _mm_unpacklo_epi64(ab, cd),
                _mm_unpackhi_epi64(ab, cd),
                _mm_unpacklo_epi64(ab_high, cd_high),
                _mm_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    fn gather_rows<const V: usize>(self, bytes: __m128i) -> __m128i {
        // There is one lane.
        bytes
    }

    #[inline(always)]
    fn max_bytes(self, a: __m128i, b: __m128i) -> __m128i {
        // Safety: the token proves the instruction.
        unsafe { _mm_max_epu8(a, b) }
    }

    #[inline(always)]
    fn to_real(self, values: __m128i) -> __m128 {
        // Safety: the token proves the instruction.
        unsafe { _mm_cvtepi32_ps(values) }
    }

    #[inline(always)]
    fn round(self, values: __m128) -> __m128i {
        // Safety: the token proves the instruction.
        unsafe { _mm_cvtps_epi32(values) }
    }

    #[inline(always)]
    fn mul(self, a: __m128, b: __m128) -> __m128 {
        // Safety: the token proves the instruction.
        unsafe { _mm_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m128, b: __m128) -> __m128 {
        // Safety: the token proves the instruction.
        unsafe { _mm_div_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m128, b: __m128) -> __m128 {
        // Safety: the token proves the instruction.
        unsafe { _mm_sub_ps(a, b) }
    }

    #[inline(always)]
    fn any_far(self, values: __m128, least: f32) -> bool {
        // Safety: the token proves the instructions.
        unsafe {
            let size = _mm_andnot_ps(_mm_set1_ps(-0.0), values);
            _mm_movemask_ps(_mm_cmp_ps::<_CMP_NLT_UQ>(size, _mm_set1_ps(least))) != 0
        }
    }

    #[inline(always)]
    fn mul_add(self, a: __m128, b: __m128, c: __m128) -> __m128 {
        // Safety: the token proves the instruction.
        unsafe { _mm_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn min(self, a: __m128, b: __m128) -> __m128 {
        // Safety: the token proves the instruction.
        unsafe { _mm_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m128, b: __m128) -> __m128 {
        // Safety: the token proves the instruction.
        unsafe { _mm_max_ps(a, b) }
    }
}
