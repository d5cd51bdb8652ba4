//! A detector's judgement before it becomes a finding: kept, so that "why did this not alert?" has an answer.

use crate::finding::{Evidence, Merge};

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

    /// Takes back what was passed, where the host holds so many sessions of the kind at once that it is a peer among peers.
    pub fn refuse_peers(&mut self, held: usize, peers: usize) {
        self.passed &= held < peers;
        self.evidence.push(Evidence::judged("sessions_held", held as f64, peers as f64, "addresses", Merge::Latest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_number_holds_at_its_threshold_and_above() {
        let judged = |name, value| Evidence::judged(name, value, 2.0, "things", Merge::Max);
        let told = Evidence::told("told", 9.0, "things", Merge::Max);
        let evidence = vec![judged("below", 1.9), judged("at", 2.0), judged("above", 2.1), told];
        let judgement = Judgement { method: String::new(), passed: true, evidence, ratio: 1.0 };
        let held = ["below", "at", "above", "told", "other"].map(|name| judgement.holds(name));
        assert_eq!(held, [false, true, true, false, false]);
    }

    #[test]
    fn one_of_many_sessions_of_the_kind_is_no_news() {
        let judged = |held| {
            let mut judgement = Judgement { method: String::new(), passed: true, evidence: Vec::new(), ratio: 1.0 };
            judgement.refuse_peers(held, 5);
            (judgement.passed, judgement.evidence[0].value, judgement.evidence[0].threshold)
        };
        assert_eq!(judged(4), (true, 4.0, Some(5.0)));
        assert_eq!(judged(5), (false, 5.0, Some(5.0)));
    }
}
