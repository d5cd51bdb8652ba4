//! Crash equivalence: whatever happens to the tasks, the recorded anomalies are those of an undisturbed run.
//!
//! A simulated hour of attacks lies on a stream of several shards. Two tasks, real processes of the real binary, read it
//! while they are killed, told to stop, robbed of leases and cut off from Redis at random moments. Then the anomalies in
//! DynamoDB (threat, actor, span, victims, all closed) must be those of a run that nothing happened to, each announced at
//! least once and nothing else announced, and no episode may stand there twice. The seed decides what happens and when; a failure names it.
//!
//! `FLOWVIGIL_CRASH_SEEDS=0..100 tests/run crash` runs more than the slice that every change is held to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_config::SdkConfig;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::types::ShardIteratorType;
use flowvigil::anomaly::{Anomaly, Status};
use flowvigil::publish::dynamodb::{self, DynamoStore};
use flowvigil::publish::{AnomalyStore, Query};
use jiff::SignedDuration;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::servers::{aws, eventually, unique};

const SHARDS: i32 = 3;

/// How long a run may take, disturbances included.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn signal(&self, signal: &str) {
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

    fn begin(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes", "--dir"])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(Process(child));
    }

    fn kill(&mut self) {
        self.process = None;
    }
}

/// One run: a stream, tables, a bucket and keys of its own.
struct World {
    aws: SdkConfig,
    name: String,
    folder: tempfile::TempDir,
    redis: Redis,
}

impl World {
    async fn new(aws: &SdkConfig, log: &Path) -> World {
        let world = World {
            aws: aws.clone(),
            name: unique("crash"),
            folder: tempfile::tempdir().unwrap(),
            redis: Redis::start(),
        };
        let kinesis = aws_sdk_kinesis::Client::new(aws);
        kinesis.create_stream().stream_name(&world.name).shard_count(SHARDS).send().await.unwrap();
        let active = async || {
            let told = kinesis.describe_stream_summary().stream_name(&world.name).send().await.unwrap();
            told.stream_description_summary().unwrap().stream_status().as_str() == "ACTIVE"
        };
        assert!(eventually(Duration::from_secs(10), active).await);
        let s3 = aws_sdk_s3::Client::from_conf(aws_sdk_s3::config::Builder::from(aws).force_path_style(true).build());
        s3.create_bucket().bucket(&world.name).send().await.unwrap();
        std::fs::write(world.config(), world.settings()).unwrap();
        world.flowvigil(&["migrate", "--apply"]);
        let log = log.to_str().unwrap();
        world.flowvigil(&["replay", log, "--to", "kinesis", "--speed", "0"]);
        world
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("flowvigil.toml")
    }

