use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::data_type::{ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;
use crate::flow::{BlindnessKind, Marks};

/// Two groups of `rows` records and one NODATA, as flow logs write them: gzip, nulls for `-`.
fn file(rows: usize) -> Vec<u8> {
    let schema = "message flow {
        optional int32 version; optional binary account_id (UTF8); optional binary interface_id (UTF8);
        optional binary srcaddr (UTF8); optional binary dstaddr (UTF8); optional int32 srcport; optional int32 dstport;
        optional int32 protocol; optional int64 packets; optional int64 bytes; required int64 start; required int64 end;
        optional binary action (UTF8); optional binary log_status (UTF8); optional int32 tcp_flags;
        optional binary flow_direction (UTF8); optional binary team (UTF8);
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties =
        Arc::new(WriterProperties::builder().set_compression(Compression::GZIP(Default::default())).build());
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema.clone(), properties).unwrap();
    for _ in 0..2 {
        let mut group = writer.next_row_group().unwrap();
        for field in schema.get_fields() {
            let name = field.name();
            let optional = field.is_optional();
            let some = !matches!(name, "version" | "account_id" | "interface_id" | "start" | "end" | "log_status");
            // The last row says nothing but who, when, and NODATA.
            let mut levels = vec![1i16; rows + 1];
            if some {
                levels[rows] = 0;
            }
            let present = levels.iter().filter(|level| **level > 0).count();
            let levels = optional.then_some(&levels[..]);
            let mut column = group.next_column().unwrap().unwrap();
            let number = match name {
                "version" => 5,
                "srcport" => 40_000,
                "dstport" => 443,
                "protocol" => 6,
                "tcp_flags" => 18,
                "packets" => 7,
                "bytes" => 5_000_000_000,
                "start" => 1_616_729_292,
                _ => 1_616_729_349i64,
            };
            let text = |row: usize| match name {
                "account_id" => "123456789012",
                "interface_id" => "eni-1",
                "srcaddr" => "10.0.0.1",
                "dstaddr" => "2001:db8::1",
                "action" => "REJECT",
                "log_status" if row == rows => "NODATA",
                "log_status" => "OK",
                "flow_direction" => "egress",
                _ => "blue",
            };
            match field.get_physical_type() {
                parquet::basic::Type::INT32 => {
                    column.typed::<Int32Type>().write_batch(&vec![number as i32; present], levels, None).unwrap();
                }
                parquet::basic::Type::INT64 => {
                    column.typed::<Int64Type>().write_batch(&vec![number; present], levels, None).unwrap();
                }
                _ => {
                    let values: Vec<ByteArray> = (0..present).map(|row| text(row).into()).collect();
                    column.typed::<ByteArrayType>().write_batch(&values, levels, None).unwrap();
                }
            }
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
    out
}

fn read(bytes: Vec<u8>) -> Result<(Decoded, Interfaces), RowsError> {
    let (mut interfaces, mut out) = (Interfaces::new(10), Decoded::default());
    let mut rows = Rows::new(Bytes::from(bytes))?;
    while rows.decode(&mut interfaces, &mut out)? {}
    Ok((out, interfaces))
}

#[test]
fn rows_say_what_lines_say_and_null_is_absent() {
    let (out, interfaces) = read(file(5000)).unwrap();
    assert_eq!((out.records.len(), out.blind.len(), out.refused), (10_000, 2, 0), "{:?}", out.samples);
    let record = out.records[9_999];
    assert_eq!((record.bytes, record.destination_port, record.tcp_flags), (5_000_000_000, 443, 18));
    assert_eq!(record.destination, "2001:db8::1".parse().unwrap());
    assert_eq!(record.marks, Marks::REJECTED.with(Marks::FLAGS_KNOWN).with(Marks::EGRESS));
    assert_eq!(out.blind[0].kind, BlindnessKind::NoData);
    assert_eq!(interfaces.known()[0].name, "eni-1");
}

#[test]
fn rows_that_are_done_with_can_be_passed_over() {
    let (mut interfaces, mut out) = (Interfaces::new(10), Decoded::default());
    let mut rows = Rows::new(Bytes::from(file(5000))).unwrap();
    rows.skip_to(5001).unwrap();
    while rows.decode(&mut interfaces, &mut out).unwrap() {}
    assert_eq!((out.records.len(), out.blind.len()), (5000, 1));
}

#[test]
fn a_file_cut_off_or_with_flipped_bits_is_an_error_or_refusals_and_never_a_panic() {
    let whole = file(300);
    for end in (0..whole.len()).step_by(37) {
        assert!(read(whole[..end].to_vec()).is_err(), "cut at {end}");
    }
    for at in (4..whole.len()).step_by(3) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        let _ = read(flipped);
    }
}

#[test]
fn columns_of_something_else_are_named() {
    let schema = Arc::new(parse_message_type("message other { required int32 id; }").unwrap());
    let mut out = Vec::new();
    SerializedFileWriter::new(&mut out, schema, Arc::new(WriterProperties::builder().build()))
        .unwrap()
        .close()
        .unwrap();
    let Err(error) = read(out) else { panic!("read a table of ids") };
    assert!(error.to_string().contains("no `srcaddr`"), "{error}");
}

#[test]
fn a_footer_that_claims_a_list_longer_than_itself_is_refused_before_it_is_believed() {
    // A list (type 9) of 2^31 structures in seven bytes.
    let footer = [0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07];
    let mut bytes = b"PAR1".to_vec();
    bytes.extend(footer);
    bytes.extend((footer.len() as u32).to_le_bytes());
    bytes.extend(b"PAR1");
    let Err(error) = read(bytes) else { panic!("read a list of billions") };
    assert!(error.to_string().contains("footer"), "{error}");
}
