//! Evidence instead of limits: how much more likely a channel is with what an implant or a miner keeps than with anything else.
//!
//! What tells most is not the shape of a channel but what its host does around it. Six numbers are held against what they are on
//! candidates without any attack; each gives so many *nats* (natural logarithms of a likelihood ratio), and these add up, so that a finding
//! carries its own arithmetic and what would have cleared it. Strong evidence on one axis makes up for another.
//!
//! The weights are those of a logistic regression (L2, C = 0.1 on standardised numbers, both classes of equal weight) over 57 channels of
//! attacks and 575 benign ones, of ten laboratories, each channel counted once over all its looks; made into nats by a second one (Platt
//! 1999) over scores of channels by weights that were learned without their laboratory. Then rounded, and the weight of the
//! port was capped: none of these laboratories holds a server that talks to vendors on odd ports. `tests/learn_channels.py` learns them again
//! from single captures, and prints both side by side.
//!
//! A host without a past cannot do anything out of its character: what it does before it has been [watched](Settings::watched) for some
//! time, or has begun to use [many services](Settings::contacts), is no more than a *signal*, as is what is possible and not likely.
//! Signals are kept and listed, and are not told alone.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use serde::Deserialize;

use crate::finding::{Evidence, Merge};
use crate::flow::{Address, EventTime, protocol};
use crate::statistical::beacon::{self, Surroundings, Timing};
use crate::statistical::conversation::port_rank;
use crate::statistical::explain::Judgement;
use crate::statistical::habits::Around;
use crate::statistical::pair::{Channel, Session};

/// The method's name.
pub const METHOD: &str = "out_of_character";

/// `[statistical.channel]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How long a host must have been watched when it began a channel.
    pub watched: SignedDuration,
    /// Or how many services outside it must have begun to use by then; 64 are kept.
    pub contacts: u32,
    /// At most so many of our hosts use the destination.
    pub clients: f64,
    /// Calls that are enough to judge.
    pub calls: u32,
    /// Where the port is a registered service: log-likelihood ratio of the timing, nats, beyond what the number of channels under watch
    /// takes.
    pub timing_nats: f64,
    /// And for how long it has been called.
    pub span: SignedDuration,
    /// Or the length of one session over TCP.
    pub session: SignedDuration,
    /// A host that began to use unregistered ports of so many others within a day is a peer among peers.
    pub peers: u32,
    /// Log-odds more against it while the host has not been watched for so long, nats.
    pub unwatched_against: f64,
    /// Log-odds against an attack among candidates before anything is known of one, nats.
    pub prior_against: f64,
    /// Evidence counts for no more than this, nats.
    pub evidence_max: f64,
}

/// A number, and what it gives.
#[derive(Debug)]
struct Term {
    name: &'static str,
    /// The name of what it gives.
    gives: &'static str,
    unit: &'static str,
    /// Nats for each unit on the number's scale.
    weight: f64,
    /// What it is on average on benign candidates, on that scale.
    usual: f64,
    /// Counts and amounts are weighed by the logarithm of one more.
    logarithmic: bool,
}

/// What all terms stand for at their usual values, nats: such a channel is no attack.
const USUAL: f64 = -3.5;

/// With how many others the host uses the port.
const OTHERS_ON_PORT: Term = Term {
    name: "others_on_port",
    gives: "others_on_port_nats",
    unit: "addresses",
    weight: -0.75,
    usual: 3.5,
    logarithmic: true,
};
/// Share of the host's sessions meanwhile.
const SHARE: Term = Term {
    name: "share_of_sessions",
    gives: "share_of_sessions_nats",
    unit: "%",
    weight: 0.046,
    usual: 5.0,
    logarithmic: false,
};
/// Likelihood ratio of a timer against chance, -2 to 6 a call.
const TIMING: Term = Term {
    name: "timing_per_call",
    gives: "timing_per_call_nats",
    unit: "nats",
    weight: 1.1,
    usual: 0.0,
    logarithmic: false,
};
/// Median payload that the host receives in a session.
const RECEIVED: Term = Term {
    name: "median_received",
    gives: "median_received_nats",
    unit: "bytes",
    weight: -0.22,
    usual: 8.2,
    logarithmic: true,
};
/// The same of what it sends.
const SENT: Term = Term {
    name: "median_sent",
    gives: "median_sent_nats",
    unit: "bytes",
    weight: -0.26,
    usual: 7.5,
    logarithmic: true,
};
/// A port that is no registered service.
const UNREGISTERED: Term = Term {
    name: "unregistered_port",
    gives: "unregistered_port_nats",
    unit: "yes=1",
    weight: 3.5,
    usual: 0.0,
    logarithmic: false,
};

impl Term {
    fn nats(&self, value: f64) -> f64 {
        self.weight * (if self.logarithmic { value.ln_1p() } else { value } - self.usual)
    }
}

