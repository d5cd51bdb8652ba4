//! Anomalies on one machine: a store in SQLite, and an announcer that writes NDJSON lines.
//!
//! The store is one file in WAL mode, so that readers (the API, `sqlite3` on the command line) never wait for the writer.
//! Its schema carries a version (`PRAGMA user_version`) and is brought up to date when it is opened, a step at a time in
//! one transaction each. Calls hold the one connection for microseconds; they do not leave the runtime's thread.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::episodes::{Claim, Claimed, Episodes};
use super::rules::{Rule, Rules};
use super::{
    Announcement, Announcer, AnomalyStore, Feedback, Notice, Page, PublishError, Query, Recorded, Silence, Verdict,
};
use crate::anomaly::{Anomaly, Status};
use crate::finding::{Actor, Severity};
use crate::flow::{Address, EventTime};

/// Each step brings the schema from the version of its index to the next.
const MIGRATIONS: [&str; 4] = [
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
];

/// How many anomalies a page holds at most, whatever is asked for.
const PAGE_MAX: usize = 1000;

/// Settings `[publish.sqlite]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The file; it is made when it is not there.
    pub path: PathBuf,
}

/// Anomalies in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Mutex<Connection>,
}

impl SqliteStore {
    /// Opens or creates the file, and brings its schema up to date.
    pub fn open(path: &Path) -> Result<SqliteStore, PublishError> {
        let context = || format!("open {}", path.display());
        SqliteStore::start(Connection::open(path).map_err(|e| fatal(context(), e))?)
    }

    /// A store that ends with the process.
    pub fn in_memory() -> Result<SqliteStore, PublishError> {
        SqliteStore::start(Connection::open_in_memory().map_err(|e| fatal("open a store in memory".to_owned(), e))?)
    }

    fn start(mut connection: Connection) -> Result<SqliteStore, PublishError> {
        let prepared = prepare(&mut connection);
        prepared?;
        Ok(SqliteStore { connection: Mutex::new(connection) })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // Every change is one transaction, which a panic rolls back; the connection is whole.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets the connection up and migrates the schema.
fn prepare(connection: &mut Connection) -> Result<(), PublishError> {
    let context = || "prepare the anomaly store".to_owned();
    connection
        .execute_batch(
            // NORMAL survives a crash of the process; after a loss of power the last moments may be missing, and the
            // input's checkpoint brings them again.
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000;",
        )
        .map_err(|e| classify(context(), e))?;
    let version: u32 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|e| classify(context(), e))?;
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
        migrate(connection).map_err(|e| classify(format!("migrate the anomaly store to version {number}"), e))?;
    }
    Ok(())
}

fn fatal(context: String, cause: impl std::fmt::Display) -> PublishError {
    PublishError::Fatal { context, cause: cause.to_string() }
}

/// A busy or full disk may pass; everything else will not.
fn classify(context: String, cause: rusqlite::Error) -> PublishError {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull, SystemIoFailure};
    match cause.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked | DiskFull | SystemIoFailure) => {
            PublishError::Retry { context, cause: cause.to_string() }
        }
        _ => PublishError::Fatal { context, cause: cause.to_string() },
    }
}

