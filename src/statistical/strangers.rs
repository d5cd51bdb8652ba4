//! Where conversations are of which neither end is ours: what may have to be named in the settings.

use serde::{Deserialize, Serialize};

use super::Map;
use crate::flow::Address;

/// Conversations of strangers, by network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Strangers {
    /// By the first address of the network.
    networks: Map<Address, u64>,
}

/// Networks that are counted at once; beyond it the rarer half is forgotten. More than a log has by rights, and a megabyte.
const NETWORKS_MAX: usize = 16_384;

/// Networks that are told.
const TOLD: usize = 256;

impl Strangers {
    /// Counts a conversation in the networks of both ends.
    #[inline]
    pub(super) fn note(&mut self, one: Address, other: Address) {
        let (one, other) = (network(one), network(other));
        *self.networks.entry(one).or_default() += 1;
        if other != one {
            *self.networks.entry(other).or_default() += 1;
        }
    }

    /// Makes room, between windows, so that the order of conversations within one cannot matter.
    pub(super) fn make_room(&mut self) {
        if self.networks.len() > NETWORKS_MAX {
            self.networks = self.most_frequent(NETWORKS_MAX / 2).into_iter().collect();
        }
    }

    /// Takes over what another engine has counted.
    pub(super) fn join(&mut self, other: Strangers) {
        for (network, conversations) in other.networks {
            *self.networks.entry(network).or_default() += conversations;
        }
        self.make_room();
    }

    /// The most frequent networks as the settings would name them, with their conversations.
    pub(super) fn told(&self) -> impl Iterator<Item = (String, u64)> {
        self.most_frequent(TOLD).into_iter().map(|(network, conversations)| (name(network), conversations))
    }

    fn most_frequent(&self, count: usize) -> Vec<(Address, u64)> {
        let mut all: Vec<(Address, u64)> = self.networks.iter().map(|(&network, &n)| (network, n)).collect();
        all.sort_unstable_by_key(|&(network, n)| (std::cmp::Reverse(n), network));
        all.truncate(count);
        all
    }
}

/// Bits of an address behind its network's: /16 of IPv4, /48 of IPv6.
fn host_bits(address: Address) -> u32 {
    if address.as_v4().is_some() { 16 } else { 80 }
}

/// The first address of an address's network.
fn network(address: Address) -> Address {
    let bits = host_bits(address);
    Address::from_bits(address.bits() >> bits << bits)
}

fn name(network: Address) -> String {
    let whole = if network.as_v4().is_some() { 32 } else { 128 };
    format!("{network}/{}", whole - host_bits(network))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistical::tests::address;

    #[test]
    fn a_conversation_counts_once_in_each_of_its_networks() {
        let mut strangers = Strangers::default();
        strangers.note(address("198.18.1.7"), address("203.0.113.9"));
        strangers.note(address("198.18.1.7"), address("198.18.255.1"));
        strangers.note(address("2001:db8:1:2::3"), address("2001:db8:2::4"));
        let told: Vec<(String, u64)> = strangers.told().collect();
        let expected = [("198.18.0.0/16", 2), ("203.0.0.0/16", 1), ("2001:db8:1::/48", 1), ("2001:db8:2::/48", 1)];
        assert_eq!(told, expected.map(|(name, n)| (name.to_owned(), n)));
    }

    #[test]
    fn whoever_makes_up_networks_drives_none_of_the_frequent_out() {
        let mut strangers = Strangers::default();
        let frequent = address("198.18.1.7");
        for n in 0..100_000u128 {
            strangers.note(frequent, Address::from_bits(0x2001_0db8 << 96 | n << 80));
            strangers.make_room();
            assert!(strangers.networks.len() <= NETWORKS_MAX + 1);
        }
        assert_eq!(strangers.told().next(), Some(("198.18.0.0/16".to_owned(), 100_000)));
        assert_eq!(strangers.told().count(), TOLD);
    }
}
