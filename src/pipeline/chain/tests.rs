//! What comes of windows does not depend on how they were cut into batches.

use super::*;
use crate::anomaly::Status;
use crate::correlation::IncidentStore;
use crate::correlation::local::LocalIncidents;
use crate::finding::{Actor, Threat};
use crate::flow::Address;
use crate::flow::network::Network;
use crate::pipeline::tests::scan_of;
use crate::settings::Settings;

struct Memory(LocalIncidents);

#[async_trait]
impl Stores for Memory {
    async fn fold(&self, shard: &ShardId, findings: &[Finding]) -> Vec<Incident> {
        self.0.fold(shard, findings).await.unwrap()
    }

    async fn progress(&self, own: &Progresses, expected: &BTreeSet<ShardId>) -> Option<Progress> {
        self.0.progress(own, expected).await.unwrap()
    }

    async fn expire(&self, watermarks: &correlation::Watermarks) -> Vec<Incident> {
        self.0.expire(watermarks).await.unwrap()
    }

    async fn recall(&self, _id: Uuid) -> Option<Anomaly> {
        None
    }
}

/// A chain over memory, and what came of what passed it.
struct Passed {
    chain: Chain,
    memory: Memory,
    outcomes: Vec<Outcome>,
}

impl Passed {
    fn new() -> Passed {
        let settings = Settings::defaults();
        let judge = Judge::new(&settings.validation, &Network::new(&settings.network));
        let chain = Chain::new(judge, &settings.correlation.episode_gap, settings.statistical.window);
        Passed { chain, memory: Memory(LocalIncidents::new(&settings.correlation)), outcomes: Vec::new() }
    }

    async fn pass(&mut self, findings: &[Finding], watermark: u32) {
        self.hear("a", findings, watermark).await;
    }

    /// Takes in what a shard says.
    async fn hear(&mut self, shard: &str, findings: &[Finding], watermark: u32) {
        let shard = ShardId(shard.into());
        let turns = self.chain.pass(&self.memory, &shard, findings.to_vec(), Some(EventTime(watermark))).await;
        self.outcomes.extend(turns.into_iter().flat_map(|turn| turn.outcomes));
    }

    fn told(&self) -> Vec<&Anomaly> {
        fn told(outcome: &Outcome) -> Option<&Anomaly> {
            if let Outcome::Told(anomaly) = outcome { Some(anomaly) } else { None }
        }
        self.outcomes.iter().filter_map(told).collect()
    }
}

/// For how long nothing may be seen of a scan, s.
fn gap() -> u32 {
    Settings::defaults().correlation.episode_gap.seconds(Threat::PortScan)
}

/// A scan of a host in a minute, from its second second to its fifty-first.
fn scan(scanner: u32, minute: u32) -> Finding {
    scan_of(scanner, minute, Address::v4(0x0a00_0000 + minute))
}

#[tokio::test]
async fn a_watermark_within_a_window_closes_nothing_that_the_findings_of_that_window_may_join() {
    let (mut whole, mut cut) = (Passed::new(), Passed::new());
    let (first, second) = (scan(1, 10), scan(1, 10 + gap() / 60));
    let end = 660 + gap();
    whole.pass(&[first.clone(), second.clone()], end).await;
    cut.pass(&[first], 670).await;
    // Nothing was seen for longer than the gap, and yet the window that says more is still open.
    cut.pass(&[], end - 1).await;
    cut.pass(&[second], end).await;
    for passed in [&mut whole, &mut cut] {
        passed.pass(&[], u32::MAX).await;
    }
    assert_eq!(whole.told().last().unwrap().target_count, 2);
    assert_eq!(whole.outcomes, cut.outcomes);
}

