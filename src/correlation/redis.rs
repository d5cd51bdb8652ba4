//! Incidents in Redis, where the findings of all tasks meet.
//!
//! What an incident is and how a finding folds into it is told once, in [`super::incident`]; Redis only keeps the result.
//! A fold reads the incidents that its findings may touch, with the version of each, folds them here with the same code
//! as [`super::local`], and commits with one script ([`redis.lua`](https://redis.io/docs/latest/develop/programmability/))
//! that writes everything or, where another task was faster, nothing; then it is made again from what that task wrote.
//!
//! | key | holds |
//! | --- | --- |
//! | `{application}:e:<threat and subject>` | hash: version, the episodes of that key |
//! | `{application}:a:<address>` | set: keys by who acts |
//! | `{application}:o:<address>` | set: keys by who is acted upon |
//! | `{application}:i:<id>` | the key of an incident |
//! | `{application}:over`, `:rank` | sorted sets: when each key is over, and how much it matters |
//! | `{application}:shards` | hash: how far each shard is, and when that was noted |
//! | `{application}:closing` | sorted set: keys with incidents that are closed and not forgotten, by when they were handed out |
//! | `{application}:versions` | counter |
//!
//! The braces put all keys of an application into one slot, since one story may join any two of them: a cluster gives it
//! availability, not more room. An episode is about 1 KB and never more than about 32 KB, a key has rarely more than one,
//! and [`super::Settings::incidents_max`] bounds the keys. Every key has a time to live, so that nothing outlasts an
//! application that is gone.
//!
//! A Redis that loses what it was given (a fail-over to an empty node, an eviction) loses incidents. What goes on begins anew as
//! another incident, and is told under the id that was told before ([`crate::publish::episodes`]); what does not is closed
//! when its time is over, for nobody is found who knows it ([`IncidentStore::abandoned`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use jiff::SignedDuration;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::{Client, Cmd, Pipeline, RedisError, RedisFuture, Script, TlsCertificates, Value};
use serde::Deserialize;
use uuid::Uuid;

use super::progress::Stand;
use super::{
    CorrelationError, Incident, IncidentStore, Incidents, Progress, Progresses, Settings as Tier, Told, Watermarks,
};
use crate::blame::{Backend, Blame, blame};
use crate::finding::{Finding, IncidentKey, Subject};
use crate::flow::{Address, EventTime};
use crate::ingest::ShardId;

/// Settings of the backend, `[correlation.redis]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where it is: `redis://`, or `rediss://` for TLS; one node, or any node of a cluster.
    pub url: String,
    /// Whether it is a cluster.
    pub cluster: bool,
    /// File with the certificates (PEM) of the authority that signed the server's; empty for the public ones.
    pub authority: PathBuf,
    /// What this application's keys begin with.
    pub application: String,
    /// How long a key outlasts its last change; longer than the longest episode gap.
    pub ttl: SignedDuration,
    /// Deadline of one answer.
    pub timeout: SignedDuration,
}

/// Incidents shared by all tasks of an application.
pub struct RedisIncidents {
    connection: Connection,
    commit: Script,
    prefix: String,
    ttl: i64,
    tier: Tier,
}

/// A fold is made again this often before it gives up; each try means that another task got something done.
const ATTEMPTS: u32 = 50;

/// Incidents closed by one commit.
const EXPIRE_BATCH: isize = 64;

/// Keys of neighbours read for one fold. A flood touches far more; the first are enough to tell the story.
const NEIGHBOURS_MAX: usize = 256;

/// For how long whoever was handed a closed incident may take to tell it, s, before it is handed out again.
const CLOSING_PATIENCE: i64 = 20;

impl RedisIncidents {
    /// Uses a server, or a cluster that can be reached.
    pub async fn open(settings: &Settings, tier: &Tier) -> Result<RedisIncidents, CorrelationError> {
        // Only the first call of a process has an effect; the provider is the same for all.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connection = Connection::open(settings).await.map_err(|e| unopened(&e))?;
        Ok(RedisIncidents {
            connection,
            commit: Script::new(include_str!("redis.lua")),
            prefix: format!("{{{}}}", settings.application),
            ttl: settings.ttl.as_secs().max(1),
            tier: tier.clone(),
        })
    }

    fn key(&self, kind: &str, name: &str) -> String {
        format!("{}:{kind}:{name}", self.prefix)
    }

