//! Seeded randomness, the same on every machine: xoshiro256++ with our own reductions, so that the numbers that are drawn are
//! part of models and simulations and not of a dependency.
//!
//! Simulations have an independent stream per purpose, so that adding an attack leaves the background as it was.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// A stream of random numbers, fixed by seed, purpose and index.
#[derive(Clone, Debug)]
pub struct Random(Xoshiro256PlusPlus);

impl Random {
    /// The stream of one purpose; equal arguments give equal streams.
    pub fn new(seed: u64, purpose: &str, index: u64) -> Random {
        let named = purpose.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)));
        Random(Xoshiro256PlusPlus::seed_from_u64(mix(named ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
    }

    /// The stream of a seed alone.
    pub fn seeded(seed: u64) -> Random {
        Random(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        unit_of(self.bits())
    }

    /// Uniform in `0..bound`; 0 when `bound` is 0. Multiply and shift (Lemire 2019): its bias of `bound`/2^64 is of no
    /// matter here.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// Uniform in `[low, high)`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// One of a list that is not empty.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// Puts a random one of `items[at..]` at `at`: a step of a Fisher-Yates shuffle.
    pub fn draw<T>(&mut self, items: &mut [T], at: usize) {
        let other = at + self.below(items.len() - at);
        items.swap(at, other);
    }

    /// Puts all of them in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        (0..items.len()).for_each(|at| self.draw(items, at));
    }

    /// Exponential with the given mean: the gap between independent events.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Standard normal (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Log-normal with the given median, `sigma` being the deviation of the logarithm: sizes and durations of sessions.
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    /// A Poisson count: exact by products below 30 (Knuth), the normal approximation above.
    pub fn poisson(&mut self, mean: f64) -> u32 {
        if mean > 30.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u32;
        }
        let floor = (-mean.max(0.0)).exp();
        let (mut count, mut product) = (0, self.unit());
        while product > floor {
            count += 1;
            product *= self.unit();
        }
        count
    }

    /// A client port as Linux chooses them (`ip_local_port_range` 32768 to 60999).
    pub fn client_port(&mut self) -> u16 {
        32_768 + self.below(28_232) as u16
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a good hash of 64 bits.
pub const fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// 64 random bits as a number in `[0, 1)`.
pub fn unit_of(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_fixed_by_seed_purpose_and_index() {
        let first = |seed, purpose, index| Random::new(seed, purpose, index).bits();
        assert_eq!(first(1, "web", 2), first(1, "web", 2));
        assert_ne!(first(1, "web", 2), first(2, "web", 2));
        assert_ne!(first(1, "web", 2), first(1, "wed", 2));
        assert_ne!(first(1, "web", 2), first(1, "web", 3));
    }

    #[test]
    fn samples_have_the_means_of_their_distributions() {
        let mut random = Random::new(7, "means", 0);
        let mut mean = |sample: &mut dyn FnMut(&mut Random) -> f64| {
            (0..20_000).map(|_| sample(&mut random)).sum::<f64>() / 20_000.0
        };
        assert!((mean(&mut |r| r.exponential(5.0)) - 5.0).abs() < 0.2);
        assert!(mean(&mut |r| r.normal()).abs() < 0.05);
        assert!((mean(&mut |r| f64::from(r.poisson(3.0))) - 3.0).abs() < 0.1);
        assert!((mean(&mut |r| f64::from(r.poisson(300.0))) - 300.0).abs() < 1.0);
        assert!((mean(&mut |r| r.below(10) as f64) - 4.5).abs() < 0.1);
    }
}
