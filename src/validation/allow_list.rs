//! Trusted addresses: what they do, and what our hosts do with them, is not told.

use serde::{Deserialize, Serialize};

use super::Case;
use super::matching::Block;
use crate::anomaly::Stage;
use crate::finding::{Actor, Threat};

/// Addresses that are trusted, `[[validation.allow_list]]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What they are.
    pub name: String,
    /// Blocks or single addresses.
    pub addresses: Vec<Block>,
    /// Which threats it covers; empty for all.
    #[serde(default)]
    pub threats: Vec<Threat>,
    /// Whether it is meant although it hides nearly everything.
    #[serde(default)]
    pub force: bool,
}

impl Entry {
    /// Whether a case is about these addresses alone: the actor, or every one of the peers it calls.
    fn covers(&self, case: &Case<'_>) -> bool {
        if !self.threats.is_empty() && !self.threats.contains(&case.threat()) {
            return false;
        }
        let trusted = |address| self.addresses.iter().any(|block| block.contains(address));
        if matches!(case.actor, Actor::One(actor) if trusted(actor)) {
            return true;
        }
        // Being attacked is no reason for silence about the attacker; calling a trusted peer is.
        let calls =
            matches!(case.threat(), Threat::C2Beacon | Threat::CryptoMining | Threat::Tor | Threat::Exfiltration);
        let all_listed = case.account.target_count() as usize <= case.targets.len();
        calls && all_listed && !case.targets.is_empty() && case.targets.iter().all(|target| trusted(target.address))
    }
}

/// The stage: refuses what is about trusted addresses alone.
pub(super) fn stage_of(case: &Case<'_>, entries: &[Entry]) -> Stage {
    match entries.iter().find(|entry| entry.covers(case)) {
        Some(entry) => super::stage("allow_list", false, format!("trusted: {}", entry.name)),
        None => super::stage("allow_list", true, format!("none of {} entries applies", entries.len())),
    }
}

pub(super) use stage_of as stage;

#[cfg(test)]
mod tests;
