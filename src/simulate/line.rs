//! Writes flow records as lines of a VPC flow log.
//!
//! A line is put together in a buffer on the stack from pieces that were formatted beforehand: everything up to the
//! addresses is fixed per interface, octets come from a table. That is several times faster than `format!`, which would
//! take longer than making the record.

use std::io::Write as _;

use super::vpc::aws_service;
use crate::flow::{Address, Blindness, BlindnessKind, FlowRecord, Interface, Marks};

/// Which fields a line has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// The default format: the fourteen fields of version 2.
    #[default]
    V2,
    /// Versions 2 to 5: the default fields, then those of versions 3, 4 and 5 in the order of the documentation.
    V5,
}

impl Format {
    /// The first line of a file in this format.
    pub const fn header(self) -> &'static str {
        match self {
            Format::V2 => {
                "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status"
            }
            Format::V5 => {
                "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status \
                 vpc-id subnet-id instance-id tcp-flags type pkt-srcaddr pkt-dstaddr region az-id sublocation-type sublocation-id \
                 pkt-src-aws-service pkt-dst-aws-service flow-direction traffic-path"
            }
        }
    }
}

/// Turns records of one VPC into lines.
#[derive(Clone, Debug)]
pub struct LineWriter {
    format: Format,
    /// `version account-id interface-id `, by interface.
    heads: Vec<Box<[u8]>>,
    /// `vpc-id subnet-id instance-id`, by interface; none for version 2.
    places: Vec<Box<[u8]>>,
    /// The addresses of the interfaces, which stand in for the packet's where an intermediary logged it.
    addresses: Vec<Address>,
}

impl LineWriter {
    /// A writer for these interfaces (ids ascending from 1) and the address of each, in the same order. The addresses may
    /// be left out where no record is of an intermediary.
    pub fn new(format: Format, interfaces: &[Interface], addresses: Vec<Address>) -> LineWriter {
        let version = if format == Format::V2 { 2 } else { 5 };
        let head = |i: &Interface| format!("{version} {} {} ", i.account, i.name).into_bytes().into();
        let place = |interface: &Interface| {
            let address = addresses.get(interface.id.0 as usize - 1).and_then(|a| a.as_v4()).unwrap_or_default();
            let (vpc, subnet, digits) = (address >> 16, address >> 12 & 0xf, &interface.name[5..]);
            format!(" vpc-0{vpc:016x} subnet-0{subnet:016x} i-0{digits} ").into_bytes().into()
        };
        let heads = interfaces.iter().map(head).collect();
        let places = if format == Format::V2 { Vec::new() } else { interfaces.iter().map(place).collect() };
        LineWriter { format, heads, places, addresses }
    }

    /// Appends the line of a record.
    pub fn record(&self, record: &FlowRecord, text: &mut Vec<u8>) {
        let seen = self.as_seen(record);
        let mut line = Line::default();
        line.put(&self.heads[record.interface.0 as usize - 1]);
        line.address(seen.0);
        line.address(seen.1);
        line.number(record.source_port.into());
        line.number(record.destination_port.into());
        line.number(record.protocol.into());
        line.number(record.packets);
        line.number(record.bytes);
        line.number(record.start.0.into());
        line.number(record.end.0.into());
        line.put(if record.marks.has(Marks::REJECTED) { b"REJECT OK" } else { b"ACCEPT OK" });
        text.extend_from_slice(line.bytes());
        if self.format == Format::V5 {
            self.later_fields(record, text);
        }
        text.push(b'\n');
    }

    /// Appends the line of an interval without records.
    pub fn blind(&self, blind: &Blindness, text: &mut Vec<u8>) {
        let status = if blind.kind == BlindnessKind::NoData { "NODATA" } else { "SKIPDATA" };
        text.extend_from_slice(&self.heads[blind.interface.0 as usize - 1]);
        write!(text, "- - - - - - - {} {} - {status}", blind.start.0, blind.end.0).expect("a Vec takes every byte");
        if self.format == Format::V5 {
            text.extend_from_slice(&self.places[blind.interface.0 as usize - 1]);
            text.extend_from_slice(b"- - - - us-east-1 use1-az1 - - - - - -");
        }
        text.push(b'\n');
    }

