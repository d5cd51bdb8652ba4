use std::sync::Arc;

use serde::Deserialize;

use super::*;
use crate::correlation::{self, Incidents};
use crate::finding::{Finding, Merge};
use crate::flow::{Address, network};
use crate::publish::Verdict;

#[derive(Deserialize)]
pub(super) struct File {
    correlation: correlation::Settings,
    pub(super) validation: Settings,
}

pub(super) fn defaults() -> File {
    toml::from_str(include_str!("../defaults.toml")).unwrap()
}

pub(super) fn network() -> Network {
    Network::new(&network::Settings {
        internal: vec!["10.0.0.0/8".parse().unwrap()],
        external: Vec::new(),
        learn: false,
    })
}

/// Tiers 3 and 4 together.
struct Bench {
    incidents: Incidents,
    judge: Judge,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Bench {
        let File { correlation, mut validation } = defaults();
        change(&mut validation);
        Bench { incidents: Incidents::new(&correlation), judge: Judge::new(&validation, &network()) }
    }

    fn fold(&mut self, findings: &[Finding]) -> Vec<Outcome> {
        let shard: Arc<str> = Arc::from("s");
        let incidents = self.incidents.fold(&shard, findings);
        self.judge.judge(&incidents)
    }

    fn finish(&mut self) -> Vec<Outcome> {
        let closed = self.incidents.finish();
        self.judge.judge(&closed)
    }
}

pub(super) fn address(text: &str) -> Address {
    text.parse().unwrap()
}

/// A finding of one actor on one target and port.
pub(super) fn finding(threat: Threat, actor: &str, target: &str, port: u16, window: u32, score: f64) -> Finding {
    let (actor, target) = (address(actor), address(target));
    let subject = match threat {
        Threat::C2Beacon => Subject::Pair(actor, target),
        Threat::Ddos => Subject::Victim(target),
        _ => Subject::Actor(actor),
    };
    Finding {
        threat,
        method: "method".to_owned(),
        actor: Actor::One(actor),
        subject,
        targets: vec![Target { address: target, ports: vec![port], port_count: 1 }],
        target_count: 1,
        sources: Vec::new(),
        severity_reason: String::new(),
        learned: Vec::new(),
        first_seen: EventTime(window),
        last_seen: EventTime(window + 59),
        window: EventTime(window),
        window_seconds: 60,
        score,
        severity: Severity::Medium,
        evidence: vec![Evidence::at_least("amount", 200.0, 100.0, "things", Merge::Max)],
        summary: "it did something".to_owned(),
        interfaces: Vec::new(),
        account: String::new(),
        provisional: false,
        ml: None,
        alternatives: Vec::new(),
    }
}

/// The incident that findings make.
pub(super) fn incident(findings: &[Finding]) -> Incident {
    let mut incidents = Incidents::new(&defaults().correlation);
    incidents.fold(&Arc::from("s"), findings).pop().expect("an incident")
}

fn told(outcomes: &[Outcome]) -> Vec<&Anomaly> {
    outcomes.iter().filter_map(|o| if let Outcome::Told(a) = o { Some(&**a) } else { None }).collect()
}

fn refused_by(outcomes: &[Outcome]) -> Vec<&str> {
    outcomes.iter().filter_map(|o| if let Outcome::Silent(s) = o { Some(&*s.stage) } else { None }).collect()
}

#[test]
fn a_sure_finding_is_told_with_every_stage_it_went_through() {
    let outcomes = Bench::new().fold(&[finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 600, 0.95)]);
    let anomaly = told(&outcomes)[0];
    let names: Vec<&str> = anomaly.tiers.validation.stages.iter().map(|s| &*s.name).collect();
    let order = ["evidence", "allow_list", "suppression", "known_benign", "corroboration", "confidence", "storm"];
    assert_eq!(names, order);
    assert!(anomaly.tiers.validation.stages.iter().all(|s| s.passed));
    assert_eq!(anomaly.detection_timestamp, EventTime(660));
    assert_eq!(anomaly.mitre, ["T1595.001"]);
    assert_eq!(anomaly.confidence, 0.95);
}

#[test]
fn a_finding_without_a_judged_number_is_refused() {
    let mut bare = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 600, 0.95);
    bare.evidence[0].threshold = None;
    assert_eq!(refused_by(&Bench::new().fold(&[bare])), ["evidence"]);
}

