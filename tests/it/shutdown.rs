//! Stopping and dying: what was read is told, once, under the same ids, whatever happens to the process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use flowvigil::anomaly::Anomaly;
use flowvigil::publish::local::SqliteStore;
use flowvigil::publish::{AnomalyStore, Query};

/// Nothing here takes near this long; it only keeps a defect from hanging the whole run.
const PATIENCE: Duration = Duration::from_secs(240);

/// A simulated hour with scans, beacons and Tor in it.
fn traffic(folder: &Path) -> PathBuf {
    let file = folder.join("vpc.log");
    let made = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(["simulate", "--duration", "1h", "--hosts", "12", "--demand", "0.1", "--seed", "11"])
        .args(["--threats", "port_scan,c2_beacon,tor", "--out"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    file
}

/// The service on a folder of its own.
struct Service {
    child: Child,
    announced: Receiver<String>,
}

impl Service {
    fn command(state: &Path, input: &Path) -> Command {
        let path = |name: &str| state.join(name).display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowvigil"));
        command
            .arg("run")
            .arg("--once")
            .arg(input)
            .env("FLOWVIGIL__API__LISTEN", "127.0.0.1:0")
            .env("FLOWVIGIL__PUBLISH__SQLITE__PATH", path("anomalies.db"))
            .env("FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER", path("snapshots"))
            .env("FLOWVIGIL__INGEST__LOCAL__CHECKPOINT", path("checkpoints"))
            .env("FLOWVIGIL__INGEST__CHUNK_BYTES", "65536")
            .env("FLOWVIGIL__PIPELINE__SNAPSHOT_INTERVAL", "100ms")
            .env("FLOWVIGIL__TELEMETRY__LOG_LEVEL", "warn")
            .stdout(Stdio::piped());
        command
    }

    fn start(state: &Path, input: &Path) -> Service {
        let mut child = Service::command(state, input).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (send, announced) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(send.send(line))));
        Service { child, announced }
    }

    /// Waits for an announcement; `None` when there will be no more.
    fn next(&self) -> Option<serde_json::Value> {
        let line = self.announced.recv_timeout(PATIENCE).ok()?;
        Some(serde_json::from_str(&line).unwrap())
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Everything else it announces, and its exit code, `None` when it was killed.
    fn end(mut self) -> (Vec<serde_json::Value>, Option<i32>) {
        let began = Instant::now();
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code();
            }
            assert!(began.elapsed() < PATIENCE, "the service does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut rest = Vec::new();
        while let Some(announcement) = self.next() {
            rest.push(announcement);
        }
        (rest, code)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is recorded, by id: what it is about, and its span.
fn recorded(state: &Path) -> BTreeMap<String, String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = SqliteStore::open(&state.join("anomalies.db")).unwrap();
    let page = runtime.block_on(store.query(&Query { limit: 1000, ..Query::default() })).unwrap();
    assert!(page.next.is_none());
    let about =
        |a: &Anomaly| format!("{} by {} from {} to {}: {}", a.threat, a.actor, a.first_seen, a.last_seen, a.summary);
    page.anomalies.iter().map(|a| (a.anomaly_id.to_string(), about(a))).collect()
}

fn detected(announcements: &[serde_json::Value]) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for announcement in announcements.iter().filter(|a| a["detail-type"] == "Anomaly Detected") {
        *counts.entry(announcement["detail"]["anomaly_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

/// What an undisturbed run records.
fn undisturbed(folder: &Path, input: &Path) -> BTreeMap<String, String> {
    let state = folder.join("undisturbed");
    std::fs::create_dir(&state).unwrap();
    let (announced, code) = Service::start(&state, input).end();
    assert_eq!(code, Some(0));
    let wanted = recorded(&state);
    assert!(wanted.len() >= 3, "{wanted:#?}");
    let told = detected(&announced);
    assert_eq!(told.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "told what is recorded");
    assert!(told.values().all(|&times| times == 1), "{told:?}");
    wanted
}

#[test]
fn sigterm_again_and_again_loses_nothing_and_tells_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let input = traffic(folder.path());
    let wanted = undisturbed(folder.path(), &input);
    let state = folder.path().join("stopped");
    std::fs::create_dir(&state).unwrap();
    let mut announced = Vec::new();
    for round in 0.. {
        let service = Service::start(&state, &input);
        // A few announcements, more in each life, then a stop in the midst of the rest.
        let some = 1 << round;
        let more: Vec<_> = (0..some).map_while(|_| service.next()).collect();
        let ended = more.len() < some;
        announced.extend(more);
        if !ended {
            service.signal("TERM");
        }
        let (rest, code) = service.end();
        announced.extend(rest);
        assert_eq!(code, Some(0), "a stop is no failure");
        if ended {
            break;
        }
    }
    assert_eq!(recorded(&state), wanted);
    let told = detected(&announced);
    assert_eq!(told.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    assert!(told.values().all(|&times| times == 1), "told twice: {told:?}");
}

#[test]
fn sigkill_again_and_again_ends_with_the_anomalies_of_an_undisturbed_run() {
    let folder = tempfile::tempdir().unwrap();
    let input = traffic(folder.path());
    let wanted = undisturbed(folder.path(), &input);
    let state = folder.path().join("killed");
    std::fs::create_dir(&state).unwrap();
    let mut announced = Vec::new();
    for announcements in [1, 2, 3, usize::MAX] {
        let service = Service::start(&state, &input);
        let more: Vec<_> = (0..announcements).map_while(|_| service.next()).collect();
        announced.extend(more);
        if announcements < usize::MAX {
            service.signal("KILL");
        }
        announced.extend(service.end().0);
    }
    assert_eq!(recorded(&state), wanted);
    // Between the telling and the note that it was told, a kill makes it be told again: at least once, never another.
    assert_eq!(detected(&announced).keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
}

#[test]
fn a_damaged_snapshot_falls_back_and_the_run_still_ends() {
    let folder = tempfile::tempdir().unwrap();
    let input = traffic(folder.path());
    let state = folder.path().join("damaged");
    std::fs::create_dir(&state).unwrap();
    let service = Service::start(&state, &input);
    assert!(service.next().is_some());
    service.signal("TERM");
    assert_eq!(service.end().1, Some(0));
    let mut damaged = 0;
    for entry in std::fs::read_dir(state.join("snapshots")).unwrap() {
        std::fs::write(entry.unwrap().path(), b"FVSNAP1\nnot what was written").unwrap();
        damaged += 1;
    }
    assert!(damaged > 0);
    assert_eq!(Service::start(&state, &input).end().1, Some(0));
}

#[test]
fn a_service_whose_announcements_nobody_reads_any_more_says_so_and_goes_on_when_it_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let input = traffic(folder.path());
    let wanted = undisturbed(folder.path(), &input);
    let state = folder.path().join("unheard");
    std::fs::create_dir(&state).unwrap();
    let mut heard = Vec::new();
    let mut child = Service::command(&state, &input).stderr(Stdio::piped()).spawn().unwrap();
    {
        // As `flowvigil run … | head -1` does.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        heard.push(serde_json::from_str(&line).unwrap());
    }
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("whoever read the announcements is gone"), "{said}");
    let (rest, code) = Service::start(&state, &input).end();
    assert_eq!(code, Some(0));
    heard.extend(rest);
    assert_eq!(recorded(&state), wanted);
    // What stood in the pipe when its reader left is lost to everybody, so that not all of them need be heard.
    let heard = detected(&heard);
    assert!(heard.keys().all(|id| wanted.contains_key(id)), "{heard:?} is not among {wanted:?}");
}
