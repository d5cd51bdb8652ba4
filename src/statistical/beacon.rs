//! Command-and-control channels: a host of ours that keeps calling one place nobody else calls.
//!
//! Periodicity alone is useless: every agent, mirror and clock in a cloud is periodic. What is rare is *regular timing
//! and always the same exchange, with a place that few of our hosts know*. Four shapes are told:
//!
//! - `periodic`: sessions opened at regular intervals. Timing is tested as a likelihood ratio between "a timer with
//!   jitter" and "at random" (Poisson), over the active span only, so that a beacon of four minutes and one of four days
//!   are judged alike; it tolerates jitter of some tens of per cent and a tenth of stray calls. Size is tested by how
//!   often the very same exchange recurs (RITA v5 and Elastic test dispersion of sizes; identical exchanges are the
//!   stronger form of it).
//! - `failing`: the same timing over TCP where nobody answers: a controller that was taken down.
//! - `long_channel`: one thin session for hours, on a port without a known service.
//! - `paced_session`: one session with the same message at regular intervals, on such a port ([`paced`]).

use jiff::SignedDuration;
use serde::Deserialize;

use crate::finding::{Actor, Evidence, Finding, Merge, Severity, Subject, Target, Threat};
use crate::flow::{EventTime, protocol};
use crate::statistical::channel;
use crate::statistical::conversation::port_rank;
use crate::statistical::explain::Judgement;
use crate::statistical::pair::{Channel, Session};

pub mod paced;

/// `[statistical.c2_beacon]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Log-likelihood ratio of the timing, nats, beyond what the number of channels under watch takes.
    pub timing_nats: f64,
    /// Fewer opened bursts of sessions are no evidence.
    pub bursts_min: u32,
    /// At least this share of the intervals keeps time.
    pub regular: f64,
    /// At least this share of the sessions is the very same exchange.
    pub same_exchange: f64,
    /// Or four of five sessions are within this of the median size, relative, in both directions.
    pub size_dispersion: f64,
    /// Which takes at least so many calls to measure.
    pub size_calls: u32,
    /// The same where the destination is known to be rare (see the next three), or where the timer is spread on purpose.
    pub rare_dispersion: f64,
    /// Spread of the intervals (as [`Timing::jitter`]) that no scheduler has of itself.
    pub wilful_jitter: f64,
    /// Rare is a destination that at most so many of our hosts use (a host and the NAT gateway before it are two),
    pub rare_clients: f64,
    /// where there are at least so many of our hosts to tell.
    pub rare_hosts: f64,
    /// and that was first seen after so long a watch: what was there from the beginning may be anybody's agent.
    pub rare_watch: SignedDuration,
    /// A check-in is short: median payload of both directions, bytes.
    pub payload_max: u64,
    /// A destination that more than this share of our hosts uses is a service, not a controller.
    pub prevalence_max: f64,
    /// Below so many of our hosts, prevalence says nothing.
    pub prevalence_hosts: u32,
    /// From so many other hosts on that call alike, and have since they were first seen, it is their agent that calls.
    pub fleet: u32,
    /// Attempts of a channel that is never answered.
    pub failing_min: u32,
    /// And for at least so long.
    pub failing_span: SignedDuration,
    /// A thin session lasts at least so long.
    pub long_span: SignedDuration,
    /// And carries at most so many payload bytes a minute.
    pub long_rate: f64,
    /// Ports of services with long thin sessions of their own: no thin session is told there.
    pub thin_ports: Vec<u16>,
    /// A host that holds sessions with so many unknown services at once is a peer among peers: none of them is its controller,
    /// or its pool.
    pub peers: usize,
    /// A host that meanwhile tries unknown services of so many others, answered or not, is a peer among peers as well: none of
    /// its calls to one of them is told.
    pub peers_tried: usize,
    /// Ports on which internal addresses are judged as well: HTTP and SOCKS proxies.
    pub proxy_ports: Vec<u16>,
    /// Ports of services that are periodic by nature (time, names, push, keep-alives), never judged.
    pub benign_ports: Vec<u16>,
}

