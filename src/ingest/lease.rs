//! Who reads which shard: the lease-taking algorithm of the Kinesis Client Library, in its lease-stealing form.
//!
//! A lease is a row that all workers see. Its owner raises the row's counter every few seconds; whoever sees a counter
//! stand still for longer than the fail-over time may take the lease. Every write is conditional on the counter that was
//! read, so the counter is the heartbeat and the fencing token at once, and no clock is ever compared between machines:
//! each observer judges by its own, which is passed in. The rows are those of the Kinesis Client Library 2 and 3, so that
//! its tools can read them and its workers can share a table with ours.
//!
//! Source: `awslabs/amazon-kinesis-client` 3.5.1, `leases/dynamodb/DynamoDBLeaseTaker.java` (taking and stealing),
//! `leases/HierarchicalShardSyncer.java` (which leases should exist), `leases/LeaseCleanupManager.java` (which need not).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use crate::random::Random;

/// How far a shard has been read, as the lease table says it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Checkpoint {
    /// Nothing yet; starts with the oldest record that the stream still has.
    TrimHorizon,
    /// Nothing yet; starts with what arrives next.
    Latest,
    /// Nothing yet; starts at the moment that the settings name.
    AtTimestamp,
    /// Everything up to and including this record.
    Sequence {
        /// The record's sequence number.
        number: String,
        /// The last part of it that was read, where the record is an aggregate of the Kinesis Producer Library.
        sub: u64,
    },
    /// The shard was closed by a split or a merge and has been read to its end.
    ShardEnd,
}

impl Checkpoint {
    /// Reads the two attributes of the table.
    pub fn parse(number: &str, sub: u64) -> Checkpoint {
        match number {
            "TRIM_HORIZON" => Checkpoint::TrimHorizon,
            "LATEST" => Checkpoint::Latest,
            "AT_TIMESTAMP" => Checkpoint::AtTimestamp,
            "SHARD_END" => Checkpoint::ShardEnd,
            number => Checkpoint::Sequence { number: number.to_owned(), sub },
        }
    }

    /// The part within an aggregate; 0 for everything else.
    pub fn sub(&self) -> u64 {
        match self {
            Checkpoint::Sequence { sub, .. } => *sub,
            _ => 0,
        }
    }

    /// Whether reading has begun.
    pub fn has_begun(&self) -> bool {
        matches!(self, Checkpoint::Sequence { .. } | Checkpoint::ShardEnd)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Checkpoint::TrimHorizon => "TRIM_HORIZON",
            Checkpoint::Latest => "LATEST",
            Checkpoint::AtTimestamp => "AT_TIMESTAMP",
            Checkpoint::ShardEnd => "SHARD_END",
            Checkpoint::Sequence { number, .. } => number,
        })
    }
}

/// One row of the lease table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The shard.
    pub key: String,
    /// The worker that reads it.
    pub owner: Option<String>,
    /// Rises with every write of the owner: heartbeat and fencing token.
    pub counter: u64,
    /// How far it was read.
    pub checkpoint: Checkpoint,
    /// How often the owner changed since the last checkpoint.
    pub switches: u64,
    /// The shards that this one continues.
    pub parents: BTreeSet<String>,
    /// The shards that continue this one, once it has ended.
    pub children: BTreeSet<String>,
    /// Lowest and highest partition hash of the shard, where known.
    pub hashes: Option<(u128, u128)>,
    /// A hand-off between workers of the Kinesis Client Library 3 is under way; this is the one that hands off.
    pub hands_off: Option<String>,
}

impl Lease {
    /// A lease that nobody owns yet.
    pub fn new(shard: &ShardInfo, checkpoint: Checkpoint) -> Lease {
        Lease {
            key: shard.id.clone(),
            owner: None,
            counter: 0,
            checkpoint,
            switches: 0,
            parents: shard.parents.clone(),
            children: BTreeSet::new(),
            hashes: Some(shard.hashes),
            hands_off: None,
        }
    }

    /// Whether the shard has been read to its end.
    pub fn is_complete(&self) -> bool {
        self.checkpoint == Checkpoint::ShardEnd
    }
}

/// What the stream says of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardInfo {
    /// Its id.
    pub id: String,
    /// The shards it continues (two after a merge), as far as the stream still knows them.
    pub parents: BTreeSet<String>,
    /// Lowest and highest partition hash.
    pub hashes: (u128, u128),
    /// Whether it still takes records.
    pub open: bool,
}

