//! `flowvigil detect`: flow logs in, anomalies out, nothing kept.
//!
//! All four tiers run in one thread on local backends, as a pure function of the input: the same files give the same
//! bytes, however often. Open windows are therefore not looked into; there is nobody to hurry for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use ipnet::IpNet;

use self::explain::Why;
use super::SettingsArgs;
use crate::finding::Severity;
use crate::flow::network::Network;
use crate::flow::{Address, EventTime};
use crate::ingest::local::{ReadError, Reader};
use crate::report;
use crate::statistical::intel;

mod explain;
mod memory;
mod output;
mod progress;
mod tiers;
mod truth;

pub use output::Format;
use tiers::Tiers;

/// Arguments of `flowvigil detect`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Args {
    /// Flow logs: files, folders (walked), or - for standard input; text, CSV, JSON or Parquet, packed or in archives
    #[arg(required = true, value_name = "FILE|FOLDER|-")]
    pub paths: Vec<PathBuf>,
    /// Where the settings come from.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// How anomalies are written; a table on a terminal and NDJSON elsewhere when not given
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// All addresses that are ours, in place of network.internal and of what the interfaces tell; CIDR or single, repeated or
    /// with commas
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = block)]
    pub internal: Vec<IpNet>,
    /// The fields of lines that no header names: '${srcaddr} ${dstaddr} …', or default
    #[arg(long, value_name = "FORMAT")]
    pub fields: Option<String>,
    /// Only records that end at or after this moment (2026-11-20T10:00:00Z, or 2026-11-20)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<EventTime>,
    /// Only records that start before this moment
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<EventTime>,
    /// Leave out anomalies below this severity: low, medium, high or critical
    #[arg(long, value_name = "SEVERITY", value_parser = severity)]
    pub min_severity: Option<Severity>,
    /// Also write a self-contained HTML page
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Say why an address did or did not alert, each number beside its threshold; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub explain: Vec<Address>,
    /// Also list what was too uncertain to tell, the likeliest first
    #[arg(long)]
    pub signals: bool,
    /// Also write every look at a channel with all its numbers, one a line: what weights are learned from
    #[arg(long, value_name = "FILE")]
    pub candidates: Option<PathBuf>,
    /// Score the run against labelled truth (LABELS.json)
    #[arg(long, value_name = "FILE")]
    pub truth: Option<PathBuf>,
    /// Exit with 1 when anomalies were told
    #[arg(long)]
    pub exit_code: bool,
}

/// Finding something is this command's work and not its failure, so it exits with 0 unless asked (as `git diff` does).
const EXIT_CODES: &str = "Exit codes:
  0  the input was read to its end, whatever was found
  1  with --exit-code: anomalies were told; else: it failed while running
  2  nothing can be done: wrong arguments or settings, a model that is refused, or input of which nothing was read; also
     when a named file is no flow log, although others are, and were judged";

/// A block of addresses, or one address.
pub(super) fn block(text: &str) -> Result<IpNet, String> {
    let alone = text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or(alone).map_err(|_| "not an address or CIDR block such as 10.0.0.0/8".to_owned())
}

fn moment(text: &str) -> Result<EventTime, String> {
    let day = || text.parse::<jiff::civil::Date>().ok()?.at(0, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).ok();
    let stamp = text.parse::<jiff::Timestamp>().ok().or_else(|| Some(day()?.timestamp()));
    let stamp = stamp.ok_or("not a moment such as 2026-11-20T10:00:00Z or 2026-11-20")?;
    u32::try_from(stamp.as_second()).map(EventTime).map_err(|_| "outside 1970 to 2106".to_owned())
}

fn severity(text: &str) -> Result<Severity, String> {
    let all = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];
    all.into_iter().find(|s| s.name() == text).ok_or_else(|| "one of low, medium, high, critical".to_owned())
}

/// Reads everything, judges it, and tells what was found.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut settings = args.settings.load()?;
    if !args.internal.is_empty() {
        settings.network.internal.clone_from(&args.internal);
        settings.network.learn = false;
    }
    if let Some(fields) = &args.fields {
        settings.ingest.fields = if fields == "default" { String::new() } else { fields.clone() };
    }
    let truth = args.truth.as_deref().map(truth::Truth::read).transpose()?;
    let mut reader = match Reader::open(&args.paths, &settings.ingest) {
        Ok(reader) => reader,
        Err(error) => return Ok(unusable(&error)),
    };
    let network = Network::new(&settings.network);
    let model = if settings.ml.model.enabled { Some(super::model(&settings)?) } else { None };
    let mut tiers = Tiers::new(&settings, &network, model)?;
    match intel::local::Files::open(&settings.statistical.intel) {
        Ok(files) => tiers.engine.set_lists(files.lists()),
        Err(error) => return Ok(unusable(&error)),
    }
    for &address in &args.explain {
        tiers.engine.ask(address);
    }
    if let Some(path) = &args.candidates {
        tiers.write_candidates(path)?;
    }
    if args.report.is_some() {
        tiers.traffic = Some(report::Traffic::default());
    }
    let bar = progress::Bar::new(std::io::stderr().is_terminal());
    let outcome = read_through(&args, &mut reader, &mut tiers, &bar);
    bar.finish();
    let input = match outcome {
        Ok(input) => input,
        Err(error) => return Ok(unusable(&error)),
    };
    if let Some(nothing) = input.nothing(&args, &tiers) {
        return Ok(unusable(&nothing));
    }
    tiers.finish()?;
    let told = tell(&args, &tiers, truth.as_ref())?;
    // What was found in the other files is told, and yet this is not the whole of what was asked about.
    Ok(if input.left_out > 0 { super::unusable() } else { told })
}

