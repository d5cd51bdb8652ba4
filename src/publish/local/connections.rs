//! Who may hold the file, and for how long.
//!
//! SQLite answers on the thread that asks. One thread after the other writes, as SQLite wants it; reads have connections of
//! their own, which a log written ahead (WAL) keeps out of the writer's way. Both happen on threads for blocking work, a
//! bounded number of them, never on the runtime's.
//!
//! Lists are made on threads that give way to detection where there are too few processors for both.
//!
//! Reads stand in one of two lanes ([`Lane`]): whoever lists pages cannot keep the pipeline waiting for one row. A read
//! ends early when nobody waits for it any more (a request whose deadline has passed, a client that has gone), and in
//! any case after `read_timeout`.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::retention::Retention;
use super::{Settings, classify, prepare};
use crate::publish::PublishError;
use crate::wait::positive;

/// Reads that look up rows by key at once; each takes a fraction of a millisecond.
const INNER: usize = 2;

/// Steps of SQLite's machine between two looks at the clock: some tens of microseconds.
const STEPS: i32 = 1000;

/// Pages that a reading connection keeps in memory, KiB.
const CACHE: i32 = 16 * 1024;

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// Rows by key: what the pipeline asks for.
    Inner,
    /// Pages and lists: what people and programs ask for.
    Lists,
}

/// The connections to one database.
#[derive(Debug)]
pub(super) struct Connections {
    writer: Arc<Mutex<Writer>>,
    /// Who writes next; those that wait do not hold a thread.
    turn: Arc<Semaphore>,
    readers: Option<Readers>,
    read_timeout: Duration,
}

#[derive(Debug)]
struct Writer {
    connection: Connection,
    retention: Retention,
    /// Where it can be opened again; `None` in memory.
    path: Option<PathBuf>,
    /// The file that is open, to look at it. It stays open for as long as there are connections: closing any handle of a file
    /// lets go of the locks that SQLite has on it (sqlite.org/howtocorrupt.html, 2.2).
    file: Option<File>,
    /// Whether the last write failed for what is wrong with the file: it is opened anew before the next.
    suspect: bool,
}

/// What every file of SQLite begins with (sqlite.org/fileformat.html).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

impl Writer {
    /// Opens the file again where it can be opened. A connection keeps what it found: one that was opened while the file could
    /// only be read stays like that, and one whose file was damaged may go on with what it remembers of it.
    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        // Who waits for a lock waits with the connection that is open.
        let probe = |path: &Path| {
            let connection = Connection::open(path)?;
            connection.busy_timeout(Duration::ZERO)?;
            connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |_| Ok(()))?;
            Ok::<_, rusqlite::Error>(connection)
        };
        if self.is_in_place(path)
            && let Ok(probed) = probe(path)
            && let Ok(connection) = prepare(probed)
        {
            self.connection = connection;
        }
    }

    /// Whether the file that is open is the one under its name, and a database.
    fn stands(&self) -> std::io::Result<()> {
        let (Some(path), Some(file)) = (&self.path, &self.file) else { return Ok(()) };
        let remedy = "put it back, or start the service again: it goes on from its last checkpoint";
        let gone = |what: &str| std::io::Error::other(format!("{} {what}; {remedy}", path.display()));
        if !self.is_in_place(path) {
            return Err(gone("was removed or replaced"));
        }
        let mut magic = [0; MAGIC.len()];
        match file.read_exact_at(&mut magic, 0) {
            Ok(()) if &magic == MAGIC => Ok(()),
            _ => Err(gone("was written over and is no database any more")),
        }
    }

    fn is_in_place(&self, path: &Path) -> bool {
        let identity = |about: std::fs::Metadata| (about.dev(), about.ino());
        let here = std::fs::metadata(path).map(identity).ok();
        here.is_some() && here == self.file.as_ref().and_then(|file| file.metadata().map(identity).ok())
    }
}

#[derive(Debug)]
struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
    inner: Arc<Semaphore>,
    lists: Arc<Semaphore>,
}

impl Connections {
    /// To a file; the given connection writes.
    pub(super) fn to_file(connection: Connection, settings: &Settings) -> Connections {
        let readers = Readers {
            path: settings.path.clone(),
            idle: Arc::default(),
            inner: Arc::new(Semaphore::new(INNER)),
            lists: Arc::new(Semaphore::new(settings.readers.max(1))),
        };
        let writer = Writer {
            connection,
            retention: Retention::new(settings.retention),
            path: Some(settings.path.clone()),
            file: File::open(&settings.path).ok(),
            suspect: false,
        };
        Connections {
            readers: Some(readers),
            read_timeout: positive(settings.read_timeout),
            ..Connections::around(writer)
        }
    }

    /// To a database that only this connection sees: it reads and writes.
    pub(super) fn to_memory(connection: Connection) -> Connections {
        let retention = Retention::new(jiff::SignedDuration::ZERO);
        Connections::around(Writer { connection, retention, path: None, file: None, suspect: false })
    }

    fn around(writer: Writer) -> Connections {
        Connections {
            writer: Arc::new(Mutex::new(writer)),
            turn: Arc::new(Semaphore::new(1)),
            readers: None,
            read_timeout: Duration::from_secs(10),
        }
    }

