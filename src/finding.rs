//! A finding: one detector's statement on one entity in one window, with the numbers that support it.
//!
//! A finding is not yet told to anyone. Findings of all shards fold into incidents ([`crate::correlation`]), so every
//! part of a finding is *mergeable*: sets join, extremes take the extreme, and what must be added is kept per shard and
//! window and overwritten, so that applying a finding twice changes nothing.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::flow::{Address, EventTime};

/// What kind of trouble. The names are the API's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Threat {
    /// Looking for open ports or hosts.
    PortScan,
    /// Flooding a victim, from outside or by our own hosts.
    Ddos,
    /// A host of ours that calls its controller.
    C2Beacon,
    /// A host of ours that works for a mining pool.
    CryptoMining,
    /// A host of ours that uses the Tor network, or relays for it.
    Tor,
    /// Out of character for the host, with no better name yet (the ML tier's own).
    Behavior,
    /// Log-ins tried at a pace that no person keeps.
    BruteForce,
    /// A host of ours that sends far more than it ever did to a place that is new for it.
    Exfiltration,
}

impl Threat {
    /// All of them, in the order of the documentation.
    pub const ALL: [Threat; 8] = [
        Threat::PortScan,
        Threat::Ddos,
        Threat::BruteForce,
        Threat::C2Beacon,
        Threat::CryptoMining,
        Threat::Tor,
        Threat::Exfiltration,
        Threat::Behavior,
    ];

    /// The name in the API, in settings and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Threat::PortScan => "port_scan",
            Threat::Ddos => "ddos",
            Threat::C2Beacon => "c2_beacon",
            Threat::CryptoMining => "crypto_mining",
            Threat::Tor => "tor",
            Threat::Behavior => "behavior",
            Threat::BruteForce => "brute_force",
            Threat::Exfiltration => "exfiltration",
        }
    }
}

impl fmt::Display for Threat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How bad it is if it is true.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// For the record.
    Low,
    /// Look today.
    Medium,
    /// Look now.
    High,
    /// Several confirmed steps of one attack.
    Critical,
}

impl Severity {
    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which tier a number comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Tier 1.
    Statistical,
    /// Tier 2.
    Ml,
    /// Tier 3.
    Correlation,
    /// Tier 4.
    Validation,
}

/// How one number joins with the same number from another window or shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Merge {
    /// The largest seen.
    Max,
    /// The smallest seen.
    Min,
    /// Kept per (shard, window) and added over them.
    Sum,
    /// That of the latest window.
    Latest,
}

/// One number that supports a finding, beside the threshold it was held against.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    /// Which tier measured it.
    pub tier: Tier,
    /// What was measured, in snake_case: `distinct_ports`, `failure_ratio`.
    pub name: Cow<'static, str>,
    /// The measurement, in `unit`.
    pub value: f64,
    /// What it was held against; `None` where the number only informs.
    pub threshold: Option<f64>,
    /// On which side of the threshold the number must be; `None` where it only informs.
    #[serde(default)]
    pub bound: Option<Bound>,
    /// `ports`, `hosts`, `s`, `bytes/packet`, `ratio`, …
    pub unit: Cow<'static, str>,
    /// How it joins with the same number of other windows.
    pub merge: Merge,
}

impl Evidence {
    fn new(name: &'static str, value: f64, unit: &'static str, merge: Merge) -> Evidence {
        let (name, unit) = (Cow::Borrowed(name), Cow::Borrowed(unit));
        Evidence { tier: Tier::Statistical, name, value, threshold: None, bound: None, unit, merge }
    }

    /// A tier-1 number that must reach a threshold.
    pub fn at_least(name: &'static str, value: f64, threshold: f64, unit: &'static str, merge: Merge) -> Evidence {
        Evidence { threshold: Some(threshold), bound: Some(Bound::AtLeast), ..Evidence::new(name, value, unit, merge) }
    }

    /// A tier-1 number that may not exceed a threshold.
    pub fn at_most(name: &'static str, value: f64, threshold: f64, unit: &'static str, merge: Merge) -> Evidence {
        Evidence { threshold: Some(threshold), bound: Some(Bound::AtMost), ..Evidence::new(name, value, unit, merge) }
    }

    /// A tier-1 number that must stay below a threshold.
    pub fn below(name: &'static str, value: f64, threshold: f64, unit: &'static str, merge: Merge) -> Evidence {
        Evidence { threshold: Some(threshold), bound: Some(Bound::Below), ..Evidence::new(name, value, unit, merge) }
    }

    /// A tier-1 number that only informs.
    pub fn told(name: &'static str, value: f64, unit: &'static str, merge: Merge) -> Evidence {
        Evidence::new(name, value, unit, merge)
    }

    /// Whether the number is on the right side of its threshold; `None` where it has none.
    pub fn holds(&self) -> Option<bool> {
        Some(self.bound?.holds(self.value, self.threshold?))
    }
}

/// On which side of a threshold a number must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// At the threshold or above.
    AtLeast,
    /// At the threshold or below.
    AtMost,
    /// Below the threshold.
    Below,
}

