//! Services that look like a threat on flow records and are none: resolvers, time, health checks, and what else
//! `[[validation.known_benign]]` names. The entries that come with the program stand in `defaults.toml`, each with its
//! reason; settings may add others.

use serde::{Deserialize, Serialize};

use super::Case;
use super::matching::{Pattern, Subjects, counterpart};
use crate::anomaly::Stage;
use crate::finding::Actor;
use crate::flow::network::Network;

/// A service, `[[validation.known_benign]]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What it is.
    pub name: String,
    /// Which side of the traffic is ours, where that matters.
    #[serde(default)]
    pub direction: Direction,
    /// What it looks like.
    #[serde(rename = "match")]
    pub pattern: Pattern,
}

/// Which side of the traffic is ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Either.
    #[default]
    Any,
    /// The actor is ours and every target is outside.
    Outbound,
    /// The actor is outside.
    Inbound,
    /// Both are ours.
    Internal,
}

impl Direction {
    fn fits(self, case: &Case<'_>, network: &Network) -> bool {
        let Actor::One(actor) = case.actor else { return self == Direction::Any };
        let peers = || case.targets.iter().map(|target| target.address).chain(counterpart(case.incident.key.subject));
        match self {
            Direction::Any => true,
            Direction::Outbound => case.is_ours(actor, network) && peers().all(|peer| !case.is_ours(peer, network)),
            Direction::Inbound => !case.is_ours(actor, network),
            Direction::Internal => case.is_ours(actor, network) && peers().all(|peer| case.is_ours(peer, network)),
        }
    }
}

/// The stage: refuses what looks exactly like a known service.
pub(super) fn stage(case: &Case<'_>, services: &[Service], network: &Network) -> Stage {
    let subjects = Subjects::of(case);
    let is_it = |service: &&Service| service.pattern.fits(&subjects) && service.direction.fits(case, network);
    match services.iter().find(is_it) {
        Some(service) => super::stage("known_benign", false, service.name.clone()),
        None => super::stage("known_benign", true, format!("none of {} services", services.len())),
    }
}

#[cfg(test)]
mod tests;
