//! Scoring a run against labelled truth.
//!
//! One group of truth is (set, threat, actor), for `ddos` (set, threat, victim); it is found when one anomaly has its
//! threat and actor and overlaps it in time, give or take ten minutes. A beacon or a miner must be told with the right
//! peer. Groups whose every entry is `weak` (under a minute of evidence) or `undetectable` are counted apart. What
//! matches no group is false, unless its nature is unknown: the set is unlabelled, or the actor is listed as infected,
//! ambiguous or derived.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use anyhow::Context;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::anomaly::Anomaly;
use crate::finding::Threat;
use crate::flow::Address;

/// How far outside the truth's time an anomaly may lie, s.
const SLACK: f64 = 600.0;

/// A labels file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Labels {
    truth: Vec<Entry>,
    derived: Vec<Value>,
    benign_hosts: Vec<Value>,
    infected_hosts: Vec<Value>,
    ambiguous: Vec<Value>,
    unlabelled: bool,
}

/// One thing that the source says is malicious.
#[derive(Debug, Deserialize)]
struct Entry {
    threat: String,
    actor: String,
    #[serde(default)]
    target: Option<String>,
    first: f64,
    last: f64,
    #[serde(default)]
    set: Option<String>,
    #[serde(default)]
    weak: bool,
    #[serde(default)]
    undetectable: bool,
    #[serde(default)]
    also: Vec<String>,
}

/// Labels with the name of their set.
#[derive(Debug)]
pub(super) struct Truth {
    name: String,
    labels: Labels,
}

/// Found of how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(super) struct Found {
    found: u32,
    of: u32,
}

/// Anomalies whose confidence is within a tenth, and how many of them are true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(super) struct Tenth {
    told: u32,
    r#true: u32,
}

/// What the anomalies of one threat came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(super) struct Told {
    r#true: u32,
    r#false: u32,
    /// Of the false ones and those of unknown nature: the truth has the host, in time, under another threat.
    wrong_threat: u32,
    /// Of these, how many name that threat beside their own. That is no find.
    named_beside: u32,
    /// The truth has the host under this threat, with another peer.
    wrong_peer: u32,
    unknown: u32,
}

/// What a run was worth.
#[derive(Debug, Default, Serialize)]
pub(super) struct Score {
    anomalies: usize,
    tp: u32,
    fp: u32,
    unknown: u32,
    /// Share of the anomalies of known nature that are true.
    precision: f64,
    /// By threat, groups that can be found.
    found: BTreeMap<String, Found>,
    /// By threat, groups with under a minute of evidence, or nothing to tell them by.
    weak: BTreeMap<String, Found>,
    fp_by_threat: BTreeMap<String, u32>,
    /// By threat, what was told.
    told: BTreeMap<String, Told>,
    wrong_threat: u32,
    wrong_peer: u32,
    /// By the first digit of the confidence, among those of known nature: what is told with .9 should be true nine times
    /// in ten, or more often.
    reliability: BTreeMap<String, Tenth>,
    /// Hours in which the benign hosts were active, as closed 5-minute windows.
    benign_host_hours: f64,
    /// None where the labels name no benign hosts, or none was active.
    false_per_1000_host_hours: Option<f64>,
    missed: Vec<String>,
    #[serde(rename = "false")]
    false_anomalies: Vec<String>,
}

