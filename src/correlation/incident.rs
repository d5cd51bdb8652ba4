//! One story, and how a finding folds into it.
//!
//! An [`Account`] is what findings say together. It is a join semilattice: joining in any order and any number of times
//! gives the same account. Per part:
//!
//! | part | joins by |
//! | --- | --- |
//! | methods and scores, severity, span, counts | extreme |
//! | actor | itself; two different ones are `many` |
//! | targets, ports, interfaces, learned hosts | union, the smallest so many kept |
//! | sources | the largest so many of the larger amounts of each |
//! | why it is so severe | the reason of the most severe |
//! | what the models said | the louder |
//! | alternatives | those of the surest finding |
//! | evidence | its [`Merge`]; sums are kept per window, shard and method and overwritten |
//!
//! What closed windows said is joined for good; what was said of a window that is still open is kept apart, until its
//! shard speaks of that window or a later one as closed. When open windows are looked into depends on how records come in, so
//! looks serve the first report alone: as soon as one closed window has spoken, they count for nothing. What is told of an
//! incident from then on is a function of the records and of event time.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::pairs;
use crate::finding::{
    Actor, Alternative, Evidence, Finding, IncidentKey, Merge, MlContribution, Origin, Severity, Target, Threat, Tier,
};
use crate::flow::{Address, EventTime};

/// How many windows' own numbers are kept before the oldest are added up for good: two hours of one-minute windows of one
/// shard, far beyond any lateness, at about 100 bytes each.
const WINDOWS_MAX: usize = 128;

/// How many judgements of open windows are kept; there is one or two per shard and method.
const OPEN_MAX: usize = 64;

/// How many interfaces are named.
const INTERFACES_MAX: usize = 16;

/// How many related incidents are named.
pub(super) const RELATED_MAX: usize = 32;

/// Which judgement a number comes from. Later windows order later.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct Source {
    window: EventTime,
    shard: Arc<str>,
    method: String,
}

impl Source {
    pub(super) fn of(shard: &Arc<str>, finding: &Finding) -> Source {
        Source { window: finding.window, shard: shard.clone(), method: finding.method.clone() }
    }
}

/// How many others are known that do the same to its targets.
const BESIDE_MAX: usize = 63;

/// How two incidents belong together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// The same actor did both.
    SameActor,
    /// The other acted upon this one's actor before that one acted.
    Preceded,
    /// This one acted upon the other's actor before that one acted.
    Followed,
    /// Both act upon the same victim.
    SameTarget,
}

/// One story: findings of one key that overlap or follow each other closely.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Incident {
    /// One id for life.
    pub id: Uuid,
    /// Threat and subject.
    pub key: IncidentKey,
    /// Start of the window in which the episode was first seen; the id is made of it. Not the first moment itself: an early look
    /// may know that less well than its window does when it closes.
    pub known_from: EventTime,
    /// Nothing was seen of it for the threat's gap, or it was found to be part of another.
    pub closed: bool,
    /// The incident that this one turned out to be part of.
    pub absorbed_by: Option<Uuid>,
    /// Other incidents of the same story (bounded).
    #[serde(with = "pairs")]
    pub related: BTreeMap<Uuid, Relation>,
    /// Who else does the same to one of its targets, with the smallest target that both name (the smallest addresses, so that the
    /// order in which they come is nothing). Whoever is met on no named target any more is nobody's company.
    #[serde(default, with = "pairs")]
    pub beside: BTreeMap<Address, Address>,
    /// Those of its targets that have an incident of their own, as the victims of many, which counts this one's actor.
    #[serde(default)]
    pub(super) victims: BTreeSet<Address>,
    pub(super) settled: Account,
    #[serde(with = "pairs")]
    pub(super) open: BTreeMap<Source, Finding>,
}

impl Incident {
    pub(super) fn new(key: IncidentKey, known_from: EventTime) -> Incident {
        Incident {
            id: key.episode(known_from),
            key,
            known_from,
            closed: false,
            absorbed_by: None,
            related: BTreeMap::new(),
            beside: BTreeMap::new(),
            victims: BTreeSet::new(),
            settled: Account::default(),
            open: BTreeMap::new(),
        }
    }

