//! Bytes that start at a cache line, so that no vector of them crosses one needlessly.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]

use std::ops::{Deref, DerefMut};

const LINE: usize = 64;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A fixed number of bytes, zero at first.
#[derive(Debug, Clone)]
pub(crate) struct Bytes {
    lines: Vec<Line>,
    length: usize,
}

impl Bytes {
    pub(crate) fn zeroed(length: usize) -> Self {
        Self { lines: vec![Line([0; LINE]); length.div_ceil(LINE)], length }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // Safety: lines are plain bytes without gaps, and there are at least `length` of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length) }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // Safety: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length) }
    }
}
