//! Versions in a SQLite file, beside the anomalies.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rusqlite::{Connection, params};

use super::{Registry, RegistryError, State, Version, newest_first};
use crate::flow::EventTime;

/// Versions in one table of one file.
#[derive(Debug)]
pub struct SqliteRegistry {
    connection: Mutex<Connection>,
}

fn failed(context: &str, cause: impl std::fmt::Display) -> RegistryError {
    RegistryError::Backend { context: context.to_owned(), cause: cause.to_string() }
}

impl SqliteRegistry {
    /// Opens or creates the file and its table. The anomaly store's own tables in it are not touched.
    pub fn open(path: &Path) -> Result<SqliteRegistry, RegistryError> {
        let context = format!("open {}", path.display());
        SqliteRegistry::start(Connection::open(path).map_err(|e| failed(&context, e))?)
    }

    /// A registry that ends with the process.
    pub fn in_memory() -> Result<SqliteRegistry, RegistryError> {
        SqliteRegistry::start(Connection::open_in_memory().map_err(|e| failed("open a registry in memory", e))?)
    }

    fn start(connection: Connection) -> Result<SqliteRegistry, RegistryError> {
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000;
                 CREATE TABLE IF NOT EXISTS model_configuration (version TEXT PRIMARY KEY, state TEXT NOT NULL, body TEXT NOT NULL);",
            )
            .map_err(|e| failed("prepare the model registry", e))?;
        Ok(SqliteRegistry { connection: Mutex::new(connection) })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // Every change is one transaction, which a panic rolls back; the connection is whole.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(connection: &Connection, version: &Version) -> Result<(), RegistryError> {
    let body = serde_json::to_string(version).map_err(|e| failed("write a model version as JSON", e))?;
    connection
        .execute(
            "INSERT INTO model_configuration (version, state, body) VALUES (?1, ?2, ?3)
             ON CONFLICT (version) DO UPDATE SET state = ?2, body = ?3",
            params![version.version, version.state.name(), body],
        )
        .map(|_| ())
        .map_err(|e| failed("keep a model version", e))
}

fn all(connection: &Connection) -> Result<Vec<Version>, RegistryError> {
    let context = "list model versions";
    let mut statement = connection.prepare("SELECT body FROM model_configuration").map_err(|e| failed(context, e))?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).map_err(|e| failed(context, e))?;
    rows.map(|row| {
        let body = row.map_err(|e| failed(context, e))?;
        serde_json::from_str(&body).map_err(|e| failed(context, e))
    })
    .collect()
}

#[async_trait]
impl Registry for SqliteRegistry {
    async fn put(&self, version: &Version) -> Result<(), RegistryError> {
        write(&self.lock(), version)
    }

    async fn list(&self) -> Result<Vec<Version>, RegistryError> {
        Ok(newest_first(all(&self.lock())?))
    }

    async fn set(&self, version: &str, state: State, now: EventTime) -> Result<(), RegistryError> {
        let context = "change the state of a model";
        let mut connection = self.lock();
        let transaction = connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(|e| failed(context, e))?;
        let versions = all(&transaction)?;
        if !versions.iter().any(|known| known.version == version) {
            return Err(RegistryError::Unknown(version.to_owned()));
        }
        for mut known in versions {
            let gives_way = state == State::Primary && known.state == State::Primary;
            known.state = match known.version == version {
                true => state,
                false if gives_way => State::Retired,
                false => continue,
            };
            known.changed = now;
            write(&transaction, &known)?;
        }
        transaction.commit().map_err(|e| failed(context, e))
    }
}
