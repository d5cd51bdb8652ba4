//! `detect` and `run --once` tell the same of every log: each anomaly under the same id, with the same body, and closed.
//!
//! Nothing is left out of the comparison: an anomaly holds event times alone, `detection_timestamp` among them, and the moments of
//! the wall clock (of recording and of announcing) are not in its body.
//!
//! Each run compares simulated logs and the labelled sets of less than 300 kB; `FLOWVIGIL_AGREE=all tests/run agree` all sets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flowvigil::publish::local::SqliteStore;
use flowvigil::publish::{AnomalyStore, Query};
use serde_json::Value;

/// Sets of more bytes take longer with a debug build than each run may.
const SMALL: u64 = 300_000;

fn flowvigil(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowvigil"));
    command.args(arguments);
    command
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Anomalies by id.
type Told = BTreeMap<String, Value>;

fn by_id(anomalies: impl Iterator<Item = Value>) -> Told {
    anomalies.map(|anomaly| (anomaly["anomaly_id"].as_str().unwrap().to_owned(), anomaly)).collect()
}

fn lines(output: &Output) -> impl Iterator<Item = Value> {
    std::str::from_utf8(&output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap())
}

fn detected(log: &Path, settings: &[(&str, &str)]) -> Told {
    let output = flowvigil(&["detect", "--format", "ndjson"]).envs(settings.iter().copied()).arg(log).output().unwrap();
    succeeded(&output);
    by_id(lines(&output))
}

/// What stands in the store when `run --once` has ended; what was announced last of each is the same.
async fn recorded(log: &Path, settings: &[(&str, &str)]) -> Told {
    let state = tempfile::tempdir().unwrap();
    let path = |name: &str| state.path().join(name).display().to_string();
    let output = flowvigil(&["run", "--once"])
        .env("FLOWVIGIL__API__LISTEN", "127.0.0.1:0")
        .env("FLOWVIGIL__PUBLISH__SQLITE__PATH", path("anomalies.db"))
        .env("FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER", path("snapshots"))
        .env("FLOWVIGIL__INGEST__LOCAL__CHECKPOINT", path("checkpoints"))
        .env("FLOWVIGIL__TELEMETRY__LOG_LEVEL", "warn")
        .envs(settings.iter().copied())
        .arg(log)
        .output()
        .unwrap();
    succeeded(&output);
    let store = SqliteStore::open(&state.path().join("anomalies.db")).unwrap();
    let mut anomalies = Vec::new();
    let mut query = Query { limit: 500, ..Query::default() };
    loop {
        let page = store.query(&query).await.unwrap();
        anomalies.extend(page.anomalies);
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
    }
    assert_eq!(store.unannounced(1).await.unwrap(), [], "all that is recorded is announced");
    // Through text, in which a number of 32 bits has fewer digits.
    let told =
        by_id(anomalies.iter().map(|anomaly| serde_json::from_str(&serde_json::to_string(anomaly).unwrap()).unwrap()));
    let announced =
        by_id(lines(&output).map(|line| line["detail"].clone()).filter(|detail| detail["anomaly_id"].is_string()));
    assert_eq!(differences(&announced, &told), [""; 0], "announced last, and recorded");
    told
}

/// Field by field, each that differs by its name.
fn differences(one: &Told, other: &Told) -> Vec<String> {
    let mut found = Vec::new();
    let only = |here: &Told, there: &Told, name: &str| -> Vec<String> {
        let alone = here.iter().filter(|(id, _)| !there.contains_key(*id));
        alone.map(|(id, anomaly)| format!("{id} {name}: {} {}", anomaly["threat"], anomaly["summary"])).collect()
    };
    found.extend(only(one, other, "only in the first"));
    found.extend(only(other, one, "only in the second"));
    for (id, here) in one {
        let Some(there) = other.get(id) else { continue };
        let (here, there) = (here.as_object().unwrap(), there.as_object().unwrap());
        let fields: std::collections::BTreeSet<&String> = here.keys().chain(there.keys()).collect();
        let differ = fields.into_iter().filter(|&field| here.get(field) != there.get(field));
        found.extend(differ.map(|field| format!("{id} {field}: {:?} and {:?}", here.get(field), there.get(field))));
    }
    found
}

/// Compares the two commands; what both tell.
async fn agree(log: &Path, settings: &[(&str, &str)]) -> Told {
    let detect = detected(log, settings);
    let run = recorded(log, settings).await;
    let name = log.display();
    let found = differences(&detect, &run);
    assert!(found.is_empty(), "{name}: detect and run --once differ:\n{}", found.join("\n"));
    let open: Vec<_> = run.values().filter(|anomaly| anomaly["status"] != "closed").collect();
    assert!(open.is_empty(), "{name}: the input has ended, and these are open: {open:#?}");
    run
}

#[tokio::test]
async fn of_simulated_logs_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, format) in [("3", "v2"), ("4", "v5")] {
        let log = folder.path().join(format!("{format}-{seed}.log"));
        let made = flowvigil(&["simulate", "--seed", seed, "--format", format, "--threats", "all:low"])
            .args(["--duration", "30m", "--hosts", "10", "--demand", "0.05", "-o"])
            .arg(&log)
            .output()
            .unwrap();
        succeeded(&made);
        let told = agree(&log, &[]).await;
        assert!(told.len() > 3, "{format}: {told:#?}");
    }
}

