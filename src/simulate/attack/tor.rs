//! Using the Tor network: MITRE ATT&CK T1090.003.
//!
//! A client that starts with an empty cache asks a directory authority or a fallback for the consensus (about 0.5 MB
//! compressed, with descriptors 2 to 3 MB), tries several relays, and then keeps one to three guards, over which everything
//! goes in cells of 514 bytes (tor-spec 3; 543 to 586 bytes as a TLS record), with padding every 1.5 to 9.5 s for a while
//! (padding-spec 2). The addresses of the authorities are public and real; those of relays are invented, so no list knows
//! them.

use super::Stage;
use super::beacon::Once;
use crate::flow::{Address, protocol};
use crate::simulate::session::{Millis, Outcome, Party, Session, Stream, Talk, Volume, tcp};

/// Directory authorities as the Tor source has them (`auth_dirs.inc`): address and ORPort.
const AUTHORITIES: [([u8; 4], u16); 8] = [
    ([128, 31, 0, 39], 9201),
    ([217, 196, 147, 77], 443),
    ([45, 66, 35, 11], 443),
    ([131, 188, 40, 189], 443),
    ([193, 23, 244, 244], 443),
    ([171, 25, 193, 9], 80),
    ([199, 58, 81, 140], 443),
    ([204, 13, 164, 118], 443),
];

/// Cells that go each way, as packets: a cell fits one packet with its TLS record and TCP/IP headers.
const fn cells(out: u64, back: u64) -> (Volume, Volume) {
    (Volume::of(out, 586 + 9), Volume::of(back, 586 + 9))
}

/// Sets the stage for one variant.
pub fn plan(stage: &mut Stage<'_>, variant: &str) {
    let level = stage.intensity;
    let host = stage.victim();
    let whole = f64::from(stage.wire.seconds());
    let seconds = if variant == "bootstrap" {
        stage.random.between(40.0, 240.0)
    } else {
        whole * stage.random.between(0.4, 0.85)
    };
    let from = stage.moment(seconds);
    if variant != "unlisted" {
        let authority = stage.random.pick(&AUTHORITIES);
        let is_authority = stage.random.chance(0.6) || variant == "bootstrap";
        let (peer, port) = match is_authority {
            true => (Party::outside(Address::v4(u32::from_be_bytes(authority.0))), authority.1),
            false => (stage.outside(), stage.random.pick(&[443, 9001])),
        };
        let kind = if is_authority { "a directory authority" } else { "a fallback directory" };
        let size = stage.random.log_normal(1_800_000.0, 0.4) as u64;
        contact(stage, variant, (host, peer, port), from, 12.0, (9_000, size), kind);
    }
    // Relays that were tried while circuits were built.
    for _ in 0..stage.random.pick(&[2, 3, 5]) {
        let (peer, port) = (stage.outside(), stage.random.pick(&[443, 9001, 9001, 8443, 9000]));
        let at = from + 8 + stage.random.below(30) as u32;
        let length = stage.random.between(20.0, 190.0).min(seconds);
        contact(stage, variant, (host, peer, port), at, length, (7_500, 8_200), "a relay that was tried");
    }
    if variant == "bootstrap" {
        return;
    }
    let guards = if variant == "busy" { 1 } else { stage.random.pick(&[1, 2, 3]) };
    for number in 0..guards {
        let (peer, port) = (stage.outside(), stage.random.pick(&[443, 443, 9001, 9001, 8080, 9030, 4431]));
        let load = if number == 0 { level.of(0.2, 1.0, 4.0) * if variant == "busy" { 8.0 } else { 1.0 } } else { 0.05 };
        guard(stage, variant, (host, peer, port), from + 15 + number * 3, seconds, load);
    }
}

/// A short connection to a directory or a relay.
fn contact(
    stage: &mut Stage<'_>,
    variant: &str,
    (host, peer, port): (Party, Party, u16),
    at: u32,
    seconds: f64,
    (out, back): (u64, u64),
    what: &str,
) {
    let basis = format!("simulated Tor client: {what}");
    let truth = stage.state("tor", variant, host, Some(peer), Some(port), basis);
    let (out, back) = tcp(out, back);
    let session = Session {
        client: host,
        server: peer,
        client_port: stage.random.client_port(),
        server_port: port,
        protocol: protocol::TCP,
        start: Millis::from(at) * 1000 + stage.random.below(900) as Millis,
        length: (seconds * 1000.0) as Millis,
        talk: Talk::Brief { out, back },
        outcome: Outcome::Answered,
        truth,
        seed: stage.random.bits(),
    };
    stage.starting.push((at, Box::new(Once(Some(session)))));
}

/// The connection that everything goes over.
fn guard(
    stage: &mut Stage<'_>,
    variant: &str,
    (host, peer, port): (Party, Party, u16),
    at: u32,
    seconds: f64,
    load: f64,
) {
    let basis = format!("simulated Tor client: a guard for {seconds:.0} s, load {load:.2}");
    let truth = stage.state("tor", variant, host, Some(peer), Some(port), basis);
    let random = &mut stage.random;
    let (out, back) = cells(1, 1);
    let padding = Stream { every: 5_500, offset: 4_000, jitter: 1.0, presence: 0.6, out, back, spread: 0.0 };
    // A page or a request: some cells out, tens to hundreds back.
    let (out, back) = cells(4 + random.below(10) as u64, (random.log_normal(60.0, 0.6) * load.max(0.2)) as u64 + 2);
    let every = (random.log_normal(40.0, 0.3) / load.clamp(0.1, 8.0) * 1000.0) as Millis;
    let use_ = Stream { every: every.max(1_000), offset: 9_000, jitter: 1.0, presence: 0.7, out, back, spread: 0.0 };
    let (out, back) = cells(3, 3);
    let circuits = Stream { every: 600_000, offset: 30_000, jitter: 0.5, presence: 1.0, out, back, spread: 0.0 };
    let session = Session {
        client: host,
        server: peer,
        client_port: random.client_port(),
        server_port: port,
        protocol: protocol::TCP,
        start: Millis::from(at) * 1000 + random.below(900) as Millis,
        length: (seconds * 1000.0) as Millis,
        talk: Talk::Streams { greeting: tcp(2_600, 3_900), streams: [padding, use_, circuits].into() },
        outcome: Outcome::Answered,
        truth,
        seed: random.bits(),
    };
    stage.starting.push((at, Box::new(Once(Some(session)))));
}
