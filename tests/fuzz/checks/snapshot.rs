//! A detector snapshot of any bytes is restored or refused; what is restored can be written again, and goes on judging.
//! Half of the inputs are bytes, half are changes to a snapshot that is sound.

use std::sync::LazyLock;

use flowvigil::flow::network::Network;
use flowvigil::flow::{Address, EventTime, FlowRecord, InterfaceId, Marks};
use flowvigil::settings::Settings;
use flowvigil::statistical::{Engine, Output};

static SETTINGS: LazyLock<Settings> = LazyLock::new(Settings::defaults);
static NETWORK: LazyLock<Network> = LazyLock::new(|| Network::new(&SETTINGS.network));
static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut engine = Engine::new(&SETTINGS.statistical, &NETWORK);
    engine.observe(&traffic(0));
    engine.advance(&mut Output::default());
    engine.snapshot()
});

/// Calls and refused probes of two hosts over some minutes.
fn traffic(from: u32) -> Vec<FlowRecord> {
    let record = |n: u32| FlowRecord {
        source: Address::v4(0x0a00_0005 + n % 2),
        destination: Address::v4(0xc633_6407 + n % 7),
        bytes: 44 + u64::from(n % 3) * 400,
        packets: 1 + u64::from(n % 3),
        start: EventTime(1_700_006_400 + from + n * 5),
        end: EventTime(1_700_006_401 + from + n * 5),
        interface: InterfaceId(1),
        source_port: 40_000 + (n % 900) as u16,
        destination_port: if n.is_multiple_of(2) { 443 } else { n as u16 },
        protocol: 6,
        tcp_flags: 0,
        marks: if n % 4 == 1 { Marks::REJECTED } else { Marks::default() },
    };
    (0..100).map(record).collect()
}

/// Panics where it is not so.
pub fn check(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    let mut bytes = rest.to_vec();
    if choice.is_multiple_of(2) {
        bytes.clone_from(&SOUND);
        for change in rest.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
            bytes[at] = change[2];
        }
    }
    if let Ok(mut engine) = Engine::restore(&bytes, &SETTINGS.statistical, &NETWORK) {
        engine.snapshot();
        let mut out = Output::default();
        engine.observe(&traffic(3_600));
        engine.advance(&mut out);
        engine.finish(&mut out);
    }
}

/// A snapshot that is sound.
#[allow(dead_code, reason = "a fuzzer finds its own")]
pub fn sound() -> Vec<u8> {
    SOUND.clone()
}
