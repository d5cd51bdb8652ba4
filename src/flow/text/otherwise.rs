//! Lines that are not as the format says: rows of tables, and lines of a flow log with something around them.
//!
//! Everything here comes after the strict way has failed, so that it costs a sound line nothing. What is tried must fit to
//! the last field, as a line does that is read strictly; a guess that does not is no reading, and the line is refused for
//! the reason that the strict way gave.

use std::sync::OnceLock;

use crate::flow::interfaces::Interfaces;
use crate::flow::text::loose::{is_moment, try_loosely};
use crate::flow::text::{
    Cells, Decoded, Field, Format, Lines, Malformed, SEPARATORS, Separator, TrimQuotes, Why, decode, is_blank,
    without_mark,
};

/// The default format of Transit Gateway flow logs (version 6), which CloudWatch Logs gets without a header.
const TRANSIT: &str = "version resource-type account-id tgw-id tgw-attachment-id tgw-src-vpc-account-id \
    tgw-dst-vpc-account-id tgw-src-vpc-id tgw-dst-vpc-id tgw-src-subnet-id tgw-dst-subnet-id tgw-src-eni tgw-dst-eni \
    tgw-src-az-id tgw-dst-az-id tgw-pair-attachment-id srcaddr dstaddr srcport dstport protocol packets bytes start end \
    log-status type packets-lost-no-route packets-lost-blackhole packets-lost-mtu-exceeded packets-lost-ttl-expired \
    tcp-flags region flow-direction pkt-src-aws-service pkt-dst-aws-service";

fn transit() -> &'static Format {
    static FORMAT: OnceLock<Format> = OnceLock::new();
    FORMAT.get_or_init(|| Format::parse(TRANSIT).expect("the documented fields are a format"))
}

/// Words in front of a line of documented form that may be stepped over: times, hosts, names of streams.
const WORDS_BEFORE: usize = 8;

/// Words of which a line has at least so many, so that the rest of a row is not taken for one that is broken.
const WORDS_OF_LINE: usize = 10;

/// What came of trying.
enum Tried {
    Read,
    /// It is known what it is, and it is malformed.
    Refused(Option<&'static str>, String),
    Unknown,
}

impl Lines {
    /// Decodes a row of a table.
    pub(super) fn decode_row(&mut self, line: &[u8], interfaces: &mut Interfaces, out: &mut Decoded) {
        let line = without_mark(line);
        if line.iter().all(|byte| is_blank(*byte)) {
            return;
        }
        match self.try_row(line, interfaces, out) {
            Tried::Read => {}
            _ if Format::is_header(line) => self.header_or_refuse(line, out),
            Tried::Refused(field, reason) => out.refuse(self.number, field, || reason),
            Tried::Unknown => {
                let reason = || "is neither a row of the table nor a line of a flow log".into();
                out.refuse(self.number, None, reason);
            }
        }
    }

    fn try_row(&self, line: &[u8], interfaces: &mut Interfaces, out: &mut Decoded) -> Tried {
        let Separator::Byte(separator) = self.format.separator else {
            return self.try_within(line.trim_ascii().trim_quotes(), interfaces, out);
        };
        let cells = Cells::split(line, separator);
        if let Some(column) = self.format.message {
            // A line that was added behind the table is one, too.
            let text = cells.all().get(usize::from(column)).filter(|_| cells.count() == self.format.width);
            return self.try_within(text.copied().unwrap_or(line), interfaces, out);
        }
        if !fills(&self.format, &cells) {
            let blanks = Format { separator: Separator::Blanks, ..self.format.clone() };
            if decode(&blanks, line, interfaces, out).is_ok() {
                return Tried::Read;
            }
            let why: Why<'_> = Why::Columns { found: cells.count(), expected: self.format.width };
            return Tried::Refused(None, why.to_string());
        }
        try_cells(&self.format, &cells, interfaces, out)
    }

    /// A whole line in a cell.
    fn try_within(&self, line: &[u8], interfaces: &mut Interfaces, out: &mut Decoded) -> Tried {
        match decode(&self.inner, line, interfaces, out) {
            Ok(()) => Tried::Read,
            Err(malformed) => match around(&self.inner, line, self.number, &malformed, interfaces, out) {
                Tried::Unknown => Tried::Refused(malformed.field.map(Field::name), malformed.why.to_string()),
                tried => tried,
            },
        }
    }