/// What the engine knows around a channel.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// How many of our hosts use the destination.
    pub clients: f64,
    /// How many of our hosts there are.
    pub hosts: f64,
    /// How long the engine had watched when the destination was first seen, s.
    pub watched_before: u32,
    /// Channels under watch: each is a chance to be fooled.
    pub channels: usize,
    /// Whether the responder is ours, or at least not on the internet.
    pub internal: bool,
}

impl Surroundings {
    /// Share of our hosts that use the destination, or `None` where there are too few to tell.
    pub fn prevalence(&self, settings: &Settings) -> Option<f64> {
        (self.hosts >= f64::from(settings.prevalence_hosts)).then(|| self.clients / self.hosts)
    }
}

/// Sessions that start within so many seconds are one call: browsers and retries open several at once, and a SYN is
/// retried after 1 and 3 s (RFC 6298, 5.7 and the common stacks).
const BURST_SECONDS: u32 = 5;

/// Regularity of the calls of a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Calls.
    pub bursts: u32,
    /// Median interval, s.
    pub period: f64,
    /// Spread of the regular intervals around it: 1.4826 × median absolute deviation, over the period.
    pub jitter: f64,
    /// Log-likelihood ratio against random calls, nats.
    pub nats: f64,
    /// Share of the intervals within half a period of the period: the frameworks in use (Cobalt Strike, Sliver, Mythic)
    /// let an operator choose a jitter of up to 50 %, and seldom is more chosen.
    pub regular: f64,
    /// From first to last call, s.
    pub span: u32,
}

/// Share of calls that may be out of order (a user, a retry, a missed record) without spoiling the test.
const STRAY: f64 = 0.1;

/// The beginnings of calls, of session starts in ascending order.
pub fn calls(starts: &[EventTime]) -> Vec<u32> {
    let mut calls: Vec<u32> = Vec::with_capacity(starts.len());
    for start in starts {
        if calls.last().is_none_or(|&last| start.0.saturating_sub(last) > BURST_SECONDS) {
            calls.push(start.0);
        }
    }
    calls
}

/// Tests session starts for a timer: intervals are a mixture of a Laplace distribution around the median (a timer with
/// jitter) and, for one in ten, an exponential one; against exponential intervals of the same mean (calls at random).
/// Gaps above twenty periods are sleep: the host was off, or the attacker paused. They count for neither.
pub fn timing(starts: &[EventTime]) -> Option<Timing> {
    let calls = calls(starts);
    let mut intervals: Vec<f64> = calls.windows(2).map(|pair| f64::from(pair[1] - pair[0])).collect();
    if intervals.len() + 1 < TIMED {
        return None;
    }
    let typical = median(&mut intervals);
    intervals.retain(|&i| i <= 20.0 * typical);
    let period = median(&mut intervals);
    let mut deviations: Vec<f64> = intervals.iter().map(|i| (i - period).abs()).collect();
    let mad = median(&mut deviations);
    // Whole seconds cannot show less than about half a second of spread.
    let scale = (mad / std::f64::consts::LN_2).max(0.5).max(0.01 * period);
    let mean = intervals.iter().sum::<f64>() / intervals.len() as f64;
    let nats = intervals
        .iter()
        .map(|&i| {
            let random = (-i / mean).exp() / mean;
            let timer = (-(i - period).abs() / scale).exp() / (2.0 * scale);
            (((1.0 - STRAY) * timer + STRAY * random) / random).ln()
        })
        .sum();
    Some(Timing {
        bursts: calls.len() as u32,
        period,
        jitter: 1.4826 * mad / period.max(1.0),
        nats,
        regular: intervals.iter().filter(|&&i| (i - period).abs() <= 0.5 * period).count() as f64
            / intervals.len() as f64,
        span: calls[calls.len() - 1] - calls[0],
    })
}

/// The median, 0 for no values at all.
pub fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

/// How alike the exchanges are.
#[derive(Clone, Copy, Debug)]
struct Sameness {
    /// Share of the sessions with the most common (payload sent, payload received).
    same: f64,
    /// The relative deviation from the median that four of five sessions keep, in the worse of the two directions.
    dispersion: f64,
    /// Median payload of both directions together.
    payload: f64,
}

