//! Kernels that go over bytes one by one: Add, tables, quantisation.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]
#![allow(clippy::needless_range_loop, reason = "registers are several arrays, one index")]

use super::{
    Isa, Target, Team, rint,
    simd::{Finish, Simd},
};

/// `rint(a * ratio_a + (b * ratio_b + fixed))`, each a fused multiply-add, clamped.
///
/// With a `base` of 128 the bytes are s8 whose top bit is flipped, and the sum is that of s8: it is rounded elsewhere than
/// one of bytes that are 128 more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sum {
    pub(crate) base: u8,
    pub(crate) ratio_a: f32,
    pub(crate) ratio_b: f32,
    pub(crate) fixed: f32,
    pub(crate) low: u8,
    pub(crate) high: u8,
}

impl Sum {
    pub(crate) fn of(&self, a: u8, b: u8) -> u8 {
        let real = |q: u8| f32::from(q) - f32::from(self.base);
        let inner = real(b).mul_add(self.ratio_b, self.fixed);
        let value = rint(real(a).mul_add(self.ratio_a, inner)) + i32::from(self.base);
        value.clamp(self.low.into(), self.high.into()) as u8
    }
}

impl Sum {
    /// `a * s[0] + b * s[1] + s[2]` is about what is rounded.
    pub(crate) fn slopes(&self) -> [f32; 3] {
        let base = f32::from(self.base);
        [self.ratio_a, self.ratio_b, self.fixed + base * (1.0 - self.ratio_a - self.ratio_b)]
    }
}

