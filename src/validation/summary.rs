//! The sentence a person reads first.

use super::{Case, spoken_span};
use crate::finding::{self, Alternative};

/// The sentence of the surest finding, what else its evidence allows, and, where the episode is a good deal longer than what that finding spans, how long
/// it went on.
pub fn of(case: &Case<'_>) -> String {
    let (sentence, seconds) = case.account.headline();
    let number = |name: &str| match name {
        "targets" => Some(f64::from(case.account.target_count())),
        _ => case.account.number(name).map(|evidence| evidence.value),
    };
    let mut sentence = finding::fill(sentence.trim_end_matches('.'), number);
    let alternatives = case.account.alternatives();
    if !alternatives.is_empty() {
        sentence += &format!("; the same evidence allows {}", Alternative::list(alternatives));
    }
    let (first, last) = (case.account.first_seen, case.account.last_seen);
    if last.since(first) / 3 * 2 > seconds.max(case.account.window_seconds) {
        return format!("{sentence}; over {} in all", spoken_span(first, last));
    }
    sentence
}

#[cfg(test)]
mod tests;
