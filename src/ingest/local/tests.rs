use std::io::Write;

use super::*;
use crate::ingest::Settings as IngestSettings;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read_all(paths: &[PathBuf]) -> (Batch, Vec<ReadError>) {
    let mut reader = Reader::open(paths, &IngestSettings::default()).unwrap();
    let (mut all, mut errors) = (Batch::default(), Vec::new());
    loop {
        match reader.next_batch() {
            Ok(Some(batch)) => {
                all.records.extend_from_slice(&batch.records);
                all.interfaces.extend_from_slice(&batch.interfaces);
                all.blind.extend_from_slice(&batch.blind);
                all.refused.merge(batch.refused.clone());
                all.position = batch.position.clone().or(all.position);
                reader.recycle(batch);
            }
            Ok(None) => return (all, errors),
            Err(error) => errors.push(error),
        }
    }
}

fn read_bytes(bytes: &[u8]) -> (Batch, Vec<ReadError>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    read_all(&[file.path().to_owned()])
}

const LINE: &str = "2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK\n";

#[test]
fn plain_gzip_of_several_members_and_zstd_say_the_same() {
    let text = LINE.repeat(5000);
    let mut members = gzip(&text.as_bytes()[..100_000]);
    members.extend(gzip(&text.as_bytes()[100_000..]));
    let plain = read_bytes(text.as_bytes());
    assert_eq!(plain.0.records.len(), 5000);
    assert_eq!(read_bytes(&members).0.records, plain.0.records);
    assert_eq!(read_bytes(&zstd::encode_all(text.as_bytes(), 3).unwrap()).0.records, plain.0.records);
}

#[test]
fn a_gzip_file_that_is_cut_off_gives_its_records_and_one_refusal() {
    let text: String = (0..5000).map(|n| LINE.replace("20641", &(n % 60_000).to_string())).collect();
    let packed = gzip(text.as_bytes());
    let (all, errors) = read_bytes(&packed[..packed.len() / 2]);
    assert!(errors.is_empty());
    assert!(all.records.len() > 1000 && all.records.len() < 5000);
    assert_eq!(all.refused.count, 1);
    assert_eq!(all.refused.samples[0].line, all.records.len() as u64 + 1);
    assert!(all.refused.samples[0].reason.contains("cut off"));
}

#[test]
fn a_file_that_is_no_flow_log_is_an_error_that_names_it() {
    for bytes in [&b""[..], b"Phony unsupported log format.\n", b"\x00\x01\x02\xff\xfe", &[0x1f, 0x8b, 8, 0, 1, 2]] {
        let (all, errors) = read_bytes(bytes);
        assert!(all.records.is_empty());
        assert!(matches!(&errors[..], [ReadError::NotFlowLogs { .. }]), "{bytes:?}: {errors:?}");
    }
}

#[test]
fn a_bad_file_in_a_folder_is_refused_and_the_others_are_read() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.log"), "nothing of use\n").unwrap();
    std::fs::write(folder.path().join("b.log"), LINE).unwrap();
    let (all, errors) = read_all(&[folder.path().to_owned()]);
    assert!(errors.is_empty());
    assert_eq!((all.records.len(), all.refused.count), (1, 1));
    assert!(all.refused.samples[0].source.ends_with("a.log"));
}
