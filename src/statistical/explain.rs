//! A detector's judgement before it becomes a finding: kept, so that "why did this not alert?" has an answer.

use crate::finding::Evidence;

/// What a detector thought.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The method that came closest, or passed.
    pub method: String,
    /// Whether a finding follows.
    pub passed: bool,
    /// The numbers, each beside its threshold.
    pub evidence: Vec<Evidence>,
    /// How far the leading number is from its threshold; 1 is at it.
    pub ratio: f64,
}

impl Judgement {
    /// Whether a number is at its threshold or above.
    pub fn holds(&self, name: &str) -> bool {
        self.evidence.iter().any(|e| e.name == name && e.threshold.is_some_and(|threshold| e.value >= threshold))
    }
}
