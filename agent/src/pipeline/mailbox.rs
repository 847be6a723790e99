//! A bounded queue in which the newest wins: a full one gives up its oldest item. Of an item that had to go a small
//! note is kept for the reader, so that nothing disappears without a trace.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex},
    time::Duration,
};

use super::lock;

/// Notes kept between two reads; of further ones only the number is known.
const NOTES_MAX: usize = 1024;

pub(super) struct Mailbox<T, N> {
    state: Mutex<State<T, N>>,
    ready: Condvar,
    capacity: usize,
}

struct State<T, N> {
    items: VecDeque<T>,
    notes: Vec<N>,
    notes_lost: u64,
    closed: bool,
}

/// What a reader finds.
#[derive(Debug, PartialEq)]
pub(super) enum Mail<T> {
    Item(T),
    /// Nothing came in time.
    Nothing,
    /// Closed, and everything in it was read.
    Closed,
}

/// What had to go since the last read.
#[derive(Debug, PartialEq)]
pub(super) struct Displaced<N> {
    pub(super) notes: Vec<N>,
    /// Further items, of which no note was kept.
    pub(super) more: u64,
}

impl<T, N> Mailbox<T, N> {
    pub(super) fn new(capacity: usize) -> Self {
        let state = State { items: VecDeque::new(), notes: Vec::new(), notes_lost: 0, closed: false };
        Self { state: Mutex::new(state), ready: Condvar::new(), capacity: capacity.max(1) }
    }

    /// Never blocks. `note` describes the item that has to go, if one has to.
    pub(super) fn put(&self, item: T, note: impl Fn(&T) -> N) {
        let mut state = lock(&self.state);
        if state.items.len() >= self.capacity {
            let gone = state.items.pop_front().map(|old| note(&old));
            match gone {
                Some(gone) if state.notes.len() < NOTES_MAX => state.notes.push(gone),
                _ => state.notes_lost += 1,
            }
        }
        state.items.push_back(item);
        drop(state);
        self.ready.notify_one();
    }

    /// The oldest item, waiting for one at most `patience`, and what was displaced before it.
    pub(super) fn take(&self, patience: Duration) -> (Mail<T>, Displaced<N>) {
        let state = lock(&self.state);
        let (mut state, _) = self
            .ready
            .wait_timeout_while(state, patience, |s| s.items.is_empty() && !s.closed)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mail = match state.items.pop_front() {
            Some(item) => Mail::Item(item),
            None if state.closed => Mail::Closed,
            None => Mail::Nothing,
        };
        let notes = std::mem::take(&mut state.notes);
        let more = std::mem::take(&mut state.notes_lost);
        (mail, Displaced { notes, more })
    }

    /// No more items will come; those that are in it can still be read.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.ready.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_wins_and_the_displaced_are_named() {
        let mailbox = Mailbox::new(2);
        (1..=5).for_each(|i| mailbox.put(i, |old| *old * 10));
        assert_eq!(
            mailbox.take(Duration::ZERO),
            (Mail::Item(4), Displaced { notes: vec![10, 20, 30], more: 0 })
        );
        mailbox.close();
        assert_eq!(mailbox.take(Duration::ZERO).0, Mail::Item(5));
        assert_eq!(mailbox.take(Duration::ZERO).0, Mail::Closed);
    }

    proptest! {
        /// put = taken + displaced + still in it, whatever the order of puts and takes.
        #[test]
        fn nothing_disappears(steps in proptest::collection::vec(any::<bool>(), 0..4000), capacity in 1usize..4) {
            let mailbox = Mailbox::new(capacity);
            let (mut put, mut taken, mut displaced) = (0u64, 0u64, 0u64);
            let mut last = None;
            for is_put in steps {
                if is_put {
                    mailbox.put(put, |_| ());
                    put += 1;
                } else {
                    let (mail, gone) = mailbox.take(Duration::ZERO);
                    displaced += gone.notes.len() as u64 + gone.more;
                    if let Mail::Item(item) = mail {
                        prop_assert!(last.is_none_or(|l| l < item));
                        last = Some(item);
                        taken += 1;
                    }
                }
            }
            mailbox.close();
            loop {
                let (mail, gone) = mailbox.take(Duration::ZERO);
                displaced += gone.notes.len() as u64 + gone.more;
                if mail == Mail::Closed {
                    break;
                }
                taken += 1;
            }
            prop_assert_eq!(put, taken + displaced);
        }
    }
}
