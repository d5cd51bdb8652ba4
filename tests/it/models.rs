//! The models inside the running service: what it asks of a model server, what it says of the models, and what a restart, a
//! dead server or another model changes.

use std::path::Path;
use std::process::Command;

use flowvigil::flow::EventTime;
use flowvigil::ml::artifact;
use flowvigil::ml::model::Source;
use flowvigil::ml::registry::dynamodb::DynamoRegistry;
use flowvigil::ml::registry::local::SqliteRegistry;
use flowvigil::ml::registry::{Registry, State, Version};
use flowvigil::ml::s3::Artifacts;
use flowvigil::publish::dynamodb;
use flowvigil::publish::dynamodb::schema::Schema;
use jiff::SignedDuration;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::ml::{FAULTS, Fault, Proxy, Server};
use crate::servers::{aws, unique};
use crate::service::{Service, soon};

/// 2023-11-14 22:00, at the start of a window.
const EPOCH: u32 = 1_699_999_200;
const HOSTS: u32 = 5;

/// Ordinary windows of five hosts, from one number to before another.
fn windows(numbers: std::ops::Range<u32>) -> String {
    let mut lines = String::new();
    for window in numbers {
        for host in 1..=HOSTS {
            for call in 0..2 + (window * 7 + host) % 3 {
                let start = EPOCH + window * 300 + call * 40 + host;
                let (bytes, port) = (4_000 + (window * 31 + host * 17) % 900, 40_000 + call);
                lines.push_str(&format!(
                    "2 123456789012 eni-1 10.0.0.{host} 198.51.100.{call} {port} 443 6 12 {bytes} {start} {} ACCEPT OK\n\
                     2 123456789012 eni-1 198.51.100.{call} 10.0.0.{host} 443 {port} 6 10 9000 {start} {} ACCEPT OK\n",
                    start + 5,
                    start + 5
                ));
            }
        }
    }
    lines
}

