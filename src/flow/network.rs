//! Which addresses are ours.

use ipnet::IpNet;
use serde::Deserialize;

use crate::flow::Address;

/// Settings `[network]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// CIDR blocks of our own hosts.
    pub internal: Vec<IpNet>,
}

/// The blocks as ranges, merged and sorted, so that a test is a short binary search over cached memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    ranges: Vec<(u128, u128)>,
}

impl Network {
    /// Builds the ranges; overlapping and adjoining blocks are merged.
    pub fn new(settings: &Settings) -> Network {
        let mut ranges: Vec<(u128, u128)> = settings
            .internal
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
        Network { ranges: merged }
    }

    /// Whether an address is ours.
    pub fn is_internal(&self, address: Address) -> bool {
        let bits = address.bits();
        let after = self.ranges.partition_point(|&(first, _)| first <= bits);
        after > 0 && bits <= self.ranges[after - 1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_both_families_are_ours_up_to_their_last_address() {
        let internal = ["10.0.0.0/8", "10.1.0.0/16", "fc00::/7", "192.168.1.7/32"].map(|b| b.parse().unwrap()).to_vec();
        let network = Network::new(&Settings { internal });
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
}
