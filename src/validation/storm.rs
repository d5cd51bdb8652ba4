//! The storm guard: when a threat is confirmed so often that nobody could read it, the rest is told as one.
//!
//! Nothing is lost: what is held back is kept as a silence of its own, each with the id it would have had, and counted
//! in the one anomaly that stands for them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::{Case, stage};
use crate::anomaly::{Anomaly, SCHEMA, Stage, Status, Tiers, Validation};
use crate::finding::{Actor, Evidence, Finding, IncidentKey, Merge, Subject, Target, Threat};
use crate::flow::{Address, EventTime};

/// The stage's name.
pub(super) const NAME: &str = "storm";

/// How many held-back ids are told apart per storm, so that counting them is idempotent.
const IDS_MAX: usize = 10_000;

/// Settings `[validation.storm]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How many anomalies of one threat are told one by one within the window.
    pub anomalies_max: u32,
    /// Length of the window, in event time.
    pub window: SignedDuration,
}

/// Storms of the present and the last window, per threat.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Storms {
    #[serde(skip)]
    settings: Option<Settings>,
    by_threat: BTreeMap<Threat, Storm>,
    /// Those that gave way to the next before they were closed.
    #[serde(skip)]
    past: Vec<Anomaly>,
}

/// One threat's window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Storm {
    start: EventTime,
    told: u32,
    /// Early reports, which are counted apart: what is told once windows have closed must not depend on them.
    #[serde(default)]
    early: u32,
    held_back: BTreeSet<uuid::Uuid>,
    anomaly: Option<Anomaly>,
}

impl Storms {
    /// Calm.
    pub fn new(settings: &Settings) -> Storms {
        Storms { settings: Some(settings.clone()), ..Storms::default() }
    }

    /// The same storms under settings.
    #[must_use]
    pub fn with(mut self, settings: &Settings) -> Storms {
        self.settings = Some(settings.clone());
        self
    }

    /// Takes over what another judge knows of the same storms.
    pub(super) fn take_in(&mut self, other: Storms) {
        for (threat, theirs) in other.by_threat {
            let storm = self.by_threat.entry(threat).or_default();
            if theirs.start > storm.start {
                *storm = theirs;
            } else if theirs.start == storm.start {
                storm.told = storm.told.max(theirs.told);
                storm.early = storm.early.max(theirs.early);
                storm.held_back.extend(theirs.held_back);
                let counted = |anomaly: &Option<Anomaly>| anomaly.as_ref().map_or(0, |anomaly| anomaly.updates);
                if counted(&theirs.anomaly) > counted(&storm.anomaly) {
                    storm.anomaly = theirs.anomaly;
                }
            }
        }
    }

    /// The stage: refuses what comes on top of the window's limit. Called once for every incident about to be told.
    pub(super) fn stage(&mut self, case: &Case<'_>) -> Stage {
        let Some(settings) = &self.settings else { return stage(NAME, true, "no limit".to_owned()) };
        let seconds = settings.seconds();
        let start = case.account.last_window_end.window(seconds);
        let storm = self.by_threat.entry(case.threat()).or_default();
        if start > storm.start {
            self.past.extend(storm.close());
            *storm = Storm { start, ..Storm::default() };
        }
        let limit = settings.anomalies_max;
        let told = if case.incident.is_firm() { &mut storm.told } else { &mut storm.early };
        if *told >= limit {
            let reason = format!("more than {limit} anomalies of {} within {seconds} s; told as one", case.threat());
            return stage(NAME, false, reason);
        }
        *told += 1;
        // Which of them it is hangs on which shard was heard first.
        stage(NAME, true, format!("one of at most {limit} within {seconds} s"))
    }

