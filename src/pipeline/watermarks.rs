//! How far the shards of this task are in event time.

use std::collections::{BTreeMap, BTreeSet};

use crate::flow::EventTime;
use crate::ingest::ShardId;

/// How far one shard is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Reached {
    /// Every finding of windows up to here has come; `None` before it is known.
    pub received: Option<EventTime>,
    /// No finding of a window that begins before this is still to come; `None` before it is known.
    pub passed: Option<EventTime>,
    /// It has no records, and has had none for long: nothing is known of its event time, and nobody waits for it.
    pub idle: bool,
}

/// How far each shard is that this task reads, and which others are to be read soon.
#[derive(Debug, Default)]
pub(super) struct Watermarks {
    shards: BTreeMap<ShardId, Reached>,
    expected: BTreeSet<ShardId>,
}

impl Watermarks {
    /// The shard is read from now on.
    pub(super) fn enter(&mut self, shard: ShardId) {
        self.expected.remove(&shard);
        self.shards.insert(shard, Reached::default());
    }

    /// It is read no more here.
    pub(super) fn leave(&mut self, shard: &ShardId) {
        self.shards.remove(shard);
    }

    /// Somebody will read the shard soon.
    pub(super) fn expect(&mut self, shard: ShardId) {
        if !self.shards.contains_key(&shard) {
            self.expected.insert(shard);
        }
    }

    /// Nobody waits for the shard any more until it is read.
    pub(super) fn give_up(&mut self, shard: &ShardId) {
        self.expected.remove(shard);
    }

    /// Shards that nobody reads yet.
    pub(super) fn expected(&self) -> &BTreeSet<ShardId> {
        &self.expected
    }

    /// Every finding of windows up to `received` has come, and none that is still to come begins before `passed`.
    pub(super) fn move_to(&mut self, shard: &ShardId, received: EventTime, passed: EventTime) {
        let reached = self.shards.entry(shard.clone()).or_default();
        reached.received = reached.received.max(Some(received));
        reached.passed = reached.passed.max(Some(passed));
        reached.idle = false;
    }

    /// The shard has had no records for long, and none before.
    pub(super) fn note_idle(&mut self, shard: &ShardId) {
        if let Some(reached) = self.shards.get_mut(shard) {
            reached.idle = reached.received.is_none();
        }
    }

    /// How far each shard is, but for those that nobody waits for.
    pub(super) fn awaited(&self) -> impl Iterator<Item = (&ShardId, &Reached)> {
        self.shards.iter().filter(|(_, reached)| !reached.idle)
    }
}