impl Truth {
    /// Reads `NAME.labels.json`, or whatever it is called.
    pub(super) fn read(path: &Path) -> anyhow::Result<Truth> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read labels {}", path.display()))?;
        let labels = serde_json::from_str(&text).with_context(|| format!("read labels {}", path.display()))?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let name = file.strip_suffix(".json").unwrap_or(&file);
        Ok(Truth { name: name.strip_suffix(".labels").unwrap_or(name).to_owned(), labels })
    }

    /// Scores what was told.
    pub(super) fn score(&self, anomalies: &[Anomaly], host_windows: &BTreeMap<Address, u32>) -> Score {
        let groups = self.groups();
        let mut found = BTreeSet::new();
        let mut score = Score { anomalies: anomalies.len(), ..Score::default() };
        for anomaly in anomalies {
            let who = Who::of(anomaly);
            match self.judge(&who, &groups, &mut found) {
                Match::Yes => {
                    score.tp += 1;
                    score.told_of(anomaly).r#true += 1;
                    score.note_confidence(anomaly, true);
                    continue;
                }
                Match::WrongPeer => {
                    score.wrong_peer += 1;
                    score.told_of(anomaly).wrong_peer += 1;
                }
                Match::No => {}
            }
            if let Some(threats) = self.other_threats(&who) {
                score.wrong_threat += 1;
                let named = anomaly.alternatives.iter().any(|other| threats.contains(other.threat.name()));
                let told = score.told_of(anomaly);
                told.wrong_threat += 1;
                told.named_beside += u32::from(named);
            }
            if self.is_unknown(&who) {
                score.unknown += 1;
                score.told_of(anomaly).unknown += 1;
            } else {
                score.note_false(anomaly);
                score.note_confidence(anomaly, false);
            }
        }
        for (key, entries) in &groups {
            let weak = entries.iter().all(|entry| entry.weak || entry.undetectable);
            let by_threat = if weak { &mut score.weak } else { &mut score.found };
            let count = by_threat.entry(key.1.to_owned()).or_default();
            count.of += 1;
            count.found += u32::from(found.contains(key));
            if !weak && !found.contains(key) {
                score.missed.push(format!("{} {}", key.1, key.2));
            }
        }
        score.precision = round4(f64::from(score.tp) / f64::from((score.tp + score.fp).max(1)));
        let benign: BTreeSet<Address> =
            host_windows.keys().copied().filter(|host| listed(&host.to_string(), &self.labels.benign_hosts)).collect();
        score.benign_host_hours = super::hours(host_windows, &benign);
        if score.benign_host_hours > 0.0 {
            let rate = 1000.0 * f64::from(score.fp) / score.benign_host_hours;
            score.false_per_1000_host_hours = Some((rate * 10.0).round() / 10.0);
        }
        score
    }

    /// Truth by (set, threat, actor or victim).
    fn groups(&self) -> BTreeMap<Key<'_>, Vec<&Entry>> {
        let mut groups: BTreeMap<Key<'_>, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.labels.truth {
            let set = entry.set.as_deref().unwrap_or(&self.name);
            let whom = if entry.threat == "ddos" { entry.target.as_deref().unwrap_or_default() } else { &entry.actor };
            groups.entry((set, &entry.threat, whom)).or_default().push(entry);
        }
        groups
    }

    /// Holds one anomaly against every group, and notes the groups that it finds.
    fn judge<'a>(
        &'a self,
        who: &Who<'_>,
        groups: &BTreeMap<Key<'a>, Vec<&'a Entry>>,
        found: &mut BTreeSet<Key<'a>>,
    ) -> Match {
        let (mut hit, mut wrong_peer) = (false, false);
        for (key, entries) in groups {
            for entry in entries.iter().filter(|entry| who.overlaps(entry)) {
                let touches_either = who.touches(&entry.actor) || entry.target.as_ref().is_some_and(|t| who.touches(t));
                let matched = if who.anomaly.threat == Threat::Behavior && touches_either {
                    // Out of character on a host of the truth, in time: true, and finds nothing that has a better name.
                    hit = true;
                    if key.1 == Threat::Behavior.name() {
                        found.insert(*key);
                    }
                    continue;
                } else if who.anomaly.threat.name() == key.1 {
                    who.matches(entry)
                } else if entry.also.iter().any(|also| also == who.anomaly.threat.name()) {
                    let target = entry.target.as_ref().is_some_and(|t| who.touches(t));
                    if who.actor == canonical(&entry.actor) || target { Match::Yes } else { Match::No }
                } else {
                    continue;
                };
                match matched {
                    Match::Yes => {
                        found.insert(*key);
                        hit = true;
                    }
                    Match::WrongPeer => wrong_peer = true,
                    Match::No => {}
                }
            }
        }
        match (hit, wrong_peer) {
            (true, _) => Match::Yes,
            (false, true) => Match::WrongPeer,
            (false, false) => Match::No,
        }
    }

    /// The threats under which the truth has whoever it is about, in time, where its own is not among them.
    fn other_threats(&self, who: &Who<'_>) -> Option<BTreeSet<&str>> {
        let entries = self.labels.truth.iter().filter(|entry| {
            let about = if entry.threat == "ddos" { entry.target.as_deref().unwrap_or_default() } else { &entry.actor };
            let same = match who.anomaly.threat {
                Threat::Ddos => who.touches(about),
                _ => who.actor == canonical(about) || who.actor == canonical(&entry.actor),
            };
            same && who.overlaps(entry)
        });
        let threats: BTreeSet<&str> = entries.map(|entry| entry.threat.as_str()).collect();
        (!threats.is_empty() && !threats.contains(who.anomaly.threat.name())).then_some(threats)
    }

    /// Whether nobody knows what an anomaly that matches nothing is.
    fn is_unknown(&self, who: &Who<'_>) -> bool {
        let labels = &self.labels;
        let derived = labels.derived.iter().any(|entry| {
            let actor = entry.get("actor").and_then(Value::as_str).unwrap_or_default();
            canonical(actor) == who.actor
        });
        let benign = if self.name.starts_with("benign-") {
            who.all().any(|address| listed(address, &labels.benign_hosts))
        } else {
            listed(&who.actor, &labels.benign_hosts)
        };
        listed(&who.actor, &labels.infected_hosts)
            || listed(&who.actor, &labels.ambiguous)
            || derived
            || ((labels.unlabelled || self.name.ends_with("-mixed")) && !benign)
    }
}

