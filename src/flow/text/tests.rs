use super::*;

fn decode_all(format: Format, text: &str) -> (Decoded, Lines, Interfaces) {
    let (mut lines, mut interfaces, mut out) = (Lines::new(format), Interfaces::new(1000), Decoded::default());
    lines.decode_plainly(text.as_bytes(), &mut interfaces, &mut out);
    (out, lines, interfaces)
}

fn refusal(line: &str) -> (Option<&'static str>, String) {
    let (out, ..) = decode_all(Format::default(), line);
    assert_eq!((out.refused, out.records.len(), out.blind.len()), (1, 0, 0), "{line}");
    (out.samples[0].field, out.samples[0].reason.clone())
}

const LINE: &str = "2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK";

#[test]
fn a_default_line_says_what_it_says() {
    let (out, _, interfaces) = decode_all(Format::default(), LINE);
    let expected = FlowRecord {
        source: "172.31.16.139".parse().unwrap(),
        destination: "172.31.16.21".parse().unwrap(),
        bytes: 4249,
        packets: 20,
        start: EventTime(1418530010),
        end: EventTime(1418530070),
        interface: crate::flow::InterfaceId(1),
        source_port: 20641,
        destination_port: 22,
        protocol: 6,
        tcp_flags: 0,
        marks: Marks::default(),
    };
    assert_eq!(out.records, [expected]);
    assert_eq!(interfaces.known()[0].name, "eni-1235b8ca123456789");
    assert_eq!(interfaces.known()[0].account, "123456789010");
}

#[test]
fn tabs_double_spaces_carriage_returns_blank_lines_and_a_missing_last_newline_change_nothing() {
    let text = format!("\r\n{}\r\n\n  {}  \n\t\n{}", LINE.replace(' ', "\t"), LINE.replace(' ', "   "), LINE);
    let (out, lines, _) = decode_all(Format::default(), &text);
    assert_eq!(out.records.len(), 3);
    assert!(out.records.iter().all(|record| *record == out.records[0]));
    assert_eq!((out.refused, lines.number()), (0, 6));
}

#[test]
fn a_header_in_the_middle_changes_the_columns_from_there_on() {
    let text = format!("{LINE}\nend start dstaddr srcaddr team-tag\n1418530071 1418530070 10.0.0.2 10.0.0.1 blue\n");
    let (out, lines, _) = decode_all(Format::default(), &text);
    assert_eq!(out.refused, 0);
    assert_eq!(out.records[1].source, "10.0.0.1".parse().unwrap());
    assert_eq!(out.records[1].end, EventTime(1418530071));
    assert_eq!(lines.headers(), 1);
}

#[test]
fn refusals_name_the_field_by_its_aws_name_and_the_reason() {
    for (from, to, field, reason) in [
        ("172.31.16.139", "172.31.16.256", Some("srcaddr"), "`172.31.16.256` is not an IP address"),
        ("172.31.16.21", "010.0.0.1", Some("dstaddr"), "`010.0.0.1` is not an IP address"),
        ("172.31.16.21", "-", Some("dstaddr"), "is `-` in a record that is not NODATA or SKIPDATA"),
        ("20641", "65536", Some("srcport"), "`65536` is not a number from 0 to 65535"),
        (" 6 ", " 256 ", Some("protocol"), "`256` is not a number from 0 to 255"),
        (" 4249 ", " 18446744073709551616 ", Some("bytes"), "is not a number from 0 to 18446744073709551615"),
        (" 20 ", " -20 ", Some("packets"), "`-20` is not a number"),
        ("1418530070", "1418530009", Some("end"), "end 1418530009 is before start 1418530010"),
        ("1418530010", "141853001", Some("end"), "more than a day"),
        ("1418530010", "1418530010000", Some("start"), "is not a number from 0 to 4294967295"),
        ("ACCEPT", "accept", Some("action"), "`accept` is neither ACCEPT nor REJECT"),
        (" OK", " FINE", Some("log-status"), "`FINE` is none of OK, NODATA, SKIPDATA"),
        (" OK", "", None, "13 columns where the format has 14"),
        (" OK", " OK OK", None, "15 columns where the format has 14"),
    ] {
        let (named, said) = refusal(&LINE.replacen(from, to, 1));
        assert_eq!(named, field, "{to}");
        assert!(said.contains(reason), "{to}: {said}");
    }
}

#[test]
fn no_data_and_skipped_data_are_blindness_and_not_errors() {
    let text = "2 123456789010 eni-1 - - - - - - - 1431280876 1431280934 - NODATA\n\
                2 unknown eni-2 - - - - - - - 1431280876 1431280934 - SKIPDATA\n";
    let (out, _, interfaces) = decode_all(Format::default(), text);
    assert_eq!((out.records.len(), out.refused), (0, 0));
    assert_eq!(out.blind.iter().map(|b| b.kind).collect::<Vec<_>>(), [BlindnessKind::NoData, BlindnessKind::SkipData]);
    assert_eq!(interfaces.known()[1].account, "");
}

