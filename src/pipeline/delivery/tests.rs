//! Tiers 3 and 4 and delivery of several tasks on one store, in any order, with the store of incidents coming and going.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use proptest::prelude::*;

use super::*;
use crate::correlation::fallback::WithFallback;
use crate::correlation::local::LocalIncidents;
use crate::correlation::{CorrelationError, Incident, Watermarks};
use crate::finding::{Finding, IncidentKey, Severity, Target};
use crate::flow::{Address, EventTime};
use crate::ingest::ShardId;
use crate::pipeline::tests::{common, scan_of};
use crate::publish::Query;
use crate::publish::local::{LineAnnouncer, SqliteStore};
use crate::settings::Settings;
use crate::validation::Judge;

/// Incidents that all tasks share, and that can be away.
struct Shared {
    incidents: LocalIncidents,
    away: AtomicBool,
}

impl Shared {
    fn here(&self) -> Result<&LocalIncidents, CorrelationError> {
        let cause = "away".to_owned();
        match self.away.load(Ordering::Relaxed) {
            true => Err(CorrelationError::Retry { context: "ask".to_owned(), cause }),
            false => Ok(&self.incidents),
        }
    }
}

#[async_trait]
impl IncidentStore for Arc<Shared> {
    async fn fold(&self, shard: &ShardId, findings: &[Finding]) -> Result<Vec<Incident>, CorrelationError> {
        self.here()?.fold(shard, findings).await
    }

    async fn expire(&self, watermarks: &Watermarks) -> Result<Vec<Incident>, CorrelationError> {
        self.here()?.expire(watermarks).await
    }

    async fn get(&self, id: Uuid) -> Result<Option<Incident>, CorrelationError> {
        self.here()?.get(id).await
    }
}

/// What was announced.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut heard = self.0.lock().unwrap();
        // Whoever says the same for ever fails, and does not hang.
        if heard.len() > 50_000_000 {
            return Err(std::io::Error::other("it never ends"));
        }
        heard.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What several tasks share.
struct World {
    settings: Settings,
    shared: Arc<Shared>,
    store: Arc<SqliteStore>,
    heard: Heard,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let settings = Settings::defaults();
        let incidents = LocalIncidents::new(&settings.correlation);
        World {
            shared: Arc::new(Shared { incidents, away: AtomicBool::new(false) }),
            store: Arc::new(SqliteStore::in_memory().unwrap()),
            heard: Heard::default(),
            folder: tempfile::tempdir().unwrap(),
            settings,
        }
    }

    fn task(&self) -> Task {
        let settings = &self.settings;
        let incidents = WithFallback::new(self.shared.clone(), &settings.correlation, Box::new(|_| {})).impatient();
        let incidents: Arc<dyn IncidentStore> = Arc::new(incidents);
        let common = common(settings, self.folder.path());
        let judge = Judge::new(&settings.validation, &common.tiers.network);
        let places = Places {
            store: self.store.clone(),
            announcer: Arc::new(LineAnnouncer::to(Box::new(self.heard.clone()))),
            incidents: incidents.clone(),
            letters: Arc::new(Letters::in_file(self.folder.path().join("dead-letters.ndjson"))),
        };
        let courier = Courier::new(common, places);
        Task { incidents, judge, courier }
    }

    async fn recorded(&self) -> Vec<Anomaly> {
        self.store.query(&Query { limit: 1000, ..Query::default() }).await.unwrap().anomalies
    }

    /// What stands at the end, by content: what it is about, its span, its victims.
    async fn stories(&self) -> Vec<(IncidentKey, EventTime, EventTime, Vec<Target>, Status)> {
        let whole = self.recorded().await.into_iter().filter(|anomaly| anomaly.merged_into.is_none());
        let mut stories: Vec<_> =
            whole.map(|a| (a.key().unwrap(), a.first_seen, a.last_seen, a.targets, a.status)).collect();
        stories.sort_by_key(|(key, first, ..)| (*key, *first));
        stories
    }

    /// The ids that were announced, each with what was said of it.
    fn announced(&self) -> BTreeMap<String, Vec<String>> {
        let mut announced: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in String::from_utf8(self.heard.0.lock().unwrap().clone()).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            announced.entry(text(&line["detail"]["anomaly_id"])).or_default().push(text(&line["detail-type"]));
        }
        announced
    }
}