impl Bound {
    /// Whether a number is on the right side.
    pub fn holds(self, value: f64, threshold: f64) -> bool {
        match self {
            Bound::AtLeast => value >= threshold,
            Bound::AtMost => value <= threshold,
            Bound::Below => value < threshold,
        }
    }

    /// As it is written between two numbers.
    pub const fn sign(self) -> &'static str {
        match self {
            Bound::AtLeast => "≥",
            Bound::AtMost => "≤",
            Bound::Below => "<",
        }
    }
}

/// Who did it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Actor {
    /// One address.
    One(Address),
    /// Too many to name one (a distributed flood or scan); written `many`.
    Many,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::One(address) => address.fmt(f),
            Actor::Many => f.write_str("many"),
        }
    }
}

impl Serialize for Actor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Actor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "many" {
            return Ok(Actor::Many);
        }
        text.parse()
            .map(Actor::One)
            .map_err(|_| serde::de::Error::custom(format!("`{text}` is no address and not `many`")))
    }
}

/// One of many addresses that something comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Origin {
    /// The address.
    pub address: Address,
    /// How much it did in the window in which it did most: packets of a flood, ports of a joint scan.
    pub amount: u64,
}

impl Origin {
    /// The largest of these, equals by address.
    pub fn largest(mut all: Vec<Origin>) -> Vec<Origin> {
        all.sort_unstable_by_key(|source| (std::cmp::Reverse(source.amount), source.address));
        all.truncate(Finding::SOURCES_MAX);
        all
    }
}

/// Another threat that the same evidence allows.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Alternative {
    /// Which threat.
    pub threat: Threat,
    /// How likely it is this one, if it is any of those named, 0 to 1. The shares of all alternatives and of the threat that is
    /// named first add up to 1.
    pub share: f64,
}

impl Alternative {
    /// In words: `crypto_mining (30 %), tor (5 %)`.
    pub fn list(alternatives: &[Alternative]) -> String {
        let words = alternatives.iter().map(|other| format!("{} ({:.0} %)", other.threat, 100.0 * other.share));
        words.collect::<Vec<_>>().join(", ")
    }
}

/// One address that was acted upon, and on which ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Target {
    /// The address.
    pub address: Address,
    /// Up to [`Target::PORTS_MAX`] of its ports, ascending; the smallest when there were more.
    pub ports: Vec<u16>,
    /// How many distinct ports there were in all.
    pub port_count: u32,
}

impl Target {
    /// How many ports are listed by number; more are only counted.
    pub const PORTS_MAX: usize = 16;
}

/// One detector's statement on one entity in one window.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What kind of trouble.
    pub threat: Threat,
    /// The method that spoke, in snake_case (`vertical`, `syn_flood`, `periodic`): one word of the threat's own.
    pub method: String,
    /// Who did it.
    pub actor: Actor,
    /// What an episode is about, besides the threat: the scanner, the victim of a flood, the miner, or host and peer of a
    /// beacon. Findings of one threat and one subject that overlap in time are one incident.
    pub subject: Subject,
    /// Up to [`Finding::TARGETS_MAX`] targets, ordered by address.
    pub targets: Vec<Target>,
    /// How many distinct targets there were in all.
    pub target_count: u32,
    /// Where it comes from, where that is more than one address: those that did most, up to [`Finding::SOURCES_MAX`], the
    /// largest first.
    #[serde(default)]
    pub sources: Vec<Origin>,
    /// Why it is as bad as `severity` says, as a sentence without its end.
    #[serde(default)]
    pub severity_reason: String,
    /// Of the addresses above, those that are ours because they own the interfaces that log them, and not by the settings.
    #[serde(default)]
    pub learned: Vec<Address>,
    /// First moment of what is stated.
    pub first_seen: EventTime,
    /// Last moment of what is stated.
    pub last_seen: EventTime,
    /// Start of the window that was judged.
    pub window: EventTime,
    /// Length of that window, s.
    pub window_seconds: u32,
    /// How sure the detector is, 0 to 1, before validation and calibration.
    pub score: f64,
    /// How bad, as far as one detector can tell.
    pub severity: Severity,
    /// The numbers, each beside its threshold.
    pub evidence: Vec<Evidence>,
    /// The sentence: subject, verb, numbers, span. `{name}` stands for the evidence of that name and `{targets}` for how many
    /// targets there are ([`fill`]), so that the sentence of an episode says what its numbers say.
    pub summary: String,
    /// Names of the interfaces that saw it (bounded).
    pub interfaces: Vec<String>,
    /// The AWS account, or empty.
    pub account: String,
    /// A judgement of an open window, made before the window closed; superseded by the closed one.
    pub provisional: bool,
    /// What tier 2 last said of the host that this is about.
    #[serde(default)]
    pub ml: Option<MlContribution>,
    /// Other threats that the same evidence allows, the likeliest first.
    #[serde(default)]
    pub alternatives: Vec<Alternative>,
}