/// When and how much a channel is used.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Rhythm {
    calls: u32,
    timing: Option<Timing>,
    /// Median payload of a session, bytes.
    sent: f64,
    received: f64,
}

impl Rhythm {
    fn of(channel: &Channel) -> Rhythm {
        let mut starts: Vec<_> = channel.sessions.iter().map(|s| s.start).collect();
        starts.sort_unstable();
        let answered: Vec<&Session> = channel.sessions.iter().filter(|s| !s.failed).collect();
        let judged = if answered.is_empty() { channel.sessions.iter().collect() } else { answered };
        let middle = |payload: fn(&Session) -> u64| {
            let mut values: Vec<f64> = judged.iter().map(|s| payload(s) as f64).collect();
            beacon::median(&mut values)
        };
        Rhythm {
            calls: beacon::calls(&starts).len() as u32,
            timing: beacon::timing(&starts),
            sent: middle(|s| s.sent_payload),
            received: middle(|s| s.received_payload),
        }
    }

    /// Period of its timer, s, where it has any.
    fn period(&self) -> Option<f64> {
        self.timing.filter(|t| t.nats >= KIN_TIMER_NATS).map(|t| t.period)
    }

    /// Whether another channel has the same sizes, and the same period where this one has any.
    fn is_that_of(&self, other: &Rhythm) -> bool {
        let near = |a: f64, b: f64, factor: f64| a.max(b) + 1.0 <= factor * (a.min(b) + 1.0);
        near(self.sent, other.sent, KIN_SIZES)
            && near(self.received, other.received, KIN_SIZES)
            && self.period().is_none_or(|own| other.period().is_some_and(|theirs| near(own, theirs, KIN_PERIODS)))
    }
}

/// Two sizes within this factor of each other are those of one service: its answers differ by less from call to call, and those of
/// two services that a host calls at all by more.
const KIN_SIZES: f64 = 1.5;

/// Two periods within this factor are those of one timer: what spreads its calls does so by a tenth or a fifth.
const KIN_PERIODS: f64 = 1.25;

/// So many nats tell a timer from chance where only one channel is asked (e^3 = 20 to 1).
const KIN_TIMER_NATS: f64 = 3.0;

/// Under how many other addresses its host used the same service before: names of large services lead to another one every few
/// minutes, and what polls them keeps its rhythm and its sizes. Of an attack with several controllers the first is told.
pub fn kin<'a>(channel: &Channel, others: impl Iterator<Item = &'a Channel>) -> usize {
    let this = Rhythm::of(channel);
    let earlier = others.filter(|other| {
        other.opener == channel.opener
            && (other.port, other.protocol) == (channel.port, channel.protocol)
            && other.responder != channel.responder
            && other.first_contact < channel.first_contact
    });
    earlier.filter(|other| this.is_that_of(&Rhythm::of(other))).count()
}

/// A program that starts with its host calls within this time of the host's first packet, or within two of its periods, s.
const BEGINNING: f64 = 600.0;

/// How many other hosts, up to `most`, use the same service alike, under whatever address, and have done so since they were first
/// seen (`first_seen` says when that was). A fleet's agents are there from the beginning; what spreads comes later.
pub fn fleet<'a>(
    channel: &Channel,
    others: impl Iterator<Item = &'a Channel>,
    first_seen: impl Fn(Address) -> Option<EventTime>,
    most: usize,
) -> usize {
    let this = Rhythm::of(channel);
    let beginning = this.period().map_or(BEGINNING, |period| BEGINNING.max(2.0 * period));
    let mut hosts = BTreeSet::new();
    for other in others {
        let same = other.opener != channel.opener
            && (other.port, other.protocol) == (channel.port, channel.protocol)
            && !hosts.contains(&other.opener);
        let from_the_beginning = || {
            let first_seen = first_seen(other.opener);
            first_seen.is_some_and(|first| f64::from(other.first_contact.since(first)) <= beginning)
        };
        if same && from_the_beginning() && this.is_that_of(&Rhythm::of(other)) {
            hosts.insert(other.opener);
            if hosts.len() >= most {
                break;
            }
        }
    }
    hosts.len()
}

/// The six numbers of a channel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Numbers {
    /// Sessions, those that were forgotten among them.
    pub sessions: u32,
    /// Calls: sessions that begin within five seconds of each other are one.
    pub calls: u32,
    /// With how many others the host uses the port.
    pub others_on_port: u32,
    /// Share of the host's sessions since the channel began, %.
    pub share: f64,
    /// Likelihood ratio of a timer against chance, nats a call, -2 to 6; 0 for too few calls to tell.
    pub timing: f64,
    /// The same of all calls, nats.
    pub timing_nats: f64,
    /// From first to last call, s.
    pub span: u32,
    /// Median payload received in a session, bytes.
    pub received: f64,
    /// Median payload sent in a session, bytes.
    pub sent: f64,
    /// Whether the port is that of no service with a name.
    pub unregistered: bool,
}

