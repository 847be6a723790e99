//! AVX-512 with VNNI: 64 bytes a vector, four products and their sum in one instruction.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]

use std::{arch::x86_64::*, ops::Range};

use super::{
    Target,
    avx2::{Dot, Narrow, Wide},
    bytewise::{self, Quantise, Sum},
    depthwise::{Filters, Rows, To},
    product::Job,
    simd::Simd,
};

/// Proof that this processor has AVX-512 F, BW, VL and VNNI; only [`Token::detect`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    /// Whether it has VBMI: a permutation of bytes, for tables.
    vbmi: bool,
}

impl Token {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        has.then(|| Self { vbmi: is_x86_feature_detected!("avx512vbmi") })
    }
}

impl Dot for Token {
    #[inline(always)]
    fn dot256(self, sums: __m256i, bytes: __m256i, weights: __m256i) -> __m256i {
        // Safety: the token proves the instruction.
        unsafe { _mm256_dpbusd_epi32(sums, bytes, weights) }
    }

    #[inline(always)]
    fn dot128(self, sums: __m128i, bytes: __m128i, weights: __m128i) -> __m128i {
        // Safety: the token proves the instruction.
        unsafe { _mm_dpbusd_epi32(sums, bytes, weights) }
    }
}

/// Order of the 32-bit values for [`Simd::gather_rows`].
const ROWS: [[i32; 16]; 4] = [
    [0; 16],
    [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15],
    [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15],
    [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15],
];

/// Order of the bytes of a lane for [`Simd::store_narrow`].
const KEPT: [[i8; 16]; 4] = [
    [0; 16],
    [0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1],
    [0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1],
    [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1],
];

impl Simd for Token {
    type Int = __m512i;
    type Real = __m512;
    const LANES: usize = 4;

    #[inline(always)]
    fn zero(self) -> __m512i {
        // Safety: the token proves the instruction.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn splat_byte(self, value: u8) -> __m512i {
        // Safety: the token proves the instruction.
        unsafe { _mm512_set1_epi8(value as i8) }
    }

    #[inline(always)]
    fn splat_word(self, value: i16) -> __m512i {
        // Safety: the token proves the instruction.
        unsafe { _mm512_set1_epi16(value) }
    }

