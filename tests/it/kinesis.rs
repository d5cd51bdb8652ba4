//! Kinesis shards and their leases, against a real stream and a real lease table. Whether shards are polled or pushed, the
//! same holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};
use flowvigil::ingest::kinesis::coordinator::hashes;
use flowvigil::ingest::kinesis::{Kinesis, Settings, StartAt};
use flowvigil::ingest::{self, FlowSource, IngestError, Position, Read, Shard};
use jiff::{SignedDuration, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::faults::Proxy;
use crate::servers::{aws, eventually, unique};

/// How records come, and where leases are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Polled,
    /// By enhanced fan-out.
    Pushed,
    /// Polled, with the leases in another server's understanding of DynamoDB.
    SecondOpinion,
}

/// Each of these tests passes in every way.
macro_rules! every_way {
    ($($name:ident;)+) => {
        mod polled {
            $(#[tokio::test] async fn $name() { super::$name(super::Way::Polled).await; })+
        }
        mod pushed {
            $(#[tokio::test] async fn $name() { super::$name(super::Way::Pushed).await; })+
        }
        mod second_opinion {
            $(#[tokio::test] async fn $name() { super::$name(super::Way::SecondOpinion).await; })+
        }
    };
}

every_way! {
    every_record_of_every_shard_is_read_in_order;
    a_restart_goes_on_behind_the_checkpoint_and_reads_the_rest_again;
    a_released_shard_is_taken_without_waiting_for_the_lease_to_expire;
    two_workers_share_the_shards_and_none_is_read_by_both;
    a_lost_lease_takes_no_checkpoint;
    children_of_a_split_and_of_a_merge_are_read_after_their_parents;
    a_merge_of_a_merge_waits_for_both_though_one_has_no_lease_yet;
    a_start_at_latest_reads_what_comes_after_it;
    a_connection_that_breaks_costs_no_record;
}

/// A stream of its own for one test.
pub struct Stream {
    pub client: Client,
    pub aws: SdkConfig,
    pub name: String,
    way: Way,
}

impl Stream {
    pub async fn new(shards: i32, way: Way) -> Option<Stream> {
        let aws = aws().await?;
        let aws = match way {
            Way::SecondOpinion => {
                let dynamodb = std::env::var("FLOWVIGIL_TEST_MOTO").ok()?;
                aws.into_builder().service_config(Endpoint { service: "DynamoDB", url: dynamodb }).build()
            }
            Way::Polled | Way::Pushed => aws,
        };
        Some(Stream::on(aws, shards, way).await)
    }

    async fn on(aws: SdkConfig, shards: i32, way: Way) -> Stream {
        let client = Client::new(&aws);
        let name = unique("stream");
        client.create_stream().stream_name(&name).shard_count(shards).send().await.unwrap();
        let stream = Stream { client, aws, name, way };
        stream.wait_active().await;
        stream
    }

    async fn wait_active(&self) {
        let active = async || {
            let told = self.client.describe_stream_summary().stream_name(&self.name).send().await.unwrap();
            told.stream_description_summary().unwrap().stream_status().as_str() == "ACTIVE"
        };
        assert!(eventually(Duration::from_secs(10), active).await);
    }

    /// Puts one line per key; the source port says which it is.
    pub async fn put(&self, numbers: std::ops::Range<u16>) {
        for number in numbers {
            self.client
                .put_record()
                .stream_name(&self.name)
                .partition_key(format!("key {number}"))
                .data(Blob::new(line(number)))
                .send()
                .await
                .unwrap();
        }
    }

    async fn split_first(&self) {
        let shards = self.client.list_shards().stream_name(&self.name).send().await.unwrap();
        let shard =
            shards.shards().iter().find(|s| s.sequence_number_range().unwrap().ending_sequence_number().is_none());
        let range = shard.unwrap().hash_key_range().unwrap();
        let (low, high): (u128, u128) =
            (range.starting_hash_key().parse().unwrap(), range.ending_hash_key().parse().unwrap());
        self.client
            .split_shard()
            .stream_name(&self.name)
            .shard_to_split(shard.unwrap().shard_id())
            .new_starting_hash_key((low + (high - low) / 2).to_string())
            .send()
            .await
            .unwrap();
        self.wait_active().await;
    }

    /// Merges the first two open shards, in the order of their hashes.
    async fn merge_first(&self) {
        let shards = self.client.list_shards().stream_name(&self.name).send().await.unwrap();
        let mut open: Vec<_> = shards
            .shards()
            .iter()
            .filter(|s| s.sequence_number_range().unwrap().ending_sequence_number().is_none())
            .collect();
        open.sort_by_key(|shard| hashes(shard.hash_key_range()));
        self.client
            .merge_shards()
            .stream_name(&self.name)
            .shard_to_merge(open[0].shard_id())
            .adjacent_shard_to_merge(open[1].shard_id())
            .send()
            .await
            .unwrap();
        self.wait_active().await;
    }

    pub fn settings(&self, worker: &str) -> Settings {
        Settings {
            stream: self.name.clone(),
            application: format!("leases-{}", self.name),
            start: StartAt::TrimHorizon,
            fan_out: if self.way == Way::Pushed { "flowvigil".to_owned() } else { String::new() },
            worker: worker.to_owned(),
            failover: SignedDuration::from_millis(2500),
            leases_max: 100,
            steal_max: 1,
            shard_sync: SignedDuration::from_secs(1),
            records_max: 1000,
            read_pause: SignedDuration::from_millis(20),
            bytes_per_second: 2 << 20,
            idle: SignedDuration::from_millis(50),
            backoff_max: SignedDuration::from_secs(1),
            timeout: SignedDuration::from_secs(2),
        }
    }

    async fn join(&self, worker: &str) -> Kinesis {
        Kinesis::open(&self.aws, &self.settings(worker), &ingest::Settings::default()).await.unwrap()
    }
}

fn line(number: u16) -> String {
    format!(
        "2 123456789012 eni-{} 10.0.0.1 10.0.0.2 {number} 443 6 10 5000 1700000000 1700000060 ACCEPT OK",
        number % 7
    )
}

/// So often in a row a shard may be idle before it has nothing: what is pushed comes every 200 ms.
const IDLE: u32 = 10;

/// Reads until the shard has nothing more, is ended or lost; answers the numbers, where it stands, and what ended it.
async fn drain(shard: &mut dyn Shard) -> (Vec<u16>, Option<Position>, Read) {
    let (mut numbers, mut position, mut idle) = (Vec::new(), None, 0);
    loop {
        match shard.read().await.unwrap() {
            Read::Batch(batch) => {
                assert_eq!(batch.refused.count, 0, "{:?}", batch.refused);
                numbers.extend(batch.records.iter().map(|r| r.source_port));
                position = batch.position;
                idle = 0;
            }
            Read::Idle if idle < IDLE => idle += 1,
            other => return (numbers, position, other),
        }
    }
}

/// Reads until there are so many numbers, whatever fails meanwhile, and then whatever more there is.
async fn read_until(shard: &mut dyn Shard, count: usize) -> Vec<u16> {
    let mut numbers = Vec::new();
    let enough = eventually(Duration::from_secs(30), async || {
        if let Ok(Read::Batch(batch)) = shard.read().await {
            numbers.extend(batch.records.iter().map(|r| r.source_port));
        }
        numbers.len() >= count
    });
    enough.await;
    numbers.extend(drain(shard).await.0);
    numbers
}

/// Another endpoint for one service, and for the rest what the environment has.
#[derive(Debug)]
struct Endpoint {
    service: &'static str,
    url: String,
}

impl LoadServiceConfig for Endpoint {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        if (key.env(), key.service_id()) == ("AWS_ENDPOINT_URL", self.service) {
            return Some(self.url.clone());
        }
        let of_service = format!("{}_{}", key.env(), key.service_id().to_uppercase());
        std::env::var(of_service).or_else(|_| std::env::var(key.env())).ok()
    }
}

/// The way to a server, which can be closed: what is open breaks, and nothing new comes through.
struct Door {
    url: String,
    open: watch::Sender<bool>,
    /// What the server was sent.
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Door {
    async fn before(upstream: &str) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let upstream = upstream.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let (open, told) = watch::channel(true);
        let sent = Arc::new(Mutex::new(Vec::new()));
        let seen = sent.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *told.borrow() {
                    let server = TcpStream::connect(&upstream).await.unwrap();
                    tokio::spawn(pass(client, server, told.clone(), seen.clone()));
                }
            }
        });
        Door { url, open, sent }
    }

    fn was_sent(&self, text: &str) -> bool {
        self.sent.lock().unwrap().windows(text.len()).any(|part| part == text.as_bytes())
    }
}

