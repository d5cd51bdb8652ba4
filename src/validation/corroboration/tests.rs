use super::*;
use crate::finding::{Evidence, Finding, Merge};
use crate::validation::tests::{defaults, finding, incident};

fn settings() -> Settings {
    defaults().validation.corroboration
}

fn beacon(window: u32, score: f64) -> Finding {
    finding(Threat::C2Beacon, "10.0.0.5", "198.51.100.1", 443, window, score)
}

/// Whether findings pass, and why.
fn judged(findings: &[Finding]) -> (bool, String) {
    let incident = incident(findings);
    let stage = stage(&Case::new(&incident), &settings());
    (stage.passed, stage.reason)
}

fn passed(reason: &str) -> (bool, String) {
    (true, reason.to_owned())
}

#[test]
fn every_threat_has_a_number_of_its_own() {
    let line = |(n, threat): (usize, &Threat)| format!("{threat} = {n}\n");
    let numbers: PerThreat = toml::from_str(&Threat::ALL.iter().enumerate().map(line).collect::<String>()).unwrap();
    assert_eq!(Threat::ALL.map(|threat| numbers.of(threat)), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn a_score_from_sixty_per_cent_on_stands_alone() {
    assert_eq!(judged(&[beacon(600, 0.6)]), passed("score 0.60 of at least 0.60 stands alone"));
    let (passed, reason) = judged(&[beacon(600, 0.59)]);
    assert_eq!((passed, reason.as_str()), (false, "one method in 1 of 2 windows at score 0.59, below 0.60"));
}

#[test]
fn a_second_window_or_a_second_method_is_a_second_opinion() {
    assert_eq!(judged(&[beacon(600, 0.5), beacon(660, 0.5)]), passed("2 windows"));
    let other = Finding { method: "failing".to_owned(), ..beacon(600, 0.5) };
    assert_eq!(judged(&[beacon(600, 0.5), other]), passed("2 methods agree"));
    assert!(!judged(&[beacon(600, 0.5), beacon(600, 0.5)]).0, "the same said twice is one");
}

#[test]
fn a_list_that_knows_the_peer_is_a_second_opinion() {
    for (name, value, passes) in [
        ("listed_relays", 1.0, true),
        ("directory_authorities", 1.0, true),
        ("pool_list", 1.0, true),
        ("pool_list", 0.0, false),
        ("pool_port", 1.0, false),
    ] {
        let mut finding = beacon(600, 0.5);
        finding.evidence.push(Evidence::told(name, value, "yes=1", Merge::Max));
        assert_eq!(judged(&[finding]).0, passes, "{name} {value}");
    }
    let mut twice = beacon(600, 0.5);
    twice.evidence.push(Evidence::told("pool_list", 1.0, "yes=1", Merge::Max));
    twice.evidence.push(Evidence::told("listed_relays", 2.0, "addresses", Merge::Max));
    let incident = incident(&[twice]);
    assert_eq!(list_hits(&Case::new(&incident)), 2);
}

#[test]
fn another_threat_of_the_same_actor_is_a_second_opinion_and_other_relations_are_none() {
    for (relation, passes) in [
        (Relation::SameActor, true),
        (Relation::SameTarget, false),
        (Relation::Preceded, false),
        (Relation::Followed, false),
    ] {
        let mut incident = incident(&[beacon(600, 0.5)]);
        incident.related.insert(uuid::Uuid::from_u128(7), relation);
        let stage = stage(&Case::new(&incident), &settings());
        assert_eq!(stage.passed, passes, "{relation:?}");
        assert_eq!(stage.reason.contains("1 other incidents of the same actor"), passes, "{}", stage.reason);
    }
}
