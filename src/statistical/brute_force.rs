//! Log-ins that are guessed: many short sessions at one log-in port, about the same small size each, at a pace no person keeps
//! (MITRE ATT&CK T1110).
//!
//! A failed log-in is answered: it moves some hundred bytes to a few kB both ways and is over within seconds. One says nothing,
//! and neither do many a minute: deployments, transfers and monitoring open such ports at a machine's pace as well. What tells
//! is that they are alike. Sizes of what succeeds hang on what is done.
//!
//! | side | whose log-ins | judged |
//! | --- | --- | --- |
//! | [`Side::Inbound`] | one outsider's at ours | quick, slow, over many targets, and refused ones that do not end |
//! | [`Side::Outbound`] | one of ours outside | quick, slow, over many targets |
//! | [`Side::Inside`] | one of ours at ours | quick, at one target |
//! | [`Side::Target`] | all outsiders' at one of ours | many sources, none of which does it all |

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::finding::{Actor, Evidence, Finding, Merge, Origin, Severity, Subject, Target, Threat};
use crate::flow::{Address, EventTime, InterfaceId, Marks, protocol, tcp_flags};
use crate::statistical::beacon::median;
use crate::statistical::conversation::{Conversation, Outcome, Place};
use crate::statistical::explain::Judgement;
use crate::statistical::table::Entry;

/// `[statistical.brute_force]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Ports at which people log in.
    pub ports: Vec<u16>,
    /// Ports of databases, watched where the source is an outsider.
    pub database_ports: Vec<u16>,
    /// Log-ins of one source within `span`.
    pub attempts: u32,
    /// The span of a quick one.
    pub span: SignedDuration,
    /// The same between our own hosts, at one target.
    pub inside_attempts: u32,
    /// Log-ins of one source within `slow_span`.
    pub slow_attempts: u32,
    /// The span of a slow one.
    pub slow_span: SignedDuration,
    /// Log-ins a minute, from the first to the last of a slow one; and at one target, below which it may be a monitor's.
    pub slow_pace: f64,
    /// The share of log-ins that are alike.
    pub alike: f64,
    /// Log-ins at each target, on average.
    pub each: f64,
    /// Log-ins of many sources at one target within `joint_span`.
    pub joint_attempts: u32,
    /// Their span.
    pub joint_span: SignedDuration,
    /// And so many times what usually comes by in such a span, where that is known.
    pub joint_times: f64,
    /// How many sources.
    pub joint_sources: u32,
}

/// Whose log-ins are kept together, and where.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Side {
    /// Of an outsider, at hosts of ours.
    Inbound,
    /// Of a host of ours, outside.
    Outbound,
    /// Of a host of ours, at others of ours.
    Inside,
    /// Of all outsiders, at one host of ours.
    Target,
}

impl Settings {
    /// Whether a conversation may be a log-in that is watched, and on which side its source is.
    #[inline]
    pub fn side(&self, c: &Conversation) -> Option<Side> {
        if c.protocol != protocol::TCP {
            return None;
        }
        let database = self.database_ports.contains(&c.port);
        if !database && !self.ports.contains(&c.port) || c.outcome == Outcome::Backscatter || c.responder.is_group() {
            return None;
        }
        let near = |address: Address, ours: bool| ours || address.is_private();
        match (near(c.opener, c.ours), near(c.responder, c.theirs)) {
            (false, true) => Some(Side::Inbound),
            (true, false) if !database => Some(Side::Outbound),
            (true, true) if !database => Some(Side::Inside),
            _ => None,
        }
    }
}

/// Payload of a failed log-in in one direction, bytes, from least to most: sent, then received. Below is a look at the banner or an
/// empty connection, above is work. From the messages of the protocols: key exchange alone is 0.7 kB to 3.3 kB each way in SSH,
/// with post-quantum algorithms and several tries 5 kB; a TLS handshake with CredSSP in RDP and NTLM in SMB and WinRM are as large; the
/// others name a user and a password in a line or a field.
const fn sizes(port: u16) -> ([u64; 2], [u64; 2]) {
    match port {
        22 | 3389 | 5985 | 5986 => ([300, 5_000], [300, 5_000]),
        445 => ([300, 3_000], [200, 3_000]),
        21 => ([30, 300], [40, 1_500]),
        23 => ([30, 600], [30, 2_000]),
        5900 => ([30, 300], [30, 500]),
        _ => ([30, 2_000], [20, 3_000]),
    }
}