    #[inline(always)]
    fn splat_real(self, value: f32) -> __m512 {
        // Safety: the token proves the instruction.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m512i {
        // Safety: the token proves the instruction, the caller the 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat_four(self, from: *const u8) -> __m512i {
        // Safety: the token proves the instruction, the caller the 4 bytes.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_real(self, from: *const f32) -> __m512 {
        // Safety: the token proves the instruction, the caller the 16 values.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8, bytes: __m512i) {
        // Safety: the token proves the instruction, the caller the 64 bytes.
        unsafe { _mm512_storeu_si512(to.cast(), bytes) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut u8, bytes: __m512i, count: usize) {
        let mask = if count >= 64 { u64::MAX } else { (1 << count) - 1 };
        // Safety: the token proves the instruction, the caller the bytes that the mask lets through.
        unsafe { _mm512_mask_storeu_epi8(to.cast(), mask, bytes) }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // Safety: a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn dot(self, sums: __m512i, bytes: __m512i, weights: __m512i) -> __m512i {
        // Safety: the token proves the instruction.
        unsafe { _mm512_dpbusd_epi32(sums, bytes, weights) }
    }

    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // Safety: the token proves the instructions.
        unsafe {
            let (ab, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (cd, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_unpacklo_epi16(ab, cd),
                _mm512_unpackhi_epi16(ab, cd),
                _mm512_unpacklo_epi16(ab_high, cd_high),
                _mm512_unpackhi_epi16(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    fn pack(self, [a, b, c, d]: [__m512i; 4], zero: __m512i) -> __m512i {
        // Safety: the token proves the instructions.
        unsafe {
            let low = _mm512_adds_epi16(_mm512_packs_epi32(a, b), zero);
            let high = _mm512_adds_epi16(_mm512_packs_epi32(c, d), zero);
            _mm512_packus_epi16(low, high)
        }
    }

    #[inline(always)]
    fn transpose(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // Safety: the token proves the instructions.
        unsafe {
            let (ab, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    fn gather_rows<const V: usize>(self, bytes: __m512i) -> __m512i {
        if V == 4 {
            return bytes;
        }
        // Safety: the token proves the instructions; the order has 16 values.
        unsafe { _mm512_permutexvar_epi32(_mm512_loadu_si512(ROWS[V].as_ptr().cast()), bytes) }
    }

    #[inline(always)]
    unsafe fn store_narrow(self, to: *mut u8, words: __m512i, kept: usize) {
        // Safety: the token proves the instructions; each lane's bytes cover what the one before wrote too much.
        unsafe {
            let lanes = if kept == 4 {
                words
            } else {
                let order = _mm_loadu_si128(KEPT[kept].as_ptr().cast());
                _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(order))
            };
            _mm_storeu_si128(to.cast(), _mm512_castsi512_si128(lanes));
            _mm_storeu_si128(to.add(4 * kept).cast(), _mm512_extracti32x4_epi32::<1>(lanes));
            _mm_storeu_si128(to.add(8 * kept).cast(), _mm512_extracti32x4_epi32::<2>(lanes));
            _mm_storeu_si128(to.add(12 * kept).cast(), _mm512_extracti32x4_epi32::<3>(lanes));
        }
    }

    #[inline(always)]
    fn max_bytes(self, a: __m512i, b: __m512i) -> __m512i {
        // Safety: the token proves the instruction.
        unsafe { _mm512_max_epu8(a, b) }
    }

    #[inline(always)]
    fn to_real(self, values: __m512i) -> __m512 {
        // Safety: the token proves the instruction.
        unsafe { _mm512_cvtepi32_ps(values) }
    }

    #[inline(always)]
    fn round(self, values: __m512) -> __m512i {
        // Safety: the token proves the instruction.
        unsafe { _mm512_cvtps_epi32(values) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // Safety: the token proves the instruction.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // Safety: the token proves the instruction.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // Safety: the token proves the instruction.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn any_far(self, values: __m512, least: f32) -> bool {
        // Safety: the token proves the instructions.
        unsafe { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(values), _mm512_set1_ps(least)) != 0 }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // Safety: the token proves the instruction.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // Safety: the token proves the instruction.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // Safety: the token proves the instruction.
        unsafe { _mm512_max_ps(a, b) }
    }
}

/// # Safety
/// As [`Job::tiles`].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn product(token: Token, job: &Job<'_>, rows: Range<usize>, blocks: Range<usize>) {
    // Safety: the caller's word.
    unsafe { job.tiles::<_, 6, 5, 8, 7, 8, 7, 8>(token, rows, blocks) }
}

/// # Safety
/// As [`Filters::vectors`].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn depthwise(token: Token, filters: &Filters, rows: &Rows, target: Target, out: To) {
    // Safety: the caller's word.
    unsafe {
        filters.vectors(token, rows, target, out);
        filters.vectors(Wide(token), rows, target, out);
        filters.vectors(Narrow(token), rows, target, out);
    }
}

/// # Safety
/// As [`bytewise::add_vectors`].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn add(token: Token, a: &[u8], b: &[u8], sum: Sum, out: &mut [u8]) -> usize {
    // Safety: the caller's word.
    unsafe {
        let done = bytewise::add_vectors(token, a, b, sum, out, 0);
        let done = bytewise::add_vectors(Wide(token), a, b, sum, out, done);
        let done = bytewise::add_vectors(Narrow(token), a, b, sum, out, done);
        bytewise::add_rest(Narrow(token), a, b, sum, out, done)
    }
}

/// # Safety
/// As [`bytewise::maxima_vectors`].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn maxima(token: Token, input: &[u8], taps: &[usize], out: &mut [u8]) -> usize {
    // Safety: the caller's word.
    unsafe {
        let done = bytewise::maxima_vectors(token, input, taps, out, 0);
        let done = bytewise::maxima_vectors(Wide(token), input, taps, out, done);
        bytewise::maxima_vectors(Narrow(token), input, taps, out, done)
    }
}

/// Looks up whole vectors of bytes, if there is a permutation for it; returns how many bytes are done.
pub(super) fn lookup(token: Token, table: &[u8; 256], bytes: &mut [u8]) -> usize {
    if !token.vbmi {
        return 0;
    }
    // Safety: `vbmi` was detected.
    unsafe { lookup_vectors(table, bytes) }
}

/// Two permutations of half the table each; a byte's highest bit says which counts.
///
/// # Safety
/// The processor has VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn lookup_vectors(table: &[u8; 256], bytes: &mut [u8]) -> usize {
    let load = |from: &[u8]| {
        // Safety: all callers give 64 bytes.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    };
    let [a, b, c, d] = [0, 64, 128, 192].map(|at| load(&table[at..at + 64]));
    let (vectors, _) = bytes.as_chunks_mut::<64>();
    for bytes in &mut *vectors {
        let index = load(bytes);
        let (low, high) = (_mm512_permutex2var_epi8(a, index, b), _mm512_permutex2var_epi8(c, index, d));
        let found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
        // Safety: 64 bytes.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), found) };
    }
    64 * vectors.len()
}

/// # Safety
/// As [`bytewise::quantise_vectors`].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn quantise(token: Token, job: Quantise, out: *mut u8) -> usize {
    // Safety: the caller's word.
    unsafe { bytewise::quantise_vectors(token, job, out) }
}