fn sameness(sessions: &[&Session]) -> Sameness {
    let mut counts = std::collections::BTreeMap::new();
    for s in sessions {
        *counts.entry((s.sent_payload, s.received_payload)).or_insert(0u32) += 1;
    }
    let same = f64::from(counts.values().copied().max().unwrap_or(0)) / sessions.len().max(1) as f64;
    let deviation = |payload: &dyn Fn(&Session) -> u64| {
        let mut values: Vec<f64> = sessions.iter().map(|s| payload(s) as f64).collect();
        let middle = median(&mut values);
        let mut deviations: Vec<f64> = values.iter().map(|v| (v - middle).abs() / middle.max(1.0)).collect();
        deviations.sort_unstable_by(f64::total_cmp);
        deviations.get(deviations.len() * 4 / 5).copied().unwrap_or(1.0)
    };
    let mut both: Vec<f64> = sessions.iter().map(|s| (s.sent_payload + s.received_payload) as f64).collect();
    Sameness {
        same,
        dispersion: deviation(&|s| s.sent_payload).max(deviation(&|s| s.received_payload)),
        payload: median(&mut both),
    }
}

/// Judges a channel by its sessions; `None` where there is nothing to judge yet.
pub fn judge(channel: &Channel, around: &Surroundings, settings: &Settings) -> Option<Judgement> {
    let proxy = settings.proxy_ports.contains(&channel.port);
    if around.internal && !proxy || settings.benign_ports.contains(&channel.port) || channel.aws_service {
        return None;
    }
    if channel.protocol != protocol::TCP && channel.protocol != protocol::UDP || channel.responder.is_group() {
        return None;
    }
    let failed = channel.sessions.iter().filter(|s| s.failed).count();
    let judgement = match (failed * 10 >= channel.sessions.len() * 9, channel.protocol) {
        (false, _) => periodic(channel, around, settings),
        (true, protocol::TCP) => failing(channel, around, settings),
        // What is sent without an answer over UDP is logs and measurements: nothing says that one was wanted.
        (true, _) => None,
    };
    let others = [long_channel(channel, around, settings), paced::judge(channel, around, settings)];
    let nearest = |a: &Judgement, b: &Judgement| (b.passed, b.ratio) > (a.passed, a.ratio);
    others.into_iter().flatten().fold(judgement, |best, other| match best {
        Some(best) if !nearest(&best, &other) => Some(best),
        _ => Some(other),
    })
}

fn needed(around: &Surroundings, settings: &Settings) -> f64 {
    settings.timing_nats + (around.channels.max(1) as f64).ln()
}

fn rarity(around: &Surroundings, settings: &Settings, evidence: &mut Vec<Evidence>) -> bool {
    let Some(prevalence) = around.prevalence(settings) else { return true };
    evidence.push(Evidence::at_most("prevalence", prevalence, settings.prevalence_max, "ratio", Merge::Latest));
    // A proxy is used by everyone; the controller behind it is not to be seen.
    around.internal || prevalence <= settings.prevalence_max
}

fn timing_evidence(t: &Timing, needed: f64, settings: &Settings) -> Vec<Evidence> {
    vec![
        Evidence::at_least("timing_log_likelihood_ratio", t.nats, needed, "nats", Merge::Max),
        Evidence::at_least("regular_intervals", t.regular, settings.regular, "ratio", Merge::Latest),
        Evidence::told("period", t.period, "s", Merge::Latest),
        Evidence::told("jitter", t.jitter, "ratio", Merge::Latest),
        Evidence::told("calls", f64::from(t.bursts), "calls", Merge::Max),
        Evidence::told("span", f64::from(t.span), "s", Merge::Max),
    ]
}

/// Sessions below which [`timing`] tells nothing: three intervals.
const TIMED: usize = 4;

