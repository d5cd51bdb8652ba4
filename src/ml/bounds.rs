//! The bounds that join the scorers' p-values, ranked among those of this deployment's windows of the last week.
//!
//! Not among all that there ever were: in its first days a deployment's hosts have no habits yet and much is far from their
//! past, and what was usual then would stand above all that is rare later. In the second week of a simulated VPC a third of a
//! rate of one in a thousand was used up, where all windows counted. A week, since days of the week differ. Where there are
//! few hosts, as many days as it takes to say rare things.
//!
//! Counted by days of event time, so that a replay forgets what the live run forgot, and two shards that saw the same day count
//! it once.

use serde::{Deserialize, Serialize};

use super::agreement::Counts;
use crate::flow::EventTime;

/// Windows by the bound that joined their p-values, for a week.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Bounds {
    /// By the day that they begin with, in days since 1970, ascending; the last is under way.
    days: Vec<(u32, Counts)>,
}

impl Bounds {
    const DAYS: usize = 7;
    /// No entry ends with fewer windows, so that six that have ended and the one under way can say one in ten thousand.
    const LEAST: u64 = 3_000;

    /// The p-value of a bound among those before, which it then joins: the lesser of itself and its rank.
    pub(super) fn weigh(&mut self, window: EventTime, bound: f64) -> f64 {
        let evidence = -bound.log10();
        let (as_far, of) = self.days.iter().fold((0, 0), |(as_far, of), (_, counts)| {
            let (far, all) = counts.as_far(evidence);
            (as_far + far, of + all)
        });
        self.of(window.0 / 86_400).count(evidence);
        bound.min((as_far as f64 + 1.0) / (of as f64 + 1.0))
    }

    /// Where windows of a day are counted.
    fn of(&mut self, day: u32) -> &mut Counts {
        let ended = self.days.last().is_none_or(|(begun, counts)| day > *begun && counts.total() >= Self::LEAST);
        if ended {
            self.days.push((day, Counts::new()));
            self.forget();
        }
        &mut self.days.last_mut().expect("a day was just begun where there was none").1
    }

    fn forget(&mut self) {
        self.days.drain(..self.days.len().saturating_sub(Self::DAYS));
    }

    /// Takes over what was counted on another shard. Both may have counted the same windows of a day, see [`Counts::join`].
    pub(super) fn join(&mut self, other: Bounds) {
        for (day, theirs) in other.days {
            match self.days.binary_search_by_key(&day, |(day, _)| *day) {
                Ok(at) => self.days[at].1.join(&theirs),
                Err(at) => self.days.insert(at, (day, theirs)),
            }
        }
        self.forget();
    }

