//! The flow record: one line of a VPC flow log, as every tier sees it.
//!
//! A record is a fixed 72 bytes, so that a batch is one flat allocation and the engine's working set is predictable.
//! Whatever a record may carry as text (interface, account, region) is interned once per shard and referred to by
//! [`InterfaceId`]; nothing on the hot path holds a string.
//!
//! How a record is read from bytes is told in [`text`] (lines), [`parquet`] and [`envelope`] (what wraps lines on a stream).

pub mod envelope;
pub mod foreign;
pub mod interfaces;
pub mod kpl;
mod names;
pub mod network;
pub mod packing;
pub mod parquet;
#[allow(unsafe_code)]
pub mod simd;
pub mod text;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// An IP address of either family as one integer; IPv4 is IPv4-mapped (`::ffff:a.b.c.d`), so that both families share
/// every table and one comparison.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Address([u64; 2]);

const MAPPED: u64 = 0xffff_0000_0000;

/// By their bits, as one number: derived, both would go through a slice, which the hot path feels.
impl Ord for Address {
    #[inline]
    fn cmp(&self, other: &Address) -> std::cmp::Ordering {
        self.bits().cmp(&other.bits())
    }
}

impl PartialOrd for Address {
    #[inline]
    fn partial_cmp(&self, other: &Address) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Address {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.bits());
    }
}

impl Address {
    /// The address `::`, which stands for "none" where a table needs an empty slot.
    pub const UNSPECIFIED: Address = Address([0, 0]);

    /// An IPv4 address from its 32 bits, most significant octet first.
    pub const fn v4(bits: u32) -> Address {
        Address([0, MAPPED | bits as u64])
    }

    /// An IPv6 address (or an IPv4-mapped one) from its 128 bits.
    pub const fn from_bits(bits: u128) -> Address {
        Address([(bits >> 64) as u64, bits as u64])
    }

    /// The 128 bits of the IPv6 (or IPv4-mapped) form.
    pub const fn bits(self) -> u128 {
        ((self.0[0] as u128) << 64) | self.0[1] as u128
    }

    /// The IPv4 bits when this is an IPv4 address.
    pub const fn as_v4(self) -> Option<u32> {
        if self.0[0] == 0 && self.0[1] >> 32 == MAPPED >> 32 { Some(self.0[1] as u32) } else { None }
    }

    /// The standard library's form.
    pub fn to_ip(self) -> IpAddr {
        match self.as_v4() {
            Some(bits) => IpAddr::V4(Ipv4Addr::from(bits)),
            None => IpAddr::V6(Ipv6Addr::from(self.bits())),
        }
    }

    /// An address that is not on the internet, whoever's it is: private (RFC 1918, RFC 4193), link-local, loopback, or
    /// shared behind a provider's NAT (RFC 6598).
    pub fn is_private(self) -> bool {
        match self.to_ip() {
            IpAddr::V4(ip) => {
                let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
                ip.is_private() || ip.is_link_local() || ip.is_loopback() || shared
            }
            IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
        }
    }

    /// Multicast, broadcast or unspecified: an address that no single host answers for.
    pub fn is_group(self) -> bool {
        match self.to_ip() {
            IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified(),
            IpAddr::V6(ip) => ip.is_multicast() || ip.is_unspecified(),
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Address::v4(ip.into()),
            IpAddr::V6(ip) => Address::from_bits(ip.into()),
        }
    }
}

impl std::str::FromStr for Address {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpAddr>().map(Address::from)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.bits().serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
            text.parse().map_err(|_| serde::de::Error::custom(format!("`{text}` is not an IP address")))
        } else {
            u128::deserialize(deserializer).map(Address::from_bits)
        }
    }
}

/// A moment in event time: whole seconds since 1970-01-01T00:00:00Z, as flow logs have them. Good until 2106.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct EventTime(pub u32);

impl EventTime {
    /// Seconds from `earlier` to `self`, 0 when `earlier` is later.
    pub const fn since(self, earlier: EventTime) -> u32 {
        self.0.saturating_sub(earlier.0)
    }

    /// This moment moved on by `seconds`, held at the end of the range.
    pub const fn plus(self, seconds: u32) -> EventTime {
        EventTime(self.0.saturating_add(seconds))
    }

    /// This moment moved back by `seconds`, held at the beginning of the range.
    pub const fn minus(self, seconds: u32) -> EventTime {
        EventTime(self.0.saturating_sub(seconds))
    }

    /// The start of the tumbling window of `seconds` that holds this moment.
    pub const fn window(self, seconds: u32) -> EventTime {
        EventTime(self.0 - self.0 % seconds)
    }
}

impl fmt::Display for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stamp = jiff::Timestamp::from_second(i64::from(self.0)).expect("every u32 is within the calendar");
        stamp.fmt(f)
    }
}

impl Serialize for EventTime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for EventTime {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return u32::deserialize(deserializer).map(EventTime);
        }
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let stamp: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        u32::try_from(stamp.as_second())
            .map(EventTime)
            .map_err(|_| serde::de::Error::custom(format!("`{text}` is outside 1970 to 2106")))
    }
}

