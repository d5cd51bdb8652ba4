//! Fits a forest to the rows on standard input and prints one score a line, for `tests/parity/run.py`.
//!
//! `forest_scores TREES SAMPLE SEED < rows.csv`: rows of comma-separated numbers, no header. The times of fitting and
//! scoring go to standard error, in s and in ns a row.

use std::io::Read as _;
use std::time::Instant;

use anyhow::Context as _;
use flowvigil::ml::forest::{Forest, Growth};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<u64> =
        std::env::args().skip(1).map(|a| a.parse().context("read an argument")).collect::<Result<_, _>>()?;
    let &[trees, sample, seed] = arguments.as_slice() else { anyhow::bail!("usage: forest_scores TREES SAMPLE SEED") };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut width = 0;
    let mut rows = Vec::new();
    for line in text.lines() {
        let before = rows.len();
        for field in line.split(',') {
            rows.push(field.trim().parse::<f32>().with_context(|| format!("read `{field}`"))?);
        }
        width = rows.len() - before;
    }
    let start = Instant::now();
    let forest = Forest::grow(&rows, width, Growth { trees: trees as u32, sample: sample as u32, seed })?;
    let fitted = start.elapsed();
    let start = Instant::now();
    let scores = forest.score(&rows);
    let per_row = start.elapsed().as_nanos() as usize / scores.len().max(1);
    eprintln!("{} {per_row}", fitted.as_secs_f64());
    for score in scores {
        println!("{score}");
    }
    Ok(())
}
