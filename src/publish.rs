//! Telling: an anomaly is recorded first and announced second.
//!
//! Recording is a conditional put by id and revision, announcing carries the id: doing either twice is harmless.

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::anomaly::{Anomaly, Status};
use crate::blame::{Backend, Blame, blame};
use crate::finding::{Actor, Severity, Threat};
use crate::flow::{Address, EventTime};
use episodes::{Claim, Claimed};

pub mod audit;
pub mod dead_letter;
pub mod dynamodb;
pub mod episodes;
pub mod eventbridge;
pub mod local;
pub mod rules;

/// Settings `[publish]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// DynamoDB tables; what is used when they are configured.
    pub dynamodb: Option<dynamodb::Settings>,
    /// A SQLite file; what is used when nothing else is configured.
    pub sqlite: local::Settings,
    /// The bus on which anomalies are announced; lines on standard output when none is configured.
    pub eventbridge: Option<eventbridge::Settings>,
    /// The queue for what cannot be announced; without one, the pipeline holds until it can.
    pub dead_letter: Option<dead_letter::Settings>,
}

/// The context of the error with which a store refuses a cursor that it has not given.
pub const BAD_CURSOR: &str = "read the cursor";

/// The context of the error with which a store refuses a `changed_since` that it has not given.
pub const BAD_CHANGED_SINCE: &str = "read changed_since";

/// The context of the error of a question that needs an index which the table lacks, or is still being filled.
pub const MISSING_INDEX: &str = "read an index that the table lacks";

/// The `changed_since` that stands before every change that a store knows.
pub const FIRST_CHANGE: &str = "0";

/// Why a backend did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The backend is away, or refuses everybody: it may go better later, and until then the pipeline holds. See [`blame`].
    #[error("{context}: {cause}")]
    Retry {
        /// What was being done, as a verb phrase.
        context: String,
        /// What came back.
        cause: String,
    },
    /// Nobody is left to be told, now or later, in this process.
    #[error("{context}: {cause}")]
    Gone {
        /// What was being done, as a verb phrase.
        context: String,
        /// What came back.
        cause: String,
    },
    /// What was asked is to blame: it will not be done, however often. An item goes to the dead letters.
    #[error("{context}: {cause}")]
    Fatal {
        /// What was being done, as a verb phrase.
        context: String,
        /// What came back.
        cause: String,
    },
}

impl PublishError {
    /// What a call to AWS came to.
    pub(crate) fn of(backend: Backend, context: impl Into<String>, fault: crate::aws::Fault) -> PublishError {
        PublishError::blamed(backend, context, &fault.code, fault.cause)
    }

    /// An error with this code, by the table of all backends.
    pub(crate) fn blamed(
        backend: Backend,
        context: impl Into<String>,
        code: &str,
        cause: impl ToString,
    ) -> PublishError {
        let (context, cause) = (context.into(), cause.to_string());
        match blame(backend, code, &cause) {
            Blame::Backend => PublishError::Retry { context, cause },
            Blame::Item => PublishError::Fatal { context, cause },
        }
    }
}

/// Rows that were named as unreadable; the log says so once.
static NAMED: LazyLock<Mutex<BTreeSet<String>>> = LazyLock::new(Mutex::default);

/// How many of these are remembered.
const NAMED_MAX: usize = 1_000;

/// What is wrong with a row that was read, without its content. The row is named in the log, once.
pub(crate) fn unreadable(id: &str, error: &serde_json::Error) -> String {
    let wrong = match error.classify() {
        serde_json::error::Category::Data => "it is JSON of another shape",
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Io | serde_json::error::Category::Syntax => "it is no JSON",
    };
    let cause = format!("row {id}: {wrong}, as column {} shows", error.column());
    name_unreadable(id, &cause);
    cause
}

/// Names a row that cannot be read in the log, once.
pub(crate) fn name_unreadable(id: &str, cause: &str) {
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    if named.len() >= NAMED_MAX {
        named.clear();
    }
    if named.insert(id.to_owned()) {
        tracing::warn!(row = id, cause, "a stored row cannot be read, and is stepped over");
    }
}

/// What recording an anomaly changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recorded {
    /// The id was new.
    New,
    /// The id was known, and this says more than what was stored.
    Updated,
    /// The store already knew this, or more: nothing to announce.
    Unchanged,
}

/// What orders the revisions of one anomaly: a store keeps the greatest.
pub fn revision(anomaly: &Anomaly) -> (u32, EventTime, Status) {
    (anomaly.updates, anomaly.last_seen, anomaly.status)
}