impl Numbers {
    /// Of a channel, and what its host does around it.
    pub fn of(channel: &Channel, around: &Around, ports: &Ports<'_>) -> Numbers {
        let rhythm = Rhythm::of(channel);
        let sessions = channel.sessions.len() as u32 + channel.forgotten;
        Numbers {
            sessions,
            calls: rhythm.calls,
            others_on_port: around.on_port,
            share: 100.0 * f64::from(sessions) / f64::from(around.sessions.max(sessions).max(1)),
            timing: rhythm.timing.map_or(0.0, |t| (t.nats / f64::from((t.bursts - 1).max(1))).clamp(-2.0, 6.0)),
            timing_nats: rhythm.timing.map_or(0.0, |t| t.nats),
            span: rhythm.timing.map_or(0, |t| t.span),
            received: rhythm.received,
            sent: rhythm.sent,
            unregistered: !ports.knows(channel.port),
        }
    }

    /// Each number beside its weight.
    fn terms(&self) -> [(Term, f64); 6] {
        [
            (OTHERS_ON_PORT, f64::from(self.others_on_port)),
            (SHARE, self.share),
            (TIMING, self.timing),
            (RECEIVED, self.received),
            (SENT, self.sent),
            (UNREGISTERED, f64::from(u8::from(self.unregistered))),
        ]
    }

    /// The evidence of all together, nats.
    pub fn nats(&self) -> f64 {
        USUAL + self.terms().iter().map(|(term, value)| term.nats(*value)).sum::<f64>()
    }
}

/// Ports of which it is known what is normal there.
#[derive(Clone, Copy, Debug)]
pub struct Ports<'a> {
    /// Services that are called in all rhythms.
    pub benign: &'a [u16],
    /// Services that push short messages all the time.
    pub pushing: &'a [u16],
    /// Services that hold a thin session for as long as they run.
    pub thin: &'a [u16],
}

impl Ports<'_> {
    /// Whether a port is that of a service with a name, registered or not.
    fn knows(&self, port: u16) -> bool {
        port_rank(port) == 0 || self.thin.contains(&port) || self.pushing.contains(&port)
    }
}

/// A channel at this probability is a signal: one in ten such is worth a look beside something else.
pub const SIGNAL: f64 = 0.1;

/// What was thought of a channel.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The arithmetic; passed where it is told alone.
    pub judgement: Judgement,
    /// Whether it is a signal, or more.
    pub signal: bool,
}

/// Whether channels of its kind are judged at all, whatever becomes of them.
pub fn is_of_the_kind(channel: &Channel, benign_ports: &[u16]) -> bool {
    let calls = matches!(channel.protocol, protocol::TCP | protocol::UDP);
    calls && !channel.aws_service && !channel.responder.is_group() && !benign_ports.contains(&channel.port)
}

/// Whether there may be enough of a channel to judge: calls are at most as many as sessions.
pub fn may_be_enough(channel: &Channel, settings: &Settings) -> bool {
    let long = |session: &Session| i64::from(session.duration()) >= settings.session.as_secs();
    channel.sessions.len() >= settings.calls as usize
        || channel.protocol == protocol::TCP && channel.longest().is_some_and(long)
}

