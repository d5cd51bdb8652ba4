//! What bytes are packed in, and how they come out of it.

use std::io::{BufRead, Error, ErrorKind, Read};

/// Memory that unpacking may ask for where the packed bytes say how much it takes, in KiB.
const MEMORY_MAX: u32 = 256 * 1024;

/// A packing of one stream of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    /// gzip, of one or more members.
    Gzip,
    /// zstd.
    Zstd,
    /// bzip2, of one or more streams.
    Bzip2,
    /// xz.
    Xz,
    /// LZ4 in frames, as the `lz4` program writes it.
    Lz4,
    /// Snappy in frames.
    Snappy,
    /// Text as UTF-16, little end first.
    Utf16Le,
    /// Text as UTF-16, big end first.
    Utf16Be,
}

impl Packing {
    /// What bytes that begin so are packed in, if anything.
    pub fn of(head: &[u8]) -> Option<Packing> {
        Some(match head {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            // The digit is the size of a block, and the rest begins every block that holds anything.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..] => Packing::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
            [0x04, 0x22, 0x4d, 0x18, ..] => Packing::Lz4,
            [0xff, 0x06, 0, 0, b's', b'N', b'a', b'P', b'p', b'Y', ..] => Packing::Snappy,
            [0xff, 0xfe, first, 0, ..] if *first != 0 => Packing::Utf16Le,
            [0xfe, 0xff, 0, first, ..] if *first != 0 => Packing::Utf16Be,
            // Without a byte-order mark: printable, zero, printable, zero.
            [0x20..=0x7e, 0, 0x20..=0x7e, 0, ..] => Packing::Utf16Le,
            [0, 0x20..=0x7e, 0, 0x20..=0x7e, ..] => Packing::Utf16Be,
            _ => return None,
        })
    }

    /// The bytes inside. Damage is an error of the reader.
    pub fn unpack<'a>(self, input: impl BufRead + Send + 'a) -> std::io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Packing::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
            Packing::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
            Packing::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, MEMORY_MAX)),
            Packing::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(input)),
            Packing::Snappy => Box::new(snap::read::FrameDecoder::new(input)),
            Packing::Utf16Le => Box::new(Utf16::new(input, u16::from_le_bytes)),
            Packing::Utf16Be => Box::new(Utf16::new(input, u16::from_be_bytes)),
        })
    }
}

/// UTF-16 as UTF-8; what is no character becomes U+FFFD.
struct Utf16<R> {
    input: R,
    order: fn([u8; 2]) -> u16,
    /// The first half of a pair.
    high: Option<u16>,
    out: Vec<u8>,
    given: usize,
    begun: bool,
}

impl<R: BufRead> Utf16<R> {
    fn new(input: R, order: fn([u8; 2]) -> u16) -> Utf16<R> {
        Utf16 { input, order, high: None, out: Vec::new(), given: 0, begun: false }
    }

    /// Decodes what one read gives; false at the end.
    fn fill(&mut self) -> std::io::Result<bool> {
        self.out.clear();
        self.given = 0;
        let mut bytes = [0; 16 * 1024];
        let mut filled = 0;
        // Whole units: half of one is asked for again, or is the end.
        while filled == 0 || filled % 2 == 1 {
            match self.input.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => {
                    let cut = self.high.take().is_some();
                    if cut {
                        self.put(char::REPLACEMENT_CHARACTER);
                    }
                    return Ok(cut);
                }
                Ok(0) => return Err(Error::new(ErrorKind::UnexpectedEof, "half a character at the end")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        for pair in bytes[..filled].chunks_exact(2) {
            let unit = (self.order)([pair[0], pair[1]]);
            match (self.high.take(), unit) {
                (Some(high), 0xdc00..=0xdfff) => {
                    let code = 0x1_0000 + ((u32::from(high) - 0xd800) << 10) + (u32::from(unit) - 0xdc00);
                    self.put(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                (lone, unit) => {
                    if lone.is_some() {
                        self.put(char::REPLACEMENT_CHARACTER);
                    }
                    match unit {
                        0xd800..=0xdbff => self.high = Some(unit),
                        0xfeff if !self.begun => {}
                        unit => self.put(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER)),
                    }
                }
            }
            self.begun = true;
        }
        Ok(true)
    }

    fn put(&mut self, character: char) {
        self.out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

impl<R: BufRead> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.given == self.out.len() {
            if !self.fill()? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.out.len() - self.given);
        buffer[..count].copy_from_slice(&self.out[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf_16_of_either_order_with_or_without_a_mark_is_the_text() {
        let text = "srcaddr dstaddr 10.0.0.1 \u{1f310}\r\n".repeat(2000);
        let units: Vec<u16> = text.encode_utf16().collect();
        let little =
            |mark: &[u8]| [mark, &units.iter().flat_map(|unit| unit.to_le_bytes()).collect::<Vec<_>>()].concat();
        let big = |mark: &[u8]| [mark, &units.iter().flat_map(|unit| unit.to_be_bytes()).collect::<Vec<_>>()].concat();
        for (bytes, packing) in [
            (little(b"\xff\xfe"), Packing::Utf16Le),
            (little(b""), Packing::Utf16Le),
            (big(b"\xfe\xff"), Packing::Utf16Be),
            (big(b""), Packing::Utf16Be),
        ] {
            assert_eq!(Packing::of(&bytes), Some(packing));
            let mut read = String::new();
            packing.unpack(&bytes[..]).unwrap().read_to_string(&mut read).unwrap();
            assert!(read == text, "{packing:?}");
            let mut cut = Vec::new();
            assert!(packing.unpack(&bytes[..bytes.len() - 1]).unwrap().read_to_end(&mut cut).is_err());
        }
    }
}