    fn plain(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// Reads the incidents of keys that were not read before.
    async fn read(&self, part: &mut Part, keys: impl IntoIterator<Item = IncidentKey>) -> Result<(), RedisError> {
        let keys: Vec<IncidentKey> = keys.into_iter().filter(|k| !part.read.contains_key(k)).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let mut pipe = Pipeline::with_capacity(keys.len());
        for key in &keys {
            pipe.hmget(self.key("e", &name(key)), &["v", "d"]);
        }
        let rows: Vec<(Option<String>, Option<Vec<u8>>)> = pipe.query_async(&mut self.connection.clone()).await?;
        for (key, (version, data)) in keys.into_iter().zip(rows) {
            // What an older version of this program wrote cannot be read; it is replaced.
            let incidents: Vec<Incident> = data.and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default();
            part.read.insert(key, (version.unwrap_or_else(|| "0".to_owned()), incidents));
        }
        Ok(())
    }

    /// Reads which keys are about addresses.
    async fn read_indexes(&self, part: &mut Part, wanted: &BTreeSet<Index>) -> Result<(), RedisError> {
        let wanted: Vec<&Index> = wanted.iter().filter(|i| !part.indexes.contains_key(i)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut pipe = Pipeline::with_capacity(wanted.len());
        for index in &wanted {
            pipe.smembers(self.key(index.kind, &index.address.to_string()));
        }
        let rows: Vec<Vec<String>> = pipe.query_async(&mut self.connection.clone()).await?;
        for (index, names) in wanted.into_iter().zip(rows) {
            part.indexes.insert(*index, names);
        }
        Ok(())
    }

    /// Everything that folding these findings may look at.
    async fn gather(&self, findings: &[Finding]) -> Result<Part, RedisError> {
        let mut part = Part::default();
        self.read(&mut part, findings.iter().map(Finding::key)).await?;
        let mut wanted = BTreeSet::new();
        for finding in findings {
            wanted.extend(finding.targets.iter().take(Finding::TARGETS_MAX).flat_map(|t| both(t.address)));
            wanted.extend(subject_addresses(finding.key().subject).into_iter().flat_map(both));
        }
        for incident in part.read.values().flat_map(|(_, incidents)| incidents) {
            wanted.extend(incident.account().targets().iter().flat_map(|t| both(t.address)));
        }
        self.read_indexes(&mut part, &wanted).await?;
        let neighbours: BTreeSet<IncidentKey> = part.indexes.values().flatten().filter_map(|n| parse(n)).collect();
        self.read(&mut part, neighbours.into_iter().take(NEIGHBOURS_MAX)).await?;
        Ok(part)
    }

    fn incidents_of(&self, part: &Part) -> Incidents {
        // The bound is held over all tasks, when incidents expire, not over the few that one fold looks at.
        let mut incidents = Incidents::new(&Tier { incidents_max: usize::MAX, ..self.tier.clone() });
        for incident in part.read.values().flat_map(|(_, incidents)| incidents) {
            incidents.adopt(incident.clone());
        }
        incidents
    }

    /// Writes what changed between what was read and what is now; false where somebody else was faster.
    async fn commit(&self, part: &Part, now: &BTreeMap<IncidentKey, Vec<Incident>>) -> Result<bool, RedisError> {
        let mut changes: BTreeMap<Index, BTreeSet<String>> = BTreeMap::new();
        let mut ids = Vec::new();
        let mut call = self.commit.prepare_invoke();
        call.key(self.plain("versions")).key(self.plain("over")).key(self.plain("rank"));
        call.arg(self.ttl).arg(part.read.len());
        let mut rows = Vec::new();
        for (key, (version, before)) in &part.read {
            call.key(self.key("e", &name(key)));
            let after = now.get(key).map_or(&[][..], Vec::as_slice);
            let op = match (after == before.as_slice(), after.is_empty()) {
                (true, _) => "check",
                (false, true) => "delete",
                (false, false) => "write",
            };
            if op != "check" {
                let sign = if op == "write" { '+' } else { '-' };
                for index in before.iter().chain(after).flat_map(indexes) {
                    changes.entry(index).or_default().insert(format!("{sign}{}", name(key)));
                }
                ids.extend(after.iter().map(|incident| (incident.id, name(key))));
            }
            rows.push((version, op, key, after));
        }
        let all: BTreeSet<Index> = part.indexes.keys().chain(changes.keys()).copied().collect();
        call.arg(all.len());
        for (version, op, key, after) in rows {
            let data = if op == "write" { postcard::to_stdvec(after).unwrap_or_default() } else { Vec::new() };
            call.arg(version).arg(op).arg(name(key)).arg(data).arg(self.over(key, after)).arg(rank(after));
        }
        for index in &all {
            call.key(self.key(index.kind, &index.address.to_string()));
            let size = part.indexes.get(index).map_or(-1, |names| i64::try_from(names.len()).unwrap_or(-1));
            let names = changes.get(index);
            call.arg(size).arg(names.map_or(0, BTreeSet::len));
            for name in names.into_iter().flatten() {
                call.arg(name);
            }
        }
        let done: i64 = call.invoke_async(&mut self.connection.clone()).await?;
        if done == 1 && !ids.is_empty() {
            let mut pipe = Pipeline::with_capacity(ids.len());
            for (id, key) in ids {
                pipe.set_ex(self.key("i", &id.to_string()), key, self.ttl.unsigned_abs()).ignore();
            }
            pipe.query_async::<()>(&mut self.connection.clone()).await?;
        }
        Ok(done == 1)
    }

    /// The moment after which the first of a key's open episodes is over, as the script wants it.
    fn over(&self, key: &IncidentKey, incidents: &[Incident]) -> String {
        let gap = self.tier.episode_gap.seconds(key.threat);
        let open = incidents.iter().filter(|incident| !incident.closed);
        open.map(|incident| incident.span().1.plus(gap).0).min().map_or("closed".to_owned(), |over| over.to_string())
    }

    async fn try_fold(&self, shard: &ShardId, findings: &[Finding]) -> Result<Option<Vec<Incident>>, RedisError> {
        let part = self.gather(findings).await?;
        let mut incidents = self.incidents_of(&part);
        let touched = incidents.fold(&shard.0, findings);
        Ok(self.commit(&part, incidents.episodes()).await?.then_some(touched))
    }

    /// Notes how far shards are; answers how far all of them are, those that other tasks read included. What was noted of a
    /// shard stands when somebody else begins it again further back: everything up to there has been folded.
    async fn note(&self, progresses: &Progresses) -> Result<Progress, RedisError> {
        let mut connection = self.connection.clone();
        let shards = self.plain("shards");
        let (now, _): (i64, i64) = redis::cmd("TIME").query_async(&mut connection).await?;
        let noted: BTreeMap<String, String> = redis::cmd("HGETALL").arg(&shards).query_async(&mut connection).await?;
        let mut known: BTreeMap<&str, Stand> =
            noted.iter().filter_map(|(shard, text)| Some((shard.as_str(), Stand::parse(text)?))).collect();
        let mut update = Pipeline::new();
        for (shard, progress) in progresses {
            let stand = known.entry(&shard.0).or_default();
            stand.move_to(*progress, now);
            update.hset(&shards, &*shard.0, stand.to_string()).ignore();
        }
        let silent: Vec<&str> = known.iter().filter(|(_, stand)| stand.is_gone(now)).map(|(&shard, _)| shard).collect();
        if !silent.is_empty() {
            update.hdel(&shards, &silent).ignore();
        }
        update.expire(&shards, self.ttl).ignore().query_async::<()>(&mut connection).await?;
        let alive = known.values().filter(|stand| stand.is_alive(now)).map(|stand| stand.progress);
        Ok(Progress::least(alive).unwrap_or_default())
    }

    /// The watermark up to which everything is folded.
    async fn least_watermark(&self, watermarks: &Watermarks) -> Result<EventTime, RedisError> {
        let folded = |watermark| Progress { received: watermark, folded: watermark };
        let progresses = watermarks.iter().map(|(shard, &watermark)| (shard.clone(), folded(watermark))).collect();
        Ok(self.note(&progresses).await?.folded)
    }

    /// Gives what is known of a shard to those that continue it. One that continues several begins where the least of them
    /// ended: its first windows are of them all.
    async fn hand_on(&self, shard: &ShardId, by: &[ShardId]) -> Result<(), RedisError> {
        let mut connection = self.connection.clone();
        let shards = self.plain("shards");
        let (now, _): (i64, i64) = redis::cmd("TIME").query_async(&mut connection).await?;
        let noted: BTreeMap<String, String> = redis::cmd("HGETALL").arg(&shards).query_async(&mut connection).await?;
        let stand = |shard: &ShardId| noted.get(&*shard.0).and_then(|text| Stand::parse(text));
        let ended = stand(shard).unwrap_or_default();
        let mut update = Pipeline::new();
        for child in by {
            let child_stand = stand(child).unwrap_or_default().continues(ended, now);
            update.hset(&shards, &*child.0, child_stand.to_string()).ignore();
        }
        update.hset(&shards, &*shard.0, ended.end(now).to_string()).ignore();
        update.expire(&shards, self.ttl).ignore().query_async::<()>(&mut connection).await
    }

    /// Closed incidents that somebody was handed and has not told in time.
    async fn left_closing(&self) -> Result<Vec<Incident>, RedisError> {
        let mut connection = self.connection.clone();
        let closing = self.plain("closing");
        let (now, _): (i64, i64) = redis::cmd("TIME").query_async(&mut connection).await?;
        let mut find = redis::cmd("ZRANGE");
        find.arg(&closing).arg("-inf").arg(now - CLOSING_PATIENCE).arg("BYSCORE").arg("LIMIT").arg(0).arg(EXPIRE_BATCH);
        let names: Vec<String> = find.query_async(&mut connection).await?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut part = Part::default();
        self.read(&mut part, names.iter().filter_map(|n| parse(n))).await?;
        let closed: Vec<Incident> =
            part.read.into_values().flat_map(|(_, incidents)| incidents).filter(|i| i.closed).collect();
        let still: BTreeSet<String> = closed.iter().map(|incident| name(&incident.key)).collect();
        let mut update = Pipeline::new();
        for key in &names {
            match still.contains(key) {
                true => update.zadd(&closing, key, now).ignore(),
                false => update.zrem(&closing, key).ignore(),
            };
        }
        update.query_async::<()>(&mut connection).await?;
        Ok(closed)
    }

    async fn close(
        &self,
        names: Vec<String>,
        close: impl Fn(&mut Incidents) -> Vec<Incident>,
    ) -> Result<Vec<Incident>, RedisError> {
        for _ in 0..ATTEMPTS {
            let mut part = Part::default();
            self.read(&mut part, names.iter().filter_map(|n| parse(n))).await?;
            let mut incidents = self.incidents_of(&part);
            let closed = close(&mut incidents);
            incidents.keep_closed(&closed);
            if !closed.is_empty() {
                // Noted before they are closed, so that a crash between the two leaves none closed and unknown.
                let (now, _): (i64, i64) = redis::cmd("TIME").query_async(&mut self.connection.clone()).await?;
                let mut pipe = Pipeline::new();
                for incident in &closed {
                    pipe.zadd(self.plain("closing"), name(&incident.key), now).ignore();
                }
                pipe.expire(self.plain("closing"), self.ttl).ignore();
                pipe.query_async::<()>(&mut self.connection.clone()).await?;
            }
            // A name without incidents is what is left of a key that outlived its time.
            let gone: Vec<&String> = names.iter().filter(|n| parse(n).is_none_or(|k| part.is_empty(&k))).collect();
            if !gone.is_empty() {
                let mut pipe = Pipeline::new();
                pipe.zrem(self.plain("over"), &gone).ignore().zrem(self.plain("rank"), &gone).ignore();
                pipe.query_async::<()>(&mut self.connection.clone()).await?;
            }
            if closed.is_empty() || self.commit(&part, incidents.episodes()).await? {
                return Ok(closed);
            }
        }
        Ok(Vec::new())
    }
}

#[async_trait]
impl IncidentStore for RedisIncidents {
    async fn fold(&self, shard: &ShardId, findings: &[Finding]) -> Result<Vec<Incident>, CorrelationError> {
        if findings.is_empty() {
            return Ok(Vec::new());
        }
        for attempt in 0..ATTEMPTS {
            if let Some(touched) = self.try_fold(shard, findings).await.map_err(|e| failed("fold in Redis", &e))? {
                return Ok(touched);
            }
            // Whoever lost the race steps back a little; shards differ, so they do not step back alike.
            let step = shard.0.bytes().fold(u64::from(attempt), |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
            tokio::time::sleep(Duration::from_millis(step % (2 + 2 * u64::from(attempt)))).await;
        }
        let cause = format!("other tasks were faster {ATTEMPTS} times");
        Err(CorrelationError::Retry { context: "fold in Redis".to_owned(), cause })
    }

    async fn progress(
        &self,
        own: &Progresses,
        _expected: &BTreeSet<ShardId>,
    ) -> Result<Option<Progress>, CorrelationError> {
        self.note(own).await.map(Some).map_err(|e| failed("note in Redis how far shards are", &e))
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn continued(&self, shard: &ShardId, by: &[ShardId]) -> Result<(), CorrelationError> {
        self.hand_on(shard, by).await.map_err(|e| failed("hand on a watermark", &e))
    }

    async fn expire(&self, watermarks: &Watermarks) -> Result<Vec<Incident>, CorrelationError> {
        let expire = async {
            let least = self.least_watermark(watermarks).await?;
            let mut closed = self.left_closing().await?;
            loop {
                let mut find = redis::cmd("ZRANGE");
                find.arg(self.plain("over")).arg("-inf").arg(format!("({}", least.0)).arg("BYSCORE");
                find.arg("LIMIT").arg(0).arg(EXPIRE_BATCH);
                let names: Vec<String> = find.query_async(&mut self.connection.clone()).await?;
                if names.is_empty() {
                    break;
                }
                let some = self.close(names, |incidents| incidents.expire(least)).await?;
                let done = some.is_empty();
                closed.extend(some);
                if done {
                    break;
                }
            }
            let open: usize =
                redis::cmd("ZCARD").arg(self.plain("rank")).query_async(&mut self.connection.clone()).await?;
            if open > self.tier.incidents_max {
                let mut find = redis::cmd("ZRANGE");
                find.arg(self.plain("rank")).arg(0).arg(open - self.tier.incidents_max - 1);
                let names: Vec<String> = find.query_async(&mut self.connection.clone()).await?;
                closed.extend(self.close(names, Incidents::finish_open).await?);
            }
            Ok::<_, RedisError>(closed)
        };
        expire.await.map_err(|e| failed("close incidents in Redis", &e))
    }

    async fn abandoned(&self, watermarks: &Watermarks, told: &[Told]) -> Result<Vec<bool>, CorrelationError> {
        let ask = async {
            let least = self.least_watermark(watermarks).await?;
            let mut part = Part::default();
            self.read(&mut part, told.iter().map(|told| told.key).collect::<BTreeSet<_>>()).await?;
            let incidents = self.incidents_of(&part);
            // Somebody goes on with what is there, whether we can read it or not.
            let unreadable =
                |key: &IncidentKey| part.is_empty(key) && part.read.get(key).is_some_and(|(v, _)| v != "0");
            let abandoned = |told: &Told| incidents.abandoned(least, told) && !unreadable(&told.key);
            Ok::<_, RedisError>(told.iter().map(abandoned).collect())
        };
        ask.await.map_err(|e| failed("ask Redis who goes on with an episode", &e))
    }

    async fn forget(&self, ids: &[Uuid]) -> Result<(), CorrelationError> {
        if ids.is_empty() {
            return Ok(());
        }
        let forget = async {
            let mut pipe = Pipeline::with_capacity(ids.len());
            for id in ids {
                pipe.get(self.key("i", &id.to_string()));
            }
            let names: Vec<Option<String>> = pipe.query_async(&mut self.connection.clone()).await?;
            let keys: BTreeSet<IncidentKey> = names.iter().flatten().filter_map(|name| parse(name)).collect();
            for _ in 0..ATTEMPTS {
                let mut part = Part::default();
                self.read(&mut part, keys.iter().copied()).await?;
                let mut incidents = self.incidents_of(&part);
                if incidents.forget_closed(ids).is_empty() {
                    break;
                }
                if self.commit(&part, incidents.episodes()).await? {
                    let after = incidents.episodes();
                    let done = |key: &&IncidentKey| after.get(key).is_none_or(|all| all.iter().all(|i| !i.closed));
                    let done: Vec<String> = keys.iter().filter(done).map(name).collect();
                    if !done.is_empty() {
                        let closing = self.plain("closing");
                        redis::cmd("ZREM").arg(closing).arg(done).exec_async(&mut self.connection.clone()).await?;
                    }
                    break;
                }
            }
            Ok::<_, RedisError>(())
        };
        forget.await.map_err(|e| failed("forget closed incidents in Redis", &e))
    }

    async fn get(&self, id: Uuid) -> Result<Option<Incident>, CorrelationError> {
        let get = async {
            let key: Option<String> =
                redis::cmd("GET").arg(self.key("i", &id.to_string())).query_async(&mut self.connection.clone()).await?;
            let Some(key) = key.as_deref().and_then(parse) else { return Ok(None) };
            let mut part = Part::default();
            self.read(&mut part, [key]).await?;
            let found = part.read.into_values().flat_map(|(_, all)| all).find(|i| i.id == id && !i.closed);
            Ok::<_, RedisError>(found)
        };
        get.await.map_err(|e| failed("look up an incident in Redis", &e))
    }
}

/// What one fold has read.
#[derive(Default)]
struct Part {
    /// Version and incidents of each key.
    read: BTreeMap<IncidentKey, (String, Vec<Incident>)>,
    /// Names in each index.
    indexes: BTreeMap<Index, Vec<String>>,
}

impl Part {
    fn is_empty(&self, key: &IncidentKey) -> bool {
        self.read.get(key).is_none_or(|(_, incidents)| incidents.is_empty())
    }
}

/// The keys about one address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Index {
    /// `a` where it acts, `o` where it is acted upon.
    kind: &'static str,
    address: Address,
}

fn both(address: Address) -> [Index; 2] {
    [Index { kind: "a", address }, Index { kind: "o", address }]
}

fn subject_addresses(subject: Subject) -> Vec<Address> {
    match subject {
        Subject::Actor(a) | Subject::Victim(a) => vec![a],
        Subject::Pair(a, b) => vec![a, b],
    }
}

/// The indexes that an incident stands in.
fn indexes(incident: &Incident) -> BTreeSet<Index> {
    let mut all: BTreeSet<Index> =
        incident.account().targets().iter().map(|t| Index { kind: "o", address: t.address }).collect();
    all.extend(incident.actor().map(|address| Index { kind: "a", address }));
    if let Subject::Victim(address) = incident.key.subject {
        all.insert(Index { kind: "o", address });
    }
    all
}

/// Orders keys by how much they matter: worst severity, then best score.
fn rank(incidents: &[Incident]) -> f64 {
    let rank = |incident: &Incident| {
        let account = incident.account();
        account.severity.map_or(0.0, |s| s as u8 as f64 + 1.0) + account.score().min(0.999)
    };
    incidents.iter().map(rank).fold(0.0, f64::max)
}

fn name(key: &IncidentKey) -> String {
    serde_json::to_string(key).expect("a key is words and addresses")
}

fn parse(name: &str) -> Option<IncidentKey> {
    serde_json::from_str(name).ok()
}

fn failed(context: &str, error: &RedisError) -> CorrelationError {
    let (context, cause) = (context.to_owned(), error.to_string());
    let code = match error.kind() {
        redis::ErrorKind::AuthenticationFailed => "authentication",
        redis::ErrorKind::InvalidClientConfig => "configuration",
        _ => error.code().unwrap_or_default(),
    };
    match blame(Backend::Redis, code, &cause) {
        Blame::Backend => CorrelationError::Retry { context, cause },
        Blame::Item => CorrelationError::Fatal { context, cause },
    }
}

/// Before anything is read, a wrong setting is said and not waited for.
fn unopened(error: &RedisError) -> CorrelationError {
    let context = "connect to Redis".to_owned();
    match error.kind() {
        redis::ErrorKind::AuthenticationFailed | redis::ErrorKind::InvalidClientConfig => {
            CorrelationError::Fatal { context, cause: error.to_string() }
        }
        _ => failed(&context, error),
    }
}

/// One node or a cluster; both find their way back by themselves after the connection was lost.
#[derive(Clone)]
enum Connection {
    Node(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Connection {
    async fn open(settings: &Settings) -> Result<Connection, RedisError> {
        let timeout = crate::wait::positive(settings.timeout);
        let authority = match settings.authority.as_os_str().is_empty() {
            true => None,
            false => Some(std::fs::read(&settings.authority)?),
        };
        if settings.cluster {
            let mut builder = ClusterClientBuilder::new([settings.url.as_str()])
                .connection_timeout(timeout)
                .response_timeout(timeout);
            if let Some(root_cert) = authority {
                builder = builder.certs(TlsCertificates { client_tls: None, root_cert: Some(root_cert) });
            }
            return Ok(Connection::Cluster(builder.build()?.get_async_connection().await?));
        }
        let client = match authority {
            Some(root_cert) => Client::build_with_tls(
                settings.url.as_str(),
                TlsCertificates { client_tls: None, root_cert: Some(root_cert) },
            )?,
            None => Client::open(settings.url.as_str())?,
        };
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_number_of_retries(1);
        // Connects with the first command: a task may start while Redis is away.
        Ok(Connection::Node(ConnectionManager::new_lazy_with_config(client, config)?))
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Connection::Node(node) => node.req_packed_command(cmd),
            Connection::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Connection::Node(node) => node.req_packed_commands(pipeline, offset, count),
            Connection::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        0
    }
}
