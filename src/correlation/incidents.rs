//! All open incidents: which episode a finding belongs to, which incidents belong together, and when one is over.
//!
//! Pure: a function of the findings and watermarks it is given. Bounded by [`Settings::incidents_max`]; beyond it the
//! least severe, then least sure, then longest silent are closed early and handed out by the next
//! [`Incidents::expire`]. A flood of scans from spoofed addresses therefore pushes out scans, never a host's beacon.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::incident::{Incident, Relation};
use super::{Settings, Told, whole_seconds};
use crate::finding::{Finding, IncidentKey, Severity, Subject, Threat};
use crate::flow::{Address, EventTime};

/// How many incidents about one address are considered when relations are sought.
const NEIGHBOURS_MAX: usize = 64;

/// All open incidents.
#[derive(Debug)]
pub struct Incidents {
    settings: Settings,
    /// Episodes of each key, by start.
    episodes: BTreeMap<IncidentKey, Vec<Incident>>,
    count: usize,
    keys: BTreeMap<Uuid, IncidentKey>,
    /// Keys by the address that acts.
    acting: BTreeMap<Address, BTreeSet<IncidentKey>>,
    /// Keys by the addresses that were acted upon, also by those that were forgotten since in favour of smaller ones, or that a look
    /// alone knows; [`Incident::acts_on`] decides.
    acted_on: BTreeMap<Address, BTreeSet<IncidentKey>>,
    evicted: Vec<Incident>,
    evictions: u64,
}

/// The part of the state that a snapshot holds; the rest is derived.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    version: u32,
    incidents: Vec<Incident>,
    evicted: Vec<Incident>,
    evictions: u64,
}

const SNAPSHOT_VERSION: u32 = 3;

/// Why a snapshot of incidents cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("restore incidents: {0}")]
pub struct RestoreError(String);