#[test]
fn an_attack_within_one_window_needs_no_second() {
    for threat in [Threat::PortScan, Threat::Ddos] {
        let outcomes = Bench::new().fold(&[finding(threat, "203.0.113.9", "10.0.0.5", 22, 600, 0.51)]);
        assert_eq!(told(&outcomes).len(), 1, "{threat}: {outcomes:?}");
    }
}

#[test]
fn an_unsure_finding_waits_for_a_second_window_and_keeps_its_id() {
    let mut bench = Bench::new();
    let early = bench.fold(&[finding(Threat::C2Beacon, "10.0.0.5", "198.51.100.1", 443, 600, 0.55)]);
    assert_eq!(refused_by(&early), ["corroboration"]);
    let later = bench.fold(&[finding(Threat::C2Beacon, "10.0.0.5", "198.51.100.1", 443, 660, 0.55)]);
    let Outcome::Silent(silence) = &early[0] else { panic!() };
    assert_eq!(told(&later)[0].anomaly_id, silence.anomaly_id);
    assert_eq!(told(&later)[0].detection_timestamp, EventTime(720));
}

#[test]
fn a_silence_is_told_once_per_reason() {
    let mut bench = Bench::new();
    let weak = |window| finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, window, 0.1);
    assert_eq!(refused_by(&bench.fold(&[weak(0)])), ["corroboration"], "0.1 is below what stands alone");
    assert_eq!(refused_by(&bench.fold(&[weak(60)])), ["confidence"]);
    assert!(bench.fold(&[weak(120)]).is_empty());
    assert_eq!(bench.judge.counts().refused["corroboration"], 1);
}

#[test]
fn known_services_are_refused_by_name_and_only_when_they_look_exactly_so() {
    for (actor, target, port, benign) in [
        ("10.0.0.5", "198.51.100.1", 123, true),
        ("10.0.0.5", "8.8.8.8", 53, true),
        ("10.0.0.5", "8.8.8.8", 4444, false),
        ("10.0.0.5", "198.51.100.1", 53, false),
        ("10.0.0.5", "10.0.0.2", 53, true),
        ("15.177.0.7", "10.0.0.5", 80, true),
        ("10.0.0.5", "17.57.144.20", 5223, true),
        ("10.0.0.5", "17.57.144.20", 22, false),
        ("10.0.0.5", "52.94.235.172", 443, true),
        ("10.0.0.5", "52.94.235.172", 4443, false),
        ("52.94.235.172", "10.0.0.5", 443, false),
    ] {
        let outcomes = Bench::new().fold(&[finding(Threat::C2Beacon, actor, target, port, 0, 0.99)]);
        let expected: &[&str] = if benign { &["known_benign"] } else { &[] };
        assert_eq!(refused_by(&outcomes), expected, "{actor} {target} {port}");
    }
}

#[test]
fn trusted_addresses_are_refused_as_actors_and_as_peers_but_not_as_victims() {
    let trust = |s: &mut Settings| {
        s.allow_list = vec![toml::from_str("name = 'ours'\naddresses = ['203.0.113.0/24']").unwrap()];
    };
    for (threat, actor, target, refused) in [
        (Threat::PortScan, "203.0.113.9", "10.0.0.5", true),
        (Threat::C2Beacon, "10.0.0.5", "203.0.113.9", true),
        (Threat::PortScan, "10.0.0.5", "203.0.113.9", false),
        (Threat::C2Beacon, "10.0.0.5", "198.51.100.1", false),
    ] {
        let outcomes = Bench::with(trust).fold(&[finding(threat, actor, target, 443, 0, 0.99)]);
        assert_eq!(refused_by(&outcomes) == ["allow_list"], refused, "{threat} {actor} {target}");
    }
}

/// What ada says of the `number`th anomaly.
pub(super) fn feedback(number: u128, verdict: Verdict) -> Feedback {
    let (by, note, name) = ("ada".to_owned(), String::new(), String::new());
    Feedback { anomaly_id: Uuid::from_u128(number), verdict, by, name, note, at: EventTime(100) }
}

