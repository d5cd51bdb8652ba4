//! Why an address did or did not alert.

use std::collections::BTreeMap;

use super::tiers::Tiers;
use crate::anomaly::Anomaly;
use crate::finding::{Actor, Evidence};
use crate::flow::Address;

/// Tells on standard error what each tier thought of an address.
pub(super) fn tell(address: Address, tiers: &Tiers, anomalies: &[Anomaly]) {
    eprintln!("\n{address}");
    let concerns = |a: &Anomaly| a.actor == Actor::One(address) || a.targets.iter().any(|t| t.address == address);
    for anomaly in anomalies.iter().filter(|a| concerns(a)) {
        let (severity, threat, confidence) = (anomaly.severity, anomaly.threat, anomaly.confidence);
        eprintln!("  told: {severity} {threat}, confidence {confidence:.2}: {}", anomaly.summary);
        for evidence in &anomaly.evidence {
            eprintln!("    {}", number(evidence));
        }
        for stage in &anomaly.tiers.validation.stages {
            eprintln!("    {} passed: {}", stage.name, stage.reason);
        }
    }
    for silence in tiers.silences.values().filter(|s| s.actor == Actor::One(address)) {
        eprintln!("  not told: {}: {}", silence.threat, silence.summary);
        eprintln!("    {} refused: {}", silence.stage, silence.reason);
    }
    // One line of each method and peer: the engine keeps the closest approach.
    let explanations = tiers.engine.explanations();
    let mut by_method: BTreeMap<(&str, &str), Vec<_>> = BTreeMap::new();
    for explanation in &explanations {
        by_method.entry((explanation.threat.name(), &explanation.method)).or_default().push(explanation);
    }
    for ((threat, method), approaches) in by_method {
        eprintln!("  {threat}/{method}");
        for approach in approaches.iter().take(5) {
            let peer = approach.peer.map_or(String::new(), |peer| format!(" with {peer}"));
            let found = if approach.found { "found" } else { "not found" };
            eprintln!("    window {}{peer}: {found}: {}", approach.window, approach.verdict);
            for evidence in &approach.evidence {
                eprintln!("      {}", number(evidence));
            }
        }
        if approaches.len() > 5 {
            eprintln!("    and {} more", approaches.len() - 5);
        }
    }
    if explanations.is_empty() {
        eprintln!("  no detector had anything to judge about it");
    }
}

fn number(evidence: &Evidence) -> String {
    let Evidence { name, value, unit, .. } = evidence;
    match evidence.threshold {
        Some(threshold) => format!("{name} {} {unit}, threshold {}", short(*value), short(threshold)),
        None => format!("{name} {} {unit}", short(*value)),
    }
}

fn short(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 { format!("{value:.0}") } else { format!("{value:.3}") }
}
