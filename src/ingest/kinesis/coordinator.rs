//! Keeps the leases of one worker: renews, takes, steals, hands off, and makes and removes the rows.
//!
//! One thread renews and one task looks for more; shards hold a [`Held`] and ask it whether they may still speak. A lease that
//! was not renewed for the fail-over time is lost by this worker's own clock, whatever the table says, since another may
//! have taken it by then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use jiff::SignedDuration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::aws::{Fault, apart};
use crate::ingest::kinesis::table::{LeaseTable, Written};
use crate::ingest::kinesis::{Settings, client};
use crate::ingest::lease::{
    Checkpoint, Lease, Observer, Policy, ShardInfo, Start, may_be_made, may_start, missing, removable,
};
use crate::random::Random;
use crate::wait::positive;

/// A lease that this worker holds.
#[derive(Debug)]
pub struct Held {
    /// The row as we last wrote it. The lock makes renewals and checkpoints take turns, since both raise the counter.
    lease: tokio::sync::Mutex<Lease>,
    key: String,
    parents: BTreeSet<String>,
    from: Checkpoint,
    lost: AtomicBool,
    renewed: Mutex<Instant>,
    /// Whether a reader has it.
    handed_out: AtomicBool,
}

impl Held {
    fn new(lease: Lease, renewed: Instant) -> Held {
        Held {
            key: lease.key.clone(),
            parents: lease.parents.clone(),
            from: lease.checkpoint.clone(),
            lost: AtomicBool::new(false),
            renewed: Mutex::new(renewed),
            handed_out: AtomicBool::new(false),
            lease: tokio::sync::Mutex::new(lease),
        }
    }

    /// The shard.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The shards that this one continues.
    pub fn parents(&self) -> &BTreeSet<String> {
        &self.parents
    }

    /// Where reading starts.
    pub fn from(&self) -> &Checkpoint {
        &self.from
    }

    /// How far the shard was read, as the table says.
    pub async fn checkpoint(&self) -> Checkpoint {
        self.lease.lock().await.checkpoint.clone()
    }

    /// The shards that continue this one, once it was read to its end.
    pub async fn children(&self) -> BTreeSet<String> {
        self.lease.lock().await.children.clone()
    }

    fn note_renewed(&self, since: Instant) {
        *self.renewed.lock().expect("nothing panics while it is held") = since;
    }

    fn is_fresh(&self, now: Instant, failover: Duration) -> bool {
        let renewed = *self.renewed.lock().expect("nothing panics while it is held");
        now.saturating_duration_since(renewed) <= failover
    }

    /// Whether the lease is still ours, as far as this worker can know. Once it was not, it never is again, though a renewal
    /// that was under way may come through: what was read in between has not been told, and is found again only by whoever
    /// reads on from the checkpoint.
    fn may_speak(&self, now: Instant, failover: Duration) -> bool {
        if self.lost.load(Ordering::Acquire) {
            return false;
        }
        if self.is_fresh(now, failover) {
            return true;
        }
        if !self.lost.swap(true, Ordering::AcqRel) {
            warn!(shard = self.key, why = "not renewed in time", "lease lost");
        }
        false
    }
}

/// What the task and the readers of one worker share.
#[derive(Debug)]
pub struct Coordinator {
    /// Reads shards and lists them.
    pub kinesis: Client,
    /// The stream.
    pub stream: String,
    table: LeaseTable,
    me: String,
    policy: Policy,
    start: Start,
    sync_every: Duration,
    held: Mutex<BTreeMap<String, Arc<Held>>>,
    /// The table as it was last seen, with what this worker wrote since.
    known: Mutex<Vec<Lease>>,
    /// Something may have become readable.
    offered: Notify,
    /// Look at the table now instead of at the next turn.
    hurry: Notify,
    closing: AtomicBool,
}

