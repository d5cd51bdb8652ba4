//! Lines with a separator that is no blank: CSV and its kin, with quotes.

use crate::flow::text::COLUMNS_MAX;

/// What stands between the columns of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Separator {
    /// One or more blanks or control characters, as flow logs have it. No column is empty.
    #[default]
    Blanks,
    /// Exactly one of these; columns may be empty or stand in quotes.
    Byte(u8),
}

/// The separators of tables.
pub(crate) const SEPARATORS: [u8; 4] = *b",\t;|";

impl Separator {
    /// Of a line of names: the first of the usual ones that is in it.
    pub(crate) fn of_names(line: &[u8]) -> Separator {
        // AWS writes a format as ${srcaddr} ${dstaddr}, and settings may have commas in it.
        if line.windows(2).any(|two| two == b"${") {
            return Separator::Blanks;
        }
        let line = line.trim_ascii();
        let found = SEPARATORS.iter().find(|separator| line.contains(separator));
        found.map_or(Separator::Blanks, |separator| Separator::Byte(*separator))
    }
}

/// The cells of one line, without their quotes.
pub(crate) struct Cells<'a> {
    cells: [&'a [u8]; COLUMNS_MAX],
    count: usize,
}

impl<'a> Cells<'a> {
    /// Cuts a line at `separator`. Cells past [`COLUMNS_MAX`] are counted, not kept.
    pub(crate) fn split(line: &'a [u8], separator: u8) -> Cells<'a> {
        let mut cells = Cells { cells: [b""; COLUMNS_MAX], count: 0 };
        let mut rest = trim_end(line, separator);
        loop {
            let (cell, after) = cell(rest, separator);
            if cells.count < COLUMNS_MAX {
                cells.cells[cells.count] = cell;
            }
            cells.count += 1;
            match after {
                Some(after) => rest = after,
                None => return cells,
            }
        }
    }

    /// How many cells there are, whether kept or not.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// All that were kept.
    pub(crate) fn all(&self) -> &[&'a [u8]] {
        &self.cells[..self.count.min(COLUMNS_MAX)]
    }
}

/// Without the line end, which is a blank, but may not be a separator.
fn trim_end(line: &[u8], separator: u8) -> &[u8] {
    let blanks = line.iter().rev().take_while(|byte| **byte <= b' ' && **byte != separator).count();
    &line[..line.len() - blanks]
}

/// The first cell, and what follows its separator.
fn cell(text: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    let cut = |at: usize| text.get(at..).and_then(|rest| rest.split_first()).map(|(_, after)| after);
    let blanks = text.iter().take_while(|byte| **byte == b' ').count();
    if text.get(blanks) == Some(&b'"') {
        let begin = blanks + 1;
        let mut at = begin;
        while at < text.len() {
            match (text[at], text.get(at + 1)) {
                (b'"', Some(b'"')) => at += 2,
                (b'"', _) => {
                    let after = text[at..].iter().position(|byte| *byte == separator).map(|ahead| at + ahead);
                    return (&text[begin..at], after.and_then(cut));
                }
                _ => at += 1,
            }
        }
        return (&text[begin..], None);
    }
    match text.iter().position(|byte| *byte == separator) {
        Some(at) => (text[..at].trim_ascii(), cut(at)),
        None => (text.trim_ascii(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(line: &str, separator: u8) -> Vec<String> {
        let cells = Cells::split(line.as_bytes(), separator);
        cells.all().iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect()
    }

    #[test]
    fn quotes_hold_separators_and_blanks_around_cells_go_away() {
        assert_eq!(cells("a,\"b,c\", d ,\"\"\r", b','), ["a", "b,c", "d", ""]);
        assert_eq!(cells("\"say \"\"so\"\"\",x", b','), ["say \"\"so\"\"", "x"]);
        assert_eq!(cells("a\t\tb\t", b'\t'), ["a", "", "b", ""]);
        assert_eq!(cells("\"cut off", b','), ["cut off"]);
        assert_eq!(cells("", b','), [""]);
    }
}