#[test]
fn packet_addresses_come_before_the_interfaces_own_and_mark_the_intermediary() {
    let format =
        Format::parse("${srcaddr} ${dstaddr} ${pkt-srcaddr} ${pkt_dstaddr} ${start} ${end} ${flow-direction}").unwrap();
    let text = "10.0.1.5 10.0.0.220 10.0.1.5 203.0.113.5 1418530010 1418530070 egress\n\
                10.0.1.5 10.0.0.220 - 10.0.0.220 1418530010 1418530070 ingress\n";
    let (out, ..) = decode_all(format, text);
    assert_eq!(out.records[0].destination, "203.0.113.5".parse().unwrap());
    assert_eq!(out.records[0].marks, Marks::INTERMEDIARY.with(Marks::EGRESS));
    assert_eq!(out.records[1].destination, "10.0.0.220".parse().unwrap());
    assert_eq!(out.records[1].marks, Marks::INGRESS);
}

#[test]
fn every_documented_field_in_documented_order_is_read_without_a_header() {
    let text = "5 641111117617 eni-069 89.160.20.156 2001:db8::1 50041 33004 6 52 1 1640000066 1640000097 REJECT OK vpc-0 subnet-0 \
                i-0 18 IPv4 89.160.20.156 2001:db8::1 us-east-1 use1-az5 - - AMAZON CLOUDFRONT ingress 1";
    let (out, ..) = decode_all(Format::default(), text);
    assert_eq!(out.refused, 0, "{:?}", out.samples);
    let record = out.records[0];
    let marks = [Marks::REJECTED, Marks::FLAGS_KNOWN, Marks::INGRESS, Marks::FROM_AWS_SERVICE, Marks::TO_AWS_SERVICE];
    assert_eq!(record.marks, marks.into_iter().fold(Marks::default(), Marks::with));
    assert_eq!((record.tcp_flags, record.destination), (18, "2001:db8::1".parse().unwrap()));
}

#[test]
fn a_format_that_cannot_be_judged_is_refused_with_the_field_it_lacks() {
    assert_eq!(Format::parse("srcaddr start"), Err(FormatError::Lacks(vec!["dstaddr"])));
    assert_eq!(Format::parse("version action"), Err(FormatError::Lacks(vec!["srcaddr", "dstaddr", "start"])));
    assert_eq!(Format::parse(" "), Err(FormatError::Empty));
    assert_eq!(Format::parse("srcaddr srcaddr"), Err(FormatError::Twice("srcaddr".into())));
    assert!(matches!(Format::parse(&"x ".repeat(200)), Err(FormatError::TooWide(200))));
    let header = "instance-id interface-id srcaddr dstaddr pkt-srcaddr pkt-dstaddr\n- eni-1 10.0.1.5 10.0.0.220 10.0.1.5 203.0.113.5\n";
    let (out, lines, _) = decode_all(Format::default(), header);
    assert_eq!((out.refused, lines.unusable()), (1, Some(&FormatError::Lacks(vec!["start"]))));
}

#[test]
fn a_line_over_the_limit_is_refused_and_the_next_is_read() {
    let text = format!("{}\n{LINE}\n", "x".repeat(LINE_MAX + 1));
    let (out, ..) = decode_all(Format::default(), &text);
    assert_eq!((out.refused, out.records.len()), (1, 1));
    assert!(out.samples[0].reason.contains("the limit is 65536"));
}

proptest::proptest! {
    #[test]
    fn ipv6_addresses_are_those_of_the_library(
        bits in proptest::prelude::any::<u128>(), zeros in proptest::prelude::any::<u128>(), text in "[0-9a-fA-F:.g]{0,12}|([0-9a-f]{1,5}:){0,9}(:[0-9a-f]{0,4}){0,8}",
    ) {
        let known = |text: &str| text.parse::<std::net::Ipv6Addr>().ok().map(|ip| Address::from_bits(ip.to_bits()));
        for text in [text, std::net::Ipv6Addr::from_bits(bits & zeros).to_string(), std::net::Ipv6Addr::from_bits(bits & 0xffff << (zeros % 113)).to_string()] {
            proptest::prop_assert_eq!(parse_v6(text.as_bytes()), known(&text), "{}", text);
            // What the quick way reads, it reads as the library does.
            proptest::prop_assert!(parse_groups(text.as_bytes()).is_none_or(|address| Some(address) == known(&text)));
        }
        let whole = std::net::Ipv6Addr::from_bits(bits).to_string();
        proptest::prop_assert_eq!(parse_groups(whole.as_bytes()), known(&whole), "{}", whole);
    }
}
