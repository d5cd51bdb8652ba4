//! Dead letters in a file: one JSON object a line, for people.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::Letter;
use crate::publish::PublishError;

/// A file to which letters are added, and of which nothing is ever removed.
#[derive(Clone, Debug)]
pub struct LetterFile {
    path: PathBuf,
    /// One letter after the other.
    turn: Arc<Mutex<()>>,
}

impl LetterFile {
    /// The file is made with the first letter, for nobody but its owner.
    pub fn new(path: impl Into<PathBuf>) -> LetterFile {
        LetterFile { path: path.into(), turn: Arc::default() }
    }

    /// Adds a letter, whole or not at all, and made durable.
    ///
    /// # Errors
    /// The file cannot be written at the moment. There is no letter that it would never take.
    pub async fn put(&self, letter: &Letter) -> Result<(), PublishError> {
        let context = || format!("write a dead letter to {}", self.path.display());
        let retry = |cause: String| PublishError::Retry { context: context(), cause };
        let line = serde_json::to_string(letter).map_err(|error| retry(error.to_string()))? + "\n";
        let (path, turn) = (self.path.clone(), self.turn.clone());
        let added = tokio::task::spawn_blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            add(&path, line.as_bytes())
        });
        match added.await {
            Ok(added) => added.map_err(|error| retry(error.to_string())),
            Err(error) => Err(retry(error.to_string())),
        }
    }
}

fn add(path: &Path, line: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::options().create(true).append(true).mode(0o600).open(path)?;
    let before = file.metadata()?.len();
    let written = file.write_all(line).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a line would spoil the next.
        file.set_len(before)?;
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::{Refusal, ShardId};

    fn letter(line: u64) -> Letter {
        let refusal = Refusal { source: "a".to_owned(), line, field: None, reason: "none".to_owned() };
        Letter::Refusal { shard: ShardId("a".into()), refusal }
    }

    #[tokio::test]
    async fn letters_are_added_one_a_line_for_nobody_but_the_owner() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/dead-letters.ndjson");
        let file = LetterFile::new(&path);
        for line in 1..=3 {
            file.put(&letter(line)).await.unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        let read: Vec<Letter> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, [letter(1), letter(2), letter(3)]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_to_be_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        // A directory in its place: not even root writes to that.
        let file = LetterFile::new(folder.path());
        assert!(matches!(file.put(&letter(1)).await, Err(PublishError::Retry { .. })));
    }
}
