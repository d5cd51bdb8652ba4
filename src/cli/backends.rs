//! Here, and nowhere else, every port gets its backend: the one whose table the settings name, else the local one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use aws_config::SdkConfig;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use crate::aws;
use crate::correlation::fallback::WithFallback;
use crate::correlation::local::LocalIncidents;
use crate::correlation::redis::RedisIncidents;
use crate::correlation::{CorrelationError, IncidentStore};
use crate::health::Health;
use crate::ingest::kinesis::{Kinesis, worker_name};
use crate::ingest::local::Source;
use crate::ingest::snapshot::SnapshotStore;
use crate::ingest::snapshot::local::Folder;
use crate::ingest::snapshot::s3::Bucket;
use crate::ingest::{FlowSource, IngestError};
use crate::pipeline::{Backends, Ending};
use crate::publish::dead_letter::{self, DeadLetters, Letters, Refusals, WithDeadLetters};
use crate::publish::dynamodb::DynamoStore;
use crate::publish::dynamodb::schema::Schema;
use crate::publish::eventbridge::EventBridge;
use crate::publish::local::{LineAnnouncer, SqliteStore};
use crate::publish::{self, Announcer, AnomalyStore, PublishError};
use crate::settings::Settings;
use crate::telemetry::Metrics;
use crate::wait;

/// The file of dead letters.
pub(super) const DEAD_LETTERS: &str = "dead-letters.ndjson";

/// The backend of every port. What goes away and comes back while the service runs is told to `health`.
pub(super) async fn choose(
    settings: &Settings,
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Backends> {
    let aws = Aws::default();
    let task = worker_name();
    // Tables and paths first: who has named none should hear so before a lease is taken.
    let store = store(settings, &aws).await?;
    let (announcer, refusals, letters) = announcer(settings, &aws, health, metrics).await;
    let snapshots = snapshots(settings, &aws).await?;
    let incidents = incidents(settings, health).await?;
    let (source, ending) = source(settings, &aws, task).await?;
    Ok(Backends { source, ending, snapshots, incidents, store, announcer, letters, refusals })
}

/// Whether what kept a backend from being opened may pass: nothing is wrong with the settings, and another try may go better.
pub(super) fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(PublishError::Retry { .. }))
            || matches!(cause.downcast_ref(), Some(IngestError::Retry { .. }))
            || matches!(cause.downcast_ref(), Some(CorrelationError::Retry { .. }))
    })
}

/// The AWS configuration, read when the first backend asks for it: a service that uses none of AWS needs no account.
#[derive(Default)]
struct Aws(OnceCell<SdkConfig>);

impl Aws {
    async fn get(&self) -> &SdkConfig {
        self.0.get_or_init(aws::load).await
    }
}

async fn source(settings: &Settings, aws: &Aws, task: String) -> anyhow::Result<(Box<dyn FlowSource>, Ending)> {
    if let Some(kinesis) = &settings.ingest.kinesis {
        let mut kinesis = kinesis.clone();
        if kinesis.worker.is_empty() {
            kinesis.worker = task;
        }
        let source = Kinesis::open(aws.get().await, &kinesis, &settings.ingest).await?;
        return Ok((Box::new(source), Ending::LeaveOpen));
    }
    anyhow::ensure!(
        !settings.ingest.local.paths.is_empty(),
        "there is nothing to read: name files or folders, or set ingest.local.paths, or ingest.kinesis"
    );
    let ending = if settings.ingest.local.follow { Ending::LeaveOpen } else { Ending::CloseWindows };
    Ok((Box::new(Source::new(&settings.ingest)?), ending))
}

async fn snapshots(settings: &Settings, aws: &Aws) -> anyhow::Result<Arc<dyn SnapshotStore>> {
    Ok(match &settings.ingest.snapshot.s3 {
        Some(s3) => Arc::new(Bucket::new(aws.get().await, s3)),
        None => Arc::new(Folder::open(&settings.ingest.snapshot.local)?),
    })
}

async fn incidents(settings: &Settings, health: &Arc<Health>) -> anyhow::Result<Arc<dyn IncidentStore>> {
    let tier = &settings.correlation;
    let Some(redis) = &tier.redis else {
        let incidents = LocalIncidents::new(tier);
        if settings.ingest.kinesis.is_some() {
            warn!(
                "correlation.redis is not set: this task puts together what it reads itself. Where several tasks share the stream, \
                 an episode is told as far as one of them has seen it"
            );
            return Ok(Arc::new(incidents.among_others()));
        }
        return Ok(Arc::new(incidents));
    };
    let health = health.clone();
    let tell = move |cause: Option<&str>| match cause {
        Some(cause) => {
            health.degrade("correlation", cause.to_owned());
        }
        None => {
            health.restore("correlation");
        }
    };
    let shared = RedisIncidents::open(redis, tier).await?;
    Ok(Arc::new(WithFallback::new(shared, tier, Box::new(tell))))
}

async fn store(settings: &Settings, aws: &Aws) -> anyhow::Result<Arc<dyn AnomalyStore>> {
    let Some(dynamodb) = &settings.publish.dynamodb else {
        return Ok(Arc::new(open_sqlite(&settings.publish.sqlite)?));
    };
    let aws = aws.get().await;
    let plan = Schema::new(aws, dynamodb).plan().await?;
    anyhow::ensure!(plan.is_empty(), "the tables are not ready: {}; `flowvigil migrate --apply` does it", plan[0]);
    Ok(Arc::new(DynamoStore::new(aws, dynamodb)))
}

/// The SQLite store, in a folder that is made when it is not there.
pub(super) fn open_sqlite(settings: &publish::local::Settings) -> anyhow::Result<SqliteStore> {
    if let Some(folder) = settings.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("make folder {}", folder.display()))?;
    }
    Ok(SqliteStore::open_with(settings)?)
}

/// Who is told, where unreadable input is told to, and where what can never be recorded or told is kept: a file beside the file
/// of anomalies, also where those are kept elsewhere.
async fn announcer(
    settings: &Settings,
    aws: &Aws,
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
) -> (Arc<dyn Announcer>, Option<Refusals>, Arc<Letters>) {
    let file = settings.publish.sqlite.path.with_file_name(DEAD_LETTERS);
    let letters = Letters::in_file(file).counting(metrics.clone());
    let publish = &settings.publish;
    let announcer: Arc<dyn Announcer> = match &publish.eventbridge {
        Some(eventbridge) => Arc::new(EventBridge::new(aws.get().await, eventbridge)),
        None => Arc::new(LineAnnouncer::stdout()),
    };
    let Some(dead_letter) = &publish.dead_letter else { return (announcer, None, Arc::new(letters)) };
    let queue = DeadLetters::new(aws.get().await, dead_letter).counting(metrics.clone());
    let refusals = dead_letter::keep_refusals(&queue);
    if dead_letter.queue_url.is_empty() {
        return (announcer, refusals, Arc::new(letters));
    }
    let letters = Arc::new(letters.before(queue.clone()));
    let kept = Arc::new(WithDeadLetters::new(announcer, queue, letters.clone(), health.clone()));
    tokio::spawn(sweep(kept.clone(), wait::positive(dead_letter.sweep_every)));
    (kept, refusals, letters)
}

/// Announces dead letters for as long as the process runs.
async fn sweep(letters: Arc<WithDeadLetters>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        match letters.sweep().await {
            Ok(0) => {}
            Ok(announced) => info!(announced, "dead letters announced"),
            Err(error) => warn!(error = %error, "sweep the dead letters"),
        }
    }
}