/// Where a stream that nobody has read is begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// With the oldest record there is.
    TrimHorizon,
    /// With what arrives next.
    Latest,
    /// At a moment.
    AtTimestamp,
}

/// How leases are shared out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// A counter that stands still for longer than this has lost its owner.
    pub failover: Duration,
    /// At most so many leases for one worker.
    pub leases_max: usize,
    /// At most so many leases stolen in one round.
    pub steal_max: usize,
}

impl Policy {
    /// How often the leases that are held are renewed: three times per fail-over time, a little early.
    pub fn renew_every(&self) -> Duration {
        (self.failover / 3).saturating_sub(EPSILON).max(Duration::from_millis(20))
    }

    /// How often leases are looked for.
    pub fn take_every(&self) -> Duration {
        (self.failover + EPSILON) * 2
    }
}

/// Allowance for clocks that tick unevenly (the library's `epsilonMillis`).
const EPSILON: Duration = Duration::from_millis(25);

/// What one worker has seen of all leases, by its own clock.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    seen: HashMap<String, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    counter: u64,
    /// When the counter was last seen to move; `None` for a lease that was never owned while it was watched.
    moved: Option<Duration>,
}

impl Observer {
    /// Notes the table as it stands at `now`.
    pub fn observe(&mut self, leases: &[Lease], now: Duration) {
        let mut seen = HashMap::with_capacity(leases.len());
        for lease in leases {
            let moved = match self.seen.get(&lease.key) {
                Some(before) if before.counter == lease.counter => before.moved,
                Some(_) => Some(now),
                None => lease.owner.is_some().then_some(now),
            };
            seen.insert(lease.key.clone(), Seen { counter: lease.counter, moved });
        }
        self.seen = seen;
    }

    /// How long the lease's counter has stood still; for ever where it was never seen to move.
    pub fn still_for(&self, lease: &Lease, now: Duration) -> Duration {
        match self.seen.get(&lease.key).and_then(|s| s.moved) {
            Some(moved) => now.saturating_sub(moved),
            None => Duration::MAX,
        }
    }

    fn is_available(&self, lease: &Lease, now: Duration, failover: Duration) -> bool {
        lease.owner.is_none() || self.still_for(lease, now) > failover
    }

    /// The leases that worker `me` should take now, in order; each is still subject to the conditional write.
    ///
    /// Leases that were left alone for three fail-over times are taken whatever this worker's share; then available ones
    /// up to its share, `ceil(leases / workers)`; and only where none is available it steals from the most loaded worker.
    pub fn choose<'a>(
        &self,
        leases: &'a [Lease],
        me: &str,
        now: Duration,
        policy: &Policy,
        random: &mut Random,
    ) -> Vec<&'a Lease> {
        let leases: Vec<&Lease> = leases.iter().filter(|l| !l.is_complete()).collect();
        let (mut available, held): (Vec<&Lease>, Vec<&Lease>) =
            leases.iter().partition(|l| self.is_available(l, now, policy.failover));
        random.shuffle(&mut available);

        let mut load: BTreeMap<&str, usize> = BTreeMap::from([(me, 0)]);
        for lease in &held {
            *load.entry(lease.owner.as_deref().unwrap_or_default()).or_default() += 1;
        }
        let mine = load[me];
        let room = policy.leases_max.saturating_sub(mine);
        let target = leases.len().div_ceil(load.len()).max(1).min(policy.leases_max);
        let need = target.saturating_sub(mine);

        let very_old = |l: &&Lease| l.owner.is_some() && self.still_for(l, now) > policy.failover * 3;
        available.sort_by_key(|l| !very_old(l));
        let abandoned = available.iter().filter(|l| very_old(l)).count();
        if !available.is_empty() {
            available.truncate(need.max(abandoned).min(room));
            return available;
        }
        if need == 0 {
            return Vec::new();
        }
        let Some((&richest, &has)) = load.iter().max_by_key(|(_, count)| **count) else { return Vec::new() };
        if richest == me || has < target {
            return Vec::new();
        }
        // A worker with exactly its share gives nothing up, unless others lack more than one.
        let count = need.min(has - target).max(usize::from(need > 1)).min(policy.steal_max);
        let mut theirs: Vec<&Lease> = held.into_iter().filter(|l| l.owner.as_deref() == Some(richest)).collect();
        random.shuffle(&mut theirs);
        theirs.truncate(count);
        theirs
    }
}

