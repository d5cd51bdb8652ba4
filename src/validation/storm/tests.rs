use super::*;
use crate::finding::Severity;
use crate::validation::tests::{address, defaults, finding, incident};

fn settings(anomalies_max: u32) -> Settings {
    Settings { anomalies_max, ..defaults().validation.storm }
}

/// The scan of one of many sources, in the window that ends with `end`.
fn scan(n: u32, end: u32) -> Finding {
    finding(Threat::PortScan, &format!("203.0.113.{n}"), "10.0.0.5", 22, end - 60, 0.9)
}

fn passes(storms: &mut Storms, finding: &Finding) -> bool {
    let incident = incident(std::slice::from_ref(finding));
    storms.stage(&Case::new(&incident)).passed
}

fn held_back(storms: &mut Storms, finding: &Finding) -> Option<Anomaly> {
    let incident = incident(std::slice::from_ref(finding));
    let case = Case::new(&incident);
    let refusal = storms.stage(&case);
    assert!(!refusal.passed);
    storms.join(&case, &refusal)
}

#[test]
fn so_many_of_a_threat_are_told_in_one_window_and_as_many_in_the_next() {
    let mut storms = Storms::new(&settings(2));
    assert!(passes(&mut storms, &scan(1, 600)) && passes(&mut storms, &scan(2, 1_199)));
    assert!(!passes(&mut storms, &scan(3, 1_199)));
    assert!(passes(&mut storms, &finding(Threat::Tor, "10.0.0.5", "203.0.113.1", 22, 600, 0.9)), "each threat its own");
    assert!(passes(&mut storms, &scan(4, 1_200)), "ten minutes have begun anew");
    assert!(passes(&mut storms, &scan(5, 900)), "what comes late counts for the window that is open");
    assert!(!passes(&mut storms, &scan(6, 1_200)));
    assert!(passes(&mut Storms::default(), &scan(1, 600)), "without settings there is no limit");
    let again = storms.with(&settings(3));
    let reason = |storms: &mut Storms, n| {
        let incident = incident(&[scan(n, 1_260)]);
        storms.stage(&Case::new(&incident)).reason
    };
    let mut again = again;
    assert_eq!(reason(&mut again, 7), "one of at most 3 within 600 s");
    assert_eq!(reason(&mut again, 8), "more than 3 anomalies of port_scan within 600 s; told as one");
}

#[test]
fn what_is_held_back_is_told_as_one_whenever_its_number_has_doubled() {
    let mut storms = Storms::new(&settings(0));
    let told: Vec<bool> = (1..=9).map(|n| held_back(&mut storms, &scan(n, 660)).is_some()).collect();
    assert_eq!(told, [true, true, false, true, false, false, false, true, false]);
    assert_eq!(held_back(&mut storms, &scan(3, 660)), None, "one that is counted already");
    let told = (10..=16).filter_map(|n| held_back(&mut storms, &scan(n, 660))).collect::<Vec<_>>();
    assert_eq!(told.iter().map(|a| a.updates).collect::<Vec<_>>(), [16]);
    let mut calm = Storms::new(&settings(0));
    let incident = incident(&[scan(1, 660)]);
    let refusal = stage(NAME, false, String::new());
    assert_eq!(calm.join(&Case::new(&incident), &refusal), None, "nothing was refused before");
}

#[test]
fn the_one_that_stands_for_all_holds_their_span_severity_and_targets() {
    let mut storms = Storms::new(&settings(0));
    let first = Finding { severity: Severity::Medium, ..scan(1, 660) };
    let second = Finding {
        severity: Severity::High,
        targets: ["10.0.0.4", "10.0.0.5"]
            .map(|t| Target { address: address(t), ports: vec![22], port_count: 1 })
            .to_vec(),
        target_count: 2,
        first_seen: EventTime(30),
        last_seen: EventTime(700),
        ..scan(2, 720)
    };
    let alone = held_back(&mut storms, &first).unwrap();
    assert_eq!((alone.severity, alone.target_count, alone.updates), (Severity::Medium, 1, 1));
    let both = held_back(&mut storms, &second).unwrap();
    assert_eq!((both.anomaly_id, both.actor, both.threat), (alone.anomaly_id, Actor::Many, Threat::PortScan));
    assert_eq!((both.severity, both.target_count, both.updates), (Severity::High, 2, 2));
    assert_eq!((both.first_seen, both.last_seen), (EventTime(30), EventTime(700)));
    assert_eq!(both.targets.iter().map(|t| t.address.to_string()).collect::<Vec<_>>(), ["10.0.0.4", "10.0.0.5"]);
    assert_eq!(
        both.summary,
        "2 more anomalies of port_scan since 1970-01-01T00:10:00Z: see the silences of stage storm"
    );
    assert_eq!((&*both.evidence[0].name, both.evidence[0].value), ("held_back", 2.0));
    assert_eq!(both.tiers.validation.stages[0].name, NAME);
    let key = IncidentKey { threat: Threat::PortScan, subject: Subject::Victim(Address::UNSPECIFIED) };
    assert_eq!(both.anomaly_id, key.episode(EventTime(600)));
}

#[test]
fn a_storm_has_room_for_so_many_ids_and_lists_so_many_targets() {
    let mut storms = Storms::new(&settings(0));
    let mut one = incident(&[scan(1, 660)]);
    for n in 0..=IDS_MAX as u128 {
        one.id = uuid::Uuid::from_u128(n);
        let case = Case::new(&one);
        let refusal = storms.stage(&case);
        storms.join(&case, &refusal);
    }
    assert_eq!(storms.by_threat[&Threat::PortScan].held_back.len(), IDS_MAX);
    let mut wide = Storms::new(&settings(0));
    let on = |n: u32| finding(Threat::PortScan, &format!("203.0.113.{n}"), &format!("10.0.0.{n}"), 22, 600, 0.9);
    let last = (1..=64).filter_map(|n| held_back(&mut wide, &on(n))).last().unwrap();
    assert_eq!((last.updates, last.targets.len()), (64, Finding::TARGETS_MAX));
}
