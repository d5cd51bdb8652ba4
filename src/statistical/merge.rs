//! One engine that goes on where several left off: two shards were merged, and the one that continues them must know what
//! was under way in either.
//!
//! Every part of the state joins by union, extreme, or *the fuller of two sightings*. Nothing is ever added up, since two
//! engines may have seen the same: a conversation between hosts of ours is logged at both ends, and two shards that were one
//! before they were split begin with the same memory. Joining what one of them knows already therefore changes nothing.
//!
//! Where all records of an interface come to one shard, as they do when the stream is keyed by interface, the merged
//! engine knows what one engine knows that saw everything. Keyed at random, each engine has seen a share of every
//! session, and the fuller share counts for the whole until more is seen; amounts of open windows, sessions and baselines
//! are then too small, and a pair that either engine met once has one sighting and not two.
//!
//! Engines hash with seeds of their own, and of most pairs nothing is kept but a hash. Pairs of another seed are therefore
//! kept beside the engine's own as they are, and taken over when they are met again; engines of one seed are
//! of one descent, and join at once.

use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};

use super::brute_force::Logins;
use super::exfiltration::Uploads;
use super::habits::Habits;
use super::pair::{Channel, Pair};
use super::port_scan::Suspect;
use super::port_scan::sweep::Sweeper;
use super::table::Table;
use super::{Engine, Map, Output, State, Statistics, fingerprint, fingerprint_of};
use crate::flow::{EventTime, Interface, InterfaceId};
use crate::statistical::conversation::Conversation;

/// For how long inherited pairs are kept: what is not met again within a day is news then.
const KEPT_SECONDS: u32 = 86_400;

/// Pairs of another seed, under the hashes that they were known by.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Inherited {
    seed: u64,
    until: EventTime,
    pairs: Table<Pair>,
}

impl Inherited {
    fn hasher(&self) -> FixedState {
        FixedState::with_seed(self.seed)
    }

    /// Makes it ready for use again after it was read from a snapshot.
    pub(super) fn reindex(&mut self) {
        let hasher = self.hasher();
        self.pairs.reindex(&hasher);
    }
}

/// Inherited pairs that were not met again yet.
pub(super) fn waiting(inherited: &[Inherited]) -> usize {
    inherited.iter().map(|inherited| inherited.pairs.len()).sum()
}

/// Takes a pair over where it was inherited.
#[cold]
pub(super) fn meet_again(inherited: &mut [Inherited], pairs: &mut Table<Pair>, seed: &FixedState, c: &Conversation) {
    for inherited in inherited {
        let hasher = inherited.hasher();
        let Some(mut pair) = inherited.pairs.take(&hasher, fingerprint(&hasher, c)) else { continue };
        pair.fingerprint = fingerprint(seed, c);
        let (known, made) = pairs.entry_or_insert(seed, pair.fingerprint, || pair);
        if !made {
            known.join(&pair);
        }
    }
}

/// Lets inherited pairs go when their time is over, and before they and the engine's own are more than `cap`.
pub(super) fn let_go(inherited: &mut Vec<Inherited>, own: usize, cap: u32, now: EventTime) {
    inherited.retain(|inherited| inherited.until > now && !inherited.pairs.is_empty());
    while own + waiting(inherited) > cap as usize {
        let Some(most) = inherited.iter_mut().max_by_key(|inherited| inherited.pairs.len()) else { return };
        let hasher = most.hasher();
        most.pairs.shrink(&hasher);
        inherited.retain(|inherited| !inherited.pairs.is_empty());
    }
}

impl Engine {
    /// An engine that goes on where these left off; `None` of none. They are first brought to one event time, that of the
    /// most advanced, and what their windows say that close thereby is put into `out`.
    pub fn merge(mut engines: Vec<Engine>, out: &mut Output) -> Option<Engine> {
        if engines.len() > 1 {
            align(&mut engines, out);
        }
        let mut engines = engines.into_iter();
        let mut whole = engines.next()?;
        engines.for_each(|engine| whole.take_in(engine));
        Some(whole)
    }

