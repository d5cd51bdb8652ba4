//! The fast decoder says what the plain one says, on any bytes and at every level that the machine has.

use flowvigil::flow::interfaces::Interfaces;
use flowvigil::flow::simd::{Fast, Level};
use flowvigil::flow::text::{Decoded, Format, Lines};

/// A custom format with packet addresses and flags, beside the default.
const WIDE: &str = "version srcaddr dstaddr srcport dstport protocol start end type packets bytes account-id interface-id \
                    action tcp-flags pkt-srcaddr pkt-dstaddr pkt-src-aws-service flow-direction log-status";

/// Panics where it is not so.
pub fn check(input: &[u8]) {
    let Some((choice, text)) = input.split_first() else { return };
    let format = if choice.is_multiple_of(2) { Format::default() } else { Format::parse(WIDE).expect("a format") };
    // Something in front, so that the first line is not always the one at the margin.
    let mut whole = if choice % 4 < 2 { b"a line that is refused, in front\n".to_vec() } else { Vec::new() };
    whole.extend_from_slice(text);
    let run = |fast: Option<Level>| {
        let (mut lines, mut interfaces, mut out) = (Lines::new(format.clone()), Interfaces::new(3), Decoded::default());
        match fast {
            None => lines.decode_plainly(&whole, &mut interfaces, &mut out),
            Some(level) => Fast::new(level).decode(&whole, &mut lines, &mut interfaces, &mut out),
        }
        let state = (lines.number(), lines.headers(), lines.format().clone());
        (out.records, out.blind, out.refused, out.samples, interfaces.known().to_vec(), state)
    };
    let plain = run(None);
    for level in Level::available() {
        assert!(run(Some(level)) == plain, "{level:?} differs");
    }
}
