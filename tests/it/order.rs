//! One log in many files: however it is cut and named, the anomalies are those of its records in the order of time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::service::soon;

fn flowvigil(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowvigil"));
    command.args(arguments);
    command
}

/// Twenty simulated minutes under attack, in lines without a header, and in the order of time.
fn log(seed: u32) -> Vec<String> {
    let made = flowvigil(&["simulate", "--duration", "20m", "--hosts", "6", "--demand", "0.05", "--no-header"])
        .args(["--threats", "port_scan,c2_beacon,ddos.icmp:low", "--seed", &seed.to_string()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = String::from_utf8(made.stdout).unwrap();
    let mut lines: Vec<String> = text.lines().map(|line| format!("{line}\n")).collect();
    lines.sort_by_key(|line| start(line));
    lines
}

fn field(line: &str, at: usize) -> &str {
    line.split(' ').nth(at).unwrap().trim()
}

fn start(line: &str) -> u32 {
    field(line, 10).parse().unwrap()
}

fn end(line: &str) -> u32 {
    field(line, 11).parse().unwrap()
}

/// Pseudo-random, and the same every time.
struct Chance(u64);

impl Chance {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, self.next(at + 1));
        }
    }
}

/// How a log is cut into files.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Cut {
    /// As S3 has it: a file for five minutes and writer, records of an interface together.
    Periods,
    /// As a CloudWatch export has it.
    Interfaces,
    /// Five minutes of an interface, under names that say nothing.
    Both,
}

/// Writes the log in files, and gives their paths.
fn write(folder: &Path, lines: &[String], cut: Cut, chance: &mut Chance) -> Vec<PathBuf> {
    let mut files: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    let mut names: BTreeMap<(u32, String), String> = BTreeMap::new();
    for line in lines {
        let (interface, period) = (field(line, 2).to_owned(), end(line) / 300 * 300);
        let name = match cut {
            Cut::Periods => {
                let stamp =
                    jiff::Timestamp::from_second(i64::from(period)).unwrap().strftime("%Y%m%dT%H%MZ").to_string();
                let writer = interface.bytes().map(u32::from).sum::<u32>() % 3;
                format!(
                    "AWSLogs/1/vpcflowlogs/eu-west-1/2026/03/02/1_vpcflowlogs_eu-west-1_fl-{writer}_{stamp}_{writer:08x}.log"
                )
            }
            Cut::Interfaces => format!("export/{interface}-all/000000.log"),
            Cut::Both => {
                let number = names.len();
                let fresh = || format!("{:08x}-{number}.log", chance.next(1 << 30));
                names.entry((period, interface)).or_insert_with(fresh).clone()
            }
        };
        files.entry(name).or_default().push(line);
    }
    let write = |(name, mut lines): (String, Vec<&String>)| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if cut == Cut::Periods {
            lines.sort_by_key(|line| field(line, 2));
        }
        let text: String = lines.into_iter().map(String::as_str).collect();
        if chance.next(2) == 0 {
            std::fs::write(&path, text).unwrap();
            return path;
        }
        let path = path.with_extension("log.gz");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        std::fs::write(&path, packed.finish().unwrap()).unwrap();
        path
    };
    files.into_iter().map(write).collect()
}

fn told(done: &Output) -> String {
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    let summary = String::from_utf8_lossy(&done.stderr);
    assert!(!summary.contains("late"), "{summary}");
    String::from_utf8(done.stdout.clone()).unwrap()
}

/// The last state of each anomaly that a service announced, as `detect` writes it.
fn announced(text: &str) -> BTreeMap<String, Value> {
    let mut last = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if let Some(id) = line["detail"]["anomaly_id"].as_str() {
            last.insert(id.to_owned(), line["detail"].clone());
        }
    }
    last
}

fn detected(text: &str) -> BTreeMap<String, Value> {
    let anomalies = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    anomalies.map(|anomaly| (anomaly["anomaly_id"].as_str().unwrap().to_owned(), anomaly)).collect()
}

fn service(state: &Path) -> Command {
    let path = |name: &str| state.join(name).display().to_string();
    let mut command = flowvigil(&["run"]);
    command
        .env("FLOWVIGIL__API__LISTEN", "127.0.0.1:0")
        .env("FLOWVIGIL__PUBLISH__SQLITE__PATH", path("anomalies.db"))
        .env("FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER", path("snapshots"))
        .env("FLOWVIGIL__INGEST__LOCAL__CHECKPOINT", path("checkpoints"))
        .env("FLOWVIGIL__INGEST__LOCAL__POLL_INTERVAL", "50ms")
        .env("FLOWVIGIL__TELEMETRY__LOG_LEVEL", "warn");
    command
}

/// Whether two values are the same; numbers may have come through a shorter type.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-6 * b.abs()
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((a, x), (b, y))| a == b && same(x, y))
        }
        (a, b) => a == b,
    }
}

