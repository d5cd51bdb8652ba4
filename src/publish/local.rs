//! Anomalies on one machine: a store in SQLite, and an announcer that writes NDJSON lines.
//!
//! The store is one file in WAL mode, so that readers (the API, `sqlite3` on the command line) never wait for the writer.
//! Its schema carries a version (`PRAGMA user_version`) and is brought up to date when it is opened, a step at a time in
//! one transaction each.
//!
//! No call runs on a thread of the runtime, and reads have connections of their own (`connections`): whatever is asked, what is
//! told is written meanwhile. A page is read from indexes alone, whichever filters it has (`pages`). What was last written
//! longer ago than the retention is removed, a little with each write.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use jiff::SignedDuration;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::audit::{Audit, Entry};
use super::episodes::{Claim, Claimed, Episodes};
use super::rules::{Rule, Rules};
use super::{
    Announcement, Announcer, AnomalyStore, Feedback, Notice, Page, PublishError, Query, Recorded, Silence, Verdict,
    name_unreadable, revision, unreadable,
};
use crate::anomaly::{Anomaly, Status};
use crate::blame::Backend;
use crate::finding::Severity;
use crate::flow::{Address, EventTime};
use connections::{Connections, Lane};

mod connections;
mod pages;
mod retention;

/// Each step brings the schema from the version of its index to the next.
const MIGRATIONS: [&str; 8] = [
    "
    CREATE TABLE anomalies (
        id TEXT PRIMARY KEY,
        detected INTEGER NOT NULL,
        threat TEXT NOT NULL,
        severity INTEGER NOT NULL,
        status TEXT NOT NULL,
        actor TEXT NOT NULL,
        first_seen INTEGER NOT NULL,
        last_seen INTEGER NOT NULL,
        updates INTEGER NOT NULL,
        announced INTEGER NOT NULL DEFAULT 0,
        revision INTEGER NOT NULL,
        body TEXT NOT NULL
    );
    CREATE INDEX anomalies_newest ON anomalies (detected DESC, id);
    CREATE INDEX anomalies_unannounced ON anomalies (revision) WHERE announced = 0;
    CREATE TABLE addresses (
        address TEXT NOT NULL,
        id TEXT NOT NULL REFERENCES anomalies (id) ON DELETE CASCADE,
        PRIMARY KEY (address, id)
    ) WITHOUT ROWID;
    CREATE TABLE silences (
        id TEXT PRIMARY KEY,
        actor TEXT NOT NULL,
        last_seen INTEGER NOT NULL,
        body TEXT NOT NULL
    );
    CREATE INDEX silences_of_actor ON silences (actor, last_seen DESC);
    CREATE INDEX silences_newest ON silences (last_seen DESC);
    CREATE TABLE feedback (
        id TEXT NOT NULL,
        by TEXT NOT NULL,
        verdict TEXT NOT NULL,
        note TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (id, by)
    ) WITHOUT ROWID;
    CREATE INDEX feedback_by_time ON feedback (at);
",
    "
    CREATE TABLE episodes (
        key TEXT PRIMARY KEY,
        body TEXT NOT NULL
    ) WITHOUT ROWID;
",
    "
    CREATE TABLE rules (
        name TEXT PRIMARY KEY,
        body TEXT NOT NULL
    ) WITHOUT ROWID;
",
    "
    CREATE INDEX anomalies_of_status ON anomalies (status, detected DESC, id);
",
    // Indexes for every filter (see `pages`), and what retention goes by. `reach` says how far an anomaly's own span reaches
    // from its detection, in classes: what is computed costs no rewriting of the rows that are there. Those have no
    // `written`; they count as written when the step was made.
    "
    ALTER TABLE anomalies ADD COLUMN reach INTEGER GENERATED ALWAYS AS (
        CASE
            WHEN MAX(detected - first_seen, last_seen - detected) <= 3600 THEN 0
            WHEN MAX(detected - first_seen, last_seen - detected) <= 28800 THEN 1
            WHEN MAX(detected - first_seen, last_seen - detected) <= 230400 THEN 2
            WHEN MAX(detected - first_seen, last_seen - detected) <= 1843200 THEN 3
            ELSE 4
        END
    ) VIRTUAL;
    ALTER TABLE anomalies ADD COLUMN written INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX anomalies_changed ON anomalies (revision);
    CREATE INDEX anomalies_written ON anomalies (written);
    CREATE INDEX anomalies_of_time ON anomalies (reach, detected DESC, id, first_seen, last_seen);
    CREATE INDEX anomalies_of_kind ON anomalies (threat, severity, status, reach, detected DESC, id, first_seen, last_seen);
    CREATE INDEX anomalies_of_actor
        ON anomalies (actor, detected DESC, id, threat, severity, status, first_seen, last_seen);
    ALTER TABLE addresses RENAME TO addresses_before;
    CREATE TABLE addresses (
        address TEXT NOT NULL,
        detected INTEGER NOT NULL,
        id TEXT NOT NULL REFERENCES anomalies (id) ON DELETE CASCADE,
        threat TEXT NOT NULL,
        severity INTEGER NOT NULL,
        status TEXT NOT NULL,
        PRIMARY KEY (address, detected DESC, id)
    ) WITHOUT ROWID;
    INSERT INTO addresses
        SELECT b.address, a.detected, a.id, a.threat, a.severity, a.status
        FROM addresses_before b JOIN anomalies a ON a.id = b.id;
    DROP TABLE addresses_before;
    CREATE INDEX addresses_of_anomaly ON addresses (id);
    ALTER TABLE silences ADD COLUMN written INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX silences_written ON silences (written);
    ALTER TABLE episodes ADD COLUMN written INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX episodes_written ON episodes (written);
    ALTER TABLE feedback ADD COLUMN name TEXT NOT NULL DEFAULT '';
    CREATE TABLE marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO marks VALUES ('retention_began', CAST(strftime('%s', 'now') AS INTEGER));
",
    // The last revision that was given is kept by itself: the row that has it may be removed. The index of changes holds what is
    // filtered by, so that a page of changes reads no row that does not stand on it.
    "
    INSERT INTO marks SELECT 'revision', IFNULL(MAX(revision), 0) FROM anomalies;
    DROP INDEX anomalies_changed;
    CREATE INDEX anomalies_changed
        ON anomalies (revision, id, threat, severity, status, actor, detected, first_seen, last_seen);
",
    // Who changed what. The last entries are never those that retention removes, so that no number is given twice.
    "
    CREATE TABLE audit (number INTEGER PRIMARY KEY, at INTEGER NOT NULL, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
    CREATE INDEX audit_by_time ON audit (at);
",
    // What else an anomaly is found by stands beside the addresses: its account, its interfaces, and the blocks of its IPv4
    // addresses. Blocks of IPv6 are known of what is written from here on.
    "
    INSERT OR IGNORE INTO addresses
        SELECT 'account ' || json_extract(body, '$.account_id'), detected, id, threat, severity, status
        FROM anomalies WHERE json_valid(body) AND json_extract(body, '$.account_id') != '';
    INSERT OR IGNORE INTO addresses
        SELECT 'interface ' || i.value, a.detected, a.id, a.threat, a.severity, a.status
        FROM anomalies a, json_each(CASE WHEN json_valid(a.body) THEN a.body ELSE '{}' END, '$.interface_ids') i;
    INSERT OR IGNORE INTO addresses
        SELECT 'block ' || rtrim(address, '0123456789') || '0/24', detected, id, threat, severity, status
        FROM addresses WHERE address GLOB '[0-9]*.*.*.*' AND address NOT LIKE '% %';
    INSERT OR IGNORE INTO addresses
        SELECT 'block ' || rtrim(rtrim(substr(address, 7, length(address) - 10), '.'), '0123456789') || '0.0/16',
               detected, id, threat, severity, status
        FROM addresses WHERE address LIKE 'block %.0/24';
    INSERT OR IGNORE INTO addresses
        SELECT 'block ' || rtrim(rtrim(substr(address, 7, length(address) - 12), '.'), '0123456789') || '0.0.0/8',
               detected, id, threat, severity, status
        FROM addresses WHERE address LIKE 'block %.0.0/16';
",
];

/// Verdicts that are kept at most; the oldest go first. All of them are read together, a few kB each.
const FEEDBACK_MAX: usize = 10_000;

/// How many anomalies a page holds at most, whatever is asked for.
const PAGE_MAX: usize = 1000;

/// Settings `[publish.sqlite]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The file; it is made when it is not there.
    pub path: PathBuf,
    /// How long something is kept after it was last written (wall clock); zero: for ever.
    pub retention: SignedDuration,
    /// Lists that are read at once, 1 to 64.
    pub readers: usize,
    /// Longest that one read may take, s; it is given up then, and earlier when nobody waits for it any more.
    pub read_timeout: SignedDuration,
}

