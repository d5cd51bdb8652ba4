//! Our worker and one of the Kinesis Client Library on one lease table: shards go over in both directions, and whoever has a
//! shard reads on from where the other had it. The library is `kcl-rs`, an independent port of its version 3
//! (`tests/interop.py`); it alone takes a minute to begin, so these tests run only when they are named.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::types::ShardIteratorType;
use flowvigil::ingest::kinesis::{Kinesis, Settings};
use flowvigil::ingest::{self, FlowSource, Position, Read, Shard};
use jiff::SignedDuration;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::kinesis::{Stream, Way};
use crate::servers::eventually;

const SHARDS: usize = 4;
const OURS: &str = "ours";
const LIBRARY: &str = "library";

/// What one worker did with one shard while it had the lease.
#[derive(Clone, Debug)]
struct Stint {
    worker: &'static str,
    shard: String,
    /// The checkpoint that it found.
    began: Option<String>,
    read: Vec<u16>,
    checkpoint: Option<String>,
    /// Whether it knows that it is over.
    over: bool,
}

/// All stints, in the order in which they began.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<Stint>>>);

impl Diary {
    fn begin(&self, worker: &'static str, shard: &str, began: Option<String>) {
        let stint = Stint { worker, shard: shard.to_owned(), began, read: Vec::new(), checkpoint: None, over: false };
        self.0.lock().unwrap().push(stint);
    }

    fn note(&self, worker: &str, shard: &str, change: impl FnOnce(&mut Stint)) {
        let mut stints = self.0.lock().unwrap();
        change(stints.iter_mut().rev().find(|s| s.worker == worker && s.shard == shard).expect("it has begun"));
    }

    fn stints(&self) -> Vec<Stint> {
        self.0.lock().unwrap().clone()
    }

    /// The shards of which a worker was the last to begin, and has read.
    fn reads(&self, worker: &str) -> BTreeSet<String> {
        let last: BTreeMap<String, Stint> = self.stints().into_iter().map(|s| (s.shard.clone(), s)).collect();
        last.into_iter().filter(|(_, s)| s.worker == worker && !s.read.is_empty()).map(|(shard, _)| shard).collect()
    }

    async fn wait_until_reads(&self, worker: &str, shards: usize, patience: u64) {
        let so = eventually(Duration::from_secs(patience), async || self.reads(worker).len() == shards).await;
        assert!(so, "{worker} does not come to {shards} shards within {patience} s: {:#?}", self.summary());
    }

    fn summary(&self) -> Vec<String> {
        let one =
            |s: Stint| format!("{} {} from {:?}: {} read, over: {}", s.shard, s.worker, s.began, s.read.len(), s.over);
        self.stints().into_iter().map(one).collect()
    }
}

/// The library's worker, a process of its own.
struct Library(Child);

impl Library {
    fn join(stream: &Stream, diary: &Diary) -> Library {
        let python = std::env::var("FLOWVIGIL_TEST_KCL").expect("tests/run interop installs the library");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop.py");
        let settings = settings(stream);
        let mut child = Command::new(python)
            .args([script, &settings.stream, &settings.application, LIBRARY])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let diary = diary.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard(&diary, &serde_json::from_str(&line).unwrap());
            }
        });
        Library(child)
    }

    /// As a crash does.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn heard(diary: &Diary, said: &Value) {
    let shard = said["shard"].as_str().unwrap();
    if let Some(began) = said.get("began") {
        diary.begin(LIBRARY, shard, began.as_str().map(str::to_owned));
    }
    if let Some(numbers) = said["read"].as_array() {
        let numbers = numbers.iter().map(|n| u16::try_from(n.as_u64().unwrap()).unwrap());
        diary.note(LIBRARY, shard, |stint| stint.read.extend(numbers));
    }
    if let Some(checkpoint) = said["checkpoint"].as_str() {
        diary.note(LIBRARY, shard, |stint| stint.checkpoint = Some(checkpoint.to_owned()));
    }
    if said.get("ended").is_some() {
        diary.note(LIBRARY, shard, |stint| stint.over = true);
    }
}

/// As in production: both judge a lease by the library's default of ten seconds.
fn settings(stream: &Stream) -> Settings {
    Settings { failover: SignedDuration::from_secs(10), ..stream.settings(OURS) }
}

/// Our worker. Dropping what it answers is a crash: nothing is released.
async fn join(stream: &Stream, diary: &Diary) -> JoinSet<()> {
    let mut opened = None;
    // A server under the load of all these tests may not answer in time; a service is started again then.
    eventually(Duration::from_secs(60), async || {
        opened = Kinesis::open(&stream.aws, &settings(stream), &ingest::Settings::default()).await.ok();
        opened.is_some()
    })
    .await;
    let mut source = opened.expect("the source opens within a minute");
    let diary = diary.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut readers = JoinSet::new();
        while let Ok(Some(shard)) = source.next_shard().await {
            readers.spawn(read(shard, diary.clone()));
        }
    });
    tasks
}

