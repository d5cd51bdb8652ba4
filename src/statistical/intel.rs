//! Lists: Tor relays and mining pools, from plain text, CSV or JSON.
//!
//! Parsing is pure; the files are read by [`local`]. What can be known offline is built in: the Tor directory authorities,
//! and the fallback directories that a client without a cached consensus asks first.

use std::net::{IpAddr, SocketAddr};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use jiff::SignedDuration;
use serde::Deserialize;

use crate::flow::Address;

pub mod local;

/// `[statistical.intel]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Files of Tor relays: Onionoo details JSON, CSV (`address,port`), or one `address` or `address:port` a line.
    pub tor_relays: Vec<std::path::PathBuf>,
    /// Files of mining pools, in the same three forms.
    pub mining_pools: Vec<std::path::PathBuf>,
    /// How often the files are looked at for changes.
    pub reload: SignedDuration,
}

/// Addresses with the ports on which they are what the list says; an empty list of ports means any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressList {
    ports: HashMap<Address, Vec<u16>, foldhash::fast::FixedState>,
}

impl AddressList {
    /// Whether (address, port) is listed. The pair, not the address alone: relays share addresses with web services.
    pub fn contains(&self, address: Address, port: u16) -> bool {
        self.ports.get(&address).is_some_and(|ports| ports.is_empty() || ports.contains(&port))
    }

    /// How many addresses are listed.
    pub fn len(&self) -> usize {
        self.ports.len()
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Adds what another list holds.
    pub fn join(&mut self, other: AddressList) {
        for (address, ports) in other.ports {
            if ports.is_empty() {
                self.add(address.to_ip(), None);
            }
            for port in ports {
                self.add(address.to_ip(), Some(port));
            }
        }
    }

    /// Adds a port of an address, or all of them, which no single port takes back.
    fn add(&mut self, address: IpAddr, port: Option<u16>) {
        match (self.ports.entry(Address::from(address)), port) {
            (Entry::Vacant(new), _) => {
                new.insert(port.into_iter().collect());
            }
            (Entry::Occupied(mut known), None) => known.get_mut().clear(),
            (Entry::Occupied(mut known), Some(port)) => {
                let ports = known.get_mut();
                if !ports.is_empty() && !ports.contains(&port) {
                    ports.push(port);
                }
            }
        }
    }

    /// Reads a list in any of the three forms, told from its first byte.
    ///
    /// # Errors
    /// Names the line (or the JSON position) that is neither an address nor empty nor a comment; nothing of a broken
    /// list is used.
    pub fn parse(text: &str) -> Result<AddressList, ListError> {
        // Not `[`, with which an IPv6 address may begin.
        if text.trim_start().starts_with('{') { Self::parse_onionoo(text) } else { Self::parse_lines(text) }
    }

    fn parse_lines(text: &str) -> Result<AddressList, ListError> {
        let mut list = AddressList::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty()
                || at == 0
                    && line.to_ascii_lowercase().starts_with(|c: char| c.is_ascii_alphabetic())
                    && line.contains(',')
            {
                continue;
            }
            let bad =
                || ListError { line: at + 1, reason: format!("`{line}` is no address, address:port or address,port") };
            let mut columns =
                line.split([',', ';', '\t', ' ']).map(|c| c.trim_matches(['"', ' '])).filter(|c| !c.is_empty());
            let first = columns.next().ok_or_else(bad)?;
            if let Ok(socket) = first.parse::<SocketAddr>() {
                list.add(socket.ip(), Some(socket.port()));
            } else {
                let address: IpAddr = first.trim_matches(['[', ']']).parse().map_err(|_| bad())?;
                list.add(address, columns.next().and_then(|c| c.parse().ok()));
            }
        }
        Ok(list)
    }

    fn parse_onionoo(text: &str) -> Result<AddressList, ListError> {
        #[derive(Deserialize)]
        struct Details {
            relays: Vec<Relay>,
        }
        #[derive(Deserialize)]
        struct Relay {
            or_addresses: Vec<String>,
        }
        let details: Details = serde_json::from_str(text)
            .map_err(|e| ListError { line: e.line(), reason: format!("not an Onionoo details document: {e}") })?;
        let mut list = AddressList::default();
        for (at, address) in details.relays.iter().flat_map(|r| &r.or_addresses).enumerate() {
            let socket: SocketAddr = address.parse().map_err(|_| ListError {
                line: 0,
                reason: format!("or_addresses entry {}: `{address}` is no address:port", at + 1),
            })?;
            list.add(socket.ip(), Some(socket.port()));
        }
        Ok(list)
    }
}

