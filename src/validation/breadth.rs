//! How much a reason to stay quiet would hide, however it is written.
//!
//! A rule that hides nearly everything is a switched-off alarm. `0.0.0.0/0` is easy to see; two halves of it, all six
//! threats by name, every network of ours, or two rules of half the world each are the same thing. So rules are looked at
//! together, threat by threat, and by how much of the address space their blocks cover:
//!
//! - Threats and methods bound nothing: a rule with only these hides all of a kind, whoever does it to whom.
//! - Actors or targets bound, unless their blocks together cover more than a sixteenth of IPv4 (a /4), more than 1/256 of IPv6
//!   (a /8; what is routed at all is a /3), or more than half of our own addresses. Multicast and reserved addresses belong to no host and do
//!   not count.
//! - Ports bound, unless they are most of those there are.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::matching::{Block, Pattern};
use crate::finding::Threat;

/// Most IPv4 addresses that still are a bound.
const V4_MOST: u64 = 1 << 28;

/// Most IPv6 addresses that still are a bound.
const V6_MOST: u128 = 1 << 120;

/// Most ports that still are a bound.
const PORTS_MOST: usize = 1 << 15;

/// The threats of which patterns together would hide nearly everything.
pub fn hidden_threats(patterns: &[&Pattern], internal: &[IpNet]) -> Vec<Threat> {
    Threat::ALL.into_iter().filter(|threat| hides(patterns, *threat, internal)).collect()
}

fn hides(patterns: &[&Pattern], threat: Threat, internal: &[IpNet]) -> bool {
    let speaks = |pattern: &&&Pattern| pattern.threats.is_empty() || pattern.threats.contains(&threat);
    let mut actors: Vec<Block> = Vec::new();
    let mut targets: Vec<Block> = Vec::new();
    let mut ports: Vec<u16> = Vec::new();
    for pattern in patterns.iter().filter(speaks) {
        let any_actor = pattern.actors.is_empty() || is_nearly_all(&pattern.actors, internal);
        let any_target = pattern.targets.is_empty() || is_nearly_all(&pattern.targets, internal);
        let any_port = pattern.ports.is_empty() || are_most(&pattern.ports);
        match (any_actor, any_target, any_port) {
            (true, true, true) => return true,
            // Rules that are bounded in one way alone may add up to none.
            (false, true, true) => actors.extend(&pattern.actors),
            (true, false, true) => targets.extend(&pattern.targets),
            (true, true, false) => ports.extend(&pattern.ports),
            _ => {}
        }
    }
    is_nearly_all(&actors, internal) || is_nearly_all(&targets, internal) || are_most(&ports)
}

fn are_most(ports: &[u16]) -> bool {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    ports.len() > PORTS_MOST
}

/// Whether blocks cover so much that they bound nothing.
fn is_nearly_all(blocks: &[Block], internal: &[IpNet]) -> bool {
    if blocks.is_empty() {
        return false;
    }
    let (mut v4, mut v6) = by_family(blocks.iter().map(|block| block.net()));
    v4.retain(|net| net.network().octets()[0] < 224);
    v6.retain(|net| net.network().octets()[0] < 0xff);
    let v4_size: u64 = v4.iter().map(|net| 1_u64 << (32 - net.prefix_len())).sum();
    let v6_size = v6.iter().try_fold(0_u128, |sum, net| {
        // All of IPv6 is one more than there are numbers.
        sum.checked_add(1_u128.checked_shl(u32::from(128 - net.prefix_len()))?)
    });
    if v4_size > V4_MOST || v6_size.is_none_or(|size| size > V6_MOST) {
        return true;
    }
    // Most of our own addresses, of the family that there is more of in a VPC.
    let (ours_v4, ours_v6) = by_family(internal.iter().copied());
    if ours_v4.is_empty() {
        return !ours_v6.is_empty() && ours_v6.iter().all(|ours| v6.iter().any(|net| net.contains(ours)));
    }
    let size = |net: &Ipv4Net| 1_u64 << (32 - net.prefix_len());
    let common = |ours: &Ipv4Net, net: &Ipv4Net| match (net.contains(ours), ours.contains(net)) {
        (true, _) => size(ours),
        (false, true) => size(net),
        (false, false) => 0,
    };
    let covered: u64 = ours_v4.iter().flat_map(|ours| v4.iter().map(move |net| common(ours, net))).sum();
    2 * covered > ours_v4.iter().map(size).sum()
}

