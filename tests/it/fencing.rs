//! A lost lease: what was read before it was lost, and is still under way, is told by nobody but the next owner.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flowvigil::anomaly::Anomaly;
use flowvigil::correlation::local::LocalIncidents;
use flowvigil::flow::Interface;
use flowvigil::flow::network::Network;
use flowvigil::health::Health;
use flowvigil::ingest::local::Source;
use flowvigil::ingest::snapshot::local::{Folder, Settings as FolderSettings};
use flowvigil::ingest::{Fence, FlowSource, IngestError, Position, Read, Shard, ShardId};
use flowvigil::pipeline::{self, Backends, Ending, Tiers};
use flowvigil::publish::dead_letter::Letters;
use flowvigil::publish::local::SqliteStore;
use flowvigil::publish::{Announcement, Announcer, AnomalyStore, Notice, PublishError, Query};
use flowvigil::settings::Settings;
use flowvigil::telemetry::Metrics;
use tokio::sync::watch;

/// A local file whose lease can be lost.
struct Leased {
    files: Source,
    ours: Arc<AtomicBool>,
}

#[async_trait]
impl FlowSource for Leased {
    async fn next_shard(&mut self) -> Result<Option<Box<dyn Shard>>, IngestError> {
        if !self.ours.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let Some(shard) = self.files.next_shard().await? else { return Ok(None) };
        Ok(Some(Box::new(LeasedShard { shard, ours: self.ours.clone() })))
    }
}

struct LeasedShard {
    shard: Box<dyn Shard>,
    ours: Arc<AtomicBool>,
}

#[async_trait]
impl Shard for LeasedShard {
    fn id(&self) -> &ShardId {
        self.shard.id()
    }

    fn parents(&self) -> Vec<ShardId> {
        self.shard.parents()
    }

    fn fence(&self) -> Fence {
        let ours = self.ours.clone();
        Fence::new(move || ours.load(Ordering::SeqCst))
    }

    fn resume_from(&self) -> Option<Position> {
        self.shard.resume_from()
    }

    fn adopt_interfaces(&mut self, known: &[Interface]) {
        self.shard.adopt_interfaces(known);
    }

    async fn read(&mut self) -> Result<Read, IngestError> {
        match self.ours.load(Ordering::SeqCst) {
            true => self.shard.read().await,
            false => Ok(Read::Lost),
        }
    }

    async fn checkpoint(&mut self, position: &Position) -> Result<(), IngestError> {
        self.shard.checkpoint(position).await
    }

    async fn release(&mut self) -> Result<(), IngestError> {
        self.shard.release().await
    }
}

/// Takes its time over the first announcement, in which the lease is lost where that is wanted.
struct Slow {
    told: Mutex<Vec<String>>,
    ours: Arc<AtomicBool>,
    lose: bool,
}

#[async_trait]
impl Announcer for Slow {
    async fn notify(&self, _notice: &Notice) -> Result<(), PublishError> {
        Ok(())
    }

    async fn announce(&self, batch: &[(Announcement, Anomaly)]) -> Vec<Result<(), PublishError>> {
        let first = self.told.lock().unwrap().is_empty();
        self.told.lock().unwrap().extend(batch.iter().map(|(_, anomaly)| anomaly.anomaly_id.to_string()));
        if first {
            // Meanwhile the queues behind fill.
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.ours.store(!self.lose, Ordering::SeqCst);
        }
        batch.iter().map(|_| Ok(())).collect()
    }
}

fn traffic(folder: &Path) -> PathBuf {
    let file = folder.join("vpc.log");
    let made = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(["simulate", "--duration", "1h", "--hosts", "12", "--demand", "0.1", "--seed", "11"])
        .args(["--threats", "port_scan,c2_beacon,tor", "--out"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    file
}

/// How many anomalies are recorded, and how many announcements were made.
async fn run(file: &Path, lose: bool) -> (usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::defaults();
    settings.ingest.local.paths = vec![file.to_owned()];
    settings.ingest.local.follow = false;
    settings.ingest.local.checkpoint = PathBuf::new();
    settings.ingest.chunk_bytes = 65536;
    let ours = Arc::new(AtomicBool::new(true));
    let announcer = Arc::new(Slow { told: Mutex::default(), ours: ours.clone(), lose });
    let store = Arc::new(SqliteStore::in_memory().unwrap());
    let backends = Backends {
        source: Box::new(Leased { files: Source::new(&settings.ingest).unwrap(), ours }),
        ending: Ending::CloseWindows,
        snapshots: Arc::new(Folder::open(&FolderSettings { folder: folder.path().to_owned() }).unwrap()),
        incidents: Arc::new(LocalIncidents::new(&settings.correlation)),
        store: store.clone(),
        announcer: announcer.clone(),
        letters: Arc::new(Letters::in_file(folder.path().join("dead-letters.ndjson"))),
        refusals: None,
    };
    let tiers = Tiers {
        network: Network::new(&settings.network),
        statistical: settings.statistical,
        models: None,
        hosts_max: 1000,
        behavior: settings.ml.behavior,
        episode_gap: settings.correlation.episode_gap,
        validation: settings.validation,
        changes: None,
    };
    let (_stop, told) = watch::channel(false);
    let (health, metrics) = (Arc::new(Health::default()), Arc::new(Metrics::new()));
    pipeline::run(settings.pipeline, tiers, backends, health, Arc::default(), metrics, told).await.unwrap();
    let recorded = store.query(&Query { limit: 1000, ..Query::default() }).await.unwrap().anomalies.len();
    let announced = announcer.told.lock().unwrap().len();
    (recorded, announced)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_when_a_lease_is_lost_is_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = traffic(folder.path());
    let (recorded, announced) = run(&file, false).await;
    assert!(recorded >= 3 && announced > 3, "there is more than one thing to tell");
    assert_eq!(run(&file, true).await, (1, 1), "the first one, and nothing after the loss");
}
