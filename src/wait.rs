//! Waiting: durations of the settings as the runtime takes them, and the pause between attempts that fail in a row.

use std::time::Duration;

use jiff::SignedDuration;

/// A duration of the settings as the runtime takes it; what is negative counts as zero.
pub fn positive(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or(Duration::ZERO)
}

/// The pause before another attempt, after so many pauses before it: `first`, and each twice as long as the one before, up
/// to `most`, or to `first` where that is longer.
pub fn backoff(first: Duration, most: Duration, pauses: u32) -> Duration {
    first.saturating_mul(1 << pauses.min(16)).min(most.max(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_however_many_there_were() {
        let pauses = |first: u64, most: u64| -> Vec<u128> {
            let (first, most) = (Duration::from_millis(first), Duration::from_millis(most));
            [0, 1, 2, 3, u32::MAX].map(|pauses| backoff(first, most, pauses).as_millis()).to_vec()
        };
        assert_eq!(pauses(50, 300), [50, 100, 200, 300, 300]);
        assert_eq!(pauses(50, 10), [50; 5], "none is shorter than the first");
        assert_eq!(backoff(Duration::MAX, Duration::MAX, 9), Duration::MAX);
    }

    #[test]
    fn a_negative_duration_is_no_wait() {
        assert_eq!(positive(SignedDuration::from_secs(-1)), Duration::ZERO);
    }
}
