//! Judge and delivery of several tasks on one store, whose incidents get lost.

use std::io::Write;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::*;
use crate::correlation::local::LocalIncidents;
use crate::correlation::{CorrelationError, Incident};
use crate::finding::Finding;
use crate::flow::Address;
use crate::ingest::{Fence, ShardId};
use crate::pipeline::judgement::{Judgement, Message, ToDelivery};
use crate::pipeline::shard::{Barrier, State, Step};
use crate::pipeline::tests::{common, scan_of};
use crate::pipeline::{PipelineError, delivery};
use crate::publish::dead_letter::Letters;
use crate::publish::local::{LineAnnouncer, SqliteStore};
use crate::publish::rules::{Rule, Rules};
use crate::settings::Settings;
use crate::telemetry::trace::BatchTrace;

/// Incidents that all tasks share, and that can be lost.
struct Lossy(Mutex<Arc<LocalIncidents>>);

impl Lossy {
    fn now(&self) -> Arc<LocalIncidents> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl IncidentStore for Lossy {
    async fn fold(&self, shard: &ShardId, findings: &[Finding]) -> Result<Vec<Incident>, CorrelationError> {
        self.now().fold(shard, findings).await
    }

    async fn expire(&self, watermarks: &Watermarks) -> Result<Vec<Incident>, CorrelationError> {
        self.now().expire(watermarks).await
    }

    async fn abandoned(&self, watermarks: &Watermarks, told: &[Told]) -> Result<Vec<bool>, CorrelationError> {
        self.now().abandoned(watermarks, told).await
    }

    async fn get(&self, id: Uuid) -> Result<Option<Incident>, CorrelationError> {
        self.now().get(id).await
    }
}

/// What was announced.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What several tasks share.
struct World {
    settings: Settings,
    incidents: Arc<Lossy>,
    store: Arc<SqliteStore>,
    heard: Heard,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let mut settings = Settings::defaults();
        // Every step of a test is a look.
        settings.pipeline.sweep_every = jiff::SignedDuration::from_nanos(1);
        settings.validation.storm.anomalies_max = 1000;
        // A shard is behind here that nobody waits for.
        settings.pipeline.shard_wait = jiff::SignedDuration::ZERO;
        World {
            incidents: Arc::new(Lossy(Mutex::new(Arc::new(LocalIncidents::new(&settings.correlation))))),
            store: Arc::new(SqliteStore::in_memory().unwrap()),
            heard: Heard::default(),
            folder: tempfile::tempdir().unwrap(),
            settings,
        }
    }

    fn lose_all_incidents(&self) {
        *self.incidents.0.lock().unwrap() = Arc::new(LocalIncidents::new(&self.settings.correlation));
    }

    async fn task(&self, shards: &[&str]) -> Task {
        let common = common(&self.settings, self.folder.path());
        let judgement = Judgement::new(&common, self.incidents.clone(), self.store.clone());
        let (to_judgement, messages) = mpsc::channel(1);
        let (to_delivery, deliveries) = mpsc::channel(1);
        let announcer = Arc::new(LineAnnouncer::to(Box::new(self.heard.clone())));
        let mut stages = JoinSet::new();
        let (delivered, delivering) = watch::channel(0);
        stages.spawn(judgement.run(messages, ToDelivery { deliveries: to_delivery, delivered: delivering }));
        let letters = Arc::new(Letters::in_file(self.folder.path().join("dead-letters.ndjson")));
        let (store, incidents) = (self.store.clone(), self.incidents.clone());
        let places = delivery::Places { store, announcer, incidents, letters };
        stages.spawn(delivery::run(common, places, deliveries, delivered));
        for shard in shards {
            let (shard, fence) = (name(shard), Fence::default());
            let enter = Message::Enter { shard, fence, siblings: Vec::new(), judgements: Vec::new() };
            assert!(to_judgement.send(enter).await.is_ok());
        }
        Task { to_judgement, _stages: stages }
    }

    async fn open(&self) -> Vec<Anomaly> {
        let query = Query { status: Some(Status::Open), limit: 1000, ..Query::default() };
        self.store.query(&query).await.unwrap().anomalies
    }