/// The sum of a metric's samples, or that of one sample whose labels contain a text.
fn metric(service: &Service, name: &str, labels: &str) -> f64 {
    let text = service.get("/metrics");
    let text = text.as_str().unwrap();
    let samples = text.lines().filter(|line| line.starts_with(name) && line.contains(labels));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn scored(service: &Service) -> f64 {
    metric(service, "flowvigil_model_windows_total{", "")
}

/// A port that was free a moment ago.
fn free_port() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Settings that make the service ask a model server, in the variables of its environment.
fn asking(url: &str) -> Vec<(&'static str, String)> {
    [
        ("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", url),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("FLOWVIGIL__ML__SAGEMAKER__DEADLINE", "3s"),
        ("FLOWVIGIL__ML__SAGEMAKER__BREAKER__CALLS_MIN", "3"),
        ("FLOWVIGIL__ML__SAGEMAKER__BREAKER__SLOW_CALL", "2s"),
        ("FLOWVIGIL__ML__SAGEMAKER__BREAKER__WINDOW", "20s"),
        ("FLOWVIGIL__ML__SAGEMAKER__BREAKER__PAUSE", "300ms"),
        ("FLOWVIGIL__ML__SAGEMAKER__BREAKER__PAUSE_MAX", "1s"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec()
}

fn start(folder: &Path, environment: &[(&'static str, String)]) -> Service {
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Service::start(folder, &environment)
}

/// Adds windows one after the other, each when the one before has been scored, until it is so; the next window's number.
fn feed_until(service: &Service, mut next: u32, so: impl Fn() -> bool) -> u32 {
    let from = next;
    while !so() {
        assert!(next < from + 400, "it never becomes so: {:#}", service.get("/v1/models"));
        let before = scored(service);
        service.append(&windows(next..next + 1));
        next += 1;
        soon(|| scored(service) > before);
    }
    next
}

#[test]
fn a_model_server_that_dies_and_comes_back_costs_no_window_and_the_metrics_tell_its_story() {
    let address = free_port();
    let server = Server::listen(&address, &[]);
    let folder = tempfile::tempdir().unwrap();
    let service = start(folder.path(), &asking(&format!("http://{address}")));
    service.append(&windows(0..40));
    let transitions = |to: &str| {
        metric(&service, "flowvigil_model_endpoint_breaker_transitions", &format!("lstm-model-endpoint\",to=\"{to}\""))
    };
    let by_primary = || metric(&service, "flowvigil_model_windows_total{", "variant=\"primary\"");
    assert!(soon(|| by_primary() > 0.0), "{:#}", service.get("/v1/models"));
    let next = feed_until(&service, 40, || true);
    assert_eq!(service.get("/health/ready")["status"], "ready");
    assert_eq!(metric(&service, "flowvigil_model_endpoint_failures", ""), 0.0);

    drop(server);
    let next = feed_until(&service, next, || transitions("open") >= 1.0);
    let ready = service.get("/health/ready");
    assert_eq!((&ready["status"], &ready["degraded"][0]["part"]), (&Value::from("degraded"), &Value::from("ml")));
    let report = service.get("/v1/models");
    assert!(report["degraded_windows"].as_u64().unwrap() > 0, "{report:#}");
    assert!(report["endpoints"][1]["last_failure"].is_string(), "{report:#}");

    let _server = Server::listen(&address, &[]);
    let probes = transitions("half_open");
    let next = feed_until(&service, next, || transitions("closed") >= 1.0);
    assert!(transitions("half_open") >= probes, "it closes by way of half-open");
    let next = feed_until(&service, next, || service.get("/health/ready")["status"] == "ready");

    // Every window that has closed was scored, whoever was there to score it.
    assert_eq!(lost(&service, next), 0.0);
    let report = service.get("/v1/models");
    for endpoint in report["endpoints"].as_array().unwrap() {
        assert_eq!(endpoint["breaker"], "closed", "{report:#}");
        assert!(endpoint["variants"]["primary"]["windows"].as_u64().unwrap() > 0, "{report:#}");
        assert!(endpoint["variants"]["primary"]["latency_p50_ms"].as_f64().unwrap() > 0.0, "{report:#}");
    }
    assert_eq!(report["model"]["feature_schema"]["id"], "hw27-v1");
    assert_eq!(report["retrain"]["recommended"], true, "the embedded model is from a simulation");
}

/// One fault after the other between the running service and the model server: the metrics tell each breaker's life, the
/// stream goes on, and no window is lost.
#[tokio::test(flavor = "multi_thread")]
async fn the_stream_goes_on_under_every_fault_and_the_metrics_tell_the_breakers_life() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let mut environment = asking(&proxy.url);
    // Later ones win. Of half of the calls failing, exactly half would now and then be too few for as long as one likes to wait.
    let breaker = [("BREAKER__CALLS_MIN", "2"), ("BREAKER__SLOW_CALL", "900ms"), ("BREAKER__FAILURE_RATE", "0.4")];
    for (name, value) in [("DEADLINE", "1s")].into_iter().chain(breaker) {
        environment.push((format!("FLOWVIGIL__ML__SAGEMAKER__{name}").leak(), value.to_owned()));
    }
    // The metrics are asked more often than a scraper would.
    environment.push(("FLOWVIGIL__API__RATE_LIMIT__PER_SECOND", "10000".to_owned()));
    environment.push(("FLOWVIGIL__API__RATE_LIMIT__BURST", "10000".to_owned()));
    let service = start(folder.path(), &environment);
    service.append(&windows(0..40));
    let transitions = |to: &str| {
        let count = |endpoint: &str| {
            let labels = format!("{endpoint}\",to=\"{to}\"");
            metric(&service, "flowvigil_model_endpoint_breaker_transitions", &labels)
        };
        [count("isolation-forest-endpoint"), count("lstm-model-endpoint")]
    };
    let rose = |to: &str, before: [f64; 2]| transitions(to).iter().zip(before).all(|(now, before)| *now > before);
    assert!(soon(|| metric(&service, "flowvigil_model_windows_total{", "variant=\"primary\"") > 0.0));
    let mut next = 40;
    for fault in FAULTS {
        let (opened, half_opened, closed) = (transitions("open"), transitions("half_open"), transitions("closed"));
        proxy.set(fault);
        next = feed_until(&service, next, || rose("open", opened));
        proxy.set(Fault::None);
        next = feed_until(&service, next, || rose("closed", closed));
        assert!(rose("half_open", half_opened), "{fault:?}: it closes by way of half-open");
        next = feed_until(&service, next, || service.get("/health/ready")["status"] == "ready");
    }
    assert_eq!(lost(&service, next), 0.0);
}

/// Of the windows that have closed, those that nobody scored, once all are. The last ones are still open.
fn lost(service: &Service, next: u32) -> f64 {
    let least = f64::from((next - 3) * HOSTS);
    soon(|| (scored(service) as u32).is_multiple_of(HOSTS) && scored(service) >= least);
    (least - scored(service)).max(f64::from(scored(service) as u32 % HOSTS)).max(0.0)
}

#[test]
fn a_restart_does_not_silence_the_sequence_model() {
    let address = free_port();
    let _server = Server::listen(&address, &[]);
    let folder = tempfile::tempdir().unwrap();
    let mut environment = asking(&format!("http://{address}"));
    environment.push(("FLOWVIGIL__PIPELINE__SNAPSHOT_INTERVAL", "200ms".to_owned()));
    let asked = |service: &Service| {
        let report = service.get("/v1/models");
        report["endpoints"][1]["variants"]["primary"]["windows"].as_u64().unwrap_or(0)
    };
    let first = start(folder.path(), &environment);
    first.append(&windows(0..40));
    let next = feed_until(&first, 40, || asked(&first) >= 10);
    let saved = || metric(&first, "flowvigil_snapshots_total", "saved");
    let before = saved();
    let next = feed_until(&first, next, || saved() > before + 1.0);
    drop(first);

    // The same state and the same log; what comes now is judged with what was remembered.
    let second = start(folder.path(), &environment);
    second.append(&windows(next..next + 6));
    assert!(soon(|| asked(&second) > 0), "the sequence model is asked at once: {:#}", second.get("/v1/models"));
    assert!(scored(&second) < f64::from(24 * HOSTS), "before the two hours that a new host is silent");
}

/// An artifact as a deployment would train it, whose data end so many days later than those of the embedded one.
fn trained_until(days: u32) -> Vec<u8> {
    let mut model = artifact::embedded().unwrap();
    model.manifest.source = Source::Deployment;
    model.manifest.data.to = model.manifest.data.to.plus(days * 86_400);
    artifact::pack(&model)
}

#[test]
fn a_model_that_no_longer_fits_is_announced_and_another_is_taken_up_without_losing_a_window() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.tar.gz");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    artifact::write_whole(&model, &trained_until(0)).unwrap();
    let environment = [
        ("FLOWVIGIL__ML__MODEL__PATH", path(&model)),
        ("FLOWVIGIL__ML__MODEL__RELOAD", "1s".to_owned()),
        ("FLOWVIGIL__ML__DRIFT__CHECK_EVERY", "1s".to_owned()),
        ("FLOWVIGIL__ML__DRIFT__WINDOWS", "50".to_owned()),
    ];
    let service = start(folder.path(), &environment);
    service.append(&windows(0..60));
    let announced = service.wait_for_line("Model Drift Detected");
    let announced: Value = serde_json::from_str(&announced).unwrap();
    let reasons = announced["detail"]["reasons"].to_string();
    assert!(reasons.contains("days old"), "its data end in a simulated March: {reasons}");
    assert!(soon(|| service.wait_until("/v1/models", |_| true)["drift"]["features"][0][1].as_f64() > Some(0.0)));
    assert!(soon(|| metric(&service, "flowvigil_model_retrain_recommended", "") == 1.0));

    let before = service.get("/v1/models")["model"]["model_version"].as_str().unwrap().to_owned();
    artifact::write_whole(&model, &trained_until(1)).unwrap();
    service.wait_until("/v1/models", |report| report["model"]["model_version"] != before.as_str());
    service.append(&windows(60..70));
    // The last one is open, and the one before waits for what is late.
    let closed = f64::from(68 * HOSTS);
    assert!(soon(|| scored(&service) >= closed), "no window is lost: {} of {closed}", scored(&service));
    // What was scored is counted a moment after it is scored.
    let report = service.wait_until("/v1/models", |report| report["variants"]["local"]["windows"].as_u64() > Some(0));
    assert_eq!(report["exchanged"], 1);
}

/// As many windows as a new host is silent for, and four more.
const SCORED: u32 = 28;

/// Ordinary windows of many hosts, in a file.
fn log_of(folder: &Path, hosts: u32, windows: u32) -> String {
    let mut state = hosts;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % below
    };
    let mut lines = String::new();
    for (window, host) in (0..windows).flat_map(|window| (0..hosts).map(move |host| (window, host))) {
        for call in 0..2 + random(4) {
            let start = EPOCH + window * 300 + call * 20 + host % 7;
            let (address, port) = (format!("10.0.{}.{}", host / 200, host % 200 + 1), 40_000 + call);
            let (peer, bytes) = (random(6), 2_000 + random(20_000));
            lines.push_str(&format!(
                "2 123456789012 eni-{host} {address} 198.51.100.{peer} {port} 443 6 12 {bytes} {start} {} ACCEPT OK\n",
                start + 5
            ));
        }
    }
    let path = folder.join(format!("{hosts}x{windows}.log")).display().to_string();
    std::fs::write(&path, lines).unwrap();
    path
}

/// The embedded model with a calibration that takes every score for a rare one, unpacked: a canary that would page all night.
fn nervous(folder: &Path) -> String {
    let folder = folder.join("nervous");
    artifact::write_folder(&artifact::embedded().unwrap(), &folder).unwrap();
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap() };
    let lower = |number: &mut Value| *number = Value::from(number.as_f64().unwrap() - 100.0);
    let mut calibration = read("calibration.json");
    for scorer in ["top3_z", "forest", "lstm"] {
        let Value::Object(classes) = calibration[scorer]["classes"].take() else { panic!("there are classes") };
        calibration[scorer]["classes"] = Value::Object(serde_json::Map::new());
        assert!(!classes.is_empty());
        let pooled = &mut calibration[scorer]["pooled"];
        pooled["body"].as_array_mut().unwrap().iter_mut().for_each(lower);
        lower(&mut pooled["threshold"]);
    }
    let bytes = serde_json::to_vec(&calibration).unwrap();
    let mut manifest = read("manifest.json");
    manifest["model_version"] = Value::from("nervous");
    let digest = Sha256::digest(&bytes).iter().fold(String::new(), |all, byte| format!("{all}{byte:02x}"));
    manifest["files"]["calibration.json"] = serde_json::json!({ "sha256": digest, "bytes": bytes.len() });
    std::fs::write(folder.join("calibration.json"), bytes).unwrap();
    std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    folder.display().to_string()
}

/// Two models of the same traffic, as two nights of training leave them: each with its own trees and its own calibration.
fn two_trained(folder: &Path) -> [String; 2] {
    let log = log_of(folder, 60, 100);
    ["3", "4"].map(|seed| {
        let model = folder.join(format!("{seed}.tar.gz")).display().to_string();
        let small = ["--trees", "20", "--sample", "256", "--epochs", "1", "--seed", seed];
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowvigil"));
        let done = command.args(["train", "--input", &log, "--out", &model]).args(small).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        model
    })
}

/// The command's verdict on a canary that is served beside a primary: it asks both variants about the same windows.
fn verdict_of(server: &Server, log: &[&str], environment: &[(&'static str, &str)]) -> Value {
    let limits = environment.iter().map(|(name, value)| (*name, (*value).to_owned()));
    let mut environment = asking(&format!("http://{}", server.address));
    environment.extend(limits);
    environment.push(("FLOWVIGIL__ML__SAGEMAKER__DEADLINE", "1m".to_owned()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowvigil"));
    let compared = command.args(["models", "compare"]).args(log).envs(environment).output().unwrap();
    let told = String::from_utf8_lossy(&compared.stderr).into_owned();
    assert!(compared.status.success(), "{told}");
    let report: Value = serde_json::from_slice(&compared.stdout).unwrap();
    let verdict = report["verdict"].as_str().unwrap().replace('_', " ");
    assert!(told.contains(&format!("canary against primary: {verdict}")), "{told} {report:#}");
    for variant in ["primary", "canary"] {
        assert_eq!((&report[variant]["errors"], &report[variant]["windows"]), (&Value::from(0), &report["pairs"]));
        assert!(report[variant]["latency_p99_ms"].as_f64().unwrap() > 0.0, "{report:#}");
    }
    report
}

#[test]
fn a_served_canary_is_held_until_enough_was_compared_and_then_rolled_back_for_its_alerts() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&["--canary", &nervous(folder.path())]);
    let held = verdict_of(&server, &["--input", &log_of(folder.path(), 5, SCORED)], &[]);
    assert_eq!(held["verdict"], "hold", "{held:#}");
    assert!(held["reasons"][0].as_str().unwrap().ends_with("paired windows of 10000"), "{held:#}");
    assert!(held["pairs"].as_u64().unwrap() >= 15, "{held:#}");

    let rolled_back = verdict_of(&server, &["--input", &log_of(folder.path(), 270, SCORED)], &[]);
    assert_eq!(rolled_back["verdict"], "roll_back", "{rolled_back:#}");
    assert!(rolled_back["reasons"][0].as_str().unwrap().ends_with("times the primary's alerts"), "{rolled_back:#}");
    assert_eq!(rolled_back["canary"]["alerts"], rolled_back["pairs"]);
    assert!(rolled_back["alert_ratio"].as_f64().unwrap() > 5.0, "{rolled_back:#}");
}

#[test]
fn a_served_canary_that_agrees_with_the_primary_is_promoted_once_enough_was_compared() {
    let folder = tempfile::tempdir().unwrap();
    let [primary, canary] = two_trained(folder.path());
    let server = Server::start(&["--model", &primary, "--canary", &canary]);
    let log = log_of(folder.path(), 270, SCORED);
    let promoted = verdict_of(&server, &["--input", &log], &[("FLOWVIGIL__ML__CANARY__PAIRS", "1000")]);
    assert_eq!((&promoted["verdict"], &promoted["reasons"]), (&Value::from("promote"), &serde_json::json!([])));
    assert!(promoted["pairs"].as_u64().unwrap() >= 1_000, "{promoted:#}");
    // They are not the same model: it is not for being equal that it is promoted.
    assert!((0.85..1.0).contains(&promoted["spearman"].as_f64().unwrap()), "{promoted:#}");
    assert!(promoted["distance"].as_f64().unwrap() > 0.0, "{promoted:#}");
}

#[test]
fn the_running_service_tells_that_the_canary_may_take_over() {
    let folder = tempfile::tempdir().unwrap();
    let [primary, canary] = two_trained(folder.path());
    let server = Server::start(&["--model", &primary, "--canary", &canary]);
    let mut environment = asking(&format!("http://{}", server.address));
    // At 100 pairs chance alone makes an excess of .12.
    for (name, value) in [
        ("FLOWVIGIL__ML__SAGEMAKER__PAIRED_EVERY", "1"),
        ("FLOWVIGIL__ML__CANARY__PAIRS", "100"),
        ("FLOWVIGIL__ML__CANARY__EXCESS", "0.12"),
        ("FLOWVIGIL__ML__DRIFT__CHECK_EVERY", "1s"),
    ] {
        environment.push((name, value.to_owned()));
    }
    let service = start(folder.path(), &environment);
    assert_eq!(service.get("/v1/models")["canary"]["verdict"], "hold", "nothing was compared yet");
    service.append(&std::fs::read_to_string(log_of(folder.path(), 50, SCORED)).unwrap());
    let report = service.wait_until("/v1/models", |report| report["canary"]["verdict"] == "promote");
    assert!(report["canary"]["pairs"].as_u64().unwrap() >= 100, "{report:#}");
    assert_eq!(report["canary"]["reasons"], serde_json::json!([]), "{report:#}");
    assert!(soon(|| metric(&service, "flowvigil_model_canary_verdict", "") == 1.0), "{report:#}");
}

#[test]
fn the_running_service_compares_the_canary_behind_its_endpoint() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&["--canary", &nervous(folder.path()), "--canary-percent", "50"]);
    let mut environment = asking(&format!("http://{}", server.address));
    environment.push(("FLOWVIGIL__ML__SAGEMAKER__PAIRED_EVERY", "1".to_owned()));
    let service = start(folder.path(), &environment);
    service.append(&windows(0..40));
    let compared = |report: &Value| report["canary"]["pairs"].as_u64() >= Some(20);
    let asked =
        |report: &Value, variant: &str| report["endpoints"][0]["variants"][variant]["calls"].as_u64() >= Some(1);
    feed_until(&service, 40, || {
        let report = service.get("/v1/models");
        compared(&report) && asked(&report, "primary") && asked(&report, "canary")
    });
    let report = service.get("/v1/models");
    let canary = &report["canary"];
    assert_eq!(canary["verdict"], "hold", "{report:#}");
    assert!(canary["reasons"][0].as_str().unwrap().ends_with("paired windows of 10000"), "{report:#}");
    assert_eq!(canary["canary"]["alerts"], canary["canary"]["windows"], "it takes everything for rare: {report:#}");
    assert!(canary["alert_ratio"].as_f64().unwrap() > 5.0, "{report:#}");
}

/// What every registry promises.
async fn keeps_one_in_charge(registry: &dyn Registry) {
    let manifest = artifact::embedded().unwrap().manifest;
    let version = |name: &str, at: u32| {
        let mut manifest = manifest.clone();
        manifest.model_version = name.to_owned();
        Version::of(&manifest, &format!("s3://models/{name}.tar.gz"), State::Candidate, EventTime(at))
    };
    assert_eq!(registry.primary().await.unwrap(), None);
    for (name, at) in [("a", 10), ("b", 20), ("c", 30)] {
        registry.put(&version(name, at)).await.unwrap();
    }
    registry.set("a", State::Primary, EventTime(40)).await.unwrap();
    registry.set("b", State::Canary, EventTime(50)).await.unwrap();
    registry.set("b", State::Primary, EventTime(60)).await.unwrap();
    let states = |versions: Vec<Version>| -> Vec<(String, State)> {
        versions.into_iter().map(|v| (v.version, v.state)).collect()
    };
    let listed = states(registry.list().await.unwrap());
    let named = |name: &str, state| (name.to_owned(), state);
    assert_eq!(listed, [named("a", State::Retired), named("b", State::Primary), named("c", State::Candidate)]);
    let primary = registry.primary().await.unwrap().unwrap();
    assert_eq!((primary.changed, primary.metrics), (EventTime(60), manifest.metrics.clone()));
    let unknown = registry.set("d", State::Primary, EventTime(70)).await.unwrap_err().to_string();
    assert!(unknown.contains("model d is not registered"), "{unknown}");
    assert_eq!(registry.primary().await.unwrap().unwrap().version, "b");
}

#[tokio::test]
async fn a_registry_in_sqlite_keeps_one_version_in_charge() {
    keeps_one_in_charge(&SqliteRegistry::in_memory().unwrap()).await;
}

#[tokio::test]
async fn a_registry_in_dynamodb_keeps_one_version_in_charge() {
    let Some(aws) = aws().await else { return };
    let table = unique("models");
    let settings = dynamodb::Settings {
        table: unique("anomalies"),
        models_table: table.clone(),
        retention: SignedDuration::from_hours(1),
        timeout: SignedDuration::from_secs(5),
    };
    let schema = Schema::new(&aws, &settings);
    for step in schema.plan().await.unwrap() {
        schema.apply(&step).await.unwrap();
    }
    keeps_one_in_charge(&DynamoRegistry::new(&aws, &table, SignedDuration::from_secs(5))).await;
}

#[tokio::test]
async fn an_artifact_in_s3_is_read_once_until_it_changes() {
    let Some(aws) = aws().await else { return };
    let config = aws_sdk_s3::config::Builder::from(&aws).force_path_style(true).build();
    let bucket = unique("artifacts");
    aws_sdk_s3::Client::from_conf(config).create_bucket().bucket(&bucket).send().await.unwrap();
    let (artifacts, place) = (Artifacts::new(&aws, true), format!("s3://{bucket}/models/model.tar.gz"));
    let missing = artifacts.read(&place, None).await.unwrap_err().to_string();
    assert!(missing.contains(&place), "{missing}");
    artifacts.write(&place, trained_until(0)).await.unwrap();
    let (first, mark) = artifacts.read(&place, None).await.unwrap().unwrap();
    assert!(artifacts.read(&place, Some(&mark)).await.unwrap().is_none(), "it has not changed");
    artifacts.write(&place, trained_until(1)).await.unwrap();
    let (second, _) = artifacts.read(&place, Some(&mark)).await.unwrap().unwrap();
    assert_ne!(first.manifest.model_version, second.manifest.model_version);
    artifacts.write(&place, b"no artifact".to_vec()).await.unwrap();
    let refused = artifacts.read(&place, None).await.unwrap_err().to_string();
    assert!(refused.contains("model refused"), "{refused}");
}

#[test]
fn the_version_in_charge_is_the_one_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let place = |day: u32| folder.path().join(format!("{day}.tar.gz")).display().to_string();
    for day in [0, 1] {
        artifact::write_whole(Path::new(&place(day)), &trained_until(day)).unwrap();
    }
    let database = folder.path().join("anomalies.db");
    let models = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowvigil"));
        let done = command.arg("models").args(arguments).env("FLOWVIGIL__PUBLISH__SQLITE__PATH", &database).output();
        let done = done.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let first = models(&["register", &place(0), "--state", "primary"]);
    let environment = [
        ("FLOWVIGIL__ML__MODEL__PATH", "model-configuration".to_owned()),
        ("FLOWVIGIL__ML__MODEL__RELOAD", "1s".to_owned()),
    ];
    let service = start(folder.path(), &environment);
    let in_use = |service: &Service| service.get("/v1/models")["model"]["model_version"].as_str().unwrap().to_owned();
    assert!(first.starts_with(&in_use(&service)), "{first} {}", in_use(&service));
    let second = models(&["register", &place(1)]);
    let version = second.split(' ').next().unwrap();
    models(&["set", version, "primary"]);
    service.wait_until("/v1/models", |report| report["model"]["model_version"] == version);
    let listed = models(&["list"]);
    assert!(listed.contains("retired") && listed.contains("primary"), "{listed}");
}
