//! A host that does what it always does, at a time when it never does it: nothing new in peers, ports or amounts, only in the
//! hour. Somebody else may be using it.
//!
//! `off_hours` runs a build runner's jobs at night, with its own forge, mirrors and storage; `off_phase` sends a database's
//! nightly dump in the afternoon. Days of habit must come before it: in the second half of the simulation where there is room.

use std::sync::Arc;

use super::Stage;
use crate::flow::protocol;
use crate::simulate::background::World;
use crate::simulate::habit::{Habit, Process, Rhythm, Shape, Timing};
use crate::simulate::random::Random;
use crate::simulate::session::Party;
use crate::simulate::vpc::Role;
use crate::simulate::wire::Wire;

/// A habit that ends.
struct Until {
    habit: Habit,
    end: u32,
}

impl Process for Until {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        self.habit.fire(wire).filter(|next| *next < self.end)
    }
}

/// Sets the stage for one variant.
pub fn plan(stage: &mut Stage<'_>, variant: &str) {
    let world = World::new(stage.seed);
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