    /// Folds one finding of the key's episode.
    pub(super) fn fold(&mut self, shard: &Arc<str>, finding: &Finding) {
        let source = Source::of(shard, finding);
        if !finding.provisional {
            self.open.retain(|look, _| look.shard != source.shard || look.window > source.window);
            self.settled.fold(source, finding);
        } else if !self.settled.outdates(&source) {
            match self.open.get_mut(&source) {
                Some(before) if later_look(before, finding) == Ordering::Less => *before = finding.clone(),
                Some(_) => {}
                None => {
                    self.open.insert(source, finding.clone());
                }
            }
            while self.open.len() > OPEN_MAX {
                self.open.pop_first();
            }
        }
    }

    /// Takes over everything that another episode of the same key knows; the two turned out to be one.
    pub(super) fn absorb(&mut self, other: &Incident) {
        self.join_settled(other);
        self.join_open(other);
    }

    /// Brings together two states of the same incident: the one that knows more stays, or both where each knows something of
    /// its own.
    pub(super) fn unite(&mut self, other: &Incident) {
        if other.settled.covers(&self.settled) {
            self.settled = other.settled.clone();
        } else if !self.settled.covers(&other.settled) {
            self.join_settled(other);
        }
        self.join_open(other);
    }

    fn join_settled(&mut self, other: &Incident) {
        let mut settled = other.settled.clone();
        if self.settled.added_through.is_some() || settled.added_through.is_some() {
            // Windows that one side has added up cannot be told apart any more, so all of them are added up.
            self.settled.add_up(0);
            settled.add_up(0);
        }
        self.settled.join(&settled);
    }

    fn join_open(&mut self, other: &Incident) {
        self.open.retain(|look, _| !self.settled.outdates(look));
        for (source, finding) in &other.open {
            self.fold(&source.shard, finding);
        }
        for (&id, &relation) in &other.related {
            self.relate(id, relation);
        }
        for (&actor, &target) in &other.beside {
            self.stand_beside(actor, target);
        }
        self.victims.extend(&other.victims);
    }

    /// Notes a related incident; true when that was news.
    pub(super) fn relate(&mut self, id: Uuid, relation: Relation) -> bool {
        if id == self.id || self.related.contains_key(&id) || self.related.len() >= RELATED_MAX {
            return false;
        }
        self.related.insert(id, relation);
        true
    }

    /// Notes an incident of the same threat that was met on a target, by its actor, `None` standing for the many of a victim; true when
    /// that was news.
    pub(super) fn meet(&mut self, actor: Option<Address>, target: Address) -> bool {
        let Some(actor) = actor else {
            self.victims.insert(target);
            return false;
        };
        self.stand_beside(actor, target)
    }

    /// Notes who else does the same to one of its targets, and on which; true when that was news.
    pub(super) fn stand_beside(&mut self, actor: Address, target: Address) -> bool {
        if self.actor() == Some(actor) {
            return false;
        }
        if let Some(met) = self.beside.get_mut(&actor) {
            *met = target.min(*met);
            return false;
        }
        self.beside.insert(actor, target);
        let left = if self.beside.len() > BESIDE_MAX { self.beside.pop_last() } else { None };
        left.is_none_or(|(last, _)| last != actor)
    }

    /// Forgets whoever was met on targets alone that it names no more, and says who was met where, `None` standing for the many of a
    /// victim: a scan names the smallest of its targets, and which these are changes while it goes on.
    pub(super) fn part_company(&mut self) -> Vec<(Option<Address>, Address)> {
        let mut parted = Vec::new();
        for (actor, target) in std::mem::take(&mut self.beside) {
            if self.acts_on(target) {
                self.beside.insert(actor, target);
            } else {
                parted.push((Some(actor), target));
            }
        }
        for victim in std::mem::take(&mut self.victims) {
            if self.acts_on(victim) {
                self.victims.insert(victim);
            } else {
                parted.push((None, victim));
            }
        }
        parted
    }

    /// How many actors do the same to one of its targets, itself counted; 64 also stands for more.
    pub fn actors_on_target(&self) -> u32 {
        self.beside.len() as u32 + 1
    }

    /// Everything that closed windows said; before the first of them, what looks at open ones said.
    pub fn account(&self) -> Account {
        let mut account = self.settled.clone();
        for (source, finding) in self.looks() {
            account.fold(source.clone(), finding);
        }
        account
    }

    /// The looks that count.
    fn looks(&self) -> impl Iterator<Item = (&Source, &Finding)> {
        let firm = self.is_firm();
        self.open.iter().filter(move |_| !firm)
    }