    fn settings(&self) -> String {
        let (name, port) = (&self.name, self.redis.port);
        format!(
            r#"
            [ingest.kinesis]
            stream = "{name}"
            application = "{name}-leases"
            failover = "6s"
            records_max = 20
            read_pause = "40ms"
            idle = "100ms"
            [ingest.snapshot.s3]
            bucket = "{name}"
            path_style = true
            [correlation.redis]
            url = "redis://127.0.0.1:{port}"
            application = "{name}"
            timeout = "2s"
            [publish.dynamodb]
            table = "{name}"
            models_table = "{name}-models"
            [pipeline]
            snapshot_interval = "2s"
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

    /// Starts a task; what it announces and logs is appended to files of the world.
    fn task(&self) -> Process {
        let append = |name: &str| {
            std::fs::File::options().create(true).append(true).open(self.folder.path().join(name)).unwrap()
        };
        let child = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
            .arg("run")
            .env("FLOWVIGIL_CONFIG", self.config())
            .stdout(append("announced"))
            .stderr(append("log"))
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
        client
            .update_item()
            .table_name(format!("{}-leases", self.name))
            .key("leaseKey", AttributeValue::S(key.clone()))
            .update_expression("SET leaseOwner = :thief, leaseCounter = :c")
            .expression_attribute_values(":thief", AttributeValue::S("thief".to_owned()))
            .expression_attribute_values(":c", counter)
            .send()
            .await
            .unwrap();
    }

    /// The last sequence number of each shard. Iterators live for two seconds here, less than a busy machine may need, so
    /// every read has its own.
    async fn ends(&self) -> BTreeMap<String, String> {
        let client = aws_sdk_kinesis::Client::new(&self.aws);
        let mut ends: BTreeMap<String, String> = BTreeMap::new();
        for shard in client.list_shards().stream_name(&self.name).send().await.unwrap().shards() {
            loop {
                let from = client.get_shard_iterator().stream_name(&self.name).shard_id(shard.shard_id());
                let from = match ends.get(shard.shard_id()) {
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
                ends.insert(shard.shard_id().to_owned(), last.sequence_number.clone());
            }
        }
        ends
    }

    /// Waits until every shard's checkpoint is its last record: everything before it is recorded and announced.
    async fn finished(&self) {
        let ends = self.ends().await;
        assert_eq!(ends.len(), SHARDS as usize, "every shard has records");
        let done = eventually(PATIENCE, async || {
            let leases = self.leases().await;
            ends.iter().all(|(shard, end)| leases.get(shard).and_then(|l| l.get("checkpoint")) == Some(end))
        });
        assert!(done.await, "not read to the end: {:?} of {ends:?}\n{}", self.leases().await, self.log());
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    async fn recorded(&self) -> Vec<Anomaly> {
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
        let text = std::fs::read_to_string(self.folder.path().join("announced")).unwrap_or_default();
        let id = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(value["detail"]["anomaly_id"].as_str()?.to_owned())
        };
        text.lines().filter_map(id).collect()
    }
}

/// A simulated stretch of attacks, and behind it lines late enough to close every window of every shard.
fn attacks(folder: &Path) -> PathBuf {
    let log = folder.join("attacks.log");
    let done = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args([
            "simulate",
            "--seed",
            "7",
            "--duration",
            "20m",
            "--hosts",
            "8",
            "--threats",
            "port_scan,tor,crypto_mining",
            "--no-header",
            "-o",
        ])
        .arg(&log)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut text = std::fs::read_to_string(&log).unwrap();
    let last = text.lines().filter_map(|l| l.split(' ').nth(11)?.parse::<u64>().ok()).max().unwrap();
    // Two days later: every episode is over by then.
    let (start, end) = (last + 172_800, last + 172_830);
    for number in 0..64 {
        text.push_str(&format!(
            "2 123456789012 eni-{number:017x} 10.0.0.9 10.0.0.8 40000 443 6 10 5000 {start} {end} ACCEPT OK\n"
        ));
    }
    std::fs::write(&log, text).unwrap();
    log
}

/// What must be the same of each episode: threat, actor, span, victims, and that it is closed.
type Told = BTreeSet<String>;

/// Where the anomalies stand at the end. What turned out to be part of another is that other.
fn told(anomalies: &[Anomaly]) -> Told {
    let mut told = Told::new();
    for a in anomalies.iter().filter(|a| a.merged_into.is_none()) {
        let victims: Vec<String> =
            a.targets.iter().map(|t| format!("{} {:?} of {}", t.address, t.ports, t.port_count)).collect();
        let new = told.insert(format!(
            "{} by {} from {} to {}, {:?}, on {} targets: {}",
            a.threat,
            a.actor,
            a.first_seen,
            a.last_seen,
            a.status,
            a.target_count,
            victims.join(", ")
        ));
        assert!(new, "an episode stands there under two ids: {a:?}");
    }
    told
}

async fn run(aws: &SdkConfig, log: &Path, disturbed: Option<u64>) -> (Told, World) {
    let mut world = World::new(aws, log).await;
    let mut tasks = vec![world.task()];
    if let Some(seed) = disturbed {
        tasks.push(world.task());
        disturb(&mut world, &mut tasks, seed).await;
    }
    world.finished().await;
    // What is over is closed once every shard's event time has passed it, by whichever task.
    let closed = eventually(PATIENCE, async || world.recorded().await.iter().all(|a| a.status == Status::Closed));
    if !closed.await {
        println!("not everything is closed\n{}", world.log());
    }
    let anomalies = world.recorded().await;
    let announced = world.announced();
    let recorded: BTreeSet<String> = anomalies.iter().map(|anomaly| anomaly.anomaly_id.to_string()).collect();
    assert_eq!(announced, recorded, "what is recorded is announced, and nothing else is");
    for task in &tasks {
        task.signal("-TERM");
    }
    (told(&anomalies), world)
}

async fn disturb(world: &mut World, tasks: &mut [Process], seed: u64) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut leaving = Vec::new();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500 + random.next_u64() % 1500)).await;
        let victim = random.next_u64() as usize % tasks.len();
        match random.next_u64() % 4 {
            0 => drop(std::mem::replace(&mut tasks[victim], world.task())),
            1 => {
                tasks[victim].signal("-TERM");
                leaving.push(std::mem::replace(&mut tasks[victim], world.task()));
            }
            2 => world.steal(random.next_u64() as usize).await,
            _ => {
                world.redis.kill();
                tokio::time::sleep(Duration::from_millis(random.next_u64() % 1500)).await;
                world.redis.begin();
            }
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let text = std::env::var("FLOWVIGIL_CRASH_SEEDS").unwrap_or_else(|_| "0..3".to_owned());
    let (from, to) = text.split_once("..").expect("FLOWVIGIL_CRASH_SEEDS is FROM..TO");
    from.parse().expect("a number")..to.parse().expect("a number")
}

#[tokio::test]
async fn whatever_happens_to_the_tasks_the_recorded_anomalies_are_the_same() {
    let Some(aws) = aws().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let log = attacks(folder.path());
    let begun = Instant::now();
    let (expected, _) = run(&aws, &log, None).await;
    assert!(expected.len() > 2, "the attacks are told: {expected:?}");
    println!("undisturbed: {} anomalies in {:?}", expected.len(), begun.elapsed());
    for seed in seeds() {
        let begun = Instant::now();
        let (found, world) = run(&aws, &log, Some(seed)).await;
        let lost: Vec<_> = expected.difference(&found).collect();
        let invented: Vec<_> = found.difference(&expected).collect();
        assert!(
            lost.is_empty() && invented.is_empty(),
            "seed {seed}: lost {lost:#?}, invented {invented:#?}\n{}",
            world.log()
        );
        println!("seed {seed}: the same in {:?}", begun.elapsed());
    }
}