pub(super) fn suppression(text: &str) -> suppression::Suppression {
    let head = "name = 'n'\nowner = 'o'\nreason = 'r'\ncreated = '1970-01-01T00:01:00Z'\n";
    toml::from_str(&format!("{head}{text}")).unwrap()
}

#[test]
fn a_suppression_counts_from_its_creation_until_it_expires() {
    let quiet = suppression("expires = '1970-01-01T01:00:00Z'\nmatch = { actors = ['203.0.113.9'] }");
    for (window, refused) in [(0, false), (60, true), (3_500, true), (3_600, false)] {
        let mut bench = Bench::with(|s| s.suppressions = vec![quiet.clone()]);
        let mut one = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, window, 0.99);
        one.last_seen = one.first_seen;
        assert_eq!(refused_by(&bench.fold(&[one])) == ["suppression"], refused, "{window}");
        let matches = bench.judge.suppressions().iter().next().unwrap().1;
        assert_eq!(matches.count, u64::from(refused));
    }
}

#[test]
fn a_suppression_never_covers_what_is_known_only_in_part() {
    let quiet = suppression("match = { targets = ['10.0.0.0/8'], ports = [22] }");
    let known = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 60, 0.99);
    let mut more_targets = known.clone();
    more_targets.target_count = 300;
    let mut more_ports = known.clone();
    more_ports.targets[0].port_count = 300;
    for (finding, refused) in [(known, true), (more_targets, false), (more_ports, false)] {
        let outcomes = Bench::with(|s| s.suppressions = vec![quiet.clone()]).fold(&[finding]);
        assert_eq!(refused_by(&outcomes) == ["suppression"], refused);
    }
}

#[test]
fn a_suppression_must_be_signed_and_bounded() {
    use suppression::SuppressionError::{Boundless, Inverted, Unsigned};
    assert!(suppression("match = { ports = [22] }").check().is_ok());
    assert!(matches!(suppression("match = {}").check(), Err(Boundless(_))));
    let inverted = suppression("expires = '1970-01-01T00:00:30Z'\nmatch = { ports = [22] }");
    assert!(matches!(inverted.check(), Err(Inverted(_))));
    let mut unsigned = suppression("match = { ports = [22] }");
    unsigned.owner = " ".to_owned();
    assert!(matches!(unsigned.check(), Err(Unsigned { field: "owner", .. })));
}

#[test]
fn a_dry_run_says_what_would_have_been_hidden() {
    let outcomes = Bench::new().fold(&[
        finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 0, 0.99),
        finding(Threat::PortScan, "203.0.113.10", "10.0.0.5", 22, 0, 0.99),
    ]);
    let run = suppression("match = { actors = ['203.0.113.9'] }").dry_run(told(&outcomes), |_| true);
    assert_eq!((run.tried, run.hidden.len(), run.hidden_true), (2, 1, 1));
}

#[test]
fn three_threats_of_one_actor_are_critical_and_the_first_is_told_again() {
    let mut bench = Bench::new();
    let host = "10.0.0.5";
    let scan = bench.fold(&[finding(Threat::PortScan, host, "10.0.0.9", 22, 0, 0.99)]);
    let scan_id = told(&scan)[0].anomaly_id;
    let beacon = bench.fold(&[finding(Threat::C2Beacon, host, "198.51.100.1", 443, 600, 0.99)]);
    let again = *told(&beacon).iter().find(|a| a.anomaly_id == scan_id).unwrap();
    assert_eq!(again.severity, Severity::High);
    assert!(again.updates > told(&scan)[0].updates);
    let third = bench.fold(&[finding(Threat::CryptoMining, host, "198.51.100.1", 443, 1_200, 0.99)]);
    assert_eq!(told(&third).len(), 3);
    assert!(told(&third).iter().all(|a| a.severity == Severity::Critical), "{third:#?}");
    assert!(
        told(&third).iter().all(|a| a.severity_reason.ends_with("told of several other threats too")),
        "{third:#?}"
    );
    assert_eq!(told(&third)[0].related.len(), 2);
    assert!(told(&third).iter().all(|a| a.updates == 3), "a window and two relatives each: {third:#?}");
}

