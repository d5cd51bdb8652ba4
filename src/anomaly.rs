//! The anomaly: what everyone outside sees, in one schema (NDJSON of `detect`, REST, the EventBridge detail).
//!
//! Only the validation tier makes one, and only an anomaly fits into [`crate::publish`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::finding::{Actor, Alternative, Evidence, IncidentKey, Origin, Severity, Subject, Target, Threat};
pub use crate::finding::{MlContribution, MlFeature};
use crate::flow::EventTime;

/// The version of the schema below; it changes when a reader would have to.
pub const SCHEMA: &str = "1";

/// Where an episode stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It may go on.
    Open,
    /// Nothing of it was seen for the threat's episode gap, or it turned out to be part of another (`merged_into`).
    Closed,
}

/// A confirmed incident as it is recorded, announced and shown.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Anomaly {
    /// One id for the life of the episode.
    pub anomaly_id: Uuid,
    /// [`SCHEMA`].
    pub schema: String,
    /// What kind of trouble.
    pub threat: Threat,
    /// Whether it goes on.
    pub status: Status,
    /// How bad.
    pub severity: Severity,
    /// Why it is as bad as that, in words.
    #[serde(default)]
    pub severity_reason: String,
    /// Calibrated probability that it is true, 0 to 1.
    pub confidence: f64,
    /// Other threats that the same evidence allows, the likeliest first. What their shares leave of 1 is the share of `threat`;
    /// where there are none, the evidence allows no other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
    /// Who did it; `many` for a distributed flood or scan.
    pub actor: Actor,
    /// Where it comes from, where `actor` is `many`: the largest so many, the largest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Origin>,
    /// On whom, bounded; see `target_count`.
    pub targets: Vec<Target>,
    /// How many distinct targets in all.
    pub target_count: u32,
    /// First moment of the episode.
    pub first_seen: EventTime,
    /// Last moment of the episode so far.
    pub last_seen: EventTime,
    /// End of the window whose judgement confirmed it first (event time, so that a replay gives the same).
    pub detection_timestamp: EventTime,
    /// Length of the windows it was judged in, s.
    pub window_seconds: u32,
    /// One sentence for a person.
    pub summary: String,
    /// Every number, beside its threshold, with its unit.
    pub evidence: Vec<Evidence>,
    /// What each tier contributed.
    pub tiers: Tiers,
    /// MITRE ATT&CK technique ids.
    pub mitre: Vec<String>,
    /// The AWS account, or empty.
    pub account_id: String,
    /// Names of the interfaces that saw it (bounded).
    pub interface_ids: Vec<String>,
    /// Ids of other anomalies of the same story (the same actor's scan, beacon, …).
    pub related: Vec<Uuid>,
    /// What was away while this was judged: `ml`, `correlation`, `publish`.
    pub degraded: Vec<String>,
    /// How many windows and related anomalies have contributed; it grows with every revision.
    pub updates: u32,
    /// What the episode is about, and what its id is made of; none for a storm, which stands for many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub episode: Option<Episode>,
    /// The anomaly that this one turned out to be part of, where late evidence joined two that were both told. It is
    /// closed then, and the other goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_into: Option<Uuid>,
}

/// What an id is made of, besides the threat.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Episode {
    /// What it is about: `{"actor": …}`, `{"victim": …}` or `{"pair": [host, peer]}`.
    pub subject: Subject,
    /// Its start as it was first known.
    pub known_from: EventTime,
}

impl Anomaly {
    /// What findings of the same story share with it.
    pub fn key(&self) -> Option<IncidentKey> {
        self.episode.map(|episode| IncidentKey { threat: self.threat, subject: episode.subject })
    }
}

/// What each tier contributed to an anomaly.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Tiers {
    /// Tier 1: the methods that spoke, each with its highest score.
    pub statistical: BTreeMap<String, f64>,
    /// Tier 2: its own judgement, or beside another threat what it last said of the host, as context.
    pub ml: Option<MlContribution>,
    /// Tier 3: how many findings of which other threats stand beside this one.
    pub correlation: BTreeMap<String, u32>,
    /// Tier 4.
    pub validation: Validation,
}

/// The stages of validation that an incident went through, in order.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Validation {
    /// Each stage with what it found.
    pub stages: Vec<Stage>,
}

/// One stage of validation.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Stage {
    /// `evidence`, `allow_list`, `suppression`, `known_benign`, `baseline`, `corroboration`, `confidence`, `storm`.
    pub name: String,
    /// Whether the incident passed.
    pub passed: bool,
    /// Why, with the numbers.
    pub reason: String,
}
