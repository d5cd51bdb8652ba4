//! The four tiers one after the other, in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::runtime::{self, Runtime};

use super::Blind;
use super::memory::Memory;
use crate::anomaly::Anomaly;
use crate::flow::network::Network;
use crate::flow::{Address, BlindnessKind, EventTime};
use crate::ingest::{Batch, Refused, ShardId};
use crate::ml;
use crate::ml::behavior::Behavior;
use crate::ml::model::Model;
use crate::pipeline::chain::Chain;
use crate::pipeline::chain::recording::Recorder;
use crate::publish::Silence;
use crate::report;
use crate::settings::Settings;
use crate::statistical::channel::candidate::Candidate;
use crate::statistical::{Engine, Output};
use crate::validation::{Judge, Outcome};

/// The tiers, and everything that they brought forth.
pub(super) struct Tiers {
    pub engine: Engine,
    settings: ml::local::Settings,
    behavior: Behavior,
    /// The models, unless they are switched off.
    model: Option<Arc<Model>>,
    chain: Chain,
    recorder: Recorder,
    memory: Memory,
    /// Drives the chain, which waits for nothing here.
    runtime: Runtime,
    shard: ShardId,
    out: Output,
    pub silences: BTreeMap<uuid::Uuid, Silence>,
    /// Records that were judged.
    pub records: u64,
    pub refused: Refused,
    pub blind: Blind,
    names: Vec<String>,
    /// Closed 5-minute windows in which a host of ours was active.
    pub host_windows: BTreeMap<Address, u32>,
    /// Kept for the report only.
    pub traffic: Option<report::Traffic>,
    /// Where looks at channels go, where they are asked for.
    candidates: Option<Candidates>,
}

/// A file of looks at channels, and why it could not be written, which is said at the end.
struct Candidates {
    file: BufWriter<File>,
    outcome: std::io::Result<()>,
}

impl Candidates {
    fn write(&mut self, candidates: &[Candidate]) {
        for candidate in candidates {
            if self.outcome.is_ok() {
                let written = serde_json::to_writer(&mut self.file, candidate).map_err(std::io::Error::from);
                self.outcome = written.and_then(|()| self.file.write_all(b"\n"));
            }
        }
    }
}

impl Tiers {
    /// Nothing judged yet; without a model, `top3_z` is alone in tier 2.
    pub fn new(settings: &Settings, network: &Network, model: Option<Arc<Model>>) -> anyhow::Result<Tiers> {
        let judge = Judge::new(&settings.validation, network);
        let gaps = &settings.correlation.episode_gap;
        Ok(Tiers {
            engine: Engine::new(&settings.statistical, network),
            settings: settings.ml.behavior.clone(),
            behavior: Behavior::new(settings.ml.model.hosts_max),
            model,
            chain: Chain::new(judge, gaps, settings.statistical.window),
            recorder: Recorder::new(gaps),
            memory: Memory::new(&settings.correlation),
            runtime: runtime::Builder::new_current_thread().build().context("start the runtime")?,
            shard: ShardId("local".into()),
            out: Output::default(),
            silences: BTreeMap::new(),
            records: 0,
            refused: Refused::default(),
            blind: Blind::new(),
            names: vec![String::new()],
            host_windows: BTreeMap::new(),
            traffic: None,
            candidates: None,
        })
    }