    /// Whether a line that is not of the format was dealt with all the same.
    #[cold]
    pub(super) fn decode_otherwise(
        &mut self,
        line: &[u8],
        malformed: &Malformed<'_>,
        interfaces: &mut Interfaces,
        out: &mut Decoded,
    ) -> bool {
        match around(&self.format, line, self.number, malformed, interfaces, out) {
            Tried::Read => true,
            Tried::Refused(field, reason) if !Format::is_header(line) => {
                out.refuse(self.number, field, || reason);
                true
            }
            _ => false,
        }
    }
}

/// Whether a row has as many cells as the format, but for empty ones at its end.
fn fills(format: &Format, cells: &Cells<'_>) -> bool {
    let beyond = cells.all().get(format.width..).unwrap_or_default();
    format.fits(cells.count()) || cells.count() > format.width && beyond.iter().all(|cell| cell.is_empty())
}

fn try_cells(format: &Format, cells: &Cells<'_>, interfaces: &mut Interfaces, out: &mut Decoded) -> Tried {
    let text = |field| {
        let cell = *cells.all().get(format.column(field)?)?;
        Some(cell).filter(|cell| !cell.is_empty() && *cell != b"-")
    };
    match try_loosely(&text, format.column(Field::Status).is_some(), interfaces, out) {
        Ok(()) => Tried::Read,
        Err((field, reason)) => Tried::Refused(field, reason),
    }
}

/// A line of a flow log in `line`, with something around it.
fn around(
    format: &Format,
    line: &[u8],
    number: u64,
    malformed: &Malformed<'_>,
    interfaces: &mut Interfaces,
    out: &mut Decoded,
) -> Tried {
    let bare = bare(line);
    if bare.len() < line.len() && is_line(format, bare, interfaces, out) {
        return Tried::Read;
    }
    if !matches!(malformed.why, Why::Columns { .. }) {
        return Tried::Unknown;
    }
    if is_line(format, bare, interfaces, out)
        || by_tabs(format, bare, number, interfaces, out)
        || behind_words(format, bare, interfaces, out)
    {
        return Tried::Read;
    }
    for separator in SEPARATORS.into_iter().filter(|separator| bare.contains(separator)) {
        let cells = Cells::split(bare, separator);
        if cells.count() > 1 && fills(format, &cells) {
            return try_cells(format, &cells, interfaces, out);
        }
        let mut lines = cells.all().iter().filter(|cell| words(cell) >= WORDS_OF_LINE);
        if lines.any(|cell| is_line(format, cell, interfaces, out)) {
            return Tried::Read;
        }
    }
    Tried::Unknown
}

/// A line without byte-order marks, blanks, quotes, and what a list puts around its items.
fn bare(line: &[u8]) -> &[u8] {
    let line = without_mark(line).trim_ascii();
    let line = line.strip_prefix(b"- ").unwrap_or(line);
    let line = line.strip_suffix(b",").unwrap_or(line);
    match line {
        [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner.trim_ascii(),
        _ => line,
    }
}

/// Decodes a line of the format, or of a Transit Gateway.
fn is_line(format: &Format, line: &[u8], interfaces: &mut Interfaces, out: &mut Decoded) -> bool {
    let transit_gateway =
        format.documented && line.split(|byte| is_blank(*byte)).nth(1).is_some_and(|word| word == b"TransitGateway");
    let format = if transit_gateway { transit() } else { format };
    decode(format, line, interfaces, out).is_ok() && !line.is_empty()
}

fn words(text: &[u8]) -> usize {
    text.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty()).count()
}

/// Lines with tabs between, or one among other columns; what is long enough to be one and is not is refused by itself.
fn by_tabs(format: &Format, line: &[u8], number: u64, interfaces: &mut Interfaces, out: &mut Decoded) -> bool {
    if !line.contains(&b'\t') {
        return false;
    }
    let mut read = 0;
    let parts = || line.split(|byte| *byte == b'\t').filter(|part| words(part) >= WORDS_OF_LINE);
    for part in parts() {
        read += u64::from(is_line(format, part, interfaces, out));
    }
    if read > 0 {
        for _ in read..parts().count() as u64 {
            out.refuse(number, None, || "one of the lines between tabs is not one of a flow log".into());
        }
    }
    read > 0
}

/// A line behind other words: with a format of somebody's own the first of them must be a time.
fn behind_words(format: &Format, line: &[u8], interfaces: &mut Interfaces, out: &mut Decoded) -> bool {
    let count = words(line);
    let first = line.split(|byte| is_blank(*byte)).find(|word| !word.is_empty()).unwrap_or_default();
    let most = match (format.documented, is_moment(first)) {
        (true, _) => WORDS_BEFORE,
        (false, true) => 3,
        (false, false) => return false,
    };
    let mut rest = line;
    for dropped in 1..=most.min(count.saturating_sub(1)) {
        let end = rest.iter().position(|byte| is_blank(*byte)).unwrap_or(rest.len());
        rest = rest[end..].trim_ascii_start();
        let left = count - dropped;
        let fits = format.fits(left) || format.documented && left == transit().width;
        if fits && is_line(format, rest, interfaces, out) {
            return true;
        }
    }
    false
}
