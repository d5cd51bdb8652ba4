//! Crypto mining: a host of ours that holds a working conversation with a pool.
//!
//! Stratum has a shape of its own (Muñoz, Suárez-Varela, Barlet-Ros, "Detecting cryptocurrency miners with
//! NetFlow/IPFIX network measurements", 2019; XMR-Ray, EURASIP JIS 2021): one TCP session for as long as the miner runs, the pool pushes jobs
//! of a few hundred bytes every ten to sixty seconds, shares go up now and then, and neither side ever sends much. A push service is as
//! long-lived, but silent for minutes; an interactive session pauses; a download is large. Ports and pool lists are
//! hints that let a short session speak; without them only a long one does.

use jiff::SignedDuration;
use serde::Deserialize;

use crate::finding::{Actor, Evidence, Finding, Merge, Severity, Subject, Target, Threat};
use crate::flow::{EventTime, protocol};
use crate::statistical::beacon::{Surroundings, span};
use crate::statistical::channel;
use crate::statistical::explain::Judgement;
use crate::statistical::pair::{Channel, Session};

/// `[statistical.crypto_mining]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Ports that public pools announce.
    pub ports: Vec<u16>,
    /// Ports of services with long thin sessions of their own (web, mail, push, remote access, databases): judged only with a list hit.
    pub benign_ports: Vec<u16>,
    /// Age of a session on a pool's port or with a listed pool.
    pub age_hinted: SignedDuration,
    /// Age of a session without any hint.
    pub age: SignedDuration,
    /// Share of the session's windows in which the pool sent payload, with a hint.
    pub steadiness_hinted: f64,
    /// The same without any hint.
    pub steadiness: f64,
    /// Payload a minute, both directions, bytes: less is a keep-alive.
    pub rate_min: f64,
    /// More is not mining. A third of it without a hint.
    pub rate_max: f64,
    /// Mean payload of a packet from the pool, bytes: jobs are short lines of JSON. A third of it without a hint.
    pub message_max: f64,
    /// Mean payload of a packet of either direction, bytes, with a hint: less is a heartbeat. A list hit needs none.
    pub message_min_hinted: f64,
    /// The same without any hint.
    pub message_min: f64,
    /// Both directions' payload are within this factor of each other.
    pub balance_max: f64,
    /// Without any hint, what is sent is at most so many times what is received: who sends telemetry or logs receives little.
    pub sent_max: f64,
}

/// Judges a channel's longest session; `None` where it is not the kind.
pub fn judge(
    channel: &Channel,
    around: &Surroundings,
    listed: bool,
    prevalence_max: f64,
    settings: &Settings,
) -> Option<Judgement> {
    if channel.protocol != protocol::TCP || around.internal || channel.aws_service {
        return None;
    }
    let hinted = listed || settings.ports.contains(&channel.port);
    if !hinted && settings.benign_ports.contains(&channel.port) {
        return None;
    }
    let session = channel.longest()?;
    if session.windows < 2 {
        return None;
    }
    let (age, steadiness) =
        if hinted { (settings.age_hinted, settings.steadiness_hinted) } else { (settings.age, settings.steadiness) };
    // Some pools push a job every two minutes, which two windows cannot show and four minutes can.
    let lasting = hinted && session.duration() >= channel::PUSHED_SECONDS;
    let steadiness = if lasting { steadiness.min(channel::PUSHED) } else { steadiness };
    // Without a hint only the common, short jobs count: longer messages are as well those of any other steady session, and Tor's
    // cells have 514 bytes (tor-spec, 3).
    let message_max = if hinted { settings.message_max } else { settings.message_max / 3.0 };
    let message_min = if hinted { settings.message_min_hinted } else { settings.message_min };
    let rate_max = if hinted { settings.rate_max } else { settings.rate_max / 3.0 };
    let shape = Shape::of(session);
    let prevalence = if around.hosts >= 5.0 { around.clients / around.hosts } else { 0.0 };
    let evidence = vec![
        Evidence::at_least("session_length", shape.seconds, age.as_secs() as f64, "s", Merge::Max),
        Evidence::at_least("steadiness", shape.steadiness, steadiness, "ratio", Merge::Latest),
        Evidence::at_least("payload_rate", shape.rate, settings.rate_min, "bytes/min", Merge::Latest),
        Evidence::at_most("message_size", shape.message, message_max, "bytes/packet", Merge::Latest),
        Evidence::at_least("mean_message", shape.mean, message_min, "bytes/packet", Merge::Latest),
        Evidence::at_most("balance", shape.balance, settings.balance_max, "ratio", Merge::Latest),
        Evidence::at_most(
            "sent_to_received",
            shape.sent,
            if hinted { settings.balance_max } else { settings.sent_max },
            "ratio",
            Merge::Latest,
        ),
        Evidence::told("pool_port", f64::from(u8::from(settings.ports.contains(&channel.port))), "yes=1", Merge::Max),
        Evidence::told("pool_list", f64::from(u8::from(listed)), "yes=1", Merge::Max),
        Evidence::at_most("prevalence", prevalence, prevalence_max, "ratio", Merge::Latest),
    ];
    let passed = shape.seconds >= age.as_secs() as f64
        && shape.steadiness >= steadiness
        && (settings.rate_min..=rate_max).contains(&shape.rate)
        && shape.message <= message_max
        && (listed || shape.mean >= message_min)
        && shape.balance <= settings.balance_max
        && (hinted || shape.sent <= settings.sent_max)
        && (listed || prevalence <= prevalence_max);
    Some(Judgement {
        method: if listed {
            "pool_list"
        } else if hinted {
            "pool_port"
        } else {
            "stratum_shape"
        }
        .to_owned(),
        passed,
        evidence,
        ratio: shape.seconds / age.as_secs() as f64,
    })
}

