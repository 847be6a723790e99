//! Memory of tensors that are no longer needed, for those that come next.

use std::sync::Mutex;

use crate::tensor::{Data, Tensor};

/// Lists of f32 between two uses. A large block that goes back to the system comes again page by page, which takes longer
/// than most operators do.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<f32>>>);

/// Shorter ones are the allocator's business.
const LENGTH_MIN: usize = 4 << 10;
/// Lists that wait at most; the shortest go first.
const LISTS_MAX: usize = 32;

impl Pool {
    /// An empty list with room for `length`.
    pub(crate) fn empty(&self, length: usize) -> Vec<f32> {
        let mut list = self.take(length).unwrap_or_default();
        list.clear();
        list.reserve(length);
        list
    }

    /// A list of `length`, with old values in it.
    pub(crate) fn list(&self, length: usize) -> Vec<f32> {
        let mut list = self.take(length).unwrap_or_default();
        list.resize(length, 0.0);
        list
    }

    /// The shortest that is long enough, and not far too long.
    fn take(&self, length: usize) -> Option<Vec<f32>> {
        if length < LENGTH_MIN {
            return None;
        }
        let mut lists = self.0.lock().ok()?;
        let at = lists.iter().position(|list| list.capacity() >= length)?;
        (lists[at].capacity() / 4 <= length).then(|| lists.remove(at))
    }

    /// Takes what a tensor consists of.
    pub(crate) fn give(&self, tensor: Tensor) {
        let Data::F32(list) = tensor.into_data() else { return };
        let (length, Ok(mut lists)) = (list.capacity(), self.0.lock()) else { return };
        if length < LENGTH_MIN {
            return;
        }
        let at = lists.partition_point(|other| other.capacity() < length);
        lists.insert(at, list);
        if lists.len() > LISTS_MAX {
            lists.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(length: usize) -> Tensor {
        Tensor::f32(vec![length], vec![1.0; length]).unwrap()
    }

    #[test]
    fn what_is_given_comes_again() {
        let pool = Pool::default();
        let (small, large) = (tensor(5_000), tensor(50_000));
        let address = |t: &Tensor| t.as_f32().unwrap().as_ptr();
        let (at_small, at_large) = (address(&small), address(&large));
        pool.give(large);
        pool.give(small);
        let list = pool.list(4_500);
        assert_eq!(list.as_ptr(), at_small);
        // Most of it would lie idle.
        let other = pool.list(10_000);
        assert_ne!(other.as_ptr(), at_large);
        let list = pool.empty(40_000);
        assert!(list.as_ptr() == at_large && list.is_empty());
        assert_eq!(pool.list(40_000), vec![0.0; 40_000]);
    }

    #[test]
    fn it_holds_so_many_and_no_more() {
        let pool = Pool::default();
        (0..2 * LISTS_MAX).for_each(|i| pool.give(tensor(LENGTH_MIN + i)));
        assert_eq!(pool.0.lock().unwrap().len(), LISTS_MAX);
        pool.give(tensor(10));
        assert_eq!(pool.0.lock().unwrap().len(), LISTS_MAX);
    }
}
