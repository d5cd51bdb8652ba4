use super::*;
use crate::finding::Finding;
use crate::validation::tests::{address, finding, incident};

#[test]
fn a_block_is_cidr_or_one_address_and_prints_as_such() {
    for (text, shown) in
        [("10.0.0.0/8", "10.0.0.0/8"), ("192.0.2.7", "192.0.2.7/32"), ("2001:db8::1", "2001:db8::1/128")]
    {
        let block: Block = text.parse().unwrap();
        assert_eq!(block.to_string(), shown);
        assert_eq!(serde_json::to_value(block).unwrap(), shown);
        assert_eq!(serde_json::from_value::<Block>(shown.into()).unwrap(), block);
    }
    let block: Block = "192.0.2.7".parse().unwrap();
    assert!(block.contains(address("192.0.2.7")) && !block.contains(address("192.0.2.8")));
    let error = "10.0.0.0/33".parse::<Block>().unwrap_err();
    assert_eq!(error, "`10.0.0.0/33` is neither an address nor a CIDR block such as 10.0.0.0/8");
}

fn scan() -> Finding {
    finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 600, 0.9)
}

fn fits(pattern: &str, findings: &[Finding]) -> bool {
    let pattern: Pattern = toml::from_str(pattern).unwrap();
    let incident = incident(findings);
    let case = Case::new(&incident);
    pattern.fits(&Subjects::of(&case))
}

#[test]
fn what_is_left_empty_fits_everything_and_is_known_to_be_empty() {
    assert!(fits("", &[scan()]));
    assert!(Pattern::default().is_empty());
    for text in
        ["threats = ['tor']", "methods = ['m']", "actors = ['10.0.0.1']", "targets = ['10.0.0.1']", "ports = [1]"]
    {
        assert!(!toml::from_str::<Pattern>(text).unwrap().is_empty(), "{text}");
    }
}

#[test]
fn every_part_that_is_named_must_fit() {
    for (pattern, fitting) in [
        ("threats = ['tor', 'port_scan']", true),
        ("threats = ['tor']", false),
        ("methods = ['method', 'other']", true),
        ("methods = ['other']", false),
        ("actors = ['192.0.2.1', '203.0.113.0/24']", true),
        ("actors = ['192.0.2.1']", false),
        ("targets = ['192.0.2.1', '10.0.0.0/8']", true),
        ("targets = ['192.0.2.1']", false),
        ("ports = [21, 22]", true),
        ("ports = [21]", false),
        ("threats = ['port_scan']\nports = [21]", false),
        ("threats = ['tor']\nports = [22]", false),
    ] {
        assert_eq!(fits(pattern, &[scan()]), fitting, "{pattern}");
    }
}

#[test]
fn all_methods_that_spoke_must_be_named() {
    let other = Finding { method: "other".to_owned(), ..scan() };
    assert!(!fits("methods = ['method']", &[scan(), other.clone()]));
    assert!(fits("methods = ['method', 'other']", &[scan(), other]));
}

#[test]
fn many_actors_are_in_no_block() {
    let many = Finding { actor: Actor::Many, subject: Subject::Victim(address("10.0.0.5")), ..scan() };
    assert!(!fits("actors = ['0.0.0.0/0']", std::slice::from_ref(&many)));
    assert!(fits("targets = ['10.0.0.5']", &[many]));
}

#[test]
fn all_targets_and_all_their_ports_must_be_known_and_fit() {
    let target =
        |text: &str, ports: &[u16], port_count| Target { address: address(text), ports: ports.to_vec(), port_count };
    let with = |targets: Vec<Target>, target_count| Finding { targets, target_count, ..scan() };
    let targets = "targets = ['10.0.0.0/8']";
    let ports = "ports = [22, 23]";
    let two = vec![target("10.0.0.5", &[22], 1), target("10.0.0.6", &[22, 23], 2)];
    for (finding, by_target, by_port) in [
        (with(two.clone(), 2), true, true),
        (with(two.clone(), 3), false, false),
        (with(vec![], 0), false, false),
        (with(vec![target("10.0.0.5", &[22], 1), target("11.0.0.1", &[80], 1)], 2), false, false),
        (with(vec![target("10.0.0.5", &[22], 2)], 1), true, false),
        (with(vec![target("10.0.0.5", &[], 0)], 1), true, false),
        (with(vec![target("10.0.0.5", &[22, 80], 2)], 1), true, false),
    ] {
        let findings = [finding];
        assert_eq!(
            (fits(targets, &findings), fits(ports, &findings)),
            (by_target, by_port),
            "{:?}",
            findings[0].targets
        );
    }
}

#[test]
fn the_counterpart_is_the_peer_or_the_victim() {
    let (a, b) = (address("10.0.0.5"), address("10.0.0.6"));
    assert_eq!(counterpart(Subject::Pair(a, b)), Some(b));
    assert_eq!(counterpart(Subject::Victim(a)), Some(a));
    assert_eq!(counterpart(Subject::Actor(a)), None);
}
