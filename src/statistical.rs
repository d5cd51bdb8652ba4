//! Tier 1: records fold into bounded state, windows close, detectors judge.
//!
//! The life of a record here: it folds into the conversation of its window ([`pane`]); when the watermark passes the
//! window's end, the two directions of every conversation are paired, its opener is found and what two interfaces saw is
//! counted once ([`conversation`]); conversations update what is remembered of addresses ([`host`]), of pairs
//! ([`pair`]) and of sources that fail ([`port_scan::Suspect`]); then the detectors judge that shared state. A detector is a
//! pure function from state and thresholds to a judgement; it reads no clock and keeps no table of its own.
//!
//! *Why windows are kept open instead of updating everything with every record:* whatever the order of records within the lateness,
//! a window holds the same sums, minima, maxima and unions, so the findings are the same; a record costs one table look-up
//! instead of four or five; and nothing is judged that is half known. An attack that cannot wait for the watermark is
//! told by [`Engine::peek`], which judges open windows without changing anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use hashbrown::HashSet;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::finding::{Actor, Finding, Threat};
use crate::flow::network::Network;
use crate::flow::{Address, Blindness, BlindnessKind, EventTime, FlowRecord, Interface, InterfaceId, Marks, protocol};
use crate::ml::FeatureVector;
use crate::ml::features::{Baseline, HostWindow, Opened, WINDOW_SECONDS};

mod ahead;
pub mod beacon;
pub mod brute_force;
pub mod channel;
pub mod conversation;
pub mod ddos;
pub mod exfiltration;
pub mod explain;
pub mod habits;
pub mod host;
pub mod intel;
pub mod merge;
pub mod mining;
pub mod owner;
pub mod pair;
pub mod pane;
pub mod port_scan;
pub mod profile;
mod strangers;
pub mod table;
pub mod tor;
pub mod translation;

use ahead::Ahead;
use brute_force::{Logins, Side};
use channel::candidate::Candidate;
use channel::nature::{self, Hint};
use conversation::Conversation;
use exfiltration::Uploads;
use explain::{Approach, Explained, Explanations, Judgement, Seen};
use habits::Habits;
use host::Host;
use merge::Inherited;
use owner::Owners;
use pair::{Channel, Pair};
use pane::Pane;
use port_scan::Suspect;
use port_scan::joint::{Besieged, Siege};
use port_scan::sweep::Sweeper;
use profile::{Coverage, Profile};
use strangers::Strangers;
use table::Table;

type Map<K, V> = hashbrown::HashMap<K, V, foldhash::fast::FixedState>;
type Set<K> = HashSet<K, foldhash::fast::FixedState>;

/// `[statistical]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Length of the tumbling window.
    pub window: SignedDuration,
    /// How far behind the newest record a record may still arrive; one whose window has closed is counted, and left out.
    pub lateness: SignedDuration,
    /// Caps of the tables.
    pub tables: Caps,
    /// Port scans.
    pub port_scan: port_scan::Settings,
    /// Floods.
    pub ddos: ddos::Settings,
    /// Command-and-control channels.
    pub c2_beacon: beacon::Settings,
    /// Crypto mining.
    pub crypto_mining: mining::Settings,
    /// Channels that are out of character for their host.
    pub channel: channel::Settings,
    /// Tor.
    pub tor: tor::Settings,
    /// Log-ins that are guessed.
    pub brute_force: brute_force::Settings,
    /// Data that leaves.
    pub exfiltration: exfiltration::Settings,
    /// Lists of addresses.
    pub intel: intel::Settings,
}

/// Caps of the tables, in entries. What they cost is in `defaults.toml`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Conversations in all open windows together.
    pub conversations: u32,
    /// Addresses of ours.
    pub internal_hosts: u32,
    /// Other addresses.
    pub external_hosts: u32,
    /// (host of ours, service) pairs.
    pub pairs: u32,
    /// Pairs whose sessions are remembered.
    pub channels: u32,
    /// Sources of ours with failures.
    pub internal_suspects: u32,
    /// Other sources with failures.
    pub external_suspects: u32,
    /// Hosts of ours of which several ports were tried by one outsider.
    pub besieged: u32,
    /// (host of ours, administrative port) pairs.
    pub sweepers: u32,
    /// Hosts of ours of which it is kept what they do with services on the internet.
    pub habits: u32,
    /// (Host of ours, log-in port) pairs, as a source and as a target.
    pub internal_logins: u32,
    /// (Outsider, log-in port) pairs.
    pub external_logins: u32,
    /// Hosts of ours that send data outside.
    pub uploads: u32,
    /// Hosts of ours with a behaviour baseline.
    pub baselines: u32,
}

/// What closing windows, or a look at open ones, brought forth.
#[derive(Debug, Default)]
pub struct Output {
    /// What the detectors said, in a defined order.
    pub findings: Vec<Finding>,
    /// Closed 5-minute windows of monitored hosts, by window and host.
    pub vectors: Vec<FeatureVector>,
}

/// Counts of an engine's life, for metrics and the report.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// Records observed.
    pub records: u64,
    /// Of these, how many came after their window had closed. They are left out: no other window is theirs.
    pub late: u64,
    /// Records that were dated far ahead of all others, and left out.
    pub future: u64,
    /// Conversations that said again what another interface had said.
    pub duplicates: u64,
    /// Records that were there already, word for word: two flow logs of one interface, or a delivery that was repeated.
    pub repeated: u64,
    /// Conversations of which neither end is ours: nobody is watched in these.
    pub strangers: u64,
    /// Where their ends are, by network (/16 of IPv4, /48 of IPv6), the most frequent 256: what may have to be named as ours.
    pub strange_networks: BTreeMap<String, u64>,
    /// Addresses that are ours since they own the interfaces that log them, beside those that the settings name.
    pub learned_hosts: u64,
    /// Conversations judged.
    pub conversations: u64,
    /// Windows closed.
    pub windows: u64,
    /// Windows closed before the watermark, since the open windows were full.
    pub early_closes: u64,
    /// Records that opened yet another conversation of an address that crowded its window, when room was short.
    pub left_out: u64,
    /// Entries evicted from full tables, by table.
    pub evictions: BTreeMap<String, u64>,
    /// Entries held, by table.
    pub entries: BTreeMap<String, u64>,
    /// First event time seen.
    pub first: EventTime,
    /// Last event time seen.
    pub last: EventTime,
    /// Seconds of SKIPDATA over all interfaces.
    pub skipped_seconds: u64,
    /// Seconds of NODATA over all interfaces.
    pub no_data_seconds: u64,
    /// Hosts of ours now taken for NAT gateways, since they repeat what others do: what they open to outside is left to
    /// the hosts behind them.
    pub gateways: Vec<Address>,
}

impl Statistics {
    /// Where records came too late for their windows: how many, their share, and what mends it, as a sentence.
    pub fn late_records(&self) -> Option<String> {
        (self.late > 0).then(|| late_records(self.late, self.records))
    }

    /// Where most conversations touch no host of ours: how many, and the networks to name, as a sentence. Nobody is watched in
    /// these, so that their peace says nothing.
    pub fn nobody_watched(&self) -> Option<String> {
        if 2 * self.strangers <= self.conversations {
            return None;
        }
        let mut networks: Vec<(&String, &u64)> = self.strange_networks.iter().collect();
        networks.sort_by_key(|&(name, conversations)| (std::cmp::Reverse(*conversations), name));
        let names: Vec<&str> = networks.iter().take(3).map(|(name, _)| name.as_str()).collect();
        Some(format!(
            "{} of {} conversations touch no host of ours, and nobody is watched in them: name your networks in network.internal \
             (most frequent: {})",
            self.strangers,
            self.conversations,
            names.join(", ")
        ))
    }
}

/// What is said of so many late records of so many.
pub fn late_records(late: u64, records: u64) -> String {
    let share = 100.0 * late as f64 / records.max(1) as f64;
    format!(
        "{late} of {records} records ({share:.2} %) came after their window had closed and were left out: set statistical.lateness \
         to more than they are behind, or cut the log into files that are each in the order of time"
    )
}

/// All that an engine knows; a snapshot is this and nothing else.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    hash_seed: u64,
    statistics: Statistics,
    interfaces: Vec<Interface>,
    intermediaries: BTreeSet<InterfaceId>,
    /// Hosts that repeated others as a NAT gateway does.
    gateways: BTreeMap<Address, translation::Gateway>,
    /// Open windows by ascending start.
    panes: VecDeque<Pane>,
    newest: EventTime,
    /// Records that are dated far ahead of that.
    ahead: Ahead,
    /// How far the source is behind the newest record, s: so much later do windows close.
    lag: u32,
    /// Longest record seen, s: with a ten-minute aggregation interval a record begins ten minutes before it arrives.
    longest: u32,
    /// Windows before this have closed.
    closed_until: EventTime,
    internal: Table<Host>,
    external: Table<Host>,
    pairs: Table<Pair>,
    /// Pairs that engines knew which this one continues, until they are met again.
    inherited: Vec<Inherited>,
    channels: Table<Channel>,
    internal_suspects: Table<Suspect>,
    external_suspects: Table<Suspect>,
    besieged: Table<Besieged>,
    sweepers: Table<Sweeper>,
    habits: Table<Habits>,
    internal_logins: Table<Logins>,
    external_logins: Table<Logins>,
    uploads: Table<Uploads>,
    owners: Owners,
    strangers: Strangers,
    explanations: Explanations,
    tor: BTreeMap<Address, tor::Contacts>,
    /// Start of the open feature window.
    feature_window: EventTime,
    features: Table<OpenWindow>,
    baselines: Map<Address, Baseline>,
}

