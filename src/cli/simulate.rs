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
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

use crate::flow::EventTime;
use crate::simulate::attack::Campaigns;
use crate::simulate::labels::Labels;
use crate::simulate::line::{Format, LineWriter};
use crate::simulate::load::{self, Load, Spread};
use crate::simulate::{Scenario, Simulation, Step, wire};

/// How many bytes of lines are gathered before they are written: small enough to stay in the cache.
const CHUNK_BYTES: usize = 256 * 1024;

/// Arguments of `simulate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Fixes all that is random: same arguments, same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How much time is simulated: 90s, 1h, 2d
    #[arg(long, default_value = "1h", value_parser = duration)]
    duration: SignedDuration,
    /// vpc: hosts with roles and threats; load: many records of Zipf-distributed hosts, without meaning; wide: the same
    /// over every pair in turn, the worst case for tables (1000000 hosts are as many sources and destinations, 5000000 pairs)
    #[arg(long, value_enum, default_value_t = Profile::Vpc)]
    profile: Profile,
    /// How many hosts the VPC has [default: 40], or open connections in a load [default: 200000, wide: 1000000]
    #[arg(long)]
    hosts: Option<u32>,
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
    /// About this many records and never more: demand is scaled to fit; exactly so many in a load [default there: 5000000]
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
    /// Share of hosts with a recurring job of a period of its own, every 30 to 150 minutes, which is benign
    #[arg(long, default_value_t = 0.0, value_parser = super::share)]
    jobs: f64,
    /// Write as it would happen, this many times as fast as real time
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..=1000))]
    speed: Option<u32>,
    /// Write at most this many records a second
    #[arg(long, value_name = "N", conflicts_with = "speed")]
    rate: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Profile {
    Vpc,
    Load,
    Wide,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LineFormat {
    V2,
    V5,
}

/// What makes the records.
enum Traffic {
    Vpc(Box<Simulation>),
    Load(Load),
}

impl Traffic {
    fn lines(&self, format: Format) -> LineWriter {
        match self {
            Traffic::Vpc(simulation) => simulation.lines(format),
            Traffic::Load(load) => LineWriter::new(format, load.interfaces(), Vec::new()),
        }
    }

    fn labels(&self) -> Labels {
        match self {
            Traffic::Vpc(simulation) => simulation.labels(),
            Traffic::Load(load) => load.labels(),
        }
    }
}

impl Iterator for Traffic {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        match self {
            Traffic::Vpc(simulation) => simulation.next(),
            Traffic::Load(load) => load.next(),
        }
    }
}

/// Simulates and writes; exit code 0 also when the reader of a pipe has had enough.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut traffic = args.traffic()?;
    let sink = Sink::open(&args.out)?;
    match write(&args, &mut traffic, sink) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        written => written.with_context(|| format!("write {}", args.out.display()))?,
    }
    if let Some(path) = &args.labels {
        let labels = serde_json::to_vec_pretty(&traffic.labels()).context("write the labels as JSON")?;
        std::fs::write(path, labels).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn traffic(&self) -> anyhow::Result<Traffic> {
        let start = u32::try_from(self.start.as_second()).context("--start must lie between 1970 and 2106")?;
        let room = i64::from(u32::MAX - start);
        let duration = self.duration.as_secs();
        anyhow::ensure!((1..=room).contains(&duration), "--duration must be at least a second and end before 2106");
        anyhow::ensure!((0.0..=1.0).contains(&self.ipv6), "--ipv6 is a share: 0 to 1");
        anyhow::ensure!((0.0..=1e6).contains(&self.demand), "--demand must lie between 0 and 1000000");
        let (start, duration_seconds) = (EventTime(start), duration as u32);
        let hosts_max = if self.profile == Profile::Vpc { 50_000 } else { 10_000_000 };
        anyhow::ensure!(self.hosts.is_none_or(|hosts| hosts <= hosts_max), "--hosts must be at most {hosts_max} here");
        if self.profile != Profile::Vpc {
            let is_wide = self.profile == Profile::Wide;
            anyhow::ensure!(self.threats.0.is_empty(), "--threats needs --profile vpc: a load has no attacks in it");
            return Ok(Traffic::Load(Load::new(load::Settings {
                seed: self.seed,
                start,
                duration_seconds,
                hosts: self.hosts.unwrap_or(if is_wide { 1_000_000 } else { 200_000 }),
                records: self.records.unwrap_or(5_000_000),
                shuffle_seconds: self.shuffle,
                ipv6_share: self.ipv6,
                spread: if is_wide { Spread::Even } else { Spread::Zipf },
            })));
        }
        let mut scenario = Scenario {
            seed: self.seed,
            start,
            duration_seconds,
            hosts: self.hosts.unwrap_or(40),
            threats: self.threats.clone(),
            demand: self.demand,
            shuffle_seconds: self.shuffle,
            ipv6_share: self.ipv6,
            scanner: self.scanner,
            jobs: self.jobs,
        };
        if let Some(records) = self.records {
            scenario.demand = demand_for(&scenario, records);
        }
        let mut simulation = Simulation::new(scenario);
        simulation.limit(self.records);
        Ok(Traffic::Vpc(Box::new(simulation)))
    }
}

