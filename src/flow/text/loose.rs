//! Values as tables, queries and other tools write them, brought to the form that flow logs have.
//!
//! A line of a flow log is read strictly: a wrong digit must not pass for another value. A row of a table or a JSON object
//! that came out of a query engine has been through more hands. Where it cannot be read strictly it is read like this:
//!
//! | in the value | becomes |
//! | --- | --- |
//! | a time in milliseconds, microseconds or nanoseconds | seconds |
//! | a time as ISO 8601, with `T` or a blank, with or without a zone (UTC then) | seconds |
//! | `40000.0`, `1.7E9` | the whole number |
//! | `null`, `NaN`, `None`, `\N` | absent |
//! | `TCP`, `udp`, `icmp` | the number of the protocol |
//! | `Allowed`, `Denied`, `Blocked`, in any case | `ACCEPT`, `REJECT` |
//! | `Inbound`, `Outbound` | `ingress`, `egress` |

use crate::flow::interfaces::Interfaces;
use crate::flow::text::{Decoded, FIELDS, Field, Malformed, decode_fields};

/// The values of one row in the form of flow logs.
struct Row {
    text: Vec<u8>,
    spans: [Option<(u32, u32)>; FIELDS.len()],
}

impl Row {
    fn of<'a>(text: &impl Fn(Field) -> Option<&'a [u8]>) -> Row {
        let mut row = Row { text: Vec::with_capacity(256), spans: [None; FIELDS.len()] };
        for field in Field::ALL {
            let Some(value) = text(field) else { continue };
            let start = row.text.len();
            if put(field, value.trim_ascii(), &mut row.text) {
                row.spans[field as usize] = Some((start as u32, row.text.len() as u32));
            }
        }
        row
    }

    fn get(&self, field: Field) -> Option<&[u8]> {
        let (start, end) = self.spans[field as usize]?;
        Some(&self.text[start as usize..end as usize])
    }
}

/// Writes a value as flow logs do; false when it says that there is none.
fn put(field: Field, value: &[u8], to: &mut Vec<u8>) -> bool {
    let absent = [&b""[..], b"-", b"null", b"none", b"nan", b"\\n", b"nil", b"<na>"];
    if absent.iter().any(|word| value.eq_ignore_ascii_case(word)) {
        return false;
    }
    let is = |words: &[&str]| words.iter().any(|word| value.eq_ignore_ascii_case(word.as_bytes()));
    let word: Option<&[u8]> = match field {
        Field::Action if is(&["accept", "accepted", "allow", "allowed", "1"]) => Some(b"ACCEPT"),
        Field::Action if is(&["reject", "rejected", "deny", "denied", "block", "blocked", "2"]) => Some(b"REJECT"),
        Field::Direction if is(&["inbound", "ingress", "in"]) => Some(b"ingress"),
        Field::Direction if is(&["outbound", "egress", "out"]) => Some(b"egress"),
        Field::Direction => return false,
        Field::Status if is(&["ok", "success"]) => Some(b"OK"),
        Field::Status if is(&["nodata"]) => Some(b"NODATA"),
        Field::Status if is(&["skipdata"]) => Some(b"SKIPDATA"),
        Field::Protocol if is(&["tcp"]) => Some(b"6"),
        Field::Protocol if is(&["udp"]) => Some(b"17"),
        Field::Protocol if is(&["icmp"]) => Some(b"1"),
        Field::Protocol if is(&["icmpv6", "ipv6-icmp", "icmp6"]) => Some(b"58"),
        _ => None,
    };
    if let Some(word) = word {
        to.extend_from_slice(word);
        return true;
    }
    let whole = match field {
        Field::Start | Field::End => seconds(value),
        Field::SourcePort | Field::DestinationPort | Field::Protocol | Field::Packets | Field::Bytes | Field::Flags => {
            whole(value)
        }
        _ => None,
    };
    match whole {
        Some(number) => to.extend_from_slice(number.to_string().as_bytes()),
        None => to.extend_from_slice(value),
    }
    true
}