    /// What was announced of each anomaly, by its id.
    fn announced(&self) -> BTreeMap<String, Vec<String>> {
        let mut announced: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in String::from_utf8(self.heard.0.lock().unwrap().clone()).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            announced.entry(text(&line["detail"]["anomaly_id"])).or_default().push(text(&line["detail-type"]));
        }
        announced
    }

    /// What was announced of the only anomaly.
    fn story(&self) -> Vec<String> {
        let announced = self.announced();
        assert_eq!(announced.len(), 1, "{announced:?}");
        announced.into_values().next().unwrap()
    }
}

/// Tiers 3 and 4 and delivery of one task.
struct Task {
    to_judgement: mpsc::Sender<Message>,
    _stages: JoinSet<Result<&'static str, PipelineError>>,
}

impl Task {
    /// A shard says this and its event time moves there; waits until what comes of it is delivered.
    async fn step(&self, shard: &str, findings: Vec<Finding>, watermark: u32) {
        let (watermark, trace) = (Some(EventTime(watermark)), BatchTrace::untraced());
        let (passed, mut passing) = watch::channel(None);
        let barrier =
            Barrier { shard: name(shard), number: 1, position: None, state: State::default(), passed: passed.into() };
        let step = Step { findings, vectors: Vec::new(), watermark, idle: false, trace, barrier: Some(barrier) };
        assert!(self.to_judgement.send(Message::Step(name(shard), step)).await.is_ok());
        passing.wait_for(Option::is_some).await.unwrap();
    }

    async fn passes(&self, shard: &str, watermark: u32) {
        self.step(shard, Vec::new(), watermark).await;
    }
}

fn name(shard: &str) -> ShardId {
    ShardId(shard.into())
}

/// A scan of a host in a minute.
fn scan(scanner: u32, minute: u32) -> Finding {
    scan_of(scanner, minute, Address::v4(0x0a00_0005))
}

/// The last moment at which a scan that was told in a minute may still go on: the gap of an hour behind what was seen of it,
/// and behind that the five minutes for which it need not have been told again.
const fn end_of(minute: u32) -> u32 {
    minute * 60 + 50 + 3600 + 300
}

/// The first end of a window that is behind that.
const fn after(minute: u32) -> u32 {
    end_of(minute) / 60 * 60 + 60
}

/// A moment at which everything is over.
const END: u32 = 1_000_000;

#[tokio::test]
async fn what_correlation_has_lost_is_closed_once_when_it_is_over_by_whichever_task() {
    let world = World::new();
    let (one, two) = (world.task(&["a"]).await, world.task(&["b"]).await);
    one.step("a", vec![scan(1, 10)], 700).await;
    assert_eq!(world.story(), ["Anomaly Detected"]);
    world.lose_all_incidents();
    for _ in 0..3 {
        one.passes("a", end_of(10)).await;
        two.passes("b", end_of(10)).await;
    }
    assert_eq!(world.open().await.len(), 1, "it may still go on");
    one.passes("a", after(10)).await;
    two.passes("b", after(10)).await;
    assert_eq!(world.open().await.len(), 1, "one look is none");
    one.passes("a", after(10)).await;
    assert_eq!((world.open().await.len(), world.story().len()), (0, 2));
    for _ in 0..3 {
        two.passes("b", END).await;
        one.passes("a", END).await;
    }
    assert_eq!(world.story(), ["Anomaly Detected", "Anomaly Closed"]);
}

#[tokio::test]
async fn what_a_shard_may_still_add_to_is_not_closed() {
    let world = World::new();
    let task = world.task(&["a", "behind"]).await;
    task.step("a", vec![scan(1, 10)], 700).await;
    world.lose_all_incidents();
    for _ in 0..3 {
        task.passes("a", END).await;
    }
    assert_eq!(world.open().await.len(), 1, "nothing is known of the other shard yet");
    for _ in 0..3 {
        task.passes("behind", end_of(10)).await;
    }
    assert_eq!(world.open().await.len(), 1, "it may bring more");
    for _ in 0..2 {
        task.passes("behind", after(10)).await;
    }
    assert_eq!(world.open().await, []);
}

