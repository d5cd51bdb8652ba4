use super::*;
use crate::finding::{Finding, Target};
use crate::validation::tests::{address, finding, incident};

fn covered(entry: &str, finding: &Finding) -> bool {
    let entry: Entry = toml::from_str(&format!("name = 'ours'\n{entry}")).unwrap();
    let incident = incident(std::slice::from_ref(finding));
    let stage = stage(&Case::new(&incident), &[entry]);
    assert_eq!(stage.reason, if stage.passed { "none of 1 entries applies" } else { "trusted: ours" });
    !stage.passed
}

const TRUSTED: &str = "addresses = ['203.0.113.0/24', '198.51.100.7']";

fn of(threat: Threat, actor: &str, target: &str) -> Finding {
    finding(threat, actor, target, 443, 600, 0.9)
}

#[test]
fn what_a_trusted_address_does_is_covered_whatever_it_is() {
    for threat in Threat::ALL {
        assert!(covered(TRUSTED, &of(threat, "203.0.113.9", "10.0.0.5")), "{threat}");
        assert!(covered(TRUSTED, &of(threat, "198.51.100.7", "10.0.0.5")), "{threat}");
        assert!(!covered(TRUSTED, &of(threat, "198.51.100.8", "10.0.0.5")), "{threat}");
    }
    let many = Finding { actor: Actor::Many, ..of(Threat::Ddos, "203.0.113.9", "10.0.0.5") };
    assert!(!covered(TRUSTED, &many), "nobody in particular");
}

#[test]
fn an_entry_covers_the_threats_that_it_names() {
    let scanner = format!("{TRUSTED}\nthreats = ['port_scan', 'ddos']");
    assert!(covered(&scanner, &of(Threat::PortScan, "203.0.113.9", "10.0.0.5")));
    assert!(covered(&scanner, &of(Threat::Ddos, "203.0.113.9", "10.0.0.5")));
    assert!(!covered(&scanner, &of(Threat::Tor, "203.0.113.9", "10.0.0.5")));
}

#[test]
fn calling_a_trusted_peer_is_covered_and_attacking_one_is_not() {
    for (threat, calls) in [
        (Threat::C2Beacon, true),
        (Threat::CryptoMining, true),
        (Threat::Tor, true),
        (Threat::Exfiltration, true),
        (Threat::BruteForce, false),
        (Threat::PortScan, false),
        (Threat::Ddos, false),
        (Threat::Behavior, false),
    ] {
        assert_eq!(covered(TRUSTED, &of(threat, "10.0.0.5", "203.0.113.9")), calls, "{threat}");
        assert!(!covered(TRUSTED, &of(threat, "10.0.0.5", "192.0.2.1")), "{threat}");
    }
}

#[test]
fn peers_are_covered_when_all_of_them_are_known_and_trusted() {
    let target = |text: &str| Target { address: address(text), ports: vec![9_001], port_count: 1 };
    let with = |targets: &[&str], target_count| Finding {
        targets: targets.iter().map(|text| target(text)).collect(),
        target_count,
        ..of(Threat::Tor, "10.0.0.5", "203.0.113.9")
    };
    assert!(covered(TRUSTED, &with(&["198.51.100.7", "203.0.113.9"], 2)));
    assert!(!covered(TRUSTED, &with(&["192.0.2.1", "203.0.113.9"], 2)));
    assert!(!covered(TRUSTED, &with(&["198.51.100.7", "203.0.113.9"], 3)), "one is not listed");
    assert!(!covered(TRUSTED, &with(&[], 0)));
}
