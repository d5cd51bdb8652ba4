use proptest::prelude::*;

use super::*;
use crate::flow::text::Format;

/// Both ways over the same text; everything that comes out must be equal.
fn same(format: &Format, text: &[u8]) {
    let run = |level: Option<Level>| {
        let (mut lines, mut interfaces, mut out) = (Lines::new(format.clone()), Interfaces::new(5), Decoded::default());
        match level {
            None => lines.decode_plainly(text, &mut interfaces, &mut out),
            Some(level) => Fast::new(level).decode(text, &mut lines, &mut interfaces, &mut out),
        }
        let state = (lines.number(), lines.headers(), lines.format().clone());
        (out.records, out.blind, out.refused, out.samples, interfaces.known().to_vec(), state)
    };
    let plain = run(None);
    for level in Level::available() {
        assert_eq!(plain, run(Some(level)), "{level:?}: {}", text.escape_ascii());
    }
}

const DEFAULT: &str = "2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK";
const V6: &str = "2 123456789010 eni-1 2001:db8:1234:a100:8d6e:3477:df66:f105 ::1 34892 22 6 54 8855 1477913708 1477913820 REJECT OK";
const V5: &str = "5 52.95.128.179 10.0.0.71 80 34210 6 1616729292 1616729349 IPv4 14 15044 123456789012 vpc-abcdefab012345678 subnet-aaaaaaaa012345678 i-0c50d5961bcb2d47b eni-1235b8ca123456789 ap-southeast-2 apse2-az3 - - ACCEPT 19 52.95.128.179 10.0.0.71 S3 - - ingress OK";
const V5_HEADER: &str = "version srcaddr dstaddr srcport dstport protocol start end type packets bytes account-id vpc-id subnet-id instance-id interface-id region az-id sublocation-type sublocation-id action tcp-flags pkt-srcaddr pkt-dstaddr pkt-src-aws-service pkt-dst-aws-service traffic-path flow-direction log-status";

/// A line of the common shape with some of its fields exchanged for others, good and bad.
fn line() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("-".to_owned()),
        Just("".to_owned()),
        Just(".".to_owned()),
        Just("1.2.3".to_owned()),
        Just("01.2.3.4".to_owned()),
        Just("255.255.255.256".to_owned()),
        Just("10.20.30.40".to_owned()),
        Just("fe80::1".to_owned()),
        Just("::ffff:1.2.3.4".to_owned()),
        Just("NODATA".to_owned()),
        Just("REJECT".to_owned()),
        Just("egress".to_owned()),
        Just("\t".to_owned()),
        Just("00000000000000000007".to_owned()),
        "[0-9]{1,21}",
        "[ -~]{0,12}",
        any::<u64>().prop_map(|n| n.to_string()),
        (0u32..70_000).prop_map(|n| n.to_string()),
        (1_418_530_000u32..1_418_630_000).prop_map(|n| n.to_string()),
    ];
    let base = prop_oneof![4 => Just(DEFAULT), 2 => Just(V6), 3 => Just(V5), 1 => Just(V5_HEADER)];
    (base, proptest::collection::vec((any::<prop::sample::Index>(), value), 0..3), 0..12u8).prop_map(
        |(base, changes, ending)| {
            let mut fields: Vec<String> = base.split(' ').map(str::to_owned).collect();
            for (index, value) in changes {
                let index = index.index(fields.len());
                fields[index] = value;
            }
            let ending = match ending {
                0 => "\r\n",
                1 => "\n\n",
                2 => " \n",
                3 => "\n ",
                _ => "\n",
            };
            fields.join(" ") + ending
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn both_decoders_agree_on_lines_with_wrong_fields(
        lines in proptest::collection::vec(line(), 1..12),
        format in prop_oneof![Just(Format::default()), Just(Format::parse(V5_HEADER).unwrap())],
    ) {
        let text = lines.concat();
        same(&format, text.as_bytes());
        same(&format, text.trim_end().as_bytes());
    }

    #[test]
    fn both_decoders_agree_on_text_with_wrong_bytes(
        lines in proptest::collection::vec(line(), 1..8),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut text = lines.concat().into_bytes();
        for (index, byte) in damage {
            let index = index.index(text.len());
            text[index] = byte;
        }
        same(&Format::default(), &text);
    }

    #[test]
    fn both_decoders_agree_on_any_bytes(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        same(&Format::default(), &text);
    }

    #[test]
    fn both_decoders_agree_on_any_order_of_fields(
        order in Just(crate::flow::text::FIELDS.to_vec()).prop_shuffle(),
        width in 3..42usize,
        values in proptest::collection::vec(0..4u8, 42 * 6),
    ) {
        let names = &order[..width];
        let Ok(format) = Format::parse(&names.join(" ")) else { return Ok(()) };
        let text: String = values.chunks(42).map(|choices| {
            let field = |(name, choice): (&&str, &u8)| sample(name, *choice);
            names.iter().zip(choices).map(field).collect::<Vec<_>>().join(" ") + "\n"
        }).collect();
        same(&format, text.as_bytes());
    }
}

fn sample(name: &str, choice: u8) -> &'static str {
    match (name, choice) {
        ("srcaddr" | "pkt-srcaddr", 0..2) => "10.0.0.1",
        ("dstaddr" | "pkt-dstaddr", 0..2) => "10.0.0.2",
        ("srcaddr" | "pkt-srcaddr" | "dstaddr" | "pkt-dstaddr", 2) => "203.0.113.250",
        ("start" | "end", 0..3) => "1418530070",
        ("log-status", _) => "OK",
        ("action", _) => "ACCEPT",
        ("flow-direction", 0) => "egress",
        ("interface-id", 1..) => "eni-1",
        ("flow-direction" | "interface-id", _) => "-",
        (_, 3) if name != "start" && name != "end" => "-",
        _ => "17",
    }
}

#[test]
fn the_fast_way_is_taken_for_lines_of_the_common_shapes() {
    // Nothing but its speed tells the fast way from the plain one, so this looks at the plan itself.
    if Level::detect() == Level::Plain {
        return;
    }
    for (format, line) in
        [(Format::default(), DEFAULT), (Format::default(), V6), (Format::parse(V5_HEADER).unwrap(), V5)]
    {
        let text = format!("{line}\n{line}\n");
        #[cfg(target_arch = "x86_64")]
        assert_eq!(x86::fast_lines(&format, text.as_bytes()), 1, "all but the first line of a piece: {line}");
    }
}

#[test]
fn pieces_larger_than_the_index_are_decoded_to_the_last_line() {
    let text = format!("{DEFAULT}\n{V6}\n").repeat(3000);
    same(&Format::default(), text.as_bytes());
    let long = format!("{}\n{text}", "1.1 ".repeat(30_000));
    same(&Format::default(), long.as_bytes());
}