/// Refers to an [`Interface`] of the shard; 0 is "no interface named".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[repr(transparent)]
pub struct InterfaceId(pub u32);

/// What a shard knows of a network interface besides its number.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Interface {
    /// The number that records carry; ids of a shard are given in order of first sight, from 1.
    pub id: InterfaceId,
    /// `eni-…`, or the `resource-id` where the interface is `-` (a regional NAT gateway); empty for neither.
    pub name: String,
    /// The AWS account, empty where the format does not carry it or says `unknown`.
    pub account: String,
}

/// TCP flag bits as flow logs OR them over the aggregation interval.
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// The opener's first packet; with [`ACK`] the answer to it.
    pub const SYN: u8 = 2;
    /// Refusal or abort.
    pub const RST: u8 = 4;
    /// Only ever reported together with another flag (SYN-ACK is 18).
    pub const ACK: u8 = 16;
}

/// IANA protocol numbers that detectors name.
pub mod protocol {
    /// ICMP for IPv4; its records have ports 0.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// One-bit facts about a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, Serialize, Deserialize)]
#[repr(transparent)]
pub struct Marks(pub u8);

impl Marks {
    /// `action` is REJECT: a security group or network ACL refused it.
    pub const REJECTED: Marks = Marks(1);
    /// `tcp-flags` was in the format and not `-`.
    pub const FLAGS_KNOWN: Marks = Marks(2);
    /// `flow-direction` is ingress.
    pub const INGRESS: Marks = Marks(4);
    /// `flow-direction` is egress.
    pub const EGRESS: Marks = Marks(8);
    /// `pkt-srcaddr` or `pkt-dstaddr` differed from the interface's own view: an intermediary (NAT gateway, load
    /// balancer, transit gateway) logged it. The record's addresses are the packet's.
    pub const INTERMEDIARY: Marks = Marks(16);
    /// `pkt-src-aws-service` names an AWS service.
    pub const FROM_AWS_SERVICE: Marks = Marks(32);
    /// `pkt-dst-aws-service` names an AWS service.
    pub const TO_AWS_SERVICE: Marks = Marks(64);

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Marks) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Marks) -> Marks {
        Marks(self.0 | other.0)
    }
}

/// One aggregated line of a VPC flow log. Not a packet, not a connection: one direction of one five-tuple over at most
/// one aggregation interval.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[repr(C)]
pub struct FlowRecord {
    /// Who sent the packets (`pkt-srcaddr` where it is known, else `srcaddr`).
    pub source: Address,
    /// To whom (`pkt-dstaddr` where it is known, else `dstaddr`).
    pub destination: Address,
    /// IP bytes in the interval.
    pub bytes: u64,
    /// Packets in the interval.
    pub packets: u64,
    /// First packet of the interval (some exporters: the interval's bound).
    pub start: EventTime,
    /// Last packet of the interval; never before `start`.
    pub end: EventTime,
    /// The interface that logged it.
    pub interface: InterfaceId,
    /// 0 for protocols without ports.
    pub source_port: u16,
    /// 0 for protocols without ports.
    pub destination_port: u16,
    /// IANA number.
    pub protocol: u8,
    /// OR of [`tcp_flags`]; meaningful only with [`Marks::FLAGS_KNOWN`].
    pub tcp_flags: u8,
    /// One-bit facts.
    pub marks: Marks,
}

/// A stretch of time in which an interface's log says nothing, or says that records were left out. No data is not the
/// same as no traffic, so it is told, not dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Blindness {
    /// Whose log.
    pub interface: InterfaceId,
    /// First second.
    pub start: EventTime,
    /// Last second.
    pub end: EventTime,
    /// NODATA or SKIPDATA.
    pub kind: BlindnessKind,
}

/// Why a log is blind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlindnessKind {
    /// `NODATA`: there was no traffic to log.
    NoData,
    /// `SKIPDATA`: records were lost by the exporter (capacity or internal error).
    SkipData,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_seventy_two_bytes() {
        assert_eq!(std::mem::size_of::<FlowRecord>(), 72);
    }

    #[test]
    fn an_address_that_is_not_on_the_internet_is_private() {
        let private = |text: &str| text.parse::<Address>().unwrap().is_private();
        for text in
            ["10.1.2.3", "172.31.0.1", "192.168.1.255", "169.254.1.1", "127.0.0.1", "100.64.0.1", "100.127.255.254"]
        {
            assert!(private(text), "{text}");
        }
        for text in ["100.63.0.1", "100.128.0.1", "172.32.0.1", "203.0.113.1", "2001:db8::1", "2a00::1"] {
            assert!(!private(text), "{text}");
        }
        assert!(private("fd00::1") && private("fe80::1") && private("::1"));
    }

    #[test]
    fn addresses_of_both_families_print_as_they_were_read() {
        for text in ["10.0.0.1", "255.255.255.255", "2001:db8::1", "::1", "0.0.0.0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }
}
