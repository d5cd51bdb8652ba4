//! What people really have: exports, query results, archives, other writers' Parquet, and what is no flow log at all.
//! Everything is made here from the same forty records, which must come out the same, or be refused by name.

use std::fmt::Write as _;
use std::io::{Cursor, Write};
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flowvigil::flow::{FlowRecord, Marks};
use flowvigil::ingest::local::{ReadError, Reader};
use flowvigil::ingest::{Batch, Settings};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type, Int96, Int96Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use serde_json::{Value, json};

use crate::service::Service;

const START: u32 = 1_700_000_000;
const COUNT: usize = 40;
const NAMES: [&str; 14] = [
    "version",
    "account-id",
    "interface-id",
    "srcaddr",
    "dstaddr",
    "srcport",
    "dstport",
    "protocol",
    "packets",
    "bytes",
    "start",
    "end",
    "action",
    "log-status",
];

/// A scan: what must be found in whatever the lines are wrapped.
fn line(n: usize) -> String {
    let start = START + n as u32;
    format!("2 111122223333 eni-0a1 10.0.0.5 10.0.0.9 {} {} 6 1 44 {start} {start} REJECT OK", 40_000 + n, 1_000 + n)
}

fn lines() -> Vec<String> {
    (0..COUNT).map(line).collect()
}

fn cells(n: usize) -> Vec<String> {
    line(n).split(' ').map(str::to_owned).collect()
}

/// The moment of a record, as ISO 8601 with a separator between day and hour.
fn iso(n: usize, separator: char) -> String {
    let seconds = 13 * 60 + 20 + n;
    format!("2023-11-14{separator}22:{:02}:{:02}.000", seconds / 60, seconds % 60)
}

fn read_path(path: &Path) -> (Batch, Vec<ReadError>) {
    let mut reader = Reader::open(&[path.to_owned()], &Settings::default()).unwrap();
    let (mut all, mut errors) = (Batch::default(), Vec::new());
    loop {
        match reader.next_batch() {
            Ok(Some(batch)) => {
                all.records.extend_from_slice(&batch.records);
                all.refused.merge(batch.refused);
            }
            Ok(None) => return (all, errors),
            Err(error) => errors.push(error),
        }
    }
}

fn read(bytes: &[u8]) -> (Batch, Vec<ReadError>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    read_path(file.path())
}

/// What a record says, without the interface, which not every format has.
fn said(record: &FlowRecord) -> String {
    format!(
        "{} {} {} {} {} {} {} {} {} {}",
        record.source,
        record.destination,
        record.source_port,
        record.destination_port,
        record.protocol,
        record.packets,
        record.bytes,
        record.start.0,
        record.end.0,
        record.marks.has(Marks::REJECTED),
    )
}

/// Every one of them, and nothing else, with nothing refused.
fn assert_read(name: &str, bytes: &[u8]) {
    let (all, errors) = read(bytes);
    assert!(errors.is_empty(), "{name}: {errors:?}");
    assert_eq!(all.refused.count, 0, "{name}: {:?}", all.refused.samples);
    let (plain, _) = read(lines().join("\n").as_bytes());
    let told: Vec<String> = all.records.iter().map(said).collect();
    assert_eq!(told, plain.records.iter().map(said).collect::<Vec<_>>(), "{name}");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A table of the fields with a header, every cell in quotes or none.
fn table(names: &[&str], separator: char, quoted: bool) -> String {
    let quote = if quoted { "\"" } else { "" };
    let row = |cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{quote}{cell}{quote}")).collect();
        cells.join(&separator.to_string()) + "\n"
    };
    let mut text = row(names.iter().map(|name| (*name).to_owned()).collect());
    (0..COUNT).for_each(|n| text.push_str(&row(cells(n))));
    text
}

