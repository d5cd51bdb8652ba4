//! `flowvigil detect` as a whole process: read, decoded, judged by four tiers, told.
//!
//! Informs: whether a day of logs is judged while one waits, and what share of it is only reading. The peers stand in the
//! same run: `wc -l`, which only reads the same file, and `gzip -dc`, which only unpacks it. Wall time; on a machine with
//! idle cores the decoder of gzip may overlap with the rest, so compare CPU time where it matters (benches/README.md).
//!
//!     cargo bench --bench end_to_end

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const RECORDS: u64 = 1_000_000;

fn run(program: &str, arguments: &[&str], path: &Path) {
    let status = Command::new(program)
        .args(arguments)
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(status.success(), "{program} {arguments:?} ended with {status}");
}

/// A simulated VPC with every threat at low intensity.
fn simulated(folder: &Path) -> (PathBuf, PathBuf) {
    let plain = folder.join("vpc.log");
    let records = RECORDS.to_string();
    run(env!("CARGO_BIN_EXE_flowvigil"), &["simulate", "--records", &records, "--threats", "all:low", "--out"], &plain);
    run("gzip", &["-k"], &plain);
    (plain.clone(), plain.with_extension("log.gz"))
}

fn end_to_end(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (plain, packed) = simulated(folder.path());
    let mut group = c.benchmark_group("end to end");
    group.throughput(Throughput::Elements(RECORDS)).sample_size(10);
    group.bench_function("peer: wc -l", |b| b.iter(|| run("wc", &["-l"], &plain)));
    group.bench_function("detect", |b| b.iter(|| run(env!("CARGO_BIN_EXE_flowvigil"), &["detect"], &plain)));
    group.bench_function("peer: gzip -dc", |b| b.iter(|| run("gzip", &["-dc"], &packed)));
    group.bench_function("detect, gzip", |b| b.iter(|| run(env!("CARGO_BIN_EXE_flowvigil"), &["detect"], &packed)));
    group.finish();
}

criterion_group!(benches, end_to_end);
criterion_main!(benches);
