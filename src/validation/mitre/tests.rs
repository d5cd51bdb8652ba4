use super::*;
use crate::finding::Finding;
use crate::validation::tests::{finding, incident, network};

#[test]
fn each_threat_and_method_shows_its_techniques() {
    let (ours, theirs) = ("10.0.0.5", "203.0.113.9");
    for (threat, actor, method, ids) in [
        (Threat::PortScan, ours, "vertical", &["T1046"][..]),
        (Threat::PortScan, theirs, "vertical", &["T1595.001"]),
        (Threat::Ddos, theirs, "reflection", &["T1498.002"]),
        (Threat::Ddos, theirs, "syn_flood", &["T1498.001", "T1499.001"]),
        (Threat::Ddos, theirs, "connection_flood", &["T1498.001", "T1499.001"]),
        (Threat::Ddos, theirs, "udp_flood", &["T1498.001"]),
        (Threat::C2Beacon, ours, "periodic", &["T1071"]),
        (Threat::CryptoMining, ours, "pool_port", &["T1496.001"]),
        (Threat::Tor, ours, "authority", &["T1090.003"]),
        (Threat::Behavior, ours, "top3_z", &[]),
        (Threat::BruteForce, theirs, "guessing", &["T1110.001"]),
        (Threat::BruteForce, theirs, "spraying", &["T1110.003"]),
        (Threat::Exfiltration, ours, "new_place", &["T1041", "T1048"]),
    ] {
        let one = Finding { method: method.to_owned(), ..finding(threat, actor, "10.0.0.9", 22, 600, 0.9) };
        let incident = incident(&[one]);
        assert_eq!(techniques(&Case::new(&incident), &network()), ids, "{threat} {method} of {actor}");
        for id in ids {
            let (_, part) = name(id).unwrap_or_else(|| panic!("{id} has no name"));
            assert_eq!(part.is_some(), id.contains('.'), "{id}");
        }
    }
    let many = Finding { actor: Actor::Many, ..finding(Threat::PortScan, theirs, "10.0.0.9", 22, 600, 0.9) };
    let many = Finding { subject: crate::finding::Subject::Victim(many.targets[0].address), ..many };
    assert_eq!(techniques(&Case::new(&incident(&[many])), &network()), ["T1595.001"]);
    // A host of a global address, known by its interface.
    let own = Finding {
        learned: vec![theirs.parse().unwrap()],
        ..finding(Threat::PortScan, theirs, "10.0.0.9", 22, 600, 0.9)
    };
    assert_eq!(techniques(&Case::new(&incident(&[own])), &network()), ["T1046"]);
}
