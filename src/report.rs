//! The self-contained HTML page of a run: no script, no font, no picture from anywhere else, so that it can be mailed,
//! archived, and opened on a machine without a network.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::anomaly::Anomaly;
use crate::finding::{Evidence, Severity};
use crate::flow::{Address, EventTime, FlowRecord, Marks};
use crate::ingest::Refused;
use crate::publish::Silence;
use crate::statistical::Statistics;

/// Everything that the page shows.
#[derive(Debug)]
pub struct Run<'a> {
    /// What was told, in order of detection.
    pub anomalies: &'a [Anomaly],
    /// What was not told, and why.
    pub silences: Vec<&'a Silence>,
    /// Counts of the engine.
    pub statistics: Statistics,
    /// What could not be read.
    pub refused: &'a Refused,
    /// Seconds of NODATA and SKIPDATA by interface.
    pub blind: &'a BTreeMap<String, (u64, u64)>,
    /// Traffic over time and by address.
    pub traffic: Option<&'a Traffic>,
}

/// Traffic over time and by address, in bounded memory.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    talkers: BTreeMap<Address, Talker>,
    timeline: BTreeMap<u32, Bucket>,
    /// log2 of the bucket's length in minutes.
    coarseness: u32,
    floor: u64,
}

/// What one address sent.
#[derive(Clone, Copy, Debug, Default)]
struct Talker {
    bytes: u64,
    records: u64,
    rejected: u64,
}

/// What was sent in one stretch of time.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    records: u64,
    bytes: u64,
    rejected: u64,
}

/// How many talkers are counted before the lesser half is dropped.
const TALKERS_MAX: usize = 8192;

/// How many bars the timeline has at most, before two become one.
const BUCKETS_MAX: usize = 512;

impl Traffic {
    /// Counts records. The heaviest senders are exact unless thousands of others outweighed them before they began: the
    /// lesser half of a full table is dropped (lossy counting, Manku and Motwani 2002), and [`Traffic::floor`] is what a
    /// dropped one may have sent.
    pub fn count(&mut self, records: &[FlowRecord]) {
        for record in records {
            let rejected = u64::from(record.marks.has(Marks::REJECTED));
            let talker = self.talkers.entry(record.source).or_default();
            talker.bytes += record.bytes;
            talker.records += 1;
            talker.rejected += rejected;
            let bucket = self.timeline.entry((record.start.0 / 60) >> self.coarseness).or_default();
            bucket.records += 1;
            bucket.bytes += record.bytes;
            bucket.rejected += rejected;
            if self.talkers.len() > TALKERS_MAX {
                self.drop_the_lesser_half();
            }
            while self.timeline.len() > BUCKETS_MAX {
                self.coarsen();
            }
        }
    }