struct Shape {
    seconds: f64,
    steadiness: f64,
    rate: f64,
    message: f64,
    mean: f64,
    balance: f64,
    sent: f64,
}

impl Shape {
    fn of(session: &Session) -> Shape {
        let seconds = f64::from(session.duration().max(1));
        let (sent, received) = (session.sent_payload.max(1) as f64, session.received_payload.max(1) as f64);
        Shape {
            seconds,
            steadiness: session.presence(session.received_windows),
            rate: (sent + received) * 60.0 / seconds,
            message: received / f64::from(session.received_packets.max(1)),
            mean: (session.sent_payload + session.received_payload) as f64
                / f64::from(session.sent_packets.saturating_add(session.received_packets).max(1)),
            balance: (sent / received).max(received / sent),
            sent: sent / received,
        }
    }
}

/// The statement, once [`judge`] has passed.
pub fn finding(channel: &Channel, judgement: &Judgement, window: EventTime, window_seconds: u32) -> Finding {
    let first = channel.sessions.iter().map(|s| s.start).min().unwrap_or(window);
    let last = channel.sessions.iter().map(|s| s.end).max().unwrap_or(window);
    let number = |name: &str| judgement.evidence.iter().find(|e| e.name == name).map_or(0.0, |e| e.value);
    let why = match judgement.method.as_str() {
        "pool_list" => "a listed mining pool",
        "pool_port" => "a port that mining pools use",
        _ => "an unknown service that behaves like a mining pool",
    };
    Finding {
        threat: Threat::CryptoMining,
        method: judgement.method.clone(),
        actor: Actor::One(channel.opener),
        subject: Subject::Actor(channel.opener),
        targets: vec![Target { address: channel.responder, ports: vec![channel.port], port_count: 1 }],
        target_count: 1,
        sources: Vec::new(),
        severity_reason: "somebody else's program runs on the host".to_owned(),
        learned: Vec::new(),
        first_seen: first,
        last_seen: last,
        window,
        window_seconds,
        score: match judgement.method.as_str() {
            "stratum_shape" => 0.7,
            channel::METHOD => number("probability"),
            _ => 0.9,
        },
        severity: Severity::High,
        evidence: judgement.evidence.clone(),
        summary: if judgement.method == channel::METHOD {
            channel::sentence(channel, &span(last.since(first))) + ", and it behaves like a mining pool's"
        } else {
            format!(
                "{} works for {} port {} ({why}): one session of {}, {:.0} bytes a minute, the other side speaks {:.0} % of the time",
                channel.opener,
                channel.responder,
                channel.port,
                span(number("session_length") as u32),
                number("payload_rate"),
                number("steadiness") * 100.0
            )
        },
        interfaces: Vec::new(),
        account: String::new(),
        provisional: false,
        ml: None,
        alternatives: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
