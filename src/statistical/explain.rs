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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Merge;

    #[test]
    fn a_number_holds_at_its_threshold_and_above() {
        let judged = |name, value| Evidence::judged(name, value, 2.0, "things", Merge::Max);
        let told = Evidence::told("told", 9.0, "things", Merge::Max);
        let evidence = vec![judged("below", 1.9), judged("at", 2.0), judged("above", 2.1), told];
        let judgement = Judgement { method: String::new(), passed: true, evidence, ratio: 1.0 };
        let held = ["below", "at", "above", "told", "other"].map(|name| judgement.holds(name));
        assert_eq!(held, [false, true, true, false, false]);
    }
}
