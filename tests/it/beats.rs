//! What the sequence model is for: a host's own recurring job, between two of its runs. Seed and hosts are none that the embedded
//! model was trained on.

use std::process::Command;

use flowvigil::flow::network::{self, Network};
use flowvigil::ml::{FeatureVector, artifact, features, separation};
use flowvigil::settings::Settings;
use flowvigil::simulate::{Scenario, Simulation};
use flowvigil::statistical::{Engine, Output};

const SEED: u64 = 4_711;

#[test]
fn the_sequence_model_finds_runs_between_two_beats_which_neither_of_the_others_does() {
    let threats = ["behavior.off_beat:high"; 8].join(",").parse().unwrap();
    let scenario = Scenario {
        seed: SEED,
        hosts: 32,
        duration_seconds: 3 * 86_400,
        demand: 0.05,
        jobs: 0.5,
        threats,
        ..Scenario::default()
    };
    let settings = Settings::assemble(&[]).unwrap();
    let mut simulation = Simulation::new(scenario);
    let ours = network::Settings { internal: simulation.internal(), external: Vec::new(), learn: false };
    let mut engine = Engine::new(&settings.statistical, &Network::new(&ours));
    engine.name_interfaces(simulation.interfaces());
    let (mut out, mut vectors) = (Output::default(), Vec::new());
    for (second, step) in simulation.by_ref().enumerate() {
        engine.observe(&step.records);
        if second % 3_600 == 0 {
            engine.advance(&mut out);
            out.findings.clear();
            vectors.append(&mut out.vectors);
        }
    }
    engine.finish(&mut out);
    vectors.append(&mut out.vectors);
    let truth = simulation.labels().truth;
    let is_attack = |vector: &FeatureVector| {
        let host = vector.host.to_string();
        let (from, to) = (vector.window.0, vector.window.0 + features::WINDOW_SECONDS);
        let near = |slack: u32| {
            truth.iter().any(|row| row.actor == host && from <= row.last + slack && to + slack > row.first)
        };
        match (near(0), near(3_600)) {
            (true, _) => Some(true),
            (_, near) => (!near).then_some(false),
        }
    };
    let measured = separation::measure(&artifact::embedded().unwrap(), &vectors, is_attack, |_| ());
    let found = |scorer: &str| measured[scorer].recall_at_1e_2;
    assert!(measured["lstm"].attacks > 50, "{} windows", measured["lstm"].attacks);
    assert!(found("lstm") > 0.3, "{measured:?}");
    assert!(found("lstm") > 3.0 * found("top3_z").max(found("forest")), "{measured:?}");
    assert!(measured["lstm"].beyond_top3_z > 0.0, "{measured:?}");
}

#[test]
fn a_share_of_hosts_that_is_none_is_refused_by_every_command_that_takes_one() {
    for command in
        [&["simulate"][..], &["evaluate", "--simulated", "1"], &["train", "--simulated", "--out", "no.tar.gz"]]
    {
        for wrong in ["1.5", "NaN", "half"] {
            let ran =
                Command::new(env!("CARGO_BIN_EXE_flowvigil")).args(command).args(["--jobs", wrong]).output().unwrap();
            let told = String::from_utf8_lossy(&ran.stderr);
            assert_eq!(ran.status.code(), Some(2), "{command:?} {wrong}: {told}");
            assert!(told.contains("--jobs") && told.contains(wrong), "{told}");
        }
    }
}