#[tokio::test]
async fn what_somebody_goes_on_with_under_another_id_is_not_closed() {
    let world = World::new();
    let task = world.task(&["a"]).await;
    task.step("a", (10..30).map(|minute| scan(1, minute)).collect(), 1800).await;
    world.lose_all_incidents();
    // The rest of the story is an incident of its own, and goes under the id that was told. Alone it says less than was told.
    let other = world.task(&["a"]).await;
    other.step("a", vec![scan(1, 60)], 3700).await;
    let [told] = &world.open().await[..] else { panic!("{:?}", world.announced()) };
    assert!(told.last_seen <= scan(1, 29).last_seen);
    for _ in 0..4 {
        other.passes("a", after(29)).await;
    }
    assert_eq!(world.open().await.len(), 1);
    // And is closed with it, in the ordinary way.
    for _ in 0..4 {
        other.passes("a", END).await;
    }
    let told = world.story();
    assert_eq!((told.iter().filter(|told| *told == "Anomaly Closed").count(), world.open().await.len()), (1, 0));
}

#[tokio::test]
async fn what_was_told_again_between_two_looks_is_not_closed() {
    let world = World::new();
    let task = world.task(&["a"]).await;
    task.step("a", vec![scan(1, 10)], 700).await;
    world.lose_all_incidents();
    task.passes("a", END).await;
    let [told] = &world.open().await[..] else { panic!("it is open") };
    // By a task that cannot ask the others.
    world.store.record(&Anomaly { updates: told.updates + 1, ..told.clone() }).await.unwrap();
    task.passes("a", END).await;
    assert_eq!(world.open().await.len(), 1);
    task.passes("a", END).await;
    assert_eq!(world.open().await, []);
}

#[tokio::test]
async fn more_than_a_page_of_lost_ones_are_closed_each_once() {
    let world = World::new();
    let task = world.task(&["a"]).await;
    let many = 2 * PAGE as u32 + 30;
    task.step("a", (0..many).map(|scanner| scan(scanner, 10)).collect(), 700).await;
    assert_eq!(world.open().await.len(), many as usize);
    world.lose_all_incidents();
    // Two rounds of three pages, and one more for those that moved to another page while the rest was closed.
    for _ in 0..9 {
        task.passes("a", END).await;
    }
    assert_eq!(world.open().await, []);
    let announced = world.announced();
    assert_eq!(announced.len(), many as usize);
    assert!(announced.values().all(|told| *told == ["Anomaly Detected", "Anomaly Closed"]), "{announced:?}");
}

#[tokio::test]
async fn what_became_part_of_one_that_is_not_told_is_closed_though_the_task_that_told_it_died_before_it_heard() {
    let world = World::new();
    let dies = world.task(&["a"]).await;
    dies.step("a", vec![scan(1, 200)], 12_100).await;
    let body = serde_json::json!({"name": "weekly", "owner": "ada", "reason": "ours", "created": "1970-01-01T00:00:00Z",
        "expires": "2099-01-01T00:00:00Z", "match": {"actors": ["203.0.113.1"]}});
    world.store.put_rule(&Rule { name: "weekly".to_owned(), body: body.to_string() }).await.unwrap();
    // An earlier episode, of which nothing is told, and then what joins the two: it is folded, and nobody hears of it.
    world.incidents.fold(&name("b"), &[scan(1, 100)]).await.unwrap();
    let joined = world.incidents.fold(&name("b"), &[scan(1, 150)]).await.unwrap();
    assert_eq!(joined.iter().filter(|incident| incident.absorbed_by.is_some()).count(), 1);
    drop(dies);
    // What was not told is read again.
    let next = world.task(&["a", "b"]).await;
    next.passes("a", 12_100).await;
    next.step("b", vec![scan(1, 100), scan(1, 150)], 9_100).await;
    assert_eq!(world.store.silences(None, 10).await.unwrap().len(), 1, "the whole is not told");
    next.passes("a", end_of(200)).await;
    next.passes("b", end_of(200) - 300).await;
    assert_eq!(world.open().await.len(), 1, "it may go on");
    for _ in 0..3 {
        next.passes("a", END).await;
        next.passes("b", END).await;
    }
    assert_eq!(
        (world.open().await.len(), world.story()),
        (0, vec!["Anomaly Detected".to_owned(), "Anomaly Closed".to_owned()])
    );
}

#[tokio::test]
async fn a_service_that_is_told_not_to_look_does_not() {
    let mut world = World::new();
    world.settings.pipeline.sweep_every = jiff::SignedDuration::ZERO;
    let task = world.task(&["a"]).await;
    task.step("a", vec![scan(1, 10)], 700).await;
    world.lose_all_incidents();
    for _ in 0..3 {
        task.passes("a", END).await;
    }
    assert_eq!(world.open().await.len(), 1);
}
