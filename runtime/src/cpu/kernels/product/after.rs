//! What comes behind a product while its bytes are still in the nearest cache: a table, and a residual addition.

use std::ops::Range;

use super::{Finished, Job, Place};
use crate::cpu::kernels::{
    Isa, Sum, Target, add, lookup,
    simd::{Finish, Simd},
};

/// What is added to the bytes of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Skip<'a> {
    pub(crate) sum: Sum,
    /// Those for row `r` from `r * stride` on, as many as there are columns.
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
    /// They are the sum's first operand, the product's the second.
    pub(crate) first: bool,
    /// The byte that each byte of the sum becomes at last.
    pub(crate) table: Option<&'a [u8; 256]>,
}

impl Skip<'_> {
    fn add(&self, isa: Isa, product: &[u8], other: &[u8], out: &mut [u8]) {
        let (a, b) = if self.first { (other, product) } else { (product, other) };
        add(isa, a, b, self.sum, out);
        if let Some(table) = self.table {
            lookup(isa, table, out);
        }
    }
}

/// A residual addition in registers.
#[derive(Clone, Copy)]
pub(super) struct Addition<S: Simd> {
    /// Of the product's byte: bounds less the zero point, and that less the sum's base.
    low: S::Real,
    high: S::Real,
    zero: S::Real,
    /// If it is not 0.
    base: Option<S::Real>,
    ratio_product: S::Real,
    ratio_skip: S::Real,
    fixed: S::Real,
    skip_first: bool,
    one: S::Real,
    finish: Finish<S>,
}

impl<S: Simd> Addition<S> {
    #[inline(always)]
    pub(super) fn new(simd: S, skip: &Skip<'_>, product: Target) -> Self {
        let Sum { base, ratio_a, ratio_b, fixed, low, high } = skip.sum;
        let (ratio_product, ratio_skip) = if skip.first { (ratio_b, ratio_a) } else { (ratio_a, ratio_b) };
        let zero = f32::from(product.zero);
        Self {
            low: simd.splat_real(f32::from(product.low) - zero),
            high: simd.splat_real(f32::from(product.high) - zero),
            zero: simd.splat_real(zero - f32::from(base)),
            base: (base != 0).then(|| simd.splat_real(base.into())),
            ratio_product: simd.splat_real(ratio_product),
            ratio_skip: simd.splat_real(ratio_skip),
            fixed: simd.splat_real(fixed),
            skip_first: skip.first,
            one: simd.splat_real(1.0),
            // The zero point is in `fixed`.
            finish: Finish::new(simd, Target { zero: base, low, high }),
        }
    }

    /// `product`: not rounded yet; `skip`: values of bytes.
    #[inline(always)]
    pub(super) fn round(&self, simd: S, product: S::Real, skip: S::Int) -> S::Int {
        let within = simd.max(simd.min(self.high, product), self.low);
        // Exact: small integers.
        let product = simd.mul_add(simd.to_real(simd.round(within)), self.one, self.zero);
        let skip = simd.to_real(skip);
        let skip = self.base.map_or(skip, |base| simd.sub(skip, base));
        let value = if self.skip_first {
            simd.mul_add(skip, self.ratio_skip, simd.mul_add(product, self.ratio_product, self.fixed))
        } else {
            simd.mul_add(product, self.ratio_product, simd.mul_add(skip, self.ratio_skip, self.fixed))
        };
        self.finish.round_real(simd, value)
    }

    #[inline(always)]
    pub(super) fn bytes(&self, simd: S, quad: [S::Int; 4]) -> S::Int {
        self.finish.bytes(simd, quad)
    }
}

/// Bytes that are worked on at one time.
const BATCH: usize = 2 << 10;
/// Rows that are shorter are brought together first.
const NARROW: usize = 64;