#[test]
fn company_stays_known_after_the_other_is_closed_and_revisions_only_grow() {
    let mut bench = Bench::new();
    let host = "10.0.0.5";
    bench.fold(&[finding(Threat::PortScan, host, "10.0.0.9", 22, 0, 0.99)]);
    let beacon = |window| finding(Threat::C2Beacon, host, "198.51.100.1", 443, window, 0.99);
    let first = bench.fold(&[beacon(600)]);
    let first = (*told(&first).iter().find(|a| a.threat == Threat::C2Beacon).unwrap()).clone();
    let closed = bench.incidents.expire(EventTime(10_000));
    assert_eq!(told(&bench.judge.judge(&closed))[0].threat, Threat::PortScan);
    let later = bench.fold(&[beacon(10_000)]);
    let later = told(&later)[0];
    assert_eq!(later.anomaly_id, first.anomaly_id);
    assert_eq!((&later.related, later.severity), (&first.related, Severity::High));
    assert_eq!(later.tiers.correlation, first.tiers.correlation);
    assert!(later.updates > first.updates);
}

#[test]
fn what_was_told_stays_told_and_is_closed_at_the_end() {
    let mut bench = Bench::new();
    let one = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 60, 0.99);
    bench.fold(std::slice::from_ref(&one));
    bench.judge.suppress(vec![suppression("match = { actors = ['203.0.113.9'] }")]);
    assert!(bench.fold(&[finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 120, 0.99)]).is_empty());
    let closed = bench.finish();
    assert_eq!(told(&closed)[0].status, Status::Closed);
}

#[test]
fn updates_are_spaced_in_event_time() {
    let mut bench = Bench::new();
    let mut updates = 0;
    for minute in 0..20 {
        let scan = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, minute * 60, 0.99);
        updates += told(&bench.fold(&[scan])).len();
    }
    assert_eq!(updates, 4);
}

#[test]
fn a_storm_is_told_as_one_and_each_of_it_is_kept() {
    let mut bench = Bench::with(|s| s.storm.anomalies_max = 5);
    let findings: Vec<Finding> =
        (0..30).map(|n| finding(Threat::PortScan, &format!("203.0.113.{n}"), "10.0.0.5", 22, 0, 0.99)).collect();
    let outcomes = bench.fold(&findings);
    let single = told(&outcomes).into_iter().filter(|a| a.actor != Actor::Many).count();
    let summary = told(&outcomes).into_iter().rfind(|a| a.actor == Actor::Many).unwrap();
    assert_eq!(single, 5);
    assert_eq!(refused_by(&outcomes).len(), 25);
    assert_eq!(summary.updates, 16);
    let calm = finding(Threat::PortScan, "203.0.113.99", "10.0.0.5", 22, 660, 0.99);
    assert_eq!(told(&bench.fold(&[calm])).len(), 1);
}

#[test]
fn confidence_grows_with_score_and_support_and_verdicts_move_it_only_when_there_are_enough() {
    let mut calibration = Calibration::new(&defaults().validation.calibration);
    let p = |c: &Calibration, score, support| c.probability(Threat::C2Beacon, score, support);
    let steps: Vec<f64> = (0..=10).map(|n| p(&calibration, f64::from(n) / 10.0, 0.0)).collect();
    assert!(steps.windows(2).all(|w| w[0] < w[1]), "{steps:?}");
    assert!(p(&calibration, 0.5, 0.5) > p(&calibration, 0.5, 0.0));
    for n in 0..5 {
        assert_eq!(p(&calibration, 0.5, 0.0), 0.5, "after {n} verdicts");
        calibration.learn(Threat::C2Beacon, &feedback(n, Verdict::FalsePositive));
    }
    assert!(p(&calibration, 0.5, 0.0) < 0.3);
    assert_eq!(calibration.probability(Threat::Ddos, 0.5, 0.0), 0.5);
}

#[test]
fn a_judge_restored_goes_on_as_if_nothing_had_happened() {
    let mut whole = Bench::new();
    let mut cut = Bench::new();
    for minute in 0..30 {
        let findings = [
            finding(Threat::PortScan, "10.0.0.5", "10.0.0.9", 22, minute * 60, 0.61),
            finding(Threat::C2Beacon, "10.0.0.5", "198.51.100.1", 443, minute * 60, 0.3),
        ];
        cut.judge = Judge::restore(&cut.judge.snapshot(), &defaults().validation, &network()).unwrap();
        assert_eq!(whole.fold(&findings), cut.fold(&findings));
    }
    assert_eq!(whole.finish(), cut.finish());
}

