//! What a judge knows goes with the shards that it came from, to whichever task reads them next.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::*;
use crate::anomaly::{Anomaly, Status};
use crate::correlation::local::LocalIncidents;
use crate::flow::Address;
use crate::ml::behavior::Behavior;
use crate::pipeline::tests::{common, scan_of};
use crate::publish::local::SqliteStore;
use crate::settings::Settings;
use crate::simulate::{Scenario, Simulation};
use crate::statistical::{Engine, Output};

/// Several tasks without a shared correlation backend.
struct World {
    folder: tempfile::TempDir,
    store: Arc<SqliteStore>,
}

impl World {
    fn new() -> World {
        World { folder: tempfile::tempdir().unwrap(), store: Arc::new(SqliteStore::in_memory().unwrap()) }
    }

    /// Most of these stories are of one shard after the other.
    fn task(&self) -> Judgement {
        let mut settings = Settings::defaults();
        settings.pipeline.shard_wait = jiff::SignedDuration::ZERO;
        self.task_with(&settings)
    }

    fn task_with(&self, settings: &Settings) -> Judgement {
        let common = common(settings, self.folder.path());
        Judgement::new(&common, Arc::new(LocalIncidents::new(&settings.correlation)), self.store.clone())
    }
}

impl Judgement {
    async fn reads(&mut self, shard: &str, judgements: &[Vec<u8>]) {
        for state in judgements {
            self.take_in(&name(shard), state).await.unwrap();
        }
        self.enter(name(shard), Fence::default(), Vec::new()).await;
    }

    async fn hears(&mut self, shard: &str, finding: Finding) -> Vec<Anomaly> {
        let step = Step {
            findings: vec![finding],
            vectors: Vec::new(),
            watermark: None,
            idle: false,
            trace: BatchTrace::untraced(),
            barrier: None,
        };
        told(self.takes(shard, step).await)
    }

    /// What becomes of everything when a shard's event time moves on.
    async fn passes(&mut self, shard: &str, moment: u32) -> Vec<Anomaly> {
        let (watermark, trace) = (Some(EventTime(moment)), BatchTrace::untraced());
        let step = Step { findings: Vec::new(), vectors: Vec::new(), watermark, idle: false, trace, barrier: None };
        told(self.takes(shard, step).await)
    }

    /// What comes of a step; nothing of it is sent before, since incidents are this task's own.
    async fn takes(&mut self, shard: &str, step: Step) -> Vec<Judged> {
        let (deliveries, _) = mpsc::channel(1);
        let mut to_delivery = ToDelivery { deliveries, delivered: tokio::sync::watch::channel(0).1 };
        self.step(name(shard), step, &mut to_delivery).await.ok().unwrap().outcomes
    }
}

fn name(shard: &str) -> ShardId {
    ShardId(shard.into())
}

fn told(outcomes: Vec<Judged>) -> Vec<Anomaly> {
    let anomaly = |judged: Judged| match judged.outcome {
        Outcome::Told(anomaly) => Some(*anomaly),
        Outcome::Silent(_) => None,
    };
    outcomes.into_iter().filter_map(anomaly).collect()
}

/// A scan of a host in a minute.
fn scan(scanner: u32, minute: u32) -> Finding {
    scan_of(scanner, minute, Address::v4(0x0a00_0000 + minute))
}

/// A moment at which everything is over.
const END: u32 = 1_000_000;