impl Incidents {
    /// No incidents yet.
    pub fn new(settings: &Settings) -> Incidents {
        Incidents {
            settings: settings.clone(),
            episodes: BTreeMap::new(),
            count: 0,
            keys: BTreeMap::new(),
            acting: BTreeMap::new(),
            acted_on: BTreeMap::new(),
            evicted: Vec::new(),
            evictions: 0,
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many were closed early because there were too many.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// An open incident.
    pub fn get(&self, id: Uuid) -> Option<&Incident> {
        let key = self.keys.get(&id)?;
        self.episodes.get(key)?.iter().find(|incident| incident.id == id)
    }

    /// Folds findings; see [`super::IncidentStore::fold`].
    pub fn fold(&mut self, shard: &Arc<str>, findings: &[Finding]) -> Vec<Incident> {
        let mut touched = BTreeSet::new();
        let mut absorbed = Vec::new();
        for finding in findings {
            touched.insert(self.fold_one(shard, &finite(finding), &mut absorbed));
        }
        for incident in &absorbed {
            touched.remove(&incident.id);
        }
        for id in touched.clone() {
            self.relate(id, &mut touched);
        }
        let mut changed: Vec<Incident> = touched.iter().filter_map(|&id| self.get(id).cloned()).collect();
        changed.extend(absorbed);
        changed.sort_by_key(Incident::rank);
        self.evict();
        changed
    }

    /// Puts one finding into its episode and returns the episode's id.
    fn fold_one(&mut self, shard: &Arc<str>, finding: &Finding, absorbed: &mut Vec<Incident>) -> Uuid {
        let key = finding.key();
        let gap = self.settings.episode_gap.seconds(key.threat);
        let episodes = self.episodes.entry(key).or_default();
        // One window has one episode of a key, however short the gap: the id is made of both.
        let joins = |incident: &Incident| {
            incident.joins(finding.first_seen, finding.last_seen, gap) || incident.known_from == finding.window
        };
        let mut parts: Vec<Incident> = episodes.extract_if(.., |incident| joins(incident)).collect();
        // Of several, the one that was known to start first keeps its id: a rule on content, not on arrival. What only looks at open
        // windows know comes last.
        parts.sort_by_key(|incident| (!incident.is_firm(), incident.known_from, incident.id));
        // A look brings nothing together.
        let apart = if finding.provisional { parts.split_off(parts.len().min(1)) } else { Vec::new() };
        episodes.extend(apart);
        episodes.sort_by_key(|incident| incident.span().0);
        // The first closed window of an episode gives it its id, whatever looks said before: where a look was into another window,
        // its early report becomes part of this.
        let whole = match parts.first() {
            Some(first) if first.is_firm() || finding.provisional => Some(0),
            _ => parts.iter().position(|part| part.known_from == finding.window),
        };
        let mut incident = match whole {
            Some(at) => parts.remove(at),
            None => {
                self.count += 1;
                Incident::new(key, finding.window)
            }
        };
        // A closed one is only met where a shared backend still keeps it: a repeat leaves it closed, news opens it again.
        let before = incident.closed.then(|| incident.clone());
        for mut part in parts {
            if part.is_firm() {
                incident.absorb(&part);
                incident.relate(part.id, Relation::SameActor);
                part.relate(incident.id, Relation::SameActor);
            }
            part.closed = true;
            part.absorbed_by = Some(incident.id);
            self.keys.remove(&part.id);
            self.count -= 1;
            absorbed.push(part);
        }
        incident.fold(shard, finding);
        incident.closed = before.is_some_and(|before| before == incident);
        let id = incident.id;
        let at = episodes.partition_point(|other| other.span().0 < incident.span().0);
        episodes.insert(at, incident);
        self.keys.insert(id, key);
        // Where a look saw it is no company of its own.
        if !finding.provisional {
            self.index(key, finding);
        }
        id
    }

    fn index(&mut self, key: IncidentKey, finding: &Finding) {
        if let Subject::Actor(actor) | Subject::Pair(actor, _) = key.subject {
            self.acting.entry(actor).or_default().insert(key);
        }
        if let Subject::Victim(victim) = key.subject {
            self.acted_on.entry(victim).or_default().insert(key);
        }
        for target in finding.targets.iter().take(Finding::TARGETS_MAX) {
            self.acted_on.entry(target.address).or_default().insert(key);
        }
    }

    /// Finds what belongs to the same story, and tells both sides.
    fn relate(&mut self, id: Uuid, touched: &mut BTreeSet<Uuid>) {
        // The company of what only looks know is looked for when a window has closed.
        let Some(incident) = self.get(id).filter(|incident| incident.is_firm()) else { return };
        let found = self.relations(incident);
        let (actor, beside) = (incident.actor(), self.beside(incident));
        for (other, relation) in found {
            if self.change(id, |incident| incident.relate(other, relation)) {
                touched.insert(id);
            }
            if self.change(other, |incident| incident.relate(id, reverse(relation))) {
                touched.insert(other);
            }
        }
        self.part_company(id, touched);
        for (other, (its_actor, target)) in beside {
            if self.change(id, |incident| incident.meet(its_actor, target)) {
                touched.insert(id);
            }
            if self.change(other, |incident| incident.meet(actor, target)) {
                touched.insert(other);
            }
        }
    }

    /// Whoever was met on targets alone that an incident names no more was not met, on both sides.
    fn part_company(&mut self, id: Uuid, touched: &mut BTreeSet<Uuid>) {
        let mut parted = Vec::new();
        self.change(id, |incident| {
            parted = incident.part_company();
            !parted.is_empty()
        });
        let Some(incident) = self.get(id).filter(|_| !parted.is_empty()) else { return };
        let (own, threat) = (incident.actor(), incident.key.threat);
        let mut others = BTreeSet::new();
        for (actor, target) in parted {
            self.each(&self.acted_on, target, |other| {
                if other.key.threat == threat && other.actor() == actor {
                    others.insert(other.id);
                }
            });
        }
        for other in others {
            if self.change(other, |other| own.is_some_and(|own| other.beside.remove(&own).is_some())) {
                touched.insert(other);
            }
        }
    }

    fn change(&mut self, id: Uuid, change: impl FnOnce(&mut Incident) -> bool) -> bool {
        let Some(key) = self.keys.get(&id) else { return false };
        let Some(episodes) = self.episodes.get_mut(key) else { return false };
        episodes.iter_mut().find(|incident| incident.id == id).is_some_and(change)
    }

    /// Incidents of the same story, each with how it relates to this one.
    fn relations(&self, incident: &Incident) -> Vec<(Uuid, Relation)> {
        let mut found = BTreeMap::new();
        let mut note = |other: &Incident, relation| {
            if other.id != incident.id && self.near(incident, other) {
                found.entry(other.id).or_insert(relation);
            }
        };
        if let Some(actor) = incident.actor() {
            self.each(&self.acting, actor, |other| note(other, Relation::SameActor));
            // Whoever acted upon this host before it began to act may have taken it over. A probe that every address of
            // the internet gets says nothing of the kind, so only what is at least of medium severity counts.
            self.each(&self.acted_on, actor, |other| {
                if other.acts_on(actor) && other.span().0 <= incident.span().0 && weighty(other) {
                    note(other, Relation::Preceded);
                }
            });
        }
        if weighty(incident) {
            for target in incident.account().targets() {
                self.each(&self.acting, target.address, |other| {
                    if incident.span().0 <= other.span().0 {
                        note(other, Relation::Followed);
                    }
                });
            }
        }
        if let Subject::Victim(victim) = incident.key.subject {
            self.each(&self.acted_on, victim, |other| {
                if matches!(other.key.subject, Subject::Victim(_)) {
                    note(other, Relation::SameTarget);
                }
            });
        }
        found.into_iter().collect()
    }

    fn each<'a>(
        &'a self,
        index: &'a BTreeMap<Address, BTreeSet<IncidentKey>>,
        address: Address,
        mut visit: impl FnMut(&'a Incident),
    ) {
        let keys = index.get(&address).into_iter().flatten().take(NEIGHBOURS_MAX);
        let episodes = keys.filter_map(|key| self.episodes.get(key)).flatten();
        episodes.filter(|incident| incident.is_firm()).for_each(&mut visit);
    }

    /// Whether two incidents lie close enough in time to be one story, and neither was over by event time before the other was known.
    /// Which of the two is heard of first, and whether one that is over is still kept here, must not matter.
    fn near(&self, a: &Incident, b: &Incident) -> bool {
        let story = whole_seconds(self.settings.story);
        let ((a_first, a_last), (b_first, b_last)) = (a.span(), b.span());
        a_first <= b_last.plus(story) && b_first <= a_last.plus(story) && self.meets(a, b) && self.meets(b, a)
    }

    /// Whether an incident was still going on when another was first known.
    fn meets(&self, incident: &Incident, other: &Incident) -> bool {
        let gap = self.settings.episode_gap.seconds(incident.key.threat);
        other.confirmed() <= incident.span().1.plus(gap)
    }

    /// Who else does the same to its targets, with their incidents, and on which target: many scanners of one host are one interest
    /// in it.
    fn beside(&self, incident: &Incident) -> BTreeMap<Uuid, (Option<Address>, Address)> {
        let mut found = BTreeMap::new();
        let (Threat::PortScan | Threat::Ddos) = incident.key.threat else { return found };
        for target in incident.account().targets() {
            self.each(&self.acted_on, target.address, |other| {
                let same = other.key.threat == incident.key.threat && other.id != incident.id;
                if same && other.acts_on(target.address) && self.near(incident, other) {
                    // Targets come in their order, so that the smallest stays.
                    found.entry(other.id).or_insert((other.actor(), target.address));
                }
            });
        }
        found
    }

    /// Closes and forgets what is over; see [`super::IncidentStore::expire`].
    pub fn expire(&mut self, watermark: EventTime) -> Vec<Incident> {
        let gaps = &self.settings.episode_gap;
        let mut closed = std::mem::take(&mut self.evicted);
        for (key, episodes) in &mut self.episodes {
            let gap = gaps.seconds(key.threat);
            closed.extend(
                episodes.extract_if(.., |incident| !incident.closed && incident.span().1.plus(gap) < watermark),
            );
        }
        self.forget(&mut closed);
        closed
    }

    /// Whether a told episode is over and not known here; see [`super::IncidentStore::abandoned`].
    pub fn abandoned(&self, watermark: EventTime, told: &Told) -> bool {
        let gap = self.settings.episode_gap.seconds(told.key.threat);
        let kept = self.episodes.get(&told.key).into_iter().flatten();
        let mut known = kept.chain(self.evicted.iter().filter(|incident| incident.key == told.key));
        told.last_seen.plus(gap) < watermark
            && !known.any(|incident| incident.joins(told.first_seen, told.last_seen, gap))
    }

    /// Closes everything: the input has ended.
    pub fn finish(&mut self) -> Vec<Incident> {
        let mut closed = std::mem::take(&mut self.evicted);
        closed.extend(std::mem::take(&mut self.episodes).into_values().flatten());
        self.forget(&mut closed);
        closed
    }

    /// Closes everything that is open.
    pub(super) fn finish_open(&mut self) -> Vec<Incident> {
        let mut closed = std::mem::take(&mut self.evicted);
        for episodes in self.episodes.values_mut() {
            closed.extend(episodes.extract_if(.., |incident| !incident.closed));
        }
        self.forget(&mut closed);
        closed
    }

    /// Marks incidents that have left the table as closed, orders them, and drops what pointed to them.
    fn forget(&mut self, closed: &mut [Incident]) {
        if closed.is_empty() {
            return;
        }
        for incident in closed.iter_mut() {
            incident.closed = true;
            if self.keys.remove(&incident.id).is_some() {
                self.count -= 1;
            }
        }
        closed.sort_by_key(Incident::rank);
        self.episodes.retain(|_, episodes| !episodes.is_empty());
        for index in [&mut self.acting, &mut self.acted_on] {
            index.retain(|_, keys| {
                keys.retain(|key| self.episodes.contains_key(key));
                !keys.is_empty()
            });
        }
    }

    /// Keeps the table within its bound, a sixteenth at a time so that the sort is rare.
    fn evict(&mut self) {
        let max = self.settings.incidents_max;
        if self.count <= max {
            return;
        }
        let mut ranked: Vec<(Option<Severity>, u64, EventTime, Uuid)> = Vec::with_capacity(self.count);
        for incident in self.episodes.values().flatten() {
            let account = incident.account();
            ranked.push((account.severity, (account.score() * 1e6) as u64, account.last_seen, incident.id));
        }
        ranked.sort_unstable();
        let excess = self.count - max + max / 16;
        let leaving: BTreeSet<Uuid> = ranked.into_iter().take(excess).map(|(.., id)| id).collect();
        let mut closed = Vec::new();
        for episodes in self.episodes.values_mut() {
            closed.extend(episodes.extract_if(.., |incident| leaving.contains(&incident.id)));
        }
        self.evictions += closed.len() as u64;
        self.forget(&mut closed);
        self.evicted.extend(closed);
    }

    /// The whole state, to be restored by the same version.
    pub fn snapshot(&self) -> Vec<u8> {
        self.snapshot_of(|_| true)
    }

    /// What is known of some incidents, to be taken in by [`Incidents::take_in`].
    pub fn snapshot_of(&self, wanted: impl Fn(&Incident) -> bool) -> Vec<u8> {
        let snapshot = Snapshot {
            version: SNAPSHOT_VERSION,
            incidents: self.episodes.values().flatten().filter(|incident| wanted(incident)).cloned().collect(),
            evicted: self.evicted.iter().filter(|incident| wanted(incident)).cloned().collect(),
            evictions: self.evictions,
        };
        serde_json::to_vec(&snapshot).expect("an incident holds nothing that JSON cannot write")
    }

    /// Incidents that go on where [`Incidents::snapshot`] was taken.
    pub fn restore(bytes: &[u8], settings: &Settings) -> Result<Incidents, RestoreError> {
        let mut incidents = Incidents::new(settings);
        incidents.take_in(bytes)?;
        Ok(incidents)
    }

    /// Takes in what a snapshot knows. Of an incident that is known here as well, the one that knows more stays, or both
    /// together where each knows something of its own.
    pub fn take_in(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let snapshot: Snapshot = serde_json::from_slice(bytes).map_err(|e| RestoreError(e.to_string()))?;
        if snapshot.version != SNAPSHOT_VERSION {
            return Err(RestoreError(format!("version {} is not {SNAPSHOT_VERSION}", snapshot.version)));
        }
        self.evictions = self.evictions.max(snapshot.evictions);
        for incident in snapshot.evicted {
            if self.evicted.iter().all(|known| known.id != incident.id) {
                self.evicted.push(incident);
            }
        }
        for incident in snapshot.incidents {
            let known = self.change(incident.id, |known| {
                known.unite(&incident);
                true
            });
            if !known {
                self.adopt(incident);
            }
        }
        self.evict();
        Ok(())
    }

    /// Forgets some incidents: somebody else goes on with them.
    pub fn release(&mut self, ids: &BTreeSet<Uuid>) {
        let mut gone = Vec::new();
        for episodes in self.episodes.values_mut() {
            gone.extend(episodes.extract_if(.., |incident| ids.contains(&incident.id)));
        }
        self.evicted.retain(|incident| !ids.contains(&incident.id));
        self.forget(&mut gone);
    }

    /// All open incidents, by key.
    pub(super) fn episodes(&self) -> &BTreeMap<IncidentKey, Vec<Incident>> {
        &self.episodes
    }

    /// Takes in an incident as another store has it, in place of what is known of it here: under its own id, and under
    /// ids that were given here while the other could not be asked. The latter are returned as parts of it.
    pub(super) fn replace(&mut self, incident: &Incident) -> Vec<Incident> {
        let (first, last) = incident.span();
        let gap = self.settings.episode_gap.seconds(incident.key.threat);
        let same = |known: &Incident| known.id == incident.id || known.joins(first, last, gap);
        let episodes = self.episodes.get_mut(&incident.key);
        let mut parts: Vec<Incident> =
            episodes.map(|episodes| episodes.extract_if(.., |known| same(known)).collect()).unwrap_or_default();
        for part in &mut parts {
            self.keys.remove(&part.id);
            self.count -= 1;
            part.closed = true;
            part.absorbed_by = Some(incident.id);
        }
        parts.retain(|part| part.id != incident.id);
        if !incident.closed {
            self.adopt(incident.clone());
            self.evict();
        }
        parts
    }

    /// Takes in incidents that were closed and are not forgotten yet.
    pub(super) fn keep_closed(&mut self, closed: &[Incident]) {
        closed.iter().for_each(|incident| self.adopt(incident.clone()));
    }

    /// Forgets closed incidents.
    pub(super) fn forget_closed(&mut self, ids: &[Uuid]) -> Vec<Incident> {
        let mut gone = Vec::new();
        for episodes in self.episodes.values_mut() {
            gone.extend(episodes.extract_if(.., |incident| incident.closed && ids.contains(&incident.id)));
        }
        self.forget(&mut gone);
        gone
    }

    /// Takes in an incident as it is.
    pub(super) fn adopt(&mut self, incident: Incident) {
        let key = incident.key;
        if let Some(actor) = incident.actor() {
            self.acting.entry(actor).or_default().insert(key);
        }
        if let Subject::Victim(victim) = key.subject {
            self.acted_on.entry(victim).or_default().insert(key);
        }
        for target in incident.account().targets() {
            self.acted_on.entry(target.address).or_default().insert(key);
        }
        self.keys.insert(incident.id, key);
        self.count += 1;
        self.episodes.entry(key).or_default().push(incident);
    }
}

/// The finding without numbers that are none: they have no order, and JSON cannot keep them.
fn finite(finding: &Finding) -> Cow<'_, Finding> {
    if finding.score.is_finite() && finding.evidence.iter().all(|e| e.value.is_finite()) {
        return Cow::Borrowed(finding);
    }
    let mut clean = finding.clone();
    clean.score = if clean.score.is_finite() { clean.score } else { 0.0 };
    clean.evidence.retain(|e| e.value.is_finite());
    Cow::Owned(clean)
}

/// Whether an incident is more than background.
fn weighty(incident: &Incident) -> bool {
    incident.account().severity >= Some(Severity::Medium)
}

/// The same relation, seen from the other side.
fn reverse(relation: Relation) -> Relation {
    match relation {
        Relation::Preceded => Relation::Followed,
        Relation::Followed => Relation::Preceded,
        same @ (Relation::SameActor | Relation::SameTarget) => same,
    }
}

#[cfg(test)]
mod tests;
