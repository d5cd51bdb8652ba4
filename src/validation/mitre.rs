//! MITRE ATT&CK (v15) technique ids per threat and method.

use super::Case;
use crate::finding::{Actor, Threat};
use crate::flow::network::Network;

/// The techniques that an incident shows, ascending.
pub fn techniques(case: &Case<'_>, network: &Network) -> Vec<String> {
    let ours = matches!(case.actor, Actor::One(actor) if case.is_ours(actor, network));
    let any = |words: &[&str]| case.account.methods.keys().any(|method| words.iter().any(|word| method.contains(word)));
    let mut ids: Vec<&str> = match case.threat() {
        // Network Service Discovery from within; Active Scanning (of IP blocks) from without.
        Threat::PortScan if ours => vec!["T1046"],
        Threat::PortScan => vec!["T1595.001"],
        // Reflection Amplification; OS Exhaustion Flood; else Direct Network Flood.
        Threat::Ddos if any(&["reflection"]) => vec!["T1498.002"],
        Threat::Ddos if any(&["syn", "connection"]) => vec!["T1498.001", "T1499.001"],
        Threat::Ddos => vec!["T1498.001"],
        // Application Layer Protocol.
        Threat::C2Beacon => vec!["T1071"],
        // Resource Hijacking: Compute Hijacking.
        Threat::CryptoMining => vec!["T1496.001"],
        // Multi-hop Proxy.
        Threat::Tor => vec!["T1090.003"],
        Threat::Behavior => vec![],
        // Brute Force: Password Spraying; else Password Guessing.
        Threat::BruteForce if any(&["spraying"]) => vec!["T1110.003"],
        Threat::BruteForce => vec!["T1110.001"],
        // Exfiltration Over Alternative Protocol, and Over C2 Channel: which of them, amounts do not say.
        Threat::Exfiltration => vec!["T1041", "T1048"],
    };
    ids.sort_unstable();
    ids.into_iter().map(str::to_owned).collect()
}

/// The name of a technique, and of its part where the id names one.
pub fn name(id: &str) -> Option<(&'static str, Option<&'static str>)> {
    Some(match id {
        "T1041" => ("Exfiltration Over C2 Channel", None),
        "T1046" => ("Network Service Discovery", None),
        "T1048" => ("Exfiltration Over Alternative Protocol", None),
        "T1071" => ("Application Layer Protocol", None),
        "T1090.003" => ("Proxy", Some("Multi-hop Proxy")),
        "T1110.001" => ("Brute Force", Some("Password Guessing")),
        "T1110.003" => ("Brute Force", Some("Password Spraying")),
        "T1496.001" => ("Resource Hijacking", Some("Compute Hijacking")),
        "T1498.001" => ("Network Denial of Service", Some("Direct Network Flood")),
        "T1498.002" => ("Network Denial of Service", Some("Reflection Amplification")),
        "T1499.001" => ("Endpoint Denial of Service", Some("OS Exhaustion Flood")),
        "T1595.001" => ("Active Scanning", Some("Scanning IP Blocks")),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
