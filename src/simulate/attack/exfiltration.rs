//! Sending data away: MITRE ATT&CK T1048, T1041.
//!
//! Tens of gigabytes over TLS or SSH in one go (rclone, scp), at a rate that stays below what is noticed for a day, or over several
//! servers at once. What comes back are acknowledgements.

use super::Stage;
use super::beacon::Once;
use crate::flow::protocol;
use crate::simulate::session::{Millis, Outcome, Session, Talk, tcp};

/// Sets the stage for one variant.
pub fn plan(stage: &mut Stage<'_>, variant: &str) {
    let level = stage.intensity;
    let host = stage.victim();
    let whole = f64::from(stage.wire.seconds());
    let random = &mut stage.random;
    let bytes = random.log_normal(level.of(20e9, 50e9, 200e9), 0.3);
    let seconds = match variant {
        "slow" => whole * random.between(0.5, 0.8),
        _ => random.between(600.0, 2_400.0).min(whole * 0.6),
    };
    let places = if variant == "spread" { 3 + random.below(3) as u32 } else { 1 };
    let port = random.pick(&[443, 443, 22, 8443]);
    let from = stage.moment(seconds);
    for place in 0..places {
        let to = stage.outside();
        let part = bytes / f64::from(places);
        let basis = format!("simulated upload: {:.1} GB in {seconds:.0} s", part / 1e9);
        let truth = stage.state("exfiltration", variant, host, Some(to), Some(port), basis);
        let (out, back) = tcp(part as u64, (part / 2_000.0) as u64);
        let at = from + place;
        let session = Session {
            client: host,
            server: to,
            client_port: stage.random.client_port(),
            server_port: port,
            protocol: protocol::TCP,
            start: Millis::from(at) * 1000 + stage.random.below(900) as Millis,
            length: (seconds * 1000.0) as Millis,
            talk: Talk::Brief { out, back },
            outcome: Outcome::Answered,
            truth,
            seed: stage.random.bits(),
        };
        stage.starting.push((at, Box::new(Once(Some(session)))));
    }
}