impl Coordinator {
    /// Makes the lease table where there is none, and starts the task that keeps leases.
    pub async fn start(aws: &SdkConfig, settings: &Settings, me: String) -> Result<Arc<Coordinator>, Fault> {
        // A lease call that outlasts the fail-over time is of no use to anybody.
        let timeout = settings.timeout.min(settings.failover / 3).max(SignedDuration::from_millis(200));
        let coordinator = Arc::new(Coordinator {
            kinesis: client(aws, settings),
            stream: settings.stream.clone(),
            table: LeaseTable::new(aws, &settings.application, timeout),
            me,
            policy: Policy {
                failover: positive(settings.failover),
                leases_max: settings.leases_max,
                steal_max: settings.steal_max,
            },
            start: settings.start.kind(),
            sync_every: positive(settings.shard_sync),
            held: Mutex::default(),
            known: Mutex::default(),
            offered: Notify::new(),
            hurry: Notify::new(),
            closing: AtomicBool::new(false),
        });
        coordinator.table.ensure().await?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(thread_fault)?;
        let (keeper, keeper_table) =
            (coordinator.clone(), LeaseTable::new(&apart(aws), &settings.application, timeout));
        let body = move || runtime.block_on(keep(keeper, keeper_table));
        std::thread::Builder::new().name("flowvigil-leases".to_owned()).spawn(body).map_err(thread_fault)?;
        tokio::spawn(look(coordinator.clone()));
        Ok(coordinator)
    }

    /// Waits for a lease that is ours, that nobody reads yet, and whose parents have been read to their ends.
    pub async fn next(&self) -> Arc<Held> {
        loop {
            let offered = self.offered.notified();
            if let Some(held) = self.readable() {
                return held;
            }
            offered.await;
        }
    }

    fn readable(&self) -> Option<Arc<Held>> {
        let known = self.known.lock().expect("nothing panics while it is held");
        let held = self.held.lock().expect("nothing panics while it is held");
        let found = held.values().find(|h| {
            let lease = known.iter().find(|l| l.key == h.key);
            !h.handed_out.load(Ordering::Relaxed) && lease.is_some_and(|l| may_start(l, &known)) && self.may_speak(h)
        })?;
        found.handed_out.store(true, Ordering::Relaxed);
        Some(found.clone())
    }

    /// The shards that are not read to their ends, as the table was last seen.
    pub fn unfinished(&self) -> Vec<String> {
        let known = self.known.lock().expect("nothing panics while it is held");
        known.iter().filter(|lease| lease.checkpoint != Checkpoint::ShardEnd).map(|lease| lease.key.clone()).collect()
    }

    /// Whether the lease is still ours, as far as this worker can know; once it was not, it never is again.
    pub fn may_speak(&self, held: &Held) -> bool {
        held.may_speak(Instant::now(), self.policy.failover)
    }

    /// Writes how far a shard was read; `false` when the lease is lost.
    pub async fn checkpoint(&self, held: &Held, to: Checkpoint) -> Result<bool, Fault> {
        if !self.may_speak(held) {
            return Ok(false);
        }
        let mut lease = held.lease.lock().await;
        if lease.checkpoint == to {
            return Ok(true);
        }
        let asked = Instant::now();
        match self.table.checkpoint(&lease, &to).await? {
            Written::Done => {
                lease.counter += 1;
                lease.checkpoint = to;
                held.note_renewed(asked);
                self.note(&lease);
                Ok(true)
            }
            Written::Lost | Written::AskedFor => {
                self.lose(held, "somebody else wrote the lease");
                Ok(false)
            }
        }
    }

    /// Marks a shard as read to its end, after its children have leases; they may be read from now on. A child of a merge
    /// whose other parent waits for parents of its own gets its lease when that one ends ([`may_be_made`]).
    pub async fn finish(&self, held: &Held, children: Option<Vec<ShardInfo>>) -> Result<bool, Fault> {
        let children = match children {
            Some(told) if !told.is_empty() => told,
            // Not every server tells the children at the end of a shard.
            _ => self.shards().await?.into_iter().filter(|s| s.parents.contains(&held.key)).collect(),
        };
        let around = match children.iter().any(|child| child.parents.len() > 1) {
            true => (self.table.scan().await?, self.shards().await?),
            false => (Vec::new(), Vec::new()),
        };
        for child in children.iter().filter(|child| may_be_made(child, &around.0, &around.1)) {
            let checkpoint = match self.start {
                Start::AtTimestamp => Checkpoint::AtTimestamp,
                Start::TrimHorizon | Start::Latest => Checkpoint::TrimHorizon,
            };
            self.table.create(&Lease::new(child, checkpoint)).await?;
        }
        held.lease.lock().await.children = children.into_iter().map(|c| c.id).collect();
        let done = self.checkpoint(held, Checkpoint::ShardEnd).await?;
        self.drop_lease(held);
        self.hurry.notify_one();
        Ok(done)
    }

