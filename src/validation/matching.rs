//! What allow-lists, suppressions and known services have in common: a pattern that an incident fits or not.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Case;
use crate::finding::{Actor, Subject, Target, Threat};
use crate::flow::Address;

/// A CIDR block, or one address written alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block(IpNet);

impl Block {
    /// As a network.
    pub fn net(&self) -> IpNet {
        self.0
    }

    /// Whether an address lies in the block.
    pub fn contains(&self, address: Address) -> bool {
        self.0.contains(&address.to_ip())
    }
}

impl std::str::FromStr for Block {
    type Err = String;

    fn from_str(text: &str) -> Result<Block, String> {
        let alone = text.parse::<std::net::IpAddr>().map(IpNet::from);
        let block = text.parse::<IpNet>().or(alone);
        block.map(Block).map_err(|_| format!("`{text}` is neither an address nor a CIDR block such as 10.0.0.0/8"))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Block {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Block, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What an incident must be like. What is left empty fits everything.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pattern {
    /// Any of these threats.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub threats: Vec<Threat>,
    /// All methods that spoke are among these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// The actor lies in one of these blocks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub actors: Vec<Block>,
    /// All targets lie in these blocks, and all of them are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub targets: Vec<Block>,
    /// All ports of all targets are among these, and all of them are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// The parts of an incident, or of an anomaly, that a pattern looks at.
#[derive(Debug)]
pub struct Subjects<'a> {
    /// What kind of trouble.
    pub threat: Threat,
    /// Which methods spoke.
    pub methods: Vec<&'a str>,
    /// Who acts.
    pub actor: Actor,
    /// On whom.
    pub targets: &'a [Target],
    /// How many targets there are in all.
    pub target_count: u32,
}

impl<'a> Subjects<'a> {
    /// Of an incident.
    pub fn of(case: &'a Case<'_>) -> Subjects<'a> {
        Subjects {
            threat: case.threat(),
            methods: case.account.methods.keys().map(String::as_str).collect(),
            actor: case.actor,
            targets: &case.targets,
            target_count: case.account.target_count(),
        }
    }

    /// Of an anomaly that was told.
    pub fn told(anomaly: &'a crate::anomaly::Anomaly) -> Subjects<'a> {
        Subjects {
            threat: anomaly.threat,
            methods: anomaly.tiers.statistical.keys().map(String::as_str).collect(),
            actor: anomaly.actor,
            targets: &anomaly.targets,
            target_count: anomaly.target_count,
        }
    }
}

impl Pattern {
    /// Whether it fits everything, which is never what somebody meant.
    pub fn is_empty(&self) -> bool {
        *self == Pattern::default()
    }

    /// Whether the incident fits. A part that the incident knows only in part (300 targets, 32 of them listed) fits
    /// only an empty pattern: silence must not cover what nobody has looked at.
    pub fn fits(&self, subjects: &Subjects<'_>) -> bool {
        let actor = |blocks: &[Block]| match subjects.actor {
            Actor::One(address) => blocks.iter().any(|block| block.contains(address)),
            Actor::Many => false,
        };
        let all_listed = subjects.target_count as usize <= subjects.targets.len() && !subjects.targets.is_empty();
        let target = |t: &Target| self.targets.iter().any(|block| block.contains(t.address));
        let ports = |t: &Target| {
            t.port_count as usize <= t.ports.len()
                && !t.ports.is_empty()
                && t.ports.iter().all(|port| self.ports.contains(port))
        };
        (self.threats.is_empty() || self.threats.contains(&subjects.threat))
            && (self.methods.is_empty() || subjects.methods.iter().all(|m| self.methods.iter().any(|known| known == m)))
            && (self.actors.is_empty() || actor(&self.actors))
            && (self.targets.is_empty() || (all_listed && subjects.targets.iter().all(target)))
            && (self.ports.is_empty() || (all_listed && subjects.targets.iter().all(ports)))
    }
}

/// The victim or peer of a subject, where it names one.
pub(super) fn counterpart(subject: Subject) -> Option<Address> {
    match subject {
        Subject::Pair(_, peer) => Some(peer),
        Subject::Victim(victim) => Some(victim),
        Subject::Actor(_) => None,
    }
}

#[cfg(test)]
mod tests;
