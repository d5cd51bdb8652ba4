//! Circuit breaker: stops asking an endpoint that fails or dawdles, and finds out with one probe when it is well again.
//!
//! | state | calls | leaves when |
//! |---|---|---|
//! | closed | admitted | failures or slow calls reach their rate over the window, once there were enough calls: open |
//! | open | rejected | its pause is over: half-open |
//! | half-open | one probe admitted, others rejected | the probe succeeds in time: closed; else: open, with twice the pause |
//!
//! Pure: time is passed in, as the distance from any fixed moment. The crates that exist either count failures in a row
//! (half of the calls failing never opens them), or know no slow calls, or let a crowd through when half-open.

use std::collections::VecDeque;
use std::time::Duration;

/// When to stop and when to try again.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Outcomes older than this do not count.
    pub window: Duration,
    /// At most this many of the latest outcomes count.
    pub calls_max: usize,
    /// Below this many outcomes in the window nothing is concluded.
    pub calls_min: usize,
    /// Share of failures, above 0 and up to 1, that opens.
    pub failure_rate: f64,
    /// A call that took longer is slow.
    pub slow_call: Duration,
    /// Share of slow calls, above 0 and up to 1, that opens.
    pub slow_rate: f64,
    /// First pause.
    pub pause: Duration,
    /// Longest pause.
    pub pause_max: Duration,
}

/// What a breaker does with calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, utoipa::ToSchema)]
#[schema(as = BreakerState)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Admits.
    Closed,
    /// Rejects.
    Open,
    /// Admits one probe.
    HalfOpen,
}

/// How a call went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was answered as it should be.
    Answered,
    /// It was not, and the endpoint is to blame.
    Failed,
    /// It tells nothing about the endpoint: given up by the caller, or the caller's own mistake.
    Void,
}

/// The right to make one call; hand it back to [`Breaker::settle`]. A probe that is never handed back counts as failed
/// after the pause.
#[derive(Debug)]
#[must_use = "settle it when the call is over"]
pub struct Permit {
    generation: u64,
    started: Duration,
}

impl Permit {
    /// When the call was admitted.
    pub fn started(&self) -> Duration {
        self.started
    }
}

/// Transitions and rejections so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, utoipa::ToSchema)]
#[schema(as = BreakerCounts)]
pub struct Life {
    /// Times it opened, from closed or half-open.
    pub opened: u64,
    /// Times it became half-open.
    pub half_opened: u64,
    /// Times it closed again.
    pub closed: u64,
    /// Calls rejected.
    pub rejected: u64,
}

/// The breaker of one endpoint.
#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    phase: Phase,
    /// Grows with each transition: what was admitted before it tells nothing about after.
    generation: u64,
    calls: VecDeque<Call>,
    pause: Duration,
    life: Life,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    Open { until: Duration },
    HalfOpen { probe: Option<Duration> },
}

#[derive(Clone, Copy, Debug)]
struct Call {
    ended: Duration,
    failed: bool,
    slow: bool,
}

impl Breaker {
    /// A closed breaker that has seen nothing.
    pub fn new(settings: Settings) -> Breaker {
        let pause = settings.pause;
        Breaker { settings, phase: Phase::Closed, generation: 0, calls: VecDeque::new(), pause, life: Life::default() }
    }

