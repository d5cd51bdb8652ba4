//! The sentence a person reads first.

use super::{Case, spoken_span};

/// The sentence of the surest finding, and, where the episode is a good deal longer than what that finding spans, how long
/// it went on.
pub fn of(case: &Case<'_>) -> String {
    let (sentence, seconds) = case.account.headline();
    let sentence = sentence.trim_end_matches('.').to_owned();
    let (first, last) = (case.account.first_seen, case.account.last_seen);
    if last.since(first) / 3 * 2 > seconds.max(case.account.window_seconds) {
        return format!("{sentence}; over {} in all", spoken_span(first, last));
    }
    sentence
}

#[cfg(test)]
mod tests;