#[tokio::test]
async fn closing_many_at_once_and_one_by_one_is_the_same() {
    let (mut whole, mut cut) = (Passed::new(), Passed::new());
    // Three scanners of one host, and one who comes back: they name each other.
    let mut findings: Vec<Finding> = [(1, 10), (2, 11), (3, 12), (1, 13)].map(|(who, minute)| scan(who, minute)).into();
    findings.iter_mut().for_each(|finding| finding.targets[0].address = Address::v4(0x0a00_0001));
    let end = 840 + gap() + 3600;
    whole.pass(&findings, end).await;
    for finding in findings {
        cut.pass(std::slice::from_ref(&finding), finding.window.0 + 75).await;
    }
    for moment in (840..=end).step_by(7) {
        cut.pass(&[], moment).await;
    }
    cut.pass(&[], end).await;
    assert_eq!(whole.outcomes, cut.outcomes);
    let closed = whole.told().into_iter().filter(|anomaly| anomaly.status == Status::Closed);
    let actors: Vec<Actor> = closed.map(|anomaly| anomaly.actor).collect();
    assert_eq!(actors, [2, 3, 1].map(|who| scan(who, 0).actor), "in the order in which they were over");
}

#[tokio::test]
async fn looks_close_nothing_and_come_after_what_has_closed() {
    let mut passed = Passed::new();
    let look = |minute| Finding { provisional: true, ..scan(1, minute) };
    passed.pass(&[look(900), scan(1, 10)], 670).await;
    let told: Vec<_> = passed.told().iter().map(|anomaly| (anomaly.status, anomaly.first_seen.0)).collect();
    assert_eq!(told, [(Status::Open, 601), (Status::Open, 54_001)]);
}

fn shard(name: &str) -> ShardId {
    ShardId(name.into())
}

#[tokio::test]
async fn which_of_two_shards_is_heard_first_changes_nothing() {
    let (early, late) = (scan(1, 8), scan(1, 10));
    // A sure judgement and a wide one of the same minute, and who else was met on the targets.
    let (ours, theirs) = (scan(2, 9), scan_of(2, 9, Address::v4(0x0a00_0063)));
    let beside = scan_of(3, 10, Address::v4(0x0a00_0063));
    let (of_a, of_b) = ([ours, late, beside], [early, theirs]);
    let mut all = Vec::new();
    for first in ["a", "b"] {
        let mut passed = Passed::new();
        ["a", "b"].into_iter().for_each(|name| passed.chain.watermarks.enter(shard(name)));
        for name in [first, if first == "a" { "b" } else { "a" }] {
            assert_eq!(passed.told(), Vec::<&Anomaly>::new(), "it waits for the other");
            passed.hear(name, if name == "a" { &of_a } else { &of_b }, 900).await;
        }
        assert_eq!(passed.told()[0].episode.unwrap().known_from, EventTime(480));
        all.push(passed.outcomes);
    }
    assert_eq!(all[0], all[1]);
}

#[tokio::test]
async fn what_waits_is_folded_by_its_deadline_and_a_shard_without_records_is_not_waited_for() {
    let mut passed = Passed::new();
    ["a", "b"].into_iter().for_each(|name| passed.chain.watermarks.enter(shard(name)));
    passed.pass(&[scan(1, 10), scan(1, 20)], 1500).await;
    assert_eq!((passed.told().len(), passed.chain.waits().count()), (0, 2));
    passed.chain.next(&passed.memory, EventTime(660)).await.unwrap();
    assert_eq!(passed.chain.waits().collect::<Vec<_>>(), [EventTime(1260)]);
    assert_eq!(passed.chain.told()[&shard("a")], EventTime(1200));
    passed.chain.watermarks.note_idle(&shard("b"));
    passed.pass(&[], 1500).await;
    assert_eq!((passed.told().len(), passed.chain.waits().count()), (1, 0));
    // One that somebody will read soon.
    passed.chain.watermarks.expect(shard("c"));
    passed.pass(&[scan(4, 30)], 2000).await;
    assert_eq!(passed.chain.waits().count(), 1);
    passed.chain.watermarks.give_up(&shard("c"));
    passed.pass(&[], 2000).await;
    assert_eq!(passed.chain.waits().count(), 0);
}