impl Settings {
    /// What is wrong with values that are each well-formed, by key.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if self.path.as_os_str().is_empty() {
            found.push(("path", "name the file in which anomalies are kept".to_owned()));
        }
        found
    }
}

/// Anomalies in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    connections: Connections,
}

impl SqliteStore {
    /// Opens or creates the file, and brings its schema up to date; nothing that is in it is removed for its age.
    pub fn open(path: &Path) -> Result<SqliteStore, PublishError> {
        let (retention, read_timeout) = (SignedDuration::ZERO, SignedDuration::from_secs(10));
        SqliteStore::open_with(&Settings { path: path.to_owned(), retention, readers: 2, read_timeout })
    }

    /// The same with all settings.
    pub fn open_with(settings: &Settings) -> Result<SqliteStore, PublishError> {
        let context = || format!("open {}", settings.path.display());
        let connection = Connection::open(&settings.path).map_err(|e| fatal(context(), e))?;
        let prepared = prepare(connection)?;
        Ok(SqliteStore { connections: Connections::to_file(prepared, settings) })
    }

    /// A store that ends with the process.
    pub fn in_memory() -> Result<SqliteStore, PublishError> {
        let context = || "open a store in memory".to_owned();
        let connection = Connection::open_in_memory().map_err(|e| fatal(context(), e))?;
        Ok(SqliteStore { connections: Connections::to_memory(prepare(connection)?) })
    }
}