#[tokio::test]
async fn tasks_that_correlate_apart_keep_what_each_knows_and_take_over_what_comes_with_a_shard() {
    let world = World::new();
    let (mut one, mut two) = (world.task(), world.task());
    one.reads("a", &[]).await;
    one.reads("b", &[]).await;
    two.reads("c", &[]).await;
    let first = one.hears("a", scan(1, 10)).await;
    one.hears("b", scan(2, 10)).await;
    two.hears("c", scan(3, 10)).await;
    let (a, b) = (one.snapshot(&name("a")).await, one.snapshot(&name("b")).await);
    // One is gone. Another reads one of its shards, and two the other.
    drop(one);
    let mut another = world.task();
    another.reads("a", &[a]).await;
    two.reads("b", &[b]).await;
    let on = another.hears("a", scan(1, 40)).await;
    assert_eq!((on.len(), on[0].anomaly_id, on[0].first_seen), (1, first[0].anomaly_id, EventTime(601)));
    assert_eq!(on[0].targets.len(), 2, "what was known before is still known");
    let closed = another.passes("a", END).await;
    let about = |anomalies: &[Anomaly]| anomalies.iter().map(|a| (a.actor, a.status)).collect::<Vec<_>>();
    assert_eq!(about(&closed), [(scan(1, 0).actor, Status::Closed)], "and of the others nothing is known here");
    two.passes("b", END).await;
    let closed = two.passes("c", END).await;
    assert_eq!(about(&closed), [scan(2, 0), scan(3, 0)].map(|scan| (scan.actor, Status::Closed)));
}

#[tokio::test]
async fn a_task_that_has_lost_a_shard_does_not_close_what_others_go_on_with() {
    let world = World::new();
    let mut task = world.task();
    task.reads("a", &[]).await;
    task.reads("b", &[]).await;
    task.hears("a", scan(1, 10)).await;
    // One in which both shards have a part.
    task.hears("a", scan(2, 10)).await;
    task.hears("b", scan(2, 11)).await;
    task.leave(&name("a")).await;
    let closed = task.passes("b", END).await;
    assert_eq!(closed.iter().map(|anomaly| anomaly.actor).collect::<Vec<_>>(), [scan(2, 0).actor]);
}

#[tokio::test]
async fn a_shard_that_continues_two_others_knows_the_incidents_of_both() {
    let world = World::new();
    let (mut one, mut two, mut three) = (world.task(), world.task(), world.task());
    one.reads("a", &[]).await;
    two.reads("b", &[]).await;
    one.hears("a", scan(1, 10)).await;
    two.hears("b", scan(2, 10)).await;
    // And one of which each has seen a part.
    one.hears("a", scan(3, 10)).await;
    two.hears("b", scan(3, 12)).await;
    let states = [one.snapshot(&name("a")).await, two.snapshot(&name("b")).await];
    three.reads("ab", &states).await;
    let on = three.hears("ab", scan(3, 40)).await;
    assert_eq!((on[0].first_seen, on[0].targets.len()), (EventTime(601), 3));
    let closed = three.passes("ab", END).await;
    let mut actors: Vec<_> = closed.iter().map(|anomaly| anomaly.actor).collect();
    actors.dedup();
    assert_eq!(actors, [1, 2, 3].map(|scanner| scan(scanner, 0).actor));
}

#[tokio::test]
async fn taking_in_the_same_state_again_changes_nothing() {
    let world = World::new();
    let mut task = world.task();
    task.reads("a", &[]).await;
    for minute in 10..200 {
        task.hears("a", scan(1, minute)).await;
    }
    let state = task.snapshot(&name("a")).await;
    task.reads("a", std::slice::from_ref(&state)).await;
    assert_eq!(task.snapshot(&name("a")).await, state);
    let mut other = world.task();
    other.reads("a", &[state.clone(), state.clone()]).await;
    assert_eq!(other.snapshot(&name("a")).await, state);
}

#[tokio::test]
async fn what_others_closed_is_forgotten_in_time() {
    let world = World::new();
    let mut task = world.task();
    task.reads("a", &[]).await;
    task.hears("a", scan(1, 10)).await;
    let id = *task.parts[&name("a")].keys().next().expect("it has a part");
    // Somebody else was faster.
    task.places.incidents.release(&BTreeSet::from([id])).await.unwrap();
    assert!(task.chain.judge.knows(id));
    assert_eq!(task.passes("a", END).await, vec![]);
    assert!(task.parts[&name("a")].is_empty() && !task.chain.judge.knows(id));
}