    fn take_in(&mut self, other: Engine) {
        let State {
            version: _,
            hash_seed,
            statistics,
            interfaces,
            intermediaries,
            gateways,
            panes,
            newest,
            ahead,
            lag,
            longest,
            closed_until,
            internal,
            external,
            pairs,
            inherited,
            channels,
            internal_suspects,
            external_suspects,
            besieged,
            sweepers,
            habits,
            internal_logins,
            external_logins,
            uploads,
            owners,
            strangers,
            explanations,
            tor,
            feature_window,
            features,
            baselines,
        } = other.state;
        let (seed, state) = (&self.seed, &mut self.state);
        let numbers = numbers(&mut state.interfaces, &interfaces);
        let rename = |id: InterfaceId| numbers.get(&id).copied().unwrap_or_default();
        let observed = [state.statistics.records, statistics.records];
        join_statistics(&mut state.statistics, statistics);
        state.intermediaries.extend(intermediaries.into_iter().map(rename));
        for (address, gateway) in gateways {
            state.gateways.entry(address).or_default().join(&gateway);
        }
        state.newest = state.newest.max(newest);
        state.ahead.join(ahead, observed, rename);
        state.lag = state.lag.max(lag);
        state.longest = state.longest.max(longest);
        state.closed_until = state.closed_until.max(closed_until);
        state.internal.absorb(seed, internal, |known, host| known.join(&host));
        state.external.absorb(seed, external, |known, host| known.join(&host));
        state.besieged.absorb(seed, besieged, |known, besieged| known.join(&besieged));
        let mut sweepers = sweepers;
        sweepers.change_all(seed, |sweeper| sweeper.rename(rename));
        state.sweepers.absorb(seed, sweepers, Sweeper::join);
        self.held = super::held(&state.sweepers);
        state.habits.absorb(seed, habits, Habits::join);
        for (known, mut theirs) in
            [(&mut state.internal_logins, internal_logins), (&mut state.external_logins, external_logins)]
        {
            theirs.change_all(seed, |logins| logins.rename(rename));
            known.absorb(seed, theirs, Logins::join);
        }
        let mut uploads = uploads;
        uploads.change_all(seed, |uploads| uploads.rename(rename));
        state.uploads.absorb(seed, uploads, Uploads::join);
        state.owners.join(owners, rename);
        state.strangers.join(strangers);
        state.explanations.join(seed, explanations);
        for (host, contacts) in tor {
            state.tor.entry(host).or_default().join(&contacts, rename);
        }
        state.feature_window = state.feature_window.max(feature_window);
        state.features.absorb(seed, features, |known, theirs| known.does.join(&theirs.does));
        for (host, baseline) in baselines {
            state.baselines.entry(host).or_default().join(baseline);
        }
        self.take_in_panes(panes, rename);
        self.take_in_pairs(inherited, Inherited { seed: hash_seed, until: newest.plus(KEPT_SECONDS), pairs });
        self.take_in_channels(channels, rename);
        self.take_in_suspects(internal_suspects, external_suspects, rename);
    }

    fn take_in_panes(
        &mut self,
        panes: impl IntoIterator<Item = super::Pane>,
        rename: impl Fn(InterfaceId) -> InterfaceId,
    ) {
        for pane in panes {
            let start = pane.start;
            let at = self.state.panes.partition_point(|known| known.start < start);
            if self.state.panes.get(at).is_none_or(|known| known.start != start) {
                let mut new = super::Pane::default();
                new.start = start;
                new.reindex(&self.seed);
                self.state.panes.insert(at, new);
            }
            self.state.panes[at].join(&self.seed, &pane, &rename);
        }
    }

    fn take_in_pairs(&mut self, inherited: Vec<Inherited>, own: Inherited) {
        for theirs in inherited.into_iter().chain([own]) {
            let hasher = theirs.hasher();
            if theirs.seed == self.state.hash_seed {
                self.state.pairs.absorb(&hasher, theirs.pairs, |known, pair| known.join(&pair));
            } else if let Some(known) = self.state.inherited.iter_mut().find(|known| known.seed == theirs.seed) {
                known.until = known.until.max(theirs.until);
                known.pairs.absorb(&hasher, theirs.pairs, |known, pair| known.join(&pair));
            } else {
                self.state.inherited.push(theirs);
            }
        }
        let (own, cap, now) = (self.state.pairs.len(), self.settings.tables.pairs, self.state.closed_until);
        let_go(&mut self.state.inherited, own, cap, now);
    }

