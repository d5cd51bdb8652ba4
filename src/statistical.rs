//! Tier 1: records fold into bounded state, windows close, detectors judge.
use jiff::SignedDuration;
use serde::Deserialize;

use crate::finding::Finding;
use crate::flow::network::Network;
use crate::flow::{Address, Blindness, EventTime, FlowRecord, Interface};
use crate::ml::FeatureVector;

/// Settings of the tier, `[statistical]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Length of the tumbling window.
    pub window: SignedDuration,
    /// How far behind the newest record a record may still arrive and be put into its own window.
    pub lateness: SignedDuration,
}

/// What closing windows, or a look at open ones, brought forth.
#[derive(Debug, Default)]
pub struct Output {
    /// What the detectors said, in a defined order.
    pub findings: Vec<Finding>,
    /// Closed 5-minute windows of monitored hosts.
    pub vectors: Vec<FeatureVector>,
}

/// Counts of an engine's life, for metrics and the report.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Statistics {
    /// Records observed.
    pub records: u64,
    /// Of these, how many came after their window had closed (they joined the oldest open one).
    pub late: u64,
    /// Of these, how many said again what another interface had said.
    pub duplicates: u64,
    /// Windows closed.
    pub windows: u64,
    /// Entries evicted from full tables, by table.
    pub evictions: std::collections::BTreeMap<String, u64>,
    /// First event time seen.
    pub first: EventTime,
    /// Last event time seen.
    pub last: EventTime,
    /// Seconds of SKIPDATA over all interfaces.
    pub skipped_seconds: u64,
    /// Seconds of NODATA over all interfaces.
    pub no_data_seconds: u64,
}

/// What one detector thought of a watched address at its closest approach to an alert.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Explanation {
    /// Which threat was judged.
    pub threat: crate::finding::Threat,
    /// Which method of its.
    pub method: String,
    /// On or with whom, where it is about a pair.
    pub peer: Option<Address>,
    /// The window.
    pub window: EventTime,
    /// Whether a finding came of it.
    pub found: bool,
    /// The numbers, each beside its threshold.
    pub evidence: Vec<crate::finding::Evidence>,
    /// In words: which threshold was or was not reached.
    pub verdict: String,
}

/// The engine of one shard: one owner, no locks, no clock.
#[derive(Debug)]
pub struct Engine {
    statistics: Statistics,
}

impl Engine {
    /// An engine that has seen nothing.
    pub fn new(_settings: &Settings, _network: &Network) -> Engine {
        Engine { statistics: Statistics::default() }
    }

    /// Learns the names behind interface numbers.
    pub fn name_interfaces(&mut self, _interfaces: &[Interface]) {}

    /// Folds records in the order they arrived.
    pub fn observe(&mut self, records: &[FlowRecord]) {
        self.statistics.records += records.len() as u64;
    }

    /// Notes where the log says nothing.
    pub fn note_blindness(&mut self, _blind: &[Blindness]) {}

    /// Closes every window that the watermark (newest record minus lateness) has passed.
    pub fn advance(&mut self, _out: &mut Output) {}

    /// Moves the watermark on without records, for a shard that has fallen silent.
    pub fn advance_to(&mut self, _newest: EventTime, _out: &mut Output) {}

    /// Judges the hot entities of windows that are still open; what it says is provisional.
    pub fn peek(&mut self, _out: &mut Output) {}

    /// Closes all windows: the input has ended.
    pub fn finish(&mut self, _out: &mut Output) {}

    /// Collects explanations about an address from here on.
    pub fn watch(&mut self, _address: Address) {}

    /// What was collected about watched addresses.
    pub fn explanations(&self) -> Vec<Explanation> {
        Vec::new()
    }

    /// Counts so far.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Interfaces known so far, by ascending id.
    pub fn interfaces(&self) -> &[Interface] {
        &[]
    }

    /// The whole state, to be restored by the same version with the same settings.
    pub fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    /// An engine that goes on where [`Engine::snapshot`] was taken.
    pub fn restore(_bytes: &[u8], settings: &Settings, network: &Network) -> Result<Engine, SnapshotError> {
        Ok(Engine::new(settings, network))
    }
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("restore a snapshot: {0}")]
pub struct SnapshotError(pub String);
