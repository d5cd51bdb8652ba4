//! Crash equivalence: whatever happens to the tasks, the recorded anomalies are those of an undisturbed run.
//!
//! A log of attacks, simulated or (every fourth seed, where `$FLOWVIGIL_DATASETS` or `../shared/datasets` has them) a real
//! capture, lies on a stream of several shards, which are split and merged between its parts. Two tasks, real processes of
//! the real binary, read it while they are killed, told to stop, robbed of leases and cut off from Redis at random moments,
//! and while Kinesis, DynamoDB and EventBridge fail them in every way ([`crate::faults`]). Then the anomalies in DynamoDB
//! (whole bodies, all closed) must be those of a run with the same shards that nothing happened to, each announced at least
//! once and nothing else announced, and no episode may stand there twice. The seed decides what happens and when; a failure names it.
//!
//! `FLOWVIGIL_CRASH_SEEDS=0..100 tests/run crash` runs more than the slice that every change is held to; with
//! `FLOWVIGIL_CRASH_APART=1` no Redis is configured, and each task correlates by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant};

use aws_config::SdkConfig;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::types::{Shard, ShardIteratorType};
use flowvigil::anomaly::{Anomaly, Status};
use flowvigil::ingest::kinesis::coordinator::hashes;
use flowvigil::publish::dynamodb::{self, DynamoStore};
use flowvigil::publish::{AnomalyStore, Query};
use jiff::SignedDuration;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde_json::Value;

use crate::faults::{Fault, Proxy};
use crate::servers::{aws, eventually, unique};

const SHARDS: i32 = 3;

/// How long each stage of a run may take. A shard of which nobody speaks any more is waited for for two minutes.
const PATIENCE: Duration = Duration::from_secs(240);

/// A process that ends with the test.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Whether it ended by itself.
    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    pub fn signal(&self, signal: &str) {
        Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
    }
}

/// A Redis server that can be killed and started again.
struct Redis {
    port: u16,
    folder: tempfile::TempDir,
    process: Option<Process>,
}

impl Redis {
    fn start() -> Redis {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut redis = Redis { port, folder: tempfile::tempdir().unwrap(), process: None };
        redis.begin();
        redis
    }