async fn read(mut shard: Box<dyn Shard>, diary: Diary) {
    let id = shard.id().0.to_string();
    diary.begin(OURS, &id, shard.resume_from().map(|Position(number)| number));
    loop {
        match shard.read().await.unwrap() {
            Read::Batch(batch) => {
                diary.note(OURS, &id, |stint| stint.read.extend(batch.records.iter().map(|r| r.source_port)));
                let position = batch.position.unwrap();
                if shard.checkpoint(&position).await.is_ok() {
                    diary.note(OURS, &id, |stint| stint.checkpoint = Some(position.0));
                }
            }
            Read::Idle => {}
            Read::End | Read::Lost => return diary.note(OURS, &id, |stint| stint.over = true),
        }
    }
}

/// Puts a line every twentieth of a second until it is told to stop; answers how many.
fn feed(stream: &Arc<Stream>) -> (Arc<AtomicBool>, tokio::task::JoinHandle<u16>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (stream, told) = (stream.clone(), stop.clone());
    let feeding = tokio::spawn(async move {
        let mut number = 0;
        while !told.load(Ordering::Relaxed) {
            stream.put(number..number + 1).await;
            number += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        number
    });
    (stop, feeding)
}

/// All records of the stream, by shard: sequence number and number.
async fn truth(stream: &Stream) -> BTreeMap<String, Vec<(String, u16)>> {
    let mut all = BTreeMap::new();
    for shard in stream.client.list_shards().stream_name(&stream.name).send().await.unwrap().shards() {
        let iterator = stream
            .client
            .get_shard_iterator()
            .stream_name(&stream.name)
            .shard_id(shard.shard_id())
            .shard_iterator_type(ShardIteratorType::TrimHorizon)
            .send()
            .await
            .unwrap()
            .shard_iterator;
        let told = stream.client.get_records().set_shard_iterator(iterator).limit(10_000).send().await.unwrap();
        let number = |data: &[u8]| std::str::from_utf8(data).unwrap().split(' ').nth(5).unwrap().parse().unwrap();
        let records = told.records.iter().map(|r| (r.sequence_number.clone(), number(r.data.as_ref())));
        all.insert(shard.shard_id().to_owned(), records.collect());
    }
    all
}

/// Stops the feeding, waits until all is read, and checks that nothing is missing and that every stint begins behind the
/// checkpoint of the one before. Answers how many records were read twice.
async fn account(stream: &Stream, diary: &Diary, fed: u16) -> usize {
    let truth = truth(stream).await;
    let total: usize = truth.values().map(Vec::len).sum();
    assert_eq!(total, usize::from(fed));
    let all = async || {
        let read: BTreeSet<u16> = diary.stints().into_iter().flat_map(|s| s.read).collect();
        read.len() == total
    };
    assert!(eventually(Duration::from_secs(30), all).await, "records are lost: {:#?}", diary.summary());
    let mut twice = 0;
    for (shard, records) in &truth {
        let behind = |number: &Option<String>| {
            records.iter().position(|(known, _)| Some(known) == number.as_ref()).map_or(0, |index| index + 1)
        };
        let (mut done, mut read) = (0, 0);
        for stint in diary.stints().into_iter().filter(|s| s.shard == *shard) {
            let from = behind(&stint.began);
            assert!((done..=read).contains(&from), "{shard}: begins at {from}, done {done}, read {read}: {stint:?}");
            let expected: Vec<u16> = records[from..].iter().take(stint.read.len()).map(|(_, n)| *n).collect();
            assert_eq!(stint.read, expected, "{shard}, {}", stint.worker);
            twice += read - from;
            done = behind(&stint.checkpoint).max(from);
            read = from + stint.read.len();
        }
        assert_eq!(read, records.len(), "{shard} is read to its end by its last reader");
    }
    twice
}

async fn finish(stream: &Stream, diary: &Diary, stop: &AtomicBool, feeding: tokio::task::JoinHandle<u16>) {
    stop.store(true, Ordering::Relaxed);
    let fed = feeding.await.unwrap();
    let twice = account(stream, diary, fed).await;
    eprintln!("{fed} records, {twice} of them read again by the next reader; {:#?}", diary.summary());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: tests/run interop"]
async fn the_library_begins_ours_joins_and_takes_all_when_the_library_dies() {
    let Some(stream) = Stream::new(SHARDS as i32, Way::Polled).await else { return };
    let (stream, diary) = (Arc::new(stream), Diary::default());
    let (stop, feeding) = feed(&stream);
    let library = Library::join(&stream, &diary);
    diary.wait_until_reads(LIBRARY, SHARDS, 240).await;
    let _ours = join(&stream, &diary).await;
    diary.wait_until_reads(OURS, SHARDS / 2, 180).await;
    assert_eq!(diary.reads(LIBRARY).len(), SHARDS / 2, "{:#?}", diary.summary());
    library.kill();
    diary.wait_until_reads(OURS, SHARDS, 180).await;
    finish(&stream, &diary, &stop, feeding).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: tests/run interop"]
async fn ours_begins_the_library_joins_and_takes_all_when_ours_dies() {
    let Some(stream) = Stream::new(SHARDS as i32, Way::Polled).await else { return };
    let (stream, diary) = (Arc::new(stream), Diary::default());
    let (stop, feeding) = feed(&stream);
    let mut ours = join(&stream, &diary).await;
    diary.wait_until_reads(OURS, SHARDS, 60).await;
    let _library = Library::join(&stream, &diary);
    diary.wait_until_reads(LIBRARY, SHARDS / 2, 360).await;
    assert_eq!(diary.reads(OURS).len(), SHARDS / 2, "{:#?}", diary.summary());
    ours.shutdown().await;
    diary.wait_until_reads(LIBRARY, SHARDS, 180).await;
    finish(&stream, &diary, &stop, feeding).await;
}

/// Who has each shard, and where it would go on, as the table says.
async fn table(stream: &Stream) -> BTreeMap<String, (Option<String>, String)> {
    let dynamo = aws_sdk_dynamodb::Client::new(&stream.aws);
    let name = settings(stream).application;
    // There is none before the first worker has made it.
    let Ok(rows) = dynamo.scan().table_name(name).consistent_read(true).send().await else { return BTreeMap::new() };
    let lease = |row: &HashMap<String, AttributeValue>| {
        let text = |name: &str| row.get(name).and_then(|value| value.as_s().ok()).cloned();
        Some((text("leaseKey")?, (text("leaseOwner"), text("checkpoint")?)))
    };
    rows.items().iter().filter_map(lease).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: tests/run interop"]
async fn the_library_reads_on_behind_the_checkpoints_of_the_whole_service_and_of_one_that_was_killed() {
    let Some(stream) = Stream::new(SHARDS as i32, Way::Polled).await else { return };
    let (stream, diary) = (Arc::new(stream), Diary::default());
    let (stop, feeding) = feed(&stream);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut service = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .arg("run")
        .env("FLOWVIGIL__INGEST__KINESIS__STREAM", &stream.name)
        .env("FLOWVIGIL__INGEST__KINESIS__APPLICATION", settings(&stream).application)
        .env("FLOWVIGIL__INGEST__KINESIS__WORKER", OURS)
        .env("FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER", path("snapshots"))
        .env("FLOWVIGIL__PIPELINE__SNAPSHOT_INTERVAL", "1s")
        .env("FLOWVIGIL__PUBLISH__SQLITE__PATH", path("anomalies.db"))
        .env("FLOWVIGIL__API__LISTEN", "127.0.0.1:0")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let digits = |checkpoint: &str| checkpoint.bytes().all(|b| b.is_ascii_digit());
    let reads = async || table(&stream).await.values().filter(|(_, at)| digits(at)).count() == SHARDS;
    let begun = eventually(Duration::from_secs(60), reads).await;
    let library = begun.then(|| Library::join(&stream, &diary));
    let shared = async || diary.reads(LIBRARY).len() == SHARDS / 2;
    let shared = eventually(Duration::from_secs(180), shared).await;
    service.kill().unwrap();
    service.wait().unwrap();
    let left = table(&stream).await;
    assert!(begun && shared, "{left:#?} {:#?}", diary.summary());
    diary.wait_until_reads(LIBRARY, SHARDS, 180).await;
    stop.store(true, Ordering::Relaxed);
    let fed = feeding.await.unwrap();
    let truth = truth(&stream).await;
    assert_eq!(truth.values().map(Vec::len).sum::<usize>(), usize::from(fed));
    for (shard, records) in &truth {
        let stint = || diary.stints().into_iter().find(|s| s.shard == *shard).unwrap();
        let began = stint().began.unwrap();
        let from =
            records.iter().position(|(number, _)| *number == began).expect("the service checkpointed a record") + 1;
        let rest: Vec<u16> = records[from..].iter().map(|(_, number)| *number).collect();
        let all = async || stint().read.len() == rest.len();
        assert!(eventually(Duration::from_secs(30), all).await, "{shard}: {:#?}", diary.summary());
        assert_eq!(stint().read, rest);
        let (owner, checkpoint) = &left[shard];
        if owner.as_deref() == Some(OURS) {
            assert_eq!(*checkpoint, began, "{shard}");
        }
    }
    drop(library);
}
