//! Real input: captures and AWS's own samples, read as a user would, and files damaged in every way that files are.

use std::io::Write;
use std::path::{Path, PathBuf};

use flowvigil::flow::BlindnessKind;
use flowvigil::ingest::local::{ReadError, Reader};
use flowvigil::ingest::{Batch, Settings};

/// Where the labelled captures are; tests that need them say so and pass where they are absent.
fn datasets() -> Option<PathBuf> {
    let folder = match std::env::var_os("FLOWVIGIL_DATASETS") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/datasets"),
    };
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no datasets at {}", folder.display());
    None
}

fn read(path: &Path) -> (Batch, Vec<ReadError>) {
    let mut reader = Reader::open(&[path.to_owned()], &Settings::default()).unwrap();
    let (mut all, mut errors) = (Batch::default(), Vec::new());
    loop {
        match reader.next_batch() {
            Ok(Some(batch)) => {
                all.records.extend_from_slice(&batch.records);
                all.interfaces.extend_from_slice(&batch.interfaces);
                all.blind.extend_from_slice(&batch.blind);
                all.refused.merge(batch.refused.clone());
                reader.recycle(batch);
            }
            Ok(None) => break,
            Err(error) => errors.push(error),
        }
    }
    let progress = reader.progress();
    assert!(progress.read <= progress.total.max(progress.read));
    (all, errors)
}

fn labelled_sets(folder: &Path) -> Vec<PathBuf> {
    let files = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_string_lossy().ends_with(".log.gz")).collect()
    };
    let mut sets = files(folder);
    sets.extend(files(&folder.join("merged")));
    sets.sort();
    sets
}

#[test]
fn every_labelled_set_is_read_whole() {
    let Some(folder) = datasets() else { return };
    for set in labelled_sets(&folder) {
        let labels = set.to_string_lossy().replace(".log.gz", ".labels.json");
        let labels: serde_json::Value = serde_json::from_slice(&std::fs::read(labels).unwrap()).unwrap();
        let (all, errors) = read(&set);
        assert!(errors.is_empty() && all.refused.count == 0, "{}: {errors:?} {:?}", set.display(), all.refused);
        assert_eq!(Some(all.records.len() as u64), labels["records"].as_u64(), "{}", set.display());
        let last = all.interfaces.len() as u32;
        assert!(all.records.iter().all(|record| (1..=last).contains(&record.interface.0)));
    }
}

/// Records, blind stretches and refusals of each of AWS's samples.
#[test]
fn the_samples_of_aws_and_of_other_readers_are_understood() {
    let Some(folder) = datasets() else { return };
    for (name, records, blind, refused) in [
        ("awsdocs/v2-examples.log", 5, 2, 0),
        ("awsdocs/v3-tcp-flags-custom.log", 8, 0, 0),
        ("awsdocs/v5-s3-custom.log", 2, 0, 0),
        ("beats/accept-reject-traffic.log", 4, 0, 0),
        ("beats/ipv6.log", 1, 0, 0),
        ("beats/no-data-skip-data.log", 0, 2, 0),
        ("beats/tcp-flag-sequence-skip-data.log", 0, 2, 0),
        ("beats/tcp-flag-sequence.log", 1, 0, 0),
        ("elastic/test-extra-samples.log", 5, 2, 0),
        ("elastic/test-tcp-flag-sequence.log", 1, 2, 0),
        ("elastic/test-with-message-field.log", 0, 1, 0),
        ("flowlogs-reader/V2_RECORDS.txt", 3, 2, 0),
        ("flowlogs-reader/V3_FILE.txt", 2, 0, 0),
        ("flowlogs-reader/V4_FILE.txt", 2, 0, 0),
        ("other/real-eu-west-2-20220221T1955Z.log", 5, 0, 0),
        ("other/real-eu-west-2-20220221T2025Z.log", 5, 0, 0),
        ("other/real-ktranslate-cwl-event-extractedFields.json", 1, 0, 0),
        ("other/real-ktranslate-v3.log", 1, 0, 0),
    ] {
        let (all, errors) = read(&folder.join("aws-samples").join(name));
        assert!(errors.is_empty(), "{name}: {errors:?}");
        let counts = (all.records.len(), all.blind.len(), all.refused.count);
        assert_eq!(counts, (records, blind, refused), "{name}: {:?}", all.refused.samples);
    }
    // Formats in which nothing can be judged, and things that are none: each says what is missing.
    for (name, reason) in [
        ("awsdocs/nat-gateway-custom.log", "the format has no `start`"),
        ("awsdocs/v3-transit-gateway-custom.log", "the format has no `start`"),
        ("beats/custom-nat-gateway.log", "the format has no `start`"),
        ("beats/custom-transit-gateway.log", "name them with --fields"),
        ("beats/bad.log", "4 columns where the format has 14"),
        ("elastic/test-tgw-samples.log", "name them with --fields"),
    ] {
        let (all, errors) = read(&folder.join("aws-samples").join(name));
        assert!(all.records.is_empty(), "{name}");
        assert_eq!(errors.len(), 1, "{name}");
        assert!(errors[0].to_string().contains(reason), "{name}: {}", errors[0]);
    }
}

