//! A look at a Parquet footer before the library takes it at its word.
//!
//! The footer is a Thrift structure whose lists say how long they are. The library believes them: a file of a hundred bytes
//! can claim a list of billions and keep it busy for seconds (found by fuzzing). Here every list is held to the bytes that
//! are left, of which each of its elements takes at least one.

use parquet::file::reader::ChunkReader;

use super::RowsError;

/// Larger footers than any flow log file has: a few hundred bytes for each column of each row group.
const FOOTER_MAX: u64 = 16 * 1024 * 1024;

/// Structures of Parquet nest to five levels.
const DEPTH_MAX: u32 = 16;

/// Refuses a file whose footer cannot be one.
pub(super) fn check<R: ChunkReader>(input: &R) -> Result<(), RowsError> {
    let damaged = |what: &str| Err(RowsError::Damaged(what.into()));
    let Some(end) = input.len().checked_sub(8) else { return damaged("it is too short") };
    let tail = input.get_bytes(end, 8)?;
    let (Some(length), true) = (tail.first_chunk::<4>(), tail.ends_with(b"PAR1")) else {
        return damaged("it does not end as one");
    };
    let length = u64::from(u32::from_le_bytes(*length));
    let Some(start) = end.checked_sub(length).filter(|_| length <= FOOTER_MAX) else {
        return damaged("its footer is larger than it could be");
    };
    let footer = input.get_bytes(start, length as usize)?;
    match structure(&mut &footer[..], DEPTH_MAX) {
        Some(()) => Ok(()),
        None => damaged("its footer is no Thrift structure"),
    }
}

/// Steps over one structure of the compact protocol; `None` when it is none.
fn structure(bytes: &mut &[u8], depth: u32) -> Option<()> {
    loop {
        let header = byte(bytes)?;
        if header == 0 {
            return Some(());
        }
        if header >> 4 == 0 {
            number(bytes)?;
        }
        // A boolean field has its value in its type.
        if !matches!(header & 15, 1 | 2) {
            value(bytes, header & 15, depth)?;
        }
    }
}

fn value(bytes: &mut &[u8], kind: u8, depth: u32) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    match kind {
        1..=3 => byte(bytes).map(|_| ()),
        4..=6 => number(bytes).map(|_| ()),
        7 => skip(bytes, 8),
        8 => {
            let length = number(bytes)?;
            skip(bytes, length)
        }
        9 | 10 => {
            let header = byte(bytes)?;
            let count = if header >> 4 == 15 { number(bytes)? } else { u64::from(header >> 4) };
            elements(bytes, count, &[header & 15], depth)
        }
        11 => match number(bytes)? {
            0 => Some(()),
            count => {
                let kinds = byte(bytes)?;
                elements(bytes, count, &[kinds >> 4, kinds & 15], depth)
            }
        },
        12 => structure(bytes, depth),
        13 => skip(bytes, 16),
        _ => None,
    }
}

fn elements(bytes: &mut &[u8], count: u64, kinds: &[u8], depth: u32) -> Option<()> {
    if count > bytes.len() as u64 {
        return None;
    }
    for _ in 0..count {
        for &kind in kinds {
            value(bytes, kind, depth)?;
        }
    }
    Some(())
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

fn skip(bytes: &mut &[u8], count: u64) -> Option<()> {
    *bytes = bytes.get(usize::try_from(count).ok()?..)?;
    Some(())
}

/// A variable-length number of at most ten bytes.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let next = byte(bytes)?;
        value |= u64::from(next & 0x7f).checked_shl(shift).unwrap_or(0);
        if next < 0x80 {
            return Some(value);
        }
    }
    None
}