impl Job<'_> {
    /// Whether sums are added to while they are in registers: where all blocks are full, and no table comes between or
    /// behind.
    pub(super) fn adds_in_tiles(&self) -> bool {
        let (matrix, Finished { table, skip, .. }) = (self.matrix, self.result);
        table.is_none()
            && skip.is_some_and(|skip| skip.table.is_none())
            && matrix.isa != Isa::Scalar
            && matrix.columns.is_multiple_of(16 * matrix.isa.lanes())
            && matrix.blocks.iter().all(|block| block.vectors == 4)
    }

    /// # Safety
    /// As [`Job::run`], which has written these rows' columns of these blocks.
    pub(super) unsafe fn after(&self, rows: Range<usize>, blocks: Range<usize>) {
        let Finished { table, skip, .. } = self.result;
        let skip = skip.filter(|_| !self.adds_in_tiles());
        let all = &self.matrix.blocks;
        let (Some(block), end) = (all.get(blocks.start), all.get(blocks.end)) else { return };
        if table.is_none() && skip.is_none() {
            return;
        }
        let column = block.column;
        let columns = end.map_or(self.matrix.columns, |end| end.column) - column;
        let stride = self.place.stride;
        // Safety: the caller's word.
        unsafe {
            if columns == stride && skip.is_none_or(|skip| skip.stride == columns) {
                // Rows without gaps are as one.
                self.run_of(rows.start * columns, rows.start * columns, columns * rows.len());
            } else if columns >= NARROW {
                let skip = skip.map_or(0, |skip| skip.stride);
                rows.for_each(|row| self.run_of(row * stride + column, row * skip + column, columns));
            } else {
                self.narrow(rows, column, columns);
            }
        }
    }

    /// Of the output.
    ///
    /// # Safety
    /// `product` has checked these bytes, and nobody else uses them.
    #[expect(clippy::mut_from_ref, reason = "the caller sees to it that nobody else has them")]
    unsafe fn out(&self, at: usize, count: usize) -> &mut [u8] {
        let Place { offset, .. } = self.place;
        // Safety: the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.out.0.add(offset + at), count) }
    }

    /// Bytes that lie together.
    ///
    /// # Safety
    /// As [`Self::out`].
    unsafe fn run_of(&self, at: usize, skip_at: usize, length: usize) {
        let (isa, Finished { table, skip, .. }) = (self.matrix.isa, self.result);
        let mut products = [0u8; BATCH];
        for done in (0..length).step_by(BATCH) {
            let count = BATCH.min(length - done);
            // Safety: the caller's word.
            let out = unsafe { self.out(at + done, count) };
            if let Some(table) = table {
                lookup(isa, table, out);
            }
            if let Some(skip) = &skip {
                let products = &mut products[..count];
                products.copy_from_slice(out);
                skip.add(isa, products, &skip.bytes[skip_at + done..][..count], out);
            }
        }
    }

    /// Rows of fewer bytes than a vector, many at one time.
    ///
    /// # Safety
    /// As [`Self::after`]; `columns` is less than [`NARROW`].
    unsafe fn narrow(&self, rows: Range<usize>, column: usize, columns: usize) {
        let (isa, stride, Finished { table, skip, .. }) = (self.matrix.isa, self.place.stride, self.result);
        let (mut products, mut others, mut sums) = ([0u8; BATCH], [0u8; BATCH], [0u8; BATCH]);
        let many = BATCH / columns.max(1);
        for first in rows.clone().step_by(many) {
            let batch = first..(first + many).min(rows.end);
            let length = batch.len() * columns;
            let products = &mut products[..length];
            for (row, product) in batch.clone().zip(products.chunks_exact_mut(columns)) {
                // Safety: the caller's word.
                product.copy_from_slice(unsafe { self.out(row * stride + column, columns) });
            }
            if let Some(table) = table {
                lookup(isa, table, products);
            }
            let result = match &skip {
                Some(skip) => {
                    let others = &mut others[..length];
                    for (row, other) in batch.clone().zip(others.chunks_exact_mut(columns)) {
                        other.copy_from_slice(&skip.bytes[row * skip.stride + column..][..columns]);
                    }
                    skip.add(isa, products, others, &mut sums[..length]);
                    &sums[..length]
                }
                None => &*products,
            };
            for (row, result) in batch.zip(result.chunks_exact(columns)) {
                // Safety: the caller's word.
                unsafe { self.out(row * stride + column, columns) }.copy_from_slice(result);
            }
        }
    }
}
