//! Corroboration: a judgement that is not sure by itself needs a second one.
//!
//! A second opinion is another window, another method, a list that knows the peer, or another confirmed threat of the
//! same actor. A score at or above the threat's `alone` stands by itself: a thousand ports in 23 seconds need no
//! second window, and an attack that fits into one window gets none.

use serde::Deserialize;

use super::Case;
use crate::anomaly::Stage;
use crate::correlation::Relation;
use crate::finding::Threat;

/// Settings `[validation.corroboration]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The score from which one judgement suffices, per threat, 0 to 1.
    pub alone: PerThreat,
    /// How many windows are a corroboration by themselves.
    pub windows: u32,
}

/// One number per threat.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerThreat {
    /// For scans.
    pub port_scan: f64,
    /// For floods.
    pub ddos: f64,
    /// For beacons.
    pub c2_beacon: f64,
    /// For miners.
    pub crypto_mining: f64,
    /// For Tor.
    pub tor: f64,
    /// For hosts out of character.
    pub behavior: f64,
    /// For log-ins that are guessed.
    pub brute_force: f64,
    /// For hosts that send data away.
    pub exfiltration: f64,
}

impl PerThreat {
    /// The number of one threat.
    pub fn of(&self, threat: Threat) -> f64 {
        match threat {
            Threat::PortScan => self.port_scan,
            Threat::Ddos => self.ddos,
            Threat::C2Beacon => self.c2_beacon,
            Threat::CryptoMining => self.crypto_mining,
            Threat::Tor => self.tor,
            Threat::Behavior => self.behavior,
            Threat::BruteForce => self.brute_force,
            Threat::Exfiltration => self.exfiltration,
        }
    }
}

/// Evidence that a list knows a peer.
const LISTS: [&str; 3] = ["listed_relays", "directory_authorities", "pool_list"];

/// How many lists know a peer of the case.
pub fn list_hits(case: &Case<'_>) -> usize {
    case.evidence.iter().filter(|e| LISTS.contains(&&*e.name) && e.value > 0.0).count()
}

/// The stage: refuses one uncertain judgement that nothing supports.
pub(super) fn stage(case: &Case<'_>, settings: &Settings) -> Stage {
    let (score, alone) = (case.account.score(), settings.alone.of(case.threat()));
    let windows = case.account.distinct_windows();
    let methods = case.account.methods.len();
    let same_actor = case.incident.related.values().filter(|&&r| r == Relation::SameActor).count();
    let (passed, reason) = if score >= alone {
        (true, format!("score {score:.2} of at least {alone:.2} stands alone"))
    } else if windows >= settings.windows {
        (true, format!("{windows} windows"))
    } else if methods >= 2 {
        (true, format!("{methods} methods agree"))
    } else if list_hits(case) > 0 {
        (true, "a list knows the peer".to_owned())
    } else if same_actor > 0 {
        (true, format!("{same_actor} other incidents of the same actor"))
    } else {
        let wanted = settings.windows;
        (false, format!("one method in {windows} of {wanted} windows at score {score:.2}, below {alone:.2}"))
    };
    super::stage("corroboration", passed, reason)
}

#[cfg(test)]
mod tests;
