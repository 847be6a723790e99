//! What is forgotten when the disk's budget is exceeded, the least valuable first. Everything forgotten is counted.
//!
//! The order: routine samples, useful ones, the windows of a segment (its events stay), evidence, whole segments;
//! within a kind the oldest. The open segment is never touched.

use super::{Dropped, Inner, SEGMENT_READ_MAX, SpoolError, Value, position, segment};
use crate::files;
use segment::{Class, Entry};

/// What is dropped next when the budget is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Sample(Value, u64),
    /// The windows of a segment; its events stay.
    Windows(u64),
    Segment(u64),
}

impl Inner {
    pub(super) fn enforce_budget(&mut self) -> Result<(), SpoolError> {
        while self.bytes() > self.budget.bytes_max
            || (self.segments.len() + self.samples.len()) as u64 > self.budget.files_max
        {
            let Some(victim) = self.victim() else { break };
            self.evict(victim)?;
        }
        Ok(())
    }

    fn victim(&self) -> Option<Victim> {
        let cheapest = self.samples.first_key_value().map(|((value, arrival), _)| (*value, *arrival));
        if let Some((value, arrival)) = cheapest.filter(|(value, _)| *value < Value::Evidence) {
            return Some(Victim::Sample(value, arrival));
        }
        let closed = || self.segments.iter().filter(|(number, _)| Some(**number) != self.open);
        if let Some((number, _)) = closed().find(|(_, s)| s.windows > 0) {
            return Some(Victim::Windows(*number));
        }
        if let Some((value, arrival)) = cheapest {
            return Some(Victim::Sample(value, arrival));
        }
        closed().next().map(|(number, _)| Victim::Segment(*number))
    }

    fn evict(&mut self, victim: Victim) -> Result<(), SpoolError> {
        match victim {
            Victim::Sample(value, arrival) => {
                let bytes = self.remove_sample((value, arrival))?;
                self.count_durably(Dropped { samples: 1, bytes, records: 0 })
            }
            Victim::Windows(number) => self.drop_windows(number),
            Victim::Segment(number) => {
                let waiting: Vec<_> = self.waiting_in(number)?;
                let bytes = self.segments.get(&number).map_or(0, |s| s.bytes);
                let records: Vec<_> =
                    waiting.iter().map(|entry| (position(number, entry), entry.class)).collect();
                self.forget_records(number, &records)?;
                if self.segments.contains_key(&number) {
                    self.remove_segment(number)?;
                }
                self.count_durably(Dropped { records: records.len() as u64, samples: 0, bytes })
            }
        }
    }

    /// Rewrites a segment with the events in it only.
    fn drop_windows(&mut self, number: u64) -> Result<(), SpoolError> {
        let waiting = self.waiting_in(number)?;
        let windows: Vec<_> = waiting.iter().filter(|e| e.class == Class::Window).collect();
        let events: Vec<_> = waiting.iter().filter(|e| e.class == Class::Event).collect();
        let Some(old) = self.segments.get(&number).cloned() else { return Ok(()) };
        let gone: Vec<_> = windows.iter().map(|entry| (position(number, entry), entry.class)).collect();
        let mut freed = old.bytes;
        if events.is_empty() {
            self.forget_records(number, &gone)?;
            if self.segments.contains_key(&number) {
                self.remove_segment(number)?;
            }
        } else {
            let source = self.disk.read(&self.segment_path(number), SEGMENT_READ_MAX)?;
            let mut content = segment::header(&old.boot);
            let mut changes = self.index.begin();
            for event in &events {
                let range = event.offset as usize..(event.offset + event.bytes) as usize;
                let Some(bytes) = source.get(range) else { continue };
                changes.put_record(number, &Entry { offset: content.len() as u32, ..(*event).clone() });
                content.extend_from_slice(bytes);
            }
            files::replace(self.disk.as_ref(), &self.segment_path(number), &content)?;
            self.index.apply(changes)?;
            freed = freed.saturating_sub(content.len() as u64);
            if let Some(segment) = self.segments.get_mut(&number) {
                segment.bytes = content.len() as u64;
            }
            self.forget_records(number, &gone)?;
        }
        if let Some(segment) = self.segments.get_mut(&number) {
            // Whatever the count was: a segment is a victim of this kind once.
            segment.windows = 0;
        }
        self.count_durably(Dropped { records: gone.len() as u64, samples: 0, bytes: freed })
    }
}