/// Set, threat, actor or victim.
type Key<'a> = (&'a str, &'a str, &'a str);

/// How an anomaly relates to the truth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Match {
    No,
    WrongPeer,
    Yes,
}

/// The addresses of an anomaly, each in its one spelling.
struct Who<'a> {
    anomaly: &'a Anomaly,
    actor: String,
    targets: BTreeSet<String>,
}

impl<'a> Who<'a> {
    fn of(anomaly: &'a Anomaly) -> Who<'a> {
        let targets = anomaly.targets.iter().map(|target| target.address.to_string()).collect();
        Who { anomaly, actor: anomaly.actor.to_string(), targets }
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().map(String::as_str).chain([self.actor.as_str()])
    }

    fn touches(&self, address: &str) -> bool {
        let address = canonical(address);
        self.all().any(|mine| mine == address)
    }

    fn overlaps(&self, entry: &Entry) -> bool {
        let (first, last) = (f64::from(self.anomaly.first_seen.0), f64::from(self.anomaly.last_seen.0));
        first <= entry.last + SLACK && last >= entry.first - SLACK
    }

    fn matches(&self, entry: &Entry) -> Match {
        let (actor, target) = (canonical(&entry.actor), entry.target.as_deref().map(canonical));
        if self.anomaly.threat == Threat::Ddos {
            let victim = target.is_some_and(|target| self.touches(&target));
            return if victim || (self.actor == actor && is_address(&actor)) { Match::Yes } else { Match::No };
        }
        if self.actor != actor {
            return Match::No;
        }
        let peered = matches!(self.anomaly.threat, Threat::C2Beacon | Threat::CryptoMining);
        match target {
            Some(target)
                if peered && !self.targets.is_empty() && is_address(&target) && !self.targets.contains(&target) =>
            {
                Match::WrongPeer
            }
            _ => Match::Yes,
        }
    }
}

impl Score {
    fn note_confidence(&mut self, anomaly: &Anomaly, is_true: bool) {
        let tenth = ((anomaly.confidence * 10.0) as u32).min(9);
        let counts = self.reliability.entry(format!("0.{tenth}")).or_default();
        counts.told += 1;
        counts.r#true += u32::from(is_true);
    }