/// Leases that the stream's shards call for and the table lacks, in the order in which they are to be made.
///
/// A shard whose lease is missing although one of its descendants has one was read to its end and cleaned up: it is not
/// made again. The child of a known shard starts at the beginning, never at `LATEST`, or what came between would be lost.
pub fn missing(shards: &[ShardInfo], leases: &[Lease], start: Start) -> Vec<Lease> {
    let leased: BTreeSet<&str> = leases.iter().map(|l| l.key.as_str()).collect();
    let by_id: BTreeMap<&str, &ShardInfo> = shards.iter().map(|s| (s.id.as_str(), s)).collect();
    let mut behind: BTreeSet<&str> = BTreeSet::new();
    let mut walk: Vec<&str> = leased.iter().copied().collect();
    while let Some(id) = walk.pop() {
        for parent in by_id.get(id).into_iter().flat_map(|s| &s.parents) {
            if behind.insert(parent) {
                walk.push(parent);
            }
        }
    }
    let mut lacking: Vec<Lease> = Vec::new();
    for shard in shards.iter().filter(|s| !leased.contains(s.id.as_str()) && !behind.contains(s.id.as_str())) {
        let continues = has_leased_ancestor(shard, &by_id, &leased);
        let checkpoint = match start {
            Start::AtTimestamp => Checkpoint::AtTimestamp,
            Start::TrimHorizon => Checkpoint::TrimHorizon,
            Start::Latest if continues => Checkpoint::TrimHorizon,
            Start::Latest if shard.open => Checkpoint::Latest,
            Start::Latest => continue,
        };
        lacking.push(Lease::new(shard, checkpoint));
    }
    // Ids ascend with creation. Parents are made first: a child with a lease says that its parent was cleaned up.
    lacking.sort_by(|a, b| a.key.cmp(&b.key));
    lacking
}

fn has_leased_ancestor(shard: &ShardInfo, by_id: &BTreeMap<&str, &ShardInfo>, leased: &BTreeSet<&str>) -> bool {
    let mut walk: Vec<&str> = shard.parents.iter().map(String::as_str).collect();
    let mut visited = BTreeSet::new();
    while let Some(id) = walk.pop() {
        if leased.contains(id) {
            return true;
        }
        if visited.insert(id) {
            walk.extend(by_id.get(id).into_iter().flat_map(|s| s.parents.iter().map(String::as_str)));
        }
    }
    false
}

/// Whether a shard may be read: every parent has been read to its end, or its lease is gone.
pub fn may_start(lease: &Lease, leases: &[Lease]) -> bool {
    leases.iter().filter(|l| lease.parents.contains(&l.key)).all(Lease::is_complete)
}

/// Whether the lease of a shard's child may be made when that shard has been read to its end.
///
/// Not while another parent, which the stream still has, is without a lease: nobody has begun to read it (what was read to
/// its end has made its children's leases first, and is cleaned up only after they were begun), and with the child's lease
/// there it would pass for cleaned up. Whoever ends that parent makes the child's lease.
pub fn may_be_made(child: &ShardInfo, leases: &[Lease], shards: &[ShardInfo]) -> bool {
    let leased = |id: &String| leases.iter().any(|lease| lease.key == *id);
    let known = |id: &String| shards.iter().any(|shard| shard.id == *id);
    child.parents.iter().all(|parent| leased(parent) || !known(parent))
}

/// Completed leases that nobody needs any more: all children are being read past their beginning, and the parents'
/// leases are gone, so that a shard never comes back as its own ancestor.
pub fn removable<'a>(leases: &'a [Lease], shards: &[ShardInfo]) -> Vec<&'a Lease> {
    let by_key: BTreeMap<&str, &Lease> = leases.iter().map(|l| (l.key.as_str(), l)).collect();
    let children_of = |key: &str| -> BTreeSet<String> {
        let mut all: BTreeSet<String> = by_key.get(key).map(|l| l.children.clone()).unwrap_or_default();
        all.extend(shards.iter().filter(|s| s.parents.contains(key)).map(|s| s.id.clone()));
        all
    };
    let done = |lease: &&Lease| {
        let children = children_of(&lease.key);
        lease.is_complete()
            && !children.is_empty()
            && children.iter().all(|c| by_key.get(c.as_str()).is_some_and(|l| l.checkpoint.has_begun()))
            && lease.parents.iter().all(|p| !by_key.contains_key(p.as_str()))
    };
    leases.iter().filter(done).collect()
}

#[cfg(test)]
mod tests;
