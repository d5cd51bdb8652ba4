use super::*;
use crate::finding::{Finding, Subject, Target, Threat};
use crate::validation::tests::{address, finding, incident, network};

const OURS: &str = "10.0.0.5";
const OURS_TOO: &str = "10.0.0.6";
const THEIRS: &str = "198.51.100.1";
const THEIRS_TOO: &str = "203.0.113.9";

fn fits(direction: Direction, finding: &Finding) -> bool {
    let incident = incident(std::slice::from_ref(finding));
    direction.fits(&Case::new(&incident), &network())
}

fn of(actor: &str, target: &str) -> Finding {
    finding(Threat::CryptoMining, actor, target, 443, 600, 0.9)
}

#[test]
fn a_direction_says_which_side_is_ours() {
    for (actor, target, fitting) in [
        (OURS, THEIRS, [true, true, false, false]),
        (THEIRS, OURS, [true, false, true, false]),
        (OURS, OURS_TOO, [true, false, false, true]),
        (THEIRS, THEIRS_TOO, [true, false, true, false]),
    ] {
        let all = [Direction::Any, Direction::Outbound, Direction::Inbound, Direction::Internal];
        assert_eq!(all.map(|direction| fits(direction, &of(actor, target))), fitting, "{actor} {target}");
    }
}

#[test]
fn every_target_lies_on_its_side() {
    let mut mixed = of(OURS, THEIRS);
    mixed.targets.insert(0, Target { address: address(OURS_TOO), ports: vec![443], port_count: 1 });
    assert!(!fits(Direction::Outbound, &mixed) && !fits(Direction::Internal, &mixed));
    // So does the peer or victim that the episode is about, listed or not.
    let about = |subject, target| Finding { subject, ..of(OURS, target) };
    let pair = |peer| Subject::Pair(address(OURS), address(peer));
    assert!(fits(Direction::Outbound, &about(pair(THEIRS_TOO), THEIRS)));
    assert!(!fits(Direction::Outbound, &about(pair(OURS_TOO), THEIRS)));
    assert!(fits(Direction::Internal, &about(pair(OURS_TOO), OURS_TOO)));
    assert!(!fits(Direction::Internal, &about(pair(THEIRS), OURS_TOO)));
    assert!(!fits(Direction::Outbound, &about(Subject::Victim(address(OURS_TOO)), THEIRS)));
}

#[test]
fn many_actors_fit_only_where_no_side_is_asked_for() {
    let victim = Subject::Victim(address(OURS));
    let flood = Finding { actor: Actor::Many, subject: victim, ..of(THEIRS, OURS) };
    assert!(fits(Direction::Any, &flood));
    for direction in [Direction::Outbound, Direction::Inbound, Direction::Internal] {
        assert!(!fits(direction, &flood), "{direction:?}");
    }
}

#[test]
fn a_service_fits_by_direction_and_pattern_and_is_named() {
    let services: Vec<Service> = ["name = 'agent'\ndirection = 'outbound'\nmatch = { ports = [443] }"]
        .map(|text| toml::from_str(text).unwrap())
        .to_vec();
    let judged = |finding: &Finding| {
        let incident = incident(std::slice::from_ref(finding));
        let stage = stage(&Case::new(&incident), &services, &network());
        (stage.passed, stage.reason)
    };
    assert_eq!(judged(&of(OURS, THEIRS)), (false, "agent".to_owned()));
    assert_eq!(judged(&of(THEIRS, OURS)), (true, "none of 1 services".to_owned()));
    let other_port = finding(Threat::CryptoMining, OURS, THEIRS, 444, 600, 0.9);
    assert_eq!(judged(&other_port), (true, "none of 1 services".to_owned()));
}