/// One task's tiers 3 and 4 and its delivery.
struct Task {
    incidents: Arc<dyn IncidentStore>,
    judge: Judge,
    courier: Courier,
}

impl Task {
    async fn fold(&mut self, shard: &str, finding: &Finding) {
        let touched = self.incidents.fold(&ShardId(shard.into()), std::slice::from_ref(finding)).await.unwrap();
        self.deliver(&touched).await;
    }

    async fn expire(&mut self, watermark: u32) {
        let watermarks = Watermarks::from([(ShardId("all".into()), EventTime(watermark))]);
        let closed = self.incidents.expire(&watermarks).await.unwrap();
        self.deliver(&closed).await;
    }

    async fn deliver(&mut self, incidents: &[Incident]) {
        for incident in incidents.iter().filter(|incident| !self.judge.knows(incident.id)).collect::<Vec<_>>() {
            if let Some(anomaly) = self.courier.desk.places.store.get(incident.id).await.unwrap() {
                self.judge.remember(&anomaly);
            }
        }
        let outcomes = self.judge.judge(incidents);
        let outcomes = outcomes.into_iter().map(|outcome| Judged { outcome, fence: None }).collect();
        self.courier.deliver(Delivery { outcomes, ..Delivery::default() }).await.unwrap();
    }
}

impl Task {
    /// Records what comes of findings and of a watermark, and dies before it announces any of it.
    async fn record_and_die(mut self, findings: &[Finding], watermark: u32) {
        for finding in findings {
            let touched = self.incidents.fold(&ShardId("0".into()), std::slice::from_ref(finding)).await.unwrap();
            self.record(&touched).await;
        }
        let watermarks = Watermarks::from([(ShardId("0".into()), EventTime(watermark))]);
        let closed = self.incidents.expire(&watermarks).await.unwrap();
        self.record(&closed).await;
    }

    async fn record(&mut self, incidents: &[Incident]) {
        let mut never_announced = Vec::new();
        for outcome in self.judge.judge(incidents) {
            self.courier.record(outcome, &mut never_announced).await;
        }
    }
}

#[tokio::test]
async fn what_was_recorded_before_a_crash_is_announced_by_the_next_life_as_detected_and_as_closed_if_it_is() {
    let world = World::new();
    world.task().record_and_die(&[scan(3, 10), scan(3, 30)], END).await;
    world.task().record_and_die(&[scan(1, 10)], 0).await;
    world.task().record_and_die(&[scan(2, 10), scan(2, 30), scan(2, 50)], 0).await;
    let mut heard_of = world.task();
    heard_of.fold("0", &scan(4, 10)).await;
    let said = |scanner: u32, announced: &BTreeMap<String, Vec<String>>, recorded: &[Anomaly]| -> Vec<String> {
        let of = recorded.iter().find(|a| a.actor == scan(scanner, 0).actor).expect("it is recorded");
        announced.get(&of.anomaly_id.to_string()).cloned().unwrap_or_default()
    };
    let recorded = world.recorded().await;
    assert_eq!((recorded.len(), world.announced().len()), (4, 1), "the others were recorded only");
    world.task().courier.announce_leftovers().await.unwrap();
    let announced = world.announced();
    assert_eq!(said(1, &announced, &recorded), ["Anomaly Detected"]);
    assert_eq!(said(2, &announced, &recorded), ["Anomaly Detected"], "nobody has heard of it, so it is no update");
    assert_eq!(said(3, &announced, &recorded), ["Anomaly Detected", "Anomaly Closed"]);
    assert_eq!(said(4, &announced, &recorded), ["Anomaly Detected"], "it was told before");
    // And once is enough.
    world.task().courier.announce_leftovers().await.unwrap();
    assert_eq!(world.announced(), announced);
}