/// The version of [`State`]; a snapshot of another one is refused.
const SNAPSHOT_VERSION: u32 = 16;

/// The engine of one shard: one owner, no locks, no clock.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    network: Network,
    lists: Arc<intel::Lists>,
    window: u32,
    seed: foldhash::fast::FixedState,
    state: State,
    /// Until when it was looked whether sweeps have been held back for long enough.
    decided_until: EventTime,
    /// The sweepers of which a sweep is held back: few of them, and each is looked at again every window.
    held: BTreeSet<(Address, u16)>,
    /// Looks at channels since they were last taken, where they are kept.
    candidates: Option<Vec<Candidate>>,
    // Memory that is used again by every window.
    conversations: Vec<Conversation>,
    spare: Vec<Pane>,
    /// Since the process began; a snapshot has the sums alone.
    gaps: profile::Gaps,
}

impl Engine {
    /// An engine that has seen nothing. Its tables hash with a known seed, so that the same input gives the same output
    /// even where tables are full; see [`Engine::with_seed`].
    pub fn new(settings: &Settings, network: &Network) -> Engine {
        Engine::with_seed(settings, network, 0)
    }

    /// The same with a seed of its own, which snapshots keep: for a service that whoever sends packets could slow down
    /// with addresses that collide, if the seed were known. While no table is full, findings do not depend on it.
    pub fn with_seed(settings: &Settings, network: &Network, hash_seed: u64) -> Engine {
        let caps = settings.tables;
        let state = State {
            version: SNAPSHOT_VERSION,
            hash_seed,
            statistics: Statistics { first: EventTime(u32::MAX), ..Statistics::default() },
            interfaces: Vec::new(),
            intermediaries: BTreeSet::new(),
            gateways: BTreeMap::new(),
            panes: VecDeque::new(),
            newest: EventTime(0),
            ahead: Ahead::default(),
            lag: 0,
            longest: 0,
            closed_until: EventTime(0),
            internal: Table::new(caps.internal_hosts),
            external: Table::new(caps.external_hosts),
            pairs: Table::new(caps.pairs),
            inherited: Vec::new(),
            channels: Table::new(caps.channels),
            internal_suspects: Table::new(caps.internal_suspects),
            external_suspects: Table::new(caps.external_suspects),
            besieged: Table::new(caps.besieged),
            sweepers: Table::new(caps.sweepers),
            habits: Table::new(caps.habits),
            internal_logins: Table::new(caps.internal_logins),
            external_logins: Table::new(caps.external_logins),
            uploads: Table::new(caps.uploads),
            owners: Owners::default(),
            strangers: Strangers::default(),
            explanations: Explanations::new(),
            tor: BTreeMap::new(),
            feature_window: EventTime(0),
            features: Table::new(u32::MAX),
            baselines: Map::default(),
        };
        Engine::with(settings, network, state)
    }

    fn with(settings: &Settings, network: &Network, state: State) -> Engine {
        Engine {
            window: u32::try_from(settings.window.as_secs()).unwrap_or(60).clamp(1, WINDOW_SECONDS),
            settings: settings.clone(),
            network: network.clone(),
            lists: Arc::default(),
            seed: foldhash::fast::FixedState::with_seed(state.hash_seed),
            held: held(&state.sweepers),
            state,
            decided_until: EventTime(0),
            candidates: None,
            conversations: Vec::new(),
            spare: Vec::new(),
            gaps: profile::Gaps::default(),
        }
    }

    /// Keeps every look at a channel from here on, until it is [taken](Self::take_candidates).
    pub fn keep_candidates(&mut self) {
        self.candidates.get_or_insert_default();
    }

