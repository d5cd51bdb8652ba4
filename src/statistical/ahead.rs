//! Records that are dated far ahead of all others.
//!
//! Event time moves on with the records, so one that is dated a year ahead would close every window, and all that follow would be
//! late. So a record that is more than an hour ahead of the newest one is set aside until others confirm that time has come
//! so far:
//!
//! | what follows it | what becomes of it |
//! | --- | --- |
//! | [`QUORUM`] records as far ahead as it, of more than one interface where more than one is known, and not outnumbered by others: a night without traffic is over, or the log has just begun | it is folded, and time moves on as far as half of them confirm |
//! | others that bring the newest record to within an hour of it | it is folded: it was the order of the log that was odd, and not its clock |
//! | [`CONTRADICTED`] other records | it is left out and counted |
//! | the end of the input, or silence | it is folded, unless more than [`DOUBTS`] others came after it or it is more than a year ahead and nearly alone |
//!
//! The rule reads nothing but the records and their order, so a replay decides as the live run did.

use serde::{Deserialize, Serialize};

use crate::flow::{EventTime, FlowRecord, InterfaceId};

/// A record that is not further ahead of the newest one than this needs no confirmation, s.
pub(super) const JUMP: u32 = 3_600;

/// Records that confirm each other.
const QUORUM: usize = 16;

/// Records that are set aside at most: an interface that is alone in this is believed then.
const KEPT: usize = 16_384;

/// Other records after which one that is set aside is given up.
const CONTRADICTED: u64 = 4_096;

/// Other records after which it takes more than the end of the input to believe it.
const DOUBTS: u64 = 64;

/// A pause of the log that is believed without confirmation, s.
const PAUSE_MAX: u32 = 366 * 86_400;

/// Records that are set aside, in the order in which they came.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Ahead {
    records: Vec<FlowRecord>,
    /// How many records had been observed when the first of them came.
    since: u64,
    /// How many have been left out.
    left_out: u64,
}

impl Ahead {
    /// Sets a record aside, the one after `observed` others, and gives back those that are confirmed now.
    pub(super) fn add(&mut self, record: &FlowRecord, observed: u64, interfaces: usize) -> Vec<FlowRecord> {
        if self.others(observed) >= CONTRADICTED {
            self.give_up();
        }
        if self.records.is_empty() {
            self.since = observed;
        }
        self.records.push(*record);
        let count = self.records.len();
        if count < QUORUM || self.others(observed + 1) > count as u64 {
            return Vec::new();
        }
        let first = self.records[0].interface;
        if count < KEPT && interfaces > 1 && self.records.iter().all(|record| record.interface == first) {
            return Vec::new();
        }
        let mut ends: Vec<EventTime> = self.records.iter().map(|record| record.end).collect();
        let (_, confirmed, _) = ends.select_nth_unstable(count - QUORUM / 2);
        self.take(confirmed.plus(JUMP), observed + 1)
    }

    /// The newest record from which on one that is set aside is no longer ahead.
    pub(super) fn reached_at(&self) -> EventTime {
        self.records.iter().map(|record| record.end.minus(JUMP)).min().unwrap_or(EventTime(u32::MAX))
    }

    /// Others have brought event time on: gives back those that it has reached.
    pub(super) fn reached(&mut self, newest: EventTime, observed: u64) -> Vec<FlowRecord> {
        self.take(newest.plus(JUMP), observed)
    }

    /// Nothing follows, or nothing has for long: gives back those that nothing speaks against. `newest` is 0 where nothing was seen yet.
    pub(super) fn settle(&mut self, newest: EventTime, observed: u64) -> Vec<FlowRecord> {
        if self.records.is_empty() || self.others(observed) > DOUBTS {
            return Vec::new();
        }
        let mut ends: Vec<EventTime> = self.records.iter().map(|record| record.end).collect();
        let middle = ends.len() / 2;
        let mut until = if newest == EventTime(0) { *ends.select_nth_unstable(middle).1 } else { newest };
        ends.sort_unstable();
        let count = ends.len();
        for (n, end) in ends.into_iter().enumerate() {
            if end.since(until) <= PAUSE_MAX || count - n >= QUORUM {
                until = until.max(end);
            }
        }
        self.take(until, observed)
    }

    /// The input has ended: what is still set aside is left out.
    pub(super) fn give_up(&mut self) {
        self.left_out += self.records.len() as u64;
        self.records.clear();
    }

    fn take(&mut self, until: EventTime, observed: u64) -> Vec<FlowRecord> {
        let taken = self.records.extract_if(.., |record| record.end <= until).collect();
        self.since = observed - (self.records.len() as u64).min(observed);
        taken
    }

    /// Takes in those of another engine, whose interfaces have other numbers here; `observed` are the records that either has
    /// seen. As many others speak against all of them as against those of the one that knows more of them.
    pub(super) fn join(&mut self, other: Ahead, observed: [u64; 2], rename: impl Fn(InterfaceId) -> InterfaceId) {
        let others = self.others(observed[0]).max(other.others(observed[1]));
        let renamed =
            other.records.into_iter().map(|record| FlowRecord { interface: rename(record.interface), ..record });
        self.records.extend(renamed);
        self.left_out += other.left_out;
        self.since = (observed[0] + observed[1]).saturating_sub(others + self.records.len() as u64);
    }

    /// Records that came since the first of these and were not set aside.
    fn others(&self, observed: u64) -> u64 {
        if self.records.is_empty() {
            0
        } else {
            (observed - self.since.min(observed)).saturating_sub(self.records.len() as u64)
        }
    }

    /// How many were left out, or will be.
    pub(super) fn left_out(&self, observed: u64) -> u64 {
        let doubted = if self.others(observed) > DOUBTS { self.records.len() as u64 } else { 0 };
        self.left_out + doubted
    }
}

#[cfg(test)]
mod tests;