    /// Writes when it is our turn, and removes a little of what is too old. What has begun is finished, also when nobody
    /// waits for it any more.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        context: String,
        work: impl FnOnce(&mut Connection, &str) -> Result<T, PublishError> + Send + 'static,
    ) -> Result<T, PublishError> {
        let turn = acquire(&self.turn, &context).await?;
        let writer = self.writer.clone();
        let of = context.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            // Every change is one transaction, which a panic rolls back; the connection is whole.
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            if writer.suspect {
                writer.reopen();
            }
            let Writer { connection, retention, suspect, .. } = &mut *writer;
            let result = work(connection, &of);
            *suspect = matches!(result, Err(PublishError::Retry { .. }));
            if result.is_ok() {
                retention.remove_some(connection);
            }
            result
        });
        done.await.unwrap_or_else(|error| Err(broken_off(context, &error)))
    }

    /// Whether the file that is written to is still the one under its name.
    pub(super) async fn stands(&self, context: String) -> Result<(), PublishError> {
        let turn = acquire(&self.turn, &context).await?;
        let writer = self.writer.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            writer.lock().unwrap_or_else(PoisonError::into_inner).stands()
        });
        match looked.await {
            Ok(looked) => looked.map_err(|error| PublishError::Retry { context, cause: error.to_string() }),
            Err(error) => Err(broken_off(context, &error)),
        }
    }

    /// Reads on a connection of the lane, within the deadline.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        lane: Lane,
        context: String,
        work: impl FnOnce(&Connection, &str) -> Result<T, PublishError> + Send + 'static,
    ) -> Result<T, PublishError> {
        // Dropped with this future: then nobody waits, and the read stops at its next look at the flag.
        let abandoned = Abandoned(Arc::new(AtomicBool::new(false)));
        let (flag, limit) = (abandoned.0.clone(), self.read_timeout);
        let began = Instant::now();
        let over = move || flag.load(Ordering::Relaxed) || began.elapsed() > limit;
        let of = context.clone();
        let reading = match &self.readers {
            None => {
                let turn = acquire(&self.turn, &context).await?;
                let writer = self.writer.clone();
                tokio::task::spawn_blocking(move || {
                    let _turn = turn;
                    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                    watched(&mut writer.connection, over, |connection| work(connection, &of))
                })
            }
            Some(readers) => {
                let places = if lane == Lane::Inner { &readers.inner } else { &readers.lists };
                let Ok(place) = tokio::time::timeout(limit, acquire(places, &context)).await else {
                    let cause = format!("no place to read came free within {} s", limit.as_secs());
                    return Err(PublishError::Retry { context, cause });
                };
                let (place, path, idle) = (place?, readers.path.clone(), readers.idle.clone());
                let read = move || {
                    let _place = place;
                    let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let mut connection = match kept {
                        Some(connection) => connection,
                        None => open_to_read(&path).map_err(|e| classify(of.clone(), e))?,
                    };
                    let result = watched(&mut connection, over, |connection| work(connection, &of));
                    // One that has failed may be of a file that is gone; the next is opened anew.
                    if result.is_ok() {
                        idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                    }
                    result
                };
                if lane == Lane::Lists {
                    return aside(read).await.unwrap_or_else(|error| Err(broken_off(context, &error)));
                }
                tokio::task::spawn_blocking(read)
            }
        };
        reading.await.unwrap_or_else(|error| Err(broken_off(context, &error)))
    }
}

/// How much a list gives way to everything else that wants the processor, as `nice` has it: where there is enough, not at all; where
/// detection takes all of it, a list gets a thirtieth of a core. At 19 it would get a seventieth, and many would run into their deadline.
const NICENESS: i32 = 15;

/// Works on a thread of its own, which gives way to detection. Priority is a thread's, and cannot be taken back, so that it is no thread
/// of the runtime. There are no more of them than places to read.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PublishError> + Send + 'static,
) -> Result<Result<T, PublishError>, std::io::Error> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let body = move || {
        // Where it is refused, the list is as fast as everything else.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        let _ = answer.send(work());
    };
    std::thread::Builder::new().name("list".to_owned()).spawn(body)?;
    answered.await.map_err(std::io::Error::other)
}

/// Sets its flag when it is dropped.
struct Abandoned(Arc<AtomicBool>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, context: &str) -> Result<OwnedSemaphorePermit, PublishError> {
    let closed =
        |e: tokio::sync::AcquireError| PublishError::Retry { context: context.to_owned(), cause: e.to_string() };
    semaphore.clone().acquire_owned().await.map_err(closed)
}

/// Reads for as long as it is not over.
fn watched<T>(
    connection: &mut Connection,
    over: impl FnMut() -> bool + Send + 'static,
    work: impl FnOnce(&Connection) -> Result<T, PublishError>,
) -> Result<T, PublishError> {
    let failed = |e| classify("watch over a read".to_owned(), e);
    connection.progress_handler(STEPS, Some(over)).map_err(failed)?;
    let result = work(connection);
    connection.progress_handler(0, None::<fn() -> bool>).map_err(failed)?;
    result
}

fn open_to_read(path: &std::path::Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.execute_batch(&format!("PRAGMA busy_timeout = 1000; PRAGMA cache_size = -{CACHE};"))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// The thread has panicked, or the runtime ends.
fn broken_off(context: String, error: &impl std::fmt::Display) -> PublishError {
    PublishError::Retry { context, cause: error.to_string() }
}
