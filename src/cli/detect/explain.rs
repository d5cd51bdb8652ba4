//! Why an address did or did not alert.

use std::io::{self, Write};

use serde::Serialize;

use super::tiers::Tiers;
use crate::anomaly::Anomaly;
use crate::finding::{Actor, Alternative};
use crate::flow::Address;
use crate::publish::Silence;
use crate::statistical::explain::{Explained, Explanation, condition};
use crate::validation::spoken_span;

/// Approaches of an address that are shown to people.
const SHOWN: usize = 10;

/// All that the tiers know of an address.
#[derive(Serialize)]
pub(super) struct Why<'a> {
    #[serde(flatten)]
    explained: Explained,
    /// The anomalies that name it, by their ids.
    told: Vec<uuid::Uuid>,
    /// What was judged and not told, with the stage that refused and its reason.
    not_told: Vec<&'a Silence>,
    #[serde(skip)]
    anomalies: Vec<&'a Anomaly>,
}

impl<'a> Why<'a> {
    pub(super) fn of(address: Address, tiers: &'a Tiers, anomalies: &'a [Anomaly]) -> Why<'a> {
        let concerns = |a: &&Anomaly| a.actor == Actor::One(address) || a.targets.iter().any(|t| t.address == address);
        let anomalies: Vec<&Anomaly> = anomalies.iter().filter(concerns).collect();
        Why {
            explained: tiers.engine.explained(address),
            told: anomalies.iter().map(|anomaly| anomaly.anomaly_id).collect(),
            not_told: tiers.silences.values().filter(|s| s.actor == Actor::One(address)).collect(),
            anomalies,
        }
    }

    /// Tells people: what was seen, what was told, what was not, and how close the detectors came.
    pub(super) fn tell(&self, out: &mut impl Write) -> io::Result<()> {
        let Explained { address, seen, approaches } = &self.explained;
        writeln!(out, "\n{address}")?;
        match seen {
            Some(seen) => writeln!(
                out,
                "  seen: {}, {} conversations with {} others, {} bytes, over {} from {} on",
                if seen.ours { "a host of ours" } else { "no host of ours" },
                seen.conversations,
                seen.peers,
                seen.bytes,
                spoken_span(seen.first_seen, seen.last_seen),
                seen.first_seen,
            )?,
            None => writeln!(out, "  not in this log: no conversation names it")?,
        }
        for anomaly in &self.anomalies {
            let Anomaly { severity, severity_reason, threat, confidence, summary, .. } = anomaly;
            writeln!(out, "  told: {severity} {threat}, confidence {confidence:.2}: {summary}")?;
            writeln!(out, "    {severity}: {severity_reason}")?;
            if !anomaly.alternatives.is_empty() {
                let others = Alternative::list(&anomaly.alternatives);
                writeln!(out, "    or, by the same evidence: {others}")?;
            }
            if !anomaly.sources.is_empty() {
                let sources = anomaly.sources.iter().map(|s| format!("{} ({})", s.address, s.amount));
                writeln!(
                    out,
                    "    largest sources, with their packets or ports: {}",
                    sources.collect::<Vec<_>>().join(", ")
                )?;
            }
            for evidence in &anomaly.evidence {
                writeln!(out, "    {}", condition(evidence))?;
            }
            for stage in &anomaly.tiers.validation.stages {
                writeln!(out, "    {} passed: {}", stage.name, stage.reason)?;
            }
        }
        for silence in &self.not_told {
            writeln!(out, "  not told: {}: {}", silence.threat, silence.summary)?;
            writeln!(out, "    {} refused: {}", silence.stage, silence.reason)?;
        }
        for approach in approaches.iter().take(SHOWN) {
            tell_approach(approach, out)?;
        }
        if approaches.len() > SHOWN {
            writeln!(out, "  and {} more that were farther from a finding", approaches.len() - SHOWN)?;
        }
        if approaches.is_empty() && seen.is_some() {
            writeln!(out, "  no detector had anything to judge about it")?;
        }
        Ok(())
    }
}

fn tell_approach(approach: &Explanation, out: &mut impl Write) -> io::Result<()> {
    let peer = approach.peer.map_or(String::new(), |peer| format!(" with {peer}"));
    writeln!(out, "  {}/{}{peer}, window {}", approach.threat, approach.verdict(), approach.window)?;
    for evidence in &approach.evidence {
        writeln!(out, "    {}", condition(evidence))?;
    }
    Ok(())
}