#[test]
fn spans_are_spoken_as_people_say_them() {
    for (seconds, spoken) in
        [(0, "1 s"), (47, "47 s"), (720, "12 min"), (12_000, "3 h 20 min"), (7_200, "2 h"), (187_200, "2 d 4 h")]
    {
        assert_eq!(spoken_span(EventTime(10), EventTime(10 + seconds)), spoken);
    }
}

#[test]
fn spans_change_their_unit_where_people_do() {
    for (seconds, spoken) in [
        (119, "119 s"),
        (120, "2 min"),
        (7_199, "119 min"),
        (7_259, "2 h"),
        (7_260, "2 h 1 min"),
        (172_799, "47 h 59 min"),
        (172_800, "2 d"),
        (176_399, "2 d"),
        (176_400, "2 d 1 h"),
    ] {
        assert_eq!(spoken_span(EventTime(10), EventTime(10 + seconds)), spoken);
    }
}

#[test]
fn an_episode_is_about_its_actor_or_its_victim() {
    let (a, b) = (address("10.0.0.5"), address("10.0.0.6"));
    for subject in [Subject::Actor(a), Subject::Victim(a), Subject::Pair(a, b)] {
        assert_eq!(principal(subject), a);
    }
}

#[test]
fn a_case_knows_its_numbers_by_name_and_who_acts() {
    let scan = incident(&[finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 600, 0.9)]);
    let case = Case::new(&scan);
    assert_eq!(case.number("amount").map(|e| e.value), Some(200.0));
    assert_eq!(case.number("other"), None);
    assert_eq!(case.actor, Actor::One(address("203.0.113.9")));
    let flood = incident(&[finding(Threat::Ddos, "203.0.113.9", "10.0.0.5", 22, 600, 0.9)]);
    assert_eq!(Case::new(&flood).actor, Actor::One(address("203.0.113.9")), "of a victim: whom the findings name");
    let by_another = finding(Threat::Ddos, "203.0.113.10", "10.0.0.5", 22, 600, 0.9);
    let by_many = incident(&[finding(Threat::Ddos, "203.0.113.9", "10.0.0.5", 22, 600, 0.9), by_another]);
    assert_eq!(Case::new(&by_many).actor, Actor::Many);
}

fn anomaly() -> Anomaly {
    let outcomes = Bench::new().fold(&[finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 600, 0.95)]);
    told(&outcomes)[0].clone()
}

#[test]
fn news_is_status_severity_company_a_tenfold_reach_or_so_much_time() {
    let before = Anomaly { target_count: 3, ..anomaly() };
    let news = |now: Anomaly| is_news(&before, &now, 300);
    assert!(!news(before.clone()));
    assert!(news(Anomaly { status: Status::Closed, ..before.clone() }));
    assert!(news(Anomaly { severity: Severity::Critical, ..before.clone() }));
    assert!(news(Anomaly { related: vec![Uuid::from_u128(1)], ..before.clone() }));
    assert!(!news(Anomaly { target_count: 29, ..before.clone() }));
    assert!(news(Anomaly { target_count: 30, ..before.clone() }));
    let after = |seconds| Anomaly { last_seen: before.last_seen.plus(seconds), ..before.clone() };
    assert!(!news(after(299)));
    assert!(news(after(300)));
    let none = Anomaly { target_count: 0, ..before.clone() };
    assert!(!is_news(&none, &Anomaly { target_count: 9, ..none.clone() }, 300));
    assert!(is_news(&none, &Anomaly { target_count: 10, ..none.clone() }, 300));
    assert!(!is_news(&before, &before, 0), "nothing new is no news, whatever the interval");
    assert!(is_news(&before, &after(1), 0));
}

