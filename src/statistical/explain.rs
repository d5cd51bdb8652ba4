//! What detectors thought before anything became a finding: kept, so that "why did this not alert?" has an answer.
//!
//! Of every host of ours the closest approaches to a finding are kept as they are made, within bounds. Whoever asks reads
//! them; nothing is judged that would not be judged anyway, or only on a copy, so that asking changes nothing.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::finding::{Bound, Evidence, Merge, Threat};
use crate::flow::{Address, EventTime};
use crate::statistical::host::Host;
use crate::statistical::table::{Entry, Table};

/// What a detector thought.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The method that came closest, or passed.
    pub method: String,
    /// Whether a finding follows.
    pub passed: bool,
    /// The numbers, each beside its threshold.
    pub evidence: Vec<Evidence>,
    /// How far the leading number is from its threshold; 1 is at it.
    pub ratio: f64,
}

impl Judgement {
    /// Whether a number is at its threshold or above.
    pub fn holds(&self, name: &str) -> bool {
        self.evidence.iter().any(|e| e.name == name && e.threshold.is_some_and(|threshold| e.value >= threshold))
    }

    /// Takes back what was passed, where the host holds so many sessions of the kind at once that it is a peer among peers.
    pub fn refuse_peers(&mut self, held: usize, peers: usize) {
        self.passed &= held < peers;
        self.evidence.push(Evidence::below("sessions_held", held as f64, peers as f64, "addresses", Merge::Latest));
    }

    /// Takes back what was passed, where the host was told to use Tor and the peer is one of its relays.
    /// Says whether it is not refused.
    pub fn refuse_relay(&mut self, is_relay: bool) -> bool {
        self.passed &= !is_relay;
        self.evidence.push(Evidence::below("tor_relay", f64::from(u8::from(is_relay)), 1.0, "yes=1", Merge::Latest));
        !is_relay
    }

    /// Takes back what was passed, where the host has long used the same service under so many other addresses. Says whether it is
    /// not refused.
    pub fn refuse_kin(&mut self, kin: usize) -> bool {
        self.passed &= kin == 0;
        self.evidence.push(Evidence::below("same_service_elsewhere", kin as f64, 1.0, "addresses", Merge::Latest));
        kin == 0
    }

    /// Takes back what was passed, where as many others as make a fleet call alike. Says whether it is not refused.
    pub fn refuse_fleet(&mut self, hosts: usize, fleet: u32) -> bool {
        let stands = hosts < fleet as usize;
        self.passed &= stands;
        self.evidence.push(Evidence::below(
            "hosts_that_call_alike",
            hosts as f64,
            fleet.into(),
            "hosts",
            Merge::Latest,
        ));
        stands
    }

    /// How close it is to a finding: one that is found, then one of which fewer conditions fail, then the larger number.
    fn closeness(&self) -> Closeness {
        (self.passed, Reverse(missed(&self.evidence)), self.ratio)
    }
}

/// Found, conditions that fail, and the leading number over its threshold: the larger the closer.
type Closeness = (bool, Reverse<usize>, f64);

fn missed(evidence: &[Evidence]) -> usize {
    evidence.iter().filter(|e| e.holds() == Some(false)).count()
}

/// What one detector thought of an address at its closest approach to a finding.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = DetectorJudgement)]
pub struct Explanation {
    /// Which threat was judged.
    pub threat: Threat,
    /// Which method of its.
    pub method: String,
    /// On or with whom, where it is about a pair.
    pub peer: Option<Address>,
    /// The window.
    pub window: EventTime,
    /// Whether a finding came of it.
    pub found: bool,
    /// The leading number over its threshold; 1 is at it.
    pub ratio: f64,
    /// The numbers, each beside its threshold.
    pub evidence: Vec<Evidence>,
}

impl Explanation {
    fn closeness(&self) -> Closeness {
        (self.found, Reverse(missed(&self.evidence)), self.ratio)
    }

    /// Which conditions hold and which do not, in words.
    pub fn verdict(&self) -> String {
        let conditions = self.evidence.iter().filter(|e| e.holds().is_some()).count();
        match (self.found, missed(&self.evidence)) {
            (true, 0) => format!("{}: every condition holds", self.method),
            (true, missed) => {
                format!("{}: found, although {missed} of {conditions} alternatives do not hold", self.method)
            }
            (false, 0) => format!("{}: every number holds, and what else is asked for does not", self.method),
            (false, missed) => format!("{}: {missed} of {conditions} conditions do not hold", self.method),
        }
    }
}

