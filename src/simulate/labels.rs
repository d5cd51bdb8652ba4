//! What a simulation says about itself: who did what, when, and who did nothing wrong.
//!
//! The file has the schema of the labels beside the evaluation data sets. A row of the truth is not what was planned but
//! what came out: its span and its count of records are taken from the records as they leave, so a row that was cut off by
//! the simulation's end says so, and one that never appeared is not there.

use serde::{Deserialize, Serialize};

use crate::flow::FlowRecord;

/// Refers to a row of the truth: its index plus one; 0 is "benign".
pub type TruthId = u16;

/// One thing that somebody malicious did to one target.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Truth {
    /// `port_scan`, `ddos`, `c2_beacon`, `crypto_mining`, `tor`, `behavior`, `brute_force` or `exfiltration`.
    pub threat: String,
    /// The address that did it; `many` where there is not one.
    pub actor: String,
    /// The address it was done to, `*` for many.
    pub target: String,
    /// The port called, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dstport: Option<u16>,
    /// Start of its first record, epoch s.
    pub first: u32,
    /// End of its last record, epoch s.
    pub last: u32,
    /// From the first to the last, s.
    pub span_s: u32,
    /// How many records show it.
    pub records: u64,
    /// The variant: `vertical`, `syn_flood`, `jittered`, …
    pub method: String,
    /// How it was made: the parameters that were drawn.
    pub basis: String,
    /// How many sessions show it.
    pub sessions: u64,
    /// Too little evidence to blame a detector for missing it; see [`Truth::judge`].
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub weak: bool,
    /// Other threats under which it may rightly be told.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub also: Vec<String>,
    /// Addresses that took part without being the actor of a row: sources of something distributed, a gateway or proxy in
    /// between. They go to [`Labels::ambiguous`].
    #[serde(skip)]
    pub accessories: Vec<String>,
}

impl Truth {
    /// Fills in what follows from the counts. A conversation of less than a minute is one window of a flow log, a beacon of
    /// less than four check-ins has no rhythm (four is RITA's minimum too), and a scan of less than eight probes is none:
    /// such rows are weak. A flood or a scan of some seconds is not: it shows in one window.
    pub fn judge(&mut self) {
        self.span_s = self.last - self.first;
        self.weak = match self.threat.as_str() {
            "port_scan" => self.sessions < 8,
            "ddos" => false,
            "c2_beacon" if self.method != "channel" => self.span_s < 60 || self.sessions < 4,
            _ => self.span_s < 60,
        };
    }

    /// Takes a record of this row into account.
    pub fn count(&mut self, record: &FlowRecord) {
        self.first = if self.records == 0 { record.start.0 } else { self.first.min(record.start.0) };
        self.last = self.last.max(record.end.0);
        self.records += 1;
    }
}

/// Where the data comes from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Source {
    /// The generator.
    pub generator: String,
    /// Its seed.
    pub seed: u64,
}

/// The labels of one simulation.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Labels {
    /// Where the data comes from.
    pub source: Source,
    /// What it is, in a sentence.
    pub description: String,
    /// Start of the first and end of the last record, epoch s.
    pub time_range: (u32, u32),
    /// Between them, s.
    pub duration_s: u32,
    /// How many flow records.
    pub records: u64,
    /// How many lines that say NODATA or SKIPDATA instead.
    pub blind: u64,
    /// How many of our hosts.
    pub hosts: u64,
    /// What is malicious.
    pub truth: Vec<Truth>,
    /// Our hosts that did nothing wrong and to whom nothing was done: every alarm about one of them is false.
    pub benign_hosts: Vec<String>,
    /// Our hosts on which something malicious runs.
    pub infected_hosts: Vec<String>,
    /// Addresses that took part in something malicious without being to blame, or whose nature is open.
    pub ambiguous: Vec<String>,
    /// The blocks that are ours, for `--internal`.
    pub local_hosts: Vec<String>,
    /// Nothing is known of the nature of what is not in the truth.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub unlabelled: bool,
    /// What to know before quoting a figure.
    pub notes: String,
}