    /// The looks at channels since they were last taken.
    pub fn take_candidates(&mut self) -> Vec<Candidate> {
        self.candidates.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes new lists into use, for the windows that close from here on.
    pub fn set_lists(&mut self, lists: Arc<intel::Lists>) {
        self.lists = lists;
    }

    /// Learns the names behind interface numbers.
    pub fn name_interfaces(&mut self, interfaces: &[Interface]) {
        for interface in interfaces {
            if self.state.interfaces.last().is_none_or(|last| last.id < interface.id) {
                self.state.interfaces.push(interface.clone());
            }
        }
    }

    /// Folds records, in any order within the lateness.
    pub fn observe(&mut self, records: &[FlowRecord]) {
        self.make_room();
        let mut ahead = Vec::with_capacity(AHEAD);
        let mut at = LATE;
        let mut span = 0..0;
        let (mut limit, mut reached_at) = (self.believed_until(), self.state.ahead.reached_at());
        for (n, record) in records.iter().enumerate() {
            if record.end.0 > limit {
                limit = self.believed_until();
            }
            if record.end.0 > limit {
                // What is confirmed thereby may open windows, and so move this one.
                fold(&mut self.state.panes, at, &mut ahead);
                self.set_aside(record, n as u64);
                (at, span, limit) = (LATE, 0..0, self.believed_until());
                reached_at = self.state.ahead.reached_at();
                continue;
            }
            if !span.contains(&record.start.0) {
                fold(&mut self.state.panes, at, &mut ahead);
                let window = record.start.window(self.window);
                at = if window < self.state.closed_until { LATE } else { self.pane_of(window) };
                span = window.0..window.0.saturating_add(self.window);
            }
            if at == LATE {
                self.state.statistics.late += 1;
                continue;
            }
            self.state.newest = self.state.newest.max(record.end);
            self.state.longest = self.state.longest.max(record.end.since(record.start));
            let statistics = &mut self.state.statistics;
            statistics.first = statistics.first.min(record.start);
            ahead.push(self.state.panes[at].prepare(&self.seed, record));
            if ahead.len() == AHEAD {
                fold(&mut self.state.panes, at, &mut ahead);
            }
            if record.end >= reached_at {
                // What is no longer ahead may open windows, and so move this one.
                fold(&mut self.state.panes, at, &mut ahead);
                let observed = self.state.statistics.records + n as u64 + 1;
                let reached = self.state.ahead.reached(self.state.newest, observed);
                self.put(&reached);
                (at, span, reached_at) = (LATE, 0..0, self.state.ahead.reached_at());
            }
        }
        fold(&mut self.state.panes, at, &mut ahead);
        let statistics = &mut self.state.statistics;
        statistics.records += records.len() as u64;
        statistics.last = self.state.newest;
    }

    /// Up to when a record moves event time on by itself; nothing does before the first are confirmed.
    fn believed_until(&self) -> u32 {
        if self.state.newest == EventTime(0) { 0 } else { self.state.newest.plus(ahead::JUMP).0 }
    }

    /// Keeps a record that is far ahead of the newest until others confirm it. `n` of the batch come before it.
    #[cold]
    fn set_aside(&mut self, record: &FlowRecord, n: u64) {
        let (observed, interfaces) = (self.state.statistics.records + n, self.state.interfaces.len());
        let confirmed = self.state.ahead.add(record, observed, interfaces);
        self.put(&confirmed);
    }

    /// Silence, or the end, confirms what nothing speaks against.
    fn settle(&mut self) {
        let confirmed = self.state.ahead.settle(self.state.newest, self.state.statistics.records);
        self.put(&confirmed);
        self.state.statistics.last = self.state.newest;
    }

    /// Folds records that were set aside.
    fn put(&mut self, confirmed: &[FlowRecord]) {
        for record in confirmed {
            let window = record.start.window(self.window);
            if window < self.state.closed_until {
                self.state.statistics.late += 1;
                continue;
            }
            let at = self.pane_of(window);
            self.state.newest = self.state.newest.max(record.end);
            self.state.longest = self.state.longest.max(record.end.since(record.start));
            self.state.statistics.first = self.state.statistics.first.min(record.start);
            let prepared = self.state.panes[at].prepare(&self.seed, record);
            fold(&mut self.state.panes, at, &mut vec![prepared]);
        }
    }

    /// Before the open windows are full, whoever crowds them gets no more room: a hundredth of it is enough for any rule.
    /// Closing a window early would tear conversations apart, and every half of one would look like a failure.
    fn make_room(&mut self) {
        let cap = self.settings.tables.conversations;
        if self.open_conversations() >= cap as usize / 4 * 3 {
            for pane in &mut self.state.panes {
                pane.close_to_crowds(cap / 100);
            }
        }
    }

    fn open_conversations(&self) -> usize {
        self.state.panes.iter().map(|pane| pane.views.len()).sum()
    }

    /// The index of an open window's pane.
    #[cold]
    fn pane_of(&mut self, window: EventTime) -> usize {
        let at = self.state.panes.partition_point(|pane| pane.start < window);
        if self.state.panes.get(at).is_none_or(|pane| pane.start != window) {
            let mut pane = self.spare.pop().unwrap_or_default();
            pane.start = window;
            self.state.panes.insert(at, pane);
        }
        at
    }

    /// Notes where the log says nothing.
    pub fn note_blindness(&mut self, blind: &[Blindness]) {
        for stretch in blind {
            let seconds = u64::from(stretch.end.since(stretch.start)) + 1;
            match stretch.kind {
                BlindnessKind::NoData => self.state.statistics.no_data_seconds += seconds,
                BlindnessKind::SkipData => self.state.statistics.skipped_seconds += seconds,
            }
            self.gaps.note(stretch, seconds);
        }
    }

    /// Everything before this has been judged.
    pub fn watermark(&self) -> EventTime {
        // One record that claims to span days must not hold all windows open: an aggregation interval is 600 s at most.
        let lateness = u32::try_from(self.settings.lateness.as_secs()).unwrap_or(0) + self.state.longest.min(600);
        self.state.newest.minus(self.state.lag).minus(lateness)
    }

    /// Notes how far the source of the records has been read: nothing that follows starts before `reached`, and windows from there on
    /// stay open, however new the records are that were observed. `None` where the source knows nothing of this. Holds until it is
    /// noted again; while nothing comes, it moves on with [`Engine::advance_to`].
    pub fn note_reached(&mut self, reached: Option<EventTime>) {
        self.state.lag = reached.map_or(0, |reached| self.state.newest.since(reached));
    }

    /// Closes every window that the watermark has passed: the newest record, or how far the source was read, minus lateness.
    pub fn advance(&mut self, out: &mut Output) {
        let watermark = self.watermark();
        while let Some(start) = self.state.panes.front().map(|pane| pane.start)
            && start.plus(self.window) <= watermark
        {
            self.decide_sweeps(start, out);
            self.close_oldest(out);
        }
        self.decide_sweeps(watermark, out);
        // A host's window ends with event time as well, and not only with the next window that has records.
        self.open_feature_window(watermark.window(self.window), out);
        while self.open_conversations() > self.settings.tables.conversations as usize {
            self.state.statistics.early_closes += 1;
            self.close_oldest(out);
        }
    }

    /// Moves the watermark on without records, for a shard that has fallen silent.
    pub fn advance_to(&mut self, newest: EventTime, out: &mut Output) {
        self.settle();
        self.state.newest = self.state.newest.max(newest);
        self.advance(out);
    }

    /// Closes all windows: the input has ended.
    pub fn finish(&mut self, out: &mut Output) {
        self.settle();
        self.state.ahead.give_up();
        while !self.state.panes.is_empty() {
            self.close_oldest(out);
        }
        let now = self.state.closed_until;
        self.judge_sweeps(&Touched::default(), now, now.minus(self.window), true, out);
        self.close_features(out);
    }

    /// Judges open windows without changing anything: what cannot wait is told now, marked provisional, and said again
    /// with full knowledge when the window closes. Only what needs no answer to be awaited is judged: floods, and
    /// scans that were refused.
    pub fn peek(&mut self, out: &mut Output) {
        for at in 0..self.state.panes.len() {
            let pane = &self.state.panes[at];
            if pane.views.len() == pane.peeked as usize || pane.views.len() < 100 {
                continue;
            }
            let mut conversations = std::mem::take(&mut self.conversations);
            conversations.clear();
            let mut duplicates = 0;
            let name = |id| name_of(&self.state.interfaces, id);
            let ours = |address| is_ours(&self.network, &self.state.owners, address);
            conversation::conversations(&pane.views, ours, name, &mut conversations, &mut duplicates);
            // Whose it is that a gateway passes on is known when the window is over.
            let gateway = |address| self.state.gateways.get(&address).is_some_and(translation::Gateway::is_certain);
            if !self.state.gateways.is_empty() {
                conversations.retain(|c| !gateway(c.opener));
            }
            let start = pane.start;
            let from = out.findings.len();
            let hot = self.hot(&conversations);
            self.judge_floods(&conversations, &hot, start, out);
            self.peek_scans(&conversations, start, out);
            for finding in &mut out.findings[from..] {
                finding.provisional = true;
            }
            self.conversations = conversations;
            let pane = &mut self.state.panes[at];
            pane.peeked = pane.views.len() as u32;
        }
    }

    fn peek_scans(&self, conversations: &[Conversation], window: EventTime, out: &mut Output) {
        let mut suspects: BTreeMap<Address, Suspect> = BTreeMap::new();
        for c in conversations {
            if c.outcome == conversation::Outcome::Refused && Suspect::counts(c) {
                suspects.entry(c.opener).or_insert_with(|| Suspect::new(c.opener, c.start())).note(c);
            }
        }
        for (source, mut suspect) in suspects {
            let ours = self.is_ours(source);
            let judgement = suspect.judge(&self.settings.port_scan, ours, self.state.newest);
            if judgement.passed {
                let settings = &self.settings.port_scan;
                let mut finding = suspect.finding(&judgement, settings, ours, window, self.window);
                self.sign(&mut finding, suspect.interface);
                out.findings.push(finding);
            }
        }
    }

    fn close_oldest(&mut self, out: &mut Output) {
        let Some(mut pane) = self.state.panes.pop_front() else { return };
        let window = pane.start;
        merge::let_go(&mut self.state.inherited, self.state.pairs.len(), self.settings.tables.pairs, window);
        self.open_feature_window(window, out);
        let mut conversations = std::mem::take(&mut self.conversations);
        conversations.clear();
        let mut duplicates = 0;
        let name = |id| name_of(&self.state.interfaces, id);
        let ours = |address| is_ours(&self.network, &self.state.owners, address);
        conversation::conversations(&pane.views, ours, name, &mut conversations, &mut duplicates);
        self.state.statistics.duplicates += duplicates;
        self.state.statistics.repeated += pane.repeated;
        self.learn_owners(&mut conversations, window);
        let translators = pane.views.iter().filter(|view| view.is_translated()).map(|view| view.interface);
        self.state.intermediaries.extend(translators);
        self.state.statistics.left_out += pane.left_out;
        let from = out.findings.len();
        self.judge_window(&mut conversations, window, out);
        sort(&mut out.findings[from..]);
        self.state.statistics.conversations += conversations.len() as u64;
        self.state.statistics.windows += 1;
        self.conversations = conversations;
        self.state.closed_until = self.state.closed_until.max(window.plus(self.window));
        pane.clear();
        if self.spare.len() < 4 {
            self.spare.push(pane);
        }
    }

    /// A window in three steps, each over all of its conversations, so that their order within the window cannot matter:
    /// hosts, then pairs, then who failed at what. Each step knows what the one before has learned of the whole window.
    fn judge_window(&mut self, conversations: &mut Vec<Conversation>, window: EventTime, out: &mut Output) {
        self.drop_translated(conversations, window);
        let hot = self.note_hosts(conversations, window);
        let flooded = self.judge_floods(conversations, &hot, window, out);
        let mut touched = Touched::default();
        let (mut failures, mut answers, mut logins, mut uploads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (at, c) in conversations.iter().enumerate() {
            if at % AHEAD == 0 {
                self.approach_pairs(&conversations[at..conversations.len().min(at + AHEAD)]);
            }
            if !flooded.is_empty() && flooded.contains(&c.responder) {
                continue;
            }
            let first_answer = self.note_pair(c, window, &mut touched);
            if Suspect::counts(c) {
                if !self.goes_on(c) && !self.is_among_peers(c) {
                    failures.push(c);
                }
            } else if first_answer || !c.ours && !c.failed() {
                answers.push(c);
            }
            if let Some(side) = self.settings.brute_force.side(c) {
                logins.push((side, c));
            }
            if exfiltration::counts(c) {
                uploads.push(c);
            }
        }
        drop_error_messages(&mut failures, conversations);
        // In an order of their own, since a source's list of failures may fill up.
        failures.sort_unstable_by_key(|c| (c.start(), c.opener, c.responder, c.port, c.protocol, c.opener_port));
        for c in failures {
            self.note_failure(c, &mut touched);
        }
        // What answered after all is taken back when all failures are known.
        for c in answers {
            let suspects = if c.ours { &mut self.state.internal_suspects } else { &mut self.state.external_suspects };
            if let Some(suspect) = suspects.get_mut(&self.seed, c.opener) {
                suspect.note_success(c);
            }
        }
        touched.settle();
        let now = window.plus(self.window);
        touched.scanning = self.judge_scans(&touched, now, window, out);
        self.judge_sweeps(&touched, now, window, false, out);
        self.judge_logins(logins, now, window, out);
        self.judge_uploads(uploads, window, out);
        // First, since a session with a relay is neither mining nor a channel of somebody's own.
        self.judge_tor(&touched, now, window, out);
        self.judge_channels(&touched, now, window, out);
    }

    /// Learns which addresses own the interfaces that log them, from conversations of which no end is known to be ours, and counts
    /// those that stay without.
    fn learn_owners(&mut self, conversations: &mut [Conversation], window: EventTime) {
        let (network, state) = (&self.network, &mut self.state);
        let supposed = |owners: &Owners, address: Address, ours: bool| !ours || owners.is_uncertain(address);
        let mut teaching: Vec<&Conversation> = Vec::new();
        for c in conversations.iter() {
            let is_learned = |address, ours: bool| ours && !network.is_internal(address);
            let undecided = !state.owners.is_empty()
                && (is_learned(c.opener, c.ours) || is_learned(c.responder, c.theirs))
                && supposed(&state.owners, c.opener, c.ours)
                && supposed(&state.owners, c.responder, c.theirs);
            if !c.ours && !c.theirs || undecided {
                teaching.push(c);
            }
        }
        if teaching.is_empty() {
            return;
        }
        if network.learns() {
            state.owners.note(teaching.into_iter(), window);
        }
        let changed = state.owners.settle(|address| network.is_external(address));
        if !changed.is_empty() {
            let settle = |address: Address, ours: &mut bool| {
                if changed.contains(&address) {
                    *ours = is_ours(network, &state.owners, address);
                }
            };
            for c in conversations.iter_mut() {
                settle(c.opener, &mut c.ours);
                settle(c.responder, &mut c.theirs);
            }
        }
        for c in conversations.iter().filter(|c| !c.ours && !c.theirs && owner::is_between_hosts(c)) {
            state.statistics.strangers += 1;
            state.strangers.note(c.opener, c.responder);
        }
        state.strangers.make_room();
    }

    /// Whether an address is ours, by the settings or by what was learned.
    fn is_ours(&self, address: Address) -> bool {
        is_ours(&self.network, &self.state.owners, address)
    }

    /// Whether an attempt without an answer is a piece of a session that was opened before: it comes from, or goes to, a port
    /// at which its host has answered others.
    fn goes_on(&self, c: &Conversation) -> bool {
        conversation::may_go_on(c) && {
            let (state, seed) = (&self.state, &self.seed);
            let host = |address: Address, ours: bool| {
                let table = if ours { &state.internal } else { &state.external };
                table.get(seed, address)
            };
            host(c.opener, c.ours).is_some_and(|host| host.serves(c.opener_port))
                || host(c.responder, c.theirs).is_some_and(|host| host.serves(c.port))
        }
    }

    /// Whether a host of ours looks for a neighbour at a port at which it has answered others itself: members of a cluster go on
    /// calling those that have left it. Of services by which hosts are administered that says nothing, since every host has them.
    fn is_among_peers(&self, c: &Conversation) -> bool {
        c.ours
            && (c.theirs || c.responder.is_private())
            && !self.settings.port_scan.admin_ports.contains(&c.port)
            && self.state.internal.get(&self.seed, c.opener).is_some_and(|host| host.serves(c.port))
    }

    /// A NAT gateway's own leg of a conversation repeats what its client's leg says. Where packet addresses are logged, an
    /// interface that logs other addresses than its own is an intermediary, and the plain conversations with services
    /// that it was just seen to translate for are the translated ones; where they are not, the repetition itself tells, and who
    /// is behind the gateway ([`translation`]).
    ///
    /// An interface with several addresses (a node and its pods) also logs others than its own: what the node itself
    /// does with services that no pod of its uses stays in sight.
    fn drop_translated(&mut self, conversations: &mut Vec<Conversation>, window: EventTime) {
        let translated = |c: &Conversation| Marks(c.sent.marks | c.received.marks).has(Marks::INTERMEDIARY);
        let service = |c: &Conversation| (c.responder, c.port, c.protocol);
        let state = &mut self.state;
        for gateway in translation::gateways(conversations) {
            state.gateways.entry(gateway).or_default().note(window);
        }
        for gateway in translation::relays(conversations) {
            state.gateways.entry(gateway).or_default().note_relaying(window);
        }
        state.gateways.retain(|_, gateway| !gateway.is_over(window));
        if state.intermediaries.is_empty() && state.gateways.is_empty() {
            return;
        }
        let services: Set<(Address, u16, u8)> = conversations.iter().filter(|c| translated(c)).map(service).collect();
        let before = conversations.len();
        let (intermediaries, gateways) = (&state.intermediaries, &state.gateways);
        let gateway = |address: Address| gateways.get(&address).is_some_and(translation::Gateway::is_certain);
        let repeats = |c: &Conversation| {
            !services.is_empty() && services.contains(&service(c)) && intermediaries.contains(&c.interface)
        };
        conversations.retain(|c| translated(c) || !repeats(c));
        if !gateways.is_empty() {
            translation::attribute(conversations, gateway, translated);
        }
        state.statistics.duplicates += (before - conversations.len()) as u64;
    }

    /// Updates what is known of addresses, and says which of them were asked so much that a flood is possible.
    fn note_hosts(&mut self, conversations: &[Conversation], window: EventTime) -> Set<Address> {
        let mut hot = Set::default();
        let state = &mut self.state;
        for (at, c) in conversations.iter().enumerate() {
            if at % AHEAD == 0 {
                for c in conversations[at..].iter().take(AHEAD) {
                    if c.ours {
                        state.internal.approach(&self.seed, c.opener);
                    }
                    let table = if c.theirs { &state.internal } else { &state.external };
                    table.approach(&self.seed, c.responder);
                }
            }
            let (ours, theirs, start) = (c.ours, c.theirs, c.start());
            // An outsider that is never called is nobody's service; whoever floods us with spoofed addresses finds no
            // room here to fill.
            let bytes = c.sent.bytes + c.received.bytes;
            if ours {
                let opener = state.internal.entry(&self.seed, c.opener, || Host::new(c.opener, start));
                opener.touch(start);
                opener.note_talk(c.responder, bytes);
            }
            state.explanations.note_seen(c.opener, c.responder, ours, start, bytes);
            state.explanations.note_seen(c.responder, c.opener, theirs, start, bytes);
            // Whoever never spoke is nobody's host, though the address be ours: a scan of empty space makes no hosts.
            let spoke = c.received.seen() || theirs && state.internal.get(&self.seed, c.responder).is_some();
            let table = if theirs && spoke { &mut state.internal } else { &mut state.external };
            let responder = table.entry(&self.seed, c.responder, || Host::new(c.responder, start));
            responder.touch(start);
            responder.note_talk(c.opener, bytes);
            if c.protocol == protocol::TCP && c.outcome == conversation::Outcome::Answered {
                responder.note_served(c.port);
            }
            if ours {
                responder.note_client(c.opener);
            }
            let (asked, packets) = responder.note_asked(window, c.sent.packets);
            if ddos::is_hot(&self.settings.ddos, asked, packets) {
                hot.insert(c.responder);
            }
        }
        hot
    }

    /// The same of conversations that are only looked at.
    fn hot(&self, conversations: &[Conversation]) -> Set<Address> {
        let mut totals: Map<Address, (u32, u64)> = Map::default();
        for c in conversations {
            let total = totals.entry(c.responder).or_default();
            *total = (total.0 + 1, total.1 + u64::from(c.sent.packets));
        }
        let hot = |total: &(u32, u64)| ddos::is_hot(&self.settings.ddos, total.0, total.1);
        totals.iter().filter(|(_, total)| hot(total)).map(|(&address, _)| address).collect()
    }

    fn judge_floods(
        &mut self,
        conversations: &[Conversation],
        hot: &Set<Address>,
        window: EventTime,
        out: &mut Output,
    ) -> Set<Address> {
        let mut flooded = Set::default();
        if hot.is_empty() {
            return flooded;
        }
        let settings = self.settings.ddos.clone();
        for (address, mut victim) in ddos::collect(conversations, hot, &settings) {
            let ours = self.is_ours(address);
            let judgement = ddos::judge(&victim, ours, &settings, self.window);
            self.explain(address, None, Threat::Ddos, window, &judgement);
            if judgement.passed {
                flooded.insert(address);
                if let Some(busy) = ddos::Busy::of(&judgement.method, &settings) {
                    victim.name_busy_sources(address, conversations, busy);
                }
                let mut finding = ddos::finding(address, &victim, &judgement, ours, window, self.window);
                self.sign(&mut finding, victim.interface());
                out.findings.push(finding);
            }
        }
        flooded
    }

    /// Asks for the memory of what conversations are noted in next.
    fn approach_pairs(&self, next: &[Conversation]) {
        let (state, seed) = (&self.state, &self.seed);
        let mut known = [0; AHEAD];
        for (known, c) in known.iter_mut().zip(next) {
            if c.ours && is_contact(c) {
                *known = fingerprint(seed, c);
                state.pairs.approach(seed, *known);
            }
            if c.ours {
                state.features.approach(seed, c.opener);
            }
            if c.theirs {
                state.features.approach(seed, c.responder);
            }
        }
        self.approach_channels(known.into_iter().filter(|&fingerprint| fingerprint != 0));
    }

    /// Asks for the memory of channels, and for that of their latest sessions.
    fn approach_channels(&self, next: impl Iterator<Item = u64> + Clone) {
        let (channels, seed) = (&self.state.channels, &self.seed);
        next.clone().for_each(|fingerprint| channels.approach(seed, fingerprint));
        for channel in next.filter_map(|fingerprint| channels.get(seed, fingerprint)) {
            if let Some(session) = channel.sessions.last() {
                pane::prefetch(session);
            }
        }
    }

    /// Updates what is known of a host of ours and the service it used, and the features of both ends. Says whether this
    /// is the first answer that the host got there.
    fn note_pair(&mut self, c: &Conversation, window: EventTime, touched: &mut Touched) -> bool {
        let (ours, theirs) = (c.ours, c.theirs);
        let (mut new, mut first_answer) = (false, false);
        if ours && is_contact(c) {
            let (state, seed) = (&mut self.state, &self.seed);
            let fingerprint = fingerprint(seed, c);
            if !state.inherited.is_empty() {
                merge::meet_again(&mut state.inherited, &mut state.pairs, seed, c);
            }
            let (pair, inserted) = state.pairs.entry_or_insert(seed, fingerprint, || Pair::new(fingerprint, c, window));
            new = inserted;
            let settings = &self.settings.c2_beacon;
            let outside = !theirs && protocol_has_calls(c.protocol) && !c.responder.is_private();
            if inserted && outside && !settings.benign_ports.contains(&c.port) {
                let habits = state.habits.entry(seed, c.opener, || Habits::new(c.opener));
                habits.note_contact(window, c.responder, c.port, c.protocol);
            }
            let may_be_worth = pair.promoted
                || !inserted
                    && (!theirs || settings.proxy_ports.contains(&c.port))
                    && !settings.benign_ports.contains(&c.port);
            // Asked last, since it costs a look-up.
            let common = || {
                let hosts = if theirs { &state.internal } else { &state.external };
                let clients = hosts.get(seed, c.responder).map_or(0.0, Host::clients);
                state.internal.len() >= settings.prevalence_hosts as usize
                    && clients > settings.prevalence_max * state.internal.len() as f64
            };
            if may_be_worth && (pair.promoted || !common()) {
                let channel = state.channels.entry(seed, fingerprint, || Channel::promote(pair, c));
                pair.promoted = true;
                if channel.add(c)
                    && outside
                    && let Some(habits) = state.habits.get_mut(seed, c.opener)
                {
                    habits.note_session(window);
                }
                channel.aws_service |= c.sent.has(Marks::TO_AWS_SERVICE) || c.received.has(Marks::FROM_AWS_SERVICE);
                touched.channels.push(fingerprint);
            }
            if !inserted {
                pair.add(c, window);
            }
            first_answer = pair.take_first_answer(window);
            if c.protocol == protocol::TCP && self.settings.port_scan.admin_ports.contains(&c.port) {
                let key = (c.opener, c.port);
                state.sweepers.entry(seed, key, || Sweeper::new(c.opener, c.port, window)).note(c);
                touched.sweepers.push(key);
            }
            if let Some(kind) = tor::kind(c, &self.lists, &self.settings.tor) {
                state.tor.entry(c.opener).or_default().note(c, kind);
                touched.tor.push(c.opener);
            }
        }
        self.note_features(c, new);
        first_answer
    }

    /// Notes a first contact that failed.
    fn note_failure(&mut self, c: &Conversation, touched: &mut Touched) {
        let ours = c.ours;
        let (state, seed) = (&mut self.state, &self.seed);
        if ours && is_contact(c) && state.pairs.get(seed, fingerprint(seed, c)).is_some_and(Pair::answered) {
            return;
        }
        let suspects = if ours { &mut state.internal_suspects } else { &mut state.external_suspects };
        suspects.entry(seed, c.opener, || Suspect::new(c.opener, c.start())).note(c);
        touched.suspects.push((ours, c.opener));
    }

    fn note_features(&mut self, c: &Conversation, new: bool) {
        let (ours, theirs) = (c.ours, c.theirs);
        let cap = self.settings.tables.baselines as usize;
        let (state, seed) = (&mut self.state, &self.seed);
        let room = state.features.len() < cap;
        if ours && let Some(window) = state.features.entry_if(seed, c.opener, || room, || OpenWindow::of(c.opener)) {
            window.does.opened(&Opened {
                peer_hash: host::mix(c.responder),
                port: c.port,
                sent: c.sent.bytes,
                received: c.received.bytes,
                packets: c.sent.packets,
                failed: c.failed(),
                new,
                internal: theirs,
                start: c.start(),
            });
        }
        // An address that never spoke has no behaviour.
        let may_enter = || room && (c.received.seen() || state.baselines.contains_key(&c.responder));
        let new = || OpenWindow::of(c.responder);
        if theirs
            && !c.responder.is_group()
            && let Some(window) = state.features.entry_if(seed, c.responder, may_enter, new)
        {
            window.does.accepted(host::mix(c.opener), c.received.bytes, c.sent.bytes, c.failed(), ours);
        }
    }

    /// Closes the feature window when the first conversation window beyond it closes.
    fn open_feature_window(&mut self, window: EventTime, out: &mut Output) {
        let start = window.window(WINDOW_SECONDS);
        if start > self.state.feature_window {
            self.close_features(out);
            self.state.feature_window = start;
        }
    }

    fn close_features(&mut self, out: &mut Output) {
        let window = self.state.feature_window;
        let state = &mut self.state;
        let mut windows: Vec<&OpenWindow> = state.features.iter().collect();
        windows.sort_unstable_by_key(|open| open.host);
        for open in windows {
            let baseline = state.baselines.entry(open.host).or_default();
            out.vectors.push(baseline.vector(open.host, window, &open.does));
        }
        state.features.clear();
        let cap = self.settings.tables.baselines as usize;
        if self.state.baselines.len() > cap {
            let mut ages: Vec<(EventTime, Address)> =
                self.state.baselines.iter().map(|(&a, b)| (b.last_seen, a)).collect();
            ages.sort_unstable();
            for (_, address) in &ages[..ages.len() - cap] {
                self.state.baselines.remove(address);
            }
            *self.state.statistics.evictions.entry("baselines".into()).or_default() += (ages.len() - cap) as u64;
        }
    }

    /// Judges whoever failed, and says which hosts of ours scan many hosts.
    fn judge_scans(
        &mut self,
        touched: &Touched,
        now: EventTime,
        window: EventTime,
        out: &mut Output,
    ) -> BTreeSet<Address> {
        let mut scanning = BTreeSet::new();
        let settings = self.settings.port_scan.clone();
        self.judge_sieges(&settings, touched, now, window, out);
        for &(ours, source) in &touched.suspects {
            let asked = self.state.explanations.is_asked(source);
            let table = if ours { &mut self.state.internal_suspects } else { &mut self.state.external_suspects };
            let Some(suspect) = table.get_mut(&self.seed, source) else { continue };
            // A source is looked at again when it has failed anew; below a handful of failures no rule can hold.
            if suspect.fresh == 0 || suspect.known() < settings.least() {
                if suspect.fresh > 0 && (asked || ours && suspect.known() >= FEW_FAILURES) {
                    // For whoever asks; on a copy, since judging forgets what is old.
                    let judgement = suspect.clone().judge(&settings, ours, now);
                    self.explain(source, None, Threat::PortScan, window, &judgement);
                }
                continue;
            }
            let judgement = suspect.judge(&settings, ours, now);
            let finding = judgement
                .passed
                .then(|| (suspect.finding(&judgement, &settings, ours, window, self.window), suspect.interface));
            self.explain(source, None, Threat::PortScan, window, &judgement);
            if let Some((mut finding, interface)) = finding {
                if ours && matches!(judgement.method.as_str(), "horizontal" | "block") {
                    scanning.insert(source);
                }
                self.sign(&mut finding, interface);
                out.findings.push(finding);
            }
        }
        scanning
    }

    /// Judges the sweeps whose time to be held back is over by `until`, each at the end of the window in which it ran out: when
    /// that is told must not depend on when the next record comes.
    fn decide_sweeps(&mut self, until: EventTime, out: &mut Output) {
        // Times are over at ends of windows alone, so that a look a window is enough, however small the batches are.
        let until = until.window(self.window);
        if until <= self.decided_until {
            return;
        }
        self.decided_until = until;
        let (hold, window) = (self.settings.port_scan.sweep_hold, self.window);
        let sweepers = self.held.iter().filter_map(|&key| self.state.sweepers.get(&self.seed, key));
        let held = sweepers.filter_map(|sweeper| sweeper.held_until(hold));
        let ends = held.map(|over| over.plus(window - 1).window(window));
        let due: BTreeSet<EventTime> = ends.filter(|end| *end <= until && *end > self.state.closed_until).collect();
        for end in due {
            self.judge_sweeps(&Touched::default(), end, end.minus(window), false, out);
        }
    }

    /// Judges hosts of ours that use an administrative port with many others, and again those that were held back. Where most of
    /// a sweep fails, the scan is told already.
    fn judge_sweeps(&mut self, touched: &Touched, now: EventTime, window: EventTime, ended: bool, out: &mut Output) {
        let mut keys: Vec<(Address, u16)> = touched.sweepers.iter().chain(&self.held).copied().collect();
        keys.sort_unstable();
        keys.dedup();
        let since = self.state.statistics.first;
        for key in keys {
            let Some(sweeper) = self.state.sweepers.get_mut(&self.seed, key) else {
                self.held.remove(&key);
                continue;
            };
            let settings = &self.settings.port_scan;
            let judgement = sweeper.judge(settings, since, now, ended);
            let scans = touched.scanning.contains(&key.0);
            if scans {
                sweeper.note_scan();
            }
            let finding = (judgement.passed && !scans)
                .then(|| (sweeper.finding(&judgement, settings, window, self.window), sweeper.interface()));
            if sweeper.is_held() {
                self.held.insert(key);
            } else {
                self.held.remove(&key);
            }
            if scans {
                continue;
            }
            self.explain(key.0, None, Threat::PortScan, window, &judgement);
            if let Some((mut finding, interface)) = finding {
                self.sign(&mut finding, interface);
                out.findings.push(finding);
            }
        }
    }

    /// Notes a window's log-ins, and judges whoever made them, and hosts of ours at which many outsiders did.
    fn judge_logins(
        &mut self,
        mut logins: Vec<(Side, &Conversation)>,
        now: EventTime,
        window: EventTime,
        out: &mut Output,
    ) {
        logins.sort_unstable_by_key(|(side, c)| (c.start(), *side, c.opener, c.responder, c.port, c.opener_port));
        let mut touched = BTreeSet::new();
        for (side, c) in logins {
            let key = (side, c.opener, c.port);
            let target = (Side::Target, c.responder, c.port);
            let (state, seed, inbound) = (&mut self.state, &self.seed, side == Side::Inbound);
            let table = if inbound { &mut state.external_logins } else { &mut state.internal_logins };
            table.entry(seed, key, || Logins::new(side, c.opener, c.port, window)).note(c);
            touched.insert(key);
            if inbound && c.theirs && !c.failed() {
                let new = || Logins::new(Side::Target, c.responder, c.port, window);
                state.internal_logins.entry(seed, target, new).note(c);
                touched.insert(target);
            }
        }
        for key in touched {
            let (state, settings) = (&mut self.state, &self.settings.brute_force);
            let table = if key.0 == Side::Inbound { &mut state.external_logins } else { &mut state.internal_logins };
            let Some(logins) = table.get_mut(&self.seed, key) else { continue };
            let Some(judgement) = logins.judge(settings, now) else { continue };
            let finding =
                judgement.passed.then(|| (logins.finding(&judgement, window, self.window), logins.interface()));
            self.explain(key.1, None, Threat::BruteForce, window, &judgement);
            if let Some((mut finding, interface)) = finding {
                self.sign(&mut finding, interface);
                out.findings.push(finding);
            }
        }
    }

    /// Notes what hosts of ours sent outside in a window, and judges them.
    fn judge_uploads(&mut self, mut uploads: Vec<&Conversation>, window: EventTime, out: &mut Output) {
        uploads.sort_unstable_by_key(|c| (c.opener, c.start(), c.responder, c.port, c.opener_port, c.protocol));
        let mut senders = BTreeSet::new();
        for c in uploads {
            let (state, seed) = (&mut self.state, &self.seed);
            let Some(host) = state.internal.get(seed, c.opener) else { continue };
            // A server's answer whose question is of an earlier window.
            if c.protocol == protocol::TCP && host.serves(c.opener_port) {
                continue;
            }
            state.uploads.entry(seed, c.opener, || Uploads::new(c.opener, window)).note(c, host.first_seen);
            senders.insert(c.opener);
        }
        for sender in senders {
            let (state, seed) = (&self.state, &self.seed);
            let (Some(uploads), Some(host)) = (state.uploads.get(seed, sender), state.internal.get(seed, sender))
            else {
                continue;
            };
            let clients = |address| state.external.get(seed, address).map_or(0.0, Host::clients);
            let settings = &self.settings.exfiltration;
            let Some((judgement, story)) = uploads.judge(settings, host.first_seen, window, clients) else { continue };
            let finding = judgement
                .passed
                .then(|| (uploads.finding(&judgement, &story, window, self.window), uploads.interface()));
            self.explain(sender, None, Threat::Exfiltration, window, &judgement);
            if let Some((mut finding, interface)) = finding {
                self.sign(&mut finding, interface);
                out.findings.push(finding);
            }
        }
    }

    /// Judges hosts that several outsiders scan together.
    fn judge_sieges(
        &mut self,
        settings: &port_scan::Settings,
        touched: &Touched,
        now: EventTime,
        window: EventTime,
        out: &mut Output,
    ) {
        let since = now.minus(settings.joint_span.as_secs() as u32);
        let (state, seed) = (&mut self.state, &self.seed);
        let mut targets = BTreeSet::new();
        for &(_, source) in touched.suspects.iter().filter(|(ours, _)| !ours) {
            let suspect = state.external_suspects.get(seed, source).filter(|suspect| suspect.fresh > 0);
            for target in suspect.map_or(Vec::new(), |suspect| suspect.besieges(settings.joint_ports, since)) {
                if is_ours(&self.network, &state.owners, target) {
                    state.besieged.entry(seed, target, || Besieged::new(target, now)).note(source, now);
                    targets.insert(target);
                }
            }
        }
        for target in targets {
            let (state, seed) = (&mut self.state, &self.seed);
            let sources = state.besieged.get_mut(seed, target).map_or(Vec::new(), |besieged| besieged.sources(since));
            let suspects = sources.iter().filter_map(|&source| state.external_suspects.get(seed, source));
            let siege = Siege::of(target, suspects, settings, since);
            let judgement = siege.judge(settings);
            self.explain(target, None, Threat::PortScan, window, &judgement);
            if judgement.passed {
                let mut finding = siege.finding(&judgement, window, self.window);
                self.sign(&mut finding, siege.interface());
                out.findings.push(finding);
            }
        }
    }

    fn judge_channels(&mut self, touched: &Touched, now: EventTime, window: EventTime, out: &mut Output) {
        let channels = self.state.channels.len();
        let mut held: BTreeMap<Address, Vec<Held>> = BTreeMap::new();
        for (at, &fingerprint) in touched.channels.iter().enumerate() {
            if at % AHEAD == 0 {
                self.approach_channels(touched.channels[at..].iter().take(AHEAD).copied());
            }
            let Some(channel) = self.state.channels.get(&self.seed, fingerprint) else { continue };
            if !channel.due(now) {
                continue;
            }
            // How things stood is noted early, and looked at where there may be enough to judge.
            let enough = channel.before.is_none() || channel::may_be_enough(channel, &self.settings.channel);
            let looked_at = enough && channel::is_of_the_kind(channel, &self.settings.c2_beacon.benign_ports);
            let character = looked_at.then(|| self.character(fingerprint)).flatten();
            let Some(channel) = self.state.channels.get(&self.seed, fingerprint) else { continue };
            let internal = self.is_ours(channel.responder);
            let table = if internal { &self.state.internal } else { &self.state.external };
            let responder = table.get(&self.seed, channel.responder);
            let around = beacon::Surroundings {
                clients: responder.map_or(0.0, Host::clients),
                watched_before: responder.map_or(0, |host| host.first_seen.since(self.state.statistics.first)),
                hosts: self.state.internal.len() as f64,
                channels,
                // An address that is not on the internet is a neighbour's, though nobody told us that it is ours.
                internal: internal || channel.responder.is_private(),
            };
            let listed = self.lists.mining_pools.contains(channel.responder, channel.port);
            let hint = match listed {
                true => Hint::List,
                false if self.settings.crypto_mining.ports.contains(&channel.port) => Hint::Port,
                false => Hint::None,
            };
            let prevalence = self.settings.c2_beacon.prevalence_max;
            let mut mining = mining::judge(channel, &around, listed, prevalence, &self.settings.crypto_mining);
            let mut beacon = beacon::judge(channel, &around, &self.settings.c2_beacon);
            for judgement in [&mut mining, &mut beacon].into_iter().flatten().filter(|j| j.passed) {
                if matches!(judgement.method.as_str(), "stratum_shape" | "long_channel" | "paced_session") {
                    let contacts = self.state.tor.get(&channel.opener);
                    judgement.refuse_relay(contacts.is_some_and(|contacts| contacts.explains(channel.responder)));
                    let opener = channel.opener;
                    let held = held.entry(opener).or_insert_with(|| self.sessions_held(opener));
                    let meanwhile = channel.longest().map_or(0, |session| Held::meanwhile(held, session));
                    judgement.refuse_peers(meanwhile, self.settings.c2_beacon.peers);
                } else if beacon::may_be_a_peer(channel, judgement) {
                    judgement.refuse_peers(self.peers_of(channel), self.settings.c2_beacon.peers_tried);
                }
            }
            // An address that hardly one host of ours uses is no vendor's, whatever others do elsewhere.
            let shared = around.clients > self.settings.c2_beacon.rare_clients;
            if let Some(judgement) = beacon.as_mut().filter(|j| j.passed && shared) {
                judgement.refuse_fleet(self.fleet_of(channel), self.settings.c2_beacon.fleet);
            }
            let told_otherwise = [&mining, &beacon].into_iter().flatten().any(|j| j.passed);
            let ports = channel::Ports {
                benign: &self.settings.c2_beacon.benign_ports,
                pushing: &self.settings.crypto_mining.benign_ports,
                thin: &self.settings.c2_beacon.thin_ports,
            };
            let judged = character.and_then(|(host, watched)| {
                channel::judge(channel, &around, &host, watched, &self.settings.channel, &ports)
            });
            let (mut character, mut signal) = judged.map_or((None, false), |j| (Some(j.judgement), j.signal));
            if let Some(judgement) = character.as_mut().filter(|_| signal) {
                let contacts = self.state.tor.get(&channel.opener);
                signal &= judgement.refuse_relay(contacts.is_some_and(|contacts| contacts.explains(channel.responder)));
                signal &= judgement.refuse_kin(channel::kin(channel, self.state.channels.iter()));
            }
            let mut findings = Vec::new();
            // What is no more than a signal is stated as well, and kept back by validation; of a channel that was told, its numbers
            // stay those that told it.
            let untold = channel.told == EventTime(0);
            if let Some(j) = character.as_ref().filter(|j| signal && !told_otherwise && (j.passed || untold)) {
                findings.push(match channel.mined || channel::is_mining(channel, hint.is_clear(channel.port)) {
                    true => mining::finding(channel, j, window, self.window),
                    false => beacon::finding(channel, j, window, self.window),
                });
            }
            let (opener, responder, interface) = (channel.opener, channel.responder, channel.interface);
            // A session that has the shape of mining is not told as a thin channel too.
            let mined = channel.mined || mining.as_ref().is_some_and(|j| j.passed);
            if let Some(j) = mining.as_ref().filter(|j| j.passed) {
                findings.push(mining::finding(channel, j, window, self.window));
            }
            if let Some(j) = beacon
                .as_ref()
                .filter(|j| j.passed && !(mined && matches!(j.method.as_str(), "long_channel" | "paced_session")))
            {
                findings.push(beacon::finding(channel, j, window, self.window));
            }
            let mining_share = nature::mining_share(channel, hint);
            for finding in &mut findings {
                finding.alternatives = nature::alternatives(finding.threat, mining_share);
            }
            // A signal is looked at again as soon as there is more to see.
            let told = !findings.is_empty() && (told_otherwise || character.as_ref().is_some_and(|j| j.passed));
            let judged = [(Threat::CryptoMining, &mining), (Threat::C2Beacon, &beacon), (Threat::C2Beacon, &character)];
            for (threat, judgement) in judged {
                if let Some(judgement) = judgement {
                    self.explain(opener, Some(responder), threat, window, judgement);
                    self.explain(responder, Some(opener), threat, window, judgement);
                }
            }
            if let Some(candidates) = &mut self.candidates
                && (character.is_some() || !findings.is_empty())
                && let Some(channel) = self.state.channels.get(&self.seed, fingerprint)
            {
                let reported_by = findings.iter().map(|finding| finding.method.clone()).collect();
                candidates.push(Candidate::of(channel, now, character.as_ref(), signal, reported_by));
            }
            for mut finding in findings {
                self.sign(&mut finding, interface);
                out.findings.push(finding);
            }
            if let Some(channel) = self.state.channels.get_mut(&self.seed, fingerprint) {
                channel.mined |= mined;
                channel.judged(now, told);
            }
        }
    }

    /// What a channel's host does around it, and for how long it was watched when it first used the service, s. Notes how things
    /// stood when the channel began, where that is not known yet.
    fn character(&mut self, fingerprint: u64) -> Option<(habits::Around, u32)> {
        let (state, seed) = (&mut self.state, &self.seed);
        let channel = state.channels.get_mut(seed, fingerprint)?;
        let habits = state.habits.get_mut(seed, channel.opener)?;
        habits.settle();
        let began = channel.sessions.iter().map(|s| s.start).min().unwrap_or(channel.first_contact);
        let (port, protocol) = (channel.port, channel.protocol);
        let before = *channel.before.get_or_insert_with(|| habits.before(began.window(self.window), port, protocol));
        let host = state.internal.get(seed, channel.opener)?;
        Some((habits.around(&before, port, protocol)?, channel.first_contact.since(host.first_seen)))
    }

    /// How many other hosts call alike, as far as it matters. A walk over the channels, made only for one that is about to be told.
    fn fleet_of(&self, channel: &Channel) -> usize {
        let first_seen = |host| self.state.internal.get(&self.seed, host).map(|host| host.first_seen);
        channel::fleet(channel, self.state.channels.iter(), first_seen, self.settings.c2_beacon.fleet as usize)
    }

    /// With how many others outside its host has tried, answered or not, services of which the port says nothing, while the channel
    /// was in use. A walk over all channels, made only for one that is about to be reported.
    fn peers_of(&self, channel: &Channel) -> usize {
        let span = |c: &Channel| {
            let start = c.sessions.iter().map(|s| s.start).min().unwrap_or_default();
            (start, c.sessions.iter().map(|s| s.end).max().unwrap_or_default())
        };
        let (from, to) = span(channel);
        let others = self.state.channels.iter().filter(|c| {
            let (start, end) = span(c);
            let near = self.is_ours(c.responder) || c.responder.is_private();
            c.opener == channel.opener
                && c.responder != channel.responder
                && start <= to
                && end >= from
                && !near
                && conversation::port_rank(c.port) > 0
        });
        others.map(|c| c.responder).collect::<BTreeSet<_>>().len()
    }

    /// The sessions that a host holds with unknown services outside. A walk over all channels, made only for a host that is about
    /// to be told.
    fn sessions_held(&self, opener: Address) -> Vec<Held> {
        let near = |address: Address| self.is_ours(address) || address.is_private();
        let channels = self.state.channels.iter().filter(|c| c.opener == opener);
        let unknown = channels.filter(|c| beacon::may_be_unknown(c, near(c.responder)));
        unknown.flat_map(|c| c.held().map(|s| Held { with: c.responder, start: s.start, end: s.end })).collect()
    }

    fn judge_tor(&mut self, touched: &Touched, now: EventTime, window: EventTime, out: &mut Output) {
        for &host in &touched.tor {
            let Some(contacts) = self.state.tor.get_mut(&host) else { continue };
            let judgement = contacts.judge(&self.settings.tor, now);
            let finding = (judgement.passed && contacts.news())
                .then(|| (contacts.finding(host, &judgement, window, self.window), contacts.interface()));
            self.explain(host, None, Threat::Tor, window, &judgement);
            if let Some((mut finding, interface)) = finding {
                self.sign(&mut finding, interface);
                out.findings.push(finding);
            }
        }
        // Of hosts of ours alone, and only while they have to do with Tor: that is this table's bound.
        let before = now.minus(self.settings.tor.span.as_secs() as u32);
        self.state.tor.retain(|_, contacts| !contacts.is_over(before));
    }

    /// Puts the names behind an interface number on a finding, and which of its addresses are ours though the settings do not say so.
    fn sign(&self, finding: &mut Finding, interface: InterfaceId) {
        if !self.state.owners.is_empty() {
            let actor = match finding.actor {
                Actor::One(actor) => Some(actor),
                Actor::Many => None,
            };
            let all = finding.targets.iter().map(|target| target.address).chain(actor);
            finding.learned = all.filter(|a| self.is_ours(*a) && !self.network.is_internal(*a)).collect();
        }
        if let Ok(at) = self.state.interfaces.binary_search_by_key(&interface, |i| i.id) {
            let interface = &self.state.interfaces[at];
            finding.interfaces = vec![interface.name.clone()];
            finding.account = interface.account.clone();
        }
    }

    fn explain(
        &mut self,
        address: Address,
        peer: Option<Address>,
        threat: Threat,
        window: EventTime,
        judgement: &Judgement,
    ) {
        let ours = self.is_ours(address);
        let approach = Approach { address, peer, threat, window, judgement, ours };
        self.state.explanations.note(&self.seed, &approach);
    }

    /// Keeps more about an address from here on than is kept of everybody: every peer, and whoever it is.
    pub fn ask(&mut self, address: Address) {
        self.state.explanations.ask(address);
    }

    /// What was seen of an address, and how close detectors came to a finding about it.
    pub fn explained(&self, address: Address) -> Explained {
        let state = &self.state;
        let known = |ours: bool| {
            let table = if ours { &state.internal } else { &state.external };
            table.get(&self.seed, address).map(|host| Seen::of(host, ours))
        };
        state.explanations.explain(&self.seed, address, known(true).or_else(|| known(false)))
    }

    /// All that is held of an address; asking changes nothing. A walk over all channels.
    pub fn profile(&self, address: Address) -> Profile {
        let state = &self.state;
        let host = state.internal.get(&self.seed, address).or_else(|| state.external.get(&self.seed, address));
        Profile {
            explained: self.explained(address),
            clients: host.map(|host| host.clients().round() as u32),
            opens: state.habits.get(&self.seed, address).map(Habits::profile),
            serves: profile::served(address, state.channels.iter()),
            sends: state.uploads.get(&self.seed, address).map(Uploads::profile),
        }
    }

    /// How much of the log could be judged.
    pub fn coverage(&self) -> Coverage {
        let interfaces = &self.state.interfaces;
        let gaps = self.gaps.iter().map(|(id, gap)| match interfaces.binary_search_by_key(&id, |known| known.id) {
            Ok(at) => (interfaces[at].name.clone(), interfaces[at].account.clone(), gap),
            Err(_) => (String::new(), String::new(), gap),
        });
        Coverage { statistics: self.statistics(), interfaces: interfaces.len() as u32, gaps: gaps.collect() }
    }

    /// Counts so far.
    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.state.statistics.clone();
        let state = &self.state;
        let tables = [
            ("internal_hosts", state.internal.len(), state.internal.evicted()),
            ("external_hosts", state.external.len(), state.external.evicted()),
            ("pairs", state.pairs.len() + merge::waiting(&state.inherited), state.pairs.evicted()),
            ("channels", state.channels.len(), state.channels.evicted()),
            ("internal_suspects", state.internal_suspects.len(), state.internal_suspects.evicted()),
            ("external_suspects", state.external_suspects.len(), state.external_suspects.evicted()),
            ("besieged", state.besieged.len(), state.besieged.evicted()),
            ("sweepers", state.sweepers.len(), state.sweepers.evicted()),
            ("habits", state.habits.len(), state.habits.evicted()),
            ("internal_logins", state.internal_logins.len(), state.internal_logins.evicted()),
            ("external_logins", state.external_logins.len(), state.external_logins.evicted()),
            ("uploads", state.uploads.len(), state.uploads.evicted()),
        ];
        for (name, entries, evicted) in tables {
            statistics.entries.insert(name.to_owned(), entries as u64);
            statistics.evictions.insert(name.to_owned(), evicted);
        }
        statistics.entries.insert("baselines".to_owned(), state.baselines.len() as u64);
        let certain = state.gateways.iter().filter(|(_, gateway)| gateway.is_certain());
        statistics.gateways = certain.map(|(&address, _)| address).collect();
        statistics.learned_hosts = state.owners.len() as u64;
        statistics.strange_networks = state.strangers.told().collect();
        if statistics.first == EventTime(u32::MAX) {
            statistics.first = EventTime(0);
        }
        statistics.future = state.ahead.left_out(statistics.records);
        statistics.entries.insert("open_conversations".to_owned(), self.open_conversations() as u64);
        statistics
    }

    /// Interfaces known so far, by ascending id.
    pub fn interfaces(&self) -> &[Interface] {
        &self.state.interfaces
    }

    /// The whole state, to be restored by the same version.
    pub fn snapshot(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.state).expect("the state is plain data without maps of unknown length")
    }