/// All three have one length.
pub(crate) fn add(isa: Isa, a: &[u8], b: &[u8], sum: Sum, out: &mut [u8]) {
    assert!(a.len() == out.len() && b.len() == out.len());
    // Safety: equal lengths; the tokens prove the instructions.
    let done = unsafe {
        match isa {
            Isa::Scalar => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(token) => super::avx2::add(token, a, b, sum, out),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni(token) => super::avx2::add(token.into(), a, b, sum, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(token) => super::avx512::add(token, a, b, sum, out),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(token) => super::neon::add(token, a, b, sum, out),
            #[cfg(target_arch = "aarch64")]
            Isa::DotProd(token) => super::neon::add(token.into(), a, b, sum, out),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm(token) => super::neon::add(token.into(), a, b, sum, out),
        }
    };
    for ((out, a), b) in out[done..].iter_mut().zip(&a[done..]).zip(&b[done..]) {
        *out = sum.of(*a, *b);
    }
}

/// The largest of the bytes at `taps` of `input`, for each byte of `out`.
pub(crate) fn maxima(isa: Isa, input: &[u8], taps: &[usize], out: &mut [u8]) {
    assert!(taps.iter().all(|tap| tap + out.len() <= input.len()));
    // Safety: all taps have as many bytes as `out`; the tokens prove the instructions.
    let done = unsafe {
        match isa {
            Isa::Scalar => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(token) => super::avx2::maxima(token, input, taps, out),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni(token) => super::avx2::maxima(token.into(), input, taps, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(token) => super::avx512::maxima(token, input, taps, out),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(token) => super::neon::maxima(token, input, taps, out),
            #[cfg(target_arch = "aarch64")]
            Isa::DotProd(token) => super::neon::maxima(token.into(), input, taps, out),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm(token) => super::neon::maxima(token.into(), input, taps, out),
        }
    };
    for (i, out) in out.iter_mut().enumerate().skip(done) {
        *out = taps.iter().map(|tap| input[tap + i]).max().unwrap_or(0);
    }
}

/// Each byte becomes its entry.
pub(crate) fn lookup(isa: Isa, table: &[u8; 256], bytes: &mut [u8]) {
    let done = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(token) => super::avx512::lookup(token, table, bytes),
        _ => 0,
    };
    bytes[done..].iter_mut().for_each(|q| *q = table[usize::from(*q)]);
}

/// Planes of f32, one a channel, to bytes of which those of a pixel lie together: `rint(x / scale) + zero`.
pub(crate) fn quantise(
    team: &mut Team,
    planes: &[f32],
    channels: usize,
    scale: f32,
    zero: u8,
    out: &mut [u8],
) {
    assert!(planes.len() == out.len() && channels > 0 && out.len().is_multiple_of(channels));
    let (isa, pixels) = (team.isa(), out.len() / channels);
    let size = team.piece(out.len(), 64 * channels, 16 << 10);
    team.pieces(out, size, |part, out| {
        let first = part * (size / channels);
        let count = out.len() / channels;
        // Safety: `count` pixels from `first` of `pixels`; the tokens prove the instructions.
        let done = unsafe {
            let job = Quantise { planes: planes.as_ptr().add(first), pixels, channels, count, scale, zero };
            match isa {
                Isa::Scalar => 0,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(token) => super::avx2::quantise(token, job, out.as_mut_ptr()),
                #[cfg(target_arch = "x86_64")]
                Isa::AvxVnni(token) => super::avx2::quantise(token.into(), job, out.as_mut_ptr()),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni(token) => super::avx512::quantise(token, job, out.as_mut_ptr()),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon(token) => super::neon::quantise(token, job, out.as_mut_ptr()),
                #[cfg(target_arch = "aarch64")]
                Isa::DotProd(token) => super::neon::quantise(token.into(), job, out.as_mut_ptr()),
                #[cfg(target_arch = "aarch64")]
                Isa::I8mm(token) => super::neon::quantise(token.into(), job, out.as_mut_ptr()),
            }
        };
        for channel in 0..channels {
            let plane = &planes[channel * pixels + first..][done..count];
            let out = out[done * channels..].iter_mut().skip(channel).step_by(channels);
            for (out, value) in out.zip(plane) {
                *out = (rint(value / scale) + i32::from(zero)).clamp(0, 255) as u8;
            }
        }
    });
}

/// A share of [`quantise`].
#[derive(Clone, Copy)]
pub(super) struct Quantise {
    /// Its first pixel.
    planes: *const f32,
    /// From one plane to the next.
    pixels: usize,
    channels: usize,
    count: usize,
    scale: f32,
    zero: u8,
}

/// Whole vectors of up to 4 channels; returns how many pixels are done.
///
/// # Safety
/// Each plane has `count` pixels, `out` their bytes.
#[inline(always)]
pub(super) unsafe fn quantise_vectors<S: Simd>(simd: S, job: Quantise, out: *mut u8) -> usize {
    let bytes = 16 * S::LANES;
    if job.channels > 4 {
        return 0;
    }
    let finish = Finish::new(simd, Target { zero: job.zero, low: 0, high: 255 });
    let (scale, inverse) = (simd.splat_real(job.scale), simd.splat_real(1.0 / job.scale));
    // Below this a product with the inverse is a quotient but for its last bits: both round alike, far from ties.
    let exact = (1e-30..1e30).contains(&job.scale);
    let mut pixel = 0;
    // What is written too much, the next pixels cover.
    while pixel + bytes + 16 <= job.count {
        let mut rows = [simd.zero(); 4];
        for channel in 0..job.channels {
            let mut quad = [simd.zero(); 4];
            // Safety: a vector of values from each quarter of `bytes` pixels on.
            let real = |q: usize| unsafe {
                simd.load_real(job.planes.add(channel * job.pixels + pixel + q * bytes / 4))
            };
            let mut near = exact;
            for q in 0..4 {
                let product = simd.mul(real(q), inverse);
                let rounded = simd.round(simd.min(simd.splat_real(512.0), product));
                near &= !simd.any_far(simd.sub(product, simd.to_real(rounded)), 0.499);
                quad[q] = finish.round_real(simd, product);
            }
            if !near {
                for q in 0..4 {
                    quad[q] = finish.round_real(simd, simd.div(real(q), scale));
                }
            }
            rows[channel] = finish.bytes(simd, quad);
        }
        // Interleaving undoes the order that packing made.
        let quad = simd.interleave(rows);
        for q in 0..4 {
            // Safety: 16 pixels follow at least.
            unsafe {
                simd.store_narrow(out.add((pixel + q * bytes / 4) * job.channels), quad[q], job.channels)
            };
        }
        pixel += bytes;
    }
    pixel
}

/// Whole vectors from `at` on; returns how many bytes are done.
///
/// # Safety
/// `a` and `b` are as long as `out`.
#[inline(always)]
pub(super) unsafe fn add_vectors<S: Simd>(
    simd: S,
    a: &[u8],
    b: &[u8],
    sum: Sum,
    out: &mut [u8],
    mut at: usize,
) -> usize {
    let bytes = 16 * S::LANES;
    while at + bytes <= out.len() {
        // Safety: a vector from `at` in each.
        unsafe { add_vector(simd, a.as_ptr().add(at), b.as_ptr().add(at), sum, out.as_mut_ptr().add(at)) };
        at += bytes;
    }
    at
}

/// What whole vectors leave; `simd` has 16 bytes.
///
/// # Safety
/// `a` and `b` are as long as `out`.
#[inline(always)]
pub(super) unsafe fn add_rest<S: Simd>(
    simd: S,
    a: &[u8],
    b: &[u8],
    sum: Sum,
    out: &mut [u8],
    at: usize,
) -> usize {
    let length = out.len();
    if at == length {
        return length;
    }
    // Safety: the last 16 bytes, some of them once more; or copies with room for 16.
    unsafe {
        if let Some(last) = length.checked_sub(16) {
            add_vector(simd, a.as_ptr().add(last), b.as_ptr().add(last), sum, out.as_mut_ptr().add(last));
        } else {
            let mut copies = [[0u8; 16]; 3];
            copies[0][..length].copy_from_slice(a);
            copies[1][..length].copy_from_slice(b);
            let [a, b, sums] = &mut copies;
            add_vector(simd, a.as_ptr(), b.as_ptr(), sum, sums.as_mut_ptr());
            out.copy_from_slice(&sums[..length]);
        }
    }
    length
}

/// # Safety
/// All three have the bytes of a vector.
#[inline(always)]
unsafe fn add_vector<S: Simd>(simd: S, a: *const u8, b: *const u8, sum: Sum, out: *mut u8) {
    let (ratio_a, ratio_b) = (simd.splat_real(sum.ratio_a), simd.splat_real(sum.ratio_b));
    let fixed = simd.splat_real(sum.fixed);
    // The zero point is in `fixed`.
    let finish = Finish::new(simd, Target { zero: sum.base, low: sum.low, high: sum.high });
    let base = simd.splat_real(sum.base.into());
    // Safety: the caller's word.
    let (left, right) = unsafe { (simd.load(a), simd.load(b)) };
    let (left, right) = (simd.widen(left), simd.widen(right));
    let mut quad = [simd.zero(); 4];
    for q in 0..4 {
        let (mut left, mut right) = (simd.to_real(left[q]), simd.to_real(right[q]));
        if sum.base != 0 {
            (left, right) = (simd.sub(left, base), simd.sub(right, base));
        }
        let inner = simd.mul_add(right, ratio_b, fixed);
        quad[q] = finish.round_real(simd, simd.mul_add(left, ratio_a, inner));
    }
    // Safety: the caller's word.
    unsafe { simd.store(out, finish.bytes(simd, quad)) };
}

/// Whole vectors from `at` on, the last with bytes once more where they do not divide; returns how many are done.
///
/// # Safety
/// From each tap on `input` is as long as `out`.
#[inline(always)]
pub(super) unsafe fn maxima_vectors<S: Simd>(
    simd: S,
    input: &[u8],
    taps: &[usize],
    out: &mut [u8],
    mut at: usize,
) -> usize {
    let (bytes, length) = (16 * S::LANES, out.len());
    let ([first, others @ ..], true) = (taps, length >= bytes) else { return at };
    while at < length {
        let from = at.min(length - bytes);
        // Safety: a vector from `from` on.
        unsafe {
            let start = input.as_ptr().add(from);
            let mut most = simd.load(start.add(*first));
            for tap in others {
                most = simd.max_bytes(most, simd.load(start.add(*tap)));
            }
            simd.store(out.as_mut_ptr().add(from), most);
        }
        at += bytes;
    }
    length
}
