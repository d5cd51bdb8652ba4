//! The four tiers one after the other, without a runtime.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Blind;
use crate::anomaly::Anomaly;
use crate::correlation::{Incident, Incidents};
use crate::finding::Finding;
use crate::flow::network::Network;
use crate::flow::{Address, BlindnessKind, EventTime};
use crate::ingest::{Batch, Refused};
use crate::ml;
use crate::ml::behavior::Behavior;
use crate::ml::model::Model;
use crate::publish::Silence;
use crate::report;
use crate::settings::Settings;
use crate::statistical::{Engine, Output};
use crate::validation::{Judge, Outcome};

/// The tiers, and everything that they brought forth.
pub(super) struct Tiers {
    pub engine: Engine,
    settings: ml::local::Settings,
    behavior: Behavior,
    /// The models, unless they are switched off.
    model: Option<Arc<Model>>,
    incidents: Incidents,
    pub judge: Judge,
    shard: Arc<str>,
    out: Output,
    told: BTreeMap<uuid::Uuid, Anomaly>,
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
}

impl Tiers {
    /// Nothing judged yet; without a model, `top3_z` is alone in tier 2.
    pub fn new(settings: &Settings, network: &Network, model: Option<Arc<Model>>) -> Tiers {
        Tiers {
            engine: Engine::new(&settings.statistical, network),
            settings: settings.ml.behavior.clone(),
            behavior: Behavior::new(settings.ml.model.hosts_max),
            model,
            incidents: Incidents::new(&settings.correlation),
            judge: Judge::new(&settings.validation, network),
            shard: Arc::from("local"),
            out: Output::default(),
            told: BTreeMap::new(),
            silences: BTreeMap::new(),
            records: 0,
            refused: Refused::default(),
            blind: Blind::new(),
            names: vec![String::new()],
            host_windows: BTreeMap::new(),
            traffic: None,
        }
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
        self.judge_findings(&mut out);
        self.out = out;
    }

    /// The input has ended: closes every window and every incident.
    pub fn finish(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        self.engine.finish(&mut out);
        self.judge_findings(&mut out);
        let closed = self.incidents.finish();
        self.tell(&closed);
    }

    /// Tiers 2 to 4, the latter two a window at a time: what is told must not depend on how the input was cut into batches. Before a
    /// window's findings are folded, what is over by the window's end is closed.
    fn judge_findings(&mut self, out: &mut Output) {
        let mut findings = std::mem::take(&mut out.findings);
        for vector in &out.vectors {
            *self.host_windows.entry(vector.host).or_default() += 1;
        }
        let scores = self.model.as_ref().map(|model| self.behavior.judge().score(model, &out.vectors));
        self.behavior.hear(&out.vectors, scores.as_deref(), &mut findings, &self.settings);
        out.vectors.clear();
        findings.sort_by_key(end);
        for window in findings.chunk_by(|a, b| end(a) == end(b)) {
            let closed = self.incidents.expire(end(&window[0]));
            self.tell(&closed);
            let touched = self.incidents.fold(&self.shard, window);
            self.tell(&touched);
        }
        findings.clear();
        out.findings = findings;
    }

    fn tell(&mut self, incidents: &[Incident]) {
        for outcome in self.judge.judge(incidents) {
            match outcome {
                Outcome::Told(anomaly) => {
                    self.silences.remove(&anomaly.anomaly_id);
                    self.told.insert(anomaly.anomaly_id, *anomaly);
                }
                Outcome::Silent(silence) => {
                    self.silences.insert(silence.anomaly_id, silence);
                }
            }
        }
    }

    /// What was told, in order of detection.
    pub fn anomalies(&self) -> Vec<Anomaly> {
        let mut anomalies: Vec<Anomaly> = self.told.values().cloned().collect();
        anomalies.sort_by_key(|a| (a.detection_timestamp, a.first_seen, a.anomaly_id));
        anomalies
    }

    /// What was kept back for want of evidence, the likeliest first.
    pub fn signals(&self) -> Vec<&Silence> {
        let mut signals: Vec<&Silence> = self.silences.values().filter(|silence| silence.is_signal()).collect();
        signals.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then_with(|| a.anomaly_id.cmp(&b.anomaly_id)));
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
        self.incidents.evictions()
    }
}

/// When the window of a finding ends.
fn end(finding: &Finding) -> EventTime {
    finding.window.plus(finding.window_seconds)
}