    /// Counts a held-back case, and gives the anomaly that stands for all of them when its number has doubled.
    pub(super) fn join(&mut self, case: &Case<'_>, refusal: &Stage) -> Option<Anomaly> {
        let storm = self.by_threat.get_mut(&case.threat())?;
        if storm.held_back.len() >= IDS_MAX || !storm.held_back.insert(case.incident.id) {
            return None;
        }
        let count = storm.held_back.len() as u32;
        let mut anomaly = storm.anomaly.take().unwrap_or_else(|| first(case, storm.start));
        (anomaly.updates, anomaly.status) = (count, Status::Open);
        anomaly.first_seen = anomaly.first_seen.min(case.account.first_seen);
        anomaly.last_seen = anomaly.last_seen.max(case.account.last_seen);
        anomaly.severity = anomaly.severity.max(case.account.severity.unwrap_or(anomaly.severity));
        anomaly.severity_reason = "the worst of those that are held back".to_owned();
        add_targets(&mut anomaly, case);
        anomaly.summary = format!(
            "{count} more anomalies of {} since {}: {}",
            case.threat(),
            storm.start,
            "see the silences of stage storm"
        );
        anomaly.evidence = vec![Evidence {
            tier: crate::finding::Tier::Validation,
            name: "held_back".into(),
            value: f64::from(count),
            threshold: None,
            bound: None,
            unit: "anomalies".into(),
            merge: Merge::Max,
        }];
        anomaly.tiers.validation = Validation { stages: vec![refusal.clone()] };
        storm.anomaly = Some(anomaly.clone());
        count.is_power_of_two().then_some(anomaly)
    }

    /// Closes the storms whose window all event time has passed, each with the number that it came to.
    pub(super) fn close(&mut self, watermark: EventTime) -> Vec<Anomaly> {
        let seconds = self.settings.as_ref().map_or(0, Settings::seconds);
        let over = self.by_threat.values_mut().filter(|storm| storm.start.plus(seconds) <= watermark);
        std::mem::take(&mut self.past).into_iter().chain(over.filter_map(Storm::close)).collect()
    }
}

impl Settings {
    /// Length of the window, s.
    fn seconds(&self) -> u32 {
        u32::try_from(self.window.as_secs()).unwrap_or(u32::MAX).max(1)
    }
}

impl Storm {
    /// The anomaly as it is closed, unless there is none, or it is closed already.
    fn close(&mut self) -> Option<Anomaly> {
        let anomaly = self.anomaly.as_mut().filter(|anomaly| anomaly.status == Status::Open)?;
        anomaly.status = Status::Closed;
        Some(anomaly.clone())
    }
}

/// The anomaly that stands for a storm.
fn first(case: &Case<'_>, start: EventTime) -> Anomaly {
    let key = IncidentKey { threat: case.threat(), subject: Subject::Victim(Address::UNSPECIFIED) };
    Anomaly {
        anomaly_id: key.episode(start),
        schema: SCHEMA.to_owned(),
        threat: case.threat(),
        status: Status::Open,
        severity: case.account.severity.unwrap_or(crate::finding::Severity::Medium),
        severity_reason: String::new(),
        confidence: 1.0,
        alternatives: Vec::new(),
        sources: Vec::new(),
        actor: Actor::Many,
        targets: Vec::new(),
        target_count: 0,
        first_seen: case.account.first_seen,
        last_seen: case.account.last_seen,
        detection_timestamp: case.account.last_window_end,
        window_seconds: case.account.window_seconds,
        summary: String::new(),
        evidence: Vec::new(),
        tiers: Tiers::default(),
        mitre: Vec::new(),
        account_id: case.account.account.clone(),
        interface_ids: Vec::new(),
        related: Vec::new(),
        degraded: Vec::new(),
        updates: 0,
        episode: None,
        merged_into: None,
    }
}

fn add_targets(anomaly: &mut Anomaly, case: &Case<'_>) {
    for target in &case.targets {
        match anomaly.targets.binary_search_by_key(&target.address, |t: &Target| t.address) {
            Ok(_) => continue,
            Err(at) => anomaly.targets.insert(at, target.clone()),
        }
        anomaly.target_count += 1;
    }
    anomaly.targets.truncate(Finding::TARGETS_MAX);
}

#[cfg(test)]
mod tests;