#[tokio::test]
async fn what_waits_for_another_shard_goes_with_its_own() {
    let world = World::new();
    let task = || world.task_with(&Settings::defaults());
    let mut one = task();
    one.reads("a", &[]).await;
    one.reads("b", &[]).await;
    assert_eq!(one.hears("a", scan(1, 10)).await, []);
    let state = one.snapshot(&name("a")).await;
    drop(one);
    let mut other = task();
    other.reads("a", &[state.clone(), state]).await;
    other.reads("b", &[]).await;
    assert_eq!(other.passes("b", 600).await, [], "as far as the window's start");
    other.passes("a", 660).await;
    let told = other.passes("b", 660).await;
    assert_eq!(told.iter().map(|anomaly| anomaly.actor).collect::<Vec<_>>(), [scan(1, 0).actor]);
    // Whoever reads a lost shard next brings what waits there.
    other.hears("a", scan(2, 20)).await;
    other.leave(&name("a")).await;
    other.give_up(&name("a"));
    assert_eq!(other.passes("b", 3_000).await, []);
}

/// A simulated time under attack.
struct Log {
    interfaces: Vec<crate::flow::Interface>,
    records: Vec<crate::flow::FlowRecord>,
}

impl Log {
    fn simulated(seed: u64, duration_seconds: u32, threats: &str) -> Log {
        let scenario = Scenario {
            seed,
            duration_seconds,
            hosts: 8,
            demand: 0.05,
            threats: threats.parse().unwrap(),
            ..Scenario::default()
        };
        let simulation = Simulation::new(scenario);
        let interfaces = simulation.interfaces().to_vec();
        Log { interfaces, records: simulation.flat_map(|step| step.records).collect() }
    }
}

/// What is done behind a batch.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Behind {
    Nothing,
    /// Open windows are looked into.
    Look,
    /// All state is kept.
    Snapshot,
    /// The task is gone, and another goes on from the last snapshot.
    Crash,
}

/// One that reads, with all that the service keeps of a shard.
struct Reader {
    task: Judgement,
    engine: Engine,
    behavior: Behavior,
    /// How many records were read.
    at: usize,
}

/// What a snapshot holds: the engine, tier 2, what the judge knows, and how many records were read.
type Kept = (Vec<u8>, Vec<u8>, Vec<u8>, usize);

impl Reader {
    async fn new(world: &World, log: &Log, kept: Option<&Kept>) -> Reader {
        let mut task = world.task();
        let tiers = task.common.tiers.clone();
        let (engine, behavior, at) = match kept {
            None => {
                let mut engine = Engine::with_seed(&tiers.statistical, &tiers.network, 7);
                engine.name_interfaces(&log.interfaces);
                task.enter(name("a"), Fence::default(), Vec::new()).await;
                (engine, Behavior::new(tiers.hosts_max), 0)
            }
            Some((engine, behavior, judgement, at)) => {
                task.reads("a", std::slice::from_ref(judgement)).await;
                let engine = Engine::restore(engine, &tiers.statistical, &tiers.network).unwrap();
                (engine, Behavior::restore(behavior, tiers.hosts_max).unwrap(), *at)
            }
        };
        Reader { task, engine, behavior, at }
    }

    async fn keep(&self) -> Kept {
        (self.engine.snapshot(), self.behavior.snapshot(), self.task.snapshot(&name("a")).await, self.at)
    }

    /// Reads so many records more, or finds that there are none; whether the log goes on.
    async fn read(&mut self, log: &Log, size: usize, look: bool, stands: &mut BTreeMap<Uuid, Anomaly>) -> bool {
        let mut out = Output::default();
        let rest = &log.records[self.at..];
        let batch = &rest[..size.max(1).min(rest.len())];
        self.at += batch.len();
        if batch.is_empty() {
            self.engine.finish(&mut out);
        } else {
            self.engine.observe(batch);
            self.engine.advance(&mut out);
            if look {
                self.engine.peek(&mut out);
            }
        }
        let watermark = Some(if batch.is_empty() { EventTime(u32::MAX) } else { self.engine.watermark() });
        let Output { mut findings, vectors } = out;
        self.behavior.hear(&vectors, None, &mut findings, &self.task.common.tiers.behavior.clone());
        let trace = BatchTrace::untraced();
        let step = Step { findings, vectors: Vec::new(), watermark, idle: false, trace, barrier: None };
        for anomaly in told(self.task.takes("a", step).await) {
            stands.insert(anomaly.anomaly_id, anomaly);
        }
        !batch.is_empty()
    }
}

