//! The folders in which a service keeps its state: nobody else's to read, and one process's to write.
//!
//! Two services that read the same input with the same state would each move the checkpoint past what the other has not
//! delivered. The system releases a lock when its owner ends, however it ends.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::settings::Settings;

/// The locks of a service's state, held for as long as this lives.
#[derive(Debug)]
pub(super) struct Locks(#[allow(dead_code, reason = "a lock is held by keeping its file open")] Vec<File>);

/// Makes the folders of the state where they are not there, and locks them.
///
/// # Errors
/// A folder cannot be made, or another process has it; the message names it and what to do.
pub(super) fn lock(settings: &Settings) -> anyhow::Result<Locks> {
    let mut places = Vec::new();
    if settings.publish.dynamodb.is_none() {
        let database = &settings.publish.sqlite.path;
        let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        make(folder)?;
        private(database)?;
        places.push((folder.to_owned(), beside(database), "publish.sqlite.path"));
    }
    // Tasks that share a stream may share a folder of snapshots: each shard is one task's.
    if settings.ingest.kinesis.is_none() {
        let (local, snapshot) = (&settings.ingest.local, &settings.ingest.snapshot);
        let folders = [
            (!local.checkpoint.as_os_str().is_empty()).then_some((&local.checkpoint, "ingest.local.checkpoint")),
            snapshot.s3.is_none().then_some((&snapshot.local.folder, "ingest.snapshot.local.folder")),
        ];
        for (folder, key) in folders.into_iter().flatten() {
            make(folder)?;
            places.push((folder.clone(), folder.join(".lock"), key));
        }
    }
    places.into_iter().map(|(folder, file, key)| take(&folder, &file, key)).collect::<anyhow::Result<_>>().map(Locks)
}

/// `anomalies.db` is locked by `anomalies.db.lock`: SQLite has locks of its own in the file.
fn beside(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn make(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("make folder {}", folder.display()))
}

/// Makes an empty file that only its owner can read, where there is none; what SQLite makes beside it is as the file is.
fn private(file: &Path) -> anyhow::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("make {}", file.display()))
        }
        _ => Ok(()),
    }
}

fn take(folder: &Path, path: &Path, key: &str) -> anyhow::Result<File> {
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut file = options.with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            // For whoever is refused; the lock holds without it.
            let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.rewind().and_then(|()| file.read_to_string(&mut owner));
            let owner = if owner.is_empty() { "another process".to_owned() } else { format!("process {owner}") };
            anyhow::bail!(
                "the state folder {} is in use by {owner}: stop that service, or give this one folders of its own ({key})",
                folder.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}
