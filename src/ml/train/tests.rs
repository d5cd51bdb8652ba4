use super::*;
use crate::ml::model::tests::{MODEL, options, windows};

#[test]
fn the_realised_rate_on_fresh_windows_is_near_the_target() {
    let evaluation = evaluate(&MODEL, &windows(10, 4, 11));
    for (name, rates) in &evaluation.realised {
        for rate in rates.iter().filter(|r| r.target >= 1e-3 && name != "all") {
            // Surprises at the turns of the day come to all hosts at once, and the calibration saw one morning.
            let factor = if name == "lstm" { 4.0 } else { 2.0 };
            let least = if name == "lstm" { 0.0 } else { rate.target / factor };
            let within = least..rate.target * factor;
            assert!(within.contains(&rate.share), "{name}: {:e} for {:e}", rate.share, rate.target);
        }
    }
    let all = &evaluation.realised["all"];
    assert!(all.iter().all(|r| r.share <= 2.5 * r.target + 2e-4), "joined p-values are valid: {all:?}");
}

#[test]
fn the_parts_do_not_overlap_in_time_and_are_told() {
    let data = &MODEL.manifest.data;
    let warm = 10 * (4 * 288 - u64::from(WARM_UP));
    assert_eq!(data.training_windows + data.calibration_windows + data.test_windows, warm);
    assert_eq!(data.hosts, 10);
    assert!(MODEL.manifest.metrics["forest_fpr_at_1e-2"] < 0.02);
}

#[test]
fn too_few_windows_are_refused_with_what_is_needed() {
    let told = train(&windows(2, 1, 1), options(Source::Deployment), |_| ()).unwrap_err().to_string();
    assert!(told.contains("528 windows") && told.contains("4000 are needed"), "{told}");
}

#[test]
fn the_order_of_windows_does_not_matter() {
    let mut shuffled = windows(10, 4, 1);
    shuffled.reverse();
    let (model, _) = train(&shuffled, options(Source::Deployment), |_| ()).unwrap();
    assert_eq!(model.manifest.model_version, MODEL.manifest.model_version);
}