/// What was seen of an address.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, ToSchema)]
#[schema(as = SeenTraffic)]
pub struct Seen {
    /// Whether it is a host of ours.
    pub ours: bool,
    /// Start of the first conversation.
    pub first_seen: EventTime,
    /// Start of the last one.
    pub last_seen: EventTime,
    /// Conversations that it opened, or that were opened towards it, a window at a time.
    pub conversations: u64,
    /// Bytes of both directions.
    pub bytes: u64,
    /// With how many others; an estimate that is good to a tenth up to 100, unless the address was asked for beforehand.
    pub peers: u32,
}

impl Seen {
    pub(super) fn of(host: &Host, ours: bool) -> Seen {
        Seen {
            ours,
            first_seen: host.first_seen,
            last_seen: host.last_seen,
            conversations: host.conversations.into(),
            bytes: host.bytes,
            peers: host.peers().round() as u32,
        }
    }
}

/// All that there is to say of an address.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Explained {
    /// About whom.
    pub address: Address,
    /// What was seen of it; `None` where it is in none of the records, or is an outsider who only asked, of whom nothing is kept.
    pub seen: Option<Seen>,
    /// How close detectors came, nearest first.
    pub approaches: Vec<Explanation>,
}

/// A judgement, and about whom.
pub(super) struct Approach<'a> {
    pub address: Address,
    pub peer: Option<Address>,
    pub threat: Threat,
    pub window: EventTime,
    pub judgement: &'a Judgement,
    /// Whether the address is ours: of others nothing is kept unless they were asked for.
    pub ours: bool,
}

/// The closest approaches of each host.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Explanations {
    kept: Table<Kept>,
    /// Those that were asked for before the first record: of them more is kept.
    #[serde(skip)]
    asked: BTreeMap<Address, Asked>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    address: Address,
    last: EventTime,
    approaches: Vec<Explanation>,
}

impl Entry for Kept {
    type Key = Address;

    fn key(&self) -> Address {
        self.address
    }

    fn last_seen(&self) -> EventTime {
        self.last
    }
}

#[derive(Debug, Default)]
struct Asked {
    /// Apart from the table, which may have to forget.
    approaches: Vec<Explanation>,
    seen: Option<Seen>,
    peers: BTreeSet<Address>,
}

/// Hosts of which approaches are kept: at about a kilobyte an approach, of which most hosts have one or two.
const HOSTS_MAX: u32 = 1_024;

/// Approaches of one threat that are kept of a host.
const KEPT: usize = 3;

/// The same, of an address that was asked for.
const KEPT_OF_ASKED: usize = 50;

/// Peers that are told apart of an address that was asked for.
const PEERS_MAX: usize = 100_000;

/// An approach gives way to any other after a day.
const STALE_SECONDS: u32 = 86_400;

impl Explanations {
    pub(super) fn new() -> Explanations {
        Explanations { kept: Table::new(HOSTS_MAX), asked: BTreeMap::new() }
    }

    /// Keeps more of an address from here on.
    pub(super) fn ask(&mut self, address: Address) {
        self.asked.entry(address).or_default();
    }

    /// Whether an address was asked for.
    pub(super) fn is_asked(&self, address: Address) -> bool {
        !self.asked.is_empty() && self.asked.contains_key(&address)
    }

    /// Notes a conversation of an address that was asked for.
    pub(super) fn note_seen(&mut self, address: Address, peer: Address, ours: bool, at: EventTime, bytes: u64) {
        if self.asked.is_empty() {
            return;
        }
        let Some(asked) = self.asked.get_mut(&address) else { return };
        if asked.peers.len() < PEERS_MAX {
            asked.peers.insert(peer);
        }
        let none = Seen { ours, first_seen: at, last_seen: at, conversations: 0, bytes: 0, peers: 0 };
        let seen = asked.seen.get_or_insert(none);
        seen.ours |= ours;
        seen.first_seen = seen.first_seen.min(at);
        seen.last_seen = seen.last_seen.max(at);
        seen.conversations += 1;
        seen.bytes = seen.bytes.saturating_add(bytes);
        seen.peers = asked.peers.len() as u32;
    }

