//! Each backend refuses in each way while traffic comes in: nothing may be lost, nothing told twice, the service must say that it is
//! degraded for as long as that lasts, no checkpoint may pass what is not delivered, and it must go on by itself afterwards.
//!
//! `FLOWVIGIL_FAULTS=all tests/run faults` runs every backend with every error; `FLOWVIGIL_FAULTS=sqlite,dynamodb` those whose names
//! begin so; without it a slice is run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use aws_config::SdkConfig;
use flowvigil::anomaly::{Anomaly, Status};
use flowvigil::publish::dynamodb::{self, DynamoStore};
use flowvigil::publish::local::SqliteStore;
use flowvigil::publish::{AnomalyStore, Query};
use jiff::SignedDuration;
use serde_json::Value;

use super::Proxy;
use crate::servers::{aws, unique};
use crate::service::soon;

/// How long what must not happen is waited for.
const A_WHILE: Duration = Duration::from_millis(1500);

/// Bytes of a page of the store's file.
const PAGE: u64 = 4096;

/// What is wrong, and with what.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// The file's header says that newer programs alone may write to it: it can be read, also by root.
    ReadOnly,
    /// All pages but the first are overwritten before the service begins.
    DamagedPages,
    /// The first bytes are overwritten while it runs.
    DamagedHeader,
    /// The file has another name for a while.
    MovedAway,
    /// Another program has locked it.
    Locked,
    /// No file may grow any more.
    DiskFull,
    /// A table has another name for a while.
    TableMissing,
    /// A service of AWS answers everything with an HTTP status and an error.
    Dynamo(u16, &'static str),
    Bus(u16, &'static str),
    /// The bus refuses; the dead-letter queue takes what it does not.
    BusBeforeQueue(u16, &'static str),
    /// Both refuse.
    BusAndQueue(u16, &'static str),
    /// Redis asks for a password that nobody has told us.
    RedisPassword,
    /// Redis lets nobody write.
    RedisReadOnly,
}

/// Every backend with every error; what says `true` is the slice for every change.
const MATRIX: [(&str, Wrong, bool); 33] = [
    ("sqlite-read-only", Wrong::ReadOnly, true),
    ("sqlite-damaged-pages", Wrong::DamagedPages, true),
    ("sqlite-damaged-header", Wrong::DamagedHeader, false),
    ("sqlite-moved-away", Wrong::MovedAway, true),
    ("sqlite-locked", Wrong::Locked, false),
    ("sqlite-disk-full", Wrong::DiskFull, false),
    ("sqlite-table-missing", Wrong::TableMissing, false),
    ("dynamodb-access-denied", Wrong::Dynamo(400, "AccessDeniedException"), true),
    ("dynamodb-unknown-client", Wrong::Dynamo(400, "UnrecognizedClientException"), false),
    ("dynamodb-expired", Wrong::Dynamo(400, "ExpiredTokenException"), false),
    ("dynamodb-signature", Wrong::Dynamo(400, "InvalidSignatureException"), false),
    ("dynamodb-no-table", Wrong::Dynamo(400, "ResourceNotFoundException"), true),
    ("dynamodb-throttled", Wrong::Dynamo(400, "ProvisionedThroughputExceededException"), false),
    ("dynamodb-limit", Wrong::Dynamo(400, "RequestLimitExceeded"), false),
    ("dynamodb-validation", Wrong::Dynamo(400, "ValidationException"), false),
    ("dynamodb-internal", Wrong::Dynamo(500, "InternalServerError"), false),
    ("dynamodb-unheard-of", Wrong::Dynamo(400, "TeapotException"), false),
    ("dynamodb-no-json", Wrong::Dynamo(502, ""), false),
    ("eventbridge-access-denied", Wrong::Bus(400, "AccessDeniedException"), true),
    ("eventbridge-unknown-client", Wrong::Bus(400, "UnrecognizedClientException"), false),
    ("eventbridge-expired", Wrong::Bus(400, "ExpiredTokenException"), false),
    ("eventbridge-no-bus", Wrong::Bus(400, "ResourceNotFoundException"), false),
    ("eventbridge-throttled", Wrong::Bus(400, "ThrottlingException"), false),
    ("eventbridge-internal", Wrong::Bus(500, "InternalException"), false),
    ("eventbridge-validation", Wrong::Bus(400, "ValidationException"), false),
    ("queue-takes-access-denied", Wrong::BusBeforeQueue(400, "AccessDeniedException"), true),
    ("queue-takes-internal", Wrong::BusBeforeQueue(500, "InternalFailure"), false),
    ("queue-access-denied", Wrong::BusAndQueue(403, "AccessDenied"), false),
    ("queue-missing", Wrong::BusAndQueue(400, "AWS.SimpleQueueService.NonExistentQueue"), false),
    ("queue-expired", Wrong::BusAndQueue(403, "ExpiredToken"), false),
    ("queue-kms", Wrong::BusAndQueue(400, "KmsAccessDenied"), false),
    ("redis-password", Wrong::RedisPassword, false),
    ("redis-read-only", Wrong::RedisReadOnly, false),
];

impl Wrong {
    fn has_aws(self) -> bool {
        !matches!(
            self,
            Wrong::ReadOnly
                | Wrong::DamagedPages
                | Wrong::DamagedHeader
                | Wrong::MovedAway
                | Wrong::Locked
                | Wrong::DiskFull
                | Wrong::TableMissing
                | Wrong::RedisPassword
                | Wrong::RedisReadOnly
        )
    }

    fn has_redis(self) -> bool {
        matches!(self, Wrong::RedisPassword | Wrong::RedisReadOnly)
    }

    /// The part of which health says that it is away.
    fn part(self) -> &'static str {
        match self {
            Wrong::BusBeforeQueue(..) => "announcer",
            Wrong::RedisPassword | Wrong::RedisReadOnly => "correlation",
            _ => "publish",
        }
    }

    /// Whether checkpoints go on meanwhile: the queue has what the bus does not.
    fn stands_in(self) -> bool {
        matches!(self, Wrong::BusBeforeQueue(..))
    }
}

/// Simulated attacks, and behind them lines late enough to close every window and every episode.
pub fn traffic(folder: &Path) -> String {
    let file = folder.join("simulated.log");
    let made = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(["simulate", "--duration", "1h", "--hosts", "12", "--demand", "0.1", "--seed", "11", "--no-header"])
        .args(["--threats", "port_scan,c2_beacon,tor", "--out"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut text = std::fs::read_to_string(&file).unwrap();
    let last: u64 = text.lines().filter_map(|line| line.split(' ').nth(11)?.parse().ok()).max().unwrap();
    let (start, end) = (last + 172_800, last + 172_830);
    for number in 0..64 {
        text.push_str(&format!(
            "2 123456789012 eni-{number:017x} 10.0.0.9 10.0.0.8 40000 443 6 10 5000 {start} {end} ACCEPT OK\n"
        ));
    }
    text
}

/// A service that follows a file, and what it says.
pub struct Life {
    child: Child,
    announced: Arc<Mutex<Vec<String>>>,
    log: Arc<Mutex<Vec<String>>>,
    /// Those that read the two.
    readers: Vec<JoinHandle<()>>,
    address: String,
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keep(stream: impl Read + Send + 'static) -> (Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let kept: Arc<Mutex<Vec<String>>> = Arc::default();
    let into = kept.clone();
    let reader = std::thread::spawn(move || {
        BufReader::new(stream).lines().map_while(Result::ok).for_each(|line| into.lock().unwrap().push(line));
    });
    (kept, reader)
}

impl Life {
    /// Starts on the state in a folder, and follows a file there; `prefix` is what the shell does first.
    pub fn start(state: &Path, environment: &BTreeMap<String, String>, prefix: &str) -> Life {
        std::fs::OpenOptions::new().append(true).create(true).open(state.join("flow.log")).unwrap();
        Life::following(&state.join("flow.log"), state, environment, prefix)
    }

    /// The same, and follows a file or folder elsewhere.
    pub fn following(input: &Path, state: &Path, environment: &BTreeMap<String, String>, prefix: &str) -> Life {
        let path = |name: &str| state.join(name).display().to_string();
        let mut child = Command::new("sh")
            .args(["-c", &format!("{prefix} exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_flowvigil"), "run"])
            .arg(input)
            .env("FLOWVIGIL__API__LISTEN", "127.0.0.1:0")
            // The logs of the tests are of days long past.
            .env("FLOWVIGIL__PIPELINE__CLOCK_GAP_MAX", "0s")
            .env("FLOWVIGIL__PUBLISH__SQLITE__PATH", path("anomalies.db"))
            .env("FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER", path("snapshots"))
            .env("FLOWVIGIL__INGEST__LOCAL__CHECKPOINT", path("checkpoints"))
            .env("FLOWVIGIL__INGEST__LOCAL__POLL_INTERVAL", "50ms")
            .env("FLOWVIGIL__INGEST__CHUNK_BYTES", "65536")
            .env("FLOWVIGIL__PIPELINE__SNAPSHOT_INTERVAL", "100ms")
            .env("FLOWVIGIL__PIPELINE__RETRY_MOST", "1s")
            .env("FLOWVIGIL__TELEMETRY__LOG_FORMAT", "json")
            .envs(environment)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (announced, hears) = keep(child.stdout.take().unwrap());
        let (log, reads) = keep(child.stderr.take().unwrap());
        let mut life = Life { child, announced, log, readers: vec![hears, reads], address: String::new() };
        let mut address = None;
        let listens = || {
            let log = life.log.lock().unwrap();
            let line = log.iter().find(|line| line.contains("the API listens"));
            address =
                line.and_then(|line| serde_json::from_str::<Value>(line).ok()?["address"].as_str().map(str::to_owned));
            address.is_some()
        };
        assert!(soon(listens), "it does not begin:\n{}", life.said());
        life.address = address.unwrap();
        life
    }

    pub fn said(&self) -> String {
        let log = self.log.lock().unwrap();
        log[log.len().saturating_sub(40)..].join("\n")
    }

    /// The reasons for which it says that it is degraded, by part.
    pub fn degraded(&self) -> BTreeMap<String, String> {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let Ok(mut answer) = agent.get(format!("http://{}/health/ready", self.address)).call() else {
            return BTreeMap::new();
        };
        let ready: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap_or_default();
        let parts = ready["degraded"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        parts.iter().map(|part| (text(&part["part"]), text(&part["reason"]))).collect()
    }

    /// How many records it has read in this life.
    pub fn records(&self) -> u64 {
        let Ok(mut answer) = ureq::get(format!("http://{}/v1/status", self.address)).call() else { return 0 };
        let status: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap_or_default();
        status["shards"].as_object().into_iter().flatten().filter_map(|(_, shard)| shard["records"].as_u64()).sum()
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(done.success());
    }

    /// Waits for its end, and until all that it said is read; its exit code, `None` when it was killed.
    pub fn code(&mut self) -> Option<i32> {
        assert!(soon(|| self.child.try_wait().unwrap().is_some()), "it does not end:\n{}", self.said());
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        self.child.wait().unwrap().code()
    }

    /// How often each anomaly was announced as detected on standard output.
    pub fn detected(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        let lines = self.announced.lock().unwrap();
        for (at, line) in lines.iter().enumerate() {
            let line: Value = match serde_json::from_str(line) {
                Ok(line) => line,
                // A kill cuts off what is being written.
                Err(_) if at + 1 == lines.len() => continue,
                Err(error) => panic!("{error}: {line}"),
            };
            if line["detail-type"] == "Anomaly Detected" {
                *counts.entry(line["detail"]["anomaly_id"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        counts
    }
}

/// A Redis server that ends with the test.
struct Redis {
    child: Child,
    port: u16,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    fn start() -> Redis {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        assert!(soon(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()));
        Redis { child, port }
    }

    fn ask(&self, password: &str, words: &[&str]) {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string(), "--no-auth-warning"]);
        if !password.is_empty() {
            command.args(["-a", password]);
        }
        let done = command.args(words).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
}

/// Where one run keeps its things.
struct World {
    wrong: Wrong,
    folder: tempfile::TempDir,
    name: String,
    aws: Option<SdkConfig>,
    dynamodb: Option<Proxy>,
    bus: Option<Proxy>,
    queue: Option<Proxy>,
    redis: Option<Redis>,
    environment: BTreeMap<String, String>,
    /// What the file was like, and who locks it.
    before: Vec<u8>,
    lock: Option<rusqlite::Connection>,
}

impl World {
    async fn new(wrong: Wrong, aws: Option<&SdkConfig>) -> World {
        let folder = tempfile::tempdir().unwrap();
        let mut world = World {
            wrong,
            name: unique("faults"),
            aws: aws.cloned(),
            dynamodb: None,
            bus: None,
            queue: None,
            redis: None,
            environment: BTreeMap::new(),
            before: Vec::new(),
            lock: None,
            folder,
        };
        let upstream = std::env::var("AWS_ENDPOINT_URL").unwrap_or_default();
        let name = world.name.clone();
        match wrong {
            Wrong::Dynamo(..) => {
                world.set("FLOWVIGIL__PUBLISH__DYNAMODB__TABLE", &name);
                world.set("FLOWVIGIL__PUBLISH__DYNAMODB__MODELS_TABLE", &format!("{name}-models"));
                world.set("FLOWVIGIL__PUBLISH__DYNAMODB__TIMEOUT", "2s");
                let made = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
                    .args(["migrate", "--apply"])
                    .envs(&world.environment)
                    .output()
                    .unwrap();
                assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
                let proxy = Proxy::before(&upstream, 1).await;
                world.set("AWS_ENDPOINT_URL_DYNAMODB", &proxy.url);
                world.dynamodb = Some(proxy);
            }
            Wrong::Bus(..) | Wrong::BusBeforeQueue(..) | Wrong::BusAndQueue(..) => {
                let aws = aws.unwrap();
                aws_sdk_eventbridge::Client::new(aws).create_event_bus().name(&name).send().await.unwrap();
                let proxy = Proxy::before(&upstream, 1).await;
                world.set("FLOWVIGIL__PUBLISH__EVENTBRIDGE__BUS", &name);
                world.set("FLOWVIGIL__PUBLISH__EVENTBRIDGE__BACKOFF", "10ms");
                world.set("AWS_ENDPOINT_URL_EVENTBRIDGE", &proxy.url);
                world.bus = Some(proxy);
                if !matches!(wrong, Wrong::Bus(..)) {
                    let made = aws_sdk_sqs::Client::new(aws).create_queue().queue_name(&name).send().await.unwrap();
                    let proxy = Proxy::before(&upstream, 1).await;
                    let at = made.queue_url().unwrap().replacen(upstream.trim_end_matches('/'), &proxy.url, 1);
                    world.set("FLOWVIGIL__PUBLISH__DEAD_LETTER__QUEUE_URL", &at);
                    world.set("FLOWVIGIL__PUBLISH__DEAD_LETTER__SWEEP_EVERY", "500ms");
                    world.set("FLOWVIGIL__PUBLISH__DEAD_LETTER__HIDDEN", "2s");
                    world.set("AWS_ENDPOINT_URL_SQS", &proxy.url);
                    world.queue = Some(proxy);
                }
            }
            Wrong::RedisPassword | Wrong::RedisReadOnly => {
                let redis = Redis::start();
                world.set("FLOWVIGIL__CORRELATION__REDIS__URL", &format!("redis://127.0.0.1:{}", redis.port));
                world.set("FLOWVIGIL__CORRELATION__REDIS__TIMEOUT", "2s");
                world.redis = Some(redis);
            }
            // With the schema in it, and closed, so that there is no log written ahead.
            _ => drop(SqliteStore::open(&world.database()).unwrap()),
        }
        world
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    fn state(&self) -> &Path {
        self.folder.path()
    }

    fn database(&self) -> PathBuf {
        self.state().join("anomalies.db")
    }

    fn overwrite(&self, at: u64, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new().write(true).open(self.database()).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    /// The pages that hold the schema, from 0.
    fn schema(&self) -> BTreeSet<u64> {
        let connection = rusqlite::Connection::open(self.database()).unwrap();
        let mut pages = connection.prepare("SELECT pageno - 1 FROM dbstat WHERE name = 'sqlite_schema'").unwrap();
        let pages: BTreeSet<u64> =
            pages.query_map([], |row| row.get::<_, u32>(0)).unwrap().map(|page| page.unwrap().into()).collect();
        assert!(pages.contains(&0) && (pages.len() as u64) < self.before.len() as u64 / PAGE / 2, "{pages:?}");
        pages
    }

    /// Starts the service with the fault, or just before it.
    fn begin(&mut self) -> Life {
        self.before = std::fs::read(self.database()).unwrap_or_default();
        let mut prefix = "";
        match self.wrong {
            // Byte 18 is the version that is needed to write (sqlite.org/fileformat.html, 1.3).
            Wrong::ReadOnly => self.overwrite(18, &[3]),
            Wrong::DamagedPages => {
                // The service begins with a file whose schema can be read; another it refuses.
                let schema = self.schema();
                for page in (0..self.before.len() as u64 / PAGE).filter(|page| !schema.contains(page)) {
                    self.overwrite(page * PAGE, &[0xa5; PAGE as usize]);
                }
            }
            // 64 blocks of 512 bytes are what SQLite shares between processes; the log written ahead soon needs more. The signal
            // that says so is ignored, so that the write fails.
            Wrong::DiskFull => prefix = "trap '' XFSZ; ulimit -S -f 64;",
            _ => {}
        }
        let life = Life::start(self.folder.path(), &self.environment, prefix);
        match self.wrong {
            Wrong::DamagedHeader => self.overwrite(0, b"not a database  "),
            Wrong::MovedAway => std::fs::rename(self.database(), self.state().join("away")).unwrap(),
            Wrong::Locked => {
                let other = rusqlite::Connection::open(self.database()).unwrap();
                other.execute_batch("BEGIN IMMEDIATE").unwrap();
                self.lock = Some(other);
            }
            Wrong::TableMissing => self.sql("ALTER TABLE anomalies RENAME TO away"),
            Wrong::Dynamo(status, code) => self.dynamodb.as_ref().unwrap().refuse(Some((status, code))),
            Wrong::Bus(status, code) | Wrong::BusBeforeQueue(status, code) => {
                self.bus.as_ref().unwrap().refuse(Some((status, code)));
            }
            Wrong::BusAndQueue(status, code) => {
                self.bus.as_ref().unwrap().refuse(Some((400, "AccessDeniedException")));
                self.queue.as_ref().unwrap().refuse(Some((status, code)));
            }
            Wrong::RedisPassword => {
                let redis = self.redis.as_ref().unwrap();
                redis.ask("", &["CONFIG", "SET", "requirepass", "secret"]);
                redis.ask("secret", &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            }
            Wrong::RedisReadOnly => self.redis.as_ref().unwrap().ask("", &["REPLICAOF", "127.0.0.1", "1"]),
            Wrong::ReadOnly | Wrong::DamagedPages | Wrong::DiskFull => {}
        }
        life
    }

    /// Mends it, as a person would, while the service runs.
    fn mend(&mut self, life: Option<&Life>) {
        match self.wrong {
            Wrong::ReadOnly => self.overwrite(18, &self.before[18..19]),
            // The first page is as it was, or newer.
            Wrong::DamagedPages => self.overwrite(PAGE, &self.before[PAGE as usize..]),
            Wrong::DamagedHeader => self.overwrite(0, &self.before[..16]),
            Wrong::MovedAway => std::fs::rename(self.state().join("away"), self.database()).unwrap(),
            Wrong::Locked => self.lock = None,
            Wrong::DiskFull => {
                if let Some(life) = life {
                    let pid = life.child.id().to_string();
                    let done = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status().unwrap();
                    assert!(done.success());
                }
            }
            Wrong::TableMissing => self.sql("ALTER TABLE away RENAME TO anomalies"),
            Wrong::RedisPassword => {
                self.redis.as_ref().unwrap().ask("secret", &["CONFIG", "SET", "requirepass", ""]);
            }
            Wrong::RedisReadOnly => self.redis.as_ref().unwrap().ask("", &["REPLICAOF", "NO", "ONE"]),
            Wrong::Dynamo(..) | Wrong::Bus(..) | Wrong::BusBeforeQueue(..) | Wrong::BusAndQueue(..) => {
                [&self.dynamodb, &self.bus, &self.queue].into_iter().flatten().for_each(|proxy| proxy.refuse(None));
            }
        }
    }

    fn sql(&self, text: &str) {
        let other = rusqlite::Connection::open(self.database()).unwrap();
        other.busy_timeout(Duration::from_secs(10)).unwrap();
        other.execute_batch(text).unwrap();
    }

    fn feed(&self, text: &str) {
        let mut file = std::fs::OpenOptions::new().append(true).open(self.state().join("flow.log")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    async fn recorded(&self) -> BTreeMap<String, Anomaly> {
        let query = Query { limit: 1000, ..Query::default() };
        let page = match (&self.dynamodb, &self.aws) {
            (Some(_), Some(aws)) => {
                let settings = dynamodb::Settings {
                    table: self.name.clone(),
                    models_table: format!("{}-models", self.name),
                    retention: SignedDuration::from_hours(1),
                    timeout: SignedDuration::from_secs(5),
                };
                DynamoStore::new(aws, &settings).query(&query).await.unwrap()
            }
            _ => SqliteStore::open(&self.database()).unwrap().query(&query).await.unwrap(),
        };
        page.anomalies.into_iter().map(|anomaly| (anomaly.anomaly_id.to_string(), anomaly)).collect()
    }

    /// How often each was announced as detected, in all lives.
    fn detected(&self, lives: &[&Life]) -> BTreeMap<String, u32> {
        if let Some(bus) = &self.bus {
            return bus.detected();
        }
        let mut counts = BTreeMap::new();
        for (id, count) in lives.iter().flat_map(|life| life.detected()) {
            *counts.entry(id).or_default() += count;
        }
        counts
    }

    /// All that says how far it is.
    fn checkpoints(&self) -> Vec<u8> {
        let Ok(files) = std::fs::read_dir(self.state().join("checkpoints")) else { return Vec::new() };
        let mut kept: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        kept.retain(|path| path.extension().is_some_and(|ending| ending == "checkpoint"));
        kept.sort();
        kept.iter().flat_map(|path| std::fs::read(path).unwrap()).collect()
    }

    /// Waits until all that is wanted is recorded, closed, and announced.
    async fn all_told(&self, wanted: &BTreeMap<String, String>, lives: &[&Life]) {
        let mut last = BTreeMap::new();
        for _ in 0..600 {
            last = about(&self.recorded().await);
            let told = self.detected(lives);
            if last == *wanted && told.len() == wanted.len() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let lost: Vec<_> = wanted.iter().filter(|(id, _)| !last.contains_key(*id)).collect();
        let other: Vec<_> = last.iter().filter(|(id, text)| wanted.get(*id) != Some(*text)).collect();
        panic!("{:?}: lost {lost:#?}, other {other:#?}\n{}", self.wrong, lives.last().unwrap().said());
    }
}

/// What each anomaly is about at the end.
fn about(anomalies: &BTreeMap<String, Anomaly>) -> BTreeMap<String, String> {
    let about = |a: &Anomaly| {
        let closed = if a.status == Status::Closed { "closed" } else { "open" };
        format!("{} by {} from {} to {}, {closed}: {}", a.threat, a.actor, a.first_seen, a.last_seen, a.summary)
    };
    anomalies.iter().map(|(id, anomaly)| (id.clone(), about(anomaly))).collect()
}

/// What a run to which nothing happens records.
async fn undisturbed(text: &str) -> BTreeMap<String, String> {
    // Locked by nobody: the fault never begins.
    let world = World::new(Wrong::Locked, None).await;
    let mut life = Life::start(world.state(), &world.environment, "");
    world.feed(text);
    for _ in 0..600 {
        let found = world.recorded().await;
        if found.len() >= 3 && found.values().all(|anomaly| anomaly.status == Status::Closed) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    life.signal("TERM");
    assert_eq!(life.code(), Some(0), "{}", life.said());
    let found = about(&world.recorded().await);
    assert!(found.len() >= 3 && found.values().all(|text| text.contains("closed")), "{found:#?}\n{}", life.said());
    found
}

fn wanted(name: &str, in_slice: bool) -> bool {
    match std::env::var("FLOWVIGIL_FAULTS") {
        Err(_) => in_slice,
        Ok(all) if all == "all" => true,
        Ok(some) => some.split(',').any(|beginning| name.starts_with(beginning)),
    }
}

#[test]
fn a_store_whose_schema_cannot_be_read_is_refused_by_name_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (database, input) = (folder.path().join("anomalies.db"), folder.path().join("flow.log"));
    drop(SqliteStore::open(&database).unwrap());
    let mut damaged = std::fs::read(&database).unwrap();
    damaged[PAGE as usize..].fill(0xa5);
    std::fs::write(&database, &damaged).unwrap();
    std::fs::write(&input, "").unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(["run", "--once"])
        .arg(&input)
        .current_dir(folder.path())
        .env("FLOWVIGIL__API__LISTEN", "127.0.0.1:0")
        .env("FLOWVIGIL__PUBLISH__SQLITE__PATH", &database)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_ne!(refused.status.code(), Some(0), "{said}");
    assert!(said.contains(&database.display().to_string()) && said.contains("malformed"), "{said}");
    assert!(said.contains("put a copy of the file back"), "{said}");
    assert_eq!(std::fs::read(&database).unwrap(), damaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_backend_refuses_is_held_and_told_once_it_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = traffic(folder.path());
    let expected = undisturbed(&text).await;
    let aws = aws().await;
    for (name, wrong, _) in MATRIX.into_iter().filter(|(name, _, in_slice)| wanted(name, *in_slice)) {
        if wrong.has_aws() && aws.is_none() {
            println!("skipped: {name}");
            continue;
        }
        if wrong.has_redis() && Command::new("redis-server").arg("--version").output().is_err() {
            println!("skipped: {name}: there is no redis-server");
            continue;
        }
        let began = std::time::Instant::now();
        let mut world = World::new(wrong, aws.as_ref()).await;
        let mut life = world.begin();
        world.feed(&text);
        let part = wrong.part();
        let seen = soon(|| life.degraded().contains_key(part));
        assert!(seen, "{name}: `{part}` is not degraded: {:?}\n{}", life.degraded(), life.said());
        let reason = life.degraded().remove(part).unwrap_or_default();
        // What was delivered before may still be on its way there.
        tokio::time::sleep(A_WHILE).await;
        let at = world.checkpoints();
        tokio::time::sleep(A_WHILE).await;
        if !wrong.stands_in() {
            assert_eq!(at, world.checkpoints(), "{name}: a checkpoint passes what is not delivered");
        }
        assert!(life.degraded().contains_key(part), "{name}: it lasts, and is not seen any more\n{}", life.said());
        world.mend(Some(&life));
        world.all_told(&expected, &[&life]).await;
        assert!(soon(|| !life.degraded().contains_key(part)), "{name}: {:?}", life.degraded());
        life.signal("TERM");
        assert_eq!(life.code(), Some(0), "{name}: {}", life.said());
        let told = world.detected(&[&life]);
        let twice: Vec<_> = told.iter().filter(|(_, times)| **times != 1).collect();
        assert!(twice.is_empty() && told.keys().eq(expected.keys()), "{name}: {told:?}");
        assert!(!world.state().join("dead-letters.ndjson").exists(), "{name}: nothing is dead");
        println!("{name}: {:?}; {reason}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_stopped_while_it_holds_says_so_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let text = traffic(folder.path());
    let expected = undisturbed(&text).await;
    for wrong in [Wrong::ReadOnly, Wrong::MovedAway] {
        let mut world = World::new(wrong, None).await;
        world.set("FLOWVIGIL__PIPELINE__GRACE", "1s");
        let mut life = world.begin();
        world.feed(&text);
        assert!(soon(|| life.degraded().contains_key("publish")), "{wrong:?}: {}", life.said());
        life.signal("TERM");
        assert_eq!(life.code(), Some(1), "{wrong:?}: {}", life.said());
        let said = life.said();
        assert!(said.contains("the grace period is over") && said.contains("publish: "), "{wrong:?}: {said}");
        world.mend(None);
        let mut next = Life::start(world.state(), &world.environment, "");
        world.all_told(&expected, &[&life, &next]).await;
        next.signal("TERM");
        assert_eq!(next.code(), Some(0), "{wrong:?}: {}", next.said());
        let told = world.detected(&[&life, &next]);
        // What was told before it was stopped may have been recorded where nobody finds it.
        assert!(told.keys().eq(expected.keys()), "{wrong:?}: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_is_named_and_stepped_over() {
    let folder = tempfile::tempdir().unwrap();
    let text = traffic(folder.path());
    let mut world = World::new(Wrong::Locked, None).await;
    let mut life = Life::start(world.state(), &world.environment, "");
    world.feed(&text);
    let expected = undisturbed(&text).await;
    world.all_told(&expected, &[&life]).await;
    let spoilt = expected.keys().next().unwrap().clone();
    world.sql(&format!("UPDATE anomalies SET body = '{{\"actor\": \"10.9.8.7\"' WHERE id = '{spoilt}'"));
    world.sql("UPDATE silences SET body = x'ff00' WHERE rowid = 1; INSERT INTO rules VALUES ('odd', x'ff');");
    let ask = |path: &str| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.get(format!("http://{}{path}", life.address)).call().unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), serde_json::from_str::<Value>(&text).unwrap_or_default())
    };
    let (status, page) = ask("/v1/anomalies?limit=100");
    let listed = page["anomalies"].as_array().map_or(0, Vec::len);
    assert_eq!((status, listed), (200, expected.len() - 1), "{page}");
    for path in ["/v1/suppressions", "/v1/explain?address=10.0.0.5", "/v1/silences"] {
        let (status, answer) = ask(path);
        assert_eq!(status, 200, "{path}: {answer}");
    }
    let named = soon(|| life.said().contains("a stored row cannot be read") && life.said().contains(&spoilt));
    assert!(named, "{}", life.said());
    assert!(!life.said().contains("10.9.8.7"), "{}", life.said());
    life.signal("TERM");
    assert_eq!(life.code(), Some(0), "{}", life.said());
    world.lock = None;
}
