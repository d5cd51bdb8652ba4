//! Runs the sequence model over the windows of many hosts, for `tests/parity/run.py`.
//!
//! `lstm_steps WEIGHTS HOSTS < windows > forecasts`: little-endian f32, by step and host ten inputs in and sixteen outputs out
//! (means, then log-variances). The time of a host's step goes to standard error, in ns: the best of several passes.

use std::io::{Read as _, Write as _};
use std::time::Instant;

use anyhow::Context as _;
use flowvigil::ml::lstm::{INPUTS, Lstm, State};

const PASSES: usize = 7;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(weights), Some(hosts)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: lstm_steps WEIGHTS HOSTS")
    };
    let hosts: usize = hosts.parse().context("read the number of hosts")?;
    let lstm = Lstm::from_bytes(&std::fs::read(&weights).with_context(|| format!("read {weights}"))?)?;
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let numbers: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let (windows, _) = numbers.as_chunks::<INPUTS>();
    anyhow::ensure!(hosts > 0 && windows.len().is_multiple_of(hosts), "no whole number of steps");
    let mut best = f64::INFINITY;
    let mut out = Vec::new();
    for _ in 0..PASSES {
        out.clear();
        let mut states = vec![State::default(); hosts];
        let began = Instant::now();
        for step in windows.chunks(hosts) {
            for (state, window) in states.iter_mut().zip(step) {
                out.push(lstm.forecast(state, window));
            }
        }
        best = best.min(began.elapsed().as_nanos() as f64 / windows.len() as f64);
    }
    eprintln!("{best}");
    let flat = out.iter().flat_map(|forecast| forecast.mean.into_iter().chain(forecast.log_variance));
    let bytes: Vec<u8> = flat.flat_map(f32::to_le_bytes).collect();
    std::io::stdout().write_all(&bytes)?;
    Ok(())
}