    /// Lets a lease go, so that another worker need not wait for it to expire.
    pub async fn evict(&self, held: &Held) -> Result<(), Fault> {
        self.drop_lease(held);
        if held.lost.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let lease = held.lease.lock().await;
        self.table.evict(&lease).await?;
        info!(shard = held.key, "lease released");
        Ok(())
    }

    /// Forgets a lease without telling the table; it expires.
    pub fn drop_lease(&self, held: &Held) {
        let mut all = self.held.lock().expect("nothing panics while it is held");
        if all.get(&held.key).is_some_and(|h| std::ptr::eq(Arc::as_ptr(h), held)) {
            all.remove(&held.key);
        }
    }

    /// Takes no more leases, and lets go of those that nobody reads.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.hurry.notify_one();
    }

    fn lose(&self, held: &Held, why: &str) {
        if !held.lost.swap(true, Ordering::AcqRel) {
            warn!(shard = held.key, why, "lease lost");
        }
        self.drop_lease(held);
    }

    fn note(&self, lease: &Lease) {
        let mut known = self.known.lock().expect("nothing panics while it is held");
        match known.iter_mut().find(|l| l.key == lease.key) {
            Some(row) => *row = lease.clone(),
            None => known.push(lease.clone()),
        }
    }

    fn all_held(&self) -> Vec<Arc<Held>> {
        self.held.lock().expect("nothing panics while it is held").values().cloned().collect()
    }

    async fn renew_all(self: &Arc<Self>, table: &LeaseTable) {
        let mut tasks = tokio::task::JoinSet::new();
        for held in self.all_held() {
            let (this, table) = (self.clone(), table.clone());
            tasks.spawn(async move { this.renew(&held, &table).await });
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn renew(&self, held: &Held, table: &LeaseTable) {
        if !self.may_speak(held) {
            return self.drop_lease(held);
        }
        let mut lease = held.lease.lock().await;
        let asked = Instant::now();
        match table.renew(&lease, lease.hands_off.is_some()).await {
            Ok(Written::Done) => {
                lease.counter += 1;
                held.note_renewed(asked);
            }
            Ok(Written::Lost) => self.lose(held, "somebody else took it"),
            Ok(Written::AskedFor) => {
                // What is under way is read again by the next owner; waiting for it to drain would only delay that.
                lease.hands_off = lease.owner.clone();
                self.lose(held, "handed to another worker on request");
                if let Err(fault) = table.evict(&lease).await {
                    warn!(shard = held.key, error = fault.cause, "hand off a lease");
                }
            }
            Err(fault) => warn!(shard = held.key, error = fault.cause, "renew a lease"),
        }
    }

    /// One look at the table: what is missing is made, what is done with is removed, what is free is taken.
    async fn round(&self, eyes: &mut Eyes) -> Result<(), Fault> {
        let mut leases = self.table.scan().await?;
        let now = eyes.born.elapsed();
        if leases.is_empty() || eyes.synced.is_none_or(|at| now.saturating_sub(at) >= self.sync_every) {
            let shards = self.shards().await?;
            eyes.synced = Some(now);
            let made = missing(&shards, &leases, self.start);
            for lease in &made {
                self.table.create(lease).await?;
            }
            for lease in removable(&leases, &shards) {
                info!(shard = lease.key, "completed lease removed");
                self.table.delete(lease).await?;
            }
            if !made.is_empty() {
                leases = self.table.scan().await?;
            }
        }
        eyes.observer.observe(&leases, now);
        let mine = self.held.lock().expect("nothing panics while it is held").keys().cloned().collect::<BTreeSet<_>>();
        let chosen = eyes.observer.choose(&leases, &self.me, now, &self.policy, &mut eyes.random);
        // A lease that says us, but that we do not hold, was lost or dropped: it has to expire first, like any other.
        let chosen: Vec<Lease> = chosen.into_iter().filter(|l| !mine.contains(&l.key)).cloned().collect();
        *self.known.lock().expect("nothing panics while it is held") = leases;
        for lease in chosen {
            self.take(lease).await?;
        }
        self.offered.notify_waiters();
        Ok(())
    }

    async fn take(&self, lease: Lease) -> Result<(), Fault> {
        let asked = Instant::now();
        if self.table.take(&lease, &self.me).await? != Written::Done {
            return Ok(());
        }
        let from = lease.owner.clone();
        let lease = Lease { owner: Some(self.me.clone()), counter: lease.counter + 1, hands_off: None, ..lease };
        info!(shard = lease.key, checkpoint = %lease.checkpoint, from, "lease taken");
        self.note(&lease);
        let held = Held::new(lease, asked);
        self.held.lock().expect("nothing panics while it is held").insert(held.key.clone(), Arc::new(held));
        Ok(())
    }

    async fn shards(&self) -> Result<Vec<ShardInfo>, Fault> {
        let mut shards = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let request = match token.take() {
                Some(token) => self.kinesis.list_shards().next_token(token),
                None => self.kinesis.list_shards().stream_name(&self.stream),
            };
            let page = request.send().await.map_err(|e| Fault::of(&e))?;
            shards.extend(page.shards().iter().map(shard_info));
            token = page.next_token;
            if token.is_none() {
                return Ok(shards);
            }
        }
    }

    /// Whether something is held that waits for its parents, so that it pays to look more often.
    fn somebody_waits(&self) -> bool {
        self.all_held().iter().any(|h| !h.handed_out.load(Ordering::Relaxed))
    }
}

