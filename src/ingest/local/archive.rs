//! The files within a tar or zip archive, one after another.
//!
//! A member is a stream of its own, which knows its end; what it is, is told from its bytes like any file. Nothing is
//! written to disk, and an archive within an archive is not opened.

use std::fs::File;
use std::io::{BufReader, Cursor, Error, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use zip::CompressionMethod;

use crate::flow::packing::Packing;

/// A file in an archive.
pub(super) struct Member {
    pub(super) name: String,
    /// Its bytes, or why they cannot be had.
    pub(super) input: Result<Box<dyn Read + Send>, String>,
}

/// Hands out members in their order.
pub(super) trait Members: Send {
    /// The next one, after the last was read or dropped; `None` at the end. An error is the end, too.
    fn next(&mut self) -> std::io::Result<Option<Member>>;
}

/// Names of what archivers add of their own.
fn is_ours(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    !name.is_empty() && !file.is_empty() && !file.starts_with('.') && !name.starts_with("__MACOSX/")
}

/// A tar archive, read as it comes.
pub(super) struct Tar {
    shared: Arc<Mutex<TarInput>>,
}

struct TarInput {
    input: Box<dyn Read + Send>,
    /// What is left of the current member, and the padding behind it.
    left: u64,
    padding: u64,
}

/// Headers and members are padded to this.
const BLOCK: u64 = 512;

impl Tar {
    pub(super) fn new(input: Box<dyn Read + Send>) -> Tar {
        Tar { shared: Arc::new(Mutex::new(TarInput { input, left: 0, padding: 0 })) }
    }
}

impl Members for Tar {
    fn next(&mut self) -> std::io::Result<Option<Member>> {
        let mut tar = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let rest = tar.left + tar.padding;
            let passed = std::io::copy(&mut (&mut tar.input).take(rest), &mut std::io::sink())?;
            (tar.left, tar.padding) = (0, 0);
            if passed < rest {
                return Err(cut_off());
            }
            let mut block = [0; BLOCK as usize];
            match tar.input.read_exact(&mut block) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
            // Two blocks of zeros end the archive, of which one is enough.
            if block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = tar::Header::from_byte_slice(&block);
            let sum: u32 = block
                .iter()
                .enumerate()
                .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
                .sum();
            if header.cksum()? != sum {
                return Err(Error::new(ErrorKind::InvalidData, "a header of the archive has a wrong checksum"));
            }
            let size = header.entry_size()?;
            (tar.left, tar.padding) = (size, (BLOCK - size % BLOCK) % BLOCK);
            let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
            let kind = header.entry_type();
            if (kind.is_file() || kind.is_contiguous()) && is_ours(&name) {
                return Ok(Some(Member { name, input: Ok(Box::new(TarMember(self.shared.clone()))) }));
            }
        }
    }
}

fn cut_off() -> Error {
    Error::new(ErrorKind::UnexpectedEof, "the archive ends within a file")
}

/// The current member of a tar archive.
struct TarMember(Arc<Mutex<TarInput>>);

impl Read for TarMember {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut tar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = buffer.len().min(usize::try_from(tar.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        match tar.input.read(&mut buffer[..most])? {
            0 => Err(cut_off()),
            count => {
                tar.left -= count as u64;
                Ok(count)
            }
        }
    }
}

/// What a zip archive is read from: it has its directory at its end.
#[derive(Clone)]
pub(super) enum Source {
    Path(PathBuf),
    Memory(Bytes),
}

trait Seekable: Read + Seek + Send {}

impl<T: Read + Seek + Send> Seekable for T {}

impl Source {
    fn open(&self) -> std::io::Result<Box<dyn Seekable>> {
        Ok(match self {
            Source::Path(path) => {
                Box::new(Anew { length: File::open(path)?.metadata()?.len(), path: path.clone(), offset: 0 })
            }
            Source::Memory(bytes) => Box::new(Cursor::new(bytes.clone())),
        })
    }
}

/// A file that is opened for each read, so that many archives read side by side hold no handles.
struct Anew {
    path: PathBuf,
    offset: u64,
    length: u64,
}

impl Read for Anew {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let count = file.read(buffer)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl Seek for Anew {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let offset = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.offset.checked_add_signed(by),
        };
        self.offset = offset.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a place before the beginning"))?;
        Ok(self.offset)
    }
}

/// A zip archive.
pub(super) struct Zip {
    source: Source,
    archive: zip::ZipArchive<BufReader<Box<dyn Seekable>>>,
    next: usize,
}

impl Zip {
    pub(super) fn new(source: Source) -> Result<Zip, String> {
        let input = source.open().map_err(|error| error.to_string())?;
        let archive = zip::ZipArchive::new(BufReader::new(input))
            .map_err(|error| format!("the zip archive is damaged or cut off ({error})"))?;
        Ok(Zip { source, archive, next: 0 })
    }

    /// Whether it is a workbook or document, which are zip archives, too.
    pub(super) fn is_office(&self) -> bool {
        self.archive.index_for_name("[Content_Types].xml").is_some()
    }
}

impl Members for Zip {
    fn next(&mut self) -> std::io::Result<Option<Member>> {
        while self.next < self.archive.len() {
            let member =
                self.archive.by_index_raw(self.next).map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
            self.next += 1;
            let name = member.name().map_or_else(|_| "a file without a name".to_owned(), |name| name.into_owned());
            if !member.is_file() || !is_ours(&name) {
                continue;
            }
            let (method, size, start) = (member.compression(), member.compressed_size(), member.data_start());
            let encrypted = member.encrypted();
            drop(member);
            let input = match start {
                _ if encrypted => Err("it is encrypted: decrypt it first".to_owned()),
                None => Err("the archive does not say where it begins".to_owned()),
                Some(start) => unpacked(&self.source, start, size, method),
            };
            return Ok(Some(Member { name, input }));
        }
        Ok(None)
    }
}

fn unpacked(source: &Source, start: u64, size: u64, method: CompressionMethod) -> Result<Box<dyn Read + Send>, String> {
    let open = || -> std::io::Result<_> {
        let mut input = source.open()?;
        input.seek(SeekFrom::Start(start))?;
        Ok(BufReader::with_capacity(64 * 1024, input.take(size)))
    };
    let packed = open().map_err(|error| error.to_string())?;
    let packing = match method {
        CompressionMethod::STORE => return Ok(Box::new(packed)),
        CompressionMethod::DEFLATE => return Ok(Box::new(flate2::bufread::DeflateDecoder::new(packed))),
        CompressionMethod::BZIP2 => Packing::Bzip2,
        CompressionMethod::ZSTD => Packing::Zstd,
        CompressionMethod::XZ => Packing::Xz,
        other => return Err(format!("it is packed with {other}, which is not read: unpack it first")),
    };
    packing.unpack(packed).map_err(|error| error.to_string())
}

/// The zip archive of a plain file, or of bytes in memory.
pub(super) fn zip_of(path: Option<&Path>, input: Box<dyn Read + Send>, bytes_max: usize) -> Result<Zip, String> {
    match path {
        Some(path) => Zip::new(Source::Path(path.to_owned())),
        None => Zip::new(Source::Memory(super::open::in_memory(input, bytes_max)?)),
    }
}
