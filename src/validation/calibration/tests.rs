use super::*;
use crate::finding::{Evidence, Finding, Merge};
use crate::validation::tests::{defaults, finding, incident};

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
    let mut learn = |verdict, times: u32| {
        (0..times).for_each(|_| calibration.learn(Threat::Tor, verdict));
        (calibration.shift(Threat::Tor), calibration.shift(Threat::Ddos))
    };
    assert_eq!(learn(Verdict::TruePositive, 3), (0.0, 0.0));
    assert_eq!(learn(Verdict::FalsePositive, 1), (0.0, 0.0), "four");
    assert_eq!(learn(Verdict::FalsePositive, 1), ((4.0f64 / 3.0).ln(), 0.0));
    assert_eq!(learn(Verdict::FalsePositive, 3), ((4.0f64 / 6.0).ln(), 0.0));
    assert_eq!(learn(Verdict::TruePositive, 100), (2.0, 0.0));
    assert_eq!(learn(Verdict::FalsePositive, 2_000), (-2.0, 0.0));
    let known = Verdicts { true_positive: 103, false_positive: 2_005 };
    assert_eq!(calibration.feedbacks(), &Feedbacks::from([(Threat::Tor, known)]));
    let p = calibration.probability(Threat::Tor, 0.6, 0.0);
    assert!(close(p, logistic(odds(0.6) - 2.0)), "{p}");
    let mut other = Calibration::new(&settings());
    other.resume(calibration.feedbacks().clone());
    assert_eq!(other.shift(Threat::Tor), -2.0);
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