/// Judges a channel by what its host does around it; `None` where there is too little to judge, or it is not the kind.
/// `watched_before` is how long the host was watched when it first used the service, s.
pub fn judge(
    channel: &Channel,
    around: &Surroundings,
    host: &Around,
    watched_before: u32,
    settings: &Settings,
    ports: &Ports<'_>,
) -> Option<Judged> {
    let tcp = channel.protocol == protocol::TCP;
    if around.internal || !is_of_the_kind(channel, ports.benign) || !may_be_enough(channel, settings) {
        return None;
    }
    let failed = channel.sessions.iter().filter(|s| s.failed).count();
    // What is sent without an answer over UDP is logs and measurements: nothing says that one was wanted.
    if !tcp && failed * 10 >= channel.sessions.len() * 9 {
        return None;
    }
    let numbers = Numbers::of(channel, host, ports);
    let longest = channel.longest().map_or(0, Session::duration);
    let enough = numbers.calls >= settings.calls || tcp && i64::from(longest) >= settings.session.as_secs();
    if !enough {
        return None;
    }
    let nats = numbers.nats().min(settings.evidence_max);
    let watched = i64::from(watched_before) >= settings.watched.as_secs() || host.contacts_before >= settings.contacts;
    let unwatched = if watched { 0.0 } else { settings.unwatched_against };
    let log_odds = nats - settings.prior_against - unwatched;
    let probability = 1.0 / (1.0 + (-log_odds).exp());
    // Where the port is registered, other ports of the host say nothing; where it is not, this one is among those counted.
    let peers = if numbers.unregistered { host.unregistered.saturating_sub(1) } else { 0 };
    let mut evidence = vec![
        Evidence::at_least("probability", probability, 0.5, "ratio", Merge::Latest),
        Evidence::at_most("clients", around.clients, settings.clients, "hosts", Merge::Latest),
        Evidence::below("peers", f64::from(peers), f64::from(settings.peers), "addresses", Merge::Latest),
        Evidence::told("prior_against", settings.prior_against, "nats", Merge::Latest),
        Evidence::told("watched_before", f64::from(watched_before), "s", Merge::Latest),
        Evidence::told("contacts_before", f64::from(host.contacts_before), "services", Merge::Latest),
        Evidence::told("unwatched_against", unwatched, "nats", Merge::Latest),
        Evidence::told("usual", USUAL, "nats", Merge::Latest),
        Evidence::told("sessions", f64::from(numbers.sessions), "sessions", Merge::Max),
        Evidence::told("calls", f64::from(numbers.calls), "calls", Merge::Max),
        Evidence::told("session_length", f64::from(longest), "s", Merge::Max),
    ];
    for (term, value) in numbers.terms() {
        evidence.push(Evidence::told(term.name, value, term.unit, Merge::Latest));
        evidence.push(Evidence::told(term.gives, term.nats(value), "nats", Merge::Latest));
    }
    let mut stands = around.clients <= settings.clients && peers < settings.peers;
    // On a port that everybody uses nothing but a timer tells one channel from all others, or a pool's pushing.
    let pushed = is_mining(channel, false) && !ports.pushing.contains(&channel.port);
    if !numbers.unregistered && !pushed {
        let needed = settings.timing_nats + (around.channels.max(1) as f64).ln();
        let (nats, span) = (numbers.timing_nats, f64::from(numbers.span));
        let long_enough = settings.span.as_secs() as f64;
        stands &= nats >= needed && span >= long_enough;
        evidence.push(Evidence::at_least("timing_log_likelihood_ratio", nats, needed, "nats", Merge::Max));
        evidence.push(Evidence::at_least("span", span, long_enough, "s", Merge::Max));
    }
    let passed = stands && log_odds >= 0.0;
    let judgement = Judgement { method: METHOD.to_owned(), passed, evidence, ratio: probability / 0.5 };
    Some(Judged { judgement, signal: stands && probability >= SIGNAL })
}

/// Mean payload of a packet from a pool, bytes: a job is a line of JSON of some 200 bytes, its acknowledgements counted 60 and more
/// (the real ones at hand: 63 to 200). Below are keep-alives, above the full packets of files, and Tor's cells of 514 bytes.
const JOBS: std::ops::Range<f64> = 30.0..400.0;

/// Both sides of a pool's session speak about as much; an implant that reports sends several times what it is told (the real ones at
/// hand: 3 to 100 times, miners 0.1 to 1.3 times, one of a protocol of its own 20 times).
const SENT_TO_RECEIVED_MAX: u64 = 2;

/// For how long a pool must have pushed, s: four jobs at one a minute.
pub(crate) const PUSHED_SECONDS: u32 = 240;

/// In which share of the minutes: some pools push a job every two minutes, and a keep-alive is rarer.
pub(crate) const PUSHED: f64 = 1.0 / 3.0;

/// Whether a channel is more likely a miner's than an implant's: a pool pushes short jobs all the time, so that its miner receives
/// as much as it sends, or more, in messages of a line of JSON; who commands a host says little to it, or sends it files.
/// `hinted` says that a list knows the pool, or the port is one that pools publish.
pub fn is_mining(channel: &Channel, hinted: bool) -> bool {
    let Some(session) = channel.longest().filter(|_| channel.protocol == protocol::TCP) else { return false };
    let message = session.received_payload as f64 / f64::from(session.received_packets.max(1));
    let balanced = session.sent_payload <= session.received_payload * SENT_TO_RECEIVED_MAX && JOBS.contains(&message);
    let pushed = session.duration() >= PUSHED_SECONDS && session.presence(session.received_windows) >= PUSHED;
    balanced && (hinted || pushed)
}

/// What a channel is told as: `{name}` stands for the evidence of that name.
pub fn sentence(channel: &Channel, span: &str) -> String {
    let (opener, responder, port) = (channel.opener, channel.responder, channel.port);
    format!(
        "{opener} began to use {responder} port {port}, which is out of character for it: {{sessions}} sessions in {span}, \
         {{share_of_sessions}} % of all that it opened outside meanwhile, on a port that it uses with {{others_on_port}} others"
    )
}

pub mod candidate;
pub mod nature;

#[cfg(test)]
mod tests;