/// What the models said of a host, beside whatever else is stated of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MlContribution {
    /// The host.
    pub host: Address,
    /// Start of the window that was scored.
    pub window: EventTime,
    /// Which model.
    pub model_version: String,
    /// `primary`, `canary`, `local`.
    pub variant: String,
    /// 1 minus the calibrated p-value: the share of normal windows that are less unusual.
    pub score: f64,
    /// What made it so, largest first; empty for a usual window.
    pub features: Vec<MlFeature>,
}

/// A feature's part in a score.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MlFeature {
    /// As in the feature schema; `unforeseen_…` for what the sequence model had not foretold.
    pub name: String,
    /// Standard deviations, or the share of the forest's path.
    pub contribution: f32,
}

impl MlContribution {
    /// Of two, the one that is told: the less usual window, then the later one. A total order on content.
    pub fn louder(self, other: MlContribution) -> MlContribution {
        let text = |m: &MlContribution| serde_json::to_string(m).unwrap_or_default();
        let order = self.score.total_cmp(&other.score).then(self.window.cmp(&other.window));
        if order.then_with(|| text(&self).cmp(&text(&other))) == std::cmp::Ordering::Less { other } else { self }
    }
}

impl Finding {
    /// How many targets a finding lists; more are only counted.
    pub const TARGETS_MAX: usize = 32;

    /// How many sources a finding lists.
    pub const SOURCES_MAX: usize = 20;

    /// The sentence, when this finding is all that is known.
    pub fn sentence(&self) -> String {
        let number = |name: &str| match name {
            "targets" => Some(f64::from(self.target_count)),
            _ => self.evidence.iter().find(|e| e.name == name).map(|e| e.value),
        };
        fill(&self.summary, number)
    }

    /// The key that findings of one story share.
    pub fn key(&self) -> IncidentKey {
        IncidentKey { threat: self.threat, subject: self.subject }
    }
}

/// Puts numbers, rounded to whole ones, in the place of `{name}`; what has no number stays as it is.
pub fn fill(sentence: &str, number: impl Fn(&str) -> Option<f64>) -> String {
    let mut filled = String::with_capacity(sentence.len());
    let mut rest = sentence;
    while let Some((before, behind)) = rest.split_once('{') {
        filled.push_str(before);
        match behind.split_once('}').and_then(|(name, after)| Some((number(name)?, after))) {
            Some((value, after)) => {
                filled.push_str(&format!("{value:.0}"));
                rest = after;
            }
            None => {
                filled.push('{');
                rest = behind;
            }
        }
    }
    filled + rest
}

/// What an episode is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// An actor, whatever it acts upon.
    Actor(Address),
    /// A victim, whoever acts on it.
    Victim(Address),
    /// An actor and one peer.
    Pair(Address, Address),
}

/// Identifies the story that a finding belongs to, apart from time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct IncidentKey {
    /// The threat.
    pub threat: Threat,
    /// What it is about.
    pub subject: Subject,
}

/// The namespace of all ids that are derived from content (a version 4 UUID, drawn once for this project).
const NAMESPACE: Uuid = Uuid::from_u128(0x6d0f_5a0e_3f0b_4b53_9d1c_2f7b_50c1_a7e4);

impl IncidentKey {
    /// The id of the episode of this key that is first known to have started at `start`: UUIDv5 (RFC 9562, 5.5) over
    /// threat, subject and start, so that a replay makes the same one.
    pub fn episode(&self, start: EventTime) -> Uuid {
        Uuid::new_v5(&NAMESPACE, format!("{self} {}", start.0).as_bytes())
    }
}

impl fmt::Display for IncidentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject {
            Subject::Actor(a) => write!(f, "{} actor {a}", self.threat),
            Subject::Victim(v) => write!(f, "{} victim {v}", self.threat),
            Subject::Pair(a, p) => write!(f, "{} pair {a} {p}", self.threat),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_an_episode_depends_on_its_content_alone() {
        let key = IncidentKey { threat: Threat::Tor, subject: Subject::Actor(Address::v4(7)) };
        assert_eq!(key.episode(EventTime(60)), key.episode(EventTime(60)));
        assert_ne!(key.episode(EventTime(60)), key.episode(EventTime(61)));
    }

    #[test]
    fn a_sentence_says_the_numbers_of_its_evidence_and_keeps_what_has_none() {
        let number = |name: &str| [("ports", 12.4), ("hosts", 3.0)].into_iter().find(|(n, _)| *n == name).map(|n| n.1);
        assert_eq!(fill("tried {ports} ports on {hosts} hosts", number), "tried 12 ports on 3 hosts");
        assert_eq!(fill("{unknown} of {ports}", number), "{unknown} of 12");
        assert_eq!(fill("a { that stays, {hosts", number), "a { that stays, {hosts");
        assert_eq!(fill("nothing", number), "nothing");
    }

    #[test]
    fn the_largest_sources_are_named_and_equals_by_address() {
        let source = |n: u32| Origin { address: Address::v4(n), amount: u64::from(n / 2) };
        let largest = Origin::largest((0..50).map(source).collect());
        assert_eq!(largest.len(), Finding::SOURCES_MAX);
        assert_eq!(largest[..3], [source(48), source(49), source(46)]);
    }
}