/// A duration in words, in which a day has 24 hours.
fn duration(text: &str) -> Result<SignedDuration, jiff::Error> {
    text.parse::<Span>()?.to_duration(SpanRelativeTo::days_are_24_hours())
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

/// Where the lines go.
enum Sink {
    Plain(Box<dyn Write>),
    Gzip(Box<GzEncoder<BufWriter<File>>>),
}

impl Sink {
    fn open(path: &Path) -> anyhow::Result<Sink> {
        if path == Path::new("-") {
            return Ok(Sink::Plain(Box::new(io::stdout().lock())));
        }
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        if path.extension().is_some_and(|extension| extension == "gz") {
            let encoder = GzEncoder::new(BufWriter::new(file), Compression::fast());
            return Ok(Sink::Gzip(Box::new(encoder)));
        }
        Ok(Sink::Plain(Box::new(file)))
    }

    fn put(&mut self, text: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Sink::Plain(out) => out.write_all(text)?,
            Sink::Gzip(out) => out.write_all(text)?,
        }
        text.clear();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::Plain(out) => out.flush(),
            Sink::Gzip(out) => out.flush(),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Sink::Plain(mut out) => out.flush(),
            Sink::Gzip(out) => out.finish()?.flush(),
        }
    }
}

fn write(args: &Args, traffic: &mut Traffic, mut sink: Sink) -> io::Result<()> {
    let format = match args.format {
        LineFormat::V2 => Format::V2,
        LineFormat::V5 => Format::V5,
    };
    let lines = traffic.lines(format);
    let mut text = Vec::with_capacity(CHUNK_BYTES * 2);
    if !args.no_header {
        writeln!(text, "{}", format.header())?;
    }
    let mut pace = Pace::new(args);
    for step in traffic {
        for blind in &step.blind {
            lines.blind(blind, &mut text);
        }
        for record in &step.records {
            lines.record(record, &mut text);
            if text.len() >= CHUNK_BYTES {
                sink.put(&mut text)?;
            }
        }
        if pace.waits_after(step.records.len() as u64) {
            sink.put(&mut text)?;
            sink.flush()?;
            pace.wait();
        }
    }
    sink.put(&mut text)?;
    sink.finish()
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

    fn bytes_of(arguments: &[&str]) -> (Vec<u8>, Vec<u8>) {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let folder = tempfile::tempdir().unwrap();
        let (log, labels) = (folder.path().join("flow.log"), folder.path().join("labels.json"));
        let files = ["simulate", "--out", log.to_str().unwrap(), "--labels", labels.to_str().unwrap()];
        let line = <Line as clap::Parser>::parse_from(files.iter().chain(arguments));
        assert_eq!(run(line.args).unwrap(), ExitCode::SUCCESS);
        (std::fs::read(log).unwrap(), std::fs::read(labels).unwrap())
    }

    #[test]
    fn same_arguments_same_bytes_and_another_seed_other_bytes() {
        use sha2::{Digest, Sha256};
        let sums = |(log, labels): (Vec<u8>, Vec<u8>)| (Sha256::digest(log), Sha256::digest(labels));
        for profile in [&["--profile", "vpc", "--threats", "all:low"][..], &["--profile", "load", "--records", "20000"]]
        {
            let with = |seed: &str| {
                let mut arguments = vec!["--duration", "5m", "--shuffle", "30", "--seed", seed];
                arguments.extend(profile);
                sums(bytes_of(&arguments))
            };
            assert_eq!(with("1"), with("1"));
            assert_ne!(with("1").0, with("2").0);
        }
    }

    #[test]
    fn durations_may_be_days() {
        assert_eq!(duration("2d").unwrap(), SignedDuration::from_hours(48));
        assert_eq!(duration("90s").unwrap(), SignedDuration::from_secs(90));
        assert!(duration("soon").is_err());
    }

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
