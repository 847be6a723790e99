//! NEON: 16 bytes a vector. Products of bytes by multiplication alone, with `sdot` or with `usdot`.
//!
//! The first two know only signed bytes: they work on a byte less 128 ([`super::Isa::shift`]). The intrinsics of `sdot`
//! and `usdot` are not stable yet, so that these are written as assembly.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]

use std::{
    arch::{aarch64::*, asm, is_aarch64_feature_detected},
    ops::Range,
};

use super::{
    Target,
    bytewise::{self, Quantise, Sum},
    depthwise::{Filters, Rows, To},
    product::Job,
    simd::Simd,
};

/// Proof that this processor has NEON; only [`Token::detect`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(());

impl Token {
    pub(super) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// Proof that this processor has `sdot` too; only [`DotToken::detect`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DotToken(());

impl DotToken {
    pub(super) fn detect() -> Option<Self> {
        (Token::detect().is_some() && is_aarch64_feature_detected!("dotprod")).then_some(Self(()))
    }
}

/// Proof that this processor has `usdot` too; only [`MixedToken::detect`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MixedToken(());

impl MixedToken {
    pub(super) fn detect() -> Option<Self> {
        (Token::detect().is_some() && is_aarch64_feature_detected!("i8mm")).then_some(Self(()))
    }
}

impl From<DotToken> for Token {
    fn from(_: DotToken) -> Self {
        Self(())
    }
}

impl From<MixedToken> for Token {
    fn from(_: MixedToken) -> Self {
        Self(())
    }
}

/// [`Simd::dot`]. A value proves NEON and whatever else it takes.
pub(super) trait Dot: Copy {
    fn dot(self, sums: int32x4_t, bytes: int32x4_t, weights: int32x4_t) -> int32x4_t;
}

impl Dot for Token {
    #[inline(always)]
    fn dot(self, sums: int32x4_t, bytes: int32x4_t, weights: int32x4_t) -> int32x4_t {
        // Safety: the token proves the instructions.
        unsafe {
            let bytes = signed(bytes);
            let weights = vreinterpretq_s8_s32(weights);
            // A product of two signed bytes fits 16 bits; each is widened before the next is added.
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(bytes), vget_low_s8(weights)));
            let high = vpaddlq_s16(vmull_high_s8(bytes, weights));
            vaddq_s32(sums, vpaddq_s32(low, high))
        }
    }
}

impl Dot for DotToken {
    #[inline(always)]
    fn dot(self, sums: int32x4_t, bytes: int32x4_t, weights: int32x4_t) -> int32x4_t {
        // Safety: the token proves the instructions.
        unsafe { sdot(sums, signed(bytes), vreinterpretq_s8_s32(weights)) }
    }
}

impl Dot for MixedToken {
    #[inline(always)]
    fn dot(self, sums: int32x4_t, bytes: int32x4_t, weights: int32x4_t) -> int32x4_t {
        // Safety: the token proves the instruction.
        unsafe { usdot(sums, vreinterpretq_u8_s32(bytes), vreinterpretq_s8_s32(weights)) }
    }
}

/// Unsigned bytes less 128.
///
/// # Safety
/// The processor has NEON.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn signed(bytes: int32x4_t) -> int8x16_t {
    vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(bytes), vdupq_n_u8(0x80)))
}