    /// An engine that goes on where [`Engine::snapshot`] was taken, under the settings given here.
    ///
    /// # Errors
    /// The bytes are damaged, or of another version.
    pub fn restore(bytes: &[u8], settings: &Settings, network: &Network) -> Result<Engine, SnapshotError> {
        let mut state: State = postcard::from_bytes(bytes).map_err(|e| SnapshotError(e.to_string()))?;
        if state.version != SNAPSHOT_VERSION {
            return Err(SnapshotError(format!("version {} is not {SNAPSHOT_VERSION}", state.version)));
        }
        let seed = foldhash::fast::FixedState::with_seed(state.hash_seed);
        let caps = settings.tables;
        state.internal.set_cap(caps.internal_hosts);
        state.external.set_cap(caps.external_hosts);
        state.pairs.set_cap(caps.pairs);
        state.channels.set_cap(caps.channels);
        state.internal_suspects.set_cap(caps.internal_suspects);
        state.external_suspects.set_cap(caps.external_suspects);
        state.besieged.set_cap(caps.besieged);
        state.sweepers.set_cap(caps.sweepers);
        state.habits.set_cap(caps.habits);
        state.internal_logins.set_cap(caps.internal_logins);
        state.external_logins.set_cap(caps.external_logins);
        state.uploads.set_cap(caps.uploads);
        state.internal.reindex(&seed);
        state.external.reindex(&seed);
        state.pairs.reindex(&seed);
        state.channels.reindex(&seed);
        state.internal_suspects.reindex(&seed);
        state.external_suspects.reindex(&seed);
        state.besieged.reindex(&seed);
        state.sweepers.reindex(&seed);
        state.habits.reindex(&seed);
        state.internal_logins.reindex(&seed);
        state.external_logins.reindex(&seed);
        state.uploads.reindex(&seed);
        state.features.reindex(&seed);
        state.explanations.reindex(&seed);
        state.inherited.iter_mut().for_each(Inherited::reindex);
        for pane in &mut state.panes {
            pane.reindex(&seed);
        }
        Ok(Engine::with(settings, network, state))
    }
}