#[tokio::test]
async fn what_was_announced_by_a_life_that_died_before_it_noted_that_is_announced_once_more() {
    let world = World::new();
    world.task().record_and_die(&[scan(1, 10)], 0).await;
    let recorded = world.recorded().await;
    let dying = world.task();
    let results = dying.courier.desk.places.announcer.announce(&[(Announcement::Detected, recorded[0].clone())]).await;
    assert!(results.iter().all(Result::is_ok));
    world.task().courier.announce_leftovers().await.unwrap();
    world.task().courier.announce_leftovers().await.unwrap();
    let announced = world.announced();
    assert_eq!(announced[&recorded[0].anomaly_id.to_string()], ["Anomaly Detected"; 2]);
}

/// A database that takes everything in and does not keep that something was announced.
#[tokio::test]
async fn a_leftover_that_cannot_be_marked_as_announced_is_said_once() {
    let mut world = World::new();
    let file = world.folder.path().join("anomalies.db");
    world.store = Arc::new(SqliteStore::open(&file).unwrap());
    let forgetful = "CREATE TRIGGER forgetful BEFORE UPDATE OF announced ON anomalies BEGIN SELECT RAISE(IGNORE); END";
    rusqlite::Connection::open(&file).unwrap().execute_batch(forgetful).unwrap();
    world.task().record_and_die(&[scan(1, 10), scan(2, 10)], 0).await;
    world.task().courier.announce_leftovers().await.expect("it comes to an end");
    assert_eq!(world.store.unannounced(10).await.unwrap().len(), 2, "nothing was marked");
    let announced = world.announced();
    assert_eq!(announced.len(), 2);
    assert!(announced.values().all(|told| *told == ["Anomaly Detected"]), "{announced:?}");
}

#[tokio::test]
async fn more_than_a_batch_of_leftovers_are_all_announced() {
    let world = World::new();
    let many = LEFTOVERS as u32 + 30;
    let scans: Vec<Finding> =
        (0..many).map(|scanner| Finding { severity: Severity::Low, ..scan(scanner, 1) }).collect();
    let mut settings = world.settings.clone();
    settings.validation.storm.anomalies_max = many;
    let world = World { settings, ..world };
    world.task().record_and_die(&scans, 0).await;
    world.task().courier.announce_leftovers().await.unwrap();
    let announced = world.announced();
    assert_eq!((world.recorded().await.len(), announced.len()), (many as usize, many as usize));
    assert!(announced.values().all(|told| *told == ["Anomaly Detected"]));
}

/// A scan of one of two scanners in a minute, on a host of its own.
fn scan(scanner: u32, minute: u32) -> Finding {
    scan_of(scanner, minute, Address::v4(0x0a00_0000 + minute % 7))
}

/// A moment at which everything is over.
const END: u32 = 1_000_000;

#[tokio::test]
async fn tasks_that_cannot_ask_each_other_tell_one_episode_under_one_id() {
    let world = World::new();
    world.shared.away.store(true, Ordering::Relaxed);
    let (mut a, mut b) = (world.task(), world.task());
    // Each sees the middle or the start of the same scan first, and then all of it.
    a.fold("0", &scan(1, 11)).await;
    b.fold("1", &scan(1, 10)).await;
    a.fold("0", &scan(1, 10)).await;
    assert_eq!(world.stories().await.len(), 1);
    assert_eq!(world.announced().len(), 1);
    world.shared.away.store(false, Ordering::Relaxed);
    for watermark in [0, END] {
        b.expire(watermark).await;
        a.expire(watermark).await;
    }
    let stories = world.stories().await;
    assert_eq!((stories.len(), stories[0].4), (1, Status::Closed));
    assert_eq!(stories[0].3.len(), 2, "with what both of them saw");
    assert_eq!(world.announced().len(), 1);
}

