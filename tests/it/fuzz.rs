//! Inputs that nobody writes: sound ones, changed at random by a seed, and given to what `tests/fuzz/checks` says must hold.
//!
//! Every run makes some hundreds of each. `FLOWVIGIL_FUZZ=10000000 FLOWVIGIL_FUZZ_SECONDS=900 tests/run fuzz` makes so many, or as
//! many as the time for each target allows, and says how long the slowest took and how much memory the process has had;
//! `FLOWVIGIL_FUZZ_SEED` makes others. An input that breaks something is written to a file, which is named.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde_json::json;

#[path = "../fuzz/checks/envelope.rs"]
mod envelope;
#[path = "../fuzz/checks/parquet.rs"]
mod parquet_file;
#[path = "../fuzz/checks/snapshot.rs"]
mod snapshot;
#[path = "../fuzz/checks/text.rs"]
mod text;

/// Numbers at which things break.
const EDGES: [u32; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX];

/// Text at which things break.
const WORDS: [&str; 14] = [
    "-",
    "NODATA",
    "SKIPDATA",
    "4294967296",
    "18446744073709551616",
    "255.255.255.255",
    "256.1.1.1",
    "::ffff:10.0.0.1",
    "fe80::1%eth0",
    "\"",
    "\\u0000",
    "{",
    "\u{feff}",
    "\r\n",
];

struct Changes(Xoshiro256PlusPlus);