/// Why a list was not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ListError {
    /// 1-based; 0 where there are no lines.
    pub line: usize,
    /// What is wrong, and what was expected.
    pub reason: String,
}

/// All lists, as the detectors use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists {
    /// Relays that clients connect to; the fallback directories are always among them.
    pub tor_relays: AddressList,
    /// Mining pools.
    pub mining_pools: AddressList,
}

/// What is known without any file.
impl Default for Lists {
    fn default() -> Lists {
        let fallbacks = AddressList::parse(include_str!("intel/tor_fallbacks.txt")).expect("a test reads it");
        Lists { tor_relays: fallbacks, mining_pools: AddressList::default() }
    }
}

/// The Tor directory authorities, present and former (tor's `auth_dirs.inc`): every client of Tor without a cached consensus
/// talks to one of them or to a fallback, and nothing else lives there.
const AUTHORITIES: [[u8; 4]; 18] = [
    [128, 31, 0, 39],
    [128, 31, 0, 34],
    [217, 196, 147, 77],
    [86, 59, 21, 38],
    [45, 66, 35, 11],
    [45, 66, 33, 45],
    [194, 109, 206, 212],
    [131, 188, 40, 189],
    [212, 112, 245, 170],
    [193, 23, 244, 244],
    [171, 25, 193, 9],
    [199, 58, 81, 140],
    [199, 254, 238, 52],
    [204, 13, 164, 118],
    [154, 35, 175, 225],
    [216, 218, 219, 41],
    [154, 35, 32, 5],
    [66, 111, 2, 131],
];