    /// What a reader of this format gets to know of a record: version 2 has no flags, directions and services, and where a
    /// NAT gateway logged the packet, the interface's own address stands in the place of the far end's.
    pub fn as_read(&self, record: &FlowRecord) -> FlowRecord {
        if self.format == Format::V5 {
            return *record;
        }
        let (source, destination) = self.as_seen(record);
        let marks = Marks(record.marks.0 & Marks::REJECTED.0);
        FlowRecord { source, destination, tcp_flags: 0, marks, ..*record }
    }

    /// `srcaddr` and `dstaddr`: of an intermediary's packets the interface's own address is shown at its end.
    fn as_seen(&self, record: &FlowRecord) -> (Address, Address) {
        if !record.marks.has(Marks::INTERMEDIARY) {
            return (record.source, record.destination);
        }
        let own = self.addresses[record.interface.0 as usize - 1];
        if record.marks.has(Marks::INGRESS) { (record.source, own) } else { (own, record.destination) }
    }

    fn later_fields(&self, record: &FlowRecord, text: &mut Vec<u8>) {
        text.extend_from_slice(&self.places[record.interface.0 as usize - 1]);
        let mut line = Line::default();
        line.number(record.tcp_flags.into());
        line.put(if record.source.as_v4().is_some() { b"IPv4 " } else { b"IPv6 " });
        line.address(record.source);
        line.address(record.destination);
        line.put(b"us-east-1 use1-az1 - - ");
        for address in [record.source, record.destination] {
            line.put(aws_service(address).unwrap_or("-").as_bytes());
            line.put(b" ");
        }
        // Path 8 is the internet gateway, 1 another resource of the VPC; ingress has none.
        line.put(match (record.marks.has(Marks::EGRESS), is_local(record.destination)) {
            (false, _) => b"ingress -",
            (true, true) => b"egress 1",
            (true, false) => b"egress 8",
        });
        text.extend_from_slice(line.bytes());
    }
}

/// In 10/8, which is where simulated hosts are.
fn is_local(address: Address) -> bool {
    address.as_v4().is_some_and(|bits| bits >> 24 == 10)
}

/// One line in the making. The longest of version 2 has 230 bytes.
struct Line {
    bytes: [u8; 512],
    length: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { bytes: [0; 512], length: 0 }
    }
}

impl Line {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn put(&mut self, piece: &[u8]) {
        self.bytes[self.length..self.length + piece.len()].copy_from_slice(piece);
        self.length += piece.len();
    }

    /// Decimal digits and a space.
    fn number(&mut self, mut number: u64) {
        let mut digits = [b' '; 21];
        let mut at = 20;
        while number >= 100 {
            at -= 2;
            digits[at..at + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
            number /= 100;
        }
        if number >= 10 {
            at -= 2;
            digits[at..at + 2].copy_from_slice(&PAIRS[number as usize]);
        } else {
            at -= 1;
            digits[at] = b'0' + number as u8;
        }
        self.put(&digits[at..]);
    }

    fn address(&mut self, address: Address) {
        let Some(bits) = address.as_v4() else {
            let text = address.to_string();
            self.put(text.as_bytes());
            return self.put(b" ");
        };
        for (place, octet) in bits.to_be_bytes().into_iter().enumerate() {
            let (digits, length) = OCTETS[octet as usize];
            // Four bytes are always written and only the octet's own are kept, so that there is no branch on its length.
            self.bytes[self.length..self.length + 4].copy_from_slice(&digits);
            self.length += length as usize;
            self.bytes[self.length] = if place == 3 { b' ' } else { b'.' };
            self.length += 1;
        }
    }
}

const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut n = 0;
    while n < 100 {
        pairs[n] = [b'0' + (n / 10) as u8, b'0' + (n % 10) as u8];
        n += 1;
    }
    pairs
};

const OCTETS: [([u8; 4], u8); 256] = {
    let mut octets = [([b' '; 4], 0u8); 256];
    let mut n = 0;
    while n < 256 {
        let (hundreds, tens, ones) = (b'0' + (n / 100) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8);
        octets[n] = match n {
            0..10 => ([ones, 0, 0, 0], 1),
            10..100 => ([tens, ones, 0, 0], 2),
            _ => ([hundreds, tens, ones, 0], 3),
        };
        n += 1;
    }
    octets
};