/// Sets the connection up and migrates the schema.
fn prepare(mut connection: Connection) -> Result<Connection, PublishError> {
    let path = connection.path().unwrap_or_default().to_owned();
    let context = || format!("prepare the anomaly store {path}");
    connection
        .execute_batch(
            // NORMAL survives a crash of the process; after a loss of power the last moments may be missing, and the
            // input's checkpoint brings them again. A log that a long read has made large is cut back to 64 MiB.
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000;
             PRAGMA journal_size_limit = 67108864;",
        )
        .map_err(|e| unprepared(context(), e))?;
    let version: u32 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|e| unprepared(context(), e))?;
    let known = MIGRATIONS.len() as u32;
    if version > known {
        let cause = format!("its schema is version {version}, this program knows {known}; use a newer one");
        return Err(PublishError::Fatal { context: context(), cause });
    }
    for (number, step) in (1_u32..).zip(MIGRATIONS).skip(version as usize) {
        let migrate = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "user_version", number)?;
            transaction.commit()
        };
        migrate(&mut connection)
            .map_err(|e| unprepared(format!("migrate the anomaly store to version {number}"), e))?;
    }
    Ok(connection)
}

fn fatal(context: String, cause: impl std::fmt::Display) -> PublishError {
    PublishError::Fatal { context, cause: cause.to_string() }
}

/// What an error means, by the table of all backends.
fn classify(context: String, cause: rusqlite::Error) -> PublishError {
    PublishError::blamed(Backend::Sqlite, context, result_code(&cause), cause)
}

/// The name of an error's primary result code.
fn result_code(error: &rusqlite::Error) -> &'static str {
    use rusqlite::{Error, ErrorCode};
    let Some(code) = error.sqlite_error_code() else {
        return match error {
            // What came back, or was to go in, is not what it should be.
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::Utf8Error(..)
            | Error::InvalidColumnType(..)
            | Error::ToSqlConversionFailure(..)
            | Error::NulError(..) => "conversion",
            _ => "",
        };
    };
    match code {
        ErrorCode::InternalMalfunction => "SQLITE_INTERNAL",
        ErrorCode::PermissionDenied => "SQLITE_PERM",
        ErrorCode::OperationAborted => "SQLITE_ABORT",
        ErrorCode::DatabaseBusy => "SQLITE_BUSY",
        ErrorCode::DatabaseLocked => "SQLITE_LOCKED",
        ErrorCode::OutOfMemory => "SQLITE_NOMEM",
        ErrorCode::ReadOnly => "SQLITE_READONLY",
        ErrorCode::OperationInterrupted => "SQLITE_INTERRUPT",
        ErrorCode::SystemIoFailure => "SQLITE_IOERR",
        ErrorCode::DatabaseCorrupt => "SQLITE_CORRUPT",
        ErrorCode::NotFound => "SQLITE_NOTFOUND",
        ErrorCode::DiskFull => "SQLITE_FULL",
        ErrorCode::CannotOpen => "SQLITE_CANTOPEN",
        ErrorCode::FileLockingProtocolFailed => "SQLITE_PROTOCOL",
        ErrorCode::SchemaChanged => "SQLITE_SCHEMA",
        ErrorCode::TooBig => "SQLITE_TOOBIG",
        ErrorCode::ConstraintViolation => "SQLITE_CONSTRAINT",
        ErrorCode::TypeMismatch => "SQLITE_MISMATCH",
        ErrorCode::ApiMisuse => "SQLITE_MISUSE",
        ErrorCode::NoLargeFileSupport => "SQLITE_NOLFS",
        ErrorCode::AuthorizationForStatementDenied => "SQLITE_AUTH",
        ErrorCode::ParameterOutOfRange => "SQLITE_RANGE",
        ErrorCode::NotADatabase => "SQLITE_NOTADB",
        _ => "SQLITE_ERROR",
    }
}

/// Before anything is recorded, what is wrong with the file is said and not waited for, but what may pass by itself.
fn unprepared(context: String, cause: rusqlite::Error) -> PublishError {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase, SystemIoFailure};
    match cause.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked | DiskFull | SystemIoFailure) => classify(context, cause),
        Some(DatabaseCorrupt | NotADatabase) => {
            fatal(context, format!("{cause}; put a copy of the file back, or move it away and begin with an empty one"))
        }
        _ => fatal(context, cause),
    }
}

fn body<T: Serialize>(value: &T) -> Result<String, PublishError> {
    serde_json::to_string(value).map_err(|e| fatal("write a record as JSON".to_owned(), e))
}

fn parse<T: serde::de::DeserializeOwned>(id: &str, text: &str) -> Result<T, PublishError> {
    serde_json::from_str(text).map_err(|e| fatal("read a stored record".to_owned(), unreadable(id, &e)))
}