fn body<T: Serialize>(value: &T) -> Result<String, PublishError> {
    serde_json::to_string(value).map_err(|e| fatal("write a record as JSON".to_owned(), e))
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, PublishError> {
    serde_json::from_str(text).map_err(|e| fatal("read a stored record".to_owned(), e))
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

/// What orders the revisions of one anomaly.
fn revision(anomaly: &Anomaly) -> (u32, EventTime, Status) {
    (anomaly.updates, anomaly.last_seen, anomaly.status)
}

#[async_trait]
impl AnomalyStore for SqliteStore {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, PublishError> {
        let context = || format!("claim {}", claim.key);
        let key = claim.key.to_string();
        let mut connection = self.lock();
        let transaction = connection.transaction().map_err(|e| classify(context(), e))?;
        let stored: Option<String> = transaction
            .query_row("SELECT body FROM episodes WHERE key = ?1", [&key], |row| row.get(0))
            .optional()
            .map_err(|e| classify(context(), e))?;
        let before: Episodes = stored.map(|text| parse(&text)).transpose()?.unwrap_or_default();
        let mut after = before.clone();
        let claimed = after.claim(claim);
        if after != before {
            let put = "INSERT INTO episodes (key, body) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET body = ?2";
            transaction.execute(put, params![key, body(&after)?]).map_err(|e| classify(context(), e))?;
        }
        transaction.commit().map_err(|e| classify(context(), e))?;
        Ok(claimed)
    }

    async fn record(&self, anomaly: &Anomaly) -> Result<Recorded, PublishError> {
        let context = || format!("record anomaly {}", anomaly.anomaly_id);
        let mut connection = self.lock();
        let transaction = connection.transaction().map_err(|e| classify(context(), e))?;
        let id = anomaly.anomaly_id.to_string();
        let stored: Option<String> = transaction
            .query_row("SELECT body FROM anomalies WHERE id = ?1", [&id], |row| row.get(0))
            .optional()
            .map_err(|e| classify(context(), e))?;
        let mut anomaly = anomaly.clone();
        let recorded = match stored {
            None => Recorded::New,
            Some(text) => {
                let stored: Anomaly = parse(&text)?;
                if revision(&stored) >= revision(&anomaly) {
                    return Ok(Recorded::Unchanged);
                }
                // An episode was detected once; a task that lost its memory does not detect it again, later.
                anomaly.detection_timestamp = anomaly.detection_timestamp.min(stored.detection_timestamp);
                Recorded::Updated
            }
        };
        write_anomaly(&transaction, &anomaly).map_err(|e| classify(context(), e))?;
        transaction.commit().map_err(|e| classify(context(), e))?;
        Ok(recorded)
    }

    async fn announced(&self, anomaly: &Anomaly) -> Result<(), PublishError> {
        let (updates, last_seen, status) = revision(anomaly);
        self.lock()
            .execute(
                "UPDATE anomalies SET announced = 1
                 WHERE id = ?1 AND updates = ?2 AND last_seen = ?3 AND status = ?4",
                params![anomaly.anomaly_id.to_string(), updates, last_seen.0, status_name(status)],
            )
            .map_err(|e| classify(format!("mark anomaly {} as announced", anomaly.anomaly_id), e))?;
        Ok(())
    }

    async fn unannounced(&self, limit: usize) -> Result<Vec<Anomaly>, PublishError> {
        let sql = "SELECT body FROM anomalies WHERE announced = 0 ORDER BY revision LIMIT ?1";
        self.bodies("list what was not announced", sql, vec![(limit as i64).into()])
    }

    async fn get(&self, id: Uuid) -> Result<Option<Anomaly>, PublishError> {
        let found: Option<String> = self
            .lock()
            .query_row("SELECT body FROM anomalies WHERE id = ?1", [id.to_string()], |row| row.get(0))
            .optional()
            .map_err(|e| classify(format!("get anomaly {id}"), e))?;
        found.map(|text| parse(&text)).transpose()
    }

    async fn query(&self, query: &Query) -> Result<Page, PublishError> {
        let limit = if query.limit == 0 { 100 } else { query.limit.min(PAGE_MAX) };
        let (sql, values) = select(query, limit)?;
        let mut anomalies: Vec<Anomaly> = self.bodies("query anomalies", &sql, values)?;
        let more = anomalies.len() > limit;
        anomalies.truncate(limit);
        let last = anomalies.last().filter(|_| more);
        let next = last.map(|a| format!("{}.{}", a.detection_timestamp.0, a.anomaly_id));
        Ok(Page { anomalies, next })
    }

    async fn silence(&self, silence: &Silence) -> Result<(), PublishError> {
        self.lock()
            .execute(
                "INSERT INTO silences (id, actor, last_seen, body) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET actor = ?2, last_seen = ?3, body = ?4 WHERE last_seen <= ?3",
                params![silence.anomaly_id.to_string(), silence.actor.to_string(), silence.last_seen.0, body(silence)?],
            )
            .map_err(|e| classify(format!("keep the silence about {}", silence.anomaly_id), e))?;
        Ok(())
    }

    async fn silences(&self, address: Option<Address>, limit: usize) -> Result<Vec<Silence>, PublishError> {
        let limit = (limit as i64).into();
        match address {
            Some(address) => self.bodies(
                "list silences",
                "SELECT body FROM silences WHERE actor = ?1 ORDER BY last_seen DESC, id LIMIT ?2",
                vec![address.to_string().into(), limit],
            ),
            None => self.bodies(
                "list silences",
                "SELECT body FROM silences ORDER BY last_seen DESC, id LIMIT ?1",
                vec![limit],
            ),
        }
    }

    async fn feedback(&self, feedback: &Feedback) -> Result<(), PublishError> {
        let verdict = match feedback.verdict {
            Verdict::TruePositive => "true_positive",
            Verdict::FalsePositive => "false_positive",
        };
        self.lock()
            .execute(
                "INSERT INTO feedback (id, by, verdict, note, at) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (id, by) DO UPDATE SET verdict = ?3, note = ?4, at = ?5 WHERE at <= ?5",
                params![feedback.anomaly_id.to_string(), feedback.by, verdict, feedback.note, feedback.at.0],
            )
            .map_err(|e| classify(format!("keep the verdict on {}", feedback.anomaly_id), e))?;
        Ok(())
    }

    async fn feedbacks(&self, since: EventTime) -> Result<Vec<Feedback>, PublishError> {
        let context = || "list verdicts".to_owned();
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached("SELECT id, by, verdict, note, at FROM feedback WHERE at >= ?1 ORDER BY at, id, by")
            .map_err(|e| classify(context(), e))?;
        let rows = statement
            .query_map([since.0], |row| {
                Ok((row.get::<_, String>(0)?, row.get(1)?, row.get::<_, String>(2)?, row.get(3)?, row.get(4)?))
            })
            .map_err(|e| classify(context(), e))?;
        rows.map(|row| {
            let (id, by, verdict, note, at) = row.map_err(|e| classify(context(), e))?;
            let anomaly_id = id.parse().map_err(|e| fatal(context(), e))?;
            let verdict = parse(&json!(verdict).to_string())?;
            Ok(Feedback { anomaly_id, verdict, by, note, at: EventTime(at) })
        })
        .collect()
    }
}

impl SqliteStore {
    /// Rows of one column, a record each.
    fn bodies<T: serde::de::DeserializeOwned>(
        &self,
        context: &str,
        sql: &str,
        values: Vec<rusqlite::types::Value>,
    ) -> Result<Vec<T>, PublishError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql).map_err(|e| classify(context.to_owned(), e))?;
        let rows = statement
            .query_map(params_from_iter(values), |row| row.get::<_, String>(0))
            .map_err(|e| classify(context.to_owned(), e))?;
        rows.map(|row| parse(&row.map_err(|e| classify(context.to_owned(), e))?)).collect()
    }
}