    /// Whether a closed window has spoken; else all that is known comes from looks at open ones.
    pub fn is_firm(&self) -> bool {
        self.settled.headline.is_some()
    }

    /// How many closed windows (of each shard and method) have contributed; 0 while only open ones were looked at.
    pub fn windows(&self) -> u32 {
        self.settled.window_count()
    }

    /// First and last moment.
    pub fn span(&self) -> (EventTime, EventTime) {
        let open = self.looks().map(|(_, f)| (f.first_seen, f.last_seen));
        let settled = self.settled.headline.is_some().then_some((self.settled.first_seen, self.settled.last_seen));
        open.chain(settled).reduce(|(a, b), (c, d)| (a.min(c), b.max(d))).unwrap_or((self.known_from, self.known_from))
    }

    /// Whether something of the same key, from a first to a last moment, is the same episode under a gap, s.
    pub(super) fn joins(&self, first_seen: EventTime, last_seen: EventTime, gap: u32) -> bool {
        let (first, last) = self.span();
        first_seen <= last.plus(gap) && first <= last_seen.plus(gap)
    }

    /// When it was known in event time, by closed windows: the end of the first. By the longest window where there are several
    /// lengths, and so rather later.
    pub(super) fn confirmed(&self) -> EventTime {
        self.settled.first_window.plus(self.settled.window_seconds)
    }

    /// Who acts, as far as it is one address.
    pub fn actor(&self) -> Option<Address> {
        use crate::finding::Subject;
        match self.key.subject {
            Subject::Actor(actor) | Subject::Pair(actor, _) => Some(actor),
            Subject::Victim(_) => None,
        }
    }

    /// Whether an address is its victim, or among the targets that it names by what closed windows said. That is what a snapshot
    /// holds, so that relations hang on nothing that a crash forgets.
    pub(super) fn acts_on(&self, address: Address) -> bool {
        use crate::finding::Subject;
        self.key.subject == Subject::Victim(address) || self.settled.targets.contains_key(&address)
    }

    /// What orders incidents of one moment.
    pub fn rank(&self) -> (EventTime, IncidentKey, Uuid) {
        (self.span().0, self.key, self.id)
    }
}

/// Of two looks at one open window, the one that saw more. A total order on content, so that the order of arrival does
/// not matter.
fn later_look(a: &Finding, b: &Finding) -> Ordering {
    let text = |f: &Finding| serde_json::to_string(f).unwrap_or_default();
    a.last_seen
        .cmp(&b.last_seen)
        .then(a.score.total_cmp(&b.score))
        .then(a.target_count.cmp(&b.target_count))
        .then_with(|| text(a).cmp(&text(b)))
}

/// One number over all windows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Number {
    evidence: Evidence,
    window: EventTime,
}

impl Number {
    /// Joins by the evidence's own rule; ties fall to the larger threshold, unit and window, so that order is nothing.
    fn join(&mut self, other: &Number) {
        let by_value = other
            .evidence
            .value
            .total_cmp(&self.evidence.value)
            .then(threshold_order(&other.evidence, &self.evidence))
            .then_with(|| other.evidence.unit.cmp(&self.evidence.unit))
            .then(other.window.cmp(&self.window));
        let better = match self.evidence.merge {
            Merge::Max | Merge::Sum => by_value,
            Merge::Min => by_value.reverse(),
            Merge::Latest => other.window.cmp(&self.window).then(by_value),
        };
        if better == Ordering::Greater {
            *self = other.clone();
        }
    }
}

fn threshold_order(a: &Evidence, b: &Evidence) -> Ordering {
    let of = |e: &Evidence| e.threshold.unwrap_or(f64::NEG_INFINITY);
    of(a).total_cmp(&of(b))
}