fn periodic(channel: &Channel, around: &Surroundings, settings: &Settings) -> Option<Judgement> {
    if channel.sessions.len() < TIMED {
        return None;
    }
    let answered: Vec<&Session> = channel.sessions.iter().filter(|s| !s.failed).collect();
    let starts: Vec<EventTime> = answered.iter().map(|s| s.start).collect();
    let t = timing(&starts)?;
    let alike = sameness(&answered);
    let needed = needed(around, settings);
    // Encrypted check-ins differ by a few bytes, as those of every agent do. Where many hosts are seen and hardly one knows
    // the place, it is no agent's; then more beats are asked for instead of the same bytes.
    let rare_place = around.hosts >= settings.rare_hosts
        && around.clients <= settings.rare_clients
        && i64::from(around.watched_before) >= settings.rare_watch.as_secs()
        && t.nats >= 2.0 * needed;
    // Schedulers keep their beat, or spread it a little so that not all hosts call at once; implants spread it widely so as
    // not to be found by it.
    let wilful = t.jitter >= settings.wilful_jitter && t.nats >= 2.0 * needed;
    let dispersion_max = if rare_place || wilful { settings.rare_dispersion } else { settings.size_dispersion };
    // How far sizes scatter is luck while there are few of them; that they are the very same is not.
    let measured = t.bursts >= settings.size_calls;
    let alike_enough = alike.same >= settings.same_exchange || measured && alike.dispersion <= dispersion_max;
    let mut evidence = timing_evidence(&t, needed, settings);
    evidence.push(Evidence::at_least("same_exchange", alike.same, settings.same_exchange, "ratio", Merge::Latest));
    evidence.push(Evidence::at_most("size_dispersion", alike.dispersion, dispersion_max, "ratio", Merge::Latest));
    evidence.push(Evidence::at_most("payload", alike.payload, settings.payload_max as f64, "bytes", Merge::Latest));
    let rare = rarity(around, settings, &mut evidence);
    let regular = t.nats >= needed && t.bursts >= settings.bursts_min && t.regular >= settings.regular;
    let passed = regular && alike_enough && rare && alike.payload <= settings.payload_max as f64 && alike.payload > 0.0;
    Some(Judgement { method: "periodic".to_owned(), passed, evidence, ratio: (t.nats / needed).max(0.0) })
}

fn failing(channel: &Channel, around: &Surroundings, settings: &Settings) -> Option<Judgement> {
    if channel.sessions.len() < TIMED {
        return None;
    }
    let starts: Vec<EventTime> = channel.sessions.iter().map(|s| s.start).collect();
    let t = timing(&starts)?;
    let needed = needed(around, settings);
    let mut evidence = timing_evidence(&t, needed, settings);
    evidence.push(Evidence::at_least(
        "failed_calls",
        f64::from(t.bursts),
        f64::from(settings.failing_min),
        "calls",
        Merge::Max,
    ));
    let rare = rarity(around, settings, &mut evidence);
    let lasting = i64::from(t.span) >= settings.failing_span.as_secs();
    // The proxy that is down is an outage, not a channel.
    let regular = t.nats >= needed && t.regular >= settings.regular;
    let passed = regular && t.bursts >= settings.failing_min && lasting && rare && !around.internal;
    Some(Judgement { method: "failing".to_owned(), passed, evidence, ratio: (t.nats / needed).max(0.0) })
}

/// Whether channels of this kind are what peer-to-peer clients have by the dozen, so that one of many says nothing: the port is
/// no registered service.
pub fn may_be_a_peer(channel: &Channel, judgement: &Judgement) -> bool {
    matches!(judgement.method.as_str(), "failing" | "periodic") && port_rank(channel.port) > 0
}

/// Whether it is with a service outside of which the port says nothing.
pub fn may_be_unknown(channel: &Channel, internal: bool) -> bool {
    channel.protocol == protocol::TCP && !internal && port_rank(channel.port) > 0
}