/// One log-in: a session, its pieces of several windows together.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Attempt {
    start: EventTime,
    end: EventTime,
    /// Payload, held at the maximum.
    sent: u32,
    received: u32,
    /// The place of the address on the other side.
    other: u16,
    opener_port: u16,
    /// Conversations of it, held at the maximum.
    pieces: u8,
    failed: bool,
}

/// The log-ins of a side at one port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Logins {
    side: Side,
    who: Address,
    port: u16,
    /// Addresses on the other side: targets, or sources of [`Side::Target`].
    others: Vec<Address>,
    /// By start, as far as windows go.
    attempts: Vec<Attempt>,
    /// Of the run under way, those that are not kept any more.
    forgotten: u32,
    began: EventTime,
    last_seen: EventTime,
    latest: Place,
    interface: InterfaceId,
    /// Whether something was added since it was judged.
    fresh: bool,
}

impl Entry for Logins {
    type Key = (Side, Address, u16);

    fn key(&self) -> (Side, Address, u16) {
        (self.side, self.who, self.port)
    }

    fn last_seen(&self) -> EventTime {
        self.last_seen
    }
}

/// Log-ins that are kept, 24 bytes each. Twice the most that a rule asks for would do; at a hundred a minute they are five minutes.
const ATTEMPTS: usize = 512;

/// So many more are kept for a while, so that they are not moved with each.
const SPARE: usize = 256;

/// After so long without a log-in a run is over, s. Lock-outs last half an hour at most.
const QUIET_SECONDS: u32 = 3_600;

/// A failed log-in is over by then: SSH waits two minutes (`LoginGraceTime`).
const LENGTH_SECONDS: u32 = 130;

/// A session so long is somebody's work, s; if it was seen in so many windows, since a port may be used again.
const WORK_SECONDS: u32 = 300;
const WORK_PIECES: u8 = 3;

/// Seconds of silence after which the same five-tuple is another session: a guesser is soon through with its ports.
const STITCH_SECONDS: u32 = 900;

/// So many log-ins must come before one that looks like a success.
const BEFORE_SUCCESS: u32 = 10;

/// What reaches a target is known when it was watched for so many spans before.
const PAST_SPANS: u32 = 3;

/// A guesser who does not mind that nothing answers: so many times as many.
const REFUSED_TIMES: f64 = 3.0;

impl Logins {
    /// None yet.
    pub fn new(side: Side, who: Address, port: u16, at: EventTime) -> Logins {
        Logins {
            side,
            who,
            port,
            others: Vec::new(),
            attempts: Vec::new(),
            forgotten: 0,
            began: at,
            last_seen: at,
            latest: Place::default(),
            interface: InterfaceId(0),
            fresh: false,
        }
    }