#[async_trait]
impl Rules for SqliteStore {
    async fn put_rule(&self, rule: &Rule) -> Result<(), PublishError> {
        let put = "INSERT INTO rules (name, body) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET body = ?2";
        let done = self.lock().execute(put, params![rule.name, rule.body]);
        done.map(drop).map_err(|e| classify(format!("keep rule {}", rule.name), e))
    }

    async fn remove_rule(&self, name: &str) -> Result<bool, PublishError> {
        let gone = self.lock().execute("DELETE FROM rules WHERE name = ?1", [name]);
        gone.map(|rows| rows > 0).map_err(|e| classify(format!("forget rule {name}"), e))
    }

    async fn rules(&self) -> Result<Vec<Rule>, PublishError> {
        let failed = |e| classify("list the rules".to_owned(), e);
        let connection = self.lock();
        let mut statement = connection.prepare_cached("SELECT name, body FROM rules ORDER BY name").map_err(failed)?;
        let rows = statement.query_map([], |row| Ok(Rule { name: row.get(0)?, body: row.get(1)? })).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }
}

/// Puts an anomaly and its addresses; a revision is announced anew.
fn write_anomaly(connection: &Connection, anomaly: &Anomaly) -> Result<(), rusqlite::Error> {
    let id = anomaly.anomaly_id.to_string();
    let text = serde_json::to_string(anomaly).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    connection.execute(
        "INSERT INTO anomalies
             (id, detected, threat, severity, status, actor, first_seen, last_seen, updates, announced, revision, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, (SELECT IFNULL(MAX(revision), 0) + 1 FROM anomalies), ?10)
         ON CONFLICT (id) DO UPDATE SET
             detected = ?2, severity = ?4, status = ?5, actor = ?6, first_seen = ?7, last_seen = ?8, updates = ?9, announced = 0,
             revision = (SELECT IFNULL(MAX(revision), 0) + 1 FROM anomalies), body = ?10",
        params![
            id,
            anomaly.detection_timestamp.0,
            anomaly.threat.name(),
            rank(anomaly.severity),
            status_name(anomaly.status),
            anomaly.actor.to_string(),
            anomaly.first_seen.0,
            anomaly.last_seen.0,
            anomaly.updates,
            text,
        ],
    )?;
    let actor = match anomaly.actor {
        Actor::One(address) => Some(address),
        Actor::Many => None,
    };
    for address in actor.into_iter().chain(anomaly.targets.iter().map(|target| target.address)) {
        connection.execute("INSERT OR IGNORE INTO addresses VALUES (?1, ?2)", params![address.to_string(), id])?;
    }
    Ok(())
}

