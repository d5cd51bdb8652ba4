//! Which addresses are ours by the settings.
//!
//! The settings are not the only source: the engine also learns which addresses own the interfaces that log them
//! ([`crate::statistical::owner`]). What is listed as external is never ours, whatever was learned.

use ipnet::IpNet;
use serde::Deserialize;

use crate::flow::Address;

/// Settings `[network]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// CIDR blocks of our own hosts.
    pub internal: Vec<IpNet>,
    /// CIDR blocks that are never ours, though they lie in `internal` or an interface seems to own them.
    pub external: Vec<IpNet>,
    /// Whether the addresses that own the interfaces of a log are ours as well.
    pub learn: bool,
}

/// The blocks as ranges, merged and sorted, so that a test is a short binary search over cached memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    internal: Ranges,
    external: Ranges,
    learn: bool,
}

/// Blocks as ranges of addresses, merged and sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges(Vec<(u128, u128)>);

impl Network {
    /// Builds the ranges; overlapping and adjoining blocks are merged.
    pub fn new(settings: &Settings) -> Network {
        Network {
            internal: Ranges::new(&settings.internal),
            external: Ranges::new(&settings.external),
            learn: settings.learn,
        }
    }

    /// Whether the owners of interfaces are ours as well.
    pub fn learns(&self) -> bool {
        self.learn
    }

    /// Whether an address is ours by the settings.
    pub fn is_internal(&self, address: Address) -> bool {
        self.internal.contains(address) && !self.is_external(address)
    }

    /// Whether the settings say that an address is never ours.
    pub fn is_external(&self, address: Address) -> bool {
        self.external.contains(address)
    }
}

impl Ranges {
    fn new(blocks: &[IpNet]) -> Ranges {
        let mut ranges: Vec<(u128, u128)> = blocks
            .iter()
            .map(|block| (Address::from(block.network()).bits(), Address::from(block.broadcast()).bits()))
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Ranges(merged)
    }

    #[inline]
    fn contains(&self, address: Address) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let bits = address.bits();
        let after = self.0.partition_point(|&(first, _)| first <= bits);
        after > 0 && bits <= self.0[after - 1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_both_families_are_ours_up_to_their_last_address() {
        let internal = ["10.0.0.0/8", "10.1.0.0/16", "fc00::/7", "192.168.1.7/32"].map(|b| b.parse().unwrap()).to_vec();
        let network = Network::new(&Settings { internal, external: Vec::new(), learn: true });
        for (address, ours) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("fd00::1", true),
            ("fe80::1", false),
            ("192.168.1.7", true),
            ("192.168.1.8", false),
        ] {
            assert_eq!(network.is_internal(address.parse().unwrap()), ours, "{address}");
        }
    }

    #[test]
    fn what_is_listed_as_external_is_not_ours_though_it_lies_in_a_block_that_is() {
        let blocks = |text: &[&str]| text.iter().map(|block| block.parse().unwrap()).collect();
        let (internal, external) = (blocks(&["10.0.0.0/8"]), blocks(&["10.9.0.0/16"]));
        let network = Network::new(&Settings { internal, external, learn: true });
        assert!(network.is_internal("10.8.255.255".parse().unwrap()));
        assert!(!network.is_internal("10.9.0.1".parse().unwrap()));
        assert!(network.is_external("10.9.0.1".parse().unwrap()));
    }
}
