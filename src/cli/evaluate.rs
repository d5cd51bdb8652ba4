//! `flowvigil evaluate`: how a model's p-values hold on flow logs that it was not trained on.
//!
//! On benign logs the realised shares should be near the targets. A model whose shares are far above them was trained on
//! other traffic than this: train it on the deployment's own logs. With `--truth`, what each scorer is worth: how well it tells
//! the windows of what the labels name from all others.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use ipnet::IpNet;
use jiff::SignedDuration;
use serde::Deserialize;

use super::{SettingsArgs, train, windows};
use crate::ml::features::WINDOW_SECONDS;
use crate::ml::model::Part;
use crate::ml::separation::Seen;
use crate::ml::{FeatureVector, artifact, separation, train as training};
use crate::simulate::Scenario;
use crate::simulate::attack::Campaigns;

/// Arguments of `evaluate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact: a model.tar.gz, or the folder it was unpacked to; the embedded one by default
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Flow logs to measure on: files or folders
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "simulated")]
    input: Vec<PathBuf>,
    /// Labelled truth (LABELS.json): also say how well each scorer tells its windows from the others
    #[arg(long, value_name = "FILE", requires = "input")]
    truth: Option<PathBuf>,
    /// Only what the truth says of this threat
    #[arg(long, value_name = "THREAT")]
    threat: Option<String>,
    /// Measure on a simulated VPC, with this seed
    #[arg(long, value_name = "SEED", conflicts_with = "input")]
    simulated: Option<u64>,
    /// What goes wrong in it, as for simulate: then also say how well each scorer tells that from all else
    #[arg(long, default_value = "none", requires = "simulated")]
    threats: Campaigns,
    /// Hosts of the simulated VPC
    #[arg(long, default_value_t = 80, requires = "simulated")]
    hosts: u32,
    /// Length of the simulation
    #[arg(long, default_value = "48h", requires = "simulated")]
    duration: SignedDuration,
    /// Share of its hosts with a recurring job, as for simulate
    #[arg(long, default_value_t = 0.0, value_parser = super::share, requires = "simulated")]
    jobs: f64,
    /// CIDR blocks of our own hosts, in place of those in the settings
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = super::detect::block)]
    internal: Vec<IpNet>,
    /// Where every judged window goes, as each scorer saw it (CSV); with a truth
    #[arg(long, value_name = "FILE")]
    windows: Option<PathBuf>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Where everything goes as JSON, beside what is printed
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Measures and prints.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut settings = args.settings.load()?;
    if !args.internal.is_empty() {
        settings.network.internal.clone_from(&args.internal);
    }
    let model = match &args.model {
        Some(path) => artifact::read(path)?,
        None => artifact::embedded()?,
    };
    let mut labels = match &args.truth {
        Some(path) => Some(Labels::read(path, args.threat.as_deref())?),
        None => None,
    };
    let vectors = match args.simulated {
        Some(seed) => {
            let duration_seconds = u32::try_from(args.duration.as_secs()).context("--duration is too long")?;
            let threats = args.threats.clone();
            let (hosts, jobs) = (args.hosts, args.jobs);
            let scenario = Scenario { seed, hosts, duration_seconds, threats, jobs, ..Scenario::default() };
            let (vectors, told) = windows::of_simulation(scenario, &settings);
            if !args.threats.0.is_empty() {
                let told = serde_json::to_value(&told).context("write the labels as JSON")?;
                labels = Some(Labels::of(&told, args.threat.as_deref()).context("read the labels")?);
            }
            vectors
        }
        None => windows::of_files(&args.input, &settings)?,
    };
    if let Some(labels) = labels {
        let mut rows = Rows::default();
        let keep = args.windows.is_some();
        let seen = |seen: &Seen<'_>| {
            if keep {
                rows.push(seen)
            }
        };
        let measured = separation::measure(&model, &vectors, |vector| labels.is_attack(vector), seen);
        if let Some(path) = &args.windows {
            std::fs::write(path, &rows.0).with_context(|| format!("write {}", path.display()))?;
        }
        let all = serde_json::to_string_pretty(&measured).context("write the measurement as JSON")?;
        save(args.out.as_deref(), &all)?;
        if args.json {
            println!("{all}");
        } else {
            println!(
                "scorer   attacks   others    auc  auc alone  recall at 1e-2  at 1e-3  of these not by top3_z  others with \
                 p <= 1e-1  <= 1e-2  <= 1e-3  <= 1e-4"
            );
            for (name, s) in &measured {
                let (hundredth, thousandth, beyond) = (s.recall_at_1e_2, s.recall_at_1e_3, s.beyond_top3_z);
                let alone = s.auc_alone.map_or(String::new(), |auc| format!("{auc:.3}"));
                let realised = s.realised.map(|share| format!("{share:>8.1e}")).join(" ");
                println!(
                    "{name:<7} {:>8} {:>8}  {:.3} {alone:>10} {hundredth:>15.3} {thousandth:>8.3} {beyond:>23.3} {realised:>49}",
                    s.attacks, s.others, s.auc
                );
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let evaluation = training::evaluate(&model, &vectors);
    let all = serde_json::to_string_pretty(&evaluation).context("write the evaluation as JSON")?;
    save(args.out.as_deref(), &all)?;
    if args.json {
        println!("{all}");
    } else {
        println!("model {}{}", model.manifest.model_version, train::rates(&evaluation));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a file where one is asked for.
fn save(path: Option<&Path>, text: &str) -> anyhow::Result<()> {
    path.map_or(Ok(()), |path| std::fs::write(path, text).with_context(|| format!("write {}", path.display())))
}

/// Windows as lines of CSV.
struct Rows(String);

impl Default for Rows {
    fn default() -> Rows {
        let mut head = "host,window,attack".to_owned();
        for name in Part::ALL.map(Part::name) {
            head.push_str(&format!(",{name},{name}_p,{name}_heard"));
        }
        Rows(head + ",forest_usual,lstm_usual,joined\n")
    }
}

impl Rows {
    fn push(&mut self, seen: &Seen<'_>) {
        let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.6}"));
        let small = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.3e}"));
        let attack = match seen.attack {
            Some(true) => "1",
            Some(false) => "0",
            None => "",
        };
        let _ = write!(self.0, "{},{},{attack}", seen.vector.host, seen.vector.window.0);
        for at in 0..Part::ALL.len() {
            let (score, model, heard) = (number(seen.scores[at]), small(seen.model[at]), small(seen.heard[at]));
            let _ = write!(self.0, ",{score},{model},{heard}");
        }
        let [forest, lstm] = seen.usual;
        let _ = writeln!(self.0, ",{forest:.3},{lstm:.3},{}", small(seen.joined));
    }
}

/// What a labels file says of windows.
struct Labels {
    rows: Vec<Row>,
    /// Hosts whose other windows are of unknown nature.
    unknown: Vec<String>,
}

/// One row of the truth.
#[derive(Deserialize)]
struct Row {
    threat: String,
    actor: String,
    #[serde(default)]
    target: Option<String>,
    first: f64,
    last: f64,
}

impl Labels {
    fn read(path: &Path, threat: Option<&str>) -> anyhow::Result<Labels> {
        let context = || format!("read labels {}", path.display());
        let text = std::fs::read_to_string(path).with_context(context)?;
        let labels: serde_json::Value = serde_json::from_str(&text).with_context(context)?;
        Labels::of(&labels, threat).with_context(context)
    }

    fn of(labels: &serde_json::Value, threat: Option<&str>) -> Result<Labels, serde_json::Error> {
        let truth = labels.get("truth").cloned().unwrap_or_default();
        let mut rows: Vec<Row> = serde_json::from_value(truth)?;
        let all: Vec<String> = rows.iter().flat_map(|row| row.target.iter().chain([&row.actor])).cloned().collect();
        rows.retain(|row| threat.is_none_or(|threat| row.threat == threat));
        let simulated = labels.pointer("/source/generator").is_some();
        let names = |key: &str| -> Vec<String> {
            let list = labels.get(key).and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
            list.iter().filter_map(|entry| Some(entry.as_str()?.split(' ').next()?.to_owned())).collect()
        };
        let mut unknown = names("ambiguous");
        // A simulation knows everything that its hosts do.
        if !simulated {
            unknown.extend(names("infected_hosts"));
        }
        if threat.is_some() {
            let kept: Vec<&String> = rows.iter().flat_map(|row| row.target.iter().chain([&row.actor])).collect();
            unknown.extend(all.iter().filter(|address| !kept.contains(address)).cloned());
        }
        Ok(Labels { rows, unknown })
    }

    /// Whether a window is part of what a row tells; nothing where that is unknown.
    fn is_attack(&self, vector: &FeatureVector) -> Option<bool> {
        let host = vector.host.to_string();
        let (from, to) = (f64::from(vector.window.0), f64::from(vector.window.plus(WINDOW_SECONDS).0));
        let mine = |row: &&Row| row.actor == host || row.target.as_ref() == Some(&host);
        let overlaps = |row: &Row, slack: f64| from <= row.last + slack && to > row.first - slack;
        if self.rows.iter().filter(mine).any(|row| overlaps(row, 0.0)) {
            return Some(true);
        }
        // What follows an attack closely, and what else an infected host does, is neither.
        let near = self.rows.iter().filter(mine).any(|row| overlaps(row, 3600.0));
        (!near && !self.unknown.contains(&host)).then_some(false)
    }
}