/// The statement of a query, one row longer than the page so that its end is known.
fn select(query: &Query, limit: usize) -> Result<(String, Vec<rusqlite::types::Value>), PublishError> {
    let mut wheres: Vec<&str> = Vec::new();
    let mut values: Vec<rusqlite::types::Value> = Vec::new();
    let mut also = |condition, value| {
        wheres.push(condition);
        values.push(value);
    };
    if let Some(threat) = query.threat {
        also("threat = ?", threat.name().to_owned().into());
    }
    if let Some(severity) = query.min_severity {
        also("severity >= ?", rank(severity).into());
    }
    if let Some(status) = query.status {
        also("status = ?", status_name(status).to_owned().into());
    }
    if let Some(actor) = query.actor {
        also("actor = ?", actor.to_string().into());
    }
    if let Some(address) = query.address {
        also("id IN (SELECT id FROM addresses WHERE address = ?)", address.to_string().into());
    }
    if let Some(since) = query.since {
        also("last_seen >= ?", i64::from(since.0).into());
    }
    if let Some(until) = query.until {
        also("first_seen < ?", i64::from(until.0).into());
    }
    if let Some(cursor) = &query.cursor {
        let parts =
            cursor.split_once('.').and_then(|(at, id)| Some((at.parse::<u32>().ok()?, id.parse::<Uuid>().ok()?)));
        let Some((at, id)) = parts else {
            return Err(fatal(super::BAD_CURSOR.to_owned(), format!("`{cursor}` is not one of ours")));
        };
        // The same moment and a later id, or an earlier moment; a row value would need both columns to sort alike.
        wheres.push("(detected < ? OR (detected = ? AND id > ?))");
        values.extend([i64::from(at).into(), i64::from(at).into(), id.to_string().into()]);
    }
    let condition = if wheres.is_empty() { String::new() } else { format!(" WHERE {}", wheres.join(" AND ")) };
    values.push((limit as i64 + 1).into());
    Ok((format!("SELECT body FROM anomalies{condition} ORDER BY detected DESC, id LIMIT ?"), values))
}

/// Announces as NDJSON lines: `{"detail-type": "Anomaly Detected", "detail": {…}}`, as EventBridge would carry them.
pub struct LineAnnouncer {
    out: Mutex<Box<dyn Write + Send>>,
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
        LineAnnouncer { out: Mutex::new(out) }
    }

    fn write(&self, detail_type: &serde_json::Value, detail: &serde_json::Value) -> std::io::Result<()> {
        let line = json!({ "source": "anomaly-detection-service", "detail-type": detail_type, "detail": detail });
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(out, "{line}")?;
        out.flush()
    }
}

#[async_trait]
impl Announcer for LineAnnouncer {
    async fn notify(&self, notice: &Notice) -> Result<(), PublishError> {
        self.write(&json!(notice.detail_type), &notice.detail).map_err(|e| PublishError::Retry {
            context: format!("announce `{}`", notice.detail_type),
            cause: e.to_string(),
        })
    }

    async fn announce(&self, batch: &[(Announcement, Anomaly)]) -> Vec<Result<(), PublishError>> {
        let result = |(announcement, anomaly): &(Announcement, Anomaly)| {
            let context = || format!("announce anomaly {}", anomaly.anomaly_id);
            self.write(&json!(announcement), &json!(anomaly)).map_err(|e| match e.kind() {
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