    /// Notes a conversation at the port, if it is a log-in, an attempt at one, or more of one. To be called in the order of starts.
    pub fn note(&mut self, c: &Conversation) {
        let (start, end) = (c.start(), c.end());
        // A target's past is what tells an attack from what comes by all day.
        if self.side != Side::Target && start.since(self.last_seen) > QUIET_SECONDS {
            self.attempts.clear();
            self.others.clear();
            self.forgotten = 0;
        }
        let address = if self.side == Side::Target { c.opener } else { c.responder };
        let other = self.others.iter().position(|known| *known == address);
        let held = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let (sent, received) = (held(c.payload(&c.sent)), held(c.payload(&c.received)));
        let known = c.sent.has(Marks::FLAGS_KNOWN);
        let opens = known && c.sent.flags & tcp_flags::SYN != 0;
        let goes_on = |attempt: &&mut Attempt| {
            other == Some(usize::from(attempt.other))
                && attempt.opener_port == c.opener_port
                && start.since(attempt.end) <= STITCH_SECONDS
        };
        if other.is_some()
            && !opens
            && let Some(attempt) = self.attempts.iter_mut().rev().find(goes_on)
        {
            attempt.end = attempt.end.max(end);
            attempt.pieces = attempt.pieces.saturating_add(1);
            attempt.sent = attempt.sent.saturating_add(sent);
            attempt.received = attempt.received.saturating_add(received);
            self.last_seen = self.last_seen.max(end);
            return;
        }
        // The middle of a session that was opened before; or nothing that could be a log-in.
        let failed = c.failed();
        if known && !opens && !failed || !failed && !may_log_in(c, sent) {
            return;
        }
        let other = other.unwrap_or_else(|| {
            self.others.push(address);
            self.others.len() - 1
        });
        if self.total() == 0 {
            self.began = start;
        }
        let (other, opener_port) = (other as u16, c.opener_port);
        self.attempts.push(Attempt { start, end, sent, received, other, opener_port, pieces: 1, failed });
        if c.place() > self.latest {
            (self.latest, self.interface) = (c.place(), c.interface);
        }
        self.last_seen = self.last_seen.max(end);
        self.fresh = true;
        if self.attempts.len() >= ATTEMPTS + SPARE {
            self.forget(ATTEMPTS);
        }
    }

    /// Forgets all but the latest so many, and the addresses of which none are left.
    fn forget(&mut self, keep: usize) {
        let goes = self.attempts.len().saturating_sub(keep);
        self.attempts.drain(..goes);
        self.forgotten = self.forgotten.saturating_add(goes as u32);
        let mut places = vec![None; self.others.len()];
        let mut others = Vec::new();
        for attempt in &mut self.attempts {
            let at = usize::from(attempt.other);
            attempt.other = *places[at].get_or_insert_with(|| {
                others.push(self.others[at]);
                others.len() as u16 - 1
            });
        }
        self.others = others;
    }

    /// Takes over what another engine knows of the same: of two sightings the fuller one counts.
    pub fn join(&mut self, other: Logins) {
        let amount = |logins: &Logins| (logins.total(), logins.last_seen, logins.latest);
        if amount(&other) > amount(self) {
            *self = other;
        }
    }

    /// Gives the interface another number.
    pub fn rename(&mut self, rename: impl Fn(InterfaceId) -> InterfaceId) {
        self.interface = rename(self.interface);
    }

    /// Who saw it.
    pub fn interface(&self) -> InterfaceId {
        self.interface
    }

    /// Whom it is about: the source, or the target of many.
    pub fn who(&self) -> Address {
        self.who
    }

    fn total(&self) -> u32 {
        self.forgotten.saturating_add(self.attempts.len() as u32)
    }

    /// Judges what was noted since the last time; `None` where that is nothing, or too little to say how close it came.
    pub fn judge(&mut self, settings: &Settings, now: EventTime) -> Option<Judgement> {
        const FEW: usize = 10;
        if !std::mem::take(&mut self.fresh) || self.attempts.len() < FEW {
            return None;
        }
        let quick = now.minus(settings.span.as_secs() as u32);
        let slow = now.minus(settings.slow_span.as_secs() as u32);
        match self.side {
            Side::Target => Some(self.judge_joint(settings, now)),
            Side::Inside => {
                let busiest = self.busiest(quick, false)?;
                let wanted = f64::from(settings.inside_attempts);
                Some(self.judge_answered(settings, quick, Some(busiest), wanted, 0.0))
            }
            Side::Inbound | Side::Outbound => {
                let judgement = self.judge_answered(settings, quick, None, settings.attempts.into(), 0.0);
                if judgement.passed {
                    return Some(judgement);
                }
                let slow = self.judge_answered(settings, slow, None, settings.slow_attempts.into(), settings.slow_pace);
                if slow.passed {
                    return Some(slow);
                }
                let refused = self.judge_refused(settings, quick);
                Some(refused.filter(|refused| refused.passed).unwrap_or(judgement))
            }
        }
    }

