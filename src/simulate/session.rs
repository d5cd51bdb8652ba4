//! A conversation between two parties, and how the flow log of one interface shows it.
//!
//! A session is a fixed timetable of packets: asked for any span of time, it says how many packets and bytes went each way
//! and when the first and the last of them did. So every interface that sees the session can cut it into its own
//! aggregation windows, and all of them agree with each other and sum to the whole.

use std::sync::Arc;

use crate::flow::Address;
use crate::random::{mix, unit_of};

/// Milliseconds since the beginning of the simulation; negative for what began before it.
pub type Millis = i64;

/// One side of a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party {
    /// Its address.
    pub address: Address,
    /// Its number in the VPC, or [`Party::OUTSIDE`].
    pub host: u32,
}

impl Party {
    /// The host number of everyone who is not ours.
    pub const OUTSIDE: u32 = u32::MAX;

    /// Somebody on the internet.
    pub const fn outside(address: Address) -> Party {
        Party { address, host: Party::OUTSIDE }
    }

    /// Whether this is a host of the VPC.
    pub const fn is_ours(self) -> bool {
        self.host != Party::OUTSIDE
    }
}

/// Packets and IP bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Volume {
    /// Packets.
    pub packets: u64,
    /// Bytes, with IP and transport headers.
    pub bytes: u64,
}

impl Volume {
    /// So many packets of one size.
    pub const fn of(packets: u64, bytes_per_packet: u64) -> Volume {
        Volume { packets, bytes: packets * bytes_per_packet }
    }
}

/// What a TCP connection that carries these payloads puts on the wire, opener's direction first: handshake, segments of
/// 1,448 bytes, an acknowledgement for every second segment of the other side, close; 52 bytes of headers each.
pub fn tcp(out_payload: u64, back_payload: u64) -> (Volume, Volume) {
    let (out_segments, back_segments) = (out_payload.div_ceil(1448), back_payload.div_ceil(1448));
    let out = 3 + out_segments + back_segments / 2;
    let back = 2 + back_segments + out_segments / 2;
    (
        Volume { packets: out, bytes: out * 52 + 8 + out_payload },
        Volume { packets: back, bytes: back * 52 + 8 + back_payload },
    )
}

/// A message in each direction on an open TCP connection, each acknowledged by the other's next packet.
pub fn message(out_payload: u64, back_payload: u64) -> (Volume, Volume) {
    let one = |payload: u64| {
        let packets = payload.div_ceil(1448).max(1);
        Volume { packets, bytes: packets * 52 + payload }
    };
    (one(out_payload), one(back_payload))
}

/// One UDP datagram each way.
pub const fn datagrams(out_payload: u64, back_payload: u64) -> (Volume, Volume) {
    (Volume::of(1, out_payload + 28), Volume::of(1, back_payload + 28))
}

/// Messages that recur within a session.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Milliseconds from one message to the next.
    pub every: Millis,
    /// The first of them, ms after the session's start.
    pub offset: Millis,
    /// How far a message may stray from its time, as a share of `every`: 0 is clockwork, 1 is anywhere in its slot.
    pub jitter: f32,
    /// The probability that a slot has its message.
    pub presence: f32,
    /// What a message puts on the wire from opener to answerer.
    pub out: Volume,
    /// And back.
    pub back: Volume,
    /// How far bytes stray from these, as a share of them.
    pub spread: f32,
}

/// The timetable of a session.
#[derive(Clone, Debug)]
pub enum Talk {
    /// Everything within some seconds, evenly spread: a request, a download, a probe.
    Brief {
        /// From opener to answerer.
        out: Volume,
        /// And back; no packets when nobody answers.
        back: Volume,
    },
    /// A connection that stays: opened with a greeting, then streams of messages.
    Streams {
        /// Handshake and log-in, at the start.
        greeting: (Volume, Volume),
        /// What recurs.
        streams: Arc<[Stream]>,
    },
}

/// What becomes of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is served.
    Answered,
    /// The answerer is there and refuses: RST.
    Refused,
    /// The answerer's security group drops it: logged there as REJECT.
    Rejected,
    /// Nobody answers, nothing is logged at the far end.
    Silent,
}

/// One conversation: a five-tuple with a timetable.
#[derive(Clone, Debug)]
pub struct Session {
    /// Who opened it.
    pub client: Party,
    /// Who was called.
    pub server: Party,
    /// The opener's port (0 for ICMP).
    pub client_port: u16,
    /// The port called (0 for ICMP).
    pub server_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// First packet.
    pub start: Millis,
    /// From the first to the last packet, ms.
    pub length: Millis,
    /// What is sent when.
    pub talk: Talk,
    /// Whether it is served.
    pub outcome: Outcome,
    /// The truth row that it belongs to, 0 for benign.
    pub truth: u16,
    /// Fixes whatever is irregular in the timetable.
    pub seed: u64,
}

/// What one direction sent in a span of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Packets and bytes.
    pub volume: Volume,
    /// First packet; meaningless without packets.
    pub first: Millis,
    /// Last packet.
    pub last: Millis,
}

impl Tally {
    fn add(&mut self, at: Millis, volume: Volume) {
        if volume.packets == 0 {
            return;
        }
        if self.volume.packets == 0 {
            (self.first, self.last) = (at, at);
        }
        self.volume.packets += volume.packets;
        self.volume.bytes += volume.bytes;
        self.first = self.first.min(at);
        self.last = self.last.max(at);
    }
}

impl Session {
    /// The moment after the last packet.
    pub fn end(&self) -> Millis {
        self.start + self.length + 1
    }