/// Blocks without overlap, adjoining ones merged. IPv4 written as IPv6 (`::ffff:0:0/96`) counts as IPv4.
fn by_family(blocks: impl Iterator<Item = IpNet>) -> (Vec<Ipv4Net>, Vec<Ipv6Net>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for block in blocks {
        match block {
            IpNet::V4(net) => v4.push(net),
            IpNet::V6(net) => match net.addr().to_ipv4_mapped() {
                Some(address) if net.prefix_len() >= 96 => {
                    v4.extend(Ipv4Net::new(address, net.prefix_len() - 96));
                }
                _ => v6.push(net),
            },
        }
    }
    (Ipv4Net::aggregate(&v4), Ipv6Net::aggregate(&v6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn internal() -> Vec<IpNet> {
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"].map(|net| net.parse().unwrap()).to_vec()
    }

    fn hidden(patterns: &[&str]) -> usize {
        let patterns: Vec<Pattern> = patterns.iter().map(|text| toml::from_str(text).unwrap()).collect();
        hidden_threats(&patterns.iter().collect::<Vec<_>>(), &internal()).len()
    }

    #[test]
    fn what_hides_nearly_everything_is_seen_however_it_is_written() {
        let names =
            |threats: &[Threat]| format!("threats = {:?}", threats.iter().map(|t| t.name()).collect::<Vec<_>>());
        let (every_threat, some, others) = (names(&Threat::ALL), names(&Threat::ALL[..2]), names(&Threat::ALL[2..]));
        for rules in [
            &[""][..],
            &[&every_threat],
            &["actors = ['0.0.0.0/0', '::/0']"],
            &["actors = ['0.0.0.0/0']"],
            &["targets = ['::/0']"],
            &["actors = ['0.0.0.0/1', '128.0.0.0/1']"],
            &["actors = ['0.0.0.0/1']", "actors = ['128.0.0.0/1']"],
            &["actors = ['::ffff:0:0/96']"],
            &["actors = ['2000::/3']"],
            &["actors = ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16']"],
            &["actors = ['10.0.0.0/8']"],
            &["actors = ['10.0.0.0/9']", "actors = ['10.128.0.0/9', '172.16.0.0/12']", "actors = ['192.168.0.0/16']"],
            &["actors = ['0.0.0.0/0']\ntargets = ['0.0.0.0/0']"],
            &["methods = ['vertical']"],
            &[&some, &others],
        ] {
            assert_eq!(hidden(rules), Threat::ALL.len(), "{rules:?}");
        }
        assert_eq!(hidden(&["threats = ['tor']"]), 1);
        let halves: Vec<String> = (0..=255).map(|n| format!("'{n}.0.0.0/9', '{n}.128.0.0/9'")).collect();
        assert_eq!(hidden(&[&format!("threats = ['tor', 'ddos']\ntargets = [{}]", halves.join(", "))]), 2);
        let ports: Vec<String> = (0..=40_000).map(|port| format!("{port}")).collect();
        assert_eq!(hidden(&[&format!("ports = [{}]", ports.join(", "))]), Threat::ALL.len());
    }

    #[test]
    fn what_is_bounded_is_left_alone_however_many_rules_there_are() {
        for rules in [
            &["actors = ['10.0.1.3']"][..],
            &["actors = ['10.4.0.0/14', '172.16.0.0/12', '192.168.0.0/16']"],
            &["targets = ['224.0.0.0/4', '255.255.255.255', 'ff00::/8']"],
            &["ports = [22]"],
            &["ports = [22]\nactors = ['0.0.0.0/0']"],
            &["actors = ['10.0.0.0/8']\ntargets = ['10.0.0.1']", "actors = ['0.0.0.0/0']\ntargets = ['10.0.0.1']"],
            &["actors = ['2600::/12']", "actors = ['17.0.0.0/8']", "ports = [123]"],
        ] {
            assert_eq!(hidden(rules), 0, "{rules:?}");
        }
    }

    #[test]
    fn of_a_network_of_one_block_that_block_is_everything() {
        let pattern: Pattern = toml::from_str("actors = ['10.4.0.0/16']").unwrap();
        let all = Threat::ALL.len();
        let of = |ours: &str| hidden_threats(&[&pattern], &[ours.parse().unwrap()]).len();
        assert_eq!((of("10.4.0.0/16"), of("10.4.0.0/15"), of("10.4.1.0/24"), of("fd00::/8")), (all, 0, all, 0));
    }
}