    /// Log-ins since a moment, at all targets or at one.
    fn judge_answered(
        &self,
        settings: &Settings,
        since: EventTime,
        at: Option<u16>,
        wanted: f64,
        pace: f64,
    ) -> Judgement {
        let picture = self.picture(since, at);
        let targets = picture.others();
        let of_target = |n: u32| f64::from(n) / picture.minutes();
        // Where each target is asked no more often than a monitor asks, it may be one.
        let guessed = picture.counts.iter().filter(|&&n| of_target(n) >= settings.slow_pace).sum::<u32>();
        let spraying = f64::from(guessed) < 0.5 * picture.answered;
        let mut evidence = self.evidence(settings, &picture, picture.answered, wanted);
        evidence.push(Evidence::told("targets", targets, "hosts", Merge::Max));
        let each = picture.answered / targets.max(1.0);
        let mut passed = picture.answered >= wanted && picture.is_alike(settings, self.port);
        if targets > 1.0 {
            passed &= each >= settings.each;
            evidence.push(Evidence::at_least("attempts_each", each, settings.each, "attempts", Merge::Latest));
        }
        if pace > 0.0 {
            passed &= picture.pace() >= pace;
            evidence.push(Evidence::at_least("slow_pace", picture.pace(), pace, "attempts/min", Merge::Latest));
        }
        if spraying {
            passed &= !picture.on_timer;
            let timer = f64::from(u8::from(picture.on_timer));
            evidence.push(Evidence::below("monitors_timer", timer, 1.0, "yes=1", Merge::Latest));
        }
        let method = if spraying && targets > 1.0 { SPRAYING } else { GUESSING };
        Judgement { method: method.to_owned(), passed, evidence, ratio: picture.answered / wanted }
    }

    /// Many sources at one target. None of them may do it all: that one is judged by itself.
    fn judge_joint(&self, settings: &Settings, now: EventTime) -> Judgement {
        let span = settings.joint_span.as_secs() as u32;
        let since = now.minus(span);
        let picture = self.picture(since, None);
        // Where not all of the span are kept, what is kept speaks for it.
        let cut = self.forgotten > 0 && self.attempts.first().is_some_and(|first| first.start > since);
        let tried = if cut { picture.pace() * f64::from(span) / 60.0 } else { picture.answered };
        let past = since.since(self.began);
        let usual = match past >= span * PAST_SPANS {
            true => (f64::from(self.total()) - picture.answered).max(0.0) * f64::from(span) / f64::from(past),
            false => 0.0,
        };
        let wanted = f64::from(settings.joint_attempts).max(settings.joint_times * usual);
        let sources = picture.others();
        let most = f64::from(picture.counts.iter().copied().max().unwrap_or(0)) / picture.answered.max(1.0);
        let timer = f64::from(u8::from(picture.on_timer));
        let mut evidence = self.evidence(settings, &picture, tried, wanted);
        for (name, value) in [("attempts", picture.answered), ("span", picture.span.into())] {
            evidence.retain(|e| e.name != name);
            evidence.push(Evidence::told(name, value, if name == "span" { "s" } else { name }, Merge::Max));
        }
        evidence.push(Evidence::told("usual_attempts", usual, "attempts", Merge::Latest));
        evidence.push(Evidence::at_least("sources", sources, settings.joint_sources.into(), "hosts", Merge::Max));
        evidence.push(Evidence::at_most("share_of_one_source", most, 0.5, "ratio", Merge::Latest));
        evidence.push(Evidence::below("monitors_timer", timer, 1.0, "yes=1", Merge::Latest));
        let passed = tried >= wanted
            && sources >= f64::from(settings.joint_sources)
            && most <= 0.5
            && !picture.on_timer
            && picture.is_alike(settings, self.port);
        Judgement { method: JOINT.to_owned(), passed, evidence, ratio: tried / wanted }
    }