/// What a row of an id and a record stands for. One that cannot be read is named in the log and stepped over.
fn understood<T: serde::de::DeserializeOwned>(row: &Row<'_>) -> rusqlite::Result<Option<T>> {
    let id: String = row.get(0)?;
    match row.get::<_, String>(1) {
        Ok(text) => Ok(parse(&id, &text).ok()),
        Err(error) if result_code(&error) == "conversion" => {
            name_unreadable(&id, "its record is no text");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The verdict of a row; one that cannot be read is named in the log and stepped over.
fn feedback_of(row: &Row<'_>) -> rusqlite::Result<Option<Feedback>> {
    let (id, verdict): (String, String) = (row.get(0)?, row.get(2)?);
    Ok(match (id.parse(), parse(&id, &json!(verdict).to_string())) {
        (Ok(anomaly_id), Ok(verdict)) => {
            let (by, note, at, name) = (row.get(1)?, row.get(3)?, EventTime(row.get(4)?), row.get(5)?);
            Some(Feedback { anomaly_id, verdict, by, name, note, at })
        }
        (Err(_), _) => {
            name_unreadable(&id, "its id is none");
            None
        }
        // Parsing has named it.
        (_, Err(_)) => None,
    })
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Open => "open",
        Status::Closed => "closed",
    }
}

const fn rank(severity: Severity) -> i64 {
    match severity {
        Severity::Low => 0,
        Severity::Medium => 1,
        Severity::High => 2,
        Severity::Critical => 3,
    }
}

#[async_trait]
impl AnomalyStore for SqliteStore {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, PublishError> {
        let context = "claim an episode".to_owned();
        let claim = *claim;
        self.connections.write(context, move |connection, context| claim_in(connection, &claim, context)).await
    }

    async fn record(&self, anomaly: &Anomaly) -> Result<Recorded, PublishError> {
        let context = format!("record anomaly {}", anomaly.anomaly_id);
        let anomaly = anomaly.clone();
        self.connections.write(context, move |connection, context| record_in(connection, anomaly, context)).await
    }

    async fn stands(&self) -> Result<(), PublishError> {
        self.connections.stands("look at the anomaly store".to_owned()).await
    }

    async fn announced(&self, anomaly: &Anomaly) -> Result<(), PublishError> {
        let (updates, last_seen, status) = revision(anomaly);
        let id = anomaly.anomaly_id.to_string();
        let context = format!("mark anomaly {id} as announced");
        let mark = move |connection: &mut Connection, context: &str| {
            let sql = "UPDATE anomalies SET announced = 1
                       WHERE id = ?1 AND updates = ?2 AND last_seen = ?3 AND status = ?4";
            let marked = connection.execute(sql, params![id, updates, last_seen.0, status_name(status)]);
            marked.map(drop).map_err(|e| classify(context.to_owned(), e))
        };
        self.connections.write(context, mark).await
    }

    async fn unannounced(&self, limit: usize) -> Result<Vec<Anomaly>, PublishError> {
        let sql = "SELECT id, body FROM anomalies WHERE announced = 0 ORDER BY revision LIMIT ?1";
        self.bodies(Lane::Inner, "list what was not announced", sql, vec![(limit as i64).into()]).await
    }

    async fn revised(&self, id: Uuid) -> Result<Option<(Anomaly, String)>, PublishError> {
        let look = move |connection: &Connection, context: &str| {
            let mut statement = connection
                .prepare_cached("SELECT body, revision FROM anomalies WHERE id = ?1")
                .map_err(|e| classify(context.to_owned(), e))?;
            let found: Option<(String, i64)> = statement
                .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
                .map_err(|e| classify(context.to_owned(), e))?;
            found.map(|(text, revision)| Ok((parse(&id.to_string(), &text)?, revision.to_string()))).transpose()
        };
        self.connections.read(Lane::Inner, format!("get anomaly {id}"), look).await
    }

    async fn query(&self, query: &Query) -> Result<Page, PublishError> {
        let limit = if query.limit == 0 { 100 } else { query.limit.min(PAGE_MAX) };
        let cursor = query.cursor.as_deref().map(read_cursor).transpose()?;
        let since = query.changed_since.as_deref().map(read_revision).transpose()?;
        let query = query.clone();
        let look = move |connection: &Connection, context: &str| {
            let failed = |e| classify(context.to_owned(), e);
            // One snapshot for the keys and what they stand for.
            let snapshot = connection.unchecked_transaction().map_err(failed)?;
            let last: i64 = snapshot
                .query_row("SELECT value FROM marks WHERE name = 'revision'", [], |row| row.get(0))
                .map_err(failed)?;
            let (ids, next, changed_until) = match since {
                Some(since) if since > last => {
                    let cause = format!("`{since}` is later than the last change of this store, {last}");
                    return Err(fatal(super::BAD_CHANGED_SINCE.to_owned(), cause));
                }
                Some(since) => {
                    let mut changes = pages::changes(&snapshot, &query, since, limit + 1).map_err(failed)?;
                    let more = changes.len() > limit;
                    changes.truncate(limit);
                    let until = changes.last().filter(|_| more).map_or(last, |(revision, _)| *revision).to_string();
                    let ids: Vec<String> = changes.into_iter().map(|(_, id)| id).collect();
                    (ids, more.then(|| until.clone()), until)
                }
                None => {
                    let mut keys = pages::keys(&snapshot, &query, cursor, limit + 1).map_err(failed)?;
                    let more = keys.len() > limit;
                    keys.truncate(limit);
                    let next = keys.last().filter(|_| more).map(|key| format!("{}.{}", key.detected, key.id));
                    (keys.into_iter().map(|key| key.id).collect(), next, last.to_string())
                }
            };
            let (anomalies, revisions) = rows(&snapshot, &ids, context)?.into_iter().unzip();
            Ok(Page { anomalies, revisions, next, changed_until })
        };
        self.connections.read(Lane::Lists, "query anomalies".to_owned(), look).await
    }

    async fn silence(&self, silence: &Silence) -> Result<(), PublishError> {
        let context = format!("keep the silence about {}", silence.anomaly_id);
        let silence = silence.clone();
        let keep = move |connection: &mut Connection, context: &str| {
            let sql = "INSERT INTO silences (id, actor, last_seen, body, written) VALUES (?1, ?2, ?3, ?4, ?5)
                       ON CONFLICT (id) DO UPDATE SET actor = ?2, last_seen = ?3, body = ?4, written = ?5
                       WHERE last_seen <= ?3";
            let (id, actor) = (silence.anomaly_id.to_string(), silence.actor.to_string());
            let written = retention::now();
            let kept = connection.execute(sql, params![id, actor, silence.last_seen.0, body(&silence)?, written]);
            kept.map(drop).map_err(|e| classify(context.to_owned(), e))
        };
        self.connections.write(context, keep).await
    }

    async fn silences(&self, address: Option<Address>, limit: usize) -> Result<Vec<Silence>, PublishError> {
        let limit = (limit.min(PAGE_MAX) as i64).into();
        let (sql, values) = match address {
            Some(address) => (
                "SELECT id, body FROM silences WHERE actor = ?1 ORDER BY last_seen DESC, id LIMIT ?2",
                vec![address.to_string().into(), limit],
            ),
            None => ("SELECT id, body FROM silences ORDER BY last_seen DESC, id LIMIT ?1", vec![limit]),
        };
        self.bodies(Lane::Lists, "list silences", sql, values).await
    }

    async fn feedback(&self, feedback: &Feedback) -> Result<(), PublishError> {
        let context = format!("keep the verdict on {}", feedback.anomaly_id);
        let feedback = feedback.clone();
        let keep = move |connection: &mut Connection, context: &str| {
            let verdict = match feedback.verdict {
                Verdict::TruePositive => "true_positive",
                Verdict::FalsePositive => "false_positive",
            };
            let sql = "INSERT INTO feedback (id, by, verdict, note, at, name) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                       ON CONFLICT (id, by) DO UPDATE SET verdict = ?3, note = ?4, at = ?5, name = ?6 WHERE at <= ?5";
            let failed = |e| classify(context.to_owned(), e);
            let id = feedback.anomaly_id.to_string();
            let transaction = connection.transaction().map_err(failed)?;
            let values = params![id, feedback.by, verdict, feedback.note, feedback.at.0, feedback.name];
            let kept = transaction.execute(sql, values).map_err(failed)?;
            if kept > 0 {
                let revision = next_revision(&transaction).map_err(failed)?;
                let changed = "UPDATE anomalies SET revision = ?2 WHERE id = ?1";
                transaction.execute(changed, params![id, revision]).map_err(failed)?;
            }
            let oldest = "DELETE FROM feedback WHERE (id, by) IN (SELECT id, by FROM feedback ORDER BY at LIMIT
                              MAX(0, (SELECT COUNT(*) FROM feedback INDEXED BY feedback_by_time) - ?1))";
            transaction.execute(oldest, [FEEDBACK_MAX as i64]).map_err(failed)?;
            transaction.commit().map_err(failed)
        };
        self.connections.write(context, keep).await
    }

    async fn verdict(&self, id: Uuid, by: &str) -> Result<Option<Feedback>, PublishError> {
        let by = by.to_owned();
        let look = move |connection: &Connection, context: &str| {
            let sql = "SELECT id, by, verdict, note, at, name FROM feedback WHERE id = ?1 AND by = ?2";
            let mut statement = connection.prepare_cached(sql).map_err(|e| classify(context.to_owned(), e))?;
            let found = statement.query_row(params![id.to_string(), by], feedback_of).optional();
            found.map(Option::flatten).map_err(|e| classify(context.to_owned(), e))
        };
        self.connections.read(Lane::Inner, format!("get a verdict on {id}"), look).await
    }

    async fn feedbacks(&self, since: EventTime) -> Result<Vec<Feedback>, PublishError> {
        let look = move |connection: &Connection, context: &str| {
            let failed = |e| classify(context.to_owned(), e);
            let sql = "SELECT id, by, verdict, note, at, name FROM feedback WHERE at >= ?1 ORDER BY at, id, by";
            let mut statement = connection.prepare_cached(sql).map_err(failed)?;
            let rows = statement.query_map([since.0], feedback_of).map_err(failed)?;
            rows.filter_map(Result::transpose).collect::<rusqlite::Result<_>>().map_err(failed)
        };
        self.connections.read(Lane::Inner, "list verdicts".to_owned(), look).await
    }
}

impl SqliteStore {
    /// Rows of an id and a record each.
    async fn bodies<T: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        lane: Lane,
        context: &str,
        sql: &'static str,
        values: Vec<rusqlite::types::Value>,
    ) -> Result<Vec<T>, PublishError> {
        let look = move |connection: &Connection, context: &str| {
            let mut statement = connection.prepare_cached(sql).map_err(|e| classify(context.to_owned(), e))?;
            let rows = statement
                .query_map(params_from_iter(values), understood)
                .map_err(|e| classify(context.to_owned(), e))?;
            let read = rows.filter_map(Result::transpose).collect::<rusqlite::Result<Vec<T>>>();
            read.map_err(|e| classify(context.to_owned(), e))
        };
        self.connections.read(lane, context.to_owned(), look).await
    }
}

