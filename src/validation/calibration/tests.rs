use super::*;
use crate::finding::{Evidence, Finding, Merge};
use crate::validation::tests::{defaults, feedback, finding, incident};

fn settings() -> Settings {
    defaults().validation.calibration
}

fn odds(p: f64) -> f64 {
    (p / (1.0 - p)).ln()
}

fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 0.5e-4
}

fn beacon(window: u32, method: &str) -> Finding {
    let one = finding(Threat::C2Beacon, "10.0.0.5", "198.51.100.1", 443, window, 0.6);
    Finding { method: method.to_owned(), ..one }
}

fn confidence(findings: &[Finding]) -> f64 {
    Calibration::new(&settings()).confidence(&Case::new(&incident(findings)))
}

#[test]
fn by_default_a_score_without_support_is_the_probability() {
    let calibration = Calibration::new(&settings());
    for score in [0.5, 0.6, 0.75, 0.9375] {
        assert_eq!(calibration.probability(Threat::Tor, score, 0.0), score);
    }
    assert_eq!(calibration.probability(Threat::Tor, 1.0, 0.0), 0.999, "no detector is certain");
    assert_eq!(calibration.probability(Threat::Tor, 0.0, 0.0), 0.001);
}

#[test]
fn intercept_slope_and_support_are_added_in_log_odds() {
    let mut settings = settings();
    settings.intercept.tor = 0.25;
    settings.slope.tor = 2.0;
    let calibration = Calibration::new(&settings);
    let expected = logistic(0.25 + 2.0 * odds(0.7) + 0.5);
    assert!(close(calibration.probability(Threat::Tor, 0.7, 0.5), expected));
    let told = calibration.probability(Threat::Tor, 0.7, 0.5) * 1e4;
    assert_eq!(told, told.round(), "four digits");
    assert!(
        close(calibration.probability(Threat::Ddos, 0.7, 0.5), logistic(odds(0.7) + 0.5)),
        "the others keep theirs"
    );
}

#[test]
fn windows_methods_and_lists_support_a_score() {
    assert_eq!(confidence(&[beacon(600, "periodic")]), 0.6);
    let four: Vec<Finding> = (0..4).map(|n| beacon(600 + 60 * n, "periodic")).collect();
    assert!(close(confidence(&four), logistic(odds(0.6) + 2.0 * 0.3)), "two doublings");
    let methods = [beacon(600, "periodic"), beacon(600, "failing"), beacon(600, "long_channel")];
    assert!(close(confidence(&methods), logistic(odds(0.6) + 2.0 * 0.5)), "two beyond the first");
    let mut listed = beacon(600, "periodic");
    listed.evidence.push(Evidence::told("pool_list", 1.0, "yes=1", Merge::Max));
    listed.evidence.push(Evidence::told("listed_relays", 1.0, "addresses", Merge::Max));
    assert!(close(confidence(&[listed.clone()]), logistic(odds(0.6) + 2.0 * 1.0)), "two lists");
    let cautious = Calibration::new(&Settings { per_list: 0.25, ..settings() });
    assert!(close(cautious.confidence(&Case::new(&incident(&[listed]))), logistic(odds(0.6) + 2.0 * 0.25)));
}