    /// What is never let in and does not end, at one target. Databases' clients try again at any pace.
    fn judge_refused(&self, settings: &Settings, since: EventTime) -> Option<Judgement> {
        if self.side != Side::Inbound || !settings.ports.contains(&self.port) {
            return None;
        }
        let busiest = self.busiest(since, true)?;
        let tried = self.attempts.iter().filter(|a| a.start >= since && a.failed && a.other == busiest).count() as f64;
        let wanted = f64::from(settings.attempts) * REFUSED_TIMES;
        let evidence = vec![
            Evidence::at_least("refused", tried, wanted, "attempts", Merge::Max),
            Evidence::told("attempts", self.total().into(), "attempts", Merge::Max),
            Evidence::told("span", self.last_seen.since(self.began).into(), "s", Merge::Max),
            Evidence::told("targets", 1.0, "hosts", Merge::Max),
        ];
        Some(Judgement { method: REFUSED.to_owned(), passed: tried >= wanted, evidence, ratio: tried / wanted })
    }

    /// The other side with most log-ins, answered or failed.
    fn busiest(&self, since: EventTime, failed: bool) -> Option<u16> {
        let mut counts = vec![0_u32; self.others.len()];
        self.attempts.iter().filter(|a| a.start >= since && a.failed == failed).for_each(|a| {
            counts[usize::from(a.other)] += 1;
        });
        let most = counts.iter().copied().max().filter(|most| *most > 0)?;
        counts.iter().position(|count| *count == most).map(|at| at as u16)
    }

    fn picture(&self, since: EventTime, at: Option<u16>) -> Picture {
        let wanted = |a: &&Attempt| a.start >= since && at.is_none_or(|at| a.other == at);
        let all: Vec<&Attempt> = self.attempts.iter().filter(wanted).collect();
        let answered: Vec<&Attempt> = all.iter().copied().filter(|a| !a.failed).collect();
        let middle = |size: fn(&Attempt) -> u32| {
            let mut sizes: Vec<f64> = answered.iter().map(|a| size(a).into()).collect();
            if sizes.is_empty() { 0.0 } else { median(&mut sizes) }
        };
        let (sent, received) = (middle(|a| a.sent), middle(|a| a.received));
        let near = |value: u32, usual: f64| (f64::from(value) - usual).abs() <= (0.25 * usual).max(64.0);
        let alike =
            |a: &&&Attempt| near(a.sent, sent) && near(a.received, received) && a.end.since(a.start) <= LENGTH_SECONDS;
        let larger = |value: u32, usual: f64, times: f64| f64::from(value) > times * (usual + 1_000.0);
        let work = |a: &Attempt| {
            let long = a.pieces >= WORK_PIECES && a.end.since(a.start) >= WORK_SECONDS;
            larger(a.sent, sent, 3.0) || larger(a.received, received, if long { 1.0 } else { 3.0 })
        };
        // A success is somebody's who has failed before; others' sessions at the same target are others' business.
        let mut counts = vec![0; self.others.len()];
        let mut successes = 0_u32;
        for (n, attempt) in answered.iter().enumerate() {
            let count = &mut counts[usize::from(attempt.other)];
            let failed = if self.side == Side::Target { *count } else { n as u32 };
            successes += u32::from(failed >= BEFORE_SUCCESS && work(attempt));
            *count += 1;
        }
        counts.retain(|n| *n > 0);
        Picture {
            answered: answered.len() as f64,
            refused: (all.len() - answered.len()) as f64,
            alike: answered.iter().filter(alike).count() as f64 / (answered.len() as f64).max(1.0),
            sent,
            received,
            work: successes.into(),
            counts,
            span: match (answered.first(), answered.last()) {
                (Some(first), Some(last)) => last.start.since(first.start),
                _ => 0,
            },
            on_timer: self.on_timer(&answered),
        }
    }

