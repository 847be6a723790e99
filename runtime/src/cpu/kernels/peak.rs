//! The most multiply-accumulates that an instruction set does: a tile of sums in registers, operands from the nearest
//! cache, nothing else. What a network does of them, where there is a clock to tell, is how good its steps are.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]

use std::hint::black_box;

use super::{Isa, simd::Simd};

/// The tile that a product works on: enough independent sums to hide how long one takes.
const ROWS: usize = 6;
const VECTORS: usize = 2;
/// Operands differ from round to round, so that nothing of a product can be kept from the one before.
const OPERANDS: usize = 8;
const BYTES_MAX: usize = 64;

/// Does so many rounds; returns how many multiply-accumulates that were.
pub(crate) fn multiply_accumulate(isa: Isa, rounds: u32) -> u64 {
    let operands = black_box([3u8; (OPERANDS + VECTORS) * BYTES_MAX]);
    match isa {
        Isa::Scalar => scalar(&operands, rounds),
        #[cfg(target_arch = "x86_64")]
        // Safety: the token proves the instructions.
        Isa::Avx2(token) => unsafe { avx2(super::avx2::Wide(token), &operands, rounds) },
        #[cfg(target_arch = "x86_64")]
        // Safety: the token proves the instructions.
        Isa::AvxVnni(token) => unsafe { avx_vnni(super::avx2::Wide(token), &operands, rounds) },
        #[cfg(target_arch = "x86_64")]
        // Safety: the token proves the instructions.
        Isa::Avx512Vnni(token) => unsafe { avx512_vnni(token, &operands, rounds) },
        #[cfg(target_arch = "aarch64")]
        // Safety: the token proves the instructions.
        Isa::Neon(token) => unsafe { neon(super::neon::Vector(token), &operands, rounds) },
        #[cfg(target_arch = "aarch64")]
        // Safety: the token proves the instructions.
        Isa::DotProd(token) => unsafe { dotprod(super::neon::Vector(token), &operands, rounds) },
        #[cfg(target_arch = "aarch64")]
        // Safety: the token proves the instructions.
        Isa::I8mm(token) => unsafe { i8mm(super::neon::Vector(token), &operands, rounds) },
    }
}

type Operands = [u8; (OPERANDS + VECTORS) * BYTES_MAX];

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(simd: super::avx2::Wide<super::avx2::Token>, operands: &Operands, rounds: u32) -> u64 {
    tiles(simd, operands, rounds)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn avx_vnni(simd: super::avx2::Wide<super::avx2::VnniToken>, operands: &Operands, rounds: u32) -> u64 {
    tiles(simd, operands, rounds)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn avx512_vnni(simd: super::avx512::Token, operands: &Operands, rounds: u32) -> u64 {
    tiles(simd, operands, rounds)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon(simd: super::neon::Vector<super::neon::Token>, operands: &Operands, rounds: u32) -> u64 {
    tiles(simd, operands, rounds)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn dotprod(simd: super::neon::Vector<super::neon::DotToken>, operands: &Operands, rounds: u32) -> u64 {
    tiles(simd, operands, rounds)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,i8mm")]
fn i8mm(simd: super::neon::Vector<super::neon::MixedToken>, operands: &Operands, rounds: u32) -> u64 {
    tiles(simd, operands, rounds)
}

#[inline(always)]
fn tiles<S: Simd>(simd: S, operands: &Operands, rounds: u32) -> u64 {
    let bytes = 16 * S::LANES;
    assert!(bytes <= BYTES_MAX);
    let mut sums = [[simd.zero(); VECTORS]; ROWS];
    for round in 0..rounds as usize {
        let at = round % OPERANDS * BYTES_MAX;
        let mut weights = [simd.zero(); VECTORS];
        for (v, weights) in weights.iter_mut().enumerate() {
            // Safety: a vector has at most `BYTES_MAX` bytes, and `VECTORS` of them lie behind the last operand's start.
            *weights = unsafe { simd.load(operands.as_ptr().add(at + v * bytes)) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // Safety: four bytes for each row are fewer than `BYTES_MAX`.
            let row = unsafe { simd.splat_four(operands.as_ptr().add(at + 4 * r)) };
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = simd.dot(*sum, row, weights);
            }
        }
    }
    let mut out = [0u8; BYTES_MAX];
    for sum in sums.as_flattened() {
        // Safety: as many bytes as a vector has at most.
        unsafe { simd.store(out.as_mut_ptr(), *sum) };
        black_box(&out);
    }
    u64::from(rounds) * (ROWS * VECTORS * bytes) as u64
}

fn scalar(operands: &Operands, rounds: u32) -> u64 {
    let mut sums = [0i32; 16];
    for _ in 0..rounds {
        for (sum, (byte, weight)) in sums.iter_mut().zip(operands.iter().zip(&operands[BYTES_MAX..])) {
            *sum = sum.wrapping_add(i32::from(*byte) * i32::from(*weight as i8));
        }
        black_box(&mut sums);
    }
    u64::from(rounds) * sums.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_does_what_it_counts() {
        for isa in Isa::all() {
            let once = multiply_accumulate(isa, 1);
            assert!(once >= 16);
            assert_eq!(multiply_accumulate(isa, 1000), 1000 * once);
        }
    }
}
