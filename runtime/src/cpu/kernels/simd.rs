//! What the kernels are written with: [`Simd`], the primitive operations of an instruction set.
//!
//! A kernel is one generic function; each instruction set instantiates it inside a function that enables its features.
//! All of them are inlined there, so that an operation becomes an instruction.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]

/// An instruction set. A value of the type is the proof that this processor has it.
///
/// Vectors have `LANES` lanes of 16 bytes. Four vectors of 32-bit integers are a *quad*: the four values of lane `l` of
/// its vector `q` belong to bytes `16 * l + 4 * q` and on of the one vector of bytes that it widens from or packs to.
pub(super) trait Simd: Copy {
    /// Bytes, 16-bit or 32-bit integers.
    type Int: Copy;
    /// f32, as many as 32-bit integers.
    type Real: Copy;

    const LANES: usize;

    fn zero(self) -> Self::Int;
    fn splat_byte(self, value: u8) -> Self::Int;
    fn splat_word(self, value: i16) -> Self::Int;
    fn splat_real(self, value: f32) -> Self::Real;

    /// # Safety
    /// `from` has the bytes of a vector.
    unsafe fn load(self, from: *const u8) -> Self::Int;
    /// # Safety
    /// `from` has four bytes, which go everywhere.
    unsafe fn splat_four(self, from: *const u8) -> Self::Int;
    /// # Safety
    /// `from` has the values of a vector.
    unsafe fn load_real(self, from: *const f32) -> Self::Real;
    /// # Safety
    /// `to` has the bytes of a vector.
    unsafe fn store(self, to: *mut u8, bytes: Self::Int);
    /// # Safety
    /// `to` has `count` bytes, at most those of a vector.
    #[inline(always)]
    unsafe fn store_first(self, to: *mut u8, bytes: Self::Int, count: usize) {
        let mut all = [0u8; 64];
        // Safety: a vector has at most 64 bytes, and `count` is no more than it has.
        unsafe {
            self.store(all.as_mut_ptr(), bytes);
            std::ptr::copy_nonoverlapping(all.as_ptr(), to, count);
        }
    }

    /// The first `kept` bytes of each 32-bit value, together. Up to 16 bytes beyond them may change.
    ///
    /// # Safety
    /// `to` has these bytes and 16 more; `kept` is 1 to 4.
    #[inline(always)]
    unsafe fn store_narrow(self, to: *mut u8, words: Self::Int, kept: usize) {
        let mut all = [0u32; 16];
        // Safety: a vector has at most 16 values; each is written as four bytes, of which the next ones cover some.
        unsafe {
            self.store(all.as_mut_ptr().cast(), words);
            for (i, word) in all[..4 * Self::LANES].iter().enumerate() {
                to.add(i * kept).cast::<u32>().write_unaligned(word.to_le());
            }
        }
    }

    /// Fetches the cache line of an address into the second-level cache; any address will do.
    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}

    /// Adds to each 32-bit sum the products of its four unsigned bytes, less [`super::Isa::shift`], with its four weights.
    fn dot(self, sums: Self::Int, bytes: Self::Int, weights: Self::Int) -> Self::Int;

    /// Byte `i` of each of four rows, side by side, as a quad.
    fn interleave(self, rows: [Self::Int; 4]) -> [Self::Int; 4];
    /// Unsigned bytes as a quad.
    #[inline(always)]
    fn widen(self, bytes: Self::Int) -> [Self::Int; 4] {
        let zero = self.zero();
        self.interleave([bytes, zero, zero, zero])
    }
    /// A quad, plus `zero` in each 16-bit word, saturated to unsigned bytes.
    fn pack(self, quad: [Self::Int; 4], zero: Self::Int) -> Self::Int;
    /// In each lane, 32-bit value `i` of vector `j` becomes value `j` of vector `i`.
    fn transpose(self, rows: [Self::Int; 4]) -> [Self::Int; 4];
    /// Where each lane has `4 / V` rows of `V` 32-bit values, brings the rows together. Of 3 values there is one row.
    fn gather_rows<const V: usize>(self, bytes: Self::Int) -> Self::Int;
    /// The larger unsigned bytes.
    fn max_bytes(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn to_real(self, values: Self::Int) -> Self::Real;
    /// To the nearest integer, ties to even. What is below all of i32, and NaN, becomes its least value.
    fn round(self, values: Self::Real) -> Self::Int;
    fn mul(self, a: Self::Real, b: Self::Real) -> Self::Real;
    fn div(self, a: Self::Real, b: Self::Real) -> Self::Real;
    fn sub(self, a: Self::Real, b: Self::Real) -> Self::Real;
    /// Whether the magnitude of any is `least` or more, or NaN.
    fn any_far(self, values: Self::Real, least: f32) -> bool;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Real, b: Self::Real, c: Self::Real) -> Self::Real;
    /// The lesser; `b` where it is NaN.
    fn min(self, a: Self::Real, b: Self::Real) -> Self::Real;
    fn max(self, a: Self::Real, b: Self::Real) -> Self::Real;
}

/// `rint(sum * multiplier) + zero`, clamped: [`super::Target`] as vectors.
#[derive(Clone, Copy)]
pub(super) struct Finish<S: Simd> {
    /// `high - zero`: a real bound, so that no conversion to an integer overflows.
    limit: S::Real,
    zero: S::Int,
    low: S::Int,
}

impl<S: Simd> Finish<S> {
    #[inline(always)]
    pub(super) fn new(simd: S, target: super::Target) -> Self {
        Self {
            limit: simd.splat_real(f32::from(target.high) - f32::from(target.zero)),
            zero: simd.splat_word(target.zero.into()),
            low: simd.splat_byte(target.low),
        }
    }

    #[inline(always)]
    pub(super) fn round(&self, simd: S, sums: S::Int, multiplier: S::Real) -> S::Int {
        self.round_real(simd, simd.mul(simd.to_real(sums), multiplier))
    }

    #[inline(always)]
    pub(super) fn round_real(&self, simd: S, real: S::Real) -> S::Int {
        simd.round(simd.min(self.limit, real))
    }

    #[inline(always)]
    pub(super) fn bytes(&self, simd: S, quad: [S::Int; 4]) -> S::Int {
        simd.max_bytes(simd.pack(quad, self.zero), self.low)
    }
}
