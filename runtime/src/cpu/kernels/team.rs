//! The threads that share one step's work: [`Team`].
//!
//! A step is cut in parts, which the threads take one by one, each its own share first; each part writes its own bytes, so that results do not
//! depend on who took what. Whoever calls works too. Between two steps the others spin for a moment, then they park:
//! no locks, and no allocation once the team stands. A thread that comes too late for a step is not waited for.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]

use std::{
    cell::UnsafeCell,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*},
    },
    thread::{self, JoinHandle},
};

use super::Isa;
use crate::plain::Workers;

/// Some more would help no network that fits a device.
const THREADS_MAX: usize = 64;

/// Looks for work before a thread parks: about 0.1 ms.
const SPINS: u32 = 2_000;

/// [`Shared::state`]: threads at work in the low bits, then whether others may join, then the number of the job.
const OPEN: u64 = 1 << 16;
const JOB: u64 = 1 << 17;

pub(crate) struct Team {
    isa: Isa,
    shared: Arc<Shared>,
    others: Vec<JoinHandle<()>>,
}

struct Shared {
    state: AtomicU64,
    /// Written by the caller while nobody is at work and none may join.
    job: UnsafeCell<Option<Job>>,
    /// For each thread, the caller first: the next part of its share that nobody has taken.
    next: Vec<Next>,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Each of the others stays on a processor of its own from its next job on.
    pinned: AtomicBool,
    /// By thread.
    parked: Vec<AtomicBool>,
}

/// Alone on its line of the cache.
#[repr(align(64))]
#[derive(Default)]
struct Next(AtomicUsize);

#[derive(Clone, Copy)]
struct Job {
    /// Valid while the call of [`Team::parts`] that made it runs.
    work: *const (dyn Fn(usize) + Sync),
    parts: usize,
}

// Safety: `job` is written while no thread is at work and none may join (`Team::parts`), and read only by threads that
// have joined; `state` orders the two. The work itself is `Sync`.
unsafe impl Send for Shared {}
// Safety: as above.
unsafe impl Sync for Shared {}

impl Team {
    /// `threads` includes the caller; where the system refuses a thread, the team is smaller.
    pub(crate) fn new(isa: Isa, threads: usize) -> Self {
        let others = threads.clamp(1, THREADS_MAX) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: (0..=others).map(|_| Next::default()).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            pinned: AtomicBool::new(false),
            parked: (0..others).map(|_| AtomicBool::new(false)).collect(),
        });
        let start = |index: usize| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("andon-cpu-{}", index + 1)).spawn(move || shared.serve(index))
        };
        let others = (0..others).map_while(|index| start(index).ok()).collect();
        Self { isa, shared, others }
    }

    /// Keeps each thread but the caller's on one processor of those that it may use, where the system does that: the next
    /// one for the next thread, the first for the caller, who pins itself if it wants to.
    pub(crate) fn pin(&self) {
        self.shared.pinned.store(true, Relaxed);
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn threads(&self) -> usize {
        self.others.len() + 1
    }

    /// Calls `work` once with each of `0..parts`, on all threads; returns when all calls have.
    pub(crate) fn parts(&mut self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        if parts <= 1 || self.others.is_empty() {
            return (0..parts).for_each(work);
        }
        let shared = &*self.shared;
        // Safety: only the lifetime changes. No thread touches the work after `Closed` is dropped, below, and that is
        // before this function returns or unwinds.
        let work = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync + 'static)>(work)
        };
        // Safety: the last call closed the job and saw the last thread leave, and `&mut self` means there is no other.
        unsafe { *shared.job.get() = Some(Job { work, parts }) };
        for (share, next) in shared.next.iter().enumerate() {
            next.0.store(shared.share(parts, share).start, Relaxed);
        }
        shared.panicked.store(false, Relaxed);
        let number = shared.state.load(Relaxed) / JOB;
        shared.state.store(number.wrapping_add(1).wrapping_mul(JOB) | OPEN, SeqCst);
        for (parked, other) in shared.parked.iter().zip(&self.others) {
            if parked.load(SeqCst) {
                other.thread().unpark();
            }
        }
        let closed = Closed(shared);
        shared.take(Job { work, parts }, 0);
        drop(closed);
        if shared.panicked.load(Relaxed) {
            panic!("a thread of the team panicked");
        }
    }

    /// Cuts `out` in pieces of `size` elements, of which the last may be shorter, and calls `work` with the number of each.
    pub(crate) fn pieces<T: Send>(
        &mut self,
        out: &mut [T],
        size: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let (size, length) = (size.max(1), out.len());
        let start = Start(out.as_mut_ptr());
        self.parts(length.div_ceil(size), &|part| {
            let first = part * size;
            // Safety: within `out`, which is borrowed for as long as this runs; each part is called once, and no two
            // overlap.
            let piece =
                unsafe { std::slice::from_raw_parts_mut(start.get().add(first), size.min(length - first)) };
            work(part, piece);
        });
    }

    /// A size for [`Self::pieces`] of whole `unit`s: a few pieces a thread, none smaller than `least` bytes.
    pub(crate) fn piece(&self, length: usize, unit: usize, least: usize) -> usize {
        let share = if self.threads() == 1 { length } else { length.div_ceil(4 * self.threads()) };
        share.max(least).max(1).next_multiple_of(unit.max(1))
    }
}

