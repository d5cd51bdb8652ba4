//! Anomalies on standard output, and what there is to know about the run on standard error.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::explain::Why;
use super::tiers::Tiers;
use super::truth::Score;
use crate::anomaly::Anomaly;
use crate::finding::Severity;
use crate::publish::Silence;
use crate::validation::spoken_span;

/// How anomalies are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One anomaly per line
    Ndjson,
    /// One document: anomalies, silences with their reasons, and statistics
    Json,
}

impl Format {
    /// A table on a terminal, NDJSON otherwise.
    pub fn for_stdout() -> Format {
        if std::io::stdout().is_terminal() { Format::Table } else { Format::Ndjson }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    anomalies: &'a [Anomaly],
    silences: Vec<&'a Silence>,
    statistics: crate::statistical::Statistics,
    refused: &'a crate::ingest::Refused,
    blind: &'a super::Blind,
    /// What keeps a part of the log from being judged, with what mends it.
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<&'a Score>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    explanations: &'a [Why<'a>],
}

/// Writes the anomalies.
pub(super) fn write(
    out: &mut impl Write,
    format: Format,
    anomalies: &[Anomaly],
    tiers: &Tiers,
    score: Option<&Score>,
    whys: &[Why<'_>],
) -> std::io::Result<()> {
    match format {
        Format::Table => {
            table(out, anomalies, std::io::stdout().is_terminal())?;
            whys.iter().try_for_each(|why| why.tell(out))
        }
        Format::Ndjson => {
            for anomaly in anomalies {
                serde_json::to_writer(&mut *out, anomaly)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        }
        Format::Json => {
            let s = tiers.engine.statistics();
            let document = Document {
                warnings: s.nobody_watched().into_iter().chain(s.late_records()).collect(),
                anomalies,
                silences: tiers.silences.values().collect(),
                statistics: s,
                refused: &tiers.refused,
                blind: &tiers.blind,
                score,
                explanations: whys,
            };
            serde_json::to_writer_pretty(&mut *out, &document)?;
            out.write_all(b"\n")
        }
    }
}

/// What was too uncertain to tell, a line each, the likeliest first.
pub(super) fn signals(out: &mut impl Write, tiers: &Tiers) -> std::io::Result<()> {
    let signals = tiers.signals();
    if signals.is_empty() {
        return writeln!(out, "signals: none; nothing was kept back for want of evidence");
    }
    writeln!(out, "signals: kept back for want of evidence, not told")?;
    for signal in signals {
        writeln!(
            out,
            "  {:>4.2}  {:<13}  {}  {}",
            signal.confidence, signal.threat, signal.first_seen, signal.summary
        )?;
    }
    Ok(())
}

/// A line of facts and a line of words for each anomaly.
fn table(out: &mut impl Write, anomalies: &[Anomaly], coloured: bool) -> std::io::Result<()> {
    if anomalies.is_empty() {
        return Ok(());
    }
    writeln!(out, "{:<8}  {:<13}  {:>4}  {:<20}  {:<10}  WHAT", "SEVERITY", "THREAT", "CONF", "FIRST SEEN", "FOR")?;
    for anomaly in anomalies {
        let severity = format!("{:<8}", anomaly.severity.name());
        let severity = if coloured { format!("\x1b[{}m{severity}\x1b[0m", colour(anomaly.severity)) } else { severity };
        let first = anomaly.first_seen.to_string();
        let span = spoken_span(anomaly.first_seen, anomaly.last_seen);
        let (threat, confidence) = (anomaly.threat, anomaly.confidence);
        writeln!(out, "{severity}  {threat:<13}  {confidence:>4.2}  {first:<20}  {span:<10}  {}", anomaly.summary)?;
    }
    Ok(())
}

const fn colour(severity: Severity) -> &'static str {
    match severity {
        Severity::Low => "2",
        Severity::Medium => "33",
        Severity::High => "31",
        Severity::Critical => "1;37;41",
    }
}

/// What there is to know about the run.
pub(super) fn summary(tiers: &Tiers, anomalies: &[Anomaly]) {
    let s = tiers.engine.statistics().clone();
    if let Some(warning) = s.nobody_watched() {
        eprintln!("WARNING: {warning}");
    }
    let span = if s.records > 0 { format!(" over {}", spoken_span(s.first, s.last)) } else { String::new() };
    eprintln!("{} records{span}: {} anomalies, {} silences", tiers.records, anomalies.len(), tiers.silences.len());
    if tiers.records == 0 {
        eprintln!("there was no record to judge: the log only says that there was no data, or that it was left out");
    }
    if tiers.refused.count > 0 {
        eprintln!("refused: {} lines or payloads", tiers.refused.count);
        for refusal in tiers.refused.samples.iter().take(5) {
            let field = refusal.field.as_ref().map_or(String::new(), |field| format!("{field}: "));
            eprintln!("  {}:{}: {field}{}", refusal.source, refusal.line, refusal.reason);
        }
    }
    let (no_data, skipped) = tiers.blind.values().fold((0, 0), |(n, s), &(a, b)| (n + a, s + b));
    if no_data + skipped > 0 {
        let interfaces = tiers.blind.len();
        eprintln!(
            "blind: {skipped} s of records left out by AWS (SKIPDATA), {no_data} s without data (NODATA), on {interfaces} interfaces; no data is not the same as no traffic"
        );
    }
    if let Some(late) = s.late_records() {
        eprintln!("late: {late}");
    }
    for (count, what) in [
        (
            s.future,
            "records were dated more than an hour ahead of all others and were left out: look at the clock of what wrote them",
        ),
        (s.early_closes, "windows were closed early for want of room (statistical.tables.conversations)"),
        (s.left_out, "records of addresses that crowded a window were left out (statistical.tables.conversations)"),
        (
            s.repeated,
            "records were there already, word for word (two flow logs of one interface?), and were counted once",
        ),
        (
            s.learned_hosts,
            "addresses are taken for ours beside network.internal, since they own the interfaces that log them",
        ),
        (s.duplicates, "duplicates: records said again what another interface had said, and were counted once"),
        (tiers.evicted_incidents(), "incidents were closed early for want of room (correlation.incidents_max)"),
    ] {
        if count > 0 {
            eprintln!("{count} {what}");
        }
    }
    if !s.gateways.is_empty() {
        let gateways: Vec<String> = s.gateways.iter().map(ToString::to_string).collect();
        eprintln!(
            "taken for NAT gateways, since they repeat what other hosts do: {}; what they open to outside is told of the hosts behind them",
            gateways.join(", ")
        );
    }
    for (table, count) in s.evictions.iter().filter(|(_, count)| **count > 0) {
        eprintln!("{count} entries evicted from the full table `{table}`");
    }
}
