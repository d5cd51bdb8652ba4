//! The files behind the lists: read at start, and again when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{AddressList, Lists, Settings};

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{}: {cause}; name a file that can be read in [statistical.intel]", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// It is no list.
    #[error("{}: {cause}", path.display())]
    Broken {
        /// Which file.
        path: PathBuf,
        /// Which line, and what was expected.
        cause: super::ListError,
    },
}

/// The files of one owner.
#[derive(Debug)]
pub struct Files {
    settings: Settings,
    stamps: Vec<Option<(SystemTime, u64)>>,
    lists: Arc<Lists>,
    looked: Instant,
}

impl Files {
    /// Reads all lists.
    ///
    /// # Errors
    /// A file is missing or broken: at start that is a mistake in the settings.
    pub fn open(settings: &Settings) -> Result<Files, FileError> {
        let lists = Arc::new(read(settings)?);
        Ok(Files { stamps: stamps(settings), settings: settings.clone(), lists, looked: Instant::now() })
    }

    /// The lists as they were last read.
    pub fn lists(&self) -> Arc<Lists> {
        self.lists.clone()
    }

    /// Looks for changes, not more often than the settings say; the new lists where there are any.
    ///
    /// # Errors
    /// A changed file is missing or broken: the old lists stay, and the file is tried again when it changes once more.
    pub fn refresh(&mut self) -> Result<Option<Arc<Lists>>, FileError> {
        let every = Duration::from_secs(self.settings.reload.as_secs().max(1).unsigned_abs());
        if self.looked.elapsed() < every {
            return Ok(None);
        }
        self.looked = Instant::now();
        self.look()
    }

    fn look(&mut self) -> Result<Option<Arc<Lists>>, FileError> {
        let now = stamps(&self.settings);
        if now == self.stamps {
            return Ok(None);
        }
        self.stamps = now;
        self.lists = Arc::new(read(&self.settings)?);
        Ok(Some(self.lists.clone()))
    }
}

/// What tells that a file has changed: when and how long.
fn stamps(settings: &Settings) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |path: &PathBuf| {
        let about = fs::metadata(path).ok()?;
        Some((about.modified().ok()?, about.len()))
    };
    settings.tor_relays.iter().chain(&settings.mining_pools).map(stamp).collect()
}

fn read(settings: &Settings) -> Result<Lists, FileError> {
    let mut lists = Lists::default();
    lists.tor_relays.join(read_all(&settings.tor_relays)?);
    lists.mining_pools.join(read_all(&settings.mining_pools)?);
    Ok(lists)
}

fn read_all(paths: &[PathBuf]) -> Result<AddressList, FileError> {
    let mut all = AddressList::default();
    for path in paths {
        all.join(read_one(path)?);
    }
    Ok(all)
}

fn read_one(path: &Path) -> Result<AddressList, FileError> {
    let text = fs::read_to_string(path).map_err(|cause| FileError::Unreadable { path: path.to_owned(), cause })?;
    AddressList::parse(&text).map_err(|cause| FileError::Broken { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_list_is_used_and_a_broken_one_keeps_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relays.txt");
        fs::write(&path, "192.0.2.1:9001\n").unwrap();
        let settings = Settings {
            tor_relays: vec![path.clone()],
            mining_pools: vec![],
            reload: jiff::SignedDuration::from_secs(1),
        };
        let mut files = Files::open(&settings).unwrap();
        assert!(files.look().unwrap().is_none(), "nothing has changed");
        fs::write(&path, "192.0.2.1:9001\n192.0.2.22:443\n").unwrap();
        let lists = files.look().unwrap().expect("the file has changed");
        assert!(lists.tor_relays.contains("192.0.2.22".parse().unwrap(), 443));
        fs::write(&path, "this is no list of addresses\n").unwrap();
        let error = files.look().unwrap_err().to_string();
        assert!(error.contains("relays.txt") && error.contains("line 1"), "{error}");
        assert_eq!(files.lists(), lists, "the old list stays");
        assert!(Files::open(&settings).is_err(), "at start it is a mistake");
    }
    #[test]
    fn files_are_looked_at_as_often_as_the_settings_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pools.txt");
        fs::write(&path, "192.0.2.1:3333\n").unwrap();
        let reload = jiff::SignedDuration::from_secs(600);
        let settings = Settings { tor_relays: vec![], mining_pools: vec![path.clone()], reload };
        let mut files = Files::open(&settings).unwrap();
        fs::write(&path, "192.0.2.1:3333\n192.0.2.2:3333\n").unwrap();
        assert!(files.refresh().unwrap().is_none(), "it is not time yet");
        files.looked -= Duration::from_secs(601);
        let lists = files.refresh().unwrap().expect("the file has changed");
        assert_eq!(lists.mining_pools.len(), 2);
        files.looked -= Duration::from_secs(601);
        assert!(files.refresh().unwrap().is_none(), "it has not changed since");
    }
}
