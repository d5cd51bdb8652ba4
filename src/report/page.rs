//! The page in HTML. Whatever is spliced in is escaped by the template.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Run, Traffic};
use crate::anomaly::Anomaly;
use crate::finding::{Alternative, Evidence, Severity};
use crate::flow::EventTime;
use crate::publish::Silence;
use crate::statistical::Statistics;

const STYLE: &str = include_str!("page.css");

/// The most silences, interfaces and targets of an anomaly that are listed.
const SILENCES_MAX: usize = 200;
const INTERFACES_MAX: usize = 100;
const TARGETS_MAX: usize = 8;

/// The page of a run.
pub fn page(run: &Run<'_>) -> String {
    let s = &run.statistics;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "flowvigil report" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "What the flow logs say" }
                p.soft { (s.first) " to " (s.last) ", read by flowvigil " (env!("CARGO_PKG_VERSION")) }
                @if let Some(warning) = s.nobody_watched() {
                    p.warning role="alert" { (warning) }
                }
                @if let Some(warning) = s.late_records() {
                    p.warning role="alert" { (warning) }
                }
                (tiles(run))
                @if let Some(traffic) = run.traffic && !traffic.timeline.is_empty() { (timeline(traffic, run.anomalies)) }
                (anomalies(run.anomalies))
                @if !run.silences.is_empty() { (silences(&run.silences)) }
                @if let Some(traffic) = run.traffic { (talkers(traffic)) }
                (blind(run))
                (refused(run))
                (left_out(s))
            }
        }
    };
    page.into_string()
}

fn tiles(run: &Run<'_>) -> Markup {
    let worst = run.anomalies.iter().filter(|a| a.severity >= Severity::High).count();
    let skipped: u64 = run.blind.values().map(|(_, skipped)| skipped).sum();
    let tiles = [
        (run.anomalies.len() as u64, "anomalies"),
        (worst as u64, "of them high or critical"),
        (run.silences.len() as u64, "looked at and not told"),
        (run.statistics.records, "records"),
        (run.refused.count, "lines refused"),
        (skipped, "seconds left out by AWS"),
    ];
    html! {
        div.tiles {
            @for (number, words) in tiles { div.tile { b { (grouped(number)) } (words) } }
        }
    }
}

/// Bars of records over time, and a line for each anomaly below them.
fn timeline(traffic: &Traffic, anomalies: &[Anomaly]) -> Markup {
    const WIDTH: f64 = 1000.0;
    const HEIGHT: f64 = 120.0;
    const LABEL: f64 = HEIGHT + 14.0;
    const LANES_MAX: usize = 40;
    let seconds = 60_u32 << traffic.coarseness;
    let first = traffic.timeline.keys().next().copied().unwrap_or_default();
    let last = traffic.timeline.keys().last().copied().unwrap_or_default();
    let from = f64::from(first) * f64::from(seconds);
    let span = f64::from(last - first + 1) * f64::from(seconds);
    let x = |at: f64| ((at - from) / span * WIDTH).clamp(0.0, WIDTH);
    let most = traffic.timeline.values().map(|bucket| bucket.records).max().unwrap_or(1).max(1);
    let lanes = anomalies.len().min(LANES_MAX);
    let height = HEIGHT + 24.0 + lanes as f64 * 9.0;
    let bar = (WIDTH * f64::from(seconds) / span).max(0.6);
    let tall = |count: u64| count as f64 / most as f64 * (HEIGHT - 16.0);
    let lane = |anomaly: &Anomaly| {
        let (left, right) = (x(f64::from(anomaly.first_seen.0)), x(f64::from(anomaly.last_seen.0)));
        let width = (right - left).max(4.0);
        (left.min(WIDTH - width), width)
    };
    html! {
        h2 { "Timeline" }
        svg viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-label="records and anomalies over time" {
            @for (&at, bucket) in &traffic.timeline {
                @let start = f64::from(at) * f64::from(seconds);
                @for (count, fill) in [(bucket.records, "var(--bar)"), (bucket.rejected, "var(--high)")] {
                    @if count > 0 {
                        rect x=(tenths(x(start))) y=(tenths(HEIGHT - tall(count))) width=(format!("{bar:.2}"))
                            height=(tenths(tall(count))) fill=(fill) {
                            title {
                                (EventTime(start as u32)) ": " (bucket.records) " records, " (bucket.rejected) " refused, "
                                (bytes(bucket.bytes))
                            }
                        }
                    }
                }
            }
            text x="4" y="12" { (grouped(most)) " records in " (seconds) " s" }
            text x="4" y=(LABEL) { (EventTime(from as u32)) }
            text x=(WIDTH - 4.0) y=(LABEL) text-anchor="end" { (EventTime((from + span) as u32)) }
            @for (number, anomaly) in anomalies.iter().take(LANES_MAX).enumerate() {
                @let (left, width) = lane(anomaly);
                rect x=(tenths(left)) y=(tenths(HEIGHT + 22.0 + number as f64 * 9.0)) width=(tenths(width)) height="6" rx="2"
                    fill={ "var(--" (anomaly.severity) ")" } {
                    title { (anomaly.summary) }
                }
            }
        }
        p.soft { "Bars: records (red: refused by a security group or ACL). Lines below: anomalies, by severity." }
        @if anomalies.len() > LANES_MAX {
            p.soft { "The first " (LANES_MAX) " of " (anomalies.len()) " anomalies are drawn." }
        }
    }
}