    /// Notes how close a detector came, if that is closer than what is kept.
    pub(super) fn note(&mut self, seed: &FixedState, approach: &Approach<'_>) {
        let Approach { address, peer, threat, window, judgement, ours } = *approach;
        let (approaches, room) = match self.asked.get_mut(&address) {
            Some(asked) => (&mut asked.approaches, KEPT_OF_ASKED),
            None if ours => {
                let kept = self.kept.entry(seed, address, || Kept { address, last: window, approaches: Vec::new() });
                kept.last = kept.last.max(window);
                (&mut kept.approaches, KEPT)
            }
            None => return,
        };
        let new = || Explanation {
            threat,
            method: judgement.method.clone(),
            peer,
            window,
            found: judgement.passed,
            ratio: judgement.ratio,
            evidence: judgement.evidence.clone(),
        };
        let closer = |known: &Explanation| {
            judgement.closeness() >= known.closeness() || window.since(known.window) >= STALE_SECONDS
        };
        if let Some(known) = approaches.iter_mut().find(|e| e.threat == threat && e.peer == peer) {
            if closer(known) {
                *known = new();
            }
            return;
        }
        if approaches.iter().filter(|e| e.threat == threat).count() < room {
            approaches.push(new());
            return;
        }
        let others = approaches.iter_mut().filter(|e| e.threat == threat);
        let stale = |e: &Explanation| window.since(e.window) >= STALE_SECONDS;
        let farthest = others.min_by(|a, b| {
            let (of_a, of_b) = (a.closeness(), b.closeness());
            stale(b).cmp(&stale(a)).then(of_a.partial_cmp(&of_b).unwrap_or(Ordering::Equal))
        });
        if let Some(farthest) = farthest.filter(|e| closer(e)) {
            *farthest = new();
        }
    }

    /// What was kept of an address, also as the peer of a host of ours; nearest first.
    pub(super) fn explain(&self, seed: &FixedState, address: Address, known: Option<Seen>) -> Explained {
        let own = self.kept.get(seed, address).map_or(&[][..], |kept| &kept.approaches);
        let asked = self.asked.get(&address);
        let mut approaches = [own, asked.map_or(&[], |asked| &asked.approaches)].concat();
        for kept in self.kept.iter().filter(|kept| kept.address != address) {
            let of_peer = kept.approaches.iter().filter(|e| e.peer == Some(address));
            approaches.extend(of_peer.map(|e| Explanation { peer: Some(kept.address), ..e.clone() }));
        }
        approaches.sort_by(nearer);
        approaches.dedup_by(|a, b| a == b);
        let seen = asked.and_then(|asked| asked.seen).or(known);
        Explained { address, seen, approaches }
    }

    /// Takes over what another engine keeps.
    pub(super) fn join(&mut self, seed: &FixedState, other: Explanations) {
        self.kept.absorb(seed, other.kept, |known, theirs| {
            known.last = known.last.max(theirs.last);
            for theirs in theirs.approaches {
                let count = known.approaches.iter().filter(|e| e.threat == theirs.threat).count();
                match known.approaches.iter_mut().find(|e| e.threat == theirs.threat && e.peer == theirs.peer) {
                    Some(mine) if theirs.closeness() > mine.closeness() => *mine = theirs,
                    None if count < KEPT => known.approaches.push(theirs),
                    Some(_) | None => {}
                }
            }
        });
    }

    /// Makes it ready for use again after it was read from a snapshot.
    pub(super) fn reindex(&mut self, seed: &FixedState) {
        self.kept.reindex(seed);
    }
}

/// Orders the nearest first.
pub fn nearer(a: &Explanation, b: &Explanation) -> Ordering {
    let order = b.closeness().partial_cmp(&a.closeness()).unwrap_or(Ordering::Equal);
    order.then_with(|| (a.threat, a.window, a.peer, &a.method).cmp(&(b.threat, b.window, b.peer, &b.method)))
}

/// A condition as it is read: `calls 7 ≥ 15: no`.
pub fn condition(evidence: &Evidence) -> String {
    let Evidence { name, value, unit, .. } = evidence;
    let value = short(*value);
    match (evidence.threshold, evidence.bound) {
        (Some(threshold), Some(bound)) => {
            let holds = if evidence.holds() == Some(true) { "yes" } else { "no" };
            format!("{name} {value} {} {} {unit}: {holds}", Bound::sign(bound), short(threshold))
        }
        (Some(threshold), None) => format!("{name} {value} {unit}, threshold {}", short(threshold)),
        (None, _) => format!("{name} {value} {unit}"),
    }
}