/// Identifies a number of an incident: two methods that measure the same thing under one name measure one thing.
type NumberName = (Tier, Cow<'static, str>, u8);

/// What findings say together.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Account {
    /// The methods that spoke, each with its highest score.
    pub methods: BTreeMap<String, f64>,
    /// Who did it; `None` before the first finding.
    pub actor: Option<Actor>,
    /// How bad the worst of the findings is.
    pub severity: Option<Severity>,
    /// First moment.
    pub first_seen: EventTime,
    /// Last moment.
    pub last_seen: EventTime,
    /// Start of the first window that spoke.
    pub first_window: EventTime,
    /// End of the last window that spoke.
    pub last_window_end: EventTime,
    /// The longest window, s.
    pub window_seconds: u32,
    /// Interfaces that saw it, the first few by name.
    pub interfaces: BTreeSet<String>,
    /// The account, or empty.
    pub account: String,
    /// What tier 2 said of the host, at its loudest.
    #[serde(default)]
    pub ml: Option<MlContribution>,
    target_count: u32,
    targets: BTreeMap<Address, Ports>,
    /// What the largest sources did.
    #[serde(default, with = "pairs")]
    sources: BTreeMap<Address, u64>,
    /// Why it is as bad as `severity`.
    #[serde(default)]
    pub severity_reason: String,
    /// Addresses that are ours beside those of the settings, the smallest of them.
    #[serde(default)]
    pub learned: BTreeSet<Address>,
    #[serde(with = "pairs")]
    numbers: BTreeMap<NumberName, Number>,
    /// Sums of the recent windows, by window.
    #[serde(with = "pairs")]
    windows: BTreeMap<Source, BTreeMap<Cow<'static, str>, f64>>,
    /// Sums of the windows up to `added_through`, added for good.
    added: BTreeMap<Cow<'static, str>, f64>,
    added_windows: u32,
    added_through: Option<EventTime>,
    headline: Option<Headline>,
}

/// Ports of one target.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Ports {
    listed: BTreeSet<u16>,
    count: u32,
}

/// The sentence of the finding that was surest, and of these the latest.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Headline {
    score: f64,
    window: EventTime,
    /// What that finding spans, s.
    seconds: u32,
    summary: String,
    /// What else its evidence allows.
    alternatives: Vec<Alternative>,
}

impl Headline {
    fn order(&self, other: &Headline) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(self.window.cmp(&other.window))
            .then(self.seconds.cmp(&other.seconds))
            .then_with(|| self.summary.cmp(&other.summary))
            .then_with(|| shares(&self.alternatives).cmp(&shares(&other.alternatives)))
    }
}

/// What orders alternatives, by the bits of their shares.
fn shares(alternatives: &[Alternative]) -> Vec<(Threat, u64)> {
    alternatives.iter().map(|alternative| (alternative.threat, alternative.share.to_bits())).collect()
}

impl Account {
    /// Whether this judgement of a closed window is part of the account already.
    fn knows(&self, source: &Source) -> bool {
        self.windows.contains_key(source) || self.added_through.is_some_and(|through| source.window <= through)
    }

    /// Whether the window of a look has closed since: its shard has spoken of that window or, since windows close in
    /// order, of a later one, by whichever method.
    fn outdates(&self, look: &Source) -> bool {
        let closed = |source: &Source| source.shard == look.shard && source.window >= look.window;
        self.windows.keys().any(closed) || self.added_through.is_some_and(|through| look.window <= through)
    }

    /// Whether every judgement that the other has taken in was taken in here.
    fn covers(&self, other: &Account) -> bool {
        self.added_windows >= other.added_windows
            && self.added_through >= other.added_through
            && other.windows.keys().all(|source| self.knows(source))
    }

    /// Joins what one finding says.
    fn fold(&mut self, source: Source, finding: &Finding) {
        self.join(&Account::of(source, finding));
    }

    /// What one finding says.
    fn of(source: Source, finding: &Finding) -> Account {
        let mut sums = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        for evidence in &finding.evidence {
            let name = (evidence.tier, evidence.name.clone(), evidence.merge as u8);
            if evidence.merge == Merge::Sum {
                sums.insert(evidence.name.clone(), evidence.value);
            }
            numbers.insert(name, Number { evidence: evidence.clone(), window: finding.window });
        }
        let ports = |t: &Target| Ports { listed: t.ports.iter().copied().collect(), count: t.port_count };
        Account {
            methods: BTreeMap::from([(finding.method.clone(), finding.score)]),
            actor: Some(finding.actor),
            severity: Some(finding.severity),
            first_seen: finding.first_seen,
            last_seen: finding.last_seen,
            first_window: finding.window,
            last_window_end: finding.window.plus(finding.window_seconds),
            window_seconds: finding.window_seconds,
            interfaces: finding.interfaces.iter().cloned().collect(),
            account: finding.account.clone(),
            ml: finding.ml.clone(),
            target_count: finding.target_count,
            targets: finding.targets.iter().map(|t| (t.address, ports(t))).collect(),
            sources: finding.sources.iter().map(|source| (source.address, source.amount)).collect(),
            severity_reason: finding.severity_reason.clone(),
            learned: finding.learned.iter().copied().collect(),
            numbers,
            windows: BTreeMap::from([(source, sums)]),
            headline: Some(Headline {
                score: finding.score,
                window: finding.window,
                seconds: finding.last_seen.since(finding.first_seen),
                summary: finding.summary.clone(),
                alternatives: finding.alternatives.clone(),
            }),
            ..Account::default()
        }
    }