#[async_trait]
impl Rules for SqliteStore {
    async fn put_rule(&self, rule: &Rule) -> Result<(), PublishError> {
        let (context, rule) = ("keep a rule".to_owned(), rule.clone());
        let put = move |connection: &mut Connection, context: &str| {
            let sql = "INSERT INTO rules (name, body) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET body = ?2";
            let done = connection.execute(sql, params![rule.name, rule.body]);
            done.map(drop).map_err(|e| classify(context.to_owned(), e))
        };
        self.connections.write(context, put).await
    }

    async fn remove_rule(&self, name: &str) -> Result<bool, PublishError> {
        let (context, name) = ("forget a rule".to_owned(), name.to_owned());
        let remove = move |connection: &mut Connection, context: &str| {
            let gone = connection.execute("DELETE FROM rules WHERE name = ?1", [name]);
            gone.map(|rows| rows > 0).map_err(|e| classify(context.to_owned(), e))
        };
        self.connections.write(context, remove).await
    }

    async fn rules(&self) -> Result<Vec<Rule>, PublishError> {
        let look = |connection: &Connection, context: &str| {
            let failed = |e| classify(context.to_owned(), e);
            let mut statement =
                connection.prepare_cached("SELECT name, body FROM rules ORDER BY name").map_err(failed)?;
            let rows = statement
                .query_map([], |row| {
                    let name: String = row.get(0)?;
                    match row.get(1) {
                        Ok(body) => Ok(Some(Rule { name, body })),
                        Err(_) => {
                            name_unreadable(&format!("rule {name}"), "its record is no text");
                            Ok(None)
                        }
                    }
                })
                .map_err(failed)?;
            rows.filter_map(Result::transpose).collect::<rusqlite::Result<_>>().map_err(failed)
        };
        self.connections.read(Lane::Inner, "list the rules".to_owned(), look).await
    }
}