    fn told_of(&mut self, anomaly: &Anomaly) -> &mut Told {
        self.told.entry(anomaly.threat.name().to_owned()).or_default()
    }

    fn note_false(&mut self, anomaly: &Anomaly) {
        self.fp += 1;
        self.told_of(anomaly).r#false += 1;
        *self.fp_by_threat.entry(anomaly.threat.name().to_owned()).or_default() += 1;
        self.false_anomalies.push(format!("{} {}: {}", anomaly.threat, anomaly.actor, anomaly.summary));
    }
}

/// One spelling per address; what is no address stays as it is.
fn canonical(text: &str) -> String {
    text.parse::<std::net::IpAddr>().map_or_else(|_| text.to_owned(), |ip| Address::from(ip).to_string())
}

fn is_address(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

/// Whether a list names an address: alone, in a block, or as the `host` or `actor` of an entry. Words after the first
/// blank are a remark.
fn listed(address: &str, entries: &[Value]) -> bool {
    let Ok(ip) = address.parse::<std::net::IpAddr>() else { return false };
    let names = |entry: &Value| {
        let text = match entry {
            Value::Object(fields) => fields.get("host").or_else(|| fields.get("actor"))?.as_str()?,
            other => other.as_str()?,
        };
        let text = text.split(' ').next()?;
        Some(match text.parse::<IpNet>() {
            Ok(block) => block == block.trunc() && block.contains(&ip),
            Err(_) => canonical(text) == canonical(address),
        })
    };
    entries.iter().any(|entry| names(entry).unwrap_or(false))
}

fn round4(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nagainst the truth: {} true, {} false, {} of unknown nature; precision {:.4}",
            self.tp, self.fp, self.unknown, self.precision
        )?;
        writeln!(
            f,
            "  {:<14} {:>10} {:>7} {:>6} {:>6} {:>13} {:>13} {:>11} {:>8}",
            "", "found", "recall", "true", "false", "wrong threat", "named beside", "wrong peer", "unknown"
        )?;
        let threats: BTreeSet<&String> = self.found.keys().chain(self.told.keys()).collect();
        for threat in threats {
            let found = self.found.get(threat).copied().unwrap_or_default();
            let told = self.told.get(threat).copied().unwrap_or_default();
            let recall = match found.of {
                0 => "-".to_owned(),
                of => format!("{:.3}", f64::from(found.found) / f64::from(of)),
            };
            let groups = format!("{} of {}", found.found, found.of);
            let Told { r#true, r#false, wrong_threat, named_beside, wrong_peer, unknown } = told;
            writeln!(
                f,
                "  {threat:<14} {groups:>10} {recall:>7} {yes:>6} {no:>6} {wrong_threat:>13} {named_beside:>13} {wrong_peer:>11} {unknown:>8}",
                yes = r#true,
                no = r#false
            )?;
        }
        for (threat, found) in &self.weak {
            writeln!(
                f,
                "  {threat:<14} {:>3} of {:<3} found with under a minute of evidence, or with none",
                found.found, found.of
            )?;
        }
        for (tenth, counts) in &self.reliability {
            writeln!(f, "  told with confidence {tenth}: {} of {} true", counts.r#true, counts.told)?;
        }
        if let Some(rate) = self.false_per_1000_host_hours {
            writeln!(f, "  {rate:.1} false anomalies per 1,000 benign host-hours ({:.1} h)", self.benign_host_hours)?;
        }
        for missed in &self.missed {
            writeln!(f, "  missed: {missed}")?;
        }
        for told in &self.false_anomalies {
            writeln!(f, "  false: {told}")?;
        }
        Ok(())
    }
}