    /// Bytes that an address may have sent without being counted.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    fn drop_the_lesser_half(&mut self) {
        let mut bytes: Vec<u64> = self.talkers.values().map(|talker| talker.bytes).collect();
        let (_, &mut median, _) = bytes.select_nth_unstable(TALKERS_MAX / 2);
        self.talkers.retain(|_, talker| talker.bytes > median);
        self.floor = self.floor.max(median);
    }

    fn coarsen(&mut self) {
        self.coarseness += 1;
        for (at, bucket) in std::mem::take(&mut self.timeline) {
            let kept = self.timeline.entry(at / 2).or_default();
            kept.records += bucket.records;
            kept.bytes += bucket.bytes;
            kept.rejected += bucket.rejected;
        }
    }

    fn top(&self, count: usize) -> Vec<(Address, Talker)> {
        let mut all: Vec<_> = self.talkers.iter().map(|(&address, &talker)| (address, talker)).collect();
        all.sort_by_key(|(address, talker)| (std::cmp::Reverse(talker.bytes), *address));
        all.truncate(count);
        all
    }
}

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--paper:#fff;--card:#f5f7fa;--line:#d9dfe7;--bar:#8fb3d9;--low:#7a8594;--medium:#c98a00;--high:#d2452d;--critical:#8e1b52}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa5b4;--paper:#14181f;--card:#1d232c;--line:#313a47;--bar:#3d648f;--medium:#e0a83a;--high:#ef6a52;--critical:#d65a98}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1080px;padding:2rem 1.25rem 4rem;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}p{margin:.3rem 0}.soft{color:var(--soft)}
.warning{background:#7f1d1d;color:#fff;border-radius:8px;padding:.7rem .9rem;font-weight:600}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.7rem;margin:1.2rem 0}.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;width:100%;font-size:.92rem}th,td{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}th{color:var(--soft);font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
details{background:var(--card);border:1px solid var(--line);border-left-width:5px;border-radius:8px;margin:.5rem 0;padding:.55rem .9rem}summary{cursor:pointer}
.low{border-left-color:var(--low)}.medium{border-left-color:var(--medium)}.high{border-left-color:var(--high)}.critical{border-left-color:var(--critical)}
.tag{display:inline-block;min-width:4.6rem;text-align:center;border-radius:4px;padding:0 .4rem;color:#fff;font-size:.8rem;background:var(--low)}.tag.medium{background:var(--medium)}.tag.high{background:var(--high)}.tag.critical{background:var(--critical)}
code{font:13px/1.4 ui-monospace,monospace}svg{width:100%;height:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}svg text{fill:var(--soft);font:11px system-ui,sans-serif}.scroll{overflow-x:auto}";

/// The page.
pub fn page(run: &Run<'_>) -> String {
    let mut html = String::with_capacity(64 * 1024);
    let s = &run.statistics;
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>flowvigil report</title><style>{STYLE}</style></head><body><h1>What the flow logs say</h1>\
         <p class=\"soft\">{} to {}, read by flowvigil {}</p>",
        s.first,
        s.last,
        env!("CARGO_PKG_VERSION")
    );
    if let Some(warning) = s.nobody_watched() {
        let _ = write!(html, "<p class=\"warning\" role=\"alert\">{}</p>", escaped(&warning));
    }
    tiles(&mut html, run);
    timeline(&mut html, run);
    anomalies(&mut html, run.anomalies);
    silences(&mut html, &run.silences);
    talkers(&mut html, run.traffic);
    input(&mut html, run);
    html.push_str("</body></html>\n");
    html
}

fn tiles(html: &mut String, run: &Run<'_>) {
    let worst = run.anomalies.iter().filter(|a| a.severity >= Severity::High).count();
    let skipped: u64 = run.blind.values().map(|(_, skipped)| skipped).sum();
    html.push_str("<div class=\"tiles\">");
    for (number, words) in [
        (run.anomalies.len() as u64, "anomalies"),
        (worst as u64, "of them high or critical"),
        (run.silences.len() as u64, "looked at and not told"),
        (run.statistics.records, "records"),
        (run.refused.count, "lines refused"),
        (skipped, "seconds left out by AWS"),
    ] {
        let _ = write!(html, "<div class=\"tile\"><b>{}</b>{words}</div>", grouped(number));
    }
    html.push_str("</div>");
}

/// Bars of records over time, and a line for each anomaly below them.
fn timeline(html: &mut String, run: &Run<'_>) {
    let Some(traffic) = run.traffic.filter(|traffic| !traffic.timeline.is_empty()) else { return };
    const WIDTH: f64 = 1000.0;
    const HEIGHT: f64 = 120.0;
    const LANES_MAX: usize = 40;
    let seconds = 60_u32 << traffic.coarseness;
    let first = traffic.timeline.keys().next().copied().unwrap_or_default();
    let last = traffic.timeline.keys().last().copied().unwrap_or_default();
    let from = f64::from(first) * f64::from(seconds);
    let span = f64::from(last - first + 1) * f64::from(seconds);
    let x = |at: f64| ((at - from) / span * WIDTH).clamp(0.0, WIDTH);
    let most = traffic.timeline.values().map(|bucket| bucket.records).max().unwrap_or(1).max(1) as f64;
    let lanes = run.anomalies.len().min(LANES_MAX);
    let height = HEIGHT + 24.0 + lanes as f64 * 9.0;
    let _ = write!(
        html,
        "<h2>Timeline</h2><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"records and anomalies over time\">"
    );
    for (&at, bucket) in &traffic.timeline {
        let start = f64::from(at) * f64::from(seconds);
        let (left, width) = (x(start), (WIDTH * f64::from(seconds) / span).max(0.6));
        for (count, fill) in [(bucket.records, "var(--bar)"), (bucket.rejected, "var(--high)")] {
            let tall = count as f64 / most * (HEIGHT - 16.0);
            if count > 0 {
                let top = HEIGHT - tall;
                let _ = write!(
                    html,
                    "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.2}\" height=\"{tall:.1}\" fill=\"{fill}\"><title>{}: {} records, {} refused, {}</title></rect>",
                    EventTime(start as u32),
                    bucket.records,
                    bucket.rejected,
                    bytes(bucket.bytes)
                );
            }
        }
    }
    let end = EventTime((from + span) as u32);
    let label = HEIGHT + 14.0;
    let _ = write!(html, "<text x=\"4\" y=\"12\">{} records in {} s</text>", grouped(most as u64), seconds);
    let _ = write!(html, "<text x=\"4\" y=\"{label}\">{}</text>", EventTime(from as u32));
    let _ = write!(html, "<text x=\"{}\" y=\"{label}\" text-anchor=\"end\">{end}</text>", WIDTH - 4.0);
    for (lane, anomaly) in run.anomalies.iter().take(LANES_MAX).enumerate() {
        let (left, right) = (x(f64::from(anomaly.first_seen.0)), x(f64::from(anomaly.last_seen.0)));
        let (top, width) = (HEIGHT + 22.0 + lane as f64 * 9.0, (right - left).max(4.0));
        let left = left.min(WIDTH - width);
        let _ = write!(
            html,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"6\" rx=\"2\" fill=\"var(--{})\"><title>{}</title></rect>",
            anomaly.severity,
            escaped(&anomaly.summary)
        );
    }
    html.push_str("</svg><p class=\"soft\">Bars: records (red: refused by a security group or ACL). Lines below: anomalies, by severity.</p>");
    if run.anomalies.len() > LANES_MAX {
        let _ =
            write!(html, "<p class=\"soft\">The first {LANES_MAX} of {} anomalies are drawn.</p>", run.anomalies.len());
    }
}

fn anomalies(html: &mut String, anomalies: &[Anomaly]) {
    html.push_str("<h2>Anomalies</h2>");
    if anomalies.is_empty() {
        html.push_str("<p>None. What was looked at and not told stands below, with the reasons.</p>");
    }
    let mut worst_first: Vec<&Anomaly> = anomalies.iter().collect();
    worst_first.sort_by_key(|a| (std::cmp::Reverse(a.severity), a.detection_timestamp, a.anomaly_id));
    for anomaly in worst_first {
        let severity = anomaly.severity;
        let _ = write!(
            html,
            "<details class=\"{severity}\"><summary><span class=\"tag {severity}\">{severity}</span> {} <span class=\"soft\">({}, confidence {:.2})</span></summary>",
            escaped(&anomaly.summary),
            anomaly.threat,
            anomaly.confidence
        );
        let _ = write!(
            html,
            "<p class=\"soft\">{} to {}; told at {}; <code>{}</code>",
            anomaly.first_seen, anomaly.last_seen, anomaly.detection_timestamp, anomaly.anomaly_id
        );
        if !anomaly.mitre.is_empty() {
            let _ = write!(html, "; ATT&amp;CK {}", escaped(&anomaly.mitre.join(", ")));
        }
        html.push_str("</p>");
        evidence(html, &anomaly.evidence);
        targets(html, anomaly);
        html.push_str("<table><tr><th>Validation</th><th></th></tr>");
        for stage in &anomaly.tiers.validation.stages {
            let _ = write!(html, "<tr><td>{}</td><td>{}</td></tr>", escaped(&stage.name), escaped(&stage.reason));
        }
        html.push_str("</table></details>");
    }
}

fn evidence(html: &mut String, evidence: &[Evidence]) {
    html.push_str(
        "<table><tr><th>Evidence</th><th class=\"n\">measured</th><th class=\"n\">threshold</th><th>unit</th></tr>",
    );
    for Evidence { name, value, threshold, bound, unit, .. } in evidence {
        let sign = bound.map_or(String::new(), |bound| format!("{} ", escaped(bound.sign())));
        let threshold = threshold.map_or(String::new(), |threshold| format!("{sign}{}", number(threshold)));
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{threshold}</td><td>{}</td></tr>",
            escaped(&name.replace('_', " ")),
            number(*value),
            escaped(unit)
        );
    }
    html.push_str("</table>");
}