/// What a host does in the feature window that is open.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct OpenWindow {
    host: Address,
    does: HostWindow,
}

impl OpenWindow {
    fn of(host: Address) -> OpenWindow {
        OpenWindow { host, does: HostWindow::default() }
    }
}

impl table::Entry for OpenWindow {
    type Key = Address;

    fn key(&self) -> Address {
        self.host
    }

    fn last_seen(&self) -> EventTime {
        // All are of one window, and the table is emptied at its end.
        EventTime(0)
    }
}

/// The index of the pane of a window that has closed: none.
const LATE: usize = usize::MAX;

/// Records that are on their way into a window while memory is fetched: as many loads as a core has under way at once,
/// about.
const AHEAD: usize = 16;

/// Folds records of one window whose memory was asked for.
#[inline]
fn fold(panes: &mut VecDeque<Pane>, at: usize, ahead: &mut Vec<pane::Prepared<'_>>) {
    let Some(pane) = panes.get_mut(at) else { return };
    for prepared in ahead.iter() {
        pane.approach(prepared);
    }
    for prepared in ahead.drain(..) {
        pane.fold(&prepared);
    }
}

/// The name behind an interface number, empty where it has none.
fn name_of(interfaces: &[Interface], id: InterfaceId) -> &str {
    interfaces.binary_search_by_key(&id, |i| i.id).map_or("", |at| &interfaces[at].name)
}