    /// Whether each of the other side is met on a timer that monitors and polls have.
    fn on_timer(&self, answered: &[&Attempt]) -> bool {
        const TIMERS: [f64; 8] = [30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0];
        const INTERVALS: usize = 5;
        let mut latest = vec![None; self.others.len()];
        let mut pauses: Vec<f64> = Vec::new();
        for attempt in answered {
            let before = latest[usize::from(attempt.other)].replace(attempt.start);
            pauses.extend(before.map(|before: EventTime| f64::from(attempt.start.since(before))));
        }
        if pauses.len() < INTERVALS {
            return false;
        }
        let usual = median(&mut pauses);
        let mut off: Vec<f64> = pauses.iter().map(|pause| (pause - usual).abs()).collect();
        let near = |timer: &f64| (usual - timer).abs() <= (0.02 * timer).max(1.0);
        TIMERS.iter().any(near) && median(&mut off) <= (0.05 * usual).max(1.0)
    }

    fn evidence(&self, settings: &Settings, picture: &Picture, tried: f64, wanted: f64) -> Vec<Evidence> {
        let (sent, received) = sizes(self.port);
        vec![
            Evidence::at_least("attempts_in_span", tried, wanted, "attempts", Merge::Max),
            Evidence::at_least("alike", picture.alike, settings.alike, "ratio", Merge::Latest),
            Evidence::at_most("median_sent", picture.sent, sent[1] as f64, "bytes", Merge::Latest),
            Evidence::at_most("median_received", picture.received, received[1] as f64, "bytes", Merge::Latest),
            Evidence::told("attempts", self.total().into(), "attempts", Merge::Max),
            Evidence::told("pace", picture.pace(), "attempts/min", Merge::Max),
            Evidence::told("span", self.last_seen.since(self.began).into(), "s", Merge::Max),
            Evidence::told("refused", picture.refused, "attempts", Merge::Max),
            Evidence::told("larger_sessions", picture.work, "sessions", Merge::Max),
        ]
    }

    /// The statement, once [`Logins::judge`] has passed.
    pub fn finding(&self, judgement: &Judgement, window: EventTime, window_seconds: u32) -> Finding {
        let number = |name: &str| judgement.evidence.iter().find(|e| e.name == name).map_or(0.0, |e| e.value);
        let (severity, reason) = self.severity(judgement.method.as_str(), number("larger_sessions"));
        let mut counts = vec![0_u64; self.others.len()];
        self.attempts.iter().for_each(|a| counts[usize::from(a.other)] += 1);
        let mut met: Vec<Origin> =
            self.others.iter().zip(counts).map(|(&address, amount)| Origin { address, amount }).collect();
        // Between our own hosts it is about those that are tried at that pace.
        let most = met.iter().map(|other| other.amount).max().unwrap_or(0);
        let least = if self.side == Side::Inside { most / 2 } else { 0 };
        met.retain(|other| other.amount > 0 && other.amount >= least);
        let target = |address| Target { address, ports: vec![self.port], port_count: 1 };
        let joint = self.side == Side::Target;
        let mut targets: Vec<Target> = match joint {
            true => vec![target(self.who)],
            false => met.iter().map(|other| target(other.address)).collect(),
        };
        let target_count = targets.len() as u32;
        targets.sort_by_key(|target| target.address);
        targets.truncate(Finding::TARGETS_MAX);
        let (who, port) = (self.who, self.port);
        let service = service(port);
        let at = match targets.as_slice() {
            [one] if !joint => format!("{} port {port} ({service})", one.address),
            _ => format!("port {port} ({service}) of {{targets}} hosts"),
        };
        let success = match number("larger_sessions") >= 1.0 {
            true => {
                "; {larger_sessions} sessions among them are much larger or longer, as after a log-in that succeeded"
            }
            false => "",
        };
        let summary = match judgement.method.as_str() {
            JOINT => format!(
                "{{sources}} outsiders together try log-ins at {who} port {port} ({service}), {{pace}} a minute, each of about \
                 {{median_sent}} bytes sent and {{median_received}} received{success}"
            ),
            REFUSED => format!(
                "{who} tried {{attempts}} times to reach port {port} ({service}) of one host of ours in {{span}} s, and was refused or not \
                 answered"
            ),
            _ => format!(
                "{who} tried {{attempts}} log-ins at {at} in {{span}} s, {{pace}} a minute, each of about {{median_sent}} bytes sent and \
                 {{median_received}} received{success}"
            ),
        };
        Finding {
            threat: Threat::BruteForce,
            method: judgement.method.clone(),
            actor: if joint { Actor::Many } else { Actor::One(who) },
            subject: if joint { Subject::Victim(who) } else { Subject::Actor(who) },
            targets,
            target_count,
            sources: if joint { Origin::largest(met) } else { Vec::new() },
            severity_reason: reason.to_owned(),
            learned: Vec::new(),
            first_seen: self.began,
            last_seen: self.last_seen,
            window,
            window_seconds,
            score: 1.0 - 0.4 / judgement.ratio.max(1.0),
            severity,
            evidence: judgement.evidence.clone(),
            summary,
            interfaces: Vec::new(),
            account: String::new(),
            provisional: false,
            ml: None,
            alternatives: Vec::new(),
        }
    }

