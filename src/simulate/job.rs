//! Jobs that a host runs over and over by a clock of its own: every 25, 50 or 100 minutes, which no day is a multiple of.
//!
//! A table of a host's hours cannot know them: from one day to the next they come at other hours, and after some days at all of
//! them. Neither can a score of how much a window rose, since each run is as large as the last. What is regular about them is
//! the time since the run before, and the order of their legs.

use std::sync::Arc;

use super::background::World;
use super::habit::{Habit, Process, Rhythm, Shape, Timing};
use super::labels::TruthId;
use super::session::Party;
use super::vpc::{Role, Vpc};
use super::wire::Wire;
use crate::flow::protocol;
use crate::random::{Random, mix, unit_of};

/// One host's job; the same for the same seed and host.
#[derive(Clone, Debug)]
pub struct Job {
    seed: u64,
    host: u32,
    /// From the start of one run to that of the next, s.
    pub period: u32,
    /// The start of the first run, s.
    first: u32,
    /// How far a start strays from its beat, as a share of the period.
    stray: f64,
    legs: Vec<Leg>,
}

/// Part of a run: requests of one kind for some minutes.
#[derive(Clone, Debug)]
struct Leg {
    /// From the start of the run, s.
    after: u32,
    /// s
    lasts: u32,
    /// Between requests, s.
    gap: f64,
    burst: u32,
    sticky: u32,
    port: u16,
    servers: Arc<[Party]>,
    shape: Shape,
}

/// Least and greatest period, minutes.
const PERIOD: (f64, f64) = (30.0, 151.0);

impl Job {
    /// Roles that run jobs.
    pub const ROLES: [Role; 6] = [Role::Web, Role::App, Role::Container, Role::Batch, Role::Database, Role::Cache];

    /// Whether a host is one of the `share` of those with such a role that have a job.
    pub fn is_on(seed: u64, share: f64, vpc: &Vpc, host: u32) -> bool {
        let role = vpc.hosts[host as usize].role;
        Job::ROLES.contains(&role) && Random::new(seed, "has a job", u64::from(host)).chance(share)
    }

    /// The job of a host: an upload, a download, a round of calls to neighbours, or a fetch with an upload of the result.
    pub(super) fn of(seed: u64, vpc: &Vpc, world: &World, host: u32) -> Job {
        let mut random = Random::new(seed, "job", u64::from(host));
        let period = 60 * random.between(PERIOD.0, PERIOD.1) as u32;
        let first = random.below(period as usize) as u32;
        // Timers, timers under load, and loops that sleep.
        let stray = random.pick(&[0.0, 0.0, 0.01, 0.04]);
        let lasts = (random.between(150.0, 600.0)).min(f64::from(period) * 0.15) as u32;
        let gap = random.between(3.0, 15.0);
        let size = random.log_normal(1.0, 0.8);
        let leg = |servers: &Arc<[Party]>, port, shape| Leg {
            after: 0,
            lasts,
            gap,
            burst: 3,
            sticky: 3600,
            port,
            servers: servers.clone(),
            shape,
        };
        // What software sends of its own accord varies little from run to run.
        let out = |bytes: f64| Shape { out: (bytes * size, 0.2), back: (3_000.0, 0.2), seconds: (3.0, 0.4) };
        let back = |bytes: f64| Shape { out: (1_500.0, 0.2), back: (bytes * size, 0.2), seconds: (3.0, 0.4) };
        let upload = leg(&world.s3, 443, out(4e6));
        let download = leg(&world.mirrors, 443, back(6e6));
        let legs = match random.below(6) {
            0 | 1 => vec![upload],
            2 | 3 => vec![download],
            4 => {
                let neighbours = vpc.with_role(&[Role::App, Role::Container]);
                let servers: Arc<[Party]> = neighbours.into_iter().map(|host| vpc.party(host)).collect();
                vec![Leg { burst: 8, sticky: 2, ..leg(&servers, 8080, out(40e3)) }]
            }
            _ => {
                let pause = (random.between(0.08, 0.15) * f64::from(period)) as u32;
                vec![download, Leg { after: lasts + pause, ..upload }]
            }
        };
        Job { seed, host, period, first, stray, legs }
    }