/// Whether an address is ours: named by the settings, or learned from the interface that it owns.
#[inline]
fn is_ours(network: &Network, owners: &Owners, address: Address) -> bool {
    network.is_internal(address) || owners.owns(address) && !network.is_external(address)
}

/// Whether a service over the protocol has ports and is called.
fn protocol_has_calls(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP)
}

/// Whether a conversation of a host of ours says that it uses a service.
fn is_contact(c: &Conversation) -> bool {
    !c.responder.is_group() && c.outcome != conversation::Outcome::Backscatter
}

/// The key of a [`Pair`].
fn fingerprint(seed: &foldhash::fast::FixedState, c: &Conversation) -> u64 {
    fingerprint_of(seed, c.opener, c.responder, c.port, c.protocol)
}

fn fingerprint_of(
    seed: &foldhash::fast::FixedState,
    opener: Address,
    responder: Address,
    port: u16,
    protocol: u8,
) -> u64 {
    let mut hasher = seed.build_hasher();
    hasher.write_u128(opener.bits());
    hasher.write_u128(responder.bits());
    hasher.write_u64(u64::from(port) << 8 | u64::from(protocol));
    hasher.finish()
}

/// Failures from which on it is worth knowing how close a host of ours came to a scan.
const FEW_FAILURES: u32 = 5;