    /// Goes on under other settings; the state, and a pause that has begun, stay.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// What it does with a call at `now`.
    pub fn state(&mut self, now: Duration) -> State {
        self.turn(now);
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Transitions so far.
    pub fn life(&self) -> Life {
        self.life
    }

    /// A permit for one call, or `None` when it is rejected.
    pub fn admit(&mut self, now: Duration) -> Option<Permit> {
        self.turn(now);
        match &mut self.phase {
            Phase::Closed => {}
            Phase::HalfOpen { probe: probe @ None } => *probe = Some(now),
            Phase::Open { .. } | Phase::HalfOpen { .. } => {
                self.life.rejected += 1;
                return None;
            }
        }
        Some(Permit { generation: self.generation, started: now })
    }

    /// Takes in how a call went.
    pub fn settle(&mut self, permit: Permit, outcome: Outcome, now: Duration) {
        self.turn(now);
        if permit.generation != self.generation {
            return;
        }
        let slow = now.saturating_sub(permit.started) > self.settings.slow_call;
        match (self.phase, outcome) {
            (Phase::Closed, Outcome::Void) | (Phase::Open { .. }, _) => {}
            (Phase::Closed, _) => {
                self.calls.push_back(Call { ended: now, failed: outcome == Outcome::Failed, slow });
                if self.too_bad(now) {
                    self.open(now);
                }
            }
            (Phase::HalfOpen { .. }, Outcome::Void) => self.phase = Phase::HalfOpen { probe: None },
            (Phase::HalfOpen { .. }, Outcome::Answered) if !slow => {
                self.enter(Phase::Closed);
                self.pause = self.settings.pause;
                self.life.closed += 1;
            }
            (Phase::HalfOpen { .. }, _) => self.reopen(now),
        }
    }

    /// Moves on what only needs time.
    fn turn(&mut self, now: Duration) {
        match self.phase {
            Phase::Open { until } if now >= until => {
                self.enter(Phase::HalfOpen { probe: None });
                self.life.half_opened += 1;
            }
            Phase::HalfOpen { probe: Some(since) } if now.saturating_sub(since) > self.pause => self.reopen(now),
            _ => {}
        }
    }

    fn too_bad(&mut self, now: Duration) -> bool {
        let Settings { window, calls_max, .. } = self.settings;
        while self.calls.len() > calls_max || self.calls.front().is_some_and(|c| now.saturating_sub(c.ended) > window) {
            self.calls.pop_front();
        }
        let count = self.calls.len();
        if count == 0 || count < self.settings.calls_min {
            return false;
        }
        let share = |bad: fn(&Call) -> bool| self.calls.iter().filter(|c| bad(c)).count() as f64 / count as f64;
        share(|c| c.failed) >= self.settings.failure_rate || share(|c| c.slow) >= self.settings.slow_rate
    }

    fn reopen(&mut self, now: Duration) {
        self.pause = (self.pause * 2).min(self.settings.pause_max.max(self.settings.pause));
        self.open(now);
    }

    fn open(&mut self, now: Duration) {
        self.enter(Phase::Open { until: now.saturating_add(self.pause) });
        self.life.opened += 1;
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation += 1;
        self.calls.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn breaker() -> Breaker {
        Breaker::new(Settings {
            window: seconds(30),
            calls_max: 100,
            calls_min: 10,
            failure_rate: 0.5,
            slow_call: Duration::from_millis(300),
            slow_rate: 0.8,
            pause: seconds(5),
            pause_max: seconds(60),
        })
    }

    /// Makes `calls` calls that take `took` and end as `outcome` says, one a millisecond.
    fn call(breaker: &mut Breaker, calls: u64, start: Duration, took: Duration, outcome: impl Fn(u64) -> Outcome) {
        for i in 0..calls {
            let at = start + Duration::from_millis(i);
            if let Some(permit) = breaker.admit(at) {
                breaker.settle(permit, outcome(i), at + took);
            }
        }
    }

    #[test]
    fn half_of_the_calls_failing_opens_it() {
        let mut breaker = breaker();
        call(&mut breaker, 10, seconds(1), Duration::ZERO, |i| [Outcome::Failed, Outcome::Answered][i as usize % 2]);
        assert_eq!(breaker.state(seconds(2)), State::Open);
        assert!(breaker.admit(seconds(2)).is_none());
        assert_eq!(breaker.life(), Life { opened: 1, rejected: 1, ..Life::default() });
    }

    #[test]
    fn a_third_failing_does_not() {
        let mut breaker = breaker();
        call(&mut breaker, 99, seconds(1), Duration::ZERO, |i| {
            [Outcome::Answered, Outcome::Answered, Outcome::Failed][i as usize % 3]
        });
        assert_eq!(breaker.state(seconds(2)), State::Closed);
    }

    #[test]
    fn slow_answers_open_it_though_they_are_right() {
        let mut breaker = breaker();
        call(&mut breaker, 10, seconds(1), Duration::from_millis(301), |_| Outcome::Answered);
        assert_eq!(breaker.state(seconds(2)), State::Open);
    }

    #[test]
    fn few_calls_and_the_callers_own_mistakes_conclude_nothing() {
        let mut breaker = breaker();
        call(&mut breaker, 9, seconds(1), Duration::ZERO, |_| Outcome::Failed);
        call(&mut breaker, 500, seconds(2), Duration::ZERO, |_| Outcome::Void);
        assert_eq!(breaker.state(seconds(3)), State::Closed);
    }

    #[test]
    fn failures_before_the_window_are_forgotten() {
        let mut breaker = breaker();
        call(&mut breaker, 9, seconds(1), Duration::ZERO, |_| Outcome::Failed);
        call(&mut breaker, 9, seconds(60), Duration::ZERO, |_| Outcome::Failed);
        assert_eq!(breaker.state(seconds(61)), State::Closed);
    }

    #[test]
    fn one_good_probe_closes_it() {
        let mut breaker = breaker();
        call(&mut breaker, 10, seconds(0), Duration::ZERO, |_| Outcome::Failed);
        assert!(breaker.admit(seconds(4)).is_none());
        let probe = breaker.admit(seconds(6)).unwrap();
        assert!(breaker.admit(seconds(6)).is_none(), "a second call beside the probe");
        breaker.settle(probe, Outcome::Answered, seconds(6));
        assert_eq!(breaker.state(seconds(6)), State::Closed);
        assert_eq!(breaker.life(), Life { opened: 1, half_opened: 1, closed: 1, rejected: 2 });
    }

    #[test]
    fn a_bad_or_lost_probe_doubles_the_pause() {
        let mut breaker = breaker();
        call(&mut breaker, 10, seconds(0), Duration::ZERO, |_| Outcome::Failed);
        let probe = breaker.admit(seconds(6)).unwrap();
        breaker.settle(probe, Outcome::Failed, seconds(6));
        assert_eq!(breaker.state(seconds(15)), State::Open);
        assert_eq!(breaker.state(seconds(16)), State::HalfOpen);
        let lost = breaker.admit(seconds(16)).unwrap();
        assert_eq!(breaker.state(seconds(27)), State::Open, "the probe was not settled within its pause");
        breaker.settle(lost, Outcome::Answered, seconds(28));
        assert_eq!(breaker.state(seconds(28)), State::Open, "too late to count");
    }

    #[derive(Clone, Debug)]
    enum Act {
        Admit,
        Settle(usize, u8),
        Wait(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            3 => Just(Act::Admit),
            3 => (0usize..8, 0u8..3).prop_map(|(which, outcome)| Act::Settle(which, outcome)),
            1 => (1u64..9_000).prop_map(Act::Wait),
        ];
        proptest::collection::vec(act, 0..400)
    }

    proptest! {
        /// Whatever calls and times come: open admits nobody, half-open at most one probe, and it never stays shut.
        #[test]
        fn half_open_admits_one_probe_and_open_none(acts in acts()) {
            let mut breaker = breaker();
            let mut now = Duration::ZERO;
            let mut permits: Vec<Permit> = Vec::new();
            let mut probes = 0;
            let mut life = breaker.life();
            for act in acts {
                match act {
                    Act::Wait(ms) => now += Duration::from_millis(ms),
                    Act::Admit => {
                        let state = breaker.state(now);
                        if breaker.life() != life {
                            probes = 0;
                        }
                        let permit = breaker.admit(now);
                        match state {
                            State::Closed => prop_assert!(permit.is_some()),
                            State::Open => prop_assert!(permit.is_none()),
                            State::HalfOpen => {
                                probes += usize::from(permit.is_some());
                                prop_assert!(probes <= 1);
                            }
                        }
                        life = breaker.life();
                        permits.extend(permit);
                    }
                    Act::Settle(which, outcome) if !permits.is_empty() => {
                        let permit = permits.swap_remove(which % permits.len());
                        let outcome = [Outcome::Answered, Outcome::Failed, Outcome::Void][usize::from(outcome)];
                        let probing = matches!(breaker.phase, Phase::HalfOpen { probe: Some(_) });
                        breaker.settle(permit, outcome, now);
                        if probing && matches!(breaker.phase, Phase::HalfOpen { probe: None }) {
                            probes = 0; // the place of a void probe is free again
                        }
                    }
                    Act::Settle(..) => {}
                }
            }
            now += seconds(121);
            breaker.state(now); // an unsettled probe may have to expire first
            now += seconds(61);
            prop_assert!(breaker.state(now) != State::Open);
        }
    }
}