fn targets(html: &mut String, anomaly: &Anomaly) {
    let _ = write!(html, "<p><b>{}</b> on ", escaped(&anomaly.actor.to_string()));
    let shown = anomaly.targets.iter().take(8).map(|target| {
        let ports: Vec<String> = target.ports.iter().take(8).map(u16::to_string).collect();
        let more = if target.port_count as usize > ports.len() { ", …" } else { "" };
        format!("{} ({} ports: {}{more})", target.address, target.port_count, ports.join(", "))
    });
    let _ = write!(html, "{}", escaped(&shown.collect::<Vec<_>>().join("; ")));
    if anomaly.target_count > 8 {
        let _ = write!(html, " and {} more", anomaly.target_count - 8);
    }
    html.push_str("</p>");
    if !anomaly.sources.is_empty() {
        let shown = anomaly.sources.iter().map(|source| format!("{} ({})", source.address, source.amount));
        let shown = shown.collect::<Vec<_>>().join(", ");
        let _ = write!(html, "<p>Largest sources, with their packets or ports: {}</p>", escaped(&shown));
    }
    if !anomaly.severity_reason.is_empty() {
        let _ = write!(html, "<p>{}: {}</p>", anomaly.severity, escaped(&anomaly.severity_reason));
    }
}

fn silences(html: &mut String, silences: &[&Silence]) {
    if silences.is_empty() {
        return;
    }
    html.push_str("<h2>Looked at and not told</h2><div class=\"scroll\"><table><tr><th>Threat</th><th>Actor</th><th>From</th><th>Stage</th><th>Why</th></tr>");
    for silence in silences.iter().take(200) {
        let Silence { threat, actor, first_seen, stage, reason, .. } = silence;
        let _ = write!(
            html,
            "<tr><td>{threat}</td><td>{actor}</td><td>{first_seen}</td><td>{}</td><td>{}</td></tr>",
            escaped(stage),
            escaped(reason)
        );
    }
    html.push_str("</table></div>");
    if silences.len() > 200 {
        let _ = write!(html, "<p class=\"soft\">The first 200 of {}.</p>", silences.len());
    }
}