/// What a window's conversations touched, each in its own order.
#[derive(Default)]
struct Touched {
    channels: Vec<u64>,
    suspects: Vec<(bool, Address)>,
    sweepers: Vec<(Address, u16)>,
    /// Hosts of ours that were told to scan many hosts.
    scanning: BTreeSet<Address>,
    tor: Vec<Address>,
}

impl Touched {
    fn settle(&mut self) {
        self.channels.sort_unstable();
        self.channels.dedup();
        self.suspects.sort_unstable();
        self.suspects.dedup();
        self.tor.sort_unstable();
        self.tor.dedup();
    }
}

/// ICMP towards somebody who has just sent something else is an error message about that (RFC 1122, 3.2.2), and no search for
/// hosts: whoever is looked at from the internet answers closed UDP ports so.
fn drop_error_messages(failures: &mut Vec<&Conversation>, conversations: &[Conversation]) {
    let is_icmp = |c: &Conversation| matches!(c.protocol, protocol::ICMP | protocol::ICMPV6);
    // Of such messages there are few, and of conversations that they may speak of many.
    let mut asked: Map<(Address, Address), bool> =
        failures.iter().filter(|c| is_icmp(c)).map(|c| ((c.responder, c.opener), false)).collect();
    if asked.is_empty() {
        return;
    }
    for c in conversations.iter().filter(|c| !is_icmp(c)) {
        if let Some(asked) = asked.get_mut(&(c.opener, c.responder)) {
            *asked = true;
        }
    }
    failures.retain(|c| !is_icmp(c) || !asked.get(&(c.responder, c.opener)).is_some_and(|&asked| asked));
}