#[test]
fn evidence_is_a_judged_number_of_a_span_that_makes_sense() {
    let sound = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 600, 0.95);
    let judged = |finding: &Finding| {
        let incident = incident(std::slice::from_ref(finding));
        let stage = enough_evidence(&Case::new(&incident));
        (stage.passed, stage.reason)
    };
    let one = "1 numbers held against thresholds, highest score 0.95".to_owned();
    assert_eq!(judged(&sound), (true, one.clone()));
    let instant = Finding { last_seen: sound.first_seen, ..sound.clone() };
    assert_eq!(judged(&instant), (true, one.clone()));
    let backwards = Finding { last_seen: EventTime(599), ..sound.clone() };
    assert_eq!(judged(&backwards), (false, one));
    assert!(!judged(&Finding { score: 0.0, ..sound }).0);
}

#[test]
fn what_correlation_knows_stands_beside_the_numbers() {
    let of = |others: &[&str]| {
        let mut incident = incident(&[
            finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 600, 0.95),
            finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 660, 0.95),
        ]);
        incident.beside = others.iter().map(|other| (address(other), address(other))).collect();
        let told = told_evidence(&Case::new(&incident));
        told.into_iter().filter(|e| e.tier == Tier::Correlation).map(|e| (e.name, e.value)).collect::<Vec<_>>()
    };
    let named = |name: &'static str, value| (std::borrow::Cow::from(name), value);
    assert_eq!(of(&[]), [named("windows", 2.0)]);
    assert_eq!(of(&["203.0.113.10"]), [named("windows", 2.0), named("actors_on_target", 2.0)]);
}

#[test]
fn a_judge_knows_what_it_judged_until_it_is_closed() {
    let mut bench = Bench::new();
    let outcomes = bench.fold(&[
        finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 600, 0.95),
        finding(Threat::C2Beacon, "10.0.0.5", "198.51.100.1", 443, 600, 0.1),
    ]);
    let scan = told(&outcomes)[0].anomaly_id;
    let beacon =
        outcomes.iter().find_map(|o| if let Outcome::Silent(s) = o { Some(s.anomaly_id) } else { None }).unwrap();
    assert!(bench.judge.knows(scan) && bench.judge.knows(beacon) && !bench.judge.knows(Uuid::from_u128(1)));
    assert_eq!(bench.judge.counts().confirmed, BTreeMap::from([("port_scan".to_owned(), 1)]));
    assert_eq!(bench.judge.counts().refused, BTreeMap::from([("corroboration".to_owned(), 1)]));
    bench.finish();
    assert!(!bench.judge.knows(scan) && !bench.judge.knows(beacon));
}

#[test]
fn an_anomaly_that_the_store_remembers_goes_on_under_its_first_timestamp() {
    let again = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 660, 0.9);
    let known = Anomaly { degraded: vec!["ml".to_owned()], detection_timestamp: EventTime(7), ..anomaly() };
    let mut bench = Bench::new();
    let merged = Anomaly { merged_into: Some(Uuid::from_u128(1)), status: Status::Closed, ..known.clone() };
    bench.judge.remember(&merged);
    bench.judge.remember(&Anomaly { detection_timestamp: EventTime(9), ..known.clone() });
    // The incident is the one that the id was made for.
    let first = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 600, 0.95);
    let outcomes = bench.fold(&[first.clone(), again.clone()]);
    assert!(told(&outcomes).is_empty(), "open before, and nothing new: {outcomes:#?}");
    let later = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 1_260, 0.9);
    let outcomes = bench.fold(&[later]);
    let told = told(&outcomes);
    assert_eq!((told[0].anomaly_id, told[0].detection_timestamp), (known.anomaly_id, EventTime(7)));
    assert_eq!((told[0].status, &told[0].degraded), (Status::Open, &known.degraded));
    assert_eq!(bench.judge.counts().confirmed.len(), 0, "it was confirmed before");
    let names: Vec<&str> = told[0].tiers.validation.stages.iter().map(|s| &*s.name).collect();
    let kept = ["corroboration", "confidence", "storm"];
    assert_eq!(names[names.len() - 3..], kept, "how it was first confirmed stays");
}

