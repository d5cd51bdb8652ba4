//! Closed feature windows out of flow logs or a simulation: what training and evaluation begin with.

use std::path::PathBuf;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::flow::network::Network;
use crate::ingest::local::Reader;
use crate::ml::FeatureVector;
use crate::settings::Settings;
use crate::simulate::labels::Labels;
use crate::simulate::{Scenario, Simulation};
use crate::statistical::{Engine, Output};

/// Records that are observed between two looks at the watermark.
const STRIDE: usize = 65_536;

/// The windows of flow logs, as the service would see them.
pub(super) fn of_files(paths: &[PathBuf], settings: &Settings) -> anyhow::Result<Vec<FeatureVector>> {
    let mut reader = Reader::open(paths, &settings.ingest)?;
    let mut engine = Engine::new(&settings.statistical, &Network::new(&settings.network));
    let mut gathered = Gathered::default();
    let bar = bar(1_000, "{bar:30} {percent} % of the input, {msg}");
    while let Some(batch) = reader.next_batch().context("read flow logs")? {
        engine.name_interfaces(&batch.interfaces);
        engine.note_blindness(&batch.blind);
        engine.observe(&batch.records);
        engine.note_reached(batch.reached);
        gathered.take(|out| engine.advance(out));
        bar.set_position((reader.progress().fraction() * 1e3) as u64);
        bar.set_message(format!("{} windows", gathered.vectors.len()));
        reader.recycle(batch);
    }
    gathered.take(|out| engine.finish(out));
    bar.finish_and_clear();
    Ok(gathered.vectors)
}

/// The windows of a simulation, and what was malicious in it.
pub(super) fn of_simulation(scenario: Scenario, settings: &Settings) -> (Vec<FeatureVector>, Labels) {
    let duration = scenario.duration_seconds;
    let begin = scenario.start;
    let mut simulation = Simulation::new(scenario);
    let network =
        crate::flow::network::Settings { internal: simulation.internal(), external: Vec::new(), learn: false };
    let mut engine = Engine::new(&settings.statistical, &Network::new(&network));
    engine.name_interfaces(simulation.interfaces());
    let mut gathered = Gathered::default();
    let bar = bar(u64::from(duration), "{bar:30} {percent} % of the simulated time, {msg}");
    let mut records = Vec::with_capacity(STRIDE);
    for step in simulation.by_ref() {
        engine.note_blindness(&step.blind);
        records.extend_from_slice(&step.records);
        if records.len() >= STRIDE {
            engine.observe(&records);
            records.clear();
            gathered.take(|out| engine.advance(out));
            bar.set_position(u64::from(step.time.since(begin)));
            bar.set_message(format!("{} windows", gathered.vectors.len()));
        }
    }
    engine.observe(&records);
    gathered.take(|out| engine.finish(out));
    bar.finish_and_clear();
    (gathered.vectors, simulation.labels())
}

#[derive(Default)]
struct Gathered {
    vectors: Vec<FeatureVector>,
    out: Output,
}

impl Gathered {
    fn take(&mut self, close: impl FnOnce(&mut Output)) {
        close(&mut self.out);
        self.out.findings.clear();
        self.vectors.append(&mut self.out.vectors);
    }
}

/// A progress bar on a terminal; nothing elsewhere.
pub(super) fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the templates are constants");
    ProgressBar::new(length).with_style(style)
}