async fn pass(client: TcpStream, server: TcpStream, mut open: watch::Receiver<bool>, sent: Arc<Mutex<Vec<u8>>>) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let asking = async {
        let mut part = vec![0; 65_536];
        while let Ok(read @ 1..) = from_client.read(&mut part).await {
            sent.lock().unwrap().extend_from_slice(&part[..read]);
            if to_server.write_all(&part[..read]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = asking => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}

async fn next(source: &mut Kinesis) -> Box<dyn Shard> {
    let shard = tokio::time::timeout(Duration::from_secs(20), source.next_shard()).await;
    shard.expect("a shard within 20 s").unwrap().expect("a stream does not end")
}

async fn every_record_of_every_shard_is_read_in_order(way: Way) {
    let Some(stream) = Stream::new(3, way).await else { return };
    stream.put(0..300).await;
    let mut source = stream.join("a").await;
    let mut all = BTreeSet::new();
    for _ in 0..3 {
        let mut shard = next(&mut source).await;
        let (numbers, position, _) = drain(&mut *shard).await;
        assert!(numbers.is_sorted());
        assert!(position.is_some() && !numbers.is_empty());
        all.extend(numbers);
    }
    assert_eq!(all, (0..300).collect());
}

async fn a_restart_goes_on_behind_the_checkpoint_and_reads_the_rest_again(way: Way) {
    let Some(stream) = Stream::new(1, way).await else { return };
    stream.put(0..50).await;
    let mut source = stream.join("a").await;
    let mut shard = next(&mut source).await;
    let (numbers, position, _) = drain(&mut *shard).await;
    assert_eq!(numbers.len(), 50);
    shard.checkpoint(&position.unwrap()).await.unwrap();
    stream.put(50..60).await;
    let (numbers, ..) = drain(&mut *shard).await;
    assert_eq!(numbers, (50..60).collect::<Vec<_>>());
    // Dropped without a release: a crash, after ten records that were not checkpointed.
    drop(shard);
    drop(source);
    let mut source = stream.join("b").await;
    let mut shard = next(&mut source).await;
    assert_eq!(drain(&mut *shard).await.0, (50..60).collect::<Vec<_>>());
}

async fn a_released_shard_is_taken_without_waiting_for_the_lease_to_expire(way: Way) {
    let Some(stream) = Stream::new(1, way).await else { return };
    stream.put(0..5).await;
    let mut settings = stream.settings("a");
    settings.failover = SignedDuration::from_secs(3600);
    let ingest = ingest::Settings::default();
    let mut source = Kinesis::open(&stream.aws, &settings, &ingest).await.unwrap();
    let mut shard = next(&mut source).await;
    let (_, position, _) = drain(&mut *shard).await;
    shard.checkpoint(&position.unwrap()).await.unwrap();
    shard.release().await.unwrap();
    drop(source);
    settings.worker = "b".to_owned();
    let mut source = Kinesis::open(&stream.aws, &settings, &ingest).await.unwrap();
    let mut shard = next(&mut source).await;
    assert!(drain(&mut *shard).await.0.is_empty());
}

async fn two_workers_share_the_shards_and_none_is_read_by_both(way: Way) {
    let Some(stream) = Stream::new(4, way).await else { return };
    stream.put(0..100).await;
    let mut first = stream.join("a").await;
    let mut held = BTreeMap::new();
    for _ in 0..4 {
        let shard = next(&mut first).await;
        held.insert(shard.id().clone(), shard);
    }
    let mut second = stream.join("b").await;
    let stolen = [next(&mut second).await, next(&mut second).await];
    for shard in &stolen {
        let before = held.get_mut(shard.id()).unwrap();
        let lost = async || matches!(before.read().await, Ok(Read::Lost));
        assert!(eventually(Duration::from_secs(5), lost).await, "the old owner notices");
    }
    let stolen: BTreeSet<_> = stolen.iter().map(|s| s.id().clone()).collect();
    for (id, shard) in &mut held {
        let speaks = !matches!(shard.read().await, Ok(Read::Lost));
        assert_eq!(speaks, !stolen.contains(id), "{id:?}");
    }
}

async fn a_lost_lease_takes_no_checkpoint(way: Way) {
    let Some(stream) = Stream::new(1, way).await else { return };
    stream.put(0..10).await;
    let mut source = stream.join("a").await;
    let mut shard = next(&mut source).await;
    let (_, position, _) = drain(&mut *shard).await;
    // Another program writes the lease, as one that took it over would.
    let dynamo = aws_sdk_dynamodb::Client::new(&stream.aws);
    let value = aws_sdk_dynamodb::types::AttributeValue::N("1000".to_owned());
    dynamo
        .update_item()
        .table_name(format!("leases-{}", stream.name))
        .key("leaseKey", aws_sdk_dynamodb::types::AttributeValue::S(shard.id().0.to_string()))
        .update_expression("SET leaseCounter = :c")
        .expression_attribute_values(":c", value)
        .send()
        .await
        .unwrap();
    assert!(matches!(shard.checkpoint(&position.unwrap()).await, Err(IngestError::Lost { .. })));
    assert!(matches!(shard.read().await, Ok(Read::Lost)));
}

async fn children_of_a_split_and_of_a_merge_are_read_after_their_parents(way: Way) {
    let Some(stream) = Stream::new(1, way).await else { return };
    stream.put(0..40).await;
    stream.split_first().await;
    stream.put(40..80).await;
    stream.merge_first().await;
    stream.put(80..120).await;
    let mut source = stream.join("a").await;
    let mut order = Vec::new();
    for generation in 0..4 {
        let mut shard = next(&mut source).await;
        assert!(shard.parents().iter().all(|p| order.contains(p)), "{:?} before its parents", shard.id());
        order.push(shard.id().clone());
        let (numbers, position, ended) = drain(&mut *shard).await;
        let expected = match generation {
            0 => 0..40,
            1 | 2 => 40..80,
            _ => 80..120,
        };
        assert!(numbers.iter().all(|n| expected.contains(n)) && !numbers.is_empty(), "{generation}: {numbers:?}");
        if let Some(position) = position {
            shard.checkpoint(&position).await.unwrap();
        }
        if generation < 3 {
            assert!(matches!(ended, Read::End), "{ended:?}");
            shard.release().await.unwrap();
        }
    }
}

async fn a_merge_of_a_merge_waits_for_both_though_one_has_no_lease_yet(way: Way) {
    let Some(stream) = Stream::new(3, way).await else { return };
    stream.put(0..90).await;
    stream.merge_first().await;
    stream.merge_first().await;
    stream.put(90..120).await;
    let mut source = stream.join("a").await;
    let mut first = Vec::new();
    for _ in 0..3 {
        first.push(next(&mut source).await);
    }
    // The one that is merged only with what comes of the others ends first.
    first.sort_by_key(|shard| !shard.id().0.ends_with('2'));
    let mut order = Vec::new();
    for mut shard in first {
        let (_, position, ended) = drain(&mut *shard).await;
        assert!(matches!(ended, Read::End), "{ended:?}");
        shard.checkpoint(&position.unwrap()).await.unwrap();
        shard.release().await.unwrap();
        order.push(shard.id().clone());
        if order.len() < 3 {
            let early = tokio::time::timeout(Duration::from_millis(2500), source.next_shard()).await;
            assert!(early.is_err(), "a shard is offered while a parent of it is being read: {order:?} have ended");
        }
    }
    for expected in [0..0, 90..120] {
        let mut shard = next(&mut source).await;
        assert!(shard.parents().iter().all(|p| order.contains(p)), "{:?} before its parents", shard.id());
        order.push(shard.id().clone());
        let (numbers, _, _) = drain(&mut *shard).await;
        assert_eq!(numbers, expected.clone().collect::<Vec<_>>());
        if expected.is_empty() {
            shard.release().await.unwrap();
        }
    }
}

#[tokio::test]
async fn reading_goes_on_when_iterators_expire() {
    let Some(stream) = Stream::new(1, Way::Polled).await else { return };
    stream.put(0..10).await;
    let mut source = stream.join("a").await;
    let mut shard = next(&mut source).await;
    assert_eq!(drain(&mut *shard).await.0.len(), 10);
    // tests/run lets iterators live for two seconds instead of five minutes.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    stream.put(10..20).await;
    let mut numbers = Vec::new();
    for _ in 0..20 {
        numbers.extend(drain(&mut *shard).await.0);
    }
    assert_eq!(numbers, (10..20).collect::<Vec<_>>());
}

async fn a_start_at_latest_reads_what_comes_after_it(way: Way) {
    let Some(stream) = Stream::new(1, way).await else { return };
    stream.put(0..10).await;
    let settings = Settings { start: StartAt::Latest, ..stream.settings("a") };
    let mut source = Kinesis::open(&stream.aws, &settings, &ingest::Settings::default()).await.unwrap();
    let mut shard = next(&mut source).await;
    assert!(drain(&mut *shard).await.0.is_empty());
    stream.put(10..20).await;
    assert_eq!(drain(&mut *shard).await.0, (10..20).collect::<Vec<_>>());
}

/// Ministack keeps the arrival of a record, which ferrokinesis answers wrongly for.
#[tokio::test]
async fn a_start_at_a_moment_reads_what_arrived_at_or_after_it() {
    if aws().await.is_none() {
        return;
    }
    let ministack = flowvigil::aws::load_at(&std::env::var("AWS_ENDPOINT_URL").unwrap()).await;
    let stream = Stream::on(ministack, 1, Way::Polled).await;
    stream.put(0..10).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let moment = Timestamp::now();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    stream.put(10..20).await;
    let open = async |start: StartAt, application: &str| {
        let settings = Settings { start, application: application.to_owned(), ..stream.settings("a") };
        Kinesis::open(&stream.aws, &settings, &ingest::Settings::default()).await.unwrap()
    };
    let mut source = open(StartAt::Timestamp(moment), &unique("leases")).await;
    let mut shard = next(&mut source).await;
    assert_eq!(drain(&mut *shard).await.0, (10..20).collect::<Vec<_>>());
    let before = moment - SignedDuration::from_secs(60);
    let mut source = open(StartAt::Timestamp(before), &unique("leases")).await;
    let mut shard = next(&mut source).await;
    assert_eq!(drain(&mut *shard).await.0, (0..20).collect::<Vec<_>>());
}

async fn a_connection_that_breaks_costs_no_record(way: Way) {
    let Some(stream) = Stream::new(1, way).await else { return };
    let door = Door::before(&std::env::var("AWS_ENDPOINT_URL_KINESIS").unwrap()).await;
    let aws = stream.aws.to_builder().service_config(Endpoint { service: "Kinesis", url: door.url.clone() }).build();
    let mut source = Kinesis::open(&aws, &stream.settings("a"), &ingest::Settings::default()).await.unwrap();
    let mut shard = next(&mut source).await;
    for round in 0..2 {
        let (first, second) = (round * 20..round * 20 + 10, round * 20 + 10..round * 20 + 20);
        stream.put(first.clone()).await;
        assert_eq!(read_until(&mut *shard, 10).await, first.collect::<Vec<_>>());
        door.open.send_replace(false);
        let broken = async || shard.read().await.is_err();
        assert!(eventually(Duration::from_secs(10), broken).await, "the break is noticed");
        stream.put(second.clone()).await;
        door.open.send_replace(true);
        assert_eq!(read_until(&mut *shard, 10).await, second.collect::<Vec<_>>());
    }
    // The server pushes everything again, whatever position it is told; so that is looked at here.
    let goes_on = r#""StartingPosition":{"Type":"AFTER_SEQUENCE_NUMBER","SequenceNumber":""#;
    assert_eq!(door.was_sent(goes_on), way == Way::Pushed);
}

/// DynamoDB tells of a table that it has made before every one of its servers has heard of it.
#[tokio::test]
async fn a_lease_table_that_was_made_a_moment_ago_and_is_not_seen_yet_is_waited_for() {
    let Some(stream) = Stream::new(1, Way::Polled).await else { return };
    let proxy = Proxy::before(&std::env::var("AWS_ENDPOINT_URL").unwrap(), 0).await;
    let aws = stream.aws.to_builder().service_config(Endpoint { service: "DynamoDB", url: proxy.url.clone() }).build();
    proxy.hide_tables(3);
    let opened = Kinesis::open(&aws, &stream.settings("a"), &ingest::Settings::default()).await;
    assert_eq!(proxy.tables_hidden(), 0, "it asked until it was seen");
    let mut source = opened.unwrap();
    stream.put(0..10).await;
    let mut shard = next(&mut source).await;
    assert_eq!(read_until(&mut *shard, 10).await, (0..10).collect::<Vec<_>>());
}

/// A shard that is pushed through a proxy.
async fn pushed() -> Option<(Stream, Proxy, Kinesis, Box<dyn Shard>)> {
    let stream = Stream::new(1, Way::Pushed).await?;
    let proxy = Proxy::before(&std::env::var("AWS_ENDPOINT_URL_KINESIS").unwrap(), 0).await;
    let aws = stream.aws.to_builder().service_config(Endpoint { service: "Kinesis", url: proxy.url.clone() }).build();
    let mut source = Kinesis::open(&aws, &stream.settings("a"), &ingest::Settings::default()).await.unwrap();
    let shard = next(&mut source).await;
    Some((stream, proxy, source, shard))
}

/// Reads so many numbers, and nothing may fail meanwhile: what Kinesis does in the course of things is no trouble.
async fn read_calmly(shard: &mut dyn Shard, count: usize) -> Vec<u16> {
    let mut numbers = Vec::new();
    let enough = eventually(Duration::from_secs(30), async || {
        if let Read::Batch(batch) = shard.read().await.unwrap() {
            numbers.extend(batch.records.iter().map(|r| r.source_port));
        }
        numbers.len() >= count
    });
    assert!(enough.await, "{numbers:?}");
    numbers
}

/// Kinesis ends a subscription after five minutes, and with an exception when the consumer has subscribed elsewhere.
#[tokio::test]
async fn a_subscription_that_ends_is_made_again_where_it_ended() {
    for exception in [None, Some("ResourceInUseException"), Some("InternalFailureException")] {
        let Some((stream, proxy, _source, mut shard)) = pushed().await else { return };
        stream.put(0..10).await;
        assert_eq!(read_calmly(&mut *shard, 10).await, (0..10).collect::<Vec<_>>());
        proxy.end_subscriptions(exception);
        let ended = async || match (shard.read().await, exception) {
            (Ok(Read::Idle), _) => proxy.subscribed().len() > 1,
            (Err(IngestError::Retry { .. }), Some("InternalFailureException")) => true,
            (other, _) => panic!("{exception:?}: {other:?}"),
        };
        assert!(eventually(Duration::from_secs(20), ended).await, "{exception:?}: it is not made again");
        stream.put(10..20).await;
        assert_eq!(read_calmly(&mut *shard, 10).await, (10..20).collect::<Vec<_>>(), "{exception:?}");
        let asked = proxy.subscribed();
        let kinds: Vec<&str> = asked.iter().map(|from| from["Type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["TRIM_HORIZON", "AFTER_SEQUENCE_NUMBER"], "{exception:?}");
    }
}

#[tokio::test]
async fn who_subscribes_again_too_early_waits_and_tries_again() {
    let Some((stream, proxy, _source, mut shard)) = pushed().await else { return };
    proxy.refuse_subscriptions(2);
    stream.put(0..10).await;
    assert_eq!(read_calmly(&mut *shard, 10).await, (0..10).collect::<Vec<_>>());
    assert_eq!(proxy.subscribed().len(), 3, "two were refused");
}