    /// Joins another account. Commutative, associative and idempotent, as long as neither has added up the windows of
    /// the other (see [`WINDOWS_MAX`]).
    fn join(&mut self, other: &Account) {
        if self.headline.is_none() {
            *self = other.clone();
            self.bound();
            return;
        }
        if other.headline.is_none() {
            return;
        }
        self.join_numbers(other);
        self.join_targets(other);
        for (method, &score) in &other.methods {
            let best = self.methods.entry(method.clone()).or_insert(score);
            *best = best.max(score);
        }
        if self.actor != other.actor {
            self.actor = Some(Actor::Many);
        }
        let reason = |account: &Account| std::cmp::Reverse(account.severity_reason.clone());
        if (other.severity, reason(other)) > (self.severity, reason(self)) {
            self.severity_reason.clone_from(&other.severity_reason);
        }
        self.severity = self.severity.max(other.severity);
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
        self.first_window = self.first_window.min(other.first_window);
        self.last_window_end = self.last_window_end.max(other.last_window_end);
        self.window_seconds = self.window_seconds.max(other.window_seconds);
        self.interfaces.extend(other.interfaces.iter().cloned());
        self.learned.extend(&other.learned);
        if self.account.is_empty() || (!other.account.is_empty() && other.account < self.account) {
            self.account.clone_from(&other.account);
        }
        self.ml = match (self.ml.take(), other.ml.clone()) {
            (Some(mine), Some(theirs)) => Some(mine.louder(theirs)),
            (mine, theirs) => mine.or(theirs),
        };
        if let (Some(mine), Some(theirs)) = (&self.headline, &other.headline)
            && mine.order(theirs) == Ordering::Less
        {
            self.headline = Some(theirs.clone());
        }
        self.bound();
    }

    fn join_numbers(&mut self, other: &Account) {
        for (name, number) in &other.numbers {
            match self.numbers.get_mut(name) {
                Some(mine) => mine.join(number),
                None => {
                    self.numbers.insert(name.clone(), number.clone());
                }
            }
        }
        for (name, value) in &other.added {
            *self.added.entry(name.clone()).or_default() += value;
        }
        self.added_windows += other.added_windows;
        self.added_through = self.added_through.max(other.added_through);
        for (source, sums) in &other.windows {
            if self.added_through.is_some_and(|through| source.window <= through) && !self.windows.contains_key(source)
            {
                continue;
            }
            let mine = self.windows.entry(source.clone()).or_default();
            for (name, &value) in sums {
                let kept = mine.entry(name.clone()).or_insert(value);
                *kept = kept.max(value);
            }
        }
    }

    fn join_targets(&mut self, other: &Account) {
        for (&address, ports) in &other.targets {
            let mine = self.targets.entry(address).or_default();
            mine.listed.extend(&ports.listed);
            mine.count = mine.count.max(ports.count);
        }
        self.target_count = self.target_count.max(other.target_count);
        for (&address, &amount) in &other.sources {
            let mine = self.sources.entry(address).or_default();
            *mine = amount.max(*mine);
        }
    }

    /// Holds every part to its bound: the smallest addresses, ports and names stay, the oldest windows are added up.
    fn bound(&mut self) {
        while self.targets.len() > Finding::TARGETS_MAX {
            self.targets.pop_last();
        }
        for ports in self.targets.values_mut() {
            while ports.listed.len() > Target::PORTS_MAX {
                ports.listed.pop_last();
            }
            ports.count = ports.count.max(ports.listed.len() as u32);
        }
        if self.sources.len() > Finding::SOURCES_MAX {
            self.sources = self.sources().into_iter().map(|source| (source.address, source.amount)).collect();
        }
        while self.learned.len() > Finding::TARGETS_MAX + 1 {
            self.learned.pop_last();
        }
        while self.interfaces.len() > INTERFACES_MAX {
            self.interfaces.pop_last();
        }
        self.add_up(WINDOWS_MAX);
    }