impl Workers for Team {
    fn pieces(&mut self, out: &mut [f32], size: usize, work: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        Team::pieces(self, out, size, work);
    }

    fn parts(&mut self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        Team::parts(self, parts, work);
    }

    fn threads(&self) -> usize {
        Team::threads(self)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for other in self.others.drain(..) {
            other.thread().unpark();
            // A panic was reported when it happened.
            drop(other.join());
        }
    }
}

/// Closes the job and waits for whoever is at work, also when the caller's own part panics.
struct Closed<'a>(&'a Shared);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, AcqRel);
        let mut spins = 0;
        while self.0.state.load(Acquire) & (OPEN - 1) != 0 {
            spins += 1;
            // A thread that the system put aside in the midst of its part.
            if spins > SPINS { thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

impl Shared {
    /// The parts that a thread takes first: the same ones in each step of a network, so that it finds in its own cache what
    /// it wrote there.
    fn share(&self, parts: usize, thread: usize) -> Range<usize> {
        let threads = self.next.len();
        parts * thread / threads..parts * (thread + 1) / threads
    }

    /// The thread's own share, then what is left of others'.
    fn take(&self, job: Job, thread: usize) {
        let threads = self.next.len();
        for owner in (thread..threads).chain(0..thread) {
            let end = self.share(job.parts, owner).end;
            loop {
                let part = self.next[owner].0.fetch_add(1, Relaxed);
                if part >= end {
                    break;
                }
                // Safety: `Team::parts` keeps the work alive until nobody is at work.
                unsafe { (*job.work)(part) };
            }
        }
    }

    /// What each of the other threads does.
    fn serve(&self, index: usize) {
        let (mut last, mut pinned) = (0, false);
        while let Some(number) = self.join(index, last) {
            last = number;
            if !pinned && self.pinned.load(Relaxed) {
                pinned = true;
                stay_on(index + 1);
            }
            // Safety: having joined, this thread may read the job.
            if let Some(job) = unsafe { *self.job.get() }
                && catch_unwind(AssertUnwindSafe(|| self.take(job, index + 1))).is_err()
            {
                self.panicked.store(true, Relaxed);
                self.next.iter().for_each(|next| next.0.store(job.parts, Relaxed));
            }
            self.state.fetch_sub(1, Release);
        }
    }

    /// Waits for a job other than `last` and joins it; `None` when the team is dropped.
    fn join(&self, index: usize, last: u64) -> Option<u64> {
        let mut spins = 0;
        loop {
            if self.stop.load(Relaxed) {
                return None;
            }
            let state = self.state.load(SeqCst);
            if is_new(state, last) {
                if self.state.compare_exchange_weak(state, state + 1, AcqRel, Relaxed).is_ok() {
                    return Some(state / JOB);
                }
            } else if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.parked[index].store(true, SeqCst);
                // Looked at again after the flag is seen to be set: whoever opens a job sees the flag or is seen here.
                let state = self.state.load(SeqCst);
                if !is_new(state, last) && !self.stop.load(SeqCst) {
                    thread::park();
                }
                self.parked[index].store(false, SeqCst);
                spins = 0;
            }
        }
    }
}

/// Keeps this thread on the processor of that number, counted round among those that it may use. Where that is refused it
/// works as well.
#[cfg(target_os = "linux")]
fn stay_on(number: usize) {
    let allowed = processors();
    if allowed.is_empty() {
        return;
    }
    // Safety: a set of processors is plain bits, of which none is a valid value; the call gets a pointer to one and its
    // size, and 0 is the thread that calls.
    unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(allowed[number % allowed.len()], &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one);
    }
}