fn short(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 { format!("{value:.0}") } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistical::tests::address;

    #[test]
    fn a_number_holds_at_its_threshold_and_above() {
        let judged = |name, value| Evidence::at_least(name, value, 2.0, "things", Merge::Max);
        let told = Evidence::told("told", 9.0, "things", Merge::Max);
        let evidence = vec![judged("below", 1.9), judged("at", 2.0), judged("above", 2.1), told];
        let judgement = Judgement { method: String::new(), passed: true, evidence, ratio: 1.0 };
        let held = ["below", "at", "above", "told", "other"].map(|name| judgement.holds(name));
        assert_eq!(held, [false, true, true, false, false]);
    }

    #[test]
    fn one_of_many_sessions_of_the_kind_is_no_news() {
        let judged = |held| {
            let mut judgement = Judgement { method: String::new(), passed: true, evidence: Vec::new(), ratio: 1.0 };
            judgement.refuse_peers(held, 5);
            (judgement.passed, judgement.evidence[0].value, judgement.evidence[0].threshold)
        };
        assert_eq!(judged(4), (true, 4.0, Some(5.0)));
        assert_eq!(judged(5), (false, 5.0, Some(5.0)));
    }

    fn note(explanations: &mut Explanations, host: &str, peer: &str, window: u32, calls: f64) {
        let evidence = vec![
            Evidence::at_least("calls", calls, 15.0, "calls", Merge::Max),
            Evidence::at_most("prevalence", 0.1, 0.05, "ratio", Merge::Latest),
        ];
        let judgement = Judgement { method: "periodic".into(), passed: false, evidence, ratio: calls / 15.0 };
        let approach = Approach {
            address: address(host),
            peer: Some(address(peer)),
            threat: Threat::C2Beacon,
            window: EventTime(window),
            judgement: &judgement,
            ours: true,
        };
        explanations.note(&FixedState::with_seed(1), &approach);
    }

    #[test]
    fn the_nearest_are_kept_and_come_first_and_a_day_later_give_way() {
        let seed = FixedState::with_seed(1);
        let mut explanations = Explanations::new();
        for (n, calls) in [3.0, 9.0, 5.0, 16.0, 4.0].into_iter().enumerate() {
            note(&mut explanations, "10.0.0.5", &format!("192.0.2.{n}"), 600, calls);
        }
        let calls = |explanations: &Explanations| -> Vec<f64> {
            let explained = explanations.explain(&seed, address("10.0.0.5"), None);
            explained.approaches.iter().map(|e| e.evidence[0].value).collect()
        };
        assert_eq!(calls(&explanations), [16.0, 9.0, 5.0]);
        note(&mut explanations, "10.0.0.5", "192.0.2.9", 600 + STALE_SECONDS, 2.0);
        assert_eq!(calls(&explanations), [16.0, 9.0, 2.0], "the farthest of those that are stale goes first");
        let peer = explanations.explain(&seed, address("192.0.2.3"), None);
        assert_eq!(peer.approaches[0].peer, Some(address("10.0.0.5")), "whoever is called is explained by who calls");
        assert_eq!(peer.approaches[0].verdict(), "periodic: 1 of 2 conditions do not hold");
    }

    #[test]
    fn whoever_was_asked_for_is_not_forgotten_for_the_many_that_were_not() {
        let seed = FixedState::with_seed(1);
        let mut explanations = Explanations::new();
        explanations.ask(address("10.0.0.5"));
        note(&mut explanations, "10.0.0.5", "192.0.2.1", 600, 9.0);
        for n in 0..2 * HOSTS_MAX {
            note(&mut explanations, &format!("10.1.{}.{}", n / 256, n % 256), "192.0.2.2", 1_200 + n, 9.0);
        }
        assert_eq!(explanations.explain(&seed, address("10.1.0.0"), None).approaches, [], "the oldest gave way");
        assert_eq!(explanations.explain(&seed, address("10.0.0.5"), None).approaches.len(), 1);
    }

    #[test]
    fn a_condition_is_read_with_its_sign_and_whether_it_holds() {
        let words = |evidence: Evidence| condition(&evidence);
        assert_eq!(words(Evidence::at_least("calls", 7.0, 15.0, "calls", Merge::Max)), "calls 7 ≥ 15 calls: no");
        assert_eq!(
            words(Evidence::at_most("jitter", 0.25, 0.5, "ratio", Merge::Max)),
            "jitter 0.250 ≤ 0.500 ratio: yes"
        );
        assert_eq!(words(Evidence::below("peers", 5.0, 5.0, "addresses", Merge::Max)), "peers 5 < 5 addresses: no");
        assert_eq!(words(Evidence::told("span", 60.0, "s", Merge::Max)), "span 60 s");
    }
}