/// A session that a host of ours held, and with whom.
#[derive(Clone, Copy, Debug)]
struct Held {
    with: Address,
    start: EventTime,
    end: EventTime,
}

impl Held {
    /// With how many others, and the session's own responder, sessions were held while this one was.
    fn meanwhile(held: &[Held], session: &pair::Session) -> usize {
        let meets = |other: &&Held| other.end >= session.start && other.start <= session.end;
        held.iter().filter(meets).map(|other| other.with).collect::<BTreeSet<_>>().len()
    }
}

/// The sweepers of which a sweep is held back.
fn held(sweepers: &Table<Sweeper>) -> BTreeSet<(Address, u16)> {
    sweepers.iter().filter(|sweeper| sweeper.is_held()).map(table::Entry::key).collect()
}

/// The order of findings within a window, which nothing about hashing or arrival can change.
fn sort(findings: &mut [Finding]) {
    findings.sort_by(|a, b| {
        let targets = |f: &Finding| f.targets.iter().map(|t| (t.address, t.ports.first().copied())).collect::<Vec<_>>();
        (a.threat, a.subject, &a.method, a.first_seen, a.last_seen)
            .cmp(&(b.threat, b.subject, &b.method, b.first_seen, b.last_seen))
            .then_with(|| targets(a).cmp(&targets(b)))
            .then_with(|| a.summary.cmp(&b.summary))
    });
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("restore a snapshot: {0}")]
pub struct SnapshotError(pub String);

#[cfg(test)]
mod tests;