#[test]
fn exports_and_query_results_as_text_say_what_the_lines_say() {
    let each = |row: &dyn Fn(usize) -> String| (0..COUNT).map(|n| row(n) + "\n").collect::<String>();
    let athena = NAMES.map(|name| name.replace('-', "_"));
    let athena = athena.each_ref().map(String::as_str);
    let older = [
        "version",
        "account",
        "interfaceid",
        "sourceaddress",
        "destinationaddress",
        "sourceport",
        "destinationport",
        "protocol",
        "numpackets",
        "numbytes",
        "starttime",
        "endtime",
        "action",
        "logstatus",
    ];
    let camel = [
        "version",
        "accountId",
        "interfaceId",
        "srcAddr",
        "dstAddr",
        "srcPort",
        "dstPort",
        "protocol",
        "packets",
        "bytes",
        "start",
        "end",
        "action",
        "logStatus",
    ];
    let transit = |n: usize| {
        format!(
            "6 TransitGateway 111122223333 tgw-1 tgw-attach-1 1 2 vpc-1 vpc-2 subnet-1 subnet-2 eni-1 eni-2 az1 az2 tgw-attach-2 10.0.0.5 10.0.0.9 {} {} 6 1 44 {} {} OK IPv4 0 0 0 0 2 us-east-1 ingress - -",
            40_000 + n,
            1_000 + n,
            START + n as u32,
            START + n as u32
        )
    };
    let custom_header = "resource-type tgw-id tgw-attachment-id tgw-src-vpc-id tgw-dst-vpc-id a b c d e f srcaddr dstaddr srcport dstport protocol packets bytes start end action\n";
    let custom = |n: usize| {
        let cells = cells(n);
        format!("TransitGateway t a v v 1 2 3 4 5 6 {} {}", cells[3..12].join(" "), cells[12])
    };
    let bom = "\u{feff}";
    let named = "srcaddr dstaddr srcport dstport protocol packets bytes start end action\n";
    let short = |n: usize| cells(n)[3..13].join(" ");
    let half = COUNT / 2;
    for (name, text) in [
        ("CloudWatch export task", each(&|n| format!("{}Z {}", iso(n, 'T'), line(n)))),
        ("aws logs tail", each(&|n| format!("{}+00:00 eni-0a1-all {}", iso(n, 'T'), line(n)))),
        ("a date and a time in front", each(&|n| format!("{} {}", iso(n, ' '), line(n)))),
        ("behind syslog's words", each(&|n| format!("Nov 14 22:13:20 collector flow[12]: {}", line(n)))),
        (
            "console's CSV of log events",
            format!("timestamp,message\n{}", each(&|n| format!("{}000,{}", START + n as u32, line(n)))),
        ),
        (
            "console's CSV, quoted",
            format!("\"timestamp\",\"message\"\n{}", each(&|n| format!("\"{}000\",\"{}\"", START + n as u32, line(n)))),
        ),
        ("that CSV without its header", each(&|n| format!("{}000,{}", START + n as u32, line(n)))),
        (
            "Insights' CSV",
            format!("@timestamp,@message,@ptr\n{}", each(&|n| format!("{},{},abc", iso(n, ' '), line(n)))),
        ),
        ("Splunk's CSV", format!("\"_raw\",\"_time\",host\n{}", each(&|n| format!("\"{}\",{},web", line(n), START)))),
        ("a column of lines alone", format!("message\n{}", each(&|n| format!("\"{}\"", line(n))))),
        (
            "events with --output text",
            each(&|n| format!("EVENTS\t3503\t1700000005000\teni-0a1-all\t{}\t1700000001000", line(n))),
        ),
        ("messages with --output text", lines().join("\t") + "\n"),
        ("messages with --output yaml", each(&|n| format!("- {}", line(n)))),
        ("Athena's CSV", table(&athena, ',', true)),
        ("Athena's CSV with the older names", table(&older, ',', true)),
        ("names of Insights", table(&camel, ',', false)),
        ("tabs", table(&NAMES, '\t', false)),
        ("semicolons", table(&NAMES, ';', false)),
        ("bars", table(&NAMES, '|', false)),
        ("CSV without a header", table(&athena, ',', true).split_once('\n').unwrap().1.to_owned()),
        ("CSV with CRLF", table(&athena, ',', false).replace('\n', "\r\n")),
        ("CSV behind a byte-order mark", format!("{bom}{}", table(&athena, ',', true))),
        ("pandas: floats", table(&athena, ',', false).replace(",44,", ",44.0,").replace(",6,", ",6.0,")),
        (
            "times with a date",
            format!(
                "srcaddr,dstaddr,srcport,dstport,protocol,packets,bytes,start,end,action\n{}",
                each(&|n| {
                    let cells = cells(n);
                    format!("{},{},{},{}", cells[3..10].join(","), iso(n, ' '), iso(n, 'T'), cells[12])
                })
            ),
        ),
        (
            "milliseconds",
            format!(
                "srcaddr,dstaddr,srcport,dstport,protocol,packets,bytes,start,end,action\n{}",
                each(&|n| {
                    let cells = cells(n);
                    format!("{},{}000,{}000,{}", cells[3..10].join(","), cells[10], cells[11], cells[12])
                })
            ),
        ),
        ("words for numbers", table(&athena, ',', false).replace(",6,1,44,", ",TCP,1,44,").replace("REJECT", "Reject")),
        ("a byte-order mark before a header of one's own", format!("{bom}{named}{}", each(&short))),
        ("two byte-order marks", format!("{bom}{bom}{named}{}", each(&short))),
        (
            "files with byte-order marks put together",
            format!(
                "{bom}{named}{}{bom}{named}{}",
                (0..half).map(|n| short(n) + "\n").collect::<String>(),
                (half..COUNT).map(|n| short(n) + "\n").collect::<String>()
            ),
        ),
        ("a byte-order mark before lines", format!("{bom}{}", each(&line))),
        ("CRLF", each(&line).replace('\n', "\r\n")),
        ("a header of which few names are known", format!("{custom_header}{}", each(&custom))),
    ] {
        assert_read(name, text.as_bytes());
    }
    // A Transit Gateway says nothing of security groups.
    let (all, errors) = read(each(&transit).as_bytes());
    assert!(errors.is_empty() && all.refused.count == 0, "{errors:?} {:?}", all.refused.samples);
    assert_eq!((all.records.len(), all.records[1].destination_port), (COUNT, 1_001));
}