    /// Starts it, again and again while something else has its port: a connection may have been given that meanwhile.
    fn begin(&mut self) {
        for _ in 0..100 {
            let child = Command::new("redis-server")
                .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes", "--dir"])
                .arg(self.folder.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let mut process = Process(child);
            while !process.has_ended() {
                if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                    self.process = Some(process);
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("redis-server does not start on port {}", self.port);
    }

    fn kill(&mut self) {
        self.process = None;
    }
}

/// One run: a stream, tables, a bus, a bucket and keys of its own.
pub struct World {
    aws: SdkConfig,
    name: String,
    /// Few, so that a task is killed in the midst of reading.
    records_max: u32,
    folder: tempfile::TempDir,
    redis: Redis,
    kinesis: Proxy,
    dynamodb: Proxy,
    eventbridge: Proxy,
}

impl World {
    pub async fn new(aws: &SdkConfig, shards: i32, records_max: u32, seed: u64) -> World {
        let server = |name: &str| std::env::var(name).unwrap();
        let world = World {
            aws: aws.clone(),
            name: unique("crash"),
            records_max,
            folder: tempfile::tempdir().unwrap(),
            redis: Redis::start(),
            kinesis: Proxy::before(&server("AWS_ENDPOINT_URL_KINESIS"), seed).await,
            dynamodb: Proxy::before(&server("AWS_ENDPOINT_URL"), seed + 1).await,
            eventbridge: Proxy::before(&server("AWS_ENDPOINT_URL"), seed + 2).await,
        };
        let kinesis = aws_sdk_kinesis::Client::new(aws);
        kinesis.create_stream().stream_name(&world.name).shard_count(shards).send().await.unwrap();
        world.active().await;
        let s3 = aws_sdk_s3::Client::from_conf(aws_sdk_s3::config::Builder::from(aws).force_path_style(true).build());
        s3.create_bucket().bucket(&world.name).send().await.unwrap();
        aws_sdk_eventbridge::Client::new(aws).create_event_bus().name(&world.name).send().await.unwrap();
        std::fs::write(world.config(), world.settings()).unwrap();
        world.flowvigil(&["migrate", "--apply"]);
        world
    }

    /// What its stream, bus and tables are called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// From now on tasks begin with this in their settings.
    pub fn set(&self, table: &str, line: &str) {
        let settings = std::fs::read_to_string(self.config()).unwrap();
        std::fs::write(self.config(), settings.replace(table, &format!("{table}\n{line}"))).unwrap();
    }

    /// Redis loses everything that it was given.
    pub fn flush_redis(&self) {
        let port = self.redis.port.to_string();
        let done = Command::new("redis-cli").args(["-p", &port, "flushall"]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    async fn active(&self) {
        let kinesis = aws_sdk_kinesis::Client::new(&self.aws);
        let active = async || {
            let told = kinesis.describe_stream_summary().stream_name(&self.name).send().await.unwrap();
            told.stream_description_summary().unwrap().stream_status().as_str() == "ACTIVE"
        };
        assert!(eventually(Duration::from_secs(10), active).await);
    }

    /// Puts a log on the stream.
    pub fn feed(&self, log: &Path, key: &str) {
        self.flowvigil(&["replay", log.to_str().unwrap(), "--to", "kinesis", "--speed", "0", "--key", key]);
    }

    /// How many of a thousand requests meet a fault from now on.
    fn trouble(&self, per_mille: u32) {
        for proxy in [&self.kinesis, &self.dynamodb, &self.eventbridge] {
            proxy.trouble(per_mille);
        }
    }

    /// Splits an open shard, or merges two: which, by their order on the hash ring.
    async fn reshard(&self, change: Reshard) {
        let client = aws_sdk_kinesis::Client::new(&self.aws);
        let told = client.list_shards().stream_name(&self.name).send().await.unwrap();
        let mut open: Vec<&Shard> = told.shards().iter().filter(|shard| is_open(shard)).collect();
        open.sort_by_key(|shard| hashes(shard.hash_key_range()));
        match change {
            Reshard::Split(at) => {
                let (first, last) = hashes(open[at].hash_key_range());
                let split = client.split_shard().stream_name(&self.name).shard_to_split(open[at].shard_id());
                split.new_starting_hash_key((first + (last - first) / 2).to_string()).send().await.unwrap();
            }
            Reshard::Merge(at) => {
                let merge = client.merge_shards().stream_name(&self.name).shard_to_merge(open[at].shard_id());
                merge.adjacent_shard_to_merge(open[at + 1].shard_id()).send().await.unwrap();
            }
        }
        self.active().await;
    }

    /// What comes next on the stream: the shards change, and then there is more to read.
    async fn go_on(&self, step: &Step) {
        for &change in step.before {
            self.reshard(change).await;
        }
        tokio::task::block_in_place(|| self.feed(&step.log, "interface"));
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("flowvigil.toml")
    }

    fn settings(&self) -> String {
        let (name, port, records) = (&self.name, self.redis.port, self.records_max);
        let shared = format!(
            r#"
            [correlation.redis]
            url = "redis://127.0.0.1:{port}"
            application = "{name}"
            timeout = "2s"
            "#
        );
        let correlation = if is_apart() { "" } else { &shared };
        format!(
            r#"
            [ingest.kinesis]
            stream = "{name}"
            application = "{name}-leases"
            failover = "6s"
            records_max = {records}
            read_pause = "40ms"
            idle = "100ms"
            timeout = "2s"
            [ingest.snapshot.s3]
            bucket = "{name}"
            path_style = true
            {correlation}
            [publish.dynamodb]
            table = "{name}"
            models_table = "{name}-models"
            timeout = "1s"
            [publish.eventbridge]
            bus = "{name}"
            timeout = "1s"
            [pipeline]
            snapshot_interval = "2s"
            call_timeout = "10s"
            retry_most = "1s"
            [api]
            listen = "127.0.0.1:0"
            "#
        )
    }

    fn flowvigil(&self, args: &[&str]) {
        let done = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
            .args(args)
            .env("FLOWVIGIL_CONFIG", self.config())
            .output()
            .unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Starts a task; what it logs is appended to a file of the world.
    pub fn task(&self) -> Process {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
            .arg("run")
            .env("FLOWVIGIL_CONFIG", self.config())
            .env("AWS_ENDPOINT_URL_KINESIS", &self.kinesis.url)
            .env("AWS_ENDPOINT_URL_DYNAMODB", &self.dynamodb.url)
            .env("AWS_ENDPOINT_URL_EVENTBRIDGE", &self.eventbridge.url)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Process(child)
    }

    async fn leases(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let client = aws_sdk_dynamodb::Client::new(&self.aws);
        let told = client.scan().table_name(format!("{}-leases", self.name)).send().await;
        let Ok(told) = told else { return BTreeMap::new() };
        let text = |value: &AttributeValue| value.as_s().or(value.as_n()).cloned().unwrap_or_default();
        let rows = told.items.unwrap_or_default();
        rows.iter()
            .map(|row| (text(&row["leaseKey"]), row.iter().map(|(k, v)| (k.clone(), text(v))).collect()))
            .collect()
    }

    /// Another worker takes a lease, and never reads the shard.
    async fn steal(&self, number: usize) {
        let leases = self.leases().await;
        let Some((key, row)) = leases.iter().nth(number % leases.len().max(1)) else { return };
        let counter = AttributeValue::N((row["leaseCounter"].parse::<u64>().unwrap() + 1).to_string());
        let client = aws_sdk_dynamodb::Client::new(&self.aws);
        let stolen = client
            .update_item()
            .table_name(format!("{}-leases", self.name))
            .key("leaseKey", AttributeValue::S(key.clone()))
            .update_expression("SET leaseOwner = :thief, leaseCounter = :c")
            .condition_expression("attribute_exists(leaseKey)")
            .expression_attribute_values(":thief", AttributeValue::S("thief".to_owned()))
            .expression_attribute_values(":c", counter)
            .send()
            .await;
        // The lease of a shard that was read to its end may be gone by now.
        assert!(stolen.is_ok() || !self.leases().await.contains_key(key), "{stolen:?}");
    }

    /// Each shard's last sequence number, where it has records, and whether it is open. Iterators live for two seconds here,
    /// less than a busy machine may need, so every read has its own.
    async fn ends(&self) -> BTreeMap<String, (Option<String>, bool)> {
        let client = aws_sdk_kinesis::Client::new(&self.aws);
        let mut ends = BTreeMap::new();
        for shard in client.list_shards().stream_name(&self.name).send().await.unwrap().shards() {
            let mut end: Option<String> = None;
            loop {
                let from = client.get_shard_iterator().stream_name(&self.name).shard_id(shard.shard_id());
                let from = match &end {
                    Some(end) => {
                        from.shard_iterator_type(ShardIteratorType::AfterSequenceNumber).starting_sequence_number(end)
                    }
                    None => from.shard_iterator_type(ShardIteratorType::TrimHorizon),
                };
                let Ok(from) = from.send().await else { continue };
                let Ok(told) = client.get_records().set_shard_iterator(from.shard_iterator).send().await else {
                    continue;
                };
                let Some(last) = told.records.last() else { break };
                end = Some(last.sequence_number.clone());
            }
            ends.insert(shard.shard_id().to_owned(), (end, is_open(shard)));
        }
        ends
    }

    /// Waits until every open shard's checkpoint is its last record, and every other is read to its end: everything before
    /// is recorded and announced. The lease of one that was split or merged goes when its children are under way.
    pub async fn finished(&self, tasks: &mut [Process]) {
        let ends = self.ends().await;
        assert!(ends.values().all(|(end, open)| end.is_some() || !open), "every open shard has records: {ends:?}");
        let done = eventually(PATIENCE, async || {
            // As an orchestrator does: a task that ended since nothing answered when it began is started again.
            for task in tasks.iter_mut().filter_map(|task| task.has_ended().then_some(task)) {
                *task = self.task();
            }
            let leases = self.leases().await;
            let at = |shard: &String| leases.get(shard).and_then(|lease| lease.get("checkpoint"));
            ends.iter().all(|(shard, (end, open))| match open {
                true => at(shard) == end.as_ref(),
                false => at(shard).is_none_or(|at| at == "SHARD_END"),
            })
        });
        assert!(done.await, "not read to the end: {:?} of {ends:?}\n{}", self.leases().await, self.log());
    }

    /// All that its tasks have logged.
    pub fn whole_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn log(&self) -> String {
        let log = self.whole_log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    pub async fn recorded(&self) -> Vec<Anomaly> {
        let settings = dynamodb::Settings {
            table: self.name.clone(),
            models_table: format!("{}-models", self.name),
            retention: SignedDuration::from_hours(1),
            timeout: SignedDuration::from_secs(5),
        };
        let store = DynamoStore::new(&self.aws, &settings);
        let mut query = Query { limit: 1000, ..Query::default() };
        let mut all = Vec::new();
        loop {
            let page = store.query(&query).await.unwrap();
            all.extend(page.anomalies);
            match page.next {
                Some(cursor) => query.cursor = Some(cursor),
                None => return all,
            }
        }
    }

    fn announced(&self) -> BTreeSet<String> {
        self.eventbridge.announced()
    }
}

/// Whether tasks are to correlate without Redis.
fn is_apart() -> bool {
    std::env::var_os("FLOWVIGIL_CRASH_APART").is_some()
}

fn is_open(shard: &Shard) -> bool {
    shard.sequence_number_range().is_none_or(|range| range.ending_sequence_number().is_none())
}

/// A change of the shards, by their places on the hash ring.
#[derive(Clone, Copy, Debug)]
enum Reshard {
    Split(usize),
    /// With the one behind it.
    Merge(usize),
}

use Reshard::{Merge, Split};

/// What becomes of the three shards before the second and before the third part of a log.
const CHANGES: [[&[Reshard]; 2]; 8] = [
    [&[Split(2)], &[Merge(0)]],
    [&[Merge(0)], &[]],
    [&[Split(0)], &[]],
    [&[], &[Merge(1)]],
    // One that continues two others, and has no record when it is merged with the third.
    [&[Merge(0), Merge(0)], &[]],
    // Halves that begin with the same memory come together again.
    [&[Split(1)], &[Merge(1)]],
    [&[Merge(1)], &[Split(1), Merge(0)]],
    [&[], &[]],
];

/// What comes onto the stream at one time.
#[derive(Clone, Debug)]
struct Step {
    before: &'static [Reshard],
    log: PathBuf,
}

/// A log in three parts; behind the last, lines late enough to close every window of every shard.
#[derive(Clone, Debug)]
struct Traffic {
    name: &'static str,
    parts: [PathBuf; 3],
}

impl Traffic {
    fn new(folder: &Path, name: &'static str, text: &str) -> Traffic {
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("version")).collect();
        let last = lines.iter().filter_map(|l| l.split(' ').nth(11)?.parse::<u64>().ok()).max().unwrap();
        // Two days later: every episode is over by then.
        let (start, end) = (last + 172_800, last + 172_830);
        let closing = |number: u32| {
            format!("2 123456789012 eni-{number:017x} 10.0.0.9 10.0.0.8 40000 443 6 10 5000 {start} {end} ACCEPT OK")
        };
        let closing: Vec<String> = (0..256).map(closing).collect();
        let parts = std::array::from_fn(|at| {
            let mut part = lines[at * lines.len() / 3..(at + 1) * lines.len() / 3].to_vec();
            if at == 2 {
                part.extend(closing.iter().map(String::as_str));
            }
            let file = folder.join(format!("{name}-{at}.log"));
            std::fs::write(&file, part.join("\n") + "\n").unwrap();
            file
        });
        Traffic { name, parts }
    }

    fn simulated(folder: &Path) -> Traffic {
        let log = folder.join("attacks.log");
        let done = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
            .args(["simulate", "--seed", "7", "--duration", "20m", "--hosts", "8"])
            .args(["--threats", "port_scan,tor,crypto_mining", "--no-header", "-o"])
            .arg(&log)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Traffic::new(folder, "simulated", &std::fs::read_to_string(&log).unwrap())
    }

    /// Real captures, where they are at hand.
    fn captured(folder: &Path) -> Vec<Traffic> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/datasets");
        let data = std::env::var_os("FLOWVIGIL_DATASETS").map_or(beside, PathBuf::from);
        let mut captured = Vec::new();
        for (name, file) in [("scan-probinglab-2019", "scan-probinglab-2019.log.gz"), ("mix-a", "merged/mix-a.log.gz")]
        {
            let Ok(packed) = std::fs::File::open(data.join(file)) else {
                println!("skipped: no {file} in {}; name its folder with FLOWVIGIL_DATASETS", data.display());
                continue;
            };
            let text = std::io::read_to_string(flate2::read::MultiGzDecoder::new(packed)).unwrap();
            captured.push(Traffic::new(folder, name, &text));
        }
        captured
    }

    /// The log with these changes of the shards between its parts.
    fn steps(&self, changes: [&'static [Reshard]; 2]) -> Vec<Step> {
        let before = [&[], changes[0], changes[1]];
        self.parts.iter().zip(before).map(|(log, before)| Step { before, log: log.clone() }).collect()
    }
}

/// What must be the same of each episode, by what it is about and when it began: all that is said of it, but for
/// [`NOT_OF_THE_RECORDS`].
pub type Told = BTreeMap<String, Value>;

/// What hangs on more than the records and event time, by path, and why.
const NOT_OF_THE_RECORDS: [&str; 1] = [
    // What was away while it was judged: that is what the disturbance does, and what the undisturbed run has none of.
    "/degraded",
];

/// Where the anomalies stand at the end. What turned out to be part of another is that other.
fn told(anomalies: &[Anomaly]) -> Told {
    let about = |anomaly: &Anomaly| {
        let subject = anomaly.episode.map(|episode| format!("{:?}", episode.subject)).unwrap_or_default();
        format!("{} by {} ({subject}) from {}", anomaly.threat, anomaly.actor, anomaly.first_seen)
    };
    let names: BTreeMap<String, String> =
        anomalies.iter().map(|anomaly| (anomaly.anomaly_id.to_string(), about(anomaly))).collect();
    let mut told = Told::new();
    for anomaly in anomalies.iter().filter(|anomaly| anomaly.merged_into.is_none()) {
        let mut body = serde_json::to_value(anomaly).unwrap();
        let mut related: Vec<&str> = Vec::new();
        for id in &anomaly.related {
            related.push(names.get(&id.to_string()).map_or("nobody", String::as_str));
        }
        related.sort_unstable();
        body["related"] = related.into();
        let before = told.insert(about(anomaly), body);
        assert!(before.is_none(), "an episode stands there under two ids: {anomaly:?}, {before:?}");
    }
    told
}

/// A body without what hangs on more than the records.
fn of_the_records(body: &Value) -> Value {
    let mut body = body.clone();
    for path in NOT_OF_THE_RECORDS {
        if let Some(value) = body.pointer_mut(path) {
            value.take();
        }
    }
    body
}

/// What is said of an anomaly here and not there, by the path of each value.
fn differences(path: &str, here: &Value, there: &Value, into: &mut Vec<String>) {
    match (here, there) {
        (Value::Object(here), Value::Object(there)) => {
            for name in here.keys().chain(there.keys()).collect::<BTreeSet<_>>() {
                let of = |all: &serde_json::Map<String, Value>| all.get(name).cloned().unwrap_or_default();
                differences(&format!("{path}.{name}"), &of(here), &of(there), into);
            }
        }
        (Value::Array(here), Value::Array(there)) if here.len() == there.len() => {
            for (at, (here, there)) in here.iter().zip(there).enumerate() {
                differences(&format!("{path}[{at}]"), here, there, into);
            }
        }
        _ if here != there => into.push(format!("{path}: {here} is not {there}")),
        _ => {}
    }
}

/// What stands at the end, once every shard is read and every episode is closed.
pub async fn settled(world: &World, tasks: &mut [Process]) -> Told {
    world.finished(tasks).await;
    // What is over is closed once every shard's event time has passed it, by whichever task.
    let closed = eventually(PATIENCE, async || world.recorded().await.iter().all(|a| a.status == Status::Closed));
    if !closed.await {
        println!("not everything is closed\n{}", world.log());
    }
    let told = told(&world.recorded().await);
    // What was announced in vain is announced again until it is heard.
    let recorded = async || -> BTreeSet<String> {
        world.recorded().await.iter().map(|anomaly| anomaly.anomaly_id.to_string()).collect()
    };
    let announced = eventually(PATIENCE, async || world.announced() == recorded().await);
    assert!(announced.await, "announced {:?}, recorded {:?}", world.announced(), recorded().await);
    told
}

async fn run(aws: SdkConfig, steps: Vec<Step>, disturbed: Option<u64>) -> (Told, World) {
    let mut world = World::new(&aws, SHARDS, 20, disturbed.unwrap_or(0)).await;
    world.go_on(&steps[0]).await;
    let mut tasks = vec![world.task()];
    match disturbed {
        Some(seed) => {
            tasks.push(world.task());
            disturb(&mut world, &mut tasks, &steps[1..], seed).await;
        }
        None => {
            for step in &steps[1..] {
                world.go_on(step).await;
            }
        }
    }
    let told = settled(&world, &mut tasks).await;
    for task in &tasks {
        task.signal("-TERM");
    }
    (told, world)
}

async fn disturb(world: &mut World, tasks: &mut [Process], rest: &[Step], seed: u64) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut leaving = Vec::new();
    let steps = 5;
    let mut fed: Vec<u64> = rest.iter().map(|_| random.next_u64() % steps).collect();
    fed.sort_unstable();
    for step in 0..steps {
        world.trouble([0, 20, 60][random.next_u64() as usize % 3]);
        tokio::time::sleep(Duration::from_millis(300 + random.next_u64() % 1500)).await;
        for (_, next) in fed.iter().zip(rest).filter(|(at, _)| **at == step) {
            world.go_on(next).await;
        }
        let victim = random.next_u64() as usize % tasks.len();
        match random.next_u64() % 5 {
            0 => drop(std::mem::replace(&mut tasks[victim], world.task())),
            1 => {
                tasks[victim].signal("-TERM");
                leaving.push(std::mem::replace(&mut tasks[victim], world.task()));
            }
            2 => world.steal(random.next_u64() as usize).await,
            3 => {
                world.redis.kill();
                tokio::time::sleep(Duration::from_millis(random.next_u64() % 2500)).await;
                world.redis.begin();
            }
            _ => {
                // A moment in which hardly anything gets through.
                world.trouble(700);
                tokio::time::sleep(Duration::from_millis(300 + random.next_u64() % 1500)).await;
            }
        }
    }
    world.trouble(0);
}

fn seeds() -> std::ops::Range<u64> {
    let text = std::env::var("FLOWVIGIL_CRASH_SEEDS").unwrap_or_else(|_| "0..2".to_owned());
    let (from, to) = text.split_once("..").expect("FLOWVIGIL_CRASH_SEEDS is FROM..TO");
    from.parse().expect("a number")..to.parse().expect("a number")
}

/// What a future comes to, or with which words it panicked: the other seeds are to be run all the same.
async fn survived<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => {
                let said = panic.downcast_ref::<String>().cloned();
                Poll::Ready(Err(said.unwrap_or_else(|| "it panicked".to_owned())))
            }
        }
    })
    .await
}

/// What a run came to that was disturbed by this seed, beside one that was not.
async fn compare(aws: &SdkConfig, steps: Vec<Step>, expected: &Told, seed: u64) -> Result<String, String> {
    let (found, world) = survived(run(aws.clone(), steps, Some(seed))).await?;
    let differ: Vec<String> = expected
        .keys()
        .chain(found.keys().filter(|name| !expected.contains_key(*name)))
        .flat_map(|name| match (expected.get(name), found.get(name)) {
            (Some(expected), Some(found)) => {
                let mut differ = Vec::new();
                differences("", &of_the_records(found), &of_the_records(expected), &mut differ);
                differ.iter().map(|what| format!("{name}: {what}")).collect::<Vec<_>>()
            }
            (Some(lost), None) => vec![format!("lost: {lost}")],
            (None, invented) => invented.map(|invented| format!("invented: {invented}")).into_iter().collect(),
        })
        .collect();
    if !differ.is_empty() {
        return Err(format!("{differ:#?}\n{}", world.log()));
    }
    let mut faults: BTreeMap<Fault, u32> = BTreeMap::new();
    for proxy in [&world.kinesis, &world.dynamodb, &world.eventbridge] {
        proxy.made().into_iter().for_each(|(fault, count)| *faults.entry(fault).or_default() += count);
    }
    Ok(format!("{} anomalies, the same to the last number, under the same ids; {faults:?}", found.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_the_tasks_the_recorded_anomalies_are_the_same() {
    let Some(aws) = aws().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let simulated = Traffic::simulated(folder.path());
    let captured = Traffic::captured(folder.path());
    let mut undisturbed: BTreeMap<(&str, usize), Told> = BTreeMap::new();
    let mut failed = Vec::new();
    for seed in seeds() {
        let traffic = match (seed % 4, captured.len()) {
            (_, 0) | (0..3, _) => &simulated,
            (_, many) => &captured[seed as usize / 4 % many],
        };
        let at = (seed + seed / 8) as usize % CHANGES.len();
        let steps = traffic.steps(CHANGES[at]);
        let known = undisturbed.get(&(traffic.name, at)).cloned();
        let expected = match known {
            Some(told) => told,
            None => {
                let begun = Instant::now();
                let (told, _) = run(aws.clone(), steps.clone(), None).await;
                println!("{}, {:?}: {} anomalies in {:?}", traffic.name, CHANGES[at], told.len(), begun.elapsed());
                assert!(told.len() > 2, "the attacks are told: {told:?}");
                undisturbed.insert((traffic.name, at), told.clone());
                told
            }
        };
        let begun = Instant::now();
        let outcome = compare(&aws, steps, &expected, seed).await;
        let what = format!("seed {seed}, {}, {:?}, {:?}", traffic.name, CHANGES[at], begun.elapsed());
        match outcome {
            Ok(same) => println!("{what}: {same}"),
            Err(difference) => {
                println!("{what}: {difference}");
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "seeds that differ: {failed:?}");
}