fn talkers(html: &mut String, traffic: Option<&Traffic>) {
    let Some(traffic) = traffic else { return };
    let top = traffic.top(15);
    let most = top.first().map_or(1, |(_, talker)| talker.bytes.max(1)) as f64;
    html.push_str("<h2>Top talkers</h2><table><tr><th>Address</th><th class=\"n\">sent</th><th></th><th class=\"n\">records</th><th class=\"n\">refused</th></tr>");
    for (address, talker) in top {
        let share = talker.bytes as f64 / most * 160.0;
        let _ = write!(
            html,
            "<tr><td><code>{address}</code></td><td class=\"n\">{}</td><td><svg viewBox=\"0 0 160 10\" style=\"width:160px;border:0\"><rect width=\"{share:.1}\" height=\"10\" fill=\"var(--bar)\"/></svg></td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            bytes(talker.bytes),
            grouped(talker.records),
            grouped(talker.rejected)
        );
    }
    html.push_str("</table>");
    if traffic.floor() > 0 {
        let _ = write!(
            html,
            "<p class=\"soft\">Counted in bounded memory: an address may have sent up to {} more.</p>",
            bytes(traffic.floor())
        );
    }
}

fn input(html: &mut String, run: &Run<'_>) {
    html.push_str("<h2>What could not be seen</h2>");
    if run.blind.is_empty() {
        html.push_str("<p>No interface reported missing data. No data is not the same as no traffic.</p>");
    } else {
        html.push_str("<table><tr><th>Interface</th><th class=\"n\">left out by AWS (SKIPDATA), s</th><th class=\"n\">without data (NODATA), s</th></tr>");
        for (interface, (no_data, skipped)) in run.blind.iter().take(100) {
            let name = if interface.is_empty() { "not named" } else { interface };
            let _ = write!(
                html,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                escaped(name),
                grouped(*skipped),
                grouped(*no_data)
            );
        }
        html.push_str("</table>");
    }
    html.push_str("<h2>Input that was refused</h2>");
    if run.refused.count == 0 {
        html.push_str("<p>None; every line was read.</p>");
    } else {
        let _ = write!(
            html,
            "<p>{} lines or payloads. The first of them:</p><table><tr><th>Where</th><th>Field</th><th>Why</th></tr>",
            grouped(run.refused.count)
        );
        for refusal in &run.refused.samples {
            let field = refusal.field.as_deref().unwrap_or("");
            let _ = write!(
                html,
                "<tr><td><code>{}:{}</code></td><td>{}</td><td>{}</td></tr>",
                escaped(&refusal.source),
                refusal.line,
                escaped(field),
                escaped(&refusal.reason)
            );
        }
        html.push_str("</table>");
    }
    let s = &run.statistics;
    let _ = write!(
        html,
        "<p class=\"soft\">{} of {} records came after their window had closed and were left out (<code>statistical.lateness</code> \
         is to be more than they are behind); {} were dated far ahead of all others and were left out; {} said again what another \
         interface had said, and {} were there already, word for word. {} addresses are taken for ours beside \
         <code>network.internal</code>, since they own the interfaces that log them.</p>",
        grouped(s.late),
        grouped(s.records),
        grouped(s.future),
        grouped(s.duplicates),
        grouped(s.repeated),
        grouped(s.learned_hosts)
    );
    if !s.gateways.is_empty() {
        let gateways: Vec<String> = s.gateways.iter().map(ToString::to_string).collect();
        let _ = write!(
            html,
            "<p class=\"soft\">Taken for NAT gateways, since they repeat what other hosts do: <code>{}</code>. What they \
             open to outside is told of the hosts behind them.</p>",
            gateways.join("</code>, <code>")
        );
    }
}

