//! How long what was written is kept.
//!
//! As with the time to live of DynamoDB it goes by the wall clock since the last writing, not by event time: logs of last year
//! that are read today are today's news. A little is removed with each write, in the same turn, so that no separate task
//! holds the file, and the file grows no more than is written. SQLite uses the room again; the file does not shrink.
//!
//! What was not announced yet stays, however old.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};

/// Rows of each kind that one write removes at most: some milliseconds.
const BATCH: usize = 64;

/// Pause after a look that found nothing more.
const PAUSE: Duration = Duration::from_secs(60);

/// Seconds since 1970 by the wall clock.
pub(super) fn now() -> i64 {
    Timestamp::now().as_second()
}

/// When to remove what.
#[derive(Debug)]
pub(super) struct Retention {
    keep: i64,
    next: Instant,
    /// Since when rows are dated; those of before count as of then.
    began: Option<i64>,
}

impl Retention {
    /// Keeps for so long; zero: for ever.
    pub(super) fn new(keep: SignedDuration) -> Retention {
        Retention { keep: keep.as_secs(), next: Instant::now(), began: None }
    }

    /// Removes a few rows that are too old. What goes wrong is said and tried again later: it is no reason to refuse what
    /// was to be written.
    pub(super) fn remove_some(&mut self, connection: &mut Connection) {
        if self.keep <= 0 || Instant::now() < self.next {
            return;
        }
        match self.remove(connection, now()) {
            // There may be more, and every write brings some.
            Ok(removed) if removed >= BATCH => {}
            Ok(_) => self.next = Instant::now() + PAUSE,
            Err(error) => {
                self.next = Instant::now() + PAUSE;
                tracing::warn!(%error, "what is older than publish.sqlite.retention is not removed yet");
            }
        }
    }

    /// How many rows of one kind were removed, of that of which there were most.
    fn remove(&mut self, connection: &mut Connection, now: i64) -> rusqlite::Result<usize> {
        let began = match self.began {
            Some(began) => began,
            None => {
                let sql = "SELECT value FROM marks WHERE name = 'retention_began'";
                *self.began.insert(connection.query_row(sql, [], |row| row.get(0))?)
            }
        };
        let before = now.saturating_sub(self.keep);
        // Rows without a date are as old as the date's own beginning.
        let from = if began < before { 0 } else { 1 };
        let transaction = connection.transaction()?;
        let mut most = 0;
        for sql in [
            "DELETE FROM anomalies WHERE id IN
                 (SELECT id FROM anomalies WHERE written >= ?1 AND written < ?2 AND announced = 1 ORDER BY written LIMIT ?3)",
            "DELETE FROM silences WHERE id IN
                 (SELECT id FROM silences WHERE written >= ?1 AND written < ?2 ORDER BY written LIMIT ?3)",
            "DELETE FROM episodes WHERE key IN
                 (SELECT key FROM episodes WHERE written >= ?1 AND written < ?2 ORDER BY written LIMIT ?3)",
            "DELETE FROM feedback WHERE (id, by) IN
                 (SELECT id, by FROM feedback WHERE at < ?2 AND ?1 >= 0 ORDER BY at LIMIT ?3)",
            "DELETE FROM audit WHERE number IN
                 (SELECT number FROM audit WHERE at < ?2 AND ?1 >= 0 ORDER BY at LIMIT ?3)",
        ] {
            most = most.max(transaction.prepare_cached(sql)?.execute(params![from, before, BATCH as i64])?);
        }
        transaction.commit()?;
        Ok(most)
    }
}

#[cfg(test)]
mod tests;