    /// Writes every look at a channel into a file.
    pub fn write_candidates(&mut self, path: &Path) -> anyhow::Result<()> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        self.engine.keep_candidates();
        self.candidates = Some(Candidates { file: BufWriter::new(file), outcome: Ok(()) });
        Ok(())
    }

    /// Takes one batch through all tiers.
    pub fn take(&mut self, batch: &mut Batch) {
        self.engine.name_interfaces(&batch.interfaces);
        for interface in &batch.interfaces {
            let at = interface.id.0 as usize;
            self.names.resize(self.names.len().max(at + 1), String::new());
            self.names[at].clone_from(&interface.name);
        }
        self.engine.note_blindness(&batch.blind);
        for blind in &batch.blind {
            let name = self.names.get(blind.interface.0 as usize).cloned().unwrap_or_default();
            let (no_data, skipped) = self.blind.entry(name).or_default();
            let seconds = u64::from(blind.end.since(blind.start));
            match blind.kind {
                BlindnessKind::NoData => *no_data += seconds,
                BlindnessKind::SkipData => *skipped += seconds,
            }
        }
        self.refused.merge(std::mem::take(&mut batch.refused));
        self.records += batch.records.len() as u64;
        if let Some(traffic) = &mut self.traffic {
            traffic.count(&batch.records);
        }
        self.engine.observe(&batch.records);
        self.engine.note_reached(batch.reached);
        let mut out = std::mem::take(&mut self.out);
        self.engine.advance(&mut out);
        let watermark = (self.records > 0).then(|| self.engine.watermark());
        self.judge(&mut out, watermark);
        self.out = out;
    }

    /// The input has ended: closes every window and every incident.
    ///
    /// # Errors
    /// The looks at channels cannot be written.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        let mut out = std::mem::take(&mut self.out);
        self.engine.finish(&mut out);
        self.judge(&mut out, Some(EventTime(u32::MAX)));
        if let Some(mut candidates) = self.candidates.take() {
            candidates.outcome.and_then(|()| candidates.file.flush()).context("write candidates")?;
        }
        Ok(())
    }

    /// Tiers 2 to 4.
    fn judge(&mut self, out: &mut Output, watermark: Option<EventTime>) {
        let mut findings = std::mem::take(&mut out.findings);
        if let Some(candidates) = &mut self.candidates {
            candidates.write(&self.engine.take_candidates());
        }
        for vector in &out.vectors {
            *self.host_windows.entry(vector.host).or_default() += 1;
        }
        let scores = self.model.as_ref().map(|model| self.behavior.judge().score(model, &out.vectors));
        self.behavior.hear(&out.vectors, scores.as_deref(), &mut findings, &self.settings);
        out.vectors.clear();
        let Tiers { chain, recorder, memory, runtime, shard, silences, .. } = self;
        runtime.block_on(async {
            for turn in chain.pass(memory, shard, findings, watermark).await {
                for outcome in turn.outcomes {
                    match outcome {
                        Outcome::Told(anomaly) => {
                            silences.remove(&anomaly.anomaly_id);
                            // Everybody reads the last word of each at the end.
                            recorder.tell(memory, *anomaly, &mut Vec::new()).await;
                        }
                        Outcome::Silent(silence) => {
                            silences.insert(silence.anomaly_id, silence);
                        }
                    }
                }
            }
        });
    }

    /// What was told, in order of detection.
    pub fn anomalies(&self) -> Vec<Anomaly> {
        let mut anomalies = self.memory.anomalies();
        anomalies.sort_by_key(|a| (a.detection_timestamp, a.first_seen, a.anomaly_id));
        anomalies
    }

    /// What was kept back for want of evidence, the likeliest first.
    pub fn signals(&self) -> Vec<&Silence> {
        let mut signals: Vec<&Silence> = self.silences.values().filter(|silence| silence.is_signal()).collect();
        signals.sort_by(|a, b| a.by_likelihood(b));
        signals
    }

    /// Everything that the report shows.
    pub fn run<'a>(&'a self, anomalies: &'a [Anomaly]) -> report::Run<'a> {
        report::Run {
            anomalies,
            silences: self.silences.values().collect(),
            statistics: self.engine.statistics().clone(),
            refused: &self.refused,
            blind: &self.blind,
            traffic: self.traffic.as_ref(),
        }
    }

    /// How many incidents were closed early for want of room.
    pub fn evicted_incidents(&self) -> u64 {
        self.memory.evicted_incidents()
    }
}