#[test]
fn a_sample_with_an_impossible_time_is_refused_by_its_field() {
    let Some(folder) = datasets() else { return };
    // Its `start` lacks a digit, which would make a record of 46 years.
    let (_, errors) = read(&folder.join("aws-samples/elastic/test-v5-all-fields.log"));
    assert!(errors[0].to_string().contains("line 1: end: 1476000231 s from start to end"), "{}", errors[0]);
}

const LINE: &str =
    "2 123456789010 eni-1 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK\n";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A small whole file of each format, with how many records it holds.
pub(crate) fn formats() -> Vec<(&'static str, Vec<u8>)> {
    let text: String = (1..=200).map(|n| LINE.replace("20641", &n.to_string())).collect();
    let object = |line: &str| format!("{{\"message\":\"{}\"}}", line.trim_end());
    let objects: String = text.lines().map(object).collect();
    let names = ["version", "account-id", "interface-id", "srcaddr", "dstaddr", "srcport", "dstport", "protocol"];
    let names = [&names[..], &["packets", "bytes", "start", "end", "action", "log-status"]].concat();
    let fields = |line: &str| {
        let fields = names.iter().zip(line.split(' ')).map(|(name, value)| (name.to_string(), value.into()));
        format!("{}\n", serde_json::Value::Object(fields.collect()))
    };
    let fields: String = text.lines().map(fields).collect();
    let events: Vec<_> =
        text.lines().map(|line| serde_json::json!({"id": "1", "timestamp": 1, "message": line})).collect();
    let blob = serde_json::json!({"messageType": "DATA_MESSAGE", "owner": "1", "logEvents": events}).to_string();
    vec![
        ("text", text.clone().into_bytes()),
        ("gzip", gzip(text.as_bytes())),
        ("zstd", zstd::encode_all(text.as_bytes(), 3).unwrap()),
        ("objects", objects.into_bytes()),
        ("fields", fields.into_bytes()),
        ("subscription", gzip(blob.as_bytes())),
        ("parquet", parquet(&names, &text)),
        ("table", table(&names, &text).into_bytes()),
        ("archive", tar(text.as_bytes())),
    ]
}

/// Lines as a table with a header, in quotes.
fn table(names: &[&str], text: &str) -> String {
    let row = |cells: &str| format!("\"{}\"\n", cells.replace(' ', "\",\""));
    row(&names.join(" ")) + &text.lines().map(row).collect::<String>()
}

/// Lines as a file in a tar archive.
fn tar(text: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_cksum();
    builder.append_data(&mut header, "vpc.log", text).unwrap();
    builder.into_inner().unwrap()
}

