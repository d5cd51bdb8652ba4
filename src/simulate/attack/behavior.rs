//! A host that does what it always does, at a time when it never does it: nothing new in peers, ports or amounts, only in the
//! hour. Somebody else may be using it.
//!
//! `off_hours` runs a build runner's jobs at night, with its own forge, mirrors and storage; `off_phase` sends a database's
//! nightly dump in the afternoon; `off_beat` runs a host's recurring [`Job`] between two of its beats. Days of habit must come
//! before it: in the second half of the simulation where there is room.

use std::sync::Arc;

use super::Stage;
use crate::flow::protocol;
use crate::random::Random;
use crate::simulate::background::World;
use crate::simulate::habit::{Habit, Rhythm, Shape, Timing};
use crate::simulate::job::{Job, Until};
use crate::simulate::session::Party;
use crate::simulate::vpc::Role;

/// Sets the stage for one variant.
pub fn plan(stage: &mut Stage<'_>, variant: &str) {
    let world = World::new(stage.seed);
    if variant == "off_beat" {
        return off_beat(stage, &world);
    }
    let (role, hours) =
        if variant == "off_hours" { (Role::Runner, (22.0, 28.0)) } else { (Role::Database, (12.0, 20.0)) };
    let host = stage.host(&[role]);
    let client = stage.wire.vpc.party(host);
    let seconds = stage.random.between(2_400.0, 4_800.0);
    let from = out_of_hours(stage, hours, seconds);
    let hour = (stage.wire.origin().plus(from).0 % 86_400) / 3600;
    let basis = format!("simulated: its own work, at {hour} o'clock for {:.0} min", seconds / 60.0);
    let truth = stage.state("behavior", variant, client, None, None, basis);
    let level = f64::from(stage.intensity.of(1u8, 2, 4));
    let end = from + seconds as u32;
    let mut repeat = |servers: &Arc<[Party]>, sticky, burst, timing, shape| {
        let random = Random::new(stage.random.bits(), "behavior", 0);
        let habit = Habit {
            random,
            client,
            servers: servers.clone(),
            sticky,
            port: 443,
            protocol: protocol::TCP,
            timing,
            rhythm: Rhythm::Flat,
            shape,
            burst,
            silent: 0.001,
            truth,
        };
        stage.starting.push((from, Box::new(Until { habit, end })));
    };
    // Sizes and servers are those of the background.
    let shape = |out: (f64, f64), back: (f64, f64), seconds| Shape { out, back, seconds: (seconds, 0.7) };
    if variant == "off_hours" {
        let jobs = Timing::Poisson { per_second: level / 250.0 };
        repeat(&world.forges, 30, 12, jobs, shape((4_000.0, 0.4), (3e6, 1.2), 5.0));
        repeat(&world.mirrors, 2, 60, jobs, shape((900.0, 0.4), (400_000.0, 1.5), 1.5));
        repeat(&world.s3, 9, 4, jobs, shape((20e6, 1.0), (2_000.0, 0.8), 6.0));
    } else {
        let dumps = Timing::Every { seconds: 600.0 / level, jitter: 0.3 };
        repeat(&world.s3, 3600, 4, dumps, shape((2e9, 0.5), (60_000.0, 0.3), 400.0));
    }
}

/// Runs of a host's job between two of its beats, in the second half of the simulation: one, four or eight, with at least three
/// usual ones from one to the next. Each leg of each is a row of the truth.
fn off_beat(stage: &mut Stage<'_>, world: &World) {
    let (seed, host) = (stage.seed, stage.host_with_job());
    let vpc = &stage.wire.vpc;
    let job = Job::of(seed, vpc, world, host);
    let (client, whole) = (vpc.party(host), stage.wire.seconds());
    if !Job::is_on(seed, stage.jobs, vpc, host) {
        stage.starting.extend(job.processes(vpc));
    }
    let mut run = (0..).find(|run| job.start(*run) >= whole / 2).unwrap_or(0);
    for _ in 0..stage.intensity.of(1, 4, 8) {
        // In the middle of what is left between two runs.
        let idle = f64::from(job.period.saturating_sub(2 * job.lasts()));
        let at = job.start(run) + job.lasts() + (idle * stage.random.between(0.3, 0.7)) as u32;
        if at + job.lasts() >= whole {
            break;
        }
        for leg in 0..job.legs() {
            let basis = format!("simulated: its own job of every {} min, between two runs", job.period / 60);
            let truth = stage.state("behavior", "off_beat", client, None, None, basis);
            let once = job.once(&stage.wire.vpc, leg, at, truth);
            stage.starting.push(once);
        }
        run += 4 + stage.random.below(4) as u32;
    }
}

/// A second at which the hour of day lies within `hours` (which may go past midnight): after half of the simulation where there
/// is such an hour, else any moment.
fn out_of_hours(stage: &mut Stage<'_>, hours: (f64, f64), seconds: f64) -> u32 {
    let (origin, whole) = (stage.wire.origin().0, stage.wire.seconds());
    let hour = stage.random.between(hours.0, hours.1);
    let moment = (hour * 3600.0) as u32 % 86_400;
    let first = (moment + 86_400 - origin % 86_400) % 86_400;
    let fits: Vec<u32> =
        (0..).map(|day| first + day * 86_400).take_while(|at| f64::from(*at) + seconds < f64::from(whole)).collect();
    let late: Vec<u32> = fits.iter().copied().filter(|at| *at >= whole / 2).collect();
    match (late.is_empty(), fits.is_empty()) {
        (false, _) => stage.random.pick(&late),
        (true, false) => stage.random.pick(&fits),
        (true, true) => stage.moment(seconds),
    }
}
