//! Under which id an episode is told.
//!
//! Tasks correlate together while they can, and each by itself while the shared store of incidents is away; a task may
//! also have lost what it knew. Then two of them give two ids to one episode, each made of what it happened to see first.
//! The store of anomalies is the one place that every telling passes, so it decides: whoever is about to tell an episode
//! *claims* it, and is told the id under which it goes. What overlaps an episode that was told before, or lies within the
//! threat's gap of it, is that episode.
//!
//! Late evidence can bridge two episodes that were both told. Then the one that was known to start first goes on (ties
//! fall to the smaller id: a rule on content, the same as in [`crate::correlation`]), and every later claim names the
//! others as merged, so that whoever hears it closes them: a crash in between only makes somebody hear it again.
//!
//! An episode that was told early, from a look at a window that was still open, has an id that depends on when was looked. What its
//! windows say when they close is told under an id of their own where that differs, and the early report is closed as part of it.
//!
//! The first claim also settles when the episode was detected, which is part of its key where anomalies are kept: two tasks
//! that tell it at once, each with what it has seen by then, write one row and not two.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::finding::IncidentKey;
use crate::flow::EventTime;

/// How many told episodes of one key are remembered, at about 100 bytes each; the longest silent are forgotten first.
const EPISODES_MAX: usize = 64;

/// Somebody is about to tell an episode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// What it is about.
    pub key: IncidentKey,
    /// The id that the claimant knows it by.
    pub id: Uuid,
    /// Its start as the claimant first knew it.
    pub known_from: EventTime,
    /// First moment, as far as the claimant knows.
    pub first_seen: EventTime,
    /// Last moment, as far as the claimant knows.
    pub last_seen: EventTime,
    /// For how long nothing may be seen of the threat before an episode is over, s.
    pub gap: u32,
    /// When it was detected, as far as the claimant knows.
    pub detected: EventTime,
    /// Whether it is told early, from a look at an open window: which id that gives is a matter of when was looked, and so what is told
    /// once a window has closed goes under its own.
    pub early: bool,
}

/// The answer to a [`Claim`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claimed {
    /// The id under which it is told.
    pub id: Uuid,
    /// When it was detected, as its first claimant knew it; `None` where that was before this was kept.
    pub detected: Option<EventTime>,
    /// Episodes that were told apart and are part of it.
    pub merged: Vec<Uuid>,
}

/// The told episodes of one key.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Episodes(Vec<Told>);

/// An episode that was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Told {
    id: Uuid,
    known_from: EventTime,
    first: EventTime,
    last: EventTime,
    merged_into: Option<Uuid>,
    #[serde(default)]
    detected: Option<EventTime>,
    /// Whether it was told early alone.
    #[serde(default)]
    early: bool,
}

impl Episodes {
    /// Answers a claim, and remembers it. Claiming again what was claimed changes nothing.
    pub fn claim(&mut self, claim: &Claim) -> Claimed {
        let known = self.whole_of(claim.id);
        let mut span = (claim.first_seen, claim.last_seen);
        let mut parts: Vec<usize> = Vec::new();
        // What joins makes the span longer, and then more may join.
        loop {
            let joins = |told: &Told| told.first <= span.1.plus(claim.gap) && span.0 <= told.last.plus(claim.gap);
            let more = self.0.iter().enumerate().position(|(at, told)| {
                told.merged_into.is_none() && !parts.contains(&at) && (Some(told.id) == known || joins(told))
            });
            let Some(at) = more else { break };
            span = (span.0.min(self.0[at].first), span.1.max(self.0[at].last));
            parts.push(at);
        }
        let rank = |&at: &usize| (self.0[at].early, self.0[at].known_from, self.0[at].id);
        // What was told early goes on as what its windows say, under that id.
        let goes_on = |&at: &usize| claim.early || !self.0[at].early || self.0[at].id == claim.id;
        let first = parts.iter().copied().filter(goes_on).min_by_key(rank).unwrap_or_else(|| {
            let (id, known_from, early) = (claim.id, claim.known_from, claim.early);
            let ((first, last), detected) = (span, Some(claim.detected));
            self.0.push(Told { id, known_from, first, last, merged_into: None, detected, early });
            self.0.len() - 1
        });
        let (id, detected) = (self.0[first].id, self.0[first].detected);
        for &part in parts.iter().filter(|&&part| part != first) {
            self.0[part].merged_into = Some(id);
        }
        (self.0[first].first, self.0[first].last) = span;
        self.0[first].early &= claim.early;
        self.bound();
        let merged = self.0.iter().map(|told| told.id).filter(|&part| part != id && self.whole_of(part) == Some(id));
        Claimed { id, detected, merged: merged.collect() }
    }

    /// The episode that one is, or has become part of; `None` where it was never told, or is forgotten.
    fn whole_of(&self, id: Uuid) -> Option<Uuid> {
        let mut told = self.0.iter().find(|told| told.id == id)?;
        // Each step leads to one that was known earlier, so the walk ends.
        while let Some(into) = told.merged_into {
            told = self.0.iter().find(|told| told.id == into)?;
        }
        Some(told.id)
    }