#[tokio::test]
async fn of_a_storm_and_what_stands_for_it_is_closed_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("storm.log");
    let line = |scanner: u32, port: u32, at: u32| {
        format!(
            "2 1 eni-1 203.0.{}.{} 10.0.0.9 40000 {port} 6 1 40 {at} {at} REJECT OK\n",
            scanner / 250,
            scanner % 250 + 1
        )
    };
    let begin = 1_764_000_000;
    let mut text = String::new();
    for minute in 0..3 {
        let scans = (0..60).flat_map(|scanner| (1..=120).map(move |port| (minute * 60 + scanner, port)));
        text.extend(scans.map(|(scanner, port)| line(scanner, port, begin + minute * 60 + port / 3)));
    }
    // The same host is asked something else in the next hours, so that event time goes on.
    text.extend(
        (0..200).map(|n| format!("2 1 eni-1 10.0.0.9 10.0.0.8 {} 443 6 9 900 {0} {0} ACCEPT OK\n", begin + n * 60)),
    );
    std::fs::write(&log, text).unwrap();
    let told = agree(&log, &[]).await;
    let storms: Vec<&Value> = told.values().filter(|anomaly| anomaly["actor"] == "many").collect();
    assert_eq!(storms.len(), 1, "{} told", told.len());
    assert_eq!(storms[0]["status"], "closed");
    let others = told.len() as u64 - 1;
    assert_eq!(storms[0]["updates"].as_u64(), Some(180 - others), "{}", storms[0]);
}

#[tokio::test]
async fn of_what_is_held_back_between_updates_the_last_is_told_when_the_input_ends() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("scan.log");
    let begin = 1_764_000_000;
    let line = |port: u32| {
        let at = begin + port / 10;
        format!("2 1 eni-1 203.0.113.9 10.0.0.9 40000 {port} 6 1 40 {at} {at} REJECT OK\n")
    };
    std::fs::write(&log, (1..3_000).map(line).collect::<String>()).unwrap();
    let told = agree(&log, &[("FLOWVIGIL__VALIDATION__UPDATE_INTERVAL", "24h")]).await;
    let scan = told.values().next().unwrap();
    assert_eq!((told.len(), scan["target_count"].as_u64()), (1, Some(1)));
    let last = jiff::Timestamp::from_second(i64::from(begin) + 299).unwrap();
    assert_eq!(scan["last_seen"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap(), last);
}

#[tokio::test]
async fn of_every_labelled_set_at_hand() {
    let root = match std::env::var_os("FLOWVIGIL_DATASETS") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/datasets"),
    };
    let all = std::env::var("FLOWVIGIL_AGREE").is_ok_and(|which| which == "all");
    let (mut compared, mut told) = (0, 0);
    for folder in ["", "merged", "more", "more/merged"].map(|name| root.join(name)) {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            println!("skipped: no datasets in {}; name their folder with FLOWVIGIL_DATASETS", folder.display());
            continue;
        };
        let mut sets: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        sets.retain(|path| path.to_string_lossy().ends_with(".log.gz"));
        sets.retain(|path| all || std::fs::metadata(path).is_ok_and(|about| about.len() < SMALL));
        sets.sort();
        for set in sets {
            compared += 1;
            told += agree(&set, &[]).await.len();
        }
    }
    println!("{compared} sets with {told} anomalies");
}
