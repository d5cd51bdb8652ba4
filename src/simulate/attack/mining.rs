//! Working for a mining pool: MITRE ATT&CK T1496.
//!
//! Stratum (JSON lines over TCP): log-in and subscription, then the pool pushes a job of 200 to 1,200 bytes every 10 to
//! 90 s, the miner submits a share of 150 to 250 bytes every few to 120 s as its luck and the pool's difficulty have it, and
//! each share gets a short answer. Xmrig sends a keep-alive after 60 s of silence.

use super::Stage;
use super::beacon::Once;
use crate::flow::protocol;
use crate::simulate::session::{Millis, Outcome, Session, Stream, Talk, Volume, message, tcp};

/// Sets the stage for one variant.
pub fn plan(stage: &mut Stage<'_>, variant: &str) {
    let level = stage.intensity;
    let (host, pool) = (stage.victim(), stage.outside());
    let whole = f64::from(stage.wire.seconds());
    let random = &mut stage.random;
    let port = match variant {
        "odd_port" => random.pick(&[80, 8080, 9050, 2222, 20_580, 31_337, 53]),
        "tls" => random.pick(&[443, 443, 14_433, 9_000]),
        _ => random.pick(&[3333, 4444, 5555, 7777, 14_444, 45_700, 9999]),
    };
    let seconds = if variant == "short" { random.between(300.0, 1_200.0) } else { whole * random.between(0.5, 0.9) };
    let job_every = random.between(12.0, 90.0);
    let share_every = random.log_normal(level.of(70.0, 25.0, 8.0), 0.4).clamp(2.0, 240.0);
    let tls = if variant == "tls" { 29 } else { 0 };
    let (job, share) = (random.between(200.0, 1_200.0) as u64 + tls, random.between(150.0, 250.0) as u64 + tls);
    let only = |v: Volume, ack: Volume| (ack, v);
    let (ack, push) = only(message(0, job).1, Volume::of(1, 52));
    let jobs = Stream {
        every: (job_every * 1000.0) as Millis,
        offset: 3_000,
        jitter: random.between(0.3, 1.0) as f32,
        presence: 0.97,
        out: ack,
        back: push,
        spread: 0.08,
    };
    let (out, back) = message(share, 60 + tls);
    let shares = Stream {
        every: (share_every * 1000.0) as Millis,
        offset: 8_000,
        jitter: 1.0,
        presence: random.between(0.55, 0.95) as f32,
        out,
        back,
        spread: 0.05,
    };
    let (out, back) = message(80 + tls, 70 + tls);
    let alive = Stream { every: 60_000, offset: 60_000, jitter: 0.2, presence: 0.4, out, back, spread: 0.02 };
    let greeting = if variant == "tls" { tcp(900, 4_200) } else { tcp(420, 900) };
    let from = stage.moment(seconds);
    let basis = format!(
        "simulated Stratum session: a job every {job_every:.0} s, a share every {share_every:.0} s, for {seconds:.0} s"
    );
    let truth = stage.state("crypto_mining", variant, host, Some(pool), Some(port), basis);
    // Pools close connections now and then; the miner comes back with a new port.
    let pieces = if variant == "short" { 1 } else { 1 + stage.random.below(3) as u32 };
    let length = seconds / f64::from(pieces);
    for piece in 0..pieces {
        let at = from + (f64::from(piece) * length) as u32;
        let session = Session {
            client: host,
            server: pool,
            client_port: stage.random.client_port(),
            server_port: port,
            protocol: protocol::TCP,
            start: Millis::from(at) * 1000 + stage.random.below(900) as Millis,
            length: ((length - stage.random.between(1.0, 12.0)) * 1000.0) as Millis,
            talk: Talk::Streams { greeting, streams: [jobs, shares, alive].into() },
            outcome: Outcome::Answered,
            truth,
            seed: stage.random.bits(),
        };
        stage.starting.push((at, Box::new(Once(Some(session)))));
    }
}
