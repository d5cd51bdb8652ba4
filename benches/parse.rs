//! How fast lines become records: per record, on one core, text in memory.
//!
//! Informs: whether the fast decoder earns its place (it should be several times the plain one, and that no slower than the
//! peer), how much of a run's time may go to decoding, and whether a change made either slower. The peer is what a reader
//! without care for speed does: `split_whitespace` and `str::parse`, into the same record, without interfaces.
//!
//!     cargo bench --bench parse

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::net::IpAddr;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flowvigil::flow::envelope::Envelope;
use flowvigil::flow::interfaces::Interfaces;
use flowvigil::flow::simd::{Fast, Level};
use flowvigil::flow::text::{Decoded, Format, Lines};
use flowvigil::flow::{Address, EventTime, FlowRecord, Marks};
use flowvigil::ingest::local::Reader;

const RECORDS: u64 = 100_000;

/// Default lines of 2,000 hosts, every 28th between IPv6 addresses, one in 250 NODATA, in a fixed order.
fn text() -> String {
    let mut text = String::new();
    let mut state = 7u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for n in 0..RECORDS {
        let host = next(2000);
        let eni = (host + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let start = 1_718_000_000 + n / 100;
        let (source, destination) = match n % 28 {
            0 => (format!("2001:db8:1234:a100::{host:x}"), format!("2600:1f18::{:x}", next(65_536))),
            _ => {
                (format!("10.0.{}.{}", host / 250, host % 250), format!("52.{}.{}.{}", next(256), next(256), next(256)))
            }
        };
        let (port, packets) = (1024 + next(60_000), 1 + next(40));
        let bytes = packets * (40 + next(1400));
        let written = if n % 250 == 249 {
            writeln!(text, "2 123456789012 eni-0{eni:016x} - - - - - - - {start} {} - NODATA", start + 59)
        } else {
            let end = start + next(60);
            writeln!(
                text,
                "2 123456789012 eni-0{eni:016x} {source} {destination} {port} 443 6 {packets} {bytes} {start} {end} ACCEPT OK"
            )
        };
        written.expect("a string takes everything");
    }
    text
}

/// The peer: every field checked, nothing else done well.
fn split_and_parse(line: &str) -> Option<FlowRecord> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.len() != 14 || fields[13] != "OK" {
        return None;
    }
    let address = |text: &str| text.parse::<IpAddr>().ok().map(Address::from);
    Some(FlowRecord {
        source: address(fields[3])?,
        destination: address(fields[4])?,
        source_port: fields[5].parse().ok()?,
        destination_port: fields[6].parse().ok()?,
        protocol: fields[7].parse().ok()?,
        packets: fields[8].parse().ok()?,
        bytes: fields[9].parse().ok()?,
        start: EventTime(fields[10].parse().ok()?),
        end: EventTime(fields[11].parse().ok()?),
        marks: if fields[12] == "REJECT" { Marks::REJECTED } else { Marks::default() },
        ..FlowRecord::default()
    })
}

fn decoders(c: &mut Criterion) {
    let text = text();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(RECORDS)).sample_size(20);
    group.bench_function("peer: split_whitespace + str::parse", |b| {
        b.iter(|| text.lines().filter_map(split_and_parse).map(|record| record.bytes).sum::<u64>());
    });
    for level in Level::available() {
        group.bench_with_input(BenchmarkId::from_parameter(format!("{level:?}")), &level, |b, &level| {
            let (mut fast, mut interfaces, mut out) = (Fast::new(level), Interfaces::new(10_000), Decoded::default());
            b.iter(|| {
                out.clear();
                fast.decode(text.as_bytes(), &mut Lines::new(Format::default()), &mut interfaces, &mut out);
                out.records.iter().map(|record| record.bytes).sum::<u64>()
            });
        });
    }
    group.finish();
}

/// The same lines as CloudWatch Logs sends them, 500 to a payload: unpacked and decoded.
fn payloads(c: &mut Criterion) {
    let text = text();
    let lines: Vec<&str> = text.lines().collect();
    let event =
        |line: &&str| format!(r#"{{"id":"35036294238826492806","timestamp":1718000000000,"message":"{line}"}}"#);
    let head = r#"{"messageType":"DATA_MESSAGE","owner":"123456789012","logGroup":"flow","logStream":"eni-1-all","#;
    let payload = |lines: &[&str]| {
        let events: Vec<String> = lines.iter().map(event).collect();
        gzip(format!(r#"{head}"subscriptionFilters":["f"],"logEvents":[{}]}}"#, events.join(",")).as_bytes())
    };
    let payloads: Vec<Vec<u8>> = lines.chunks(500).map(payload).collect();
    let mut group = c.benchmark_group("payload");
    group.throughput(Throughput::Elements(RECORDS)).sample_size(20);
    group.bench_function("CloudWatch Logs, gzip", |b| {
        let (mut envelope, mut interfaces) = (Envelope::new(1 << 26), Interfaces::new(10_000));
        let mut out = Decoded::default();
        b.iter(|| {
            out.clear();
            for payload in &payloads {
                envelope.decode(payload, &Format::default(), &mut interfaces, &mut out);
            }
            out.records.len()
        });
    });
    group.finish();
}

/// Whole files: opened, read, unpacked, decoded, handed over.
fn files(c: &mut Criterion) {
    let text = text();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut group = c.benchmark_group("file");
    group.throughput(Throughput::Elements(RECORDS)).sample_size(20);
    for (name, bytes) in [("plain", text.clone().into_bytes()), ("gzip", gzip(text.as_bytes()))] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a temporary file");
        group.bench_function(name, |b| {
            let open = || Reader::open(std::slice::from_ref(&path), &Default::default()).expect("it was just written");
            b.iter_batched(
                open,
                |mut reader| {
                    while let Some(batch) = reader.next_batch().expect("flow logs") {
                        black_box(&batch.records);
                        reader.recycle(batch);
                    }
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

criterion_group!(benches, decoders, payloads, files);
criterion_main!(benches);
