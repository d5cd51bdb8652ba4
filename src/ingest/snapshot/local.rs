//! Snapshots in a folder: a file each, written aside, synced and renamed, so that a file with the right name is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{KEPT, Snapshot, SnapshotError, SnapshotStore};

/// Settings `[ingest.snapshot.local]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The folder; it is made when it is not there.
    pub folder: PathBuf,
}

/// What a finished snapshot's file name ends with.
const EXTENSION: &str = ".snapshot";

/// Snapshots in a folder.
#[derive(Clone, Debug)]
pub struct Folder {
    folder: PathBuf,
}

impl Folder {
    /// Uses a folder, and makes it when it is not there.
    pub fn open(settings: &Settings) -> Result<Folder, SnapshotError> {
        let folder = settings.folder.clone();
        fs::create_dir_all(&folder).map_err(|cause| backend("make snapshot folder", &folder, &cause))?;
        Ok(Folder { folder })
    }

    /// `<name><hash>-<number>.snapshot`: shard names may be paths, so what is not a plain letter is replaced, and a hash
    /// keeps names apart that look the same afterwards.
    fn prefix(name: &str) -> String {
        let plain: String = name.chars().take(80).map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let hash = Sha256::digest(name.as_bytes());
        format!("{plain}-{:02x}{:02x}{:02x}{:02x}-", hash[0], hash[1], hash[2], hash[3])
    }

    fn path(&self, name: &str, number: u64) -> PathBuf {
        self.folder.join(format!("{}{number:020}{EXTENSION}", Folder::prefix(name)))
    }

    fn numbers_now(&self, name: &str) -> Result<Vec<u64>, SnapshotError> {
        let listed = || -> io::Result<Vec<u64>> {
            let prefix = Folder::prefix(name);
            let mut numbers = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let file = entry?.file_name();
                let number = file.to_str().and_then(|file| file.strip_prefix(&prefix)?.strip_suffix(EXTENSION));
                numbers.extend(number.and_then(|digits| digits.parse::<u64>().ok()));
            }
            numbers.sort_unstable_by(|a, b| b.cmp(a));
            Ok(numbers)
        };
        listed().map_err(|cause| backend("list snapshots in", &self.folder, &cause))
    }

    fn save_now(&self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let path = self.path(&snapshot.name, snapshot.number);
        let aside = path.with_extension("writing");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
            file.write_all(&snapshot.encode())?;
            file.sync_all()?;
            fs::rename(&aside, &path)?;
            // The rename itself must survive a power cut, too.
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|cause| backend("write snapshot", &path, &cause))?;
        for old in self.numbers_now(&snapshot.name)?.into_iter().skip(KEPT) {
            let path = self.path(&snapshot.name, old);
            fs::remove_file(&path).map_err(|cause| backend("remove old snapshot", &path, &cause))?;
        }
        Ok(())
    }

    fn load_now(&self, name: &str, number: u64) -> Result<Snapshot, SnapshotError> {
        let path = self.path(name, number);
        let place = path.display().to_string();
        let bytes = fs::read(&path).map_err(|cause| backend("read snapshot", &path, &cause))?;
        match Snapshot::decode(&bytes) {
            Ok(snapshot) if snapshot.name == name && snapshot.number == number => Ok(snapshot),
            Ok(other) => {
                let cause = format!("it is number {} of {}", other.number, other.name);
                Err(SnapshotError::Unreadable { place, cause })
            }
            Err(cause) => Err(SnapshotError::Unreadable { place, cause }),
        }
    }

    /// Files block, and a snapshot may be large: off the runtime's own threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let folder = self.clone();
        tokio::task::spawn_blocking(move || work(&folder)).await.unwrap_or_else(|cause| {
            Err(SnapshotError::Backend { context: "use the snapshot folder".to_owned(), cause: cause.to_string() })
        })
    }
}

#[async_trait]
impl SnapshotStore for Folder {
    async fn save(&self, snapshot: Snapshot) -> Result<(), SnapshotError> {
        self.blocking(move |folder| folder.save_now(&snapshot)).await
    }

    async fn numbers(&self, name: &str) -> Result<Vec<u64>, SnapshotError> {
        let name = name.to_owned();
        self.blocking(move |folder| folder.numbers_now(&name)).await
    }

    async fn load(&self, name: &str, number: u64) -> Result<Snapshot, SnapshotError> {
        let name = name.to_owned();
        self.blocking(move |folder| folder.load_now(&name, number)).await
    }
}

fn backend(what: &str, path: &Path, cause: &io::Error) -> SnapshotError {
    SnapshotError::Backend { context: format!("{what} {}", path.display()), cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::Position;

    fn folder() -> (tempfile::TempDir, Folder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(&Settings { folder: temporary.path().join("new") }).unwrap();
        (temporary, folder)
    }

    fn snapshot(name: &str, number: u64) -> Snapshot {
        Snapshot { name: name.into(), number, position: Some(Position(number.to_string())), state: vec![7; 100] }
    }

    #[tokio::test]
    async fn the_last_two_of_each_name_are_kept() {
        let (_temporary, folder) = folder();
        for number in 1..=5 {
            folder.save(snapshot("/var/log/a", number)).await.unwrap();
            folder.save(snapshot("/var/log_a", number + 10)).await.unwrap();
        }
        assert_eq!(folder.numbers("/var/log/a").await.unwrap(), [5, 4]);
        assert_eq!(folder.numbers("/var/log_a").await.unwrap(), [15, 14]);
        assert_eq!(folder.load("/var/log/a", 4).await.unwrap(), snapshot("/var/log/a", 4));
    }

    #[tokio::test]
    async fn a_damaged_file_is_named_and_the_one_before_still_reads() {
        let (_temporary, folder) = folder();
        folder.save(snapshot("shard", 1)).await.unwrap();
        folder.save(snapshot("shard", 2)).await.unwrap();
        let path = folder.path("shard", 2);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let error = folder.load("shard", 2).await.unwrap_err();
        assert!(matches!(error, SnapshotError::Unreadable { .. }), "{error}");
        assert_eq!(folder.load("shard", 1).await.unwrap(), snapshot("shard", 1));
    }

    #[tokio::test]
    async fn a_snapshot_under_another_name_is_refused() {
        let (_temporary, folder) = folder();
        folder.save(snapshot("a", 1)).await.unwrap();
        fs::rename(folder.path("a", 1), folder.path("b", 1)).unwrap();
        assert!(folder.load("b", 1).await.is_err());
    }
}