/// # Safety
/// The processor has dotprod.
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // Safety: works on registers alone.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sums, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// # Safety
/// The processor has i8mm.
#[target_feature(enable = "neon,i8mm")]
#[inline]
unsafe fn usdot(mut sums: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    // Safety: works on registers alone.
    unsafe {
        asm!("usdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sums, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// 16 bytes.
#[derive(Clone, Copy)]
pub(super) struct Vector<D>(pub(super) D);

impl<D: Dot> Simd for Vector<D> {
    type Int = int32x4_t;
    type Real = float32x4_t;
    const LANES: usize = 1;

    #[inline(always)]
    fn zero(self) -> int32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    fn splat_byte(self, value: u8) -> int32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vreinterpretq_s32_u8(vdupq_n_u8(value)) }
    }

    #[inline(always)]
    fn splat_word(self, value: i16) -> int32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vreinterpretq_s32_s16(vdupq_n_s16(value)) }
    }

    #[inline(always)]
    fn splat_real(self, value: f32) -> float32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> int32x4_t {
        // Safety: the token proves the instruction, the caller the 16 bytes.
        unsafe { vreinterpretq_s32_u8(vld1q_u8(from)) }
    }

    #[inline(always)]
    unsafe fn splat_four(self, from: *const u8) -> int32x4_t {
        // Safety: the token proves the instruction, the caller the 4 bytes.
        unsafe { vdupq_n_s32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_real(self, from: *const f32) -> float32x4_t {
        // Safety: the token proves the instruction, the caller the 4 values.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8, bytes: int32x4_t) {
        // Safety: the token proves the instruction, the caller the 16 bytes.
        unsafe { vst1q_u8(to, vreinterpretq_u8_s32(bytes)) }
    }

    #[inline(always)]
    fn dot(self, sums: int32x4_t, bytes: int32x4_t, weights: int32x4_t) -> int32x4_t {
        self.0.dot(sums, bytes, weights)
    }

    #[inline(always)]
    fn interleave(self, rows: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // Safety: the token proves the instructions.
        unsafe {
            let [a, b, c, d] = [
                vreinterpretq_u8_s32(rows[0]),
                vreinterpretq_u8_s32(rows[1]),
                vreinterpretq_u8_s32(rows[2]),
                vreinterpretq_u8_s32(rows[3]),
            ];
            let (ab, ab_high) =
                (vreinterpretq_u16_u8(vzip1q_u8(a, b)), vreinterpretq_u16_u8(vzip2q_u8(a, b)));
            let (cd, cd_high) =
                (vreinterpretq_u16_u8(vzip1q_u8(c, d)), vreinterpretq_u16_u8(vzip2q_u8(c, d)));
            [
                vreinterpretq_s32_u16(vzip1q_u16(ab, cd)),
                vreinterpretq_s32_u16(vzip2q_u16(ab, cd)),
                vreinterpretq_s32_u16(vzip1q_u16(ab_high, cd_high)),
                vreinterpretq_s32_u16(vzip2q_u16(ab_high, cd_high)),
            ]
        }
    }

    #[inline(always)]
    fn pack(self, [a, b, c, d]: [int32x4_t; 4], zero: int32x4_t) -> int32x4_t {
        // Safety: the token proves the instructions.
        unsafe {
            let zero = vreinterpretq_s16_s32(zero);
            let low = vqaddq_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b)), zero);
            let high = vqaddq_s16(vcombine_s16(vqmovn_s32(c), vqmovn_s32(d)), zero);
            vreinterpretq_s32_u8(vcombine_u8(vqmovun_s16(low), vqmovun_s16(high)))
        }
    }

    #[inline(always)]
    fn transpose(self, [a, b, c, d]: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // Safety: the token proves the instructions.
        unsafe {
            let (ab, ab_high) =
                (vreinterpretq_s64_s32(vzip1q_s32(a, b)), vreinterpretq_s64_s32(vzip2q_s32(a, b)));
            let (cd, cd_high) =
                (vreinterpretq_s64_s32(vzip1q_s32(c, d)), vreinterpretq_s64_s32(vzip2q_s32(c, d)));
            [
                vreinterpretq_s32_s64(vzip1q_s64(ab, cd)),
                vreinterpretq_s32_s64(vzip2q_s64(ab, cd)),
                vreinterpretq_s32_s64(vzip1q_s64(ab_high, cd_high)),
                vreinterpretq_s32_s64(vzip2q_s64(ab_high, cd_high)),
            ]
        }
    }

    #[inline(always)]
    fn gather_rows<const V: usize>(self, bytes: int32x4_t) -> int32x4_t {
        // There is one lane.
        bytes
    }

    #[inline(always)]
    fn max_bytes(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vreinterpretq_s32_u8(vmaxq_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b))) }
    }

    #[inline(always)]
    fn to_real(self, values: int32x4_t) -> float32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vcvtq_f32_s32(values) }
    }

    #[inline(always)]
    fn round(self, values: float32x4_t) -> int32x4_t {
        // Safety: the token proves the instructions.
        unsafe {
            // The conversion alone would make NaN a 0.
            vbslq_s32(vceqq_f32(values, values), vcvtnq_s32_f32(values), vdupq_n_s32(i32::MIN))
        }
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vdivq_f32(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vsubq_f32(a, b) }
    }

    #[inline(always)]
    fn any_far(self, values: float32x4_t, least: f32) -> bool {
        // Safety: the token proves the instructions.
        unsafe { vminvq_u32(vcltq_f32(vabsq_f32(values), vdupq_n_f32(least))) == 0 }
    }

    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vminq_f32(a, b) }
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Safety: the token proves the instructions.
        unsafe { vmaxq_f32(a, b) }
    }
}

