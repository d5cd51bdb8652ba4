//! From where a request comes, when others pass it on.
//!
//! A proxy adds the address that it was asked from to the end of `x-forwarded-for`, and whoever asked may have written anything
//! before it. So the list is read from its end, the way the request came, for as long as the sender is one of the
//! trusted proxies; the first that is not is the client. A peer that is no trusted proxy is the client itself, whatever it
//! says.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::{Extensions, HeaderMap};
use ipnet::IpNet;

/// Who passes requests on.
#[derive(Clone, Debug, Default)]
pub struct Proxies(Vec<IpNet>);

impl Proxies {
    /// Those in these networks.
    pub fn new(networks: &[IpNet]) -> Proxies {
        Proxies(networks.to_vec())
    }

    /// Whether an address is a trusted proxy's.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The client of a request from a peer.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut sender = peer.to_canonical();
        // Several lines of one header are one list.
        let lines: Vec<&str> =
            headers.get_all("x-forwarded-for").iter().filter_map(|line| line.to_str().ok()).collect();
        for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            if !self.contain(sender) {
                break;
            }
            // What cannot be read ends what is known.
            let Some(address) = address(entry.trim()) else { break };
            sender = address;
        }
        sender
    }
}

/// The client that a request was found to come from; see [`Proxies::client`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Client(pub IpAddr);

impl Client {
    /// Of a request; none in a test without a connection.
    pub fn of(extensions: &Extensions, headers: &HeaderMap, proxies: &Proxies) -> Option<Client> {
        let ConnectInfo(peer) = extensions.get::<ConnectInfo<SocketAddr>>()?;
        Some(Client(proxies.client(peer.ip(), headers)))
    }

    /// What counts as one: whoever has one IPv6 address has a whole /64 of them.
    pub fn bucket(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & (u128::MAX << 64))),
        }
    }
}

/// `192.0.2.1`, `192.0.2.1:443`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:443`.
fn address(text: &str) -> Option<IpAddr> {
    let alone = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    alone.ok().or_else(bracketed).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(proxies: &[&str], peer: &str, lines: &[&str]) -> String {
        let networks: Vec<IpNet> = proxies.iter().map(|network| network.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        Proxies::new(&networks).client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_client_is_the_last_that_is_no_trusted_proxy() {
        let ours = ["10.0.0.0/8", "fd00::/8"];
        for (peer, lines, who) in [
            ("10.0.0.1", &["198.51.100.7"][..], "198.51.100.7"),
            ("10.0.0.1", &["192.0.2.1, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["192.0.2.1", "198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["192.0.2.1", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", &["198.51.100.7:51234"], "198.51.100.7"),
            ("fd00::1", &["[2001:db8::7]:443"], "2001:db8::7"),
            ("fd00::1", &["[2001:db8::7]"], "2001:db8::7"),
            ("fd00::1", &["2001:db8::7"], "2001:db8::7"),
            ("::ffff:10.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7"),
            // A peer that is no proxy says nothing of others.
            ("203.0.113.9", &["198.51.100.7"], "203.0.113.9"),
            // What cannot be read ends the list: the proxy that has sent it is all that is known.
            ("10.0.0.1", &["198.51.100.7, unknown"], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ] {
            assert_eq!(client(&ours, peer, lines), who, "{peer} {lines:?}");
        }
        assert_eq!(
            client(&[], "10.0.0.1", &["198.51.100.7"]),
            "10.0.0.1",
            "nobody is trusted unless the settings say so"
        );
    }

    #[test]
    fn a_network_of_64_bits_is_one_client() {
        let bucket = |text: &str| Client(text.parse().unwrap()).bucket();
        assert_eq!(bucket("2001:db8:1:2:aaaa::1"), bucket("2001:db8:1:2:bbbb::9"));
        assert_ne!(bucket("2001:db8:1:2::1"), bucket("2001:db8:1:3::1"));
        assert_ne!(bucket("192.0.2.1"), bucket("192.0.2.2"));
    }
}