    fn take_in_channels(&mut self, mut channels: Table<Channel>, rename: impl Fn(InterfaceId) -> InterfaceId) {
        let seed = &self.seed;
        channels.change_all(seed, |channel| {
            channel.fingerprint =
                fingerprint_of(seed, channel.opener, channel.responder, channel.port, channel.protocol);
            channel.interface = rename(channel.interface);
        });
        self.state.channels.absorb(seed, channels, Channel::join);
    }

    fn take_in_suspects(
        &mut self,
        internal: Table<Suspect>,
        external: Table<Suspect>,
        rename: impl Fn(InterfaceId) -> InterfaceId + Copy,
    ) {
        let seed = &self.seed;
        let tables = [(&mut self.state.internal_suspects, internal), (&mut self.state.external_suspects, external)];
        for (known, mut theirs) in tables {
            theirs.change_all(seed, |suspect| suspect.interface = rename(suspect.interface));
            known.absorb(seed, theirs, Suspect::join);
        }
        // What one of them saw fail, and the other saw answered since.
        let known: Vec<(FixedState, &Table<Pair>)> = std::iter::once((seed.clone(), &self.state.pairs))
            .chain(self.state.inherited.iter().map(|inherited| (inherited.hasher(), &inherited.pairs)))
            .collect();
        self.state.internal_suspects.change_all(seed, |suspect| {
            let source = suspect.source;
            suspect.take_back(|target, port, protocol| {
                known.iter().any(|(hasher, pairs)| {
                    let pair = pairs.get(hasher, fingerprint_of(hasher, source, target, port, protocol));
                    pair.is_some_and(Pair::answered)
                })
            });
        });
    }
}

/// Brings engines to the event time of the most advanced: no window may be open in one that is closed in another.
fn align(engines: &mut [Engine], out: &mut Output) {
    let newest = engines.iter().map(|engine| engine.state.newest).max().unwrap_or_default();
    let longest = engines.iter().map(|engine| engine.state.longest).max().unwrap_or_default();
    for engine in engines.iter_mut() {
        engine.state.longest = longest;
        engine.advance_to(newest, out);
    }
    let features = engines.iter().map(|engine| engine.state.feature_window).max().unwrap_or_default();
    for engine in engines.iter_mut().filter(|engine| engine.state.feature_window < features) {
        engine.close_features(out);
        engine.state.feature_window = features;
    }
    out.vectors.sort_by_key(|vector| (vector.window, vector.host));
}

/// The numbers here of another engine's interfaces; those that are new get the next ones.
fn numbers(known: &mut Vec<Interface>, theirs: &[Interface]) -> Map<InterfaceId, InterfaceId> {
    let mut by_name: Map<(String, String), InterfaceId> =
        known.iter().map(|i| ((i.account.clone(), i.name.clone()), i.id)).collect();
    let mut numbers = Map::default();
    for interface in theirs {
        let next = InterfaceId(known.last().map_or(1, |last| last.id.0 + 1));
        let id = *by_name.entry((interface.account.clone(), interface.name.clone())).or_insert(next);
        if id == next {
            known.push(Interface { id, ..interface.clone() });
        }
        numbers.insert(interface.id, id);
    }
    numbers
}

/// Counts are added up, also where two engines have counted the same: they tell how much was done.
fn join_statistics(known: &mut Statistics, other: Statistics) {
    known.records += other.records;
    known.late += other.late;
    known.future += other.future;
    known.duplicates += other.duplicates;
    known.repeated += other.repeated;
    known.strangers += other.strangers;
    known.conversations += other.conversations;
    known.windows += other.windows;
    known.early_closes += other.early_closes;
    known.left_out += other.left_out;
    for (table, evictions) in other.evictions {
        *known.evictions.entry(table).or_default() += evictions;
    }
    known.first = known.first.min(other.first);
    known.last = known.last.max(other.last);
    known.skipped_seconds += other.skipped_seconds;
    known.no_data_seconds += other.no_data_seconds;
}

#[cfg(test)]
mod tests;
