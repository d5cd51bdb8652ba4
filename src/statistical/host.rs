//! What is remembered of an address: since when it is known, and how many of our hosts talk to it.

use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime};
use crate::statistical::table::Entry;

/// An address as a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// The address.
    pub address: Address,
    /// First conversation.
    pub first_seen: EventTime,
    /// Latest conversation.
    pub last_seen: EventTime,
    /// Which of our hosts opened conversations with it: a linear counter (Whang et al., TODS 1990) of 64 bits, good to
    /// a tenth up to about 100 hosts, which is all that "rare or common?" needs.
    clients: u64,
    /// The window that `asked` and `asked_packets` are of.
    asked_in: EventTime,
    /// Conversations opened towards it in that window.
    asked: u32,
    /// Packets sent to it by the openers in that window, held at the maximum.
    asked_packets: u32,
    /// TCP ports at which it has answered, by hash: one bit of 64 each.
    served: u64,
    /// Conversations that it had, at most 2^32.
    pub conversations: u32,
    /// Their bytes, of both directions.
    pub bytes: u64,
    /// With whom: a linear counter as `clients` is.
    with: u64,
}

impl Entry for Host {
    type Key = Address;

    fn key(&self) -> Address {
        self.address
    }

    fn last_seen(&self) -> EventTime {
        self.last_seen
    }
}

impl Host {
    /// An address that was never seen before.
    pub fn new(address: Address, at: EventTime) -> Host {
        let never = EventTime(u32::MAX);
        Host {
            address,
            first_seen: at,
            last_seen: at,
            clients: 0,
            asked_in: never,
            asked: 0,
            asked_packets: 0,
            served: 0,
            conversations: 0,
            bytes: 0,
            with: 0,
        }
    }

    /// Notes a conversation opened towards it in a window; gives conversations and packets of the window so far.
    pub fn note_asked(&mut self, window: EventTime, packets: u32) -> (u32, u64) {
        if self.asked_in != window {
            (self.asked_in, self.asked, self.asked_packets) = (window, 0, 0);
        }
        self.asked += 1;
        self.asked_packets = self.asked_packets.saturating_add(packets);
        (self.asked, u64::from(self.asked_packets))
    }

    /// Notes activity.
    pub fn touch(&mut self, at: EventTime) {
        self.first_seen = self.first_seen.min(at);
        self.last_seen = self.last_seen.max(at);
    }

    /// Notes a conversation, whoever opened it, and its bytes.
    pub fn note_talk(&mut self, peer: Address, bytes: u64) {
        self.conversations = self.conversations.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        self.with |= 1 << (mix(peer) & 63);
    }

    /// Notes that one of our hosts opened a conversation with it.
    pub fn note_client(&mut self, client: Address) {
        self.clients |= 1 << (mix(client) & 63);
    }

    /// Notes that it answered at a TCP port.
    pub fn note_served(&mut self, port: u16) {
        self.served |= served_bit(port);
    }

    /// Whether it has answered at a TCP port before, as far as can be told: of a host with so many ports that the bits say
    /// nothing, no.
    pub fn serves(&self, port: u16) -> bool {
        self.served & served_bit(port) != 0 && self.served.count_ones() <= 16
    }

    /// Takes over what another engine knows of the same address.
    pub fn join(&mut self, other: &Host) {
        self.served |= other.served;
        self.conversations = self.conversations.max(other.conversations);
        self.bytes = self.bytes.max(other.bytes);
        self.with |= other.with;
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
        self.clients |= other.clients;
        // No window but the latest is asked about; none at all stands at the end of time.
        let age = |host: &Host| (host.asked > 0).then_some(host.asked_in);
        if age(self) < age(other) {
            (self.asked_in, self.asked, self.asked_packets) = (other.asked_in, other.asked, other.asked_packets);
        } else if age(self) == age(other) {
            self.asked = self.asked.max(other.asked);
            self.asked_packets = self.asked_packets.max(other.asked_packets);
        }
    }

    /// How many of our hosts talk to it, estimated: −64·ln(zero bits / 64).
    pub fn clients(&self) -> f64 {
        estimate(self.clients)
    }

    /// How many others it has had conversations with, estimated in the same way.
    pub fn peers(&self) -> f64 {
        estimate(self.with)
    }
}

fn estimate(bits: u64) -> f64 {
    match bits.count_ones() {
        0 => 0.0,
        1 => 1.0,
        64 => 64.0 * 64f64.ln(),
        set => -64.0 * (f64::from(64 - set) / 64.0).ln(),
    }
}

/// Fibonacci hashing (Knuth, TAOCP 3, 6.4) of a port to one of 64 bits.
fn served_bit(port: u16) -> u64 {
    1 << (u64::from(port).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

/// A fixed mixing of an address (splitmix64's finaliser): the counter's bits must not depend on a table's seed.
pub fn mix(address: Address) -> u64 {
    let bits = address.bits();
    let mut z = (bits as u64) ^ ((bits >> 64) as u64).rotate_left(32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