impl Changes {
    fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end.max(1) as u64) as usize
    }

    /// One of some inputs with a few changes; now and then one that has nothing to do with any.
    fn input(&mut self, sound: &[Vec<u8>]) -> Vec<u8> {
        let at = self.below(sound.len());
        let mut bytes = sound[at].clone();
        if self.below(64) == 0 {
            let length = self.below(300);
            bytes = (0..length).map(|_| self.0.next_u64() as u8).collect();
        }
        for _ in 0..1 << self.below(5) {
            self.change(&mut bytes, sound);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, sound: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let longest = 1 << self.below(8);
        let length = self.below(longest).min(bytes.len() - at);
        match self.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.0.next_u64() as u8,
            2 => drop(bytes.drain(at..at + length)),
            3 => {
                let copied = bytes[at..at + length].to_vec();
                bytes.splice(at..at, copied);
            }
            4 => {
                let other = &sound[self.below(sound.len())];
                let from = self.below(other.len());
                let to = (from + self.below(200)).min(other.len());
                bytes.splice(at..at + length, other[from..to].iter().copied());
            }
            5 => bytes.truncate(at),
            6 => {
                let edge = EDGES[self.below(EDGES.len())];
                let edge = if self.below(2) == 0 { edge.to_le_bytes() } else { edge.to_be_bytes() };
                let width = [1, 2, 4][self.below(3)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            7 => drop(bytes.splice(at..at + length, WORDS[self.below(WORDS.len())].bytes())),
            _ => bytes.insert(at, self.0.next_u64() as u8),
        }
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// The most memory that the process has had so far, MB; 0 where the system does not say.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) / 1024
}

/// Feeds a check with changed inputs, as they are or wrapped.
fn feed(name: &str, few: u64, sound: &[Vec<u8>], wrap: fn(Vec<u8>, u64) -> Vec<u8>, check: fn(&[u8])) {
    for input in sound {
        check(input);
    }
    let (seed, most) = (number("FLOWVIGIL_FUZZ_SEED", 1), number("FLOWVIGIL_FUZZ", few));
    let patience = Duration::from_secs(number("FLOWVIGIL_FUZZ_SECONDS", 3600));
    let mut changes = Changes(Xoshiro256PlusPlus::seed_from_u64(seed));
    let (begun, mut made, mut slowest) = (Instant::now(), 0, (Duration::ZERO, 0));
    while made < most && begun.elapsed() < patience {
        let changed = changes.input(sound);
        let input = wrap(changed, changes.0.next_u64());
        let started = Instant::now();
        if catch_unwind(AssertUnwindSafe(|| check(&input))).is_err() {
            let mut file = tempfile::Builder::new().prefix(&format!("flowvigil-fuzz-{name}-")).tempfile().unwrap();
            file.write_all(&input).unwrap();
            panic!(
                "{name}: input {made} of seed {seed} breaks it: {}",
                file.into_temp_path().keep().unwrap().display()
            );
        }
        slowest = slowest.max((started.elapsed(), input.len()));
        made += 1;
    }
    let (took, (slow, length)) = (begun.elapsed(), slowest);
    println!(
        "{name}: {made} inputs in {took:.0?}; the slowest, of {length} bytes, took {slow:.1?}; peak memory {} MB",
        peak_memory()
    );
}

fn as_it_is(input: Vec<u8>, _choice: u64) -> Vec<u8> {
    input
}

/// Some seconds of a network under attack, with the gaps that a log has.
fn lines(count: usize) -> String {
    let line = |n: usize| {
        let start = 1_700_000_000 + n;
        let (from, to) = (format!("10.0.{}.{}", n % 7, n % 250), format!("198.51.100.{}", n % 99));
        match n % 9 {
            7 => format!("2 123456789012 eni-{:017x} - - - - - - - {start} {start} - NODATA\n", n % 3),
            8 => format!(
                "2 123456789012 eni-{:017x} 2001:db8::{n:x} fe80::1 443 {n} 6 1 60 {start} {start} REJECT OK\n",
                n % 3
            ),
            _ => format!(
                "2 123456789012 eni-{:017x} {from} {to} {} 443 6 {n} {} {start} {} ACCEPT OK\n",
                n % 3,
                40_000 + n,
                44 * n,
                start + 59
            ),
        }
    };
    (0..count).map(line).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn subscription(lines: &str) -> Vec<u8> {
    let event = |line: &str| json!({ "id": "1", "timestamp": 1_571_081_770_000_u64, "message": line });
    let events: Vec<_> = lines.lines().map(event).collect();
    let whole = json!({ "messageType": "DATA_MESSAGE", "owner": "1", "logGroup": "flow", "logStream": "eni-1-all", "logEvents": events });
    whole.to_string().into_bytes()
}

#[test]
fn lines_of_any_bytes_are_decoded_alike_at_every_level() {
    let whole = lines(40);
    let header = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status\n";
    let sound: Vec<Vec<u8>> =
        [whole.clone(), whole.replace('\n', "\r\n"), format!("{header}{whole}"), lines(3), "\t".repeat(70)]
            .into_iter()
            .flat_map(|text| (0..4_u8).map(move |choice| [&[choice], text.as_bytes()].concat()))
            .collect();
    feed("text", 200, &sound, as_it_is, text::check);
}

#[test]
fn payloads_of_any_bytes_are_decoded_or_refused() {
    let (few, many) = (lines(5), lines(30));
    let data = STANDARD.encode(gzip(&subscription(&few)));
    let sound = vec![
        subscription(&few),
        subscription(&many),
        many.clone().into_bytes(),
        gzip(many.as_bytes()),
        zstd::encode_all(many.as_bytes(), 1).unwrap(),
        json!({ "awslogs": { "data": data } }).to_string().into_bytes(),
        json!({ "records": [{ "recordId": "1", "data": STANDARD.encode(&few) }] }).to_string().into_bytes(),
        few.lines().map(|line| json!({ "message": line }).to_string() + "\n").collect::<String>().into_bytes(),
        json!({ "class_uid": 4001, "src_endpoint": { "ip": "10.0.0.1", "port": 4 }, "dst_endpoint": { "ip": "10.0.0.2", "port": 443 },
            "traffic": { "bytes": 5, "packets": 1 }, "start_time": 1_700_000_000, "end_time": 1_700_000_001, "disposition": "Allowed" })
        .to_string()
        .into_bytes(),
        table(Compression::SNAPPY),
    ];
    // Changes behind a checksum are seen only where it is made afterwards.
    let wrap = |input: Vec<u8>, choice| match choice % 4 {
        0 => gzip(&input),
        1 => zstd::encode_all(&*input, 1).unwrap(),
        _ => input,
    };
    feed("envelope", 300, &sound, wrap, envelope::check);
}

/// A table of flows as a Parquet file.
fn table(compression: Compression) -> Vec<u8> {
    let schema = "message flow { optional binary srcaddr (UTF8); optional binary dstaddr (UTF8); optional int32 srcport; optional int32 dstport; \
                  optional int32 protocol; optional int64 packets; optional int64 bytes; optional int64 start; optional int64 end; \
                  optional binary action (UTF8); optional binary interface_id (UTF8); }";
    let schema = parquet::schema::parser::parse_message_type(schema).unwrap();
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, Arc::new(schema), properties.into()).unwrap();
    for _ in 0..2 {
        let mut group = writer.next_row_group().unwrap();
        for at in 0..11 {
            let mut column = group.next_column().unwrap().unwrap();
            let levels = [1, 1, 0, 1, 1, 1];
            let done = match at {
                0 | 1 | 9 | 10 => {
                    let words = [["10.0.0.1", "10.0.0.2", "ACCEPT"], ["10.0.0.9", "::1", "REJECT"]][at % 2];
                    let values: Vec<ByteArray> = (0..5).map(|n| words[if at < 9 { n % 2 } else { 2 }].into()).collect();
                    column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None)
                }
                2..=4 => column.typed::<Int32Type>().write_batch(&[6, 443, 22, 17, 1], Some(&levels), None),
                _ => column.typed::<Int64Type>().write_batch(&[1_700_000_000, 1, 60, 44, 9], Some(&levels), None),
            };
            done.unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
    out
}

#[test]
fn parquet_files_of_any_bytes_are_read_or_refused() {
    let packed =
        [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::LZ4_RAW, Compression::ZSTD(ZstdLevel::default())];
    let sound: Vec<Vec<u8>> = packed.into_iter().map(table).collect();
    feed("parquet", 1_000, &sound, as_it_is, parquet_file::check);
}

#[test]
fn snapshots_of_any_bytes_are_restored_or_refused() {
    // Even: changes to a snapshot that is sound, three bytes each. Odd: the bytes of a snapshot.
    let change = |n: u8| [&[0], &[n, n.wrapping_mul(7), n.wrapping_mul(31)][..]].concat();
    let mut sound: Vec<Vec<u8>> = (0..40).map(change).collect();
    sound.push([&[1], &snapshot::sound()[..]].concat());
    feed("snapshot", 300, &sound, as_it_is, snapshot::check);
}
