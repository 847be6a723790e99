//! Work on shards of a batch, side by side. A shard's result does not depend on which thread made it or how many there
//! are: each thread is a pool of its own with one thread, so that nothing inside a shard is split, and results come
//! back in the order of the shards. That is what makes training the same bytes on 2 cores and on 64.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// Images of one shard: large enough for efficient matrix products, small enough that a batch makes several.
pub const SHARD: usize = 16;

pub struct Team {
    pools: Vec<rayon::ThreadPool>,
}

impl Team {
    /// As many threads as there are cores, at most 64.
    pub fn new() -> Result<Self, rayon::ThreadPoolBuildError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(64);
        let pool = |i| {
            rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("train-{i}")).build()
        };
        Ok(Self { pools: (0..threads).map(pool).collect::<Result<_, _>>()? })
    }

    pub fn threads(&self) -> usize {
        self.pools.len()
    }

    /// `f(0), …, f(count - 1)`, in this order. The first error wins; after one no further item is begun.
    pub fn map<T, E, F>(&self, count: usize, f: F) -> Result<Vec<T>, E>
    where
        T: Send,
        E: Send,
        F: Fn(usize) -> Result<T, E> + Sync,
    {
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<(usize, Result<T, E>)>> = Mutex::new(Vec::with_capacity(count));
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    return;
                }
                let result = f(i);
                if result.is_err() {
                    next.store(count, Ordering::Relaxed);
                }
                // A poisoned lock only means that another item panicked; that panic is passed on by the scope.
                results.lock().unwrap_or_else(|e| e.into_inner()).push((i, result));
            }
        };
        std::thread::scope(|scope| {
            for pool in self.pools.iter().take(count) {
                scope.spawn(|| pool.install(work));
            }
        });
        let mut results = results.into_inner().unwrap_or_else(|e| e.into_inner());
        results.sort_by_key(|(i, _)| *i);
        results.into_iter().map(|(_, r)| r).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order_and_the_first_error_stops() {
        let team = Team::new().unwrap();
        assert_eq!(
            team.map(100, |i| Ok::<_, ()>(i * i)).unwrap(),
            (0..100).map(|i| i * i).collect::<Vec<_>>()
        );
        assert_eq!(team.map(0, |_| Ok::<_, ()>(0)).unwrap(), Vec::<i32>::new());
        assert_eq!(team.map(100, |i| if i == 3 { Err(i) } else { Ok(i) }).unwrap_err(), 3);
    }
}
