//! Kinesis shards and their leases, against a real stream and a real lease table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use flowvigil::ingest::kinesis::{Kinesis, Settings, StartAt};
use flowvigil::ingest::{self, FlowSource, IngestError, Position, Read, Shard};
use jiff::SignedDuration;

use crate::servers::{aws, eventually, unique};

/// A stream of its own for one test.
struct Stream {
    client: Client,
    aws: SdkConfig,
    name: String,
}

impl Stream {
    async fn new(shards: i32) -> Option<Stream> {
        let aws = aws().await?;
        let client = Client::new(&aws);
        let name = unique("stream");
        client.create_stream().stream_name(&name).shard_count(shards).send().await.unwrap();
        let stream = Stream { client, aws, name };
        stream.wait_active().await;
        Some(stream)
    }

    async fn wait_active(&self) {
        let active = async || {
            let told = self.client.describe_stream_summary().stream_name(&self.name).send().await.unwrap();
            told.stream_description_summary().unwrap().stream_status().as_str() == "ACTIVE"
        };
        assert!(eventually(Duration::from_secs(10), active).await);
    }

    /// Puts one line per key; the source port says which it is.
    async fn put(&self, numbers: std::ops::Range<u16>) {
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

    async fn merge_all(&self) {
        let shards = self.client.list_shards().stream_name(&self.name).send().await.unwrap();
        let open: Vec<_> = shards
            .shards()
            .iter()
            .filter(|s| s.sequence_number_range().unwrap().ending_sequence_number().is_none())
            .collect();
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

    fn settings(&self, worker: &str) -> Settings {
        Settings {
            stream: self.name.clone(),
            application: format!("leases-{}", self.name),
            start: StartAt::TrimHorizon,
            worker: worker.to_owned(),
            failover: SignedDuration::from_millis(1500),
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

/// Reads until the shard is idle, ended or lost; answers the numbers, where it stands, and what ended it.
async fn drain(shard: &mut dyn Shard) -> (Vec<u16>, Option<Position>, Read) {
    let (mut numbers, mut position) = (Vec::new(), None);
    loop {
        match shard.read().await.unwrap() {
            Read::Batch(batch) => {
                assert_eq!(batch.refused.count, 0, "{:?}", batch.refused);
                numbers.extend(batch.records.iter().map(|r| r.source_port));
                position = batch.position;
            }
            other => return (numbers, position, other),
        }
    }
}

async fn next(source: &mut Kinesis) -> Box<dyn Shard> {
    let shard = tokio::time::timeout(Duration::from_secs(20), source.next_shard()).await;
    shard.expect("a shard within 20 s").unwrap().expect("a stream does not end")
}

#[tokio::test]
async fn every_record_of_every_shard_is_read_in_order() {
    let Some(stream) = Stream::new(3).await else { return };
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

#[tokio::test]
async fn a_restart_goes_on_behind_the_checkpoint_and_reads_the_rest_again() {
    let Some(stream) = Stream::new(1).await else { return };
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

#[tokio::test]
async fn a_released_shard_is_taken_without_waiting_for_the_lease_to_expire() {
    let Some(stream) = Stream::new(1).await else { return };
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

#[tokio::test]
async fn two_workers_share_the_shards_and_none_is_read_by_both() {
    let Some(stream) = Stream::new(4).await else { return };
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

#[tokio::test]
async fn a_lost_lease_takes_no_checkpoint() {
    let Some(stream) = Stream::new(1).await else { return };
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

#[tokio::test]
async fn children_of_a_split_and_of_a_merge_are_read_after_their_parents() {
    let Some(stream) = Stream::new(1).await else { return };
    stream.put(0..40).await;
    stream.split_first().await;
    stream.put(40..80).await;
    stream.merge_all().await;
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

#[tokio::test]
async fn reading_goes_on_when_iterators_expire() {
    let Some(stream) = Stream::new(1).await else { return };
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
