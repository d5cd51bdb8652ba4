//! The built binary as a service that follows a file, for the tests that look at it from outside.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing here takes near this long; it only keeps a defect from hanging the whole run.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running service; it is killed when this is dropped.
pub struct Service {
    child: Child,
    /// Its log and its announcements, in lines.
    told: Arc<Mutex<Vec<String>>>,
    address: SocketAddr,
    flow_log: PathBuf,
}

/// When the simulated traffic of [`Service::scan`] begins.
const EPOCH: u32 = 1_700_000_000;

impl Service {
    /// Starts it on an empty flow log in `folder`, with further variables in its environment.
    pub fn start(folder: &Path, environment: &[(&str, &str)]) -> Service {
        let flow_log = folder.join("flow.log");
        // One that is there belongs to an earlier life.
        std::fs::OpenOptions::new().append(true).create(true).open(&flow_log).unwrap();
        let path = |name: &str| folder.join(name).display().to_string();
        let mut child = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
            .arg("run")
            .arg(&flow_log)
            .env("FLOWVIGIL__API__LISTEN", "127.0.0.1:0")
            // The logs of the tests are of days long past.
            .env("FLOWVIGIL__PIPELINE__CLOCK_GAP_MAX", "0s")
            .env("FLOWVIGIL__PUBLISH__SQLITE__PATH", path("anomalies.db"))
            .env("FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER", path("snapshots"))
            .env("FLOWVIGIL__INGEST__LOCAL__CHECKPOINT", path("checkpoints"))
            .env("FLOWVIGIL__INGEST__LOCAL__POLL_INTERVAL", "50ms")
            .env("FLOWVIGIL__TELEMETRY__LOG_FORMAT", "json")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        for stream in [
            Box::new(child.stdout.take().unwrap()) as Box<dyn std::io::Read + Send>,
            Box::new(child.stderr.take().unwrap()),
        ] {
            let told = told.clone();
            let keep = move |line| told.lock().unwrap().push(line);
            std::thread::spawn(move || BufReader::new(stream).lines().map_while(Result::ok).for_each(keep));
        }
        let mut service = Service { child, told, address: "127.0.0.1:0".parse().unwrap(), flow_log };
        let listens = service.wait_for_line("the API listens");
        let line: Value = serde_json::from_str(&listens).unwrap();
        service.address = line["address"].as_str().unwrap().parse().unwrap();
        service
    }

    /// Adds what a scan of `ports` ports by a host of ours looks like, in its own minute of event time.
    pub fn scan(&self, actor: &str, minute: u32, ports: u16) {
        let start = EPOCH + minute * 60;
        let mut lines = String::new();
        for port in 1..=ports {
            lines.push_str(&format!(
                "2 123456789012 eni-1 {actor} 10.0.9.9 50000 {port} 6 1 40 {start} {} REJECT OK\n",
                start + 1
            ));
        }
        self.append(&lines);
    }

    /// Adds ordinary records, so that event time moves on to a minute, however far that is: one record alone is not believed.
    pub fn quiet_until(&self, minute: u32) {
        let start = EPOCH + minute * 60;
        let line = |port: u32| {
            format!("2 123456789012 eni-1 10.0.0.1 10.0.0.2 {port} 443 6 9 5000 {start} {start} ACCEPT OK\n")
        };
        self.append(&(40_000..40_016).map(line).collect::<String>());
    }

    /// Adds text to the flow log.
    pub fn append(&self, text: &str) {
        let mut file = std::fs::OpenOptions::new().append(true).open(&self.flow_log).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// What it answers.
    pub fn get(&self, path: &str) -> Value {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let text = agent.get(format!("http://{}{path}", self.address)).call().unwrap().body_mut().read_to_string();
        let text = text.unwrap();
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All it has said so far.
    pub fn told(&self) -> String {
        self.told.lock().unwrap().join("\n")
    }

    /// The first line with this text in it, once it is there.
    pub fn wait_for_line(&self, text: &str) -> String {
        let mut found = None;
        let arrived = || {
            found = self.told.lock().unwrap().iter().find(|line| line.contains(text)).cloned();
            found.is_some()
        };
        assert!(soon(arrived), "`{text}` is not among what it said:\n{}", self.told());
        found.unwrap()
    }

    /// Waits until its answer to a path is as wanted.
    pub fn wait_until(&self, path: &str, so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let as_wanted = || {
            let answer = self.get(path);
            let wanted = so(&answer);
            // Who asks as often as this is told now and then to wait; what it said before is what a failure is about.
            if wanted || answer["status"] != 429 {
                last = answer;
            }
            wanted
        };
        assert!(soon(as_wanted), "{path} answers {last:#}\n{}", self.told());
        last
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(&mut self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        assert!(soon(|| self.child.try_wait().unwrap().is_some()), "it does not stop:\n{}", self.told());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether it becomes so.
pub fn soon(mut so: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    false
}