/// Which anomalies are wanted. Empty means all, newest first; with `changed_since` the oldest change comes first.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Query {
    /// Only of this threat.
    pub threat: Option<Threat>,
    /// Only at least this bad.
    pub min_severity: Option<Severity>,
    /// Only of this status.
    pub status: Option<Status>,
    /// Only by or on this address.
    pub address: Option<Address>,
    /// Only by or on an address of this block; it has one of the lengths in [`block_lengths`].
    pub block: Option<IpNet>,
    /// Only with this actor.
    pub actor: Option<Address>,
    /// Only on this address, and not by it.
    pub target: Option<Address>,
    /// Only of this AWS account.
    pub account: Option<String>,
    /// Only where this interface saw it.
    pub interface: Option<String>,
    /// Only last seen at or after.
    pub since: Option<EventTime>,
    /// Only first seen before.
    pub until: Option<EventTime>,
    /// At most so many.
    pub limit: usize,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Only those that have changed since, as in the `changed_until` of an earlier page. It takes the place of a cursor.
    pub changed_since: Option<String>,
}

impl Query {
    /// The labels that an anomaly must have, the one that few have first. See [`labels`].
    fn labels(&self) -> Vec<String> {
        let address = self.address.into_iter().chain(self.target).map(|address| address.to_string());
        let interface = self.interface.iter().map(|name| interface_label(name));
        let block = self.block.iter().map(|block| block_label(*block));
        let account = self.account.iter().map(|account| account_label(account));
        address.chain(interface).chain(block).chain(account).collect()
    }
}

/// What an anomaly can be found by, besides what it is: the addresses of actor and targets, the blocks that these lie in, its
/// interfaces and its account. Stores keep an index of them.
fn labels(anomaly: &Anomaly) -> BTreeSet<String> {
    let actor = match anomaly.actor {
        Actor::One(address) => Some(address),
        Actor::Many => None,
    };
    let mut labels = BTreeSet::new();
    for address in actor.into_iter().chain(anomaly.targets.iter().map(|target| target.address)) {
        labels.insert(address.to_string());
        let ip = address.to_ip();
        let blocks = block_lengths(ip.is_ipv4()).iter().filter_map(|length| IpNet::new(ip, *length).ok());
        labels.extend(blocks.map(block_label));
    }
    labels.extend(anomaly.interface_ids.iter().map(|name| interface_label(name)));
    if !anomaly.account_id.is_empty() {
        labels.insert(account_label(&anomaly.account_id));
    }
    labels
}

/// The lengths of blocks that anomalies can be found by.
pub const fn block_lengths(is_v4: bool) -> &'static [u8] {
    if is_v4 { &[8, 16, 24] } else { &[32, 48, 64] }
}

fn block_label(block: IpNet) -> String {
    format!("block {}", block.trunc())
}

fn interface_label(name: &str) -> String {
    format!("interface {name}")
}

fn account_label(account: &str) -> String {
    format!("account {account}")
}

/// A page of anomalies.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Page {
    /// Newest detection first, ties by id. With `changed_since`: the oldest change first.
    pub anomalies: Vec<Anomaly>,
    /// The revision of each of them, in the same order; see [`AnomalyStore::revised`]. With `changed_since` each is a place among the
    /// changes as well: asked for as `changed_since` it gives what changed after it.
    pub revisions: Vec<String>,
    /// Where the next page starts, if there is one. With `changed_since` it equals `changed_until`.
    pub next: Option<String>,
    /// What to ask for next as `changed_since`, so that no change is missed: all changes up to here are in what was asked for,
    /// or, with `changed_since`, on this page and those before it.
    pub changed_until: String,
}

/// Why something was not told, kept so that it can be asked for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Silence {
    /// The id that the anomaly would have had.
    pub anomaly_id: Uuid,
    /// What kind.
    pub threat: Threat,
    /// About whom.
    pub actor: crate::finding::Actor,
    /// First moment.
    pub first_seen: EventTime,
    /// Last moment.
    pub last_seen: EventTime,
    /// The stage that refused.
    pub stage: String,
    /// Its reason, with the numbers.
    pub reason: String,
    /// The sentence that was not told.
    pub summary: String,
    /// How likely it is true, 0 to 1, as far as could be told.
    #[serde(default)]
    pub confidence: f64,
}

impl Silence {
    /// Whether it was kept back for want of evidence alone, so that it is worth a look beside something else of the same host.
    pub fn is_signal(&self) -> bool {
        matches!(self.stage.as_str(), "corroboration" | "confidence")
    }