#[async_trait]
impl Audit for SqliteStore {
    async fn note(&self, entry: &Entry) -> Result<(), PublishError> {
        let (context, entry) = ("keep an entry of the audit trail".to_owned(), entry.clone());
        let note = move |connection: &mut Connection, context: &str| {
            let sql = "INSERT OR IGNORE INTO audit (at, id, body) VALUES (?1, ?2, ?3)";
            let values = params![entry.at.as_second(), entry.id.to_string(), body(&entry)?];
            connection.execute(sql, values).map(drop).map_err(|e| classify(context.to_owned(), e))
        };
        self.connections.write(context, note).await
    }

    async fn trail(&self, limit: usize, cursor: Option<&str>) -> Result<(Vec<Entry>, Option<String>), PublishError> {
        let before = match cursor {
            None => i64::MAX,
            Some(cursor) => cursor
                .parse()
                .map_err(|_| fatal(super::BAD_CURSOR.to_owned(), format!("`{cursor}` is not one of ours")))?,
        };
        let limit = limit.clamp(1, PAGE_MAX);
        let look = move |connection: &Connection, context: &str| {
            let failed = |e| classify(context.to_owned(), e);
            let sql = "SELECT id, body, number FROM audit WHERE number < ?1 ORDER BY number DESC LIMIT ?2";
            let mut statement = connection.prepare_cached(sql).map_err(failed)?;
            let rows = statement
                .query_map(params![before, limit as i64 + 1], |row| Ok((understood(row)?, row.get(2)?)))
                .map_err(failed)?;
            let mut rows: Vec<(Option<Entry>, i64)> = rows.collect::<rusqlite::Result<_>>().map_err(failed)?;
            let more = rows.len() > limit;
            rows.truncate(limit);
            let next = rows.last().filter(|_| more).map(|(_, number)| number.to_string());
            Ok((rows.into_iter().filter_map(|(entry, _)| entry).collect(), next))
        };
        self.connections.read(Lane::Lists, "list the audit trail".to_owned(), look).await
    }
}

fn claim_in(connection: &mut Connection, claim: &Claim, context: &str) -> Result<Claimed, PublishError> {
    let failed = |e| classify(context.to_owned(), e);
    let key = claim.key.to_string();
    let transaction = connection.transaction().map_err(failed)?;
    let stored: Option<String> = transaction
        .query_row("SELECT body FROM episodes WHERE key = ?1", [&key], |row| Ok(row.get(0).unwrap_or_default()))
        .optional()
        .map_err(failed)?;
    // What cannot be read is written anew: an id is made of content, and stays the same.
    let row = format!("told episodes of {}", claim.id);
    let before: Episodes = stored.and_then(|text| parse(&row, &text).ok()).unwrap_or_default();
    let mut after = before.clone();
    let claimed = after.claim(claim);
    if after != before {
        let put = "INSERT INTO episodes (key, body, written) VALUES (?1, ?2, ?3)
                   ON CONFLICT (key) DO UPDATE SET body = ?2, written = ?3";
        transaction.execute(put, params![key, body(&after)?, retention::now()]).map_err(failed)?;
    }
    transaction.commit().map_err(failed)?;
    Ok(claimed)
}

