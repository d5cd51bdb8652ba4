//! `flowvigil simulate`: seeded, labelled flow logs of a simulated VPC.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::{SignedDuration, Timestamp};

use crate::flow::EventTime;
use crate::simulate::attack::Campaigns;
use crate::simulate::line::{Format, LineWriter};
use crate::simulate::{Scenario, Simulation, wire};

/// How many bytes of lines are gathered before they are written: small enough to stay in the cache.
const CHUNK_BYTES: usize = 256 * 1024;

/// Arguments of `simulate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Fixes all that is random: same arguments, same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How much time is simulated: 90s, 1h, 2d
    #[arg(long, default_value = "1h")]
    duration: SignedDuration,
    /// How many hosts the VPC has
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    hosts: u32,
    /// When the simulated time begins
    #[arg(long, default_value = "2026-03-02T08:00:00Z")]
    start: Timestamp,
    /// What goes wrong: all, none, or a list of threat[.variant][:low|medium|high], like port_scan,ddos.icmp:high
    #[arg(long, default_value = "none")]
    threats: Campaigns,
    /// Where the flow log goes; compressed if the name ends in .gz, - is standard output
    #[arg(long, short, default_value = "-", value_name = "FILE")]
    out: PathBuf,
    /// Where the labels go (JSON)
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Which fields a line has
    #[arg(long, value_enum, default_value_t = LineFormat::V2)]
    format: LineFormat,
    /// Leave out the first line with the names of the fields
    #[arg(long)]
    no_header: bool,
    /// About this many records and never more: demand is scaled to fit
    #[arg(long, value_name = "N")]
    records: Option<u64>,
    /// Multiplies what visitors do
    #[arg(long, default_value_t = 1.0, conflicts_with = "records")]
    demand: f64,
    /// Deliver records up to this many seconds late, as real logs do
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(wire::SHUFFLE_MAX)))]
    shuffle: u32,
    /// Share of visitors who come by IPv6, 0 to 1
    #[arg(long, default_value_t = 0.04)]
    ipv6: f64,
    /// Let the house's own vulnerability scanner work, which is benign
    #[arg(long)]
    scanner: bool,
    /// Write as it would happen, this many times as fast as real time
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..=1000))]
    speed: Option<u32>,
    /// Write at most this many records a second
    #[arg(long, value_name = "N", conflicts_with = "speed")]
    rate: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LineFormat {
    V2,
    V5,
}

/// Simulates and writes; exit code 0 also when the reader of a pipe has had enough.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut scenario = args.scenario()?;
    if let Some(records) = args.records {
        scenario.demand = demand_for(&scenario, records);
    }
    let mut simulation = Simulation::new(scenario);
    let out = open(&args.out)?;
    match write(&args, &mut simulation, out) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        written => written.with_context(|| format!("write {}", args.out.display()))?,
    }
    if let Some(path) = &args.labels {
        let labels = serde_json::to_vec_pretty(&simulation.labels()).context("write the labels as JSON")?;
        std::fs::write(path, labels).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn scenario(&self) -> anyhow::Result<Scenario> {
        let start = u32::try_from(self.start.as_second()).context("--start must lie between 1970 and 2106")?;
        let duration = self.duration.as_secs();
        let room = i64::from(u32::MAX - start);
        anyhow::ensure!((1..=room).contains(&duration), "--duration must be at least a second and end before 2106");
        anyhow::ensure!((0.0..=1.0).contains(&self.ipv6), "--ipv6 is a share: 0 to 1");
        anyhow::ensure!((0.0..=1e6).contains(&self.demand), "--demand must lie between 0 and 1000000");
        Ok(Scenario {
            seed: self.seed,
            start: EventTime(start),
            duration_seconds: duration as u32,
            hosts: self.hosts,
            threats: self.threats.clone(),
            demand: self.demand,
            shuffle_seconds: self.shuffle,
            ipv6_share: self.ipv6,
            scanner: self.scanner,
        })
    }
}

/// The demand at which a scenario makes about so many records. Records are a linear function of demand, so two small
/// trials tell it.
fn demand_for(scenario: &Scenario, records: u64) -> f64 {
    let count = |demand: f64| -> f64 {
        let trial = Scenario { demand, ..scenario.clone() };
        Simulation::new(trial).map(|step| step.records.len() as f64).sum()
    };
    let (idle, usual) = (count(0.0), count(1.0));
    // One in a hundred more, so that chance does not leave it short; the rest is cut off.
    ((records as f64 * 1.01 - idle) / (usual - idle).max(1.0)).max(0.0)
}

fn open(path: &Path) -> anyhow::Result<Box<dyn Write>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout().lock()));
    }
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    if path.extension().is_some_and(|extension| extension == "gz") {
        return Ok(Box::new(GzEncoder::new(BufWriter::new(file), Compression::fast())));
    }
    Ok(Box::new(file))
}

fn write(args: &Args, simulation: &mut Simulation, mut out: Box<dyn Write>) -> io::Result<()> {
    let format = match args.format {
        LineFormat::V2 => Format::V2,
        LineFormat::V5 => Format::V5,
    };
    let lines = LineWriter::new(format, simulation.vpc());
    let mut text = Vec::with_capacity(CHUNK_BYTES * 2);
    if !args.no_header {
        writeln!(text, "{}", format.header())?;
    }
    simulation.limit(args.records);
    let mut pace = Pace::new(args);
    for step in simulation.by_ref() {
        for blind in &step.blind {
            lines.blind(blind, &mut text);
        }
        for record in &step.records {
            lines.record(record, &mut text);
            if text.len() >= CHUNK_BYTES {
                out.write_all(&text)?;
                text.clear();
            }
        }
        if pace.waits_after(step.records.len() as u64) {
            out.write_all(&text)?;
            out.flush()?;
            text.clear();
            pace.wait();
        }
    }
    out.write_all(&text)?;
    out.flush()
}

/// Holds the simulation back to real time, or to a rate. The only place of the simulation with a clock.
struct Pace {
    began: Instant,
    /// What each simulated second, and each record, takes at least.
    second: Option<Duration>,
    records_per_second: Option<u64>,
    due: Duration,
}

impl Pace {
    fn new(args: &Args) -> Pace {
        Pace {
            began: Instant::now(),
            second: args.speed.map(|times| Duration::from_secs(1) / times),
            records_per_second: args.rate,
            due: Duration::ZERO,
        }
    }

    /// Takes another second with so many records into account; whether it is paced at all.
    fn waits_after(&mut self, records: u64) -> bool {
        if let Some(second) = self.second {
            self.due += second;
        }
        if let Some(rate) = self.records_per_second {
            self.due += Duration::from_secs_f64(records as f64 / rate.max(1) as f64);
        }
        self.second.is_some() || self.records_per_second.is_some()
    }

    fn wait(&self) {
        std::thread::sleep(self.due.saturating_sub(self.began.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_records_is_met_within_a_few_percent_and_never_passed() {
        let scenario = Scenario { duration_seconds: 600, ..Scenario::default() };
        for wanted in [60_000, 200_000] {
            let mut simulation =
                Simulation::new(Scenario { demand: demand_for(&scenario, wanted), ..scenario.clone() });
            simulation.limit(Some(wanted));
            let made: u64 = simulation.map(|step| step.records.len() as u64).sum();
            assert!((wanted * 97 / 100..=wanted).contains(&made), "{made} of {wanted}");
        }
    }
}