    /// Whether what was read makes sense.
    pub(super) fn is_sound(&self) -> bool {
        let ascending = self.days.windows(2).all(|pair| pair[0].0 < pair[1].0);
        ascending && self.days.len() <= Self::DAYS && self.days.iter().all(|(_, counts)| counts.is_sound())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::SeedableRng as _;

    use super::*;

    fn units(seed: u64) -> impl FnMut() -> f64 {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        move || ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// A moment of a day.
    fn on(day: u32) -> EventTime {
        EventTime(20_000 * 86_400 + day * 86_400 + 1_000)
    }

    /// Hears so many windows of a day, whose bounds use up a share of their rate; what they are worth.
    fn day(bounds: &mut Bounds, day: u32, windows: usize, share: f64) -> Vec<f64> {
        let mut unit = units(u64::from(day));
        (0..windows).map(|_| bounds.weigh(on(day), (unit() / share).min(1.0))).collect()
    }

    fn share(heard: &[f64], target: f64) -> f64 {
        heard.iter().filter(|p| **p <= target).count() as f64 / heard.len() as f64
    }

    #[test]
    fn what_is_used_up_to_half_and_in_full_is_both_as_rare_as_it_is_said() {
        // The two ends of what a bound can use up of its rate: `top3_z`'s share, and all of it.
        let mut bounds = Bounds::default();
        let mut unit = units(6);
        let mut heard: [Vec<f64>; 2] = Default::default();
        for number in 0..80_000 {
            let share = [0.6, 1.0][number % 2];
            heard[number % 2].push(bounds.weigh(on(0), (unit() / share).min(1.0)));
        }
        for heard in &heard {
            for target in [1e-1, 1e-2, 1e-3] {
                let realised = share(heard, target);
                assert!((target / 2.0..target * 2.0).contains(&realised), "{realised:e} for {target:e}");
            }
        }
    }

    #[test]
    fn what_was_usual_in_the_first_days_is_forgotten_in_a_week() {
        let mut bounds = Bounds::default();
        // Three days on which all of the rate is used up, and then days on which a fifth of it is.
        (0..3).for_each(|n| drop(day(&mut bounds, n, 10_000, 1.0)));
        let later: Vec<Vec<f64>> = (3..12).map(|n| day(&mut bounds, n, 10_000, 0.2)).collect();
        assert!(share(&later[0], 1e-2) < 0.5e-2, "the days before stand above it: {:e}", share(&later[0], 1e-2));
        for target in [1e-1, 1e-2] {
            let realised = share(&later[8], target);
            assert!((0.7 * target..1.3 * target).contains(&realised), "{realised:e} for {target:e}");
        }
    }

    #[test]
    fn a_few_hosts_are_remembered_for_as_long_as_it_takes_to_say_rare_things() {
        let mut bounds = Bounds::default();
        // Two hosts.
        (0..90).for_each(|n| drop(day(&mut bounds, n, 2 * 288, 1.0)));
        let windows: u64 = bounds.days.iter().map(|(_, counts)| counts.total()).sum();
        assert!((18_000..30_000).contains(&windows), "{windows}");
    }

    #[test]
    fn an_attack_of_hours_is_found_for_as_long_as_its_bound_finds_it() {
        let mut bounds = Bounds::default();
        day(&mut bounds, 0, 20_000, 1.0);
        assert!((0..36).all(|_| bounds.weigh(on(0), 9e-5) <= 9e-5));
    }

    #[test]
    fn what_two_shards_both_counted_counts_once_and_what_one_counted_is_kept() {
        let (mut one, mut other) = (Bounds::default(), Bounds::default());
        for n in 0..3 {
            day(&mut one, n, 4_000, 1.0);
            day(&mut other, n, 4_000, 1.0);
        }
        assert_eq!(one, other);
        let before = one.clone();
        one.join(other.clone());
        assert_eq!(one, before);
        day(&mut other, 3, 4_000, 1.0);
        one.join(other.clone());
        assert_eq!(one, other);
        let mut joined = before;
        (20..25).for_each(|n| drop(day(&mut joined, n, 4_000, 1.0)));
        let later = joined.clone();
        joined.join(other);
        assert!(joined.is_sound());
        assert_eq!(joined.days.iter().map(|(day, _)| day - 20_000).collect::<Vec<_>>(), [2, 3, 20, 21, 22, 23, 24]);
        assert_eq!(joined.days.last(), later.days.last());
    }

    #[test]
    fn what_makes_no_sense_is_not_sound() {
        let mut bounds = Bounds::default();
        (0..3).for_each(|n| drop(day(&mut bounds, n, 4_000, 1.0)));
        assert!(bounds.is_sound());
        let mut mixed = bounds.clone();
        mixed.days.swap(0, 1);
        let mut many = bounds.clone();
        (3..10).for_each(|n| many.days.push((20_000 + n, Counts::new())));
        assert!(!mixed.is_sound() && !many.is_sound());
    }

    proptest! {
        /// Whatever was heard before: what the bound finds is found.
        #[test]
        fn the_rank_never_hides_what_the_bound_found(
            before in proptest::collection::vec((0u32..20, 1e-5f64..1.0), 0..200), bound in 1e-5f64..1.0,
        ) {
            let mut bounds = Bounds::default();
            for (day, bound) in before {
                bounds.weigh(on(day), bound);
            }
            let p = bounds.weigh(on(20), bound);
            prop_assert!(p > 0.0 && p <= bound);
        }
    }
}
