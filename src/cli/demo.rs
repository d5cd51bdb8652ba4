//! `flowvigil demo`: the whole service on a simulated VPC under attack, to be looked at in a browser.
//!
//! Everything behind the stream is the real thing with local backends, in a folder that is gone afterwards; only the
//! traffic is made up, and faster than real.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use super::backends::{DEAD_LETTERS, open_sqlite};
use super::run::{Service, heed_signals, models, with_api};
use crate::anomaly::Anomaly;
use crate::correlation::local::LocalIncidents;
use crate::flow::Interface;
use crate::ingest::snapshot::local::Folder;
use crate::ingest::{Batch, FlowSource, IngestError, Position, Read, Shard, ShardId};
use crate::pipeline::{Backends, Ending, Outcome};
use crate::publish::dead_letter::Letters;
use crate::publish::{Announcement, Announcer, Notice, PublishError};
use crate::settings::{Layer, Settings};
use crate::simulate::{Scenario, Simulation};
use crate::telemetry;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End by itself after so many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// How many times as fast as real time the simulated time goes
    #[arg(long, default_value_t = 120, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub speed: u32,
    /// Fixes all that is random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The loopback port of the page; a free one when not given
    #[arg(long, default_value_t = 0)]
    pub port: u16,
}

/// How long the simulated time is, s. Two hours are a minute at the default speed, and long enough for a beacon to be seen.
const SIMULATED: u32 = 2 * 3600;

/// How long a read waits before it says that nothing has come.
const POLL: Duration = Duration::from_millis(500);

/// Runs until Ctrl-C, or for as long as it was told.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("flowvigil-demo-").tempdir().context("make a temporary folder")?;
    let scenario = Scenario {
        seed: args.seed,
        duration_seconds: SIMULATED,
        threats: "all".parse().context("plan the attacks")?,
        ..Scenario::default()
    };
    let settings = settings(folder.path(), &scenario, args.port)?;
    telemetry::log_to_stderr(&settings.telemetry);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let outcome = runtime.block_on(watch_it(args, settings, scenario))?;
    Ok(if outcome == Outcome::CutOff { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The defaults, with everything that is kept in the folder.
fn settings(folder: &Path, scenario: &Scenario, port: u16) -> anyhow::Result<Settings> {
    let internal: Vec<String> = Simulation::new(scenario.clone()).internal().iter().map(ToString::to_string).collect();
    let entries = [
        ("network.internal", format!("{internal:?}")),
        ("publish.sqlite.path", folder.join("anomalies.db").display().to_string()),
        ("ingest.snapshot.local.folder", folder.join("snapshots").display().to_string()),
        ("api.listen", format!("127.0.0.1:{port}")),
        ("telemetry.log_level", "warn".to_owned()),
        ("telemetry.log_format", "pretty".to_owned()),
    ];
    let entries = entries.map(|(key, value)| (key.to_owned(), key.to_owned(), value));
    let environment = Layer::from_environment(super::environment());
    Ok(Settings::assemble(&[environment, Layer::from_texts("the demo", entries)])?)
}

async fn watch_it(args: Args, settings: Settings, scenario: Scenario) -> anyhow::Result<Outcome> {
    let (stop, told) = watch::channel(false);
    if let Some(seconds) = args.seconds {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            stop.send_replace(true);
        });
    }
    tokio::spawn(heed_signals(stop));
    let backends = Backends {
        source: Box::new(Simulated(Some(Traffic::begin(scenario, args.speed)?))),
        ending: Ending::CloseWindows,
        snapshots: Arc::new(Folder::open(&settings.ingest.snapshot.local)?),
        incidents: Arc::new(LocalIncidents::new(&settings.correlation)),
        store: Arc::new(open_sqlite(&settings.publish.sqlite)?),
        announcer: Arc::new(Terminal),
        letters: Arc::new(Letters::in_file(settings.publish.sqlite.path.with_file_name(DEAD_LETTERS))),
        refusals: None,
    };
    let speed = args.speed;
    let greet = |address: SocketAddr| {
        say(&format!("A simulated VPC of 40 hosts under every attack we know, {speed} times as fast as real time."));
        say(&format!("Open http://{address} to watch; Ctrl-C ends it, and nothing is left behind.\n"));
    };
    let models = models::open(&settings).await?.watch;
    let service = Service {
        settings,
        backends,
        health: Arc::default(),
        metrics: Arc::default(),
        models,
        changes: None,
        config: Arc::default(),
    };
    with_api(service, told, greet, true).await
}

/// A line for whoever still reads: a pipe that was closed is no reason to end, the page goes on.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Announcements for eyes: one line each for what is new.
struct Terminal;

#[async_trait]
impl Announcer for Terminal {
    async fn notify(&self, _: &Notice) -> Result<(), PublishError> {
        Ok(())
    }

    async fn announce(&self, batch: &[(Announcement, Anomaly)]) -> Vec<Result<(), PublishError>> {
        for (announcement, anomaly) in batch {
            if *announcement == Announcement::Detected {
                let (at, severity) = (anomaly.detection_timestamp, anomaly.severity);
                say(&format!("{at}  {severity:<8}  {:<13}  {}", anomaly.threat, anomaly.summary));
            }
        }
        batch.iter().map(|_| Ok(())).collect()
    }
}

/// The one shard, once.
struct Simulated(Option<Traffic>);

#[async_trait]
impl FlowSource for Simulated {
    async fn next_shard(&mut self) -> Result<Option<Box<dyn Shard>>, IngestError> {
        Ok(self.0.take().map(|traffic| Box::new(traffic) as Box<dyn Shard>))
    }
}

/// Simulated traffic as a stream, made and paced by a thread of its own.
struct Traffic {
    id: ShardId,
    batches: mpsc::Receiver<Batch>,
}

impl Traffic {
    fn begin(scenario: Scenario, speed: u32) -> anyhow::Result<Traffic> {
        let (send, batches) = mpsc::channel(8);
        let body = move || {
            let simulation = Simulation::new(scenario);
            let mut interfaces: Vec<Interface> = simulation.interfaces().to_vec();
            let began = Instant::now();
            let mut second = 0;
            // Twenty batches a second at any speed: a stream does not deliver every second by itself either.
            let together = u64::from(speed / 20).max(1);
            let mut batch = Batch::default();
            for step in simulation {
                second += 1;
                batch.records.extend(step.records);
                batch.blind.extend(step.blind);
                if second % together != 0 {
                    continue;
                }
                let due = Duration::from_secs(second) / speed;
                std::thread::sleep(due.saturating_sub(began.elapsed()));
                batch.interfaces = std::mem::take(&mut interfaces);
                batch.position = Some(Position(second.to_string()));
                // Nobody reads any more: the demo ends.
                if send.blocking_send(std::mem::take(&mut batch)).is_err() {
                    return;
                }
            }
            batch.position = Some(Position(second.to_string()));
            // As above.
            let _ = send.blocking_send(batch);
        };
        std::thread::Builder::new().name("simulation".into()).spawn(body).context("start the simulation")?;
        Ok(Traffic { id: ShardId("simulation".into()), batches })
    }
}

#[async_trait]
impl Shard for Traffic {
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
        Ok(match tokio::time::timeout(POLL, self.batches.recv()).await {
            Ok(Some(batch)) => Read::Batch(batch),
            Ok(None) => Read::End,
            Err(_) => Read::Idle,
        })
    }

    async fn checkpoint(&mut self, _position: &Position) -> Result<(), IngestError> {
        Ok(())
    }
}