/// What stands at the end of a log that comes in batches as `cut` says: how many records, and what is done behind them.
async fn end_of(log: &Log, mut cut: impl FnMut() -> (usize, Behind)) -> BTreeMap<Uuid, Anomaly> {
    let world = World::new();
    let mut reader = Reader::new(&world, log, None).await;
    let mut kept = None;
    let mut stands = BTreeMap::new();
    loop {
        let (size, behind) = cut();
        if !reader.read(log, size, behind == Behind::Look, &mut stands).await {
            break;
        }
        match behind {
            Behind::Snapshot => kept = Some(reader.keep().await),
            Behind::Crash => reader = Reader::new(&world, log, kept.as_ref()).await,
            Behind::Nothing | Behind::Look => {}
        }
    }
    // An early report that was not to be: what its windows said goes under another id, and it is closed as part of that.
    stands.retain(|_, anomaly: &mut Anomaly| anomaly.updates > 0);
    stands
}

/// `FLOWVIGIL_CUTS=all cargo test --release --lib what_stands_at_the_end` cuts more and longer logs in more ways, with floods at their
/// full strength.
#[tokio::test]
async fn what_stands_at_the_end_does_not_depend_on_how_records_came_in() {
    let many = std::env::var("FLOWVIGIL_CUTS").is_ok_and(|cuts| cuts == "all");
    let few = [
        (1, 500, "port_scan,ddos.icmp:low"),
        (2, 900, "crypto_mining,tor,port_scan"),
        (3, 1_000, "port_scan,c2_beacon,tor"),
    ];
    let all = [
        (1, 2_400, "port_scan,ddos"),
        (2, 2_400, "ddos,crypto_mining,tor"),
        (3, 2_400, "port_scan,c2_beacon"),
        (4, 3_600, "port_scan,crypto_mining,tor,c2_beacon"),
    ];
    let (logs, runs) = if many { (&all[..], 12) } else { (&few[..], 3) };
    for &(seed, duration, threats) in logs {
        let log = Log::simulated(seed, duration, threats);
        let began = std::time::Instant::now();
        let whole = end_of(&log, || (usize::MAX, Behind::Nothing)).await;
        println!("{seed}: {} records, {:?}", log.records.len(), began.elapsed());
        assert!(whole.len() >= 2 && whole.values().all(|anomaly| anomaly.status == Status::Closed), "{whole:#?}");
        for run in 0..runs {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed * 100 + run);
            let size = [50, 700, 6_000][run as usize % 3];
            // Looks, snapshots and crashes cost more than batches, however small these are.
            let batches = (2 * log.records.len() / size).max(1) as u64;
            let [looks, snapshots, crashes] = [100, 10, 3].map(|times| times.min(batches));
            let mut count = BTreeMap::new();
            let cut = || {
                let behind = match random.next_u64() % batches {
                    n if n < crashes => Behind::Crash,
                    n if n < crashes + snapshots => Behind::Snapshot,
                    n if n < crashes + snapshots + looks => Behind::Look,
                    _ => Behind::Nothing,
                };
                *count.entry(format!("{behind:?}")).or_insert(0) += 1;
                (1 + random.next_u64() as usize % size, behind)
            };
            let began = std::time::Instant::now();
            let cut = end_of(&log, cut).await;
            println!("{seed}, {run}: {count:?}, {:?}", began.elapsed());
            let same = |id: &&Uuid| cut.get(*id) == whole.get(*id);
            let other: BTreeSet<&Uuid> = whole.keys().chain(cut.keys()).filter(|id| !same(id)).collect();
            for id in &other {
                let lines = |stands: &BTreeMap<Uuid, Anomaly>| format!("{:#?}", stands.get(*id));
                let (expected, found) = (lines(&whole), lines(&cut));
                let expected: Vec<&str> = expected.lines().filter(|line| !found.contains(line)).collect();
                println!("{id}: {expected:#?} are not in\n{found}");
            }
            assert!(other.is_empty(), "seed {seed}, run {run}: {} of {} differ", other.len(), whole.len());
        }
    }
}