/// Whether an address is a Tor directory authority.
pub fn is_tor_authority(address: Address) -> bool {
    address.as_v4().is_some_and(|bits| AUTHORITIES.contains(&bits.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_say_the_same() {
        let lines = AddressList::parse("# relays\n192.0.2.1:9001\n[2001:db8::1]:443\n192.0.2.2\n").unwrap();
        let csv = AddressList::parse("address,port\n192.0.2.1,9001\n2001:db8::1,443\n192.0.2.2,\n").unwrap();
        assert_eq!(lines, csv);
        let json =
            AddressList::parse(r#"{"relays":[{"or_addresses":["192.0.2.1:9001","[2001:db8::1]:443"]}]}"#).unwrap();
        for list in [&lines, &csv, &json] {
            assert!(list.contains("192.0.2.1".parse().unwrap(), 9001));
            assert!(!list.contains("192.0.2.1".parse().unwrap(), 443), "another service on a relay's address");
            assert!(list.contains("2001:db8::1".parse().unwrap(), 443));
        }
        assert!(lines.contains("192.0.2.2".parse().unwrap(), 1), "no port listed means any");
    }

    #[test]
    fn fallback_directories_are_known_without_any_file() {
        let built_in = Lists::default();
        assert!(built_in.tor_relays.len() > 300, "{} addresses", built_in.tor_relays.len());
        assert!(built_in.tor_relays.contains("146.56.99.34".parse().unwrap(), 443));
        assert!(!built_in.tor_relays.contains("146.56.99.34".parse().unwrap(), 80), "another service on its address");
        assert!(built_in.mining_pools.is_empty());
    }

    #[test]
    fn a_broken_list_names_its_line() {
        assert_eq!(AddressList::parse("192.0.2.1\nnot an address\n").unwrap_err().line, 2);
        assert!(AddressList::parse("{\"relays\":[{]}").is_err());
        let json = "{\"relays\":[\n{\"or_addresses\":[\"192.0.2.1:9001\",\"relay\"]}]}";
        let error = AddressList::parse(json).unwrap_err();
        assert_eq!(error.to_string(), "line 0: or_addresses entry 2: `relay` is no address:port");
        let error = AddressList::parse("192.0.2.1\n\n # relays\n\"\"\n").unwrap_err();
        assert_eq!(error.to_string(), "line 4: `\"\"` is no address, address:port or address,port");
    }

    #[test]
    fn a_heading_is_words_in_columns_on_the_first_line() {
        assert_eq!(AddressList::parse("address,port\n192.0.2.1,9001\n").unwrap().len(), 1);
        assert_eq!(AddressList::parse("Address,port\n192.0.2.1,9001\n").unwrap().len(), 1);
        for (text, line) in [
            ("address\n192.0.2.1\n", 1),
            ("192.0.2.1,9001\naddress,port\n", 2),
            ("1st,port\n192.0.2.1,9001\n", 1),
            ("192.0.2,9001\n", 1),
        ] {
            assert_eq!(AddressList::parse(text).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn columns_are_parted_and_quoted_as_people_do() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        for line in [
            "192.0.2.1,9001",
            "\"192.0.2.1\";\"9001\"",
            "192.0.2.1\t9001",
            "192.0.2.1  9001 # a relay",
            "192.0.2.1:9001",
        ] {
            let list = AddressList::parse(line).unwrap();
            assert!(list.contains(address("192.0.2.1"), 9001) && !list.contains(address("192.0.2.1"), 9002), "{line}");
            assert!(!list.contains(address("192.0.2.2"), 9001), "{line}");
        }
        let bracketed = AddressList::parse("# ours\n[2001:db8::1],443\n").unwrap();
        assert!(bracketed.contains(address("2001:db8::1"), 443) && !bracketed.contains(address("2001:db8::1"), 80));
    }

    #[test]
    fn a_list_knows_how_many_addresses_it_has() {
        let list = AddressList::parse("192.0.2.1:9001\n192.0.2.1:9030\n192.0.2.1:9030\n192.0.2.2\n").unwrap();
        assert_eq!((list.len(), list.is_empty()), (2, false));
        assert_eq!(list.ports[&"192.0.2.1".parse::<Address>().unwrap()], [9001, 9030]);
        assert!(AddressList::default().is_empty() && AddressList::parse("").unwrap().is_empty());
    }

    #[test]
    fn lists_that_are_joined_hold_what_either_held() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        let mut list = AddressList::parse("192.0.2.1:9001\n").unwrap();
        list.join(AddressList::parse("192.0.2.1:443\n192.0.2.2:80\n192.0.2.3\n").unwrap());
        assert_eq!(list.len(), 3);
        assert!(list.contains(address("192.0.2.1"), 9001) && list.contains(address("192.0.2.1"), 443));
        assert!(list.contains(address("192.0.2.2"), 80) && !list.contains(address("192.0.2.2"), 81));
        assert!(list.contains(address("192.0.2.3"), 1));
    }

    #[test]
    fn an_address_without_a_port_stands_for_all_of_them_whatever_else_is_said_of_it() {
        let address: Address = "192.0.2.1".parse().unwrap();
        for text in ["192.0.2.1\n192.0.2.1:9001\n", "192.0.2.1:9001\n192.0.2.1\n"] {
            let list = AddressList::parse(text).unwrap();
            assert!(list.contains(address, 9001) && list.contains(address, 443), "{text}");
        }
        let [all, one] = ["192.0.2.1\n", "192.0.2.1:9001\n"].map(|text| AddressList::parse(text).unwrap());
        for (mut list, other) in [(all.clone(), one.clone()), (one, all)] {
            list.join(other);
            assert!(list.contains(address, 443));
        }
    }

    #[test]
    fn a_list_may_begin_with_an_address_in_brackets() {
        let list = AddressList::parse("[2001:db8::1]:443\n192.0.2.1\n").unwrap();
        assert!(list.contains("2001:db8::1".parse().unwrap(), 443));
    }

    #[test]
    fn the_directory_authorities_are_known_without_a_list() {
        assert!(is_tor_authority("128.31.0.39".parse().unwrap()));
        assert!(is_tor_authority("66.111.2.131".parse().unwrap()));
        assert!(!is_tor_authority("66.111.2.132".parse().unwrap()));
        assert!(!is_tor_authority("2001:db8::1".parse().unwrap()));
    }
}