#[tokio::test]
async fn two_told_episodes_that_are_bridged_are_closed_as_one_once() {
    let world = World::new();
    let mut task = world.task();
    task.fold("0", &scan(1, 200)).await;
    task.fold("0", &scan(1, 100)).await;
    assert_eq!(world.announced().len(), 2);
    task.fold("1", &scan(1, 150)).await;
    // What somebody else knew before, or finds again after a crash, changes nothing any more.
    let mut other = world.task();
    for minute in [100, 200, 150, 200] {
        other.fold("0", &scan(1, minute)).await;
    }
    task.expire(END).await;
    let recorded = world.recorded().await;
    let (parts, whole): (Vec<&Anomaly>, _) = recorded.iter().partition(|anomaly| anomaly.merged_into.is_some());
    assert_eq!((parts.len(), whole.len()), (1, 1));
    assert_eq!(parts[0].merged_into, Some(whole[0].anomaly_id));
    assert!(whole[0].related.contains(&parts[0].anomaly_id));
    assert_eq!((parts[0].status, whole[0].status), (Status::Closed, Status::Closed));
    assert_eq!((whole[0].first_seen.0, whole[0].last_seen.0), (6_001, 12_050));
    let announced = world.announced();
    let told = &announced[&parts[0].anomaly_id.to_string()];
    assert_eq!(told.iter().filter(|told| *told == "Anomaly Closed").count(), 1, "{told:?}");
    assert_eq!(told.last().unwrap(), "Anomaly Closed");
}

#[tokio::test]
async fn a_part_that_is_updated_while_somebody_merges_it_is_closed_all_the_same() {
    let world = World::new();
    let (mut slow, mut fast) = (world.task(), world.task());
    slow.fold("0", &scan(1, 200)).await;
    let first = world.recorded().await.remove(0);
    let more = Anomaly { updates: first.updates + 5, last_seen: first.last_seen.plus(60), ..first };
    // It has asked under which id to tell that, and is held up before it records it.
    let claimed = slow.courier.recorder.claim(&slow.courier.desk, &more).await;
    for minute in [100, 150] {
        fast.fold("1", &scan(1, minute)).await;
    }
    let mut announcements = Vec::new();
    let Courier { recorder, desk } = &mut slow.courier;
    recorder.tell_as(desk, claimed, more, &mut announcements).await;
    assert!(matches!(announcements.last(), Some((Announcement::Closed, _))), "{announcements:?}");
    fast.expire(END).await;
    let recorded = world.recorded().await;
    assert_eq!(recorded.iter().filter(|anomaly| anomaly.merged_into.is_some()).count(), 1);
    assert!(recorded.iter().all(|anomaly| anomaly.status == Status::Closed), "{recorded:?}");
}

#[tokio::test]
async fn what_is_found_again_after_its_episode_was_closed_and_forgotten_is_not_told_again() {
    let world = World::new();
    let mut task = world.task();
    for minute in 10..20 {
        task.fold("0", &scan(1, minute)).await;
    }
    task.expire(END).await;
    let stories = world.stories().await;
    let announced = world.announced();
    // A crash: the last minutes are read again by a task that knows nothing.
    let mut other = world.task();
    for minute in 15..20 {
        other.fold("0", &scan(1, minute)).await;
    }
    other.expire(END + 1).await;
    assert_eq!(world.stories().await, stories);
    assert_eq!(world.announced(), announced);
}

#[tokio::test]
async fn what_was_found_abandoned_is_closed_only_as_it_was_found_and_once() {
    let world = World::new();
    let mut task = world.task();
    task.fold("0", &scan(1, 10)).await;
    let found = world.recorded().await.remove(0);
    task.fold("0", &scan(1, 30)).await;
    let now = world.recorded().await.remove(0);
    assert!(now.updates > found.updates);
    let (slow, fast) = (world.task(), world.task());
    assert!(slow.courier.close_abandoned(found).await.is_none(), "somebody goes on with it");
    let (one, two) = tokio::join!(slow.courier.close_abandoned(now.clone()), fast.courier.close_abandoned(now.clone()));
    assert_eq!(u8::from(one.is_some()) + u8::from(two.is_some()), 1);
    assert!(slow.courier.close_abandoned(now).await.is_none());
    assert_eq!(world.stories().await[0].4, Status::Closed);
    // Whoever has its incident after all has nothing to close any more.
    let before = world.announced();
    task.expire(END).await;
    assert_eq!((world.stories().await[0].4, world.announced()), (Status::Closed, before));
}

#[tokio::test]
async fn what_was_closed_as_abandoned_before_a_crash_is_announced_as_closed_by_the_next_life() {
    let world = World::new();
    let mut task = world.task();
    task.fold("0", &scan(1, 10)).await;
    let found = world.recorded().await.remove(0);
    assert!(task.courier.close_abandoned(found.clone()).await.is_some(), "and it dies before it says so");
    world.task().courier.announce_leftovers().await.unwrap();
    world.task().courier.announce_leftovers().await.unwrap();
    let told = &world.announced()[&found.anomaly_id.to_string()];
    assert_eq!(told.last().unwrap(), "Anomaly Closed");
    assert_eq!(told.iter().filter(|told| *told == "Anomaly Closed").count(), 1, "{told:?}");
}