    /// What went out and came back in `[from, to)`.
    pub fn tally(&self, from: Millis, to: Millis) -> (Tally, Tally) {
        match &self.talk {
            Talk::Brief { out, back } => (self.spread_evenly(*out, from, to), self.spread_evenly(*back, from, to)),
            Talk::Streams { greeting, streams } => {
                let mut tallies = (Tally::default(), Tally::default());
                if (from..to).contains(&self.start) {
                    tallies.0.add(self.start, greeting.0);
                    tallies.1.add(self.start, greeting.1);
                }
                for (number, stream) in streams.iter().enumerate() {
                    self.messages(number as u64, stream, from, to, &mut tallies);
                }
                tallies
            }
        }
    }

    /// Packet `i` of `n` leaves at `start + length * i / (n - 1)`; counts and bytes follow from which `i` are in the span.
    fn spread_evenly(&self, whole: Volume, from: Millis, to: Millis) -> Tally {
        let gaps = whole.packets as i128 - 1;
        if gaps < 0 {
            return Tally::default();
        }
        let length = i128::from(self.length);
        let first_at_or_after = |moment: Millis| -> i128 {
            let into = i128::from(moment - self.start);
            match into {
                ..=0 => 0,
                _ if into > length => gaps + 1,
                _ if gaps == 0 => 1,
                _ => (into * gaps + length - 1) / length,
            }
        };
        let (low, high) = (first_at_or_after(from), first_at_or_after(to));
        if low >= high {
            return Tally::default();
        }
        let bytes_before = |i: i128| (i128::from(whole.bytes) * i / (gaps + 1)) as u64;
        let moment = |i: i128| self.start + if gaps == 0 { 0 } else { (length * i / gaps) as Millis };
        let volume = Volume { packets: (high - low) as u64, bytes: bytes_before(high) - bytes_before(low) };
        Tally { volume, first: moment(low).max(from), last: moment(high - 1) }
    }

    fn messages(&self, number: u64, stream: &Stream, from: Millis, to: Millis, tallies: &mut (Tally, Tally)) {
        let begin = self.start + stream.offset;
        let (from, to) = (from.max(self.start), to.min(self.end()));
        let mut slot = ((from - begin) / stream.every - 1).max(0);
        loop {
            let draw = mix(self.seed ^ number.wrapping_mul(0xa076_1d64_78bd_642f) ^ (slot as u64) << 8);
            let stray = (unit_of(draw) as f32 - 0.5) * stream.jitter * stream.every as f32;
            let planned = begin + slot * stream.every;
            let at = planned + stray as Millis;
            if planned - stream.every >= to {
                return;
            }
            slot += 1;
            let (draw_presence, draw_size) = (draw << 40, mix(draw));
            if !(from..to).contains(&at) || unit_of(draw_presence) as f32 >= stream.presence {
                continue;
            }
            let factor = 1.0 + f64::from(stream.spread) * (2.0 * unit_of(draw_size) - 1.0);
            tallies.0.add(at, scaled(stream.out, factor));
            tallies.1.add(at, scaled(stream.back, factor));
        }
    }
}

/// Strays the bytes, never below a bare header per packet.
fn scaled(volume: Volume, factor: f64) -> Volume {
    let bytes = (volume.bytes as f64 * factor) as u64;
    Volume { packets: volume.packets, bytes: bytes.max(volume.packets * 40) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session(length: Millis, talk: Talk) -> Session {
        Session {
            client: Party::outside(Address::v4(1)),
            server: Party::outside(Address::v4(2)),
            client_port: 40_000,
            server_port: 443,
            protocol: 6,
            start: 1_234,
            length,
            talk,
            outcome: Outcome::Answered,
            truth: 0,
            seed: 99,
        }
    }

    fn pieces_sum_to_the_whole(session: &Session, cuts: &[Millis]) {
        let whole = session.tally(Millis::MIN / 4, Millis::MAX / 4);
        let (mut out, mut back) = (Volume::default(), Volume::default());
        let mut bounds = vec![session.start - 10];
        bounds.extend(cuts.iter().map(|cut| session.start + cut));
        bounds.push(session.end() + 10);
        bounds.sort_unstable();
        for pair in bounds.windows(2) {
            let (a, b) = session.tally(pair[0], pair[1]);
            for (sum, part) in [(&mut out, a), (&mut back, b)] {
                sum.packets += part.volume.packets;
                sum.bytes += part.volume.bytes;
                if part.volume.packets > 0 {
                    assert!(pair[0] <= part.first && part.first <= part.last && part.last < pair[1]);
                }
            }
        }
        assert_eq!((out, back), (whole.0.volume, whole.1.volume));
    }

    proptest! {
        #[test]
        fn the_windows_of_a_brief_session_sum_to_it(
            packets in 0u64..500, bytes in 0u64..1_000_000, length in 0i64..400_000,
            cuts in proptest::collection::vec(0i64..400_000, 0..12),
        ) {
            let talk = Talk::Brief { out: Volume { packets, bytes }, back: Volume::of(packets / 2, 60) };
            let session = session(length, talk);
            let bytes = if packets == 0 { 0 } else { bytes };
            prop_assert_eq!(session.tally(0, 1_000_000).0.volume, Volume { packets, bytes });
            pieces_sum_to_the_whole(&session, &cuts);
        }

        #[test]
        fn the_windows_of_a_long_session_sum_to_it(
            every in 100i64..90_000, jitter in 0.0f32..1.0, presence in 0.0f32..1.0, offset in 0i64..50_000,
            length in 0i64..2_000_000, cuts in proptest::collection::vec(0i64..2_000_000, 0..12),
        ) {
            let (out, back) = message(100, 2_000);
            let stream = Stream { every, offset, jitter, presence, out, back, spread: 0.3 };
            let greeting = tcp(300, 3_000);
            pieces_sum_to_the_whole(&session(length, Talk::Streams { greeting, streams: [stream].into() }), &cuts);
        }
    }
}
