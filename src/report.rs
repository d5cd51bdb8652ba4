//! The self-contained HTML page of a run: no script, no font, no picture from anywhere else, so that it can be mailed,
//! archived, and opened on a machine without a network.

use std::collections::BTreeMap;

use crate::anomaly::Anomaly;
use crate::flow::{Address, FlowRecord, Marks};
use crate::ingest::Refused;
use crate::publish::Silence;
use crate::statistical::Statistics;

mod page;

pub use page::page;

/// Everything that the page shows.
#[derive(Debug)]
pub struct Run<'a> {
    /// What was told, in order of detection.
    pub anomalies: &'a [Anomaly],
    /// What was not told, and why.
    pub silences: Vec<&'a Silence>,
    /// Counts of the engine.
    pub statistics: Statistics,
    /// What could not be read.
    pub refused: &'a Refused,
    /// Seconds of NODATA and SKIPDATA by interface.
    pub blind: &'a BTreeMap<String, (u64, u64)>,
    /// Traffic over time and by address.
    pub traffic: Option<&'a Traffic>,
}

/// Traffic over time and by address, in bounded memory.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    talkers: BTreeMap<Address, Talker>,
    timeline: BTreeMap<u32, Bucket>,
    /// log2 of the bucket's length in minutes.
    coarseness: u32,
    floor: u64,
}

/// What one address sent.
#[derive(Clone, Copy, Debug, Default)]
struct Talker {
    bytes: u64,
    records: u64,
    rejected: u64,
}

/// What was sent in one stretch of time.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    records: u64,
    bytes: u64,
    rejected: u64,
}

/// How many talkers are counted before the lesser half is dropped.
const TALKERS_MAX: usize = 8192;

/// How many bars the timeline has at most, before two become one.
const BUCKETS_MAX: usize = 512;

impl Traffic {
    /// Counts records. The heaviest senders are exact unless thousands of others outweighed them before they began: the
    /// lesser half of a full table is dropped (lossy counting, Manku and Motwani 2002), and [`Traffic::floor`] is what a
    /// dropped one may have sent.
    pub fn count(&mut self, records: &[FlowRecord]) {
        for record in records {
            let rejected = u64::from(record.marks.has(Marks::REJECTED));
            let talker = self.talkers.entry(record.source).or_default();
            talker.bytes += record.bytes;
            talker.records += 1;
            talker.rejected += rejected;
            let bucket = self.timeline.entry((record.start.0 / 60) >> self.coarseness).or_default();
            bucket.records += 1;
            bucket.bytes += record.bytes;
            bucket.rejected += rejected;
            if self.talkers.len() > TALKERS_MAX {
                self.drop_the_lesser_half();
            }
            while self.timeline.len() > BUCKETS_MAX {
                self.coarsen();
            }
        }
    }

    /// Bytes that an address may have sent without being counted.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    fn drop_the_lesser_half(&mut self) {
        let mut bytes: Vec<u64> = self.talkers.values().map(|talker| talker.bytes).collect();
        let (_, &mut median, _) = bytes.select_nth_unstable(TALKERS_MAX / 2);
        self.talkers.retain(|_, talker| talker.bytes > median);
        self.floor = self.floor.max(median);
    }

    fn coarsen(&mut self) {
        self.coarseness += 1;
        for (at, bucket) in std::mem::take(&mut self.timeline) {
            let kept = self.timeline.entry(at / 2).or_default();
            kept.records += bucket.records;
            kept.bytes += bucket.bytes;
            kept.rejected += bucket.rejected;
        }
    }

    fn top(&self, count: usize) -> Vec<(Address, Talker)> {
        let mut all: Vec<_> = self.talkers.iter().map(|(&address, &talker)| (address, talker)).collect();
        all.sort_by_key(|(address, talker)| (std::cmp::Reverse(talker.bytes), *address));
        all.truncate(count);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::EventTime;

    fn record(source: u32, bytes: u64, start: u32) -> FlowRecord {
        FlowRecord { source: Address::v4(source), bytes, start: EventTime(start), ..FlowRecord::default() }
    }

    #[test]
    fn the_heaviest_talkers_survive_a_flood_of_small_ones_in_bounded_memory() {
        let mut traffic = Traffic::default();
        traffic.count(&[record(7, 1 << 40, 0), record(8, 1 << 41, 0)]);
        for n in 0..100_000 {
            traffic.count(&[record(1_000 + n, 40, 0)]);
        }
        assert!(traffic.talkers.len() <= TALKERS_MAX);
        assert_eq!(traffic.top(2).iter().map(|(a, _)| *a).collect::<Vec<_>>(), [Address::v4(8), Address::v4(7)]);
    }

    #[test]
    fn a_long_timeline_becomes_coarser_and_loses_nothing() {
        let mut traffic = Traffic::default();
        for minute in 0..10_000 {
            traffic.count(&[record(1, 1, minute * 60)]);
        }
        assert!(traffic.timeline.len() <= BUCKETS_MAX);
        assert_eq!(traffic.timeline.values().map(|bucket| bucket.records).sum::<u64>(), 10_000);
    }
}