/// Something that happens to the tasks.
#[derive(Clone, Debug)]
enum Step {
    /// A task reads a finding.
    Fold(usize, Box<Finding>),
    /// The shared store goes away, or is back.
    Away(bool),
    /// A task dies; another begins in its place, and reads again what the first one has read.
    Crash(usize),
}

fn finding() -> impl Strategy<Value = Finding> {
    // Minutes so that episodes are apart by more and by less than the gap of an hour.
    (0..2_u32, prop::sample::select(vec![0, 1, 30, 45, 80, 100, 135, 170, 230, 290, 340, 400]))
        .prop_map(|(scanner, minute)| scan(scanner, minute))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..3_usize, finding()).prop_map(|(task, finding)| Step::Fold(task, Box::new(finding))),
        2 => any::<bool>().prop_map(Step::Away),
        1 => (0..3_usize).prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

async fn disturbed(steps: &[Step]) -> World {
    let world = World::new();
    let mut tasks: Vec<Task> = (0..3).map(|_| world.task()).collect();
    let mut read: Vec<Vec<Finding>> = vec![Vec::new(); 3];
    for step in steps {
        match step {
            Step::Fold(at, finding) => {
                read[*at].push((**finding).clone());
                tasks[*at].fold(&at.to_string(), finding).await;
            }
            Step::Away(away) => world.shared.away.store(*away, Ordering::Relaxed),
            Step::Crash(at) => {
                tasks[*at] = world.task();
                for finding in &read[*at] {
                    tasks[*at].fold(&at.to_string(), finding).await;
                }
            }
        }
    }
    world.shared.away.store(false, Ordering::Relaxed);
    // Everybody catches up before anything is over.
    for _ in 0..2 {
        for task in &mut tasks {
            task.expire(0).await;
        }
    }
    for task in &mut tasks {
        task.expire(END).await;
    }
    world
}

async fn undisturbed(steps: &[Step]) -> World {
    let world = World::new();
    let mut task = world.task();
    let mut findings: Vec<&Box<Finding>> =
        steps.iter().filter_map(|step| if let Step::Fold(_, finding) = step { Some(finding) } else { None }).collect();
    findings.sort_by_key(|finding| finding.window);
    for finding in findings {
        task.fold("0", finding).await;
    }
    task.expire(END).await;
    world
}

#[tokio::test]
async fn what_was_bridged_while_nobody_could_be_asked_is_told_whole_afterwards() {
    let fold = |task: usize, minute: u32| Step::Fold(task, Box::new(scan(0, minute)));
    let steps = [Step::Away(true), fold(1, 135), fold(2, 290), fold(0, 400), fold(2, 340), fold(0, 80)];
    let (calm, wild) = (undisturbed(&steps).await, disturbed(&steps).await);
    assert_eq!(wild.stories().await, calm.stories().await);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_and_whoever_is_away_the_same_stories_stand_each_under_one_id(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (calm, wild) = (undisturbed(&steps).await, disturbed(&steps).await);
            assert_eq!(wild.stories().await, calm.stories().await);
            let announced = wild.announced();
            let recorded = wild.recorded().await;
            let recorded: BTreeMap<String, &Anomaly> = recorded.iter().map(|a| (a.anomaly_id.to_string(), a)).collect();
            assert!(announced.keys().eq(recorded.keys()), "what is recorded is announced, and nothing else is");
            for anomaly in recorded.values() {
                let told = &announced[&anomaly.anomaly_id.to_string()];
                assert_eq!(told.iter().filter(|told| *told == "Anomaly Detected").count(), 1, "{told:?}");
                if let Some(whole) = anomaly.merged_into {
                    assert!(recorded.contains_key(&whole.to_string()), "what it is part of is there");
                    assert_eq!(told.iter().filter(|told| *told == "Anomaly Closed").count(), 1, "{told:?}");
                }
            }
        });
    }
}