fn record_in(connection: &mut Connection, mut anomaly: Anomaly, context: &str) -> Result<Recorded, PublishError> {
    let failed = |e| classify(context.to_owned(), e);
    let transaction = connection.transaction().map_err(failed)?;
    let id = anomaly.anomaly_id.to_string();
    let stored: Option<(String, EventTime)> = transaction
        .query_row("SELECT body, detected FROM anomalies WHERE id = ?1", [&id], |row| {
            Ok((row.get(0).unwrap_or_default(), EventTime(row.get(1).unwrap_or(u32::MAX))))
        })
        .optional()
        .map_err(failed)?;
    let recorded = match stored {
        None => Recorded::New,
        Some((text, detected)) => {
            // One that cannot be read is written anew, whichever revision it was.
            let stored: Option<Anomaly> = parse(&id, &text).ok();
            if stored.as_ref().is_some_and(|stored| revision(stored) >= revision(&anomaly)) {
                return Ok(Recorded::Unchanged);
            }
            // An episode was detected once; a task that lost its memory does not detect it again, later.
            let detected = stored.map_or(detected, |stored| stored.detection_timestamp);
            anomaly.detection_timestamp = anomaly.detection_timestamp.min(detected);
            Recorded::Updated
        }
    };
    write_anomaly(&transaction, &anomaly).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    Ok(recorded)
}

/// The anomalies of these ids in their order, each with its revision. What cannot be read is named in the log and left out.
fn rows(connection: &Connection, ids: &[String], context: &str) -> Result<Vec<(Anomaly, String)>, PublishError> {
    let failed = |e| classify(context.to_owned(), e);
    let mut statement =
        connection.prepare_cached("SELECT id, body, revision FROM anomalies WHERE id = ?1").map_err(failed)?;
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        let read = |row: &Row<'_>| {
            let revision: i64 = row.get(2)?;
            Ok(understood(row)?.map(|anomaly| (anomaly, revision.to_string())))
        };
        match statement.query_row([id], read) {
            Ok(row) => found.extend(row),
            // The page that it stands on is damaged; others may be whole.
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
                name_unreadable(id, "it stands on a damaged page of the file");
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(found)
}

/// The revision of the next change. Changes become visible in the order of their revisions, for one writes after the other.
fn next_revision(connection: &Connection) -> Result<i64, rusqlite::Error> {
    let sql = "UPDATE marks SET value = value + 1 WHERE name = 'revision' RETURNING value";
    connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

/// Puts an anomaly and its addresses; a revision is announced anew.
fn write_anomaly(connection: &Connection, anomaly: &Anomaly) -> Result<(), rusqlite::Error> {
    let id = anomaly.anomaly_id.to_string();
    let text = serde_json::to_string(anomaly).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    let (detected, threat) = (anomaly.detection_timestamp.0, anomaly.threat.name());
    let (severity, status) = (rank(anomaly.severity), status_name(anomaly.status));
    let revision = next_revision(connection)?;
    connection
        .prepare_cached(
            "INSERT INTO anomalies
             (id, detected, threat, severity, status, actor, first_seen, last_seen, updates, announced, revision, body, written)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, ?12, ?10, ?11)
         ON CONFLICT (id) DO UPDATE SET
             detected = ?2, severity = ?4, status = ?5, actor = ?6, first_seen = ?7, last_seen = ?8, updates = ?9, announced = 0,
             revision = ?12, body = ?10, written = ?11",
        )?
        .execute(params![
            id,
            detected,
            threat,
            severity,
            status,
            anomaly.actor.to_string(),
            anomaly.first_seen.0,
            anomaly.last_seen.0,
            anomaly.updates,
            text,
            retention::now(),
            revision,
        ])?;
    // What it was known by stays findable, also where the list of targets has moved on.
    connection
        .prepare_cached(
            "UPDATE addresses SET detected = ?2, severity = ?3, status = ?4
             WHERE id = ?1 AND (detected, severity, status) != (?2, ?3, ?4)",
        )?
        .execute(params![id, detected, severity, status])?;
    let mut insert = connection.prepare_cached("INSERT OR IGNORE INTO addresses VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for label in super::labels(anomaly) {
        insert.execute(params![label, detected, id, threat, severity, status])?;
    }
    Ok(())
}

/// Where the page before ended.
fn read_cursor(cursor: &str) -> Result<pages::Key, PublishError> {
    let parts = cursor.split_once('.').and_then(|(at, id)| Some((at.parse::<u32>().ok()?, id.parse::<Uuid>().ok()?)));
    match parts {
        Some((at, id)) => Ok(pages::Key { detected: at.into(), id: id.to_string() }),
        None => Err(fatal(super::BAD_CURSOR.to_owned(), format!("`{cursor}` is not one of ours"))),
    }
}

