//! What all tests of the pipeline share, and the shards' lives.

use std::path::Path;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::judgement::Message;
use super::*;
use crate::finding::{Actor, Evidence, Finding, Merge, Severity, Subject, Target, Threat};
use crate::flow::{Address, EventTime, Interface};
use crate::ingest::snapshot::local::{Folder, Settings as FolderSettings};
use crate::ingest::snapshot::{Snapshot, SnapshotError};
use crate::ingest::{Position, Read, Shard};

/// A scan in a minute, from its second second to its fifty-first.
pub(super) fn scan_of(scanner: u32, minute: u32, target: Address) -> Finding {
    let (actor, window) = (Address::v4(0xcb00_7100 + scanner), minute * 60);
    Finding {
        threat: Threat::PortScan,
        method: "vertical".to_owned(),
        actor: Actor::One(actor),
        subject: Subject::Actor(actor),
        targets: vec![Target { address: target, ports: vec![22], port_count: 1 }],
        target_count: 1,
        sources: Vec::new(),
        severity_reason: String::new(),
        learned: Vec::new(),
        first_seen: EventTime(window + 1),
        last_seen: EventTime(window + 50),
        window: EventTime(window),
        window_seconds: 60,
        score: 0.99,
        severity: Severity::High,
        evidence: vec![Evidence::at_least("distinct_ports", 500.0, 100.0, "ports", Merge::Max)],
        summary: "a scan".to_owned(),
        interfaces: vec!["eni-1".to_owned()],
        account: String::new(),
        provisional: false,
        ml: None,
        alternatives: Vec::new(),
    }
}

/// What the stages of a task share, with the defaults of the settings, no models, and snapshots in a folder.
pub(super) fn common(settings: &crate::settings::Settings, folder: &Path) -> Common {
    let tiers = Tiers {
        statistical: settings.statistical.clone(),
        behavior: settings.ml.behavior.clone(),
        models: None,
        hosts_max: 0,
        episode_gap: settings.correlation.episode_gap.clone(),
        validation: settings.validation.clone(),
        network: Network::new(&settings.network),
        changes: None,
    };
    Common {
        settings: Arc::new(settings.pipeline.clone()),
        tiers: Arc::new(tiers),
        health: Arc::new(Health::default()),
        explainers: Arc::default(),
        metrics: Arc::new(Metrics::new()),
        snapshots: Arc::new(Folder::open(&FolderSettings { folder: folder.to_owned() }).unwrap()),
        stop: watch::channel(false).1,
        ending: Ending::LeaveOpen,
        refusals: None,
        troubles: Arc::default(),
    }
}

#[test]
fn a_shard_that_is_well_takes_back_nothing_of_what_another_has_said() {
    let folder = tempfile::tempdir().unwrap();
    let common = common(&crate::settings::Settings::defaults(), folder.path());
    let (a, b) = (ShardId("a".into()), ShardId("b".into()));
    assert!(common.trouble(LATENESS, &a, Some("half of them".to_owned())));
    assert!(!common.trouble(LATENESS, &a, Some("a third of them".to_owned())), "it is known");
    assert!(!common.trouble(LATENESS, &b, None), "it had none");
    assert_eq!(common.health.report().degraded[0].reason, "shard a: a third of them");
    assert!(common.trouble(LATENESS, &b, Some("all of them".to_owned())));
    assert!(common.trouble(LATENESS, &a, None));
    assert_eq!(common.health.report().degraded[0].reason, "shard b: all of them");
    assert!(common.trouble(LATENESS, &b, None));
    assert_eq!(common.health.report().degraded, []);
}

/// A shard without records, of which the first reader hears late that it is somebody else's, and the second that it has ended.
struct Quiet {
    id: ShardId,
    lost: Option<watch::Receiver<bool>>,
}

#[async_trait]
impl Shard for Quiet {
    fn id(&self) -> &ShardId {
        &self.id
    }

    fn parents(&self) -> Vec<ShardId> {
        Vec::new()
    }

    fn resume_from(&self) -> Option<Position> {
        None
    }

    fn adopt_interfaces(&mut self, _known: &[Interface]) {}

    async fn read(&mut self) -> Result<Read, IngestError> {
        let Some(lost) = &mut self.lost else { return Ok(Read::End) };
        lost.wait_for(|&lost| lost).await.unwrap();
        Ok(Read::Lost)
    }

    async fn checkpoint(&mut self, _position: &Position) -> Result<(), IngestError> {
        Ok(())
    }
}

/// Offers the shard again while its first reader does not know yet that it is lost.
struct WonAgain {
    offered: u32,
    lost: watch::Sender<bool>,
}

#[async_trait]
impl FlowSource for WonAgain {
    async fn next_shard(&mut self) -> Result<Option<Box<dyn Shard>>, IngestError> {
        // Whatever can go on, does.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        self.offered += 1;
        let lost = (self.offered == 1).then(|| self.lost.subscribe());
        if self.offered > 2 {
            self.lost.send_replace(true);
            return Ok(None);
        }
        Ok(Some(Box::new(Quiet { id: ShardId("s".into()), lost })))
    }
}

/// Answers at once, so that the lives' progress is a matter of turns and not of time.
struct NoSnapshots;

#[async_trait]
impl SnapshotStore for NoSnapshots {
    async fn save(&self, _snapshot: Snapshot) -> Result<(), SnapshotError> {
        Ok(())
    }

    async fn numbers(&self, _name: &str) -> Result<Vec<u64>, SnapshotError> {
        Ok(Vec::new())
    }

    async fn load(&self, name: &str, _number: u64) -> Result<Snapshot, SnapshotError> {
        Err(SnapshotError::Unreadable { place: name.to_owned(), cause: "it is not there".to_owned() })
    }
}

#[tokio::test]
async fn a_shard_that_is_won_again_enters_when_its_last_life_has_left_the_judge() {
    let folder = tempfile::tempdir().unwrap();
    let common = common(&crate::settings::Settings::defaults(), folder.path());
    let (_go_on, stop) = watch::channel(false);
    let common = Common { snapshots: Arc::new(NoSnapshots), stop, ..common };
    let (to_judgement, mut heard) = mpsc::channel(100);
    let (failures, last) = (HashMap::new(), HashMap::new());
    let shards = Shards { common, to_judgement, lives: JoinSet::new(), failures, last };
    let mut source = WonAgain { offered: 0, lost: watch::channel(false).0 };
    shards.supervise(&mut source).await.unwrap();
    let mut comings_and_goings = Vec::new();
    while let Some(message) = heard.recv().await {
        match message {
            Message::Enter { .. } => comings_and_goings.push("enters"),
            Message::Leave(_) => comings_and_goings.push("leaves"),
            Message::Step(..) | Message::Continued(..) => {}
        }
    }
    assert_eq!(comings_and_goings, ["enters", "leaves", "enters", "leaves"]);
}