/// Lines as a Parquet file of text columns.
fn parquet(names: &[&str], text: &str) -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let columns: String =
        names.iter().map(|name| format!("required binary {} (UTF8);", name.replace('-', "_"))).collect();
    let schema = parquet::schema::parser::parse_message_type(&format!("message flow {{ {columns} }}")).unwrap();
    let compression = parquet::basic::Compression::GZIP(Default::default());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema.into(), properties.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in 0..names.len() {
        let values: Vec<ByteArray> = text.lines().map(|line| line.split(' ').nth(column).unwrap().into()).collect();
        let mut writer = group.next_column().unwrap().unwrap();
        writer.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        writer.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    out
}

fn read_bytes(bytes: &[u8]) -> (Batch, Vec<ReadError>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    read(file.path())
}

#[test]
fn whole_files_of_every_format_hold_the_same_records() {
    let plain = read_bytes(&formats()[0].1).0.records;
    assert_eq!(plain.len(), 200);
    for (name, bytes) in formats() {
        let (all, errors) = read_bytes(&bytes);
        assert!(errors.is_empty() && all.refused.count == 0, "{name}: {errors:?} {:?}", all.refused);
        assert_eq!(all.records, plain, "{name}");
    }
}

#[test]
fn cut_off_files_say_so_and_never_invent_records() {
    let plain = read_bytes(&formats()[0].1).0.records;
    for (name, bytes) in formats() {
        for part in 0..40 {
            let (all, errors) = read_bytes(&bytes[..bytes.len() * part / 40]);
            assert!(plain.starts_with(&all.records), "{name} cut at {part}/40");
            // Text and objects may be cut between two of them, and an archive in its padding, which nobody can see.
            let seen = errors.len() as u64 + all.refused.count;
            assert!(
                seen > 0 || ["text", "objects", "fields", "table", "archive"].contains(&name),
                "{name} cut at {part}/40"
            );
            assert!(part > 0 || matches!(&errors[..], [ReadError::NotFlowLogs { .. }]), "{name} empty: {errors:?}");
        }
    }
}

#[test]
fn flipped_bits_are_refused_or_read_and_never_a_panic() {
    for (name, bytes) in formats() {
        for step in 0..200 {
            let mut flipped = bytes.clone();
            let at = step * bytes.len() / 200;
            flipped[at] ^= 1 << (step % 8);
            let (all, errors) = read_bytes(&flipped);
            assert!(all.records.len() <= 200, "{name} at {at}");
            assert!(errors.iter().all(|error| matches!(error, ReadError::NotFlowLogs { .. })), "{name}: {errors:?}");
        }
    }
}

#[test]
fn garbage_and_wrong_headers_are_clear_errors() {
    let noise: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let pe = [b"MZ\x90\0".as_slice(), &noise[..5000]].concat();
    for (bytes, reason) in [
        (&noise[..], "no line was readable"),
        (&pe[..], "no line was readable"),
        (b"srcaddr dstaddr\n10.0.0.1 10.0.0.2\n", "the format has no `start`"),
        (b"{\"eventVersion\":\"1.08\",\"Records\":[]}", "a log of CloudTrail"),
        (b"PAR1 and nothing else", "Parquet file is damaged"),
        (b"\x28\xb5\x2f\xfd garbage", "damaged"),
        (b"", "it is empty"),
    ] {
        let (all, errors) = read_bytes(bytes);
        assert!(all.records.is_empty());
        let said = errors[0].to_string();
        assert!(said.contains(reason), "{}: {said}", bytes[..bytes.len().min(20)].escape_ascii());
    }
}

#[test]
fn lines_that_cannot_be_read_do_not_stop_the_rest() {
    let huge = format!("2 {} eni-1 1.1.1.1 2.2.2.2 1 2 6 1 1 1 1 ACCEPT OK\n", "9".repeat(70_000));
    let text = format!("{LINE}what is this\n{LINE}{huge}{LINE}{}", LINE.replace("OK", "NODATA"));
    let (all, errors) = read_bytes(text.as_bytes());
    assert!(errors.is_empty());
    assert_eq!((all.records.len(), all.refused.count), (3, 2));
    assert_eq!(all.blind[0].kind, BlindnessKind::NoData);
    assert_eq!(all.refused.samples.iter().map(|sample| sample.line).collect::<Vec<_>>(), [2, 4]);
}