fn long_channel(channel: &Channel, around: &Surroundings, settings: &Settings) -> Option<Judgement> {
    let session = channel.longest()?;
    if !may_be_unknown(channel, around.internal) || settings.thin_ports.contains(&channel.port) || session.windows < 3 {
        return None;
    }
    let minutes = f64::from(session.duration().max(60)) / 60.0;
    let rate = (session.sent_payload + session.received_payload) as f64 / minutes;
    let presence = session.presence(session.windows);
    let wanted = settings.long_span.as_secs() as f64;
    let mut evidence = vec![
        Evidence::at_least("session_length", f64::from(session.duration()), wanted, "s", Merge::Max),
        Evidence::at_most("payload_rate", rate, settings.long_rate, "bytes/min", Merge::Latest),
        Evidence::at_least("presence", presence, 0.3, "ratio", Merge::Latest),
    ];
    let rare = rarity(around, settings, &mut evidence);
    let passed = f64::from(session.duration()) >= wanted
        && rate <= settings.long_rate
        && presence >= 0.3
        && session.sent_windows > 0
        && (session.received_windows > 0 || session.is_answered_thinly())
        && rare;
    Some(Judgement {
        method: "long_channel".to_owned(),
        passed,
        evidence,
        ratio: f64::from(session.duration()) / wanted,
    })
}

/// The statement, once [`judge`] has passed.
pub fn finding(channel: &Channel, judgement: &Judgement, window: EventTime, window_seconds: u32) -> Finding {
    let first = channel.sessions.iter().map(|s| s.start).min().unwrap_or(window);
    let last = channel.sessions.iter().map(|s| s.end).max().unwrap_or(window);
    let number = |name: &str| judgement.evidence.iter().find(|e| e.name == name).map_or(0.0, |e| e.value);
    let (opener, responder, port) = (channel.opener, channel.responder, channel.port);
    let (severity, reason) = match judgement.method.as_str() {
        "periodic" => (Severity::High, "somebody who answers a program at its own beat may command the host"),
        "failing" => (Severity::Medium, "nobody answers, so nobody commands the host at present"),
        paced::METHOD => (Severity::Medium, "a program that reports at its own beat may be commanded from there"),
        channel::METHOD => (Severity::Medium, "what is out of character for one host may be somebody's new program"),
        _ => (Severity::Medium, "a thin session may as well be that of a service nobody named"),
    };
    // A call may be several connections at once.
    let sessions = channel.sessions.iter().filter(|s| s.failed == (judgement.method == "failing")).count() as f64;
    let each = sessions / number("calls").max(1.0);
    let calls = match each >= 1.5 {
        true => format!("{:.0} bursts of about {each:.0} connections", number("calls")),
        false => format!("{:.0} calls", number("calls")),
    };
    let summary = match judgement.method.as_str() {
        "failing" => format!(
            "{opener} keeps trying {responder} port {port} every {:.0} s and is never answered: {calls} in {}",
            number("period"),
            span(last.since(first))
        ),
        "long_channel" => format!(
            "{opener} holds one thin session with {responder} port {port} open for {}: {:.0} bytes a minute",
            span(number("session_length") as u32),
            number("payload_rate")
        ),
        paced::METHOD => format!(
            "{opener} keeps a session with {responder} port {port} open and sends the same {:.0} bytes into it every {:.0} s: \
             {:.0} messages in {}",
            number("message"),
            number("period"),
            number("calls"),
            span(number("span") as u32)
        ),
        channel::METHOD => channel::sentence(channel, &span(last.since(first))),
        _ => format!(
            "{opener} calls {responder} port {port} every {:.0} s (± {:.0} %) with {} exchange: {calls} in {}",
            number("period"),
            number("jitter") * 100.0,
            if judgement.holds("same_exchange") { "the same" } else { "nearly the same" },
            span(last.since(first))
        ),
    };
    Finding {
        threat: Threat::C2Beacon,
        method: judgement.method.clone(),
        actor: Actor::One(opener),
        subject: Subject::Pair(opener, responder),
        targets: vec![Target { address: responder, ports: vec![port], port_count: 1 }],
        target_count: 1,
        sources: Vec::new(),
        severity_reason: reason.to_owned(),
        learned: Vec::new(),
        first_seen: first,
        last_seen: last,
        window,
        window_seconds,
        score: match judgement.method.as_str() {
            channel::METHOD => number("probability"),
            _ => 1.0 - 0.5 / judgement.ratio.max(1.0),
        },
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

/// A span in the unit a person would use.
pub fn span(seconds: u32) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        _ => format!("{:.1} h", f64::from(seconds) / 3_600.0),
    }
}

#[cfg(test)]
mod tests;
