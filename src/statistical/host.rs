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
    /// Answered conversations opened by our hosts, saturating.
    pub answered: u32,
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
        Host { address, first_seen: at, last_seen: at, clients: 0, answered: 0 }
    }

    /// Notes activity.
    pub fn touch(&mut self, at: EventTime) {
        self.first_seen = self.first_seen.min(at);
        self.last_seen = self.last_seen.max(at);
    }

    /// Notes that one of our hosts opened a conversation with it.
    pub fn note_client(&mut self, client: Address) {
        self.clients |= 1 << (mix(client) & 63);
    }

    /// How many of our hosts talk to it, estimated: −64·ln(zero bits / 64).
    pub fn clients(&self) -> f64 {
        match self.clients.count_ones() {
            0 => 0.0,
            1 => 1.0,
            64 => 64.0 * 64f64.ln(),
            set => -64.0 * (f64::from(64 - set) / 64.0).ln(),
        }
    }
}

/// A fixed mixing of an address (splitmix64's finaliser): the counter's bits must not depend on a table's seed.
pub fn mix(address: Address) -> u64 {
    let bits = address.bits();
    let mut z = (bits as u64) ^ ((bits >> 64) as u64).rotate_left(32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