#[test]
fn exports_and_query_results_as_json_say_what_the_lines_say() {
    let all = lines();
    let map = |n: usize, names: &[&str]| -> Value {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .zip(cells(n).into_iter().map(Value::from))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let objects = |object: &dyn Fn(usize) -> Value, between: &str| {
        (0..COUNT).map(|n| object(n).to_string()).collect::<Vec<_>>().join(between)
    };
    let array = |object: &dyn Fn(usize) -> Value| Value::from((0..COUNT).map(object).collect::<Vec<_>>());
    let base64 = |text: String| STANDARD.encode(text);
    let subscription = json!({"messageType": "DATA_MESSAGE", "owner": "1", "logEvents": array(&|n| json!({"id": "1", "message": line(n)}))}).to_string();
    let event = |n: usize| json!({"logStreamName": "eni-0a1-all", "timestamp": 1, "message": line(n), "eventId": "3"});
    let row = |n: usize| json!([{"field": "@timestamp", "value": iso(n, ' ')}, {"field": "@message", "value": line(n)}, {"field": "@ptr", "value": "x"}]);
    let fields = |n: usize| -> Value {
        let names = [
            "", "", "", "srcAddr", "dstAddr", "srcPort", "dstPort", "protocol", "packets", "bytes", "start", "end",
            "action",
        ];
        let cells = cells(n);
        (3..13).map(|at| json!({"field": names[at], "value": cells[at]})).collect::<Vec<_>>().into()
    };
    let athena = |cells: Vec<String>| json!({"Data": cells.into_iter().map(|cell| json!({"VarCharValue": cell})).collect::<Vec<_>>()});
    let athena: Vec<Value> = std::iter::once(NAMES.map(|name| name.replace('-', "_")).to_vec())
        .chain((0..COUNT).map(cells))
        .map(athena)
        .collect();
    let ocsf = |n: usize| {
        let at = u64::from(START + n as u32) * 1000;
        json!({"metadata": {"product": {"version": "5", "name": "Amazon VPC"}, "version": "1.1.0"}, "cloud": {"account": {"uid": "1"}},
            "src_endpoint": {"port": 40_000 + n, "svc_name": "-", "ip": "10.0.0.5", "interface_uid": "eni-0a1"},
            "dst_endpoint": {"port": 1_000 + n, "svc_name": "-", "ip": "10.0.0.9", "interface_uid": null},
            "connection_info": {"protocol_num": 6, "tcp_flags": 2, "direction": "Outbound"}, "traffic": {"packets": 1, "bytes": 44},
            "time": at, "start_time": at, "end_time": at, "status_code": "OK", "class_uid": 4001, "disposition": "Blocked", "action": "Denied",
            "observables": [{"name": "src_endpoint.ip", "value": "10.0.0.5"}]})
    };
    let ecs = |n: usize| {
        let cells = cells(n);
        json!({"@timestamp": iso(n, 'T'), "source": {"ip": cells[3], "port": 40_000 + n, "bytes": 44, "packets": 1},
            "destination": {"ip": cells[4], "port": 1_000 + n}, "network": {"iana_number": "6"},
            "event": {"start": iso(n, 'T'), "end": iso(n, 'T')}, "aws": {"vpcflow": {"action": "REJECT", "log_status": "OK"}}})
    };
    let hits = array(&|n| json!({"_index": "i", "_source": {"message": line(n)}}));
    let kinesis = |n: usize| json!({"SequenceNumber": "49", "Data": base64(line(n)), "PartitionKey": "p"});
    for (name, text) in [
        ("aws logs filter-log-events", json!({"events": array(&event), "searchedLogStreams": []}).to_string()),
        ("the same, for people", serde_json::to_string_pretty(&json!({"events": array(&event)})).unwrap()),
        ("--query events[].message", serde_json::to_string_pretty(&all).unwrap()),
        ("--query events[].[message]", array(&|n| json!([line(n)])).to_string()),
        ("--query events[]", array(&event).to_string()),
        ("Insights", json!({"results": array(&row), "statistics": {"recordsMatched": 40.0}, "status": "Complete"}).to_string()),
        ("Insights, for people", serde_json::to_string_pretty(&json!({"results": array(&row)})).unwrap()),
        ("Insights --query results", array(&row).to_string()),
        ("Insights with fields", json!({"results": array(&fields), "status": "Complete"}).to_string()),
        ("the console's JSON of Insights", array(&|n| json!({"@timestamp": iso(n, ' '), "@message": line(n)})).to_string()),
        ("aws athena get-query-results", json!({"ResultSet": {"Rows": athena, "ResultSetMetadata": {}}}).to_string()),
        ("JSON lines with the names of Athena", objects(&|n| map(n, &NAMES), "\n")),
        ("objects without line ends (Firehose)", objects(&|n| json!({"message": line(n)}), "")),
        ("a byte-order mark before objects", format!("\u{feff}{}", objects(&event, "\r\n"))),
        ("OCSF, a line each", objects(&ocsf, "\n")),
        ("OCSF, a list", array(&ocsf).to_string()),
        ("ECS (Elastic)", objects(&ecs, "\n")),
        ("Elasticsearch's answer", json!({"took": 1, "hits": {"total": {"value": 40}, "hits": hits}}).to_string()),
        ("elasticdump", objects(&|n| json!({"_source": {"event": {"original": line(n)}, "source": {"ip": "10.0.0.5"}}}), "\n")),
        ("Splunk's export", objects(&|n| json!({"preview": false, "result": {"_raw": line(n), "_time": "x"}}), "\n")),
        ("Splunk's HEC", objects(&|n| json!({"event": line(n), "time": START}), "\n")),
        ("logcli", objects(&|n| json!({"labels": {}, "line": line(n), "timestamp": iso(n, 'T')}), "\n")),
        ("Loki's answer", json!({"status": "success", "data": {"resultType": "streams", "result": [{"stream": {}, "values": array(&|n| json!([format!("{START}000000000"), line(n)]))}]}}).to_string()),
        ("Docker, Fluent Bit", objects(&|n| json!({"log": line(n) + "\n", "stream": "stdout", "time": iso(n, 'T')}), "\n")),
        ("aws kinesis get-records", serde_json::to_string_pretty(&json!({"Records": array(&kinesis), "MillisBehindLatest": 0})).unwrap()),
        ("get-records of a subscription", json!({"Records": [{"SequenceNumber": "1", "Data": STANDARD.encode(gzip(subscription.as_bytes()))}]}).to_string()),
        ("Kinesis to Lambda", json!({"Records": array(&|n| json!({"kinesis": {"data": base64(line(n)), "partitionKey": "p"}, "eventSource": "aws:kinesis"}))}).to_string()),
        ("SQS to Lambda", json!({"Records": array(&|n| json!({"messageId": "m", "body": line(n), "eventSource": "aws:sqs"}))}).to_string()),
        ("Firehose to Lambda", json!({"invocationId": "i", "records": array(&|n| json!({"recordId": "r", "data": base64(line(n))}))}).to_string()),
        ("logs to Lambda", json!({"awslogs": {"data": STANDARD.encode(gzip(subscription.as_bytes()))}}).to_string()),
    ] {
        assert_read(name, text.as_bytes());
        assert_read(&format!("{name}, packed"), &gzip(text.as_bytes()));
    }
}

fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn zip(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::STORE);
    for (name, bytes) in files {
        writer.start_file(*name, stored).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A zip archive of one deflated file, by hand, for the library that writes them is built without a packer.
fn deflated(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    let packed = encoder.finish().unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    let about = |out: &mut Vec<u8>| {
        out.extend([20, 0, 0, 0, 8, 0, 0, 0, 0x21, 0x58]);
        out.extend(crc.sum().to_le_bytes());
        out.extend((packed.len() as u32).to_le_bytes());
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend((name.len() as u16).to_le_bytes());
        out.extend([0, 0]);
    };
    let mut out = b"PK\x03\x04".to_vec();
    about(&mut out);
    out.extend(name.as_bytes());
    out.extend(&packed);
    let directory = out.len() as u32;
    out.extend(b"PK\x01\x02\x14\0");
    about(&mut out);
    out.extend([0; 8]);
    out.extend([0; 6]);
    out.extend(name.as_bytes());
    let length = out.len() as u32 - directory;
    out.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    out.extend(length.to_le_bytes());
    out.extend(directory.to_le_bytes());
    out.extend([0, 0]);
    out
}

#[test]
fn packings_encodings_and_archives_hold_what_was_put_into_them() {
    let text = lines().join("\n") + "\n";
    let half = |range: std::ops::Range<usize>| range.map(|n| line(n) + "\n").collect::<String>().into_bytes();
    let two = [("logs/a.log", half(0..20)), ("logs/b.log.gz", gzip(&half(20..40)))];
    let utf16 = |bytes: fn(u16) -> [u8; 2], mark: bool| -> Vec<u8> {
        let mark = if mark { "\u{feff}" } else { "" };
        format!("{mark}{}", text.replace('\n', "\r\n")).encode_utf16().flat_map(bytes).collect()
    };
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(text.as_bytes()).unwrap();
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(text.as_bytes()).unwrap();
    let mut snappy = snap::write::FrameEncoder::new(Vec::new());
    snappy.write_all(text.as_bytes()).unwrap();
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    xz.write_all(text.as_bytes()).unwrap();
    for (name, bytes) in [
        ("bzip2", bzip2.finish().unwrap()),
        ("xz", xz.finish().unwrap()),
        ("LZ4", lz4.finish().unwrap()),
        ("Snappy", snappy.into_inner().unwrap()),
        ("zstd", zstd::encode_all(text.as_bytes(), 1).unwrap()),
        ("UTF-16 with a mark", utf16(u16::to_le_bytes, true)),
        ("UTF-16 without one", utf16(u16::to_le_bytes, false)),
        ("UTF-16, big end first", utf16(u16::to_be_bytes, true)),
        ("UTF-16 in gzip", gzip(&utf16(u16::to_le_bytes, true))),
        ("tar", tar(&two)),
        ("tar.gz", gzip(&tar(&two))),
        ("zip", zip(&two)),
        ("zip, deflated", deflated("vpc.log", text.as_bytes())),
        ("zip in gzip", gzip(&deflated("vpc.log", text.as_bytes()))),
        ("tar with Parquet", tar(&[("x.parquet", parquet_text(Compression::SNAPPY))])),
    ] {
        assert_read(name, &bytes);
    }
    // What else is in an archive is named, once for each file.
    for bytes in [
        tar(&[("README.md", b"# Notes\n".repeat(9)), two[0].clone()]),
        zip(&[("README.md", b"# Notes\n".repeat(9)), two[0].clone()]),
    ] {
        let (all, errors) = read(&bytes);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!((all.records.len(), all.refused.count), (20, 1), "{:?}", all.refused.samples);
        assert!(
            all.refused.samples[0].reason.starts_with("README.md in it is not a flow log"),
            "{:?}",
            all.refused.samples
        );
    }
    // One that is cut off says so, and gives what is before the cut.
    let whole = tar(&[("a.log", text.clone().into_bytes())]);
    let (all, _) = read(&whole[..512 + 1000]);
    assert!(!all.records.is_empty() && all.records.len() < COUNT);
    assert!(all.refused.samples[0].reason.contains("lost"), "{:?}", all.refused.samples);
}

/// A column of a Parquet file.
enum Values {
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Double(Vec<f64>),
    Int96(Vec<Int96>),
    Text(Vec<String>),
}

fn put(group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>, values: &Values, level: i16) {
    let mut column = group.next_column().unwrap().unwrap();
    let levels = [level; COUNT];
    let levels = (level > 0).then_some(&levels[..]);
    match values {
        Values::Int32(values) => column.typed::<Int32Type>().write_batch(values, levels, None).unwrap(),
        Values::Int64(values) => column.typed::<Int64Type>().write_batch(values, levels, None).unwrap(),
        Values::Double(values) => column.typed::<DoubleType>().write_batch(values, levels, None).unwrap(),
        Values::Int96(values) => column.typed::<Int96Type>().write_batch(values, levels, None).unwrap(),
        Values::Text(values) => {
            let values: Vec<ByteArray> = values.iter().map(|text| text.as_str().into()).collect();
            column.typed::<ByteArrayType>().write_batch(&values, levels, None).unwrap()
        }
    };
    column.close().unwrap();
}

/// A file of one group; `columns` are declarations with their values and definition levels.
fn parquet(schema: &str, compression: Compression, columns: &[(Values, i16)]) -> Vec<u8> {
    let schema = parquet::schema::parser::parse_message_type(schema).unwrap();
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema.into(), properties.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    columns.iter().for_each(|(values, level)| put(&mut group, values, *level));
    group.close().unwrap();
    writer.close().unwrap();
    out
}

fn column(at: usize) -> Vec<String> {
    (0..COUNT).map(|n| cells(n)[at].clone()).collect()
}

/// All columns as text, as a table of strings in Athena or a CSV file in pandas gives.
fn parquet_text(compression: Compression) -> Vec<u8> {
    let mut schema = "message flow {".to_owned();
    for name in NAMES {
        write!(schema, " optional binary {} (UTF8);", name.replace('-', "_")).unwrap();
    }
    let columns: Vec<(Values, i16)> = (0..NAMES.len()).map(|at| (Values::Text(column(at)), 1)).collect();
    parquet(&(schema + "}"), compression, &columns)
}

#[test]
fn parquet_of_other_writers_says_what_the_lines_say() {
    let text = |at: usize| Values::Text(column(at));
    let int = |at: usize| Values::Int64(column(at).iter().map(|cell| cell.parse().unwrap()).collect());
    let float = |at: usize| Values::Double(column(at).iter().map(|cell| cell.parse().unwrap()).collect());
    let scaled = |by: i64| Values::Int64((0..COUNT).map(|n| i64::from(START + n as u32) * by).collect());
    let julian = || {
        let moment = |n: usize| {
            let seconds = u64::from(START + n as u32);
            let nanoseconds = seconds % 86_400 * 1_000_000_000;
            let mut value = Int96::new();
            value.set_data(nanoseconds as u32, (nanoseconds >> 32) as u32, (seconds / 86_400 + 2_440_588) as u32);
            value
        };
        Values::Int96((0..COUNT).map(moment).collect())
    };
    for (name, compression) in [
        ("uncompressed", Compression::UNCOMPRESSED),
        ("Snappy", Compression::SNAPPY),
        ("gzip", Compression::GZIP(Default::default())),
        ("zstd", Compression::ZSTD(Default::default())),
        ("LZ4", Compression::LZ4_RAW),
        ("LZ4 of Hadoop", Compression::LZ4),
        ("brotli", Compression::BROTLI(Default::default())),
    ] {
        assert_read(name, &parquet_text(compression));
    }
    let head = "message schema { optional binary srcaddr (UTF8); optional binary dstaddr (UTF8);";
    let floats = "optional double srcport; optional double dstport; optional double protocol; optional double packets; optional double bytes;";
    // How a column of times is declared, and what one second is in it.
    for (name, kind, second) in [
        ("pandas: times as floats", "double", 1),
        ("seconds", "int64", 1),
        ("milliseconds", "int64 {} (TIMESTAMP(MILLIS,true))", 1_000),
        ("microseconds", "int64 {} (TIMESTAMP(MICROS,true))", 1_000_000),
        ("nanoseconds", "int64 {} (TIMESTAMP(NANOS,true))", 1_000_000_000),
        ("milliseconds of the older kind", "int64 {} (TIMESTAMP_MILLIS)", 1_000),
        ("milliseconds as a bare number", "int64", 1_000),
        ("Spark", "int96", 1),
    ] {
        let time = || match kind {
            "double" => float(10),
            "int96" => julian(),
            _ => scaled(second),
        };
        let mut columns = vec![(text(3), 1), (text(4), 1)];
        columns.extend((5..10).map(|at| (float(at), 1)));
        columns.extend([(time(), 1), (time(), 1), (text(12), 1)]);
        let declare = |column: &str| match kind.contains("{}") {
            true => format!("optional {};", kind.replace("{}", column)),
            false => format!("optional {kind} {column};"),
        };
        let schema =
            format!("{head} {floats} {} {} optional binary action (UTF8); }}", declare("start"), declare("end"));
        assert_read(name, &parquet(&schema, Compression::SNAPPY, &columns));
    }
    let ocsf = "message spark_schema {
        optional group metadata { optional group product { optional binary version (UTF8); optional binary name (UTF8); } optional binary version (UTF8); }
        optional group src_endpoint { optional int32 port; optional binary ip (UTF8); optional binary interface_uid (UTF8); }
        optional group dst_endpoint { optional int32 port; optional binary ip (UTF8); }
        optional group connection_info { optional int32 protocol_num; }
        optional group traffic { optional int64 packets; optional int64 bytes; }
        optional int64 start_time; optional int64 end_time; optional binary disposition (UTF8); optional binary status_code (UTF8);
        optional int32 class_uid; }";
    let small = |at: usize| Values::Int32(column(at).iter().map(|cell| cell.parse().unwrap()).collect());
    let same = |word: &str| Values::Text(vec![word.to_owned(); COUNT]);
    let columns = [
        (same("5"), 3),
        (same("Amazon VPC"), 3),
        (same("1.1.0"), 2),
        (small(5), 2),
        (text(3), 2),
        (text(2), 2),
        (small(6), 2),
        (text(4), 2),
        (small(7), 2),
        (int(8), 2),
        (int(9), 2),
        (scaled(1_000), 1),
        (scaled(1_000), 1),
        (same("Blocked"), 1),
        (same("OK"), 1),
        (Values::Int32(vec![4001; COUNT]), 1),
    ];
    assert_read("Security Lake", &parquet(ocsf, Compression::ZSTD(Default::default()), &columns));
    let message = "message raw { optional binary message (UTF8); optional int64 timestamp; }";
    assert_read(
        "whole lines",
        &parquet(message, Compression::SNAPPY, &[(Values::Text(lines()), 1), (scaled(1_000), 1)]),
    );
}

fn detect(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flowvigil")).arg("detect").args(arguments).output().unwrap()
}

/// What `detect` makes of a file: exit code, anomalies, words.
fn judged(folder: &Path, name: &str, bytes: &[u8]) -> (Option<i32>, String, String) {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    let run = detect(&["--format", "ndjson", path.to_str().unwrap()]);
    (run.status.code(), String::from_utf8(run.stdout).unwrap(), String::from_utf8(run.stderr).unwrap())
}

#[test]
fn a_scan_is_found_in_whatever_it_is_exported_as() {
    let folder = tempfile::tempdir().unwrap();
    let names = NAMES.map(|name| name.replace('-', "_"));
    for (name, bytes) in [
        ("athena.csv", table(&names.each_ref().map(String::as_str), ',', true).into_bytes()),
        ("export.log", (0..COUNT).map(|n| format!("{}Z {}\n", iso(n, 'T'), line(n))).collect::<String>().into_bytes()),
        ("lz4.parquet", parquet_text(Compression::LZ4_RAW)),
        ("logs.tar.gz", gzip(&tar(&[("a.log", lines().join("\n").into_bytes())]))),
    ] {
        let (code, told, said) = judged(folder.path(), name, &bytes);
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(told.contains("\"threat\":\"port_scan\""), "{name}: {told}\n{said}");
    }
}

#[test]
fn what_is_no_flow_log_is_named_with_exit_code_2_and_no_anomalies() {
    let folder = tempfile::tempdir().unwrap();
    let ids = parquet(
        "message other { required int64 id; required int64 price; }",
        Compression::SNAPPY,
        &[(Values::Int64(vec![1; COUNT]), 0), (Values::Int64(vec![2; COUNT]), 0)],
    );
    let poem = "Two roads diverged in a yellow wood\n".repeat(3000);
    let bad_rows = table(&NAMES, ',', false).replace("10.0.0.5", "somewhere");
    for (name, bytes, words) in [
        ("empty.log", b"".to_vec(), "it is empty"),
        ("header.log", (NAMES.join(" ") + "\n").into_bytes(), "nothing was read"),
        ("poem.txt", poem.clone().into_bytes(), "no line was readable"),
        ("rows.csv", bad_rows.clone().into_bytes(), "`somewhere` is not an IP address"),
        ("other.csv", b"name,price,colour\napple,1,red\npear,2,green\n".to_vec(), "a table with the columns name, price, colour"),
        ("lacks.csv", b"srcaddr,dstaddr,bytes\n10.0.0.1,10.0.0.2,5\n".to_vec(), "the format has no `start`"),
        ("stats.csv", b"srcAddr,sum(bytes),dstPort,count(*)\n10.0.0.1,5,443,2\n".to_vec(), "`dstaddr`, `start`"),
        ("other.parquet", ids, "(id, price) are not those of a flow log"),
        ("page.html", b"<!DOCTYPE html><html><body>Log in</body></html>".to_vec(), "a web page (HTML)"),
        ("denied.xml", b"<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code></Error>".to_vec(), "an error that S3 answered with"),
        ("trail.json", gzip(br#"{"Records":[{"eventVersion":"1.08","eventName":"RunInstances","eventSource":"ec2.amazonaws.com"}]}"#), "CloudTrail"),
        ("nsg.json", br#"{"records":[{"time":"x","category":"NetworkSecurityGroupFlowEvent","properties":{"flows":[]}}]}"#.to_vec(), "Azure"),
        ("vnet.json", br#"{"records":[{"time":"x","category":"FlowLogFlowEvent","flowRecords":{"flows":[]}}]}"#.to_vec(), "Azure"),
        ("gcp.json", br#"{"insertId":"a","jsonPayload":{"connection":{"src_ip":"10.0.0.1","dest_ip":"10.0.0.2"},"bytes_sent":"5"}}"#.to_vec(), "Google Cloud"),
        ("eve.json", br#"{"timestamp":"2023-11-14T22:13:20","event_type":"flow","flow_id":1,"src_ip":"10.0.0.1","dest_ip":"10.0.0.2"}"#.to_vec(), "Suricata"),
        ("zeek.log", b"#separator \\x09\n#path\tconn\n#fields\tts\tuid\tid.orig_h\n".to_vec(), "Zeek"),
        ("alb.log", b"https 2018-07-02T22:23:00.186641Z app/lb/50dc6c 192.168.131.39:2817 10.0.0.1:80 0.086 0.048 0.037 200 200 0 57 \"GET https://www.example.com:443/ HTTP/1.1\"\n".to_vec(), "load balancer"),
        ("capture.pcap", [&b"\xd4\xc3\xb2\xa1\x02\0\x04\0"[..], &[0; 100]].concat(), "packet capture"),
        ("flows.nfcapd", [&b"\x0c\xa5\x01\0"[..], &[7; 100]].concat(), "NetFlow"),
        ("dns.json", br#"{"version":"1.1","query_name":"example.com.","query_type":"A","srcaddr":"10.0.0.1"}"#.to_vec(), "Route 53"),
        ("login.json", br#"{"class_uid":3002,"class_name":"Authentication"}"#.to_vec(), "OCSF"),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n".to_vec(), "Git LFS"),
        ("book.xlsx", zip(&[("[Content_Types].xml", b"<Types/>".to_vec()), ("xl/workbook.xml", b"<workbook/>".to_vec())]), "workbook"),
        ("docs.tar", tar(&[("README.md", b"# Notes\n".to_vec())]), "README.md in it is not a flow log"),
        ("logs.7z", b"7z\xbc\xaf\x27\x1c\0\x04".to_vec(), "7-Zip"),
        ("events.avro", b"Obj\x01\x04\x14avro.codec".to_vec(), "Avro"),
        ("table.txt", b"------------------------------\n|  FilterLogEvents           |\n+----------------------------+\n".to_vec(), "--output json"),
    ] {
        let (code, told, said) = judged(folder.path(), name, &bytes);
        assert_eq!(code, Some(2), "{name}: {said}");
        assert!(told.is_empty(), "{name}: {told}");
        assert!(said.contains(words), "`{words}` is missing for {name} in:\n{said}");
        assert!(!said.contains("0 anomalies"), "{name}: {said}");
    }
}

#[test]
fn nothing_read_is_never_told_as_nothing_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = path("good/vpc.log", lines().join("\n").as_bytes());
    let poem = path("poems/poem.txt", b"Two roads diverged in a yellow wood\n");
    path("poems/picture.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR");
    let poems = Path::new(&poem).parent().unwrap().to_str().unwrap().to_owned();
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let quiet = path("quiet.log", b"2 111122223333 eni-0a1 - - - - - - - 1700000000 1700000060 - NODATA\n");
    for (arguments, code, words) in [
        (
            &[good.as_str(), "--since", "2024-01-01"][..],
            2,
            "of the 40 records read, which are of 2023-11-14T22:13:20Z to 2023-11-14T22:13:59Z, none is at or after --since 2024-01-01T00:00:00Z",
        ),
        (&[&good, "--until", "2023-01-01"], 2, "none is before --until 2023-01-01T00:00:00Z"),
        (&[&good, "--since", "2023-11-14"], 0, "40 records"),
        (&[empty.to_str().unwrap()], 2, "no files"),
        (&[&poems], 2, "no other file of the folder is one"),
        (&[&quiet], 0, "there was no record to judge"),
    ] {
        let run = detect(arguments);
        let said = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "`{words}` is missing for {arguments:?} in:\n{said}");
        assert!(code == 0 || run.stdout.is_empty(), "{arguments:?}");
    }
    // Among others that are read, one that is named is told and keeps the code from being 0; what is found is told.
    let run = detect(&["--format", "ndjson", &good, &poem]);
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(2), "{said}");
    assert!(said.contains("poem.txt is not a flow log") && !run.stdout.is_empty(), "{said}");
}

#[test]
fn a_service_that_can_read_nothing_is_degraded_until_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let mut service = Service::start(folder.path(), &[]);
    service.append("Two roads diverged in a yellow wood\n");
    let ready = service.wait_until("/health/ready", |ready| ready["degraded"][0]["part"] == "input");
    let reason = ready["degraded"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("flow.log was read: ") && reason.contains("line 1: 7 columns"), "{reason}");
    service.quiet_until(0);
    service.wait_until("/health/ready", |ready| ready["degraded"].as_array().is_some_and(Vec::is_empty));
    service.stop();
}