    /// The second at which a run starts, the first being 0.
    pub fn start(&self, run: u32) -> u32 {
        let bits = mix(self.seed ^ u64::from(self.host) << 32 ^ u64::from(run));
        let stray = self.stray * f64::from(self.period) * unit_of(bits);
        self.first + run * self.period + stray as u32
    }

    /// How long a run is, s.
    pub fn lasts(&self) -> u32 {
        self.legs.iter().map(|leg| leg.after + leg.lasts).max().unwrap_or(0)
    }

    /// The processes that run it from beginning to end.
    pub fn processes(&self, vpc: &Vpc) -> Vec<(u32, Box<dyn Process>)> {
        let process = |at: usize| -> (u32, Box<dyn Process>) {
            let habit = self.habit(vpc, at, 0, 0);
            (self.start(0) + self.legs[at].after, Box::new(Beat { job: self.clone(), leg: at, habit, run: 0 }))
        };
        (0..self.legs.len()).map(process).collect()
    }

    /// How many legs a run has.
    pub fn legs(&self) -> usize {
        self.legs.len()
    }

    /// The process of one leg in a run that starts at any other time.
    pub fn once(&self, vpc: &Vpc, leg: usize, at: u32, truth: TruthId) -> (u32, Box<dyn Process>) {
        let from = at + self.legs[leg].after;
        let end = from + self.legs[leg].lasts;
        (from, Box::new(Until { habit: self.habit(vpc, leg, 1 + u64::from(at), truth), end }))
    }

    fn habit(&self, vpc: &Vpc, leg: usize, index: u64, truth: TruthId) -> Habit {
        let Leg { gap, burst, sticky, port, ref servers, shape, .. } = self.legs[leg];
        let purpose = mix(u64::from(self.host) << 8 ^ leg as u64) ^ index;
        Habit {
            random: Random::new(self.seed, "run of a job", purpose),
            client: vpc.party(self.host),
            servers: servers.clone(),
            sticky,
            port,
            protocol: protocol::TCP,
            timing: Timing::Every { seconds: gap, jitter: 0.3 },
            rhythm: Rhythm::Flat,
            shape,
            burst,
            silent: 0.001,
            truth,
        }
    }
}

/// A leg of a job, run after run.
struct Beat {
    job: Job,
    leg: usize,
    habit: Habit,
    run: u32,
}

impl Process for Beat {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        let Leg { after, lasts, .. } = self.job.legs[self.leg];
        let next = self.habit.fire(wire)?;
        if next < self.job.start(self.run) + after + lasts {
            return Some(next);
        }
        self.run += 1;
        Some(self.job.start(self.run) + after)
    }
}

/// A habit that ends.
pub struct Until {
    /// What is done.
    pub habit: Habit,
    /// The second at which it is over.
    pub end: u32,
}

impl Process for Until {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        self.habit.fire(wire).filter(|next| *next < self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_keep_their_beat_and_leave_room_between_them() {
        let vpc = Vpc::new(4, 60, 86_400, 0.0);
        let world = World::new(4);
        let mut periods = std::collections::BTreeSet::new();
        for host in vpc.with_role(&Job::ROLES) {
            let job = Job::of(4, &vpc, &world, host);
            periods.insert(job.period);
            for run in 0..20 {
                let gap = f64::from(job.start(run + 1) - job.start(run));
                assert!((gap / f64::from(job.period) - 1.0).abs() < 0.05, "{gap} s of {}", job.period);
            }
            assert!(2 * job.lasts() < job.period, "{} s of {}", job.lasts(), job.period);
        }
        assert!(periods.len() > 20, "{periods:?}");
    }

    #[test]
    fn the_share_of_hosts_is_that_of_those_with_such_roles() {
        let vpc = Vpc::new(4, 2_000, 3_600, 0.0);
        let all = vpc.with_role(&Job::ROLES).len() as f64;
        let with = (0..2_000).filter(|host| Job::is_on(4, 0.3, &vpc, *host)).count() as f64;
        assert!((with / all - 0.3).abs() < 0.05, "{with} of {all}");
        assert!((0..2_000).all(|host| !Job::is_on(4, 0.0, &vpc, host)));
    }
}
