//! AVX2 and FMA, with or without VNNI: 32 bytes a vector, or 16.
//!
//! Without VNNI bytes are widened to 16 bits and multiplied in pairs (`vpmaddwd`): exact, where the byte multiply
//! (`vpmaddubsw`) would saturate.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]

mod narrow;

use std::{arch::x86_64::*, ops::Range};

use super::{
    Target,
    bytewise::{self, Quantise, Sum},
    depthwise::{Filters, Rows, To},
    product::Job,
    simd::Simd,
};

/// Proof that this processor has AVX2 and FMA; only [`Token::detect`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(());

impl Token {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

/// Proof that this processor has AVX-VNNI too; only [`VnniToken::detect`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VnniToken(());

impl VnniToken {
    pub(super) fn detect() -> Option<Self> {
        (Token::detect().is_some() && is_x86_feature_detected!("avxvnni")).then_some(Self(()))
    }
}

impl From<VnniToken> for Token {
    fn from(_: VnniToken) -> Self {
        Self(())
    }
}

/// [`Simd::dot`] for both widths. A value proves AVX2, FMA and whatever else it takes.
pub(super) trait Dot: Copy {
    fn dot256(self, sums: __m256i, bytes: __m256i, weights: __m256i) -> __m256i;
    fn dot128(self, sums: __m128i, bytes: __m128i, weights: __m128i) -> __m128i;
}

impl Dot for Token {
    #[inline(always)]
    fn dot256(self, sums: __m256i, bytes: __m256i, weights: __m256i) -> __m256i {
        // Safety: the token proves the instructions.
        unsafe {
            let even = _mm256_and_si256(bytes, _mm256_set1_epi16(0xff));
            let even = _mm256_madd_epi16(even, _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(weights)));
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(bytes), _mm256_srai_epi16::<8>(weights));
            _mm256_add_epi32(_mm256_add_epi32(sums, even), odd)
        }
    }

    #[inline(always)]
    fn dot128(self, sums: __m128i, bytes: __m128i, weights: __m128i) -> __m128i {
        // Safety: the token proves the instructions.
        unsafe {
            let even = _mm_and_si128(bytes, _mm_set1_epi16(0xff));
            let even = _mm_madd_epi16(even, _mm_srai_epi16::<8>(_mm_slli_epi16::<8>(weights)));
            let odd = _mm_madd_epi16(_mm_srli_epi16::<8>(bytes), _mm_srai_epi16::<8>(weights));
            _mm_add_epi32(_mm_add_epi32(sums, even), odd)
        }
    }
}

impl Dot for VnniToken {
    #[inline(always)]
    fn dot256(self, sums: __m256i, bytes: __m256i, weights: __m256i) -> __m256i {
        // Safety: the token proves the instruction.
        unsafe { _mm256_dpbusd_avx_epi32(sums, bytes, weights) }
    }

    #[inline(always)]
    fn dot128(self, sums: __m128i, bytes: __m128i, weights: __m128i) -> __m128i {
        // Safety: the token proves the instruction.
        unsafe { _mm_dpbusd_avx_epi32(sums, bytes, weights) }
    }
}

/// 32 bytes.
#[derive(Clone, Copy)]
pub(super) struct Wide<D>(pub(super) D);

/// 16 bytes.
#[derive(Clone, Copy)]
pub(super) struct Narrow<D>(pub(super) D);

impl<D: Dot> Simd for Wide<D> {
    type Int = __m256i;
    type Real = __m256;
    const LANES: usize = 2;

    #[inline(always)]
    fn zero(self) -> __m256i {
        // Safety: the token proves the instruction.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn splat_byte(self, value: u8) -> __m256i {
        // Safety: the token proves the instruction.
        unsafe { _mm256_set1_epi8(value as i8) }
    }

    #[inline(always)]
    fn splat_word(self, value: i16) -> __m256i {
        // Safety: the token proves the instruction.
        unsafe { _mm256_set1_epi16(value) }
    }

