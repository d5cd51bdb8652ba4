//! Any payload is decoded or refused, in bounded memory; and where serde can read a subscription event, cutting its messages
//! out says the same.

use flowvigil::flow::envelope::Envelope;
use flowvigil::flow::interfaces::Interfaces;
use flowvigil::flow::text::{Decoded, Format};

fn decode(payload: &[u8]) -> Decoded {
    let (mut interfaces, mut out) = (Interfaces::new(100), Decoded::default());
    Envelope::new(1 << 20).decode(payload, &Format::default(), &mut interfaces, &mut out);
    out
}

/// Panics where it is not so.
pub fn check(input: &[u8]) {
    decode(input);
    // One event with any message, as it is and with a blank that makes serde read it.
    let message = String::from_utf8_lossy(input).into_owned();
    let escaped: String = message.chars().flat_map(escape).collect();
    let head = "{\"messageType\":\"DATA_MESSAGE\",\"logEvents\":[{\"id\":\"1\",\"timestamp\":1,\"message\":\"";
    let fast = format!("{head}{escaped}\"}}]}}");
    let slow = fast.replacen("\"messageType\":", "\"messageType\" :", 1);
    let (fast, slow) = (decode(fast.as_bytes()), decode(slow.as_bytes()));
    assert!(fast.records == slow.records && fast.refused == slow.refused && fast.samples == slow.samples);
}

/// As JSON strings are escaped.
fn escape(c: char) -> Vec<char> {
    match c {
        '"' | '\\' => vec!['\\', c],
        c if u32::from(c) < 0x20 => format!("\\u{:04x}", u32::from(c)).chars().collect(),
        c => vec![c],
    }
}
