//! The sentence a person reads first.

use super::{Case, spoken_span};

/// The sentence of the surest finding, and, where the episode is longer than that finding's window, how long it went on.
pub fn of(case: &Case<'_>) -> String {
    let sentence = case.account.headline().trim_end_matches('.').to_owned();
    let (first, last) = (case.account.first_seen, case.account.last_seen);
    let windows = case.account.distinct_windows();
    if windows > 1 && last.since(first) > 2 * case.account.window_seconds {
        return format!("{sentence}; over {} in all", spoken_span(first, last));
    }
    sentence
}
