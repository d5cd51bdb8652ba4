//! The fast twin of [`super::text`]: the same meaning, for lines of the common shape.
//!
//! Two stages, as in simdjson. *Index:* 64 bytes at a time, every separator (a blank or a dot) is found by comparison
//! and written down, its position in one list and its byte in another. *Decode:* a line whose separator bytes are exactly
//! those of an OK record with IPv4 addresses (or, without dots, IPv6) needs no search any more: the position of each field
//! is known by counting. Eight octets are gathered, checked and converted at once, then eight numbers.
//!
//! Everything else (tabs, double blanks, `-`, NODATA, numbers of nine digits, headers, anything malformed) is given, line by
//! line and in its turn, to the plain decoder, so that there is one place that says what a line means and why it is refused.
//! Tests and a fuzz target hold both equal on any bytes.
//!
//! AVX-512 (with VBMI2) or AVX2 is chosen when the program runs; without either, all lines are decoded plainly.

use crate::flow::interfaces::Interfaces;
use crate::flow::text::{Decoded, Lines};

pub mod hints;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Which instructions to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// None: the plain decoder.
    Plain,
    /// AVX2 for both stages.
    Avx2,
    /// AVX-512 for the index, AVX2 for the rest.
    Avx512,
}

impl Level {
    /// The best that this machine has.
    pub fn detect() -> Level {
        Level::available().last().copied().unwrap_or(Level::Plain)
    }

    /// All that this machine has, slowest first.
    pub fn available() -> Vec<Level> {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vbmi2");
            let levels = [(true, Level::Plain), (avx2, Level::Avx2), (avx512, Level::Avx512)];
            levels.into_iter().filter(|(has, _)| *has).map(|(_, level)| level).collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![Level::Plain]
    }
}

/// Decodes whole lines (the last may lack its line end), with the memory that this takes.
#[derive(Debug)]
pub struct Fast {
    level: Level,
    #[cfg(target_arch = "x86_64")]
    index: x86::Index,
}

impl Default for Fast {
    fn default() -> Fast {
        Fast::new(Level::detect())
    }
}

impl Fast {
    /// With instructions of a given level, which the machine must have: one of [`Level::available`], else the best is
    /// taken.
    pub fn new(level: Level) -> Fast {
        let level = if Level::available().contains(&level) { level } else { Level::detect() };
        Fast {
            level,
            #[cfg(target_arch = "x86_64")]
            index: x86::Index::default(),
        }
    }

    /// The same as [`Lines::decode_plainly`].
    pub fn decode(&mut self, text: &[u8], lines: &mut Lines, interfaces: &mut Interfaces, out: &mut Decoded) {
        #[cfg(target_arch = "x86_64")]
        if self.level != Level::Plain {
            return x86::decode(self.level, &mut self.index, text, lines, interfaces, out);
        }
        lines.decode_plainly(text, interfaces, out);
    }
}

#[cfg(test)]
mod tests;