/// A number without a fraction, however it is written.
fn whole(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    if let Ok(number) = text.parse::<u64>() {
        return Some(number);
    }
    let number: f64 = text.parse().ok()?;
    let exact = number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number);
    exact.then_some(number as u64)
}

/// A moment in whole seconds, from a number of seconds or of fractions of them, or from its date.
pub(crate) fn seconds(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let number = text.parse::<u64>().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        (0.0..1e19).contains(&number).then_some(number as u64)
    });
    match number {
        // No two of these ranges meet: milliseconds of 2001 are beyond seconds of 2106, and so on.
        Some(number @ 0..=0xffff_ffff) => return Some(number),
        Some(number @ 1_000_000_000_000..=4_294_967_295_999) => return Some(number / 1_000),
        Some(number @ 1_000_000_000_000_000..=4_294_967_295_999_999) => return Some(number / 1_000_000),
        Some(number @ 1_000_000_000_000_000_000..=4_294_967_295_999_999_999) => return Some(number / 1_000_000_000),
        Some(_) => return None,
        None => {}
    }
    let text = text.strip_suffix(" UTC").unwrap_or(text);
    let stamp = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let moment: jiff::civil::DateTime = text.parse().ok()?;
        Some(moment.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    })?;
    u64::try_from(stamp.as_second()).ok()
}

/// Whether a word is a moment, as tools write it in front of a line: a date, or seconds or milliseconds since 1970.
pub(crate) fn is_moment(word: &[u8]) -> bool {
    let word = word.trim_ascii();
    let date = word.len() >= 10
        && word[..4].iter().all(u8::is_ascii_digit)
        && word[4] == b'-'
        && word[5..7].iter().all(u8::is_ascii_digit)
        && word[7] == b'-'
        && word[8..10].iter().all(u8::is_ascii_digit);
    date || matches!(word.len(), 10 | 13 | 16 | 19) && word.iter().all(u8::is_ascii_digit)
}

/// Decodes a record from its fields: strictly, else as the table above says. Refuses with the reason that is left.
pub(crate) fn decode_loosely<'a>(
    text: &impl Fn(Field) -> Option<&'a [u8]>,
    has_status: bool,
    number: u64,
    interfaces: &mut Interfaces,
    out: &mut Decoded,
) -> bool {
    match try_loosely(text, has_status, interfaces, out) {
        Ok(()) => true,
        Err((field, reason)) => {
            out.refuse(number, field, || reason);
            false
        }
    }
}

/// The same, with the field to blame and the reason in place of a refusal.
pub(crate) fn try_loosely<'a>(
    text: &impl Fn(Field) -> Option<&'a [u8]>,
    has_status: bool,
    interfaces: &mut Interfaces,
    out: &mut Decoded,
) -> Result<(), (Option<&'static str>, String)> {
    if decode_fields(text, has_status, interfaces, out).is_ok() {
        return Ok(());
    }
    let row = Row::of(text);
    let words = |Malformed { field, why }: Malformed<'_>| (field.map(Field::name), why.to_string());
    decode_fields(&|field| row.get(field), has_status, interfaces, out).map_err(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_second_however_it_is_written() {
        for text in [
            "1700000000",
            "1700000000.0",
            "1.7E9",
            "1700000000000",
            "1700000000123456",
            "1700000000123456789",
            "2023-11-14T22:13:20Z",
            "2023-11-14T22:13:20.999Z",
            "2023-11-14 22:13:20",
            "2023-11-14 22:13:20.000",
            "2023-11-14 22:13:20.000 UTC",
            "2023-11-14T23:13:20+01:00",
        ] {
            assert_eq!(seconds(text.as_bytes()), Some(1_700_000_000), "{text}");
        }
        for text in ["", "yesterday", "99999999999", "-1"] {
            assert_eq!(seconds(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_number_is_whole_or_none() {
        assert_eq!(whole(b"40000.0"), Some(40_000));
        assert_eq!(whole(b"4.4E1"), Some(44));
        assert_eq!(whole(b"18446744073709551615"), Some(u64::MAX));
        for text in ["40000.5", "-1.0", "1e300", "x", "NaN"] {
            assert_eq!(whole(text.as_bytes()), None, "{text}");
        }
    }
}