/// Text that cannot be taken for markup.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
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

    fn record(source: u32, bytes: u64, start: u32) -> FlowRecord {
        FlowRecord { source: Address::v4(source), bytes, start: EventTime(start), ..FlowRecord::default() }
    }

    #[test]
    fn text_from_outside_cannot_become_markup() {
        assert_eq!(escaped("<img src=x onerror='a'>&\""), "&lt;img src=x onerror=&#39;a&#39;&gt;&amp;&quot;");
    }

    #[test]
    fn numbers_are_written_for_reading() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([number(-1_022.0), number(0.5)], ["-1,022", "0.500"]);
        assert_eq!([bytes(999), bytes(1_500), bytes(2_000_000)], ["999 B", "1.5 kB", "2.0 MB"]);
    }

    #[test]
    fn the_heaviest_talkers_survive_a_flood_of_small_ones_in_bounded_memory() {
        let mut traffic = Traffic::default();
        traffic.count(&[record(7, 1 << 40, 0), record(8, 1 << 41, 0)]);
        for n in 0..100_000 {
            traffic.count(&[record(1_000 + n, 40, 0)]);
        }
        assert!(traffic.talkers.len() <= TALKERS_MAX);
        assert_eq!(traffic.top(2).iter().map(|(a, _)| *a).collect::<Vec<_>>(), [Address::v4(8), Address::v4(7)]);
    }

    #[test]
    fn a_long_timeline_becomes_coarser_and_loses_nothing() {
        let mut traffic = Traffic::default();
        for minute in 0..10_000 {
            traffic.count(&[record(1, 1, minute * 60)]);
        }
        assert!(traffic.timeline.len() <= BUCKETS_MAX);
        assert_eq!(traffic.timeline.values().map(|bucket| bucket.records).sum::<u64>(), 10_000);
    }
}