    fn severity(&self, method: &str, larger_sessions: f64) -> (Severity, &'static str) {
        match self.side {
            _ if method == REFUSED => (Severity::Low, "nothing answers, so that nothing is guessed"),
            _ if larger_sessions >= 1.0 => (Severity::High, "a log-in may have succeeded"),
            Side::Outbound => (Severity::High, "a host of ours attacks others"),
            Side::Inside => (Severity::High, "a host of ours attacks another of ours"),
            Side::Inbound | Side::Target => (Severity::Medium, "no log-in is seen to have succeeded"),
        }
    }
}

/// The methods' names.
const GUESSING: &str = "guessing";
const SPRAYING: &str = "spraying";
const JOINT: &str = "distributed_guessing";
const REFUSED: &str = "refused_guessing";

/// Whether an answered conversation has room for a log-in. Options alone are 12 bytes a packet, and 20 of the first, which an empty
/// connection has as well.
fn may_log_in(c: &Conversation, sent: u32) -> bool {
    let (least, _) = sizes(c.port);
    let options = if c.sent.packets <= 5 { 12 * u64::from(c.sent.packets) + 20 } else { 0 };
    u64::from(sent) >= least[0].max(options) && c.received.packets >= 3
}

/// What is at a port.
const fn service(port: u16) -> &'static str {
    match port {
        21 => "FTP",
        22 => "SSH",
        23 => "Telnet",
        445 => "SMB",
        3389 => "RDP",
        5900 => "VNC",
        5985 | 5986 => "WinRM",
        1433 => "SQL Server",
        3306 => "MySQL",
        5432 => "PostgreSQL",
        6379 => "Redis",
        27017 => "MongoDB",
        _ => "log-ins",
    }
}

/// What log-ins of a span look like together.
#[derive(Debug)]
struct Picture {
    answered: f64,
    refused: f64,
    /// The share of those alike.
    alike: f64,
    /// Median payload sent, bytes.
    sent: f64,
    /// Median payload received, bytes.
    received: f64,
    /// Sessions that look like somebody's work, after many that do not.
    work: f64,
    /// Log-ins by other side.
    counts: Vec<u32>,
    /// From the first to the last, s.
    span: u32,
    on_timer: bool,
}

impl Picture {
    fn others(&self) -> f64 {
        self.counts.len() as f64
    }

    /// At least one.
    fn minutes(&self) -> f64 {
        (f64::from(self.span) / 60.0).max(1.0)
    }

    fn pace(&self) -> f64 {
        self.answered / self.minutes()
    }

    fn is_alike(&self, settings: &Settings, port: u16) -> bool {
        let (sent, received) = sizes(port);
        let within = |value: f64, [least, most]: [u64; 2]| value >= least as f64 && value <= most as f64;
        self.alike >= settings.alike && within(self.sent, sent) && within(self.received, received)
    }
}

#[cfg(test)]
mod tests;