/// What there was to read.
#[derive(Default)]
struct Input {
    /// Records, whether in the stretch of time that is asked for or not, and when they were.
    records: u64,
    first: Option<EventTime>,
    last: Option<EventTime>,
    /// Named files, or folders, of which nothing was readable; they are told already.
    left_out: u64,
}

impl Input {
    /// Why nothing was read, if so. Nothing read must not look like nothing found.
    fn nothing(&self, args: &Args, tiers: &Tiers) -> Option<Nothing> {
        if tiers.records > 0 || !tiers.blind.is_empty() {
            return None;
        }
        Some(match (self.first, self.last, tiers.refused.samples.first()) {
            (Some(first), Some(last), _) => Nothing::Elsewhen {
                records: self.records,
                first,
                last,
                asked: match (args.since, args.until) {
                    (Some(since), Some(until)) => format!("between --since {since} and --until {until}"),
                    (Some(since), None) => format!("at or after --since {since}"),
                    (_, until) => format!("before --until {}", until.unwrap_or(EventTime(u32::MAX))),
                },
            },
            _ if self.left_out > 0 => Nothing::NoFlowLog,
            (_, _, Some(refusal)) => Nothing::Refused {
                count: tiers.refused.count,
                first: match refusal.line {
                    0 => format!("{}: {}", refusal.source, refusal.reason),
                    line => format!("{}:{line}: {}", refusal.source, refusal.reason),
                },
            },
            _ => Nothing::Empty,
        })
    }
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
enum Nothing {
    /// All of it lies outside the stretch of time that is asked for.
    #[error("nothing was judged: of the {records} records read, which are of {first} to {last}, none is {asked}")]
    Elsewhen { records: u64, first: EventTime, last: EventTime, asked: String },
    /// The reasons were told file by file.
    #[error("nothing was read, so nothing was judged; that is not the same as nothing found")]
    NoFlowLog,
    /// There were lines, and none was a record.
    #[error("nothing was read, so nothing was judged: all {count} lines or payloads were refused; the first: {first}")]
    Refused { count: u64, first: String },
    /// There was no line.
    #[error("nothing was read, so nothing was judged: the input holds no record (no files, or a header at most)")]
    Empty,
}

/// What cannot be read is told, and is exit code 2.
fn unusable(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("flowvigil: {error}");
    super::unusable()
}

/// Feeds every batch to the tiers. A file that is no flow log among others that are is told and left out.
fn read_through(args: &Args, reader: &mut Reader, tiers: &mut Tiers, bar: &progress::Bar) -> Result<Input, ReadError> {
    let mut input = Input::default();
    loop {
        match reader.next_batch() {
            Ok(Some(mut batch)) => {
                if args.since.is_some() || args.until.is_some() {
                    let since = args.since.unwrap_or(EventTime(0));
                    let until = args.until.unwrap_or(EventTime(u32::MAX));
                    input.first = input.first.into_iter().chain(batch.records.iter().map(|record| record.start)).min();
                    input.last = input.last.into_iter().chain(batch.records.iter().map(|record| record.end)).max();
                    input.records += batch.records.len() as u64;
                    batch.records.retain(|record| record.end >= since && record.start < until);
                }
                bar.tick(reader.progress(), batch.records.len());
                tiers.take(&mut batch);
                reader.recycle(batch);
            }
            Ok(None) => break,
            Err(error @ ReadError::NotFlowLogs { .. }) => {
                bar.say(&format!("flowvigil: {error}"));
                input.left_out += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(input)
}

/// Writes everything that was asked for.
fn tell(args: &Args, tiers: &Tiers, truth: Option<&truth::Truth>) -> anyhow::Result<ExitCode> {
    let shown = |severity: Severity| args.min_severity.is_none_or(|least| severity >= least);
    let anomalies: Vec<_> = tiers.anomalies().into_iter().filter(|anomaly| shown(anomaly.severity)).collect();
    let score = truth.map(|truth| truth.score(&anomalies, &tiers.host_windows));
    let format = args.format.unwrap_or_else(Format::for_stdout);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let whys: Vec<_> = args.explain.iter().map(|&address| Why::of(address, tiers, &anomalies)).collect();
    let written = output::write(&mut out, format, &anomalies, tiers, score.as_ref(), &whys).and_then(|()| out.flush());
    // A reader that has seen enough (`| head`) closes the pipe; that is no failure.
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(error).context("write anomalies");
    }
    output::summary(tiers, &anomalies);
    if args.signals {
        output::signals(&mut std::io::stderr().lock(), tiers).context("write signals")?;
    }
    if format == Format::Ndjson {
        whys.iter().try_for_each(|why| why.tell(&mut std::io::stderr().lock())).context("write explanations")?;
    }
    if let Some(score) = &score {
        eprint!("{score}");
    }
    if let Some(path) = &args.report {
        let page = report::page(&tiers.run(&anomalies));
        std::fs::write(path, page).with_context(|| format!("write report {}", path.display()))?;
    }
    let told = args.exit_code && !anomalies.is_empty();
    Ok(if told { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Seconds of blindness by interface, `(no data, skipped)`.
type Blind = BTreeMap<String, (u64, u64)>;

/// Hours in which hosts were active, by the closed windows of each: 5 minutes a window.
fn hours(host_windows: &BTreeMap<Address, u32>, of: &BTreeSet<Address>) -> f64 {
    let windows: u64 = of.iter().filter_map(|host| host_windows.get(host)).map(|&n| u64::from(n)).sum();
    windows as f64 / 12.0
}