#[test]
fn what_was_confirmed_counts_once_and_confidence_never_falls() {
    let mut bench = Bench::new();
    let scan = |window, score| finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, window, score);
    assert_eq!(told(&bench.fold(&[scan(0, 0.9)]))[0].confidence, 0.9);
    bench.judge.learn(Threat::PortScan, &feedback(0, Verdict::TruePositive));
    for number in 1..50 {
        bench.judge.learn(Threat::PortScan, &feedback(number, Verdict::FalsePositive));
    }
    let later = bench.fold(&[scan(600, 0.9)]);
    assert_eq!(told(&later)[0].confidence, 0.9);
    assert_eq!(bench.judge.counts().confirmed["port_scan"], 1);
    let another = finding(Threat::PortScan, "203.0.113.10", "10.0.0.5", 22, 600, 0.9);
    let outcomes = bench.fold(&[another]);
    let confidence = told(&outcomes)[0].confidence;
    assert!((0.7..0.8).contains(&confidence), "verdicts move those that follow: {confidence}");
    assert_eq!(bench.judge.counts().confirmed["port_scan"], 2);
}

#[test]
fn other_settings_count_from_here_on_and_verdicts_and_storms_stay() {
    let mut bench = Bench::new();
    for number in 0..5 {
        bench.judge.learn(Threat::Tor, &feedback(number, Verdict::FalsePositive));
    }
    bench.judge.suppress(vec![suppression("match = { actors = ['203.0.113.1'] }")]);
    let mut settings = defaults().validation;
    settings.storm.anomalies_max = 1;
    settings.update_interval = SignedDuration::from_secs(60);
    settings.calibration.threshold.tor = 0.01;
    bench.judge.set_settings(&settings);
    let scan = |n: u32, window| finding(Threat::PortScan, &format!("203.0.113.{n}"), "10.0.0.5", 22, window, 0.95);
    assert_eq!(refused_by(&bench.fold(&[scan(1, 60)])), ["suppression"], "what was added stays");
    let outcomes = bench.fold(&[scan(2, 0), scan(3, 0)]);
    assert_eq!(refused_by(&outcomes), ["storm"]);
    assert_eq!(told(&bench.fold(&[scan(2, 60)])).len(), 1, "updates come every minute now");
    let tor = bench.fold(&[finding(Threat::Tor, "10.0.0.7", "198.51.100.9", 9001, 0, 0.95)]);
    let confidence = told(&tor)[0].confidence;
    assert!(confidence < 0.9, "five verdicts move it still: {confidence}");
}

#[test]
fn company_counts_by_threat_and_many_actors_are_nobodys_company() {
    let mut bench = Bench::new();
    let on_victim = |threat, window| {
        let one = finding(threat, "203.0.113.9", "10.0.0.9", 22, window, 0.99);
        Finding { actor: Actor::Many, subject: Subject::Victim(address("10.0.0.9")), ..one }
    };
    bench.fold(&[on_victim(Threat::PortScan, 0)]);
    let outcomes = bench.fold(&[on_victim(Threat::Ddos, 60)]);
    let flood = *told(&outcomes).iter().find(|a| a.threat == Threat::Ddos).expect("the flood");
    assert_eq!(flood.tiers.correlation, BTreeMap::from([("port_scan".to_owned(), 1)]));
    assert_eq!((flood.severity, flood.related.len()), (Severity::Medium, 1), "on one victim, by nobody in particular");
    let scan = *told(&outcomes).iter().find(|a| a.threat == Threat::PortScan).expect("the scan is told again");
    assert_eq!((scan.severity, &scan.related), (Severity::Medium, &vec![flood.anomaly_id]));
    assert_eq!(scan.updates, 2, "a window and a relative");
}

#[test]
fn a_part_that_was_told_goes_on_as_the_whole_that_it_turned_out_to_be_part_of() {
    let mut bench = Bench::new();
    let outcomes = bench.fold(&[finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 36_000, 0.95)]);
    let part = told(&outcomes)[0].clone();
    bench.judge.suppress(vec![suppression("match = { actors = ['203.0.113.9'] }")]);
    let mut whole = incident(&[finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 3_000, 0.95)]);
    let mut absorbed = bench.incidents.finish().pop().expect("the part");
    absorbed.absorbed_by = Some(whole.id);
    assert_ne!(whole.id, part.anomaly_id);
    let outcomes = bench.judge.judge(&[absorbed, whole.clone()]);
    assert!(outcomes.is_empty(), "what was told is not silenced: {outcomes:#?}");
    whole.closed = true;
    let outcomes = bench.judge.judge(&[whole]);
    assert_eq!((told(&outcomes)[0].status, outcomes.len()), (Status::Closed, 1));
}