    /// The order in which signals are listed: the likeliest first, then the latest.
    pub fn by_likelihood(&self, other: &Silence) -> std::cmp::Ordering {
        let rank = |silence: &Silence| (silence.last_seen, silence.anomaly_id);
        other.confidence.total_cmp(&self.confidence).then_with(|| rank(other).cmp(&rank(self)))
    }
}

/// What an analyst said of an anomaly.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Feedback {
    /// Which anomaly.
    pub anomaly_id: Uuid,
    /// Whether it was true.
    pub verdict: Verdict,
    /// Who says so: who was authenticated, else from where. One verdict of each on an anomaly counts.
    pub by: String,
    /// What they call themselves, which nothing proves.
    #[serde(default)]
    pub name: String,
    /// In their words.
    pub note: String,
    /// When (wall clock, s).
    pub at: EventTime,
}

/// An analyst's verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was what it said.
    TruePositive,
    /// It was not.
    FalsePositive,
}

/// Where anomalies are kept.
#[async_trait]
pub trait AnomalyStore: rules::Rules + audit::Audit + Send + Sync {
    /// Under which id an episode is told, and which that were told are part of it; see [`episodes`]. Atomic and
    /// idempotent; whoever tells an episode asks first.
    async fn claim(&self, claim: &Claim) -> Result<Claimed, PublishError>;

    /// Puts the anomaly unless the store already holds it at this or a later revision (`updates`, then `last_seen`,
    /// then `status`). Idempotent.
    async fn record(&self, anomaly: &Anomaly) -> Result<Recorded, PublishError>;

    /// Whether what was recorded is where the next life will look for it; asked before a checkpoint passes it.
    async fn stands(&self) -> Result<(), PublishError> {
        Ok(())
    }

    /// Marks this revision as announced.
    async fn announced(&self, anomaly: &Anomaly) -> Result<(), PublishError>;

    /// Recorded revisions that were not marked as announced, oldest first; asked after a restart.
    async fn unannounced(&self, limit: usize) -> Result<Vec<Anomaly>, PublishError>;

    /// One anomaly.
    async fn get(&self, id: Uuid) -> Result<Option<Anomaly>, PublishError> {
        Ok(self.revised(id).await?.map(|(anomaly, _)| anomaly))
    }

    /// One anomaly with its revision. The revision is an opaque text, and another after every recorded change: a new
    /// anomaly, an update, a closing, a merging, a verdict on it.
    async fn revised(&self, id: Uuid) -> Result<Option<(Anomaly, String)>, PublishError>;

    /// A page of them. Every recorded change gives an anomaly a later place among the changes. A program that asks with the
    /// `changed_until` of the page before misses no change, and its pages end. What retention removes is no change.
    async fn query(&self, query: &Query) -> Result<Page, PublishError>;

    /// Keeps why something was not told. Idempotent by id.
    async fn silence(&self, silence: &Silence) -> Result<(), PublishError>;

    /// What was not told about an address, newest first.
    async fn silences(&self, address: Option<Address>, limit: usize) -> Result<Vec<Silence>, PublishError>;

    /// Keeps an analyst's verdict; the latest of one analyst on one anomaly counts.
    async fn feedback(&self, feedback: &Feedback) -> Result<(), PublishError>;

    /// The verdict of one analyst on one anomaly, if there is one.
    async fn verdict(&self, id: Uuid, by: &str) -> Result<Option<Feedback>, PublishError>;

    /// All verdicts at or after a moment.
    async fn feedbacks(&self, since: EventTime) -> Result<Vec<Feedback>, PublishError>;
}

/// What is announced about an anomaly.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Announcement {
    /// Confirmed for the first time.
    #[serde(rename = "Anomaly Detected")]
    Detected,
    /// More is known.
    #[serde(rename = "Anomaly Updated")]
    Updated,
    /// The episode has ended.
    #[serde(rename = "Anomaly Closed")]
    Closed,
}

/// News of the service itself, which is no anomaly.
#[derive(Clone, PartialEq, Debug)]
pub struct Notice {
    /// What it is called on the bus: `Model Drift Detected`.
    pub detail_type: &'static str,
    /// What there is to say.
    pub detail: serde_json::Value,
}

/// Tells others.
#[async_trait]
pub trait Announcer: Send + Sync {
    /// Tells a notice. Whoever gives it tries again later if it fails; it is not kept.
    async fn notify(&self, notice: &Notice) -> Result<(), PublishError>;

    /// Announces a batch; the result has one entry per announcement, in order, so that only what failed is retried.
    async fn announce(&self, batch: &[(Announcement, Anomaly)]) -> Vec<Result<(), PublishError>>;
}