/// The change after which changes are wanted.
fn read_revision(since: &str) -> Result<i64, PublishError> {
    let revision = since.parse().ok().filter(|revision| *revision >= 0);
    revision.ok_or_else(|| fatal(super::BAD_CHANGED_SINCE.to_owned(), format!("`{since}` is not one of ours")))
}

/// Announces as NDJSON lines: `{"detail-type": "Anomaly Detected", "detail": {…}}`, as EventBridge would carry them.
pub struct LineAnnouncer {
    out: Mutex<Lines>,
}

/// Lines that go out one after the other, each whole and once, also where writing fails in the midst of one.
struct Lines {
    out: Box<dyn Write + Send>,
    /// The line that did not get out, and how much of it did.
    torn: Option<(String, usize)>,
}

impl Lines {
    fn write(&mut self, line: String) -> std::io::Result<()> {
        let done = match self.torn.take() {
            Some((torn, done)) if torn == line => done,
            Some((torn, done)) => {
                // Nobody goes on with that one: what is there of it ends, so that it does not spoil the next.
                if done > 0 && done < torn.len() {
                    self.out.write_all(b"\n")?;
                }
                0
            }
            None => 0,
        };
        self.torn = Some((line, done));
        while let Some((line, done)) = &mut self.torn
            && *done < line.len()
        {
            match self.out.write(&line.as_bytes()[*done..]) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(written) => *done += written,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.flush()?;
        self.torn = None;
        Ok(())
    }
}

impl std::fmt::Debug for LineAnnouncer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LineAnnouncer")
    }
}

impl LineAnnouncer {
    /// Announces on standard output.
    pub fn stdout() -> LineAnnouncer {
        LineAnnouncer::to(Box::new(std::io::stdout()))
    }

    /// Announces on any writer.
    pub fn to(out: Box<dyn Write + Send>) -> LineAnnouncer {
        LineAnnouncer { out: Mutex::new(Lines { out, torn: None }) }
    }

    fn write(&self, detail_type: &impl Serialize, detail: &impl Serialize) -> std::io::Result<()> {
        let line = serde_json::to_string(&Line { detail, detail_type, source: "anomaly-detection-service" })?;
        self.out.lock().unwrap_or_else(PoisonError::into_inner).write(format!("{line}\n"))
    }
}

/// One line. Written as it is and not by way of a [`serde_json::Value`], in which numbers of 32 bits get other digits.
#[derive(Serialize)]
struct Line<'a, T, D> {
    detail: &'a D,
    #[serde(rename = "detail-type")]
    detail_type: &'a T,
    source: &'a str,
}

#[async_trait]
impl Announcer for LineAnnouncer {
    async fn notify(&self, notice: &Notice) -> Result<(), PublishError> {
        self.write(&notice.detail_type, &notice.detail).map_err(|e| PublishError::Retry {
            context: format!("announce `{}`", notice.detail_type),
            cause: e.to_string(),
        })
    }

    async fn announce(&self, batch: &[(Announcement, Anomaly)]) -> Vec<Result<(), PublishError>> {
        let result = |(announcement, anomaly): &(Announcement, Anomaly)| {
            let context = || format!("announce anomaly {}", anomaly.anomaly_id);
            self.write(announcement, anomaly).map_err(|e| match e.kind() {
                std::io::ErrorKind::BrokenPipe => PublishError::Gone {
                    context: context(),
                    cause: "whoever read the announcements is gone".to_owned(),
                },
                _ => PublishError::Retry { context: context(), cause: e.to_string() },
            })
        };
        batch.iter().map(result).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Takes so many bytes, and then nothing until there is room again.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let some = bytes.len().min(disk.1);
            if some == 0 {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            disk.1 -= some;
            disk.0.extend_from_slice(&bytes[..some]);
            Ok(some)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_is_torn_goes_on_where_it_was_and_is_not_written_twice() {
        let disk = Disk::default();
        let announcer = LineAnnouncer::to(Box::new(disk.clone()));
        let write = |what: &str| announcer.write(&json!(what), &json!({}));
        for room in 0..400 {
            disk.0.lock().unwrap().1 = room;
            while write("first").is_err() {
                disk.0.lock().unwrap().1 = 10;
            }
        }
        let text = String::from_utf8(std::mem::take(&mut disk.0.lock().unwrap().0)).unwrap();
        assert_eq!(text.lines().count(), 400);
        assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{text}");
    }

    #[test]
    fn a_line_that_nobody_goes_on_with_does_not_spoil_the_next() {
        let disk = Disk::default();
        let announcer = LineAnnouncer::to(Box::new(disk.clone()));
        disk.0.lock().unwrap().1 = 20;
        announcer.write(&json!("first"), &json!({})).unwrap_err();
        disk.0.lock().unwrap().1 = 1000;
        announcer.write(&json!("second"), &json!({})).unwrap();
        let text = String::from_utf8(disk.0.lock().unwrap().0.clone()).unwrap();
        let last = text.lines().last().unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(last).unwrap()["detail-type"], "second");
    }
}