/// # Safety
/// As [`Job::tiles`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn product(token: Token, job: &Job<'_>, rows: Range<usize>, blocks: Range<usize>) {
    // Safety: the caller's word.
    unsafe { job.tiles::<_, 4, 3, 4, 3, 8, 7, 8>(Vector(token), rows, blocks) }
}

/// # Safety
/// As [`Filters::vectors`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn depthwise(token: Token, filters: &Filters, rows: &Rows, target: Target, out: To) {
    // Safety: the caller's word.
    unsafe { filters.vectors(Vector(token), rows, target, out) }
}

/// # Safety
/// As [`Job::tiles`].
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn product_dot(token: DotToken, job: &Job<'_>, rows: Range<usize>, blocks: Range<usize>) {
    // Safety: the caller's word.
    unsafe { job.tiles::<_, 6, 5, 8, 7, 8, 7, 8>(Vector(token), rows, blocks) }
}

/// # Safety
/// As [`Filters::vectors`].
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn depthwise_dot(token: DotToken, filters: &Filters, rows: &Rows, target: Target, out: To) {
    // Safety: the caller's word.
    unsafe { filters.vectors(Vector(token), rows, target, out) }
}

/// # Safety
/// As [`Job::tiles`].
#[target_feature(enable = "neon,i8mm")]
pub(super) unsafe fn product_mixed(
    token: MixedToken,
    job: &Job<'_>,
    rows: Range<usize>,
    blocks: Range<usize>,
) {
    // Safety: the caller's word.
    unsafe { job.tiles::<_, 6, 5, 8, 7, 8, 7, 8>(Vector(token), rows, blocks) }
}

/// # Safety
/// As [`Filters::vectors`].
#[target_feature(enable = "neon,i8mm")]
pub(super) unsafe fn depthwise_mixed(
    token: MixedToken,
    filters: &Filters,
    rows: &Rows,
    target: Target,
    out: To,
) {
    // Safety: the caller's word.
    unsafe { filters.vectors(Vector(token), rows, target, out) }
}

/// # Safety
/// As [`bytewise::add_vectors`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn add(token: Token, a: &[u8], b: &[u8], sum: Sum, out: &mut [u8]) -> usize {
    // Safety: the caller's word.
    unsafe {
        let done = bytewise::add_vectors(Vector(token), a, b, sum, out, 0);
        bytewise::add_rest(Vector(token), a, b, sum, out, done)
    }
}

/// # Safety
/// As [`bytewise::maxima_vectors`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn maxima(token: Token, input: &[u8], taps: &[usize], out: &mut [u8]) -> usize {
    // Safety: the caller's word.
    unsafe { bytewise::maxima_vectors(Vector(token), input, taps, out, 0) }
}

/// # Safety
/// As [`bytewise::quantise_vectors`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn quantise(token: Token, job: Quantise, out: *mut u8) -> usize {
    // Safety: the caller's word.
    unsafe { bytewise::quantise_vectors(Vector(token), job, out) }
}