#[cfg(not(target_os = "linux"))]
fn stay_on(_: usize) {}

/// That this thread may use.
#[cfg(target_os = "linux")]
fn processors() -> Vec<usize> {
    // Safety: as above; the set is read only where the call has filled it.
    unsafe {
        let mut all: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut all) != 0 {
            return vec![];
        }
        (0..libc::CPU_SETSIZE as usize).filter(|number| libc::CPU_ISSET(*number, &all)).collect()
    }
}

/// Whether a job other than `last` may be joined.
fn is_new(state: u64, last: u64) -> bool {
    state & OPEN != 0 && state / JOB != last
}

/// A pointer that may go to other threads, as what it points to may.
struct Start<T>(*mut T);

impl<T> Start<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

// Safety: `T` may be written from any thread; `Team::pieces` sees to it that each is from one.
unsafe impl<T: Send> Send for Start<T> {}
// Safety: as above.
unsafe impl<T: Send> Sync for Start<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_runs_once() {
        for threads in [1, 2, 5] {
            let mut team = Team::new(Isa::Scalar, threads);
            assert_eq!(team.threads(), threads);
            for round in 0..2_000 {
                let parts = round % 37;
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                team.parts(parts, &|part| {
                    counts[part].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Relaxed) == 1), "{counts:?}");
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pinned_threads_stay_where_they_are() {
        let (mut team, own) = (Team::new(Isa::Scalar, 3), processors());
        let me = thread::current().id();
        let seen = std::sync::Mutex::new(vec![]);
        let look = |team: &mut Team| {
            // Parts end only when there are as many threads at work.
            let there = AtomicUsize::new(0);
            team.parts(3, &|_| {
                there.fetch_add(1, SeqCst);
                while there.load(SeqCst) < 3 {
                    thread::yield_now();
                }
                if thread::current().id() != me {
                    seen.lock().unwrap().push(processors());
                }
            });
            std::mem::take(&mut *seen.lock().unwrap())
        };
        assert_eq!(look(&mut team), [own.clone(), own.clone()]);
        team.pin();
        let mut pinned = look(&mut team);
        pinned.sort();
        let mut expected = [1, 2].map(|number| vec![own[number % own.len()]]);
        expected.sort();
        assert_eq!(pinned, expected);
        assert_eq!(processors(), own, "the caller is nobody's to pin");
    }

    #[test]
    fn pieces_cover_the_whole() {
        let mut team = Team::new(Isa::Scalar, 3);
        let mut out = vec![0u8; 1003];
        team.pieces(&mut out, 10, |i, piece| piece.fill(i as u8));
        assert!(out.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / 10));
    }

    #[test]
    fn threads_that_parked_wake_up() {
        let mut team = Team::new(Isa::Scalar, 2);
        let parked = |team: &Team| team.shared.parked[0].load(SeqCst);
        for _ in 0..20 {
            while !parked(&team) {
                thread::yield_now();
            }
            // The caller's part ends only when the other thread has done one.
            let done = AtomicUsize::new(0);
            team.parts(2, &|_| {
                done.fetch_add(1, SeqCst);
                while done.load(SeqCst) < 2 {
                    thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let mut team = Team::new(Isa::Scalar, 2);
        for part in 0..4 {
            let run = catch_unwind(AssertUnwindSafe(|| team.parts(4, &|i| assert!(i != part))));
            assert!(run.is_err());
            let count = AtomicUsize::new(0);
            team.parts(4, &|_| {
                count.fetch_add(1, Relaxed);
            });
            assert_eq!(count.load(Relaxed), 4);
        }
    }
}