#[test]
fn verdicts_shift_a_threat_by_their_odds_once_there_are_five_and_not_beyond_the_bound() {
    let mut calibration = Calibration::new(&settings());
    let mut number = 0;
    let mut learn = |verdict, times: u32| {
        for _ in 0..times {
            number += 1;
            calibration.learn(Threat::Tor, &feedback(number, verdict));
        }
        (calibration.shift(Threat::Tor), calibration.shift(Threat::Ddos))
    };
    assert_eq!(learn(Verdict::TruePositive, 3), (0.0, 0.0));
    assert_eq!(learn(Verdict::FalsePositive, 1), (0.0, 0.0), "four");
    assert_eq!(learn(Verdict::FalsePositive, 1), ((4.0f64 / 3.0).ln(), 0.0));
    assert_eq!(learn(Verdict::FalsePositive, 3), ((4.0f64 / 6.0).ln(), 0.0));
    assert_eq!(learn(Verdict::TruePositive, 100), (1.0, 0.0));
    assert_eq!(learn(Verdict::FalsePositive, 500), (-1.0, 0.0));
    let known = Verdicts { true_positive: 103, false_positive: 505 };
    assert_eq!(calibration.feedbacks(), &Feedbacks::from([(Threat::Tor, known)]));
    let p = calibration.probability(Threat::Tor, 0.6, 0.0);
    assert!(close(p, logistic(odds(0.6) - 1.0)), "{p}");
    let stage =
        calibration.stage(&Case::new(&incident(&[finding(Threat::Tor, "10.0.0.5", "198.51.100.1", 443, 0, 0.9)])));
    assert!(stage.reason.contains("by -1.00 (103 anomalies true, 505 false)"), "{}", stage.reason);
    assert_eq!(calibration.with(&settings()).shift(Threat::Tor), -1.0, "other settings leave what was learned");
}

#[test]
fn one_anomaly_counts_once_whoever_and_however_many_have_spoken_on_it() {
    let mut calibration = Calibration::new(&settings());
    let said =
        |number, by: &str, verdict, at| Feedback { by: by.to_owned(), at: EventTime(at), ..feedback(number, verdict) };
    for n in 0..40 {
        calibration.learn(Threat::CryptoMining, &said(1, &format!("invented {n}"), Verdict::FalsePositive, n));
    }
    let known = |t, f| Feedbacks::from([(Threat::CryptoMining, Verdicts { true_positive: t, false_positive: f })]);
    assert_eq!((calibration.feedbacks(), calibration.shift(Threat::CryptoMining)), (&known(0, 1), 0.0));
    assert_eq!(calibration.opinions[&Uuid::from_u128(1)].by.len(), JUDGES_MAX);

    // A later verdict of the same person replaces the earlier one, an older or repeated one changes nothing.
    calibration.learn(Threat::CryptoMining, &said(2, "ada", Verdict::FalsePositive, 10));
    calibration.learn(Threat::CryptoMining, &said(2, "ada", Verdict::TruePositive, 20));
    calibration.learn(Threat::CryptoMining, &said(2, "ada", Verdict::FalsePositive, 15));
    calibration.learn(Threat::CryptoMining, &said(2, "ada", Verdict::TruePositive, 20));
    assert_eq!(calibration.feedbacks(), &known(1, 1));
    calibration.learn(Threat::CryptoMining, &said(2, "bob", Verdict::FalsePositive, 30));
    assert_eq!(calibration.feedbacks(), &known(0, 1), "who disagree count for nothing");
}

#[test]
fn verdicts_without_number_do_not_fill_the_memory() {
    let mut calibration = Calibration::new(&settings());
    // The counting goes through all of them; what is remembered is put there first.
    for n in 0..ANOMALIES_MAX as u32 {
        let by = BTreeMap::from([("ada".to_owned(), (EventTime(n), Verdict::TruePositive))]);
        calibration.opinions.insert(Uuid::from_u128(n.into()), Opinion { threat: Threat::Tor, by });
    }
    let new = Feedback { at: EventTime(u32::MAX), ..feedback(u128::MAX, Verdict::TruePositive) };
    calibration.learn(Threat::Tor, &new);
    assert_eq!(calibration.opinions.len(), ANOMALIES_MAX);
    assert!(!calibration.opinions.contains_key(&Uuid::from_u128(0)), "the oldest went");
}

#[test]
fn what_is_as_probable_as_its_threshold_is_told() {
    let stage = |score| {
        let unsure = Finding { score, ..beacon(600, "periodic") };
        let stage = Calibration::new(&settings()).stage(&Case::new(&incident(&[unsure])));
        (stage.passed, stage.reason)
    };
    assert_eq!(stage(0.5), (true, "0.50 of at least 0.50, from score 0.50".to_owned()));
    assert!(!stage(0.49).0);
}
