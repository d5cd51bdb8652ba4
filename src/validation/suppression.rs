//! Suppressions: somebody's named, dated and expiring reason to stay quiet.
//!
//! A suppression answers who asked for it, why, since when and until when. It hides nothing for good: what it silenced
//! is kept and counted, it can be tried on past anomalies before it counts ([`Suppression::dry_run`]), and it ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::matching::{Pattern, Subjects};
use super::{Case, stage};
use crate::anomaly::{Anomaly, Stage};
use crate::flow::EventTime;

/// A reason to stay quiet about something.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
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
}

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
        if self.pattern.is_empty() {
            return Err(SuppressionError::Boundless(self.name.clone()));
        }
        if self.expires.is_some_and(|expires| expires <= self.created) {
            return Err(SuppressionError::Inverted(self.name.clone()));
        }
        Ok(())
    }

    /// Whether it counts at a moment.
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
    /// How many judgements it silenced.
    pub count: u64,
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

    /// The stage: refuses what a suppression in force covers, and counts it.
    pub(super) fn stage(&mut self, case: &Case<'_>) -> Stage {
        let subjects = Subjects::of(case);
        let at = case.account.last_seen;
        let hit = self.list.iter().find(|s| s.is_in_force(at) && s.pattern.fits(&subjects));
        let Some(suppression) = hit else {
            return stage("suppression", true, format!("none of {} applies", self.list.len()));
        };
        let matches = self.matches.entry(suppression.name.clone()).or_default();
        matches.count += 1;
        matches.last = matches.last.max(Some(at));
        let until = suppression.expires.map_or_else(|| "further notice".to_owned(), |e| e.to_string());
        let Suppression { name, owner, reason, .. } = suppression;
        stage("suppression", false, format!("`{name}` ({owner}, until {until}): {reason}"))
    }
}

#[cfg(test)]
mod tests;