/// The worst first.
fn anomalies(anomalies: &[Anomaly]) -> Markup {
    let mut worst_first: Vec<&Anomaly> = anomalies.iter().collect();
    worst_first.sort_by_key(|a| (std::cmp::Reverse(a.severity), a.detection_timestamp, a.anomaly_id));
    html! {
        h2 { "Anomalies" }
        @if anomalies.is_empty() { p { "None. What was looked at and not told stands below, with the reasons." } }
        @for anomaly in worst_first { (details(anomaly)) }
    }
}

fn details(anomaly: &Anomaly) -> Markup {
    let severity = anomaly.severity;
    html! {
        details class=(severity) {
            summary {
                span class={ "tag " (severity) } { (severity) } " " (anomaly.summary) " "
                span.soft { "(" (anomaly.threat) ", confidence " (format!("{:.2}", anomaly.confidence)) ")" }
            }
            p.soft {
                (anomaly.first_seen) " to " (anomaly.last_seen) "; told at " (anomaly.detection_timestamp) "; "
                code { (anomaly.anomaly_id) }
                @if !anomaly.mitre.is_empty() { "; ATT&CK " (anomaly.mitre.join(", ")) }
            }
            @if !anomaly.alternatives.is_empty() {
                p { "Or, by the same evidence: " (Alternative::list(&anomaly.alternatives)) }
            }
            (evidence(&anomaly.evidence))
            p { b { (anomaly.actor) } " on " (targets(anomaly)) }
            @if !anomaly.sources.is_empty() {
                p {
                    "Largest sources, with their packets or ports: "
                    @for (at, source) in anomaly.sources.iter().enumerate() {
                        @if at > 0 { ", " } (source.address) " (" (source.amount) ")"
                    }
                }
            }
            @if !anomaly.severity_reason.is_empty() { p { (severity) ": " (anomaly.severity_reason) } }
            table {
                tr { th { "Validation" } th {} }
                @for stage in &anomaly.tiers.validation.stages { tr { td { (stage.name) } td { (stage.reason) } } }
            }
        }
    }
}

fn evidence(evidence: &[Evidence]) -> Markup {
    html! {
        table {
            tr { th { "Evidence" } th.n { "measured" } th.n { "threshold" } th { "unit" } }
            @for Evidence { name, value, threshold, bound, unit, .. } in evidence {
                tr {
                    td { (name.replace('_', " ")) }
                    td.n { (number(*value)) }
                    td.n {
                        @if let Some(threshold) = threshold {
                            @if let Some(bound) = bound { (bound.sign()) " " }
                            (number(*threshold))
                        }
                    }
                    td { (unit) }
                }
            }
        }
    }
}

/// In words.
fn targets(anomaly: &Anomaly) -> String {
    let shown = anomaly.targets.iter().take(TARGETS_MAX).map(|target| {
        let ports: Vec<String> = target.ports.iter().take(8).map(u16::to_string).collect();
        let more = if target.port_count as usize > ports.len() { ", …" } else { "" };
        format!("{} ({} ports: {}{more})", target.address, target.port_count, ports.join(", "))
    });
    let mut words = shown.collect::<Vec<_>>().join("; ");
    if let Some(more) = (anomaly.target_count as usize).checked_sub(TARGETS_MAX).filter(|more| *more > 0) {
        words.push_str(&format!(" and {more} more"));
    }
    words
}