/// Field by field, and each that differs by its name.
fn compare(run: &BTreeMap<String, Value>, detect: &BTreeMap<String, Value>, of: &str) {
    let ids = |all: &BTreeMap<String, Value>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(ids(run), ids(detect), "{of}");
    let mut differences = Vec::new();
    for (id, expected) in detect {
        for (field, value) in expected.as_object().unwrap() {
            if !same(&run[id][field], value) {
                differences
                    .push(format!("{} {id}: {field}: run {} detect {value}", expected["threat"], run[id][field]));
            }
        }
    }
    assert!(differences.is_empty(), "{of}:\n{}", differences.join("\n"));
}

#[test]
fn however_a_log_is_cut_and_named_the_anomalies_are_those_of_its_records_in_order() {
    for seed in 1..=2 {
        let lines = log(seed);
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole.log");
        std::fs::write(&whole, lines.concat()).unwrap();
        let expected = told(&flowvigil(&["detect"]).arg(&whole).output().unwrap());
        assert!(expected.lines().count() >= 2, "{expected}");
        let mut chance = Chance(u64::from(seed));
        for cut in [Cut::Periods, Cut::Interfaces, Cut::Both] {
            let folder = tempfile::tempdir().unwrap();
            let mut files = write(folder.path(), &lines, cut, &mut chance);
            assert!(files.len() > 8);
            let walked = told(&flowvigil(&["detect"]).arg(folder.path()).output().unwrap());
            assert_eq!(walked, expected, "seed {seed}, {cut:?}, walked");
            chance.shuffle(&mut files);
            let named = told(&flowvigil(&["detect"]).args(&files).output().unwrap());
            assert_eq!(named, expected, "seed {seed}, {cut:?}, named one by one");
            let state = tempfile::tempdir().unwrap();
            let once = service(state.path()).arg("--once").args(&files).output().unwrap();
            assert!(once.status.success(), "{}", String::from_utf8_lossy(&once.stderr));
            let once = announced(&String::from_utf8(once.stdout).unwrap());
            compare(&once, &detected(&expected), &format!("seed {seed}, {cut:?}, run --once"));
        }
    }
}

#[test]
fn a_folder_of_two_thousand_files_over_the_same_hours_is_read_with_few_handles_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    for interface in 0..2_000u32 {
        let line = |n: u32| {
            let start = 1_763_632_800 + n * 360 + interface % 360;
            format!(
                "2 1 eni-{interface} 10.0.{}.{} 10.1.0.1 {} 443 6 9 900 {start} {start} ACCEPT OK\n",
                interface / 250,
                interface % 250 + 1,
                20_000 + n
            )
        };
        let text: String = (0..20).map(line).collect();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        let place = folder.path().join(format!("eni-{interface}-all"));
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("000000.gz"), packed.finish().unwrap()).unwrap();
    }
    let script = format!("ulimit -n 64; exec {} detect {}", env!("CARGO_BIN_EXE_flowvigil"), folder.path().display());
    let done = Command::new("sh").args(["-c", &script]).output().unwrap();
    let summary = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && summary.starts_with("40000 records over "), "{summary}");
    assert!(!summary.contains("late") && !summary.contains("refused"), "{summary}");
}

#[test]
fn a_followed_folder_of_one_file_an_interface_tells_what_detect_tells() {
    let lines = log(3);
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.log");
    std::fs::write(&whole, lines.concat()).unwrap();
    let expected = detected(&told(&flowvigil(&["detect"]).arg(&whole).output().unwrap()));
    let (input, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(input.path(), &lines, Cut::Interfaces, &mut Chance(3));
    let out = state.path().join("announced");
    let mut running = service(state.path())
        .arg(input.path())
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // An open window is looked into before it is whole, so what is told first may say less; who did what must be the same.
    let who = |all: &BTreeMap<String, Value>| -> BTreeSet<String> {
        all.values().map(|anomaly| format!("{} {}", anomaly["threat"], anomaly["actor"])).collect()
    };
    let heard = || {
        let text = std::fs::read_to_string(&out).unwrap();
        who(&announced(text.rfind('\n').map_or("", |end| &text[..end])))
    };
    let done = soon(|| heard().is_superset(&who(&expected)));
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(heard(), who(&expected));
    assert!(done);
}

#[test]
fn a_second_service_on_the_same_state_ends_and_says_whose_it_is_and_one_after_a_crash_does_not() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("flow.log");
    std::fs::write(&log, "").unwrap();
    let state = folder.path().join("state");
    let mut first = service(&state).arg(&log).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(soon(|| state.join("anomalies.db-wal").exists() || state.join("checkpoints/.lock").exists()));
    let second = service(&state).arg("--once").arg(&log).output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(2), "{text}");
    assert!(text.contains("the state folder") && text.contains(&state.display().to_string()), "{text}");
    assert!(text.contains(&first.id().to_string()) && text.contains("stop that service"), "{text}");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("anomalies.db")), 0o600);
    first.kill().unwrap();
    first.wait().unwrap();
    let third = service(&state).arg("--once").arg(&log).output().unwrap();
    assert_eq!(third.status.code(), Some(0), "{}", String::from_utf8_lossy(&third.stderr));
}