    #[inline(always)]
    fn splat_real(self, value: f32) -> __m256 {
        // Safety: the token proves the instruction.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m256i {
        // Safety: the token proves the instruction, the caller the 32 bytes.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat_four(self, from: *const u8) -> __m256i {
        // Safety: the token proves the instruction, the caller the 4 bytes.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_real(self, from: *const f32) -> __m256 {
        // Safety: the token proves the instruction, the caller the 8 values.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8, bytes: __m256i) {
        // Safety: the token proves the instruction, the caller the 32 bytes.
        unsafe { _mm256_storeu_si256(to.cast(), bytes) }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // Safety: a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn dot(self, sums: __m256i, bytes: __m256i, weights: __m256i) -> __m256i {
        self.0.dot256(sums, bytes, weights)
    }

    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        // Safety: the token proves the instructions.
        unsafe {
            let (ab, ab_high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let (cd, cd_high) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
            [
                _mm256_unpacklo_epi16(ab, cd),
                _mm256_unpackhi_epi16(ab, cd),
                _mm256_unpacklo_epi16(ab_high, cd_high),
                _mm256_unpackhi_epi16(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    fn pack(self, [a, b, c, d]: [__m256i; 4], zero: __m256i) -> __m256i {
        // Safety: the token proves the instructions.
        unsafe {
            let low = _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero);
            let high = _mm256_adds_epi16(_mm256_packs_epi32(c, d), zero);
            _mm256_packus_epi16(low, high)
        }
    }

    #[inline(always)]
    fn transpose(self, [a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        // Safety: the token proves the instructions.
        unsafe {
            let (ab, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab, cd),
                _mm256_unpackhi_epi64(ab, cd),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    fn gather_rows<const V: usize>(self, bytes: __m256i) -> __m256i {
        /// Order of the 32-bit values.
        const ROWS: [[i32; 8]; 4] =
            [[0; 8], [0, 4, 1, 5, 2, 6, 3, 7], [0, 1, 4, 5, 2, 3, 6, 7], [0, 1, 2, 4, 5, 6, 3, 7]];
        if V == 4 {
            return bytes;
        }
        // Safety: the token proves the instructions; an order has 8 values.
        unsafe { _mm256_permutevar8x32_epi32(bytes, _mm256_loadu_si256(ROWS[V].as_ptr().cast())) }
    }

    #[inline(always)]
    fn max_bytes(self, a: __m256i, b: __m256i) -> __m256i {
        // Safety: the token proves the instruction.
        unsafe { _mm256_max_epu8(a, b) }
    }

    #[inline(always)]
    fn to_real(self, values: __m256i) -> __m256 {
        // Safety: the token proves the instruction.
        unsafe { _mm256_cvtepi32_ps(values) }
    }

    #[inline(always)]
    fn round(self, values: __m256) -> __m256i {
        // Safety: the token proves the instruction.
        unsafe { _mm256_cvtps_epi32(values) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // Safety: the token proves the instruction.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // Safety: the token proves the instruction.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // Safety: the token proves the instruction.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn any_far(self, values: __m256, least: f32) -> bool {
        // Safety: the token proves the instructions.
        unsafe {
            let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), values);
            _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(size, _mm256_set1_ps(least))) != 0
        }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // Safety: the token proves the instruction.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // Safety: the token proves the instruction.
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // Safety: the token proves the instruction.
        unsafe { _mm256_max_ps(a, b) }
    }
}

/// # Safety
/// As [`Job::tiles`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn product(token: Token, job: &Job<'_>, rows: Range<usize>, blocks: Range<usize>) {
    // Safety: the caller's word.
    unsafe { job.tiles::<_, 2, 2, 2, 2, 4, 3, 8>(Wide(token), rows, blocks) }
}

/// # Safety
/// As [`Filters::vectors`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn depthwise(token: Token, filters: &Filters, rows: &Rows, target: Target, out: To) {
    // Safety: the caller's word.
    unsafe {
        filters.vectors(Wide(token), rows, target, out);
        filters.vectors(Narrow(token), rows, target, out);
    }
}

/// # Safety
/// As [`Job::tiles`].
#[target_feature(enable = "avx2,fma,avxvnni")]
pub(super) unsafe fn product_vnni(token: VnniToken, job: &Job<'_>, rows: Range<usize>, blocks: Range<usize>) {
    // Safety: the caller's word.
    unsafe { job.tiles::<_, 3, 2, 4, 3, 6, 5, 8>(Wide(token), rows, blocks) }
}

/// # Safety
/// As [`Filters::vectors`].
#[target_feature(enable = "avx2,fma,avxvnni")]
pub(super) unsafe fn depthwise_vnni(
    token: VnniToken,
    filters: &Filters,
    rows: &Rows,
    target: Target,
    out: To,
) {
    // Safety: the caller's word.
    unsafe {
        filters.vectors(Wide(token), rows, target, out);
        filters.vectors(Narrow(token), rows, target, out);
    }
}

/// # Safety
/// As [`bytewise::add_vectors`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn add(token: Token, a: &[u8], b: &[u8], sum: Sum, out: &mut [u8]) -> usize {
    // Safety: the caller's word.
    unsafe {
        let done = bytewise::add_vectors(Wide(token), a, b, sum, out, 0);
        let done = bytewise::add_vectors(Narrow(token), a, b, sum, out, done);
        bytewise::add_rest(Narrow(token), a, b, sum, out, done)
    }
}

/// # Safety
/// As [`bytewise::maxima_vectors`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn maxima(token: Token, input: &[u8], taps: &[usize], out: &mut [u8]) -> usize {
    // Safety: the caller's word.
    unsafe {
        let done = bytewise::maxima_vectors(Wide(token), input, taps, out, 0);
        bytewise::maxima_vectors(Narrow(token), input, taps, out, done)
    }
}

/// # Safety
/// As [`bytewise::quantise_vectors`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn quantise(token: Token, job: Quantise, out: *mut u8) -> usize {
    // Safety: the caller's word.
    unsafe { bytewise::quantise_vectors(Wide(token), job, out) }
}
