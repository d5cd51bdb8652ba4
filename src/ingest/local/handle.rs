//! The bytes of a file, with or without a file handle that stays open.
//!
//! A merge may have thousands of files under way, and a process has a few hundred handles. A frugal reader opens its file for
//! each read and closes it again; what is unpacked so far stays in memory. That costs some microseconds for each 64 KiB.

use std::fs::{File, Metadata};
use std::io::{BufReader, Error, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

/// A file that is read from its beginning to its end.
pub(super) struct Handle {
    path: PathBuf,
    open: Option<File>,
    identity: (u64, u64),
    offset: u64,
    frugal: bool,
}

impl Handle {
    /// Opens a file. With `frugal` no handle is kept between two reads; what cannot be read twice (a pipe) keeps its handle.
    ///
    /// # Errors
    /// What the system says. Where `inode` is given (not 0) and the path leads to another file by now, it counts as not found.
    pub(super) fn open(path: &Path, frugal: bool, inode: u64) -> std::io::Result<Handle> {
        let file = File::open(path)?;
        let about = file.metadata()?;
        if inode != 0 && about.ino() != inode {
            return Err(Error::new(ErrorKind::NotFound, "it was replaced after it was listed"));
        }
        let frugal = frugal && about.is_file();
        let open = (!frugal).then_some(file);
        Ok(Handle { path: path.to_owned(), open, identity: identity(&about), offset: 0, frugal })
    }
}

impl Read for Handle {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut file = match self.open.take() {
            Some(file) => file,
            None => reopen(&self.path, self.identity, self.offset)?,
        };
        let count = file.read(buffer);
        if !self.frugal {
            self.open = Some(file);
        }
        let count = count?;
        self.offset += count as u64;
        Ok(count)
    }
}

fn identity(about: &Metadata) -> (u64, u64) {
    (about.dev(), about.ino())
}

fn reopen(path: &Path, expected: (u64, u64), offset: u64) -> std::io::Result<File> {
    let mut file = File::open(path)?;
    if identity(&file.metadata()?) != expected {
        return Err(Error::new(ErrorKind::NotFound, "it was replaced while it was read"));
    }
    file.seek(SeekFrom::Start(offset))?;
    Ok(file)
}

/// A Parquet file that is opened for each part of it that is read.
pub(super) struct Parts {
    path: PathBuf,
    identity: (u64, u64),
    length: u64,
}

impl Parts {
    pub(super) fn open(path: &Path) -> std::io::Result<Parts> {
        let about = File::open(path)?.metadata()?;
        Ok(Parts { path: path.to_owned(), identity: identity(&about), length: about.len() })
    }
}

impl Length for Parts {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Parts {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> ParquetResult<BufReader<File>> {
        Ok(BufReader::new(reopen(&self.path, self.identity, start).map_err(external)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let mut bytes = Vec::with_capacity(length.min(1 << 20));
        let file = reopen(&self.path, self.identity, start).map_err(external)?;
        let read = file.take(length as u64).read_to_end(&mut bytes).map_err(external)?;
        if read < length {
            return Err(ParquetError::EOF(format!("{length} bytes were expected, and {read} were there")));
        }
        Ok(bytes.into())
    }
}

fn external(error: Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}
