//! Kernels as a driver compiled them, from one process to the next: [`PipelineCache`].

use std::sync::{Mutex, PoisonError};

use andon_protocol::Digest;

/// What a driver made of kernels. Whoever has a disk saves what [`PipelineCache::take_grown`] gives, and makes the next
/// process's of that. Drivers that keep nothing leave it empty.
#[derive(Debug, Default)]
pub struct PipelineCache(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    data: Vec<u8>,
    grown: bool,
}

/// Before the data: what it is, and its digest.
const MAGIC: &[u8; 8] = b"andonpc1";
const HEADER: usize = MAGIC.len() + 32;

impl PipelineCache {
    /// More than this is not kept.
    pub const BYTES_MAX: usize = 64 << 20;

    /// `saved`: what an earlier process saved, in full; anything else, whatever is damaged included, is as good as nothing.
    /// A driver trusts what it is given, so that the file must be one that nobody else can write.
    pub fn new(saved: &[u8]) -> Self {
        let data = saved.split_at_checked(HEADER).filter(|(header, data)| {
            let (magic, digest) = header.split_at(MAGIC.len());
            magic == MAGIC && Digest::of(data).as_bytes()[..] == *digest && saved.len() <= Self::BYTES_MAX
        });
        let data = data.map_or(vec![], |(_, data)| data.to_vec());
        Self(Mutex::new(Content { data, grown: false }))
    }

    /// What is to be saved, if there is something new since the last call.
    pub fn take_grown(&self) -> Option<Vec<u8>> {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::take(&mut content.grown) {
            return None;
        }
        Some([MAGIC, &Digest::of(&content.data).as_bytes()[..], &content.data].concat())
    }

    pub(super) fn data(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).data.clone()
    }

    pub(super) fn put(&self, data: Vec<u8>) {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if data != content.data && data.len() <= Self::BYTES_MAX - HEADER {
            *content = Content { data, grown: true };
        }
    }
}

/// The same one, not the same content.
impl PartialEq for PipelineCache {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for PipelineCache {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_caches_are_empty() {
        let cache = PipelineCache::default();
        assert_eq!(cache.take_grown(), None);
        cache.put(b"kernels".to_vec());
        let saved = cache.take_grown().unwrap();
        assert_eq!(cache.take_grown(), None);
        cache.put(b"kernels".to_vec());
        assert_eq!(cache.take_grown(), None);
        assert_eq!(PipelineCache::new(&saved).data(), b"kernels");
        for at in 0..saved.len() {
            let mut damaged = saved.clone();
            damaged[at] ^= 1;
            assert!(PipelineCache::new(&damaged).data().is_empty(), "byte {at}");
            assert!(PipelineCache::new(&saved[..at]).data().is_empty(), "cut at {at}");
        }
    }
}