/// What only the task knows.
struct Eyes {
    observer: Observer,
    born: Instant,
    synced: Option<Duration>,
    random: Random,
}

/// Renews, whatever else the worker waits for, until there is nothing left to renew.
///
/// It runs in a thread of its own: restoring a snapshot or a burst of findings may hold the runtime of the pipeline for
/// seconds, and a lease that is not renewed meanwhile is lost for no reason.
async fn keep(this: Arc<Coordinator>, table: LeaseTable) {
    let mut renew = tokio::time::interval(this.policy.renew_every());
    renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        renew.tick().await;
        this.renew_all(&table).await;
        if this.closing.load(Ordering::Acquire) && this.all_held().is_empty() {
            return;
        }
    }
}

/// Looks for leases until the source is closed, then lets go of those that nobody reads.
async fn look(this: Arc<Coordinator>) {
    let seed =
        this.me.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut eyes =
        Eyes { observer: Observer::default(), born: Instant::now(), synced: None, random: Random::seeded(seed) };
    while !this.closing.load(Ordering::Acquire) {
        if let Err(fault) = this.round(&mut eyes).await {
            warn!(error = fault.cause, "look at the lease table");
        }
        let pause = if this.somebody_waits() { this.policy.renew_every() } else { this.policy.take_every() };
        let _ = tokio::time::timeout(pause, this.hurry.notified()).await;
    }
    for held in this.all_held().iter().filter(|h| !h.handed_out.swap(true, Ordering::Relaxed)) {
        if let Err(fault) = this.evict(held).await {
            warn!(shard = held.key, error = fault.cause, "release a lease");
        }
    }
}

fn thread_fault(error: std::io::Error) -> Fault {
    Fault { code: String::new(), cause: format!("start the thread that keeps leases: {error}"), retry: true }
}

fn shard_info(shard: &aws_sdk_kinesis::types::Shard) -> ShardInfo {
    let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
    ShardInfo {
        id: shard.shard_id().to_owned(),
        parents: parents.into_iter().flatten().map(str::to_owned).collect(),
        hashes: hashes(shard.hash_key_range()),
        open: shard.sequence_number_range().is_none_or(|r| r.ending_sequence_number().is_none()),
    }
}

/// The hash range of a shard as numbers; the whole circle where it is not told.
pub fn hashes(range: Option<&aws_sdk_kinesis::types::HashKeyRange>) -> (u128, u128) {
    let parsed = range.and_then(|r| r.starting_hash_key().parse().ok().zip(r.ending_hash_key().parse().ok()));
    parsed.unwrap_or((0, u128::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_was_late_once_stays_lost_though_its_renewal_comes_through() {
        let shard = ShardInfo { id: "s".to_owned(), parents: BTreeSet::new(), hashes: (0, u128::MAX), open: true };
        let (taken, failover) = (Instant::now(), Duration::from_secs(10));
        let after = |seconds| taken + Duration::from_secs(seconds);
        let held = Held::new(Lease::new(&shard, Checkpoint::TrimHorizon), taken);
        assert!(held.may_speak(after(10), failover));
        held.note_renewed(after(20));
        assert!(held.may_speak(after(30), failover), "nobody asked while it was late");
        assert!(!held.may_speak(after(31), failover));
        held.note_renewed(after(31));
        assert!(!held.may_speak(after(31), failover));
    }
}