fn silences(silences: &[&Silence]) -> Markup {
    let mut signals: Vec<&Silence> = silences.iter().copied().filter(|silence| silence.is_signal()).collect();
    signals.sort_by(|a, b| a.by_likelihood(b));
    html! {
        @if !signals.is_empty() {
            h2 { "Signals" }
            p.soft { "Too uncertain to tell; worth a look beside something else of the same host." }
            div.scroll {
                table {
                    tr { th.n { "Likely" } th { "Threat" } th { "From" } th { "What" } }
                    @for Silence { threat, first_seen, confidence, summary, .. } in signals.iter().take(SILENCES_MAX) {
                        tr { td.n { (format!("{confidence:.2}")) } td { (threat) } td { (first_seen) } td { (summary) } }
                    }
                }
            }
        }
        h2 { "Looked at and not told" }
        div.scroll {
            table {
                tr { th { "Threat" } th { "Actor" } th { "From" } th { "Stage" } th { "Why" } }
                @for Silence { threat, actor, first_seen, stage, reason, .. } in silences.iter().take(SILENCES_MAX) {
                    tr { td { (threat) } td { (actor) } td { (first_seen) } td { (stage) } td { (reason) } }
                }
            }
        }
        @if silences.len() > SILENCES_MAX { p.soft { "The first " (SILENCES_MAX) " of " (silences.len()) "." } }
    }
}

fn talkers(traffic: &Traffic) -> Markup {
    let top = traffic.top(15);
    let most = top.first().map_or(1, |(_, talker)| talker.bytes.max(1)) as f64;
    html! {
        h2 { "Top talkers" }
        table {
            tr { th { "Address" } th.n { "sent" } th {} th.n { "records" } th.n { "refused" } }
            @for (address, talker) in top {
                tr {
                    td { code { (address) } }
                    td.n { (bytes(talker.bytes)) }
                    td {
                        svg viewBox="0 0 160 10" style="width:160px;border:0" {
                            rect width=(tenths(talker.bytes as f64 / most * 160.0)) height="10" fill="var(--bar)" {}
                        }
                    }
                    td.n { (grouped(talker.records)) }
                    td.n { (grouped(talker.rejected)) }
                }
            }
        }
        @if traffic.floor() > 0 {
            p.soft { "Counted in bounded memory: an address may have sent up to " (bytes(traffic.floor())) " more." }
        }
    }
}

fn blind(run: &Run<'_>) -> Markup {
    html! {
        h2 { "What could not be seen" }
        @if run.blind.is_empty() {
            p { "No interface reported missing data. No data is not the same as no traffic." }
        } @else {
            table {
                tr { th { "Interface" } th.n { "left out by AWS (SKIPDATA), s" } th.n { "without data (NODATA), s" } }
                @for (interface, (no_data, skipped)) in run.blind.iter().take(INTERFACES_MAX) {
                    tr {
                        td { @if interface.is_empty() { "not named" } @else { (interface) } }
                        td.n { (grouped(*skipped)) }
                        td.n { (grouped(*no_data)) }
                    }
                }
            }
        }
    }
}

fn refused(run: &Run<'_>) -> Markup {
    html! {
        h2 { "Input that was refused" }
        @if run.refused.count == 0 {
            p { "None; every line was read." }
        } @else {
            p { (grouped(run.refused.count)) " lines or payloads. The first of them:" }
            table {
                tr { th { "Where" } th { "Field" } th { "Why" } }
                @for refusal in &run.refused.samples {
                    tr {
                        td { code { (refusal.source) ":" (refusal.line) } }
                        td { (refusal.field.as_deref().unwrap_or_default()) }
                        td { (refusal.reason) }
                    }
                }
            }
        }
    }
}

/// What was read and not judged, and what was learned of the network.
fn left_out(s: &Statistics) -> Markup {
    let gateways = s.gateways.iter().enumerate();
    html! {
        p.soft {
            (grouped(s.late)) " of " (grouped(s.records)) " records came after their window had closed and were left out; "
            (grouped(s.future))
            " were dated far ahead of all others and were left out; " (grouped(s.duplicates))
            " said again what another interface had said, and " (grouped(s.repeated)) " were there already, word for word. "
            (grouped(s.learned_hosts)) " addresses are taken for ours beside " code { "network.internal" }
            ", since they own the interfaces that log them."
        }
        @if !s.gateways.is_empty() {
            p.soft {
                "Taken for NAT gateways, since they repeat what other hosts do: "
                @for (at, gateway) in gateways { @if at > 0 { ", " } code { (gateway) } }
                ". What they open to outside is told of the hosts behind them."
            }
        }
    }
}

/// A length in the drawing.
fn tenths(length: f64) -> String {
    format!("{length:.1}")
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn number(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 {
        let sign = if value < 0.0 { "-" } else { "" };
        format!("{sign}{}", grouped(value.abs() as u64))
    } else {
        format!("{value:.3}")
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_reading() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([number(-1_022.0), number(0.5)], ["-1,022", "0.500"]);
        assert_eq!([bytes(999), bytes(1_500), bytes(2_000_000)], ["999 B", "1.5 kB", "2.0 MB"]);
    }
}