    fn bound(&mut self) {
        while self.0.len() > EPISODES_MAX {
            let oldest = (0..self.0.len()).min_by_key(|&at| (self.0[at].last, self.0[at].id)).unwrap_or(0);
            self.0.remove(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::finding::{Subject, Threat};
    use crate::flow::Address;

    const KEY: IncidentKey = IncidentKey { threat: Threat::PortScan, subject: Subject::Actor(Address::v4(7)) };
    const GAP: u32 = 100;

    fn claim(known_from: u32, first: u32, last: u32) -> Claim {
        let known_from = EventTime(known_from);
        let (first_seen, last_seen) = (EventTime(first), EventTime(last));
        Claim {
            key: KEY,
            id: KEY.episode(known_from),
            known_from,
            first_seen,
            last_seen,
            gap: GAP,
            detected: last_seen,
            early: false,
        }
    }

    #[test]
    fn what_overlaps_a_told_episode_goes_under_its_id() {
        let mut episodes = Episodes::default();
        let first = episodes.claim(&claim(100, 100, 150));
        let detected = Some(EventTime(150));
        assert_eq!(first, Claimed { id: KEY.episode(EventTime(100)), detected, merged: vec![] });
        assert_eq!(episodes.claim(&claim(90, 90, 140)), first);
        assert_eq!(episodes.claim(&claim(249, 249, 300)), first, "within the gap");
        assert_ne!(episodes.claim(&claim(401, 401, 410)).id, first.id, "beyond it");
    }

    #[test]
    fn two_told_episodes_that_are_bridged_go_on_as_the_one_known_first_and_every_claim_says_so() {
        let mut episodes = Episodes::default();
        let late = episodes.claim(&claim(500, 500, 510)).id;
        let early = episodes.claim(&claim(100, 100, 150)).id;
        let whole = Claimed { id: early, detected: Some(EventTime(150)), merged: vec![late] };
        assert_eq!(episodes.claim(&claim(500, 240, 510)), whole);
        assert_eq!(episodes.claim(&claim(500, 500, 510)), whole);
        assert_eq!(episodes.claim(&claim(100, 100, 150)), whole);
    }

    #[test]
    fn what_was_told_early_goes_on_as_what_its_windows_say() {
        let early = |from| Claim { early: true, ..claim(from, from, from + 10) };
        let mut episodes = Episodes::default();
        let look = episodes.claim(&early(160)).id;
        assert_eq!(episodes.claim(&early(140)).id, look, "another look at it");
        let whole = episodes.claim(&claim(100, 100, 170));
        assert_eq!((whole.id, whole.merged), (KEY.episode(EventTime(100)), vec![look]));
        assert_eq!(episodes.claim(&early(160)).id, whole.id, "a late look");
        assert_eq!(episodes.claim(&claim(90, 90, 100)).id, whole.id, "what was told of closed windows keeps its id");
        let mut same = Episodes::default();
        let look = same.claim(&early(100)).id;
        assert_eq!(
            same.claim(&claim(100, 100, 170)),
            Claimed { id: look, detected: Some(EventTime(110)), merged: vec![] }
        );
    }

    #[test]
    fn a_key_that_comes_back_for_ever_costs_no_more() {
        let mut episodes = Episodes::default();
        for n in 0..1000 {
            episodes.claim(&claim(n * 1000, n * 1000, n * 1000 + 10));
        }
        assert_eq!(episodes.0.len(), EPISODES_MAX);
        assert_eq!(episodes.claim(&claim(999_005, 999_005, 999_020)).id, KEY.episode(EventTime(999_000)));
    }

    /// Spans that lie within the gap of each other, put together.
    fn together(mut spans: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
        spans.sort_unstable();
        let mut whole: Vec<(u32, u32)> = Vec::new();
        for (first, last) in spans {
            match whole.last_mut() {
                Some(before) if first <= before.1 + GAP => before.1 = before.1.max(last),
                _ => whole.push((first, last)),
            }
        }
        whole
    }

    proptest! {
        #[test]
        fn any_order_and_repetition_of_claims_gives_the_same_episodes(
            spans in prop::collection::vec((0..3000_u32, 0..60_u32), 1..30),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let spans: Vec<(u32, u32)> = spans.into_iter().map(|(first, length)| (first, first + length)).collect();
            let mut told = Episodes::default();
            let repeated = order.iter().map(|at| *at.get(&spans));
            for (first, last) in repeated.chain(spans.iter().copied()) {
                told.claim(&claim(first, first, last));
            }
            let open: BTreeMap<Uuid, (u32, u32)> = told
                .0
                .iter()
                .filter(|told| told.merged_into.is_none())
                .map(|told| (told.id, (told.first.0, told.last.0)))
                .collect();
            let mut found: Vec<(u32, u32)> = open.values().copied().collect();
            found.sort_unstable();
            prop_assert_eq!(found, together(spans.clone()));
            // Every id that was ever given leads to one that goes on.
            for told_id in told.0.iter().map(|told| told.id) {
                prop_assert!(open.contains_key(&told.whole_of(told_id).unwrap()));
            }
        }
    }
}
