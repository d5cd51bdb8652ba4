//! Suppressions: somebody's named, dated and expiring reason to stay quiet.
//!
//! A suppression answers who asked for it, why, since when and until when. It hides nothing for good: what it silenced
//! is kept and counted, it can be tried on past anomalies before it counts ([`Suppression::dry_run`]), and it ends.
//!
//! *Which time counts.* `created` and `expires` are moments of the traffic, not of the wall clock: a suppression covers an
//! incident whose last moment lies from `created` until before `expires`. So a replay of last week's log is judged as it would
//! have been last week, and what goes on after `expires` is told. On live traffic both are the same to within the lateness of the
//! log; a simulated or replayed log has moments of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::matching::{Pattern, Subjects};
use super::{Case, stage};
use crate::anomaly::{Anomaly, Stage};
use crate::flow::EventTime;

/// The stage's name.
pub const NAME: &str = "suppression";

/// A reason to stay quiet about something.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suppression {
    /// Its name, unique.
    pub name: String,
    /// Who answers for it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// From when on it counts, in event time.
    pub created: EventTime,
    /// Until when it counts; `None` for as long as it stands.
    #[serde(default)]
    pub expires: Option<EventTime>,
    /// What it covers.
    #[serde(rename = "match")]
    pub pattern: Pattern,
    /// Whether it is meant although it hides nearly everything, or a large share of what was told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Who was authenticated when it was made; none for those of the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<String>,
    /// When it was made (wall clock, s).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_at: Option<EventTime>,
}

/// The fields of a suppression as it is stored.
const FIELDS: [&str; 9] = ["name", "owner", "reason", "created", "expires", "match", "force", "made_by", "made_at"];

/// Why a suppression cannot be accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SuppressionError {
    /// It has no name, owner or reason.
    #[error("suppression `{name}`: {field} is empty")]
    Unsigned {
        /// Its name.
        name: String,
        /// What is missing.
        field: &'static str,
    },
    /// Its pattern fits everything.
    #[error("suppression `{0}`: its match is empty and would silence everything; name a threat, actor, target or port")]
    Boundless(String),
    /// It ends before it begins.
    #[error("suppression `{0}`: it expires before it was created")]
    Inverted(String),
}

/// What a suppression would have done to anomalies that were told.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DryRun {
    /// How many anomalies it was tried on.
    pub tried: usize,
    /// Which of them it would have hidden.
    pub hidden: Vec<uuid::Uuid>,
    /// How many of these an analyst had called true.
    pub hidden_true: usize,
}

impl Suppression {
    /// Whether it is complete and bounded.
    pub fn check(&self) -> Result<(), SuppressionError> {
        let fields = [("name", &self.name), ("owner", &self.owner), ("reason", &self.reason)];
        if let Some((field, _)) = fields.into_iter().find(|(_, text)| text.trim().is_empty()) {
            return Err(SuppressionError::Unsigned { name: self.name.clone(), field });
        }
        if self.pattern.is_empty() && !self.force {
            return Err(SuppressionError::Boundless(self.name.clone()));
        }
        if self.expires.is_some_and(|expires| expires <= self.created) {
            return Err(SuppressionError::Inverted(self.name.clone()));
        }
        Ok(())
    }

    /// Reads one from the store, where a newer program may have written more than this one knows.
    ///
    /// # Errors
    /// It is no suppression.
    pub fn stored(text: &str) -> Result<Suppression, serde_json::Error> {
        let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)?;
        fields.retain(|name, _| FIELDS.contains(&name.as_str()));
        serde_json::from_value(fields.into())
    }

    /// Whether it counts at a moment of the traffic.
    pub fn is_in_force(&self, at: EventTime) -> bool {
        self.created <= at && self.expires.is_none_or(|expires| at < expires)
    }

    /// Tries it on anomalies that were told, dates aside; `is_true` says which of them an analyst had confirmed.
    pub fn dry_run<'a>(
        &self,
        anomalies: impl IntoIterator<Item = &'a Anomaly>,
        is_true: impl Fn(&Anomaly) -> bool,
    ) -> DryRun {
        let mut run = DryRun::default();
        for anomaly in anomalies {
            run.tried += 1;
            if self.pattern.fits(&Subjects::told(anomaly)) {
                run.hidden.push(anomaly.anomaly_id);
                run.hidden_true += usize::from(is_true(anomaly));
            }
        }
        run
    }
}

/// How often a suppression was met.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Matches {
    /// How many judgements it silenced; an incident that goes on is judged again and again.
    pub count: u64,
    /// How many incidents it silenced that were not silenced by a suppression before.
    pub incidents: u64,
    /// The last moment of what it silenced last.
    pub last: Option<EventTime>,
}

/// All suppressions, with how often each was met.
#[derive(Clone, Debug, Default)]
pub struct Suppressions {
    list: Vec<Suppression>,
    matches: BTreeMap<String, Matches>,
}

impl Suppressions {
    /// Those of the settings.
    pub fn new(list: Vec<Suppression>) -> Suppressions {
        Suppressions { list, matches: BTreeMap::new() }
    }

    /// Puts others in their place; counts of those that stay live on.
    pub fn replace(&mut self, list: Vec<Suppression>) {
        self.matches.retain(|name, _| list.iter().any(|suppression| suppression.name == *name));
        self.list = list;
    }

    /// Each with how often it was met.
    pub fn iter(&self) -> impl Iterator<Item = (&Suppression, Matches)> {
        self.list.iter().map(|s| (s, self.matches.get(&s.name).cloned().unwrap_or_default()))
    }

    /// The stage: refuses what a suppression in force covers, and counts it; `known` for an incident that one has refused
    /// before.
    pub(super) fn stage(&mut self, case: &Case<'_>, known: bool) -> Stage {
        let subjects = Subjects::of(case);
        let at = case.account.last_seen;
        let hit = self.list.iter().find(|s| s.is_in_force(at) && s.pattern.fits(&subjects));
        let Some(suppression) = hit else {
            return stage(NAME, true, format!("none of {} applies", self.list.len()));
        };
        let matches = self.matches.entry(suppression.name.clone()).or_default();
        matches.count += 1;
        matches.incidents += u64::from(!known);
        matches.last = matches.last.max(Some(at));
        let until = suppression.expires.map_or_else(|| "further notice".to_owned(), |e| e.to_string());
        let Suppression { name, owner, reason, .. } = suppression;
        stage(NAME, false, format!("`{name}` ({owner}, until {until}): {reason}"))
    }
}

#[cfg(test)]
mod tests;