    /// Adds up the oldest windows until at most `keep` judgements are kept apart.
    fn add_up(&mut self, keep: usize) {
        while self.windows.len() > keep {
            self.add_up_the_oldest();
        }
    }

    /// Adds the oldest window's sums for good. What is said of it later joins all the rest, but is not added again.
    fn add_up_the_oldest(&mut self) {
        let Some(oldest) = self.windows.keys().next().map(|source| source.window) else { return };
        let later =
            self.windows.split_off(&Source { window: oldest.plus(1), shard: Arc::from(""), method: String::new() });
        let window = std::mem::replace(&mut self.windows, later);
        for (name, value) in total(&window) {
            *self.added.entry(name).or_default() += value;
        }
        self.added_windows += window.len() as u32;
        self.added_through = self.added_through.max(Some(oldest));
    }

    fn window_count(&self) -> u32 {
        self.added_windows + self.windows.len() as u32
    }

    /// How many distinct windows of event time spoke, whatever the shard and method; a lower bound for long episodes.
    pub fn distinct_windows(&self) -> u32 {
        let recent: BTreeSet<EventTime> = self.windows.keys().map(|source| source.window).collect();
        recent.len() as u32 + u32::from(self.added_windows > 0)
    }

    /// The highest score of any method, 0 to 1.
    pub fn score(&self) -> f64 {
        self.methods.values().copied().fold(0.0, f64::max)
    }

    /// Every number, joined, in order of tier and name.
    pub fn evidence(&self) -> Vec<Evidence> {
        let mut sums = total(&self.windows);
        for (name, value) in &self.added {
            *sums.entry(name.clone()).or_default() += value;
        }
        let number = |number: &Number| {
            let mut evidence = number.evidence.clone();
            if evidence.merge == Merge::Sum {
                evidence.value = sums.get(&evidence.name).copied().unwrap_or(evidence.value);
            }
            evidence
        };
        self.numbers.values().map(number).collect()
    }

    /// One joined number by name.
    pub fn number(&self, name: &str) -> Option<Evidence> {
        self.evidence().into_iter().find(|e| e.name == name)
    }

    /// Targets, ordered by address, up to [`Finding::TARGETS_MAX`].
    pub fn targets(&self) -> Vec<Target> {
        let target = |(&address, ports): (&Address, &Ports)| Target {
            address,
            ports: ports.listed.iter().copied().collect(),
            port_count: ports.count,
        };
        self.targets.iter().map(target).collect()
    }

    /// The largest sources, the largest first; none where it comes from one.
    pub fn sources(&self) -> Vec<Origin> {
        Origin::largest(self.sources.iter().map(|(&address, &amount)| Origin { address, amount }).collect())
    }

    /// How many distinct targets: the most that any of the listed set and one finding's count say.
    pub fn target_count(&self) -> u32 {
        self.target_count.max(self.targets.len() as u32)
    }

    /// The sentence of the finding that was surest, and what that finding spans, s.
    pub fn headline(&self) -> (&str, u32) {
        self.headline.as_ref().map_or(("", 0), |h| (&h.summary, h.seconds))
    }

    /// Other threats that the evidence of the surest finding allows.
    pub fn alternatives(&self) -> &[Alternative] {
        self.headline.as_ref().map_or(&[], |h| &h.alternatives)
    }
}

/// Adds windows and shards. Two methods that counted the same thing in one window counted it once, so the larger stands.
fn total(windows: &BTreeMap<Source, BTreeMap<Cow<'static, str>, f64>>) -> BTreeMap<Cow<'static, str>, f64> {
    let mut per_window: BTreeMap<(&Cow<'static, str>, EventTime, &str), f64> = BTreeMap::new();
    for (source, sums) in windows {
        for (name, &value) in sums {
            let kept = per_window.entry((name, source.window, &source.shard)).or_insert(value);
            *kept = kept.max(value);
        }
    }
    let mut totals = BTreeMap::new();
    for ((name, _, _), value) in per_window {
        *totals.entry(name.clone()).or_insert(0.0) += value;
    }
    totals
}
