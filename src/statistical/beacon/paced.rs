//! `paced_session`: one session, and in it the same message at the same interval.
//!
//! What calls anew for every report shows its timer in its calls. What keeps its session open shows it in the messages inside: a window of the
//! log that holds a packet or two within a moment is one message. Asked is what is asked of calls, regular timing and always the same
//! exchange, so that five minutes are enough where a thin session as such takes half an hour.
//!
//! It is judged where thin sessions are: on ports of no known service. A message is more than a keep-alive: those of the protocols that
//! are kept open for days (MQTT, WebSocket, XMPP, BitTorrent, SSH) have up to some 90 bytes, under TLS as well.
//! An aggregation interval of ten minutes shows none of this.

use super::{Settings, Surroundings, may_be_unknown, needed, rarity, timing, timing_evidence};
use crate::finding::{Evidence, Merge};
use crate::flow::EventTime;
use crate::statistical::explain::Judgement;
use crate::statistical::pair::{Channel, Message};

/// The method's name.
pub const METHOD: &str = "paced_session";

/// Payload of a message and its answer that is more than a keep-alive, bytes.
const MESSAGE_MIN: f64 = 100.0;

/// Judges the messages in a channel's longest session; `None` where there are too few.
pub fn judge(channel: &Channel, around: &Surroundings, settings: &Settings) -> Option<Judgement> {
    if !may_be_unknown(channel, around.internal) || settings.thin_ports.contains(&channel.port) {
        return None;
    }
    let session = channel.longest()?;
    let messages: Vec<&Message> = channel.messages_of(session).collect();
    // The session's beginning is a beat as well, whatever it carries.
    let mut starts: Vec<EventTime> = messages.iter().map(|message| message.at).collect();
    if channel.messages.len() < Channel::MESSAGES_MAX {
        starts.insert(0, session.start);
    }
    let t = timing(&starts)?;
    let needed = needed(around, settings);
    let (same, payload) = commonest(&messages);
    let mut evidence = timing_evidence(&t, needed, settings);
    evidence.push(Evidence::at_least("same_exchange", same, settings.same_exchange, "ratio", Merge::Latest));
    evidence.push(Evidence::at_least("message", payload, MESSAGE_MIN, "bytes", Merge::Latest));
    let rare = rarity(around, settings, &mut evidence);
    let regular = t.nats >= needed && t.bursts >= settings.bursts_min && t.regular >= settings.regular;
    let passed = regular && same >= settings.same_exchange && payload >= MESSAGE_MIN && rare;
    Some(Judgement { method: METHOD.to_owned(), passed, evidence, ratio: (t.nats / needed).max(0.0) })
}

/// The share of the commonest exchange, and its payload of both directions, bytes; of equals the smaller one.
fn commonest(messages: &[&Message]) -> (f64, f64) {
    let mut counts = std::collections::BTreeMap::new();
    for message in messages {
        *counts.entry((message.sent, message.received)).or_insert(0u32) += 1;
    }
    let commonest = counts.into_iter().max_by_key(|&(exchange, count)| (count, std::cmp::Reverse(exchange)));
    commonest.map_or((0.0, 0.0), |((sent, received), count)| {
        (f64::from(count) / messages.len() as f64, f64::from(sent) + f64::from(received))
    })
}

#[cfg(test)]
mod tests;
