//! The models over the wire: the real SDK, the real model server as a process, and faults between them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_sagemakerruntime::config::{Credentials, Region, SharedCredentialsProvider};
use flowvigil::flow::{Address, EventTime};
use flowvigil::ml::artifact::{self, Slot};
use flowvigil::ml::breaker::State;
use flowvigil::ml::canary::Verdict;
use flowvigil::ml::model::Judge;
use flowvigil::ml::sagemaker::{BreakerSettings, SageMaker, Settings};
use flowvigil::ml::{FeatureVector, Score, Scorer, features};
use jiff::SignedDuration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::servers::eventually;

/// `flowvigil serve` as a process, ended with the test.
pub struct Server {
    process: Child,
    pub address: String,
}

impl Server {
    pub fn start(arguments: &[&str]) -> Server {
        Server::listen("127.0.0.1:0", arguments)
    }

    pub fn listen(address: &str, arguments: &[&str]) -> Server {
        let mut process = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
            .args(["serve", "--listen", address])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit("http://").next().unwrap().to_owned();
        Server { process, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the proxy does with a request.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fault {
    None,
    /// It never answers: who asks has to give up.
    Silent,
    /// It takes its time, and answers.
    Slow(Duration),
    Reset,
    Garbage,
    Status(u16, &'static str),
    WrongSchema,
    TooFewScores,
    EverySecond,
    /// Half of the calls fail, with all their retries.
    HalfOfCalls,
    /// The calls to the canary fail.
    CanaryFails,
    /// The canary takes so much longer.
    CanarySlow(Duration),
}

/// All that lasts until it is mended.
pub const FAULTS: [Fault; 11] = [
    Fault::Silent,
    Fault::Reset,
    Fault::Garbage,
    Fault::Status(424, "ModelError"),
    Fault::Status(429, "ModelNotReadyException"),
    Fault::Status(500, "InternalFailure"),
    Fault::Status(503, "ServiceUnavailable"),
    Fault::Status(400, "ValidationError"),
    Fault::WrongSchema,
    Fault::TooFewScores,
    Fault::HalfOfCalls,
];

/// Stands between SDK and server; one request a connection, so that each meets the fault of the moment.
pub struct Proxy {
    pub url: String,
    fault: Arc<Mutex<Fault>>,
    requests: Arc<AtomicU64>,
}

impl Proxy {
    pub async fn start(server: &Server) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fault = Arc::new(Mutex::new(Fault::None));
        let requests = Arc::new(AtomicU64::new(0));
        let (of, count, upstream) = (fault.clone(), requests.clone(), server.address.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve_one(client, upstream.clone(), of.clone(), count.clone()));
            }
        });
        Proxy { url, fault, requests }
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }
}

async fn serve_one(mut client: TcpStream, upstream: String, fault: Arc<Mutex<Fault>>, requests: Arc<AtomicU64>) {
    let Some(request) = read_request(&mut client).await else { return };
    let number = requests.fetch_add(1, Ordering::SeqCst);
    let mut fault = *fault.lock().unwrap();
    if fault == Fault::EverySecond {
        fault = if number.is_multiple_of(2) { Fault::Status(500, "InternalFailure") } else { Fault::None };
    }
    if fault == Fault::HalfOfCalls {
        fault = if call_of(&request).is_multiple_of(2) { Fault::Status(500, "InternalFailure") } else { Fault::None };
    }
    let of_canary = String::from_utf8_lossy(&request).to_ascii_lowercase().contains("target-variant: canary");
    fault = match fault {
        Fault::CanaryFails | Fault::CanarySlow(_) if !of_canary => Fault::None,
        Fault::CanaryFails => Fault::Status(424, "ModelError"),
        Fault::CanarySlow(time) => Fault::Slow(time),
        other => other,
    };
    let reply = match fault {
        Fault::None => forward(&upstream, &request).await,
        Fault::Silent => {
            // Until the other side has gone away.
            while client.read_buf(&mut Vec::with_capacity(64)).await.is_ok_and(|bytes| bytes > 0) {}
            return;
        }
        Fault::Slow(time) => {
            tokio::time::sleep(time).await;
            forward(&upstream, &request).await
        }
        Fault::Reset => {
            // An abortive close: what was not sent is thrown away and the peer gets a RST.
            let _ = client.set_zero_linger();
            return;
        }
        Fault::Garbage => b"\x16\x03\x01 this is not HTTP\r\n\r\n".to_vec(),
        Fault::Status(status, code) => respond(status, code, r#"{"Message":"told to fail"}"#),
        Fault::WrongSchema => respond(200, "", r#"{"scores":[],"model_version":"x","schema":"hw31-v2"}"#),
        Fault::TooFewScores => respond(200, "", r#"{"scores":[{"score":0.5}],"model_version":"x","schema":"hw27-v1"}"#),
        Fault::EverySecond | Fault::HalfOfCalls | Fault::CanaryFails | Fault::CanarySlow(_) => {
            unreachable!("resolved above")
        }
    };
    let _ = client.write_all(&reply).await;
    let _ = client.shutdown().await;
}

/// A number that is the same for all attempts of one call: the SDK names them.
fn call_of(request: &[u8]) -> u64 {
    let head = String::from_utf8_lossy(request).to_ascii_lowercase();
    let id = head.lines().find_map(|line| line.strip_prefix("amz-sdk-invocation-id:")).unwrap().trim();
    id.bytes().map(u64::from).sum()
}

/// Head and body of one request.
async fn read_request(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if client.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        if bytes.len() >= end + 4 + length.unwrap_or(0) {
            return Some(bytes);
        }
    }
}

async fn forward(upstream: &str, request: &[u8]) -> Vec<u8> {
    let mut server = TcpStream::connect(upstream).await.unwrap();
    let end = request.windows(2).position(|two| two == b"\r\n").unwrap() + 2;
    server.write_all(&request[..end]).await.unwrap();
    server.write_all(b"connection: close\r\n").await.unwrap();
    server.write_all(&request[end..]).await.unwrap();
    let mut reply = Vec::new();
    server.read_to_end(&mut reply).await.unwrap();
    reply
}

fn respond(status: u16, code: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Told\r\ncontent-type: application/json\r\nx-amzn-errortype: {code}\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The client with what one shard remembers of its hosts.
struct Client {
    scorer: SageMaker,
    judge: tokio::sync::Mutex<Judge>,
}

impl std::ops::Deref for Client {
    type Target = SageMaker;

    fn deref(&self) -> &SageMaker {
        &self.scorer
    }
}

async fn client(url: &str, paired_every: u64) -> Client {
    client_with(url, |settings| settings.paired_every = paired_every).await
}

async fn client_with(url: &str, change: impl FnOnce(&mut Settings)) -> Client {
    let config = flowvigil::aws::load_at(url)
        .await
        .into_builder()
        .region(Region::new("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new("test", "test", None, None, "test")))
        .build();
    let mut settings = Settings {
        isolation_forest_endpoint: "isolation-forest-endpoint".to_owned(),
        lstm_endpoint: "lstm-model-endpoint".to_owned(),
        deadline: SignedDuration::from_millis(1_500),
        request_windows: 50,
        concurrency: 4,
        paired_every: 0,
        breaker: BreakerSettings {
            window: SignedDuration::from_secs(5),
            calls_min: 3,
            failure_rate: 0.5,
            slow_call: SignedDuration::from_millis(1_000),
            slow_rate: 0.5,
            pause: SignedDuration::from_millis(500),
            pause_max: SignedDuration::from_secs(2),
        },
    };
    change(&mut settings);
    let slot = Arc::new(Slot::new(artifact::embedded().unwrap(), None));
    let limits = flowvigil::settings::Settings::defaults().ml.canary;
    Client { scorer: SageMaker::new(&config, settings, limits, slot), judge: Judge::new(1_000).into() }
}

/// Windows of four hosts that are past their warm-up, at the given step of time.
fn windows(step: u32) -> Vec<FeatureVector> {
    let mut state = u64::from(step) * 7_919 + 1;
    let mut noise = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (1..=4)
        .map(|host| FeatureVector {
            host: Address::v4(0x0a00_0000 + host),
            window: EventTime(1_772_438_400 + step * features::WINDOW_SECONDS),
            history: 100 + step,
            values: features::NAMES.map(|_| noise()).to_vec(),
            sequence: features::SEQUENCE_NAMES.map(|_| noise()).to_vec(),
            raw: features::RAW_NAMES.map(|_| 3.0).to_vec(),
        })
        .collect()
}

async fn score(client: &Client, step: u32) -> Vec<Score> {
    let (mut judge, batch) = (client.judge.lock().await, windows(step));
    // An endpoint that never answers is not waited for: without a deadline this would be for ever.
    let scored = tokio::time::timeout(Duration::from_secs(30), client.score(&mut judge, &batch));
    let scores = scored.await.expect("the deadline is kept").unwrap();
    assert_eq!(scores.len(), 4, "no window is lost");
    assert!(scores.iter().all(|score| score.p_value.is_some()), "{scores:?}");
    scores
}

/// Lets the hosts' rhythm be known, so that both endpoints are asked.
async fn warm(client: &Client) -> u32 {
    for step in 0..30 {
        score(client, step).await;
    }
    30
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_scores_as_the_artifact_does_and_says_who_spoke() {
    let server = Server::start(&[]);
    let client = client(&format!("http://{}", server.address), 0).await;
    let step = warm(&client).await;
    let scores = score(&client, step).await;
    assert!(scores.iter().all(|s| !s.degraded && &*s.variant == "primary"), "{scores:?}");
    for status in client.status() {
        assert_eq!((status.breaker, status.failures), (State::Closed, 0), "{status:?}");
        assert_eq!(status.model_version.as_deref(), Some(&*scores[0].model_version));
    }
    let model = artifact::embedded().unwrap();
    let class_quiet = model.judge_row(&windows(step)[0].values, None, "quiet");
    assert!(class_quiet.p_value.is_some());
}

/// One fault after the other: the breaker opens, the local model answers every window, one probe brings the endpoint back.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_endpoint_does_no_window_is_lost_and_one_probe_recovers() {
    let server = Server::start(&[]);
    for fault in FAULTS {
        let proxy = Proxy::start(&server).await;
        let client = client(&proxy.url, 0).await;
        let mut step = warm(&client).await;
        proxy.set(fault);
        let opened = eventually(Duration::from_secs(30), async || {
            step += 1;
            let scores = score(&client, step).await;
            assert!(fault == Fault::HalfOfCalls || scores.iter().all(|s| s.degraded), "{fault:?}: {scores:?}");
            client.status().iter().all(|s| s.life.opened >= 1)
        })
        .await;
        assert!(opened, "{fault:?}: {:?}", client.status());
        let status = client.status();
        assert!(status.iter().all(|s| s.failures >= 1 && s.last_failure.is_some()), "{fault:?}: {status:?}");

        // Recovery: what was admitted while half-open is one probe for each endpoint.
        proxy.set(Fault::None);
        let recovered = eventually(Duration::from_secs(30), async || {
            step += 1;
            let before = proxy.requests.load(Ordering::SeqCst);
            let scores = score(&client, step).await;
            let asked = proxy.requests.load(Ordering::SeqCst) - before;
            assert!(asked <= 2, "{fault:?}: {asked} calls to two endpoints");
            scores.iter().all(|s| !s.degraded)
        })
        .await;
        assert!(recovered, "{fault:?}: {:?}", client.status());
        // Where half of the calls are answered, a probe may be as well before the fault has gone.
        let once = |closed: u64| closed == 1 || fault == Fault::HalfOfCalls && closed >= 1;
        assert!(client.status().iter().all(|s| once(s.life.closed) && s.life.half_opened >= 1), "{fault:?}");
    }
}

/// Half of the attempts fail: a retry hides most of it, and what it does not hide is answered by the local model.
#[tokio::test(flavor = "multi_thread")]
async fn half_of_the_attempts_failing_is_answered_by_retries_or_by_the_local_model() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(&server).await;
    let client = client(&proxy.url, 0).await;
    let step = warm(&client).await;
    proxy.set(Fault::EverySecond);
    let before = proxy.requests.load(Ordering::SeqCst);
    let calls = |client: &Client| client.status().iter().map(|s| s.calls).sum::<u64>();
    let called = calls(&client);
    let mut by_endpoint = 0;
    for more in 1..=20 {
        by_endpoint += score(&client, step + more).await.iter().filter(|s| &*s.variant == "primary").count();
    }
    let attempts = proxy.requests.load(Ordering::SeqCst) - before;
    assert!(attempts > calls(&client) - called, "{attempts} attempts: some were tried again");
    assert!(by_endpoint > 0, "the endpoint is not given up for what a retry mends");
}

/// One call at a time, and each takes two thirds of the deadline: the second is cut off when it has hardly begun. That says
/// nothing about its endpoint, although one failure would open this breaker.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waited_for_another_and_is_cut_off_tells_the_breaker_nothing() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(&server).await;
    let client = client_with(&proxy.url, |settings| {
        settings.deadline = SignedDuration::from_secs(6);
        settings.concurrency = 1;
        settings.breaker.calls_min = 1;
        settings.breaker.slow_call = SignedDuration::from_millis(5_900);
    })
    .await;
    let step = warm(&client).await;
    proxy.set(Fault::Slow(Duration::from_secs(4)));
    score(&client, step).await;
    let mut status = client.status();
    status.sort_by_key(|endpoint| endpoint.failures);
    assert_eq!(status.iter().map(|endpoint| endpoint.failures).collect::<Vec<_>>(), [0, 1], "{status:?}");
    assert!(status.iter().all(|s| s.breaker == State::Closed && s.life.opened == 0), "{status:?}");

    // An endpoint that takes so long by itself is another matter.
    proxy.set(Fault::Slow(Duration::from_secs(9)));
    score(&client, step + 1).await;
    assert!(client.status().iter().any(|s| s.life.opened == 1), "{:?}", client.status());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_no_reason_to_wait() {
    let client = client("http://127.0.0.1:9", 0).await;
    let scores = score(&client, 1).await;
    assert!(scores.iter().all(|s| s.degraded && &*s.variant == "local"), "{scores:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_compared_with_the_primary_on_the_same_windows() {
    let folder = tempfile::tempdir().unwrap();
    let canary = folder.path().join("canary.tar.gz");
    artifact::write_whole(&canary, &artifact::pack(&artifact::embedded().unwrap())).unwrap();
    let server = Server::start(&["--canary", canary.to_str().unwrap(), "--canary-percent", "50"]);
    let client = client(&format!("http://{}", server.address), 1).await;
    let step = warm(&client).await;
    let compared = eventually(Duration::from_secs(20), async || client.compared().pairs >= 100).await;
    let report = client.compared();
    assert!(compared, "{report:?}");
    assert!((report.spearman - 1.0).abs() < 1e-9 && report.kappa == 1.0, "the same model twice: {report:?}");
    let mut variants = std::collections::BTreeSet::new();
    for more in 0..20 {
        variants.extend(score(&client, step + more).await.into_iter().map(|s| s.variant.to_string()));
    }
    assert_eq!(variants.into_iter().collect::<Vec<_>>(), ["canary", "primary"]);
}

/// A canary that is the primary over again, behind a fault of its own, after more calls than the verdict needs.
async fn canary_behind(fault: Fault) -> flowvigil::ml::canary::Report {
    let folder = tempfile::tempdir().unwrap();
    let canary = folder.path().join("canary.tar.gz");
    artifact::write_whole(&canary, &artifact::pack(&artifact::embedded().unwrap())).unwrap();
    let server = Server::start(&["--canary", canary.to_str().unwrap(), "--canary-percent", "0"]);
    let proxy = Proxy::start(&server).await;
    proxy.set(fault);
    let client = client_with(&proxy.url, |settings| {
        settings.paired_every = 1;
        settings.deadline = SignedDuration::from_secs(20);
        settings.breaker.slow_call = SignedDuration::from_secs(19);
    })
    .await;
    let mut step = 0;
    while client.compared().canary.calls < 100 {
        // Some at once, so that a slow canary does not make it long.
        for _ in 0..10 {
            score(&client, step).await;
            step += 1;
        }
        client.compare_now().await;
        assert!(step < 300, "{:?}", client.compared());
    }
    assert!(client.status().iter().all(|s| s.failures == 0), "the stream does not feel it: {:?}", client.status());
    client.compared()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_served_canary_whose_calls_fail_is_rolled_back() {
    let report = canary_behind(Fault::CanaryFails).await;
    assert_eq!(report.verdict, Verdict::RollBack, "{report:?}");
    assert_eq!(report.reasons, ["100.0 % of its calls fail, 0.0 % of the primary's"]);
    assert_eq!((report.primary.errors, report.canary.errors), (0, report.canary.calls));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_served_canary_that_is_slow_is_held() {
    let report = canary_behind(Fault::CanarySlow(Duration::from_millis(700))).await;
    assert_eq!((report.verdict, report.canary.errors), (Verdict::Hold, 0), "{report:?}");
    let slow = |reason: &String| reason.contains("percentile of latency");
    assert!(report.reasons.iter().any(slow), "{report:?}");
}

fn flowvigil(root: &Path, arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(arguments)
        .env("FLOWVIGIL_SAGEMAKER_ROOT", root)
        .output()
        .unwrap()
}

#[test]
fn a_training_job_leaves_a_model_that_a_server_takes() {
    let root = tempfile::tempdir().unwrap();
    let channel = root.path().join("input/data/train");
    let config = root.path().join("input/config");
    std::fs::create_dir_all(&channel).unwrap();
    std::fs::create_dir_all(&config).unwrap();
    let log = channel.join("flows.log.gz");
    let simulate = ["simulate", "--hosts", "20", "--duration", "20h", "--demand", "0", "--out", log.to_str().unwrap()];
    assert!(flowvigil(root.path(), &simulate).status.success());
    let hyper = r#"{"epochs":"1","trees":"20","sample":"256","seed":"3","sagemaker_region":"eu-west-1"}"#;
    std::fs::write(config.join("hyperparameters.json"), hyper).unwrap();
    let trained = flowvigil(root.path(), &["train"]);
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let model = artifact::read(&root.path().join("model")).unwrap();
    assert_eq!((model.manifest.forest.trees, model.manifest.forest.seed), (20, 3));
    let server = Server::start(&["--model", root.path().join("model").to_str().unwrap()]);
    assert!(!server.address.is_empty());

    let told = String::from_utf8_lossy(&trained.stdout);
    assert!(told.contains(&model.manifest.model_version) && told.contains("share with a p-value up to"), "{told}");
    let page = std::fs::read_to_string(root.path().join("output/data/report.html")).unwrap();
    for scorer in ["forest", "lstm", "top3_z"] {
        assert!(page.contains(&format!("<figcaption>{scorer}: ")), "a plot of the scores of {scorer}");
    }
    assert!(page.matches("<rect").count() >= 3 * 20, "bars: {}", page.matches("<rect").count());
    let outside = ["http://", "https://", "src=", "href=", "<link", "<script", "@import", "url("];
    assert!(outside.iter().all(|reference| !page.contains(reference)), "it needs nothing but itself");
}

/// Every command that takes a model says why it does not take this one, and what is wrong with it is no failure that may pass.
#[test]
fn an_artifact_that_is_damaged_of_another_schema_or_too_large_is_refused_with_its_reason_and_exit_code_2() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();
    let bytes = artifact::pack(&artifact::embedded().unwrap());
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(path(name), bytes).unwrap();
        path(name)
    };
    let cut = write("cut.tar.gz", &bytes[..bytes.len() / 2]);
    let large = write("large.tar.gz", &vec![0; artifact::BYTES_MAX as usize + 1]);
    let nothing = write("nothing.tar.gz", b"");
    let folder = |name: &str, file: &str, change: &dyn Fn(String) -> String| {
        let folder = root.path().join(name);
        artifact::write_folder(&artifact::embedded().unwrap(), &folder).unwrap();
        let changed = change(std::fs::read_to_string(folder.join(file)).unwrap());
        std::fs::write(folder.join(file), changed).unwrap();
        path(name)
    };
    let another =
        folder("another", "manifest.json", &|text| text.replace("\"id\": \"hw27-v1\"", "\"id\": \"hw31-v2\""));
    let changed = folder("changed", "calibration.json", &|text| text.replacen('1', "2", 1));
    let log =
        write("flow.log", b"2 1 eni-1 10.0.0.1 198.51.100.1 40000 443 6 12 4000 1700000000 1700000005 ACCEPT OK\n");
    let refused = |arguments: &[&str], setting: &str, reason: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowvigil"));
        let done =
            command.args(arguments).env("FLOWVIGIL__ML__MODEL__PATH", setting).current_dir(&root).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!((done.status.code(), done.stdout.len()), (Some(2), 0), "{arguments:?}: {said}");
        assert!(said.contains(&format!("model refused: {reason}")), "{arguments:?}: {said}");
    };
    let reasons = [
        (&cut, "forest.bin: ".to_owned()),
        (&nothing, "".to_owned()),
        (&large, format!("{large} has more than {} bytes", artifact::BYTES_MAX)),
        (&another, "it was trained on features \"hw31-v2\", this version computes hw27-v1; train it again".to_owned()),
        (&changed, "calibration.json: its checksum is not the one in the manifest".to_owned()),
    ];
    for (model, reason) in &reasons {
        refused(&["models", "show", model], "", reason);
    }
    let (model, reason) = &reasons[4];
    refused(&["evaluate", "--model", model, "--input", &log], "", reason);
    refused(&["serve", "--listen", "127.0.0.1:0", "--model", model], "", reason);
    refused(&["serve", "--listen", "127.0.0.1:0", "--canary", model], "", reason);
    refused(&["models", "compare", "--primary", model, "--canary", model, "--input", &log], "", reason);
    refused(&["models", "register", model], "", reason);
    refused(&["detect", &log], model, reason);
    refused(&["run", &log, "--once"], model, reason);
}

/// What SageMaker itself asks of a hosting container, and the replies that clients of its Random Cut Forest read.
#[test]
fn the_hosting_contract_is_kept_in_all_three_spellings() {
    let server = Server::start(&[]);
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let url = |path: &str| format!("http://{}{path}", server.address);
    assert_eq!(agent.get(url("/ping")).call().unwrap().status(), 200);
    let post = |path: &str, kind: &str, accept: &str, body: &str| {
        let request = agent.post(url(path)).header("content-type", kind).header("accept", accept);
        let mut reply = request.send(body).unwrap();
        (reply.status().as_u16(), reply.body_mut().read_to_string().unwrap())
    };
    let row = features::NAMES.map(|_| "0.5").join(",");
    let (json, lines, csv) = ("application/json", "application/jsonlines", "text/csv");
    let (status, text) = post("/invocations", csv, json, &format!("{row}\n{row}\n"));
    let reply: serde_json::Value = serde_json::from_str(&text).unwrap();
    let score = reply["scores"][1]["score"].as_f64().unwrap();
    assert!(status == 200 && score > 0.0 && score < 1.0 && reply["scores"].as_array().unwrap().len() == 2, "{text}");
    let (status, text) = post("/invocations", lines, lines, &format!("{{\"features\":[{row}]}}\n"));
    assert_eq!(
        (status, serde_json::from_str::<serde_json::Value>(&text).unwrap()["score"].as_f64()),
        (200, Some(score))
    );
    let nested = format!("{{\"instances\":[{{\"data\":{{\"features\":{{\"values\":[{row}]}}}}}}]}}");
    assert_eq!(post("/invocations", json, csv, &nested), (200, format!("{score}\n")));

    let (status, text) = post("/invocations", csv, csv, "1,2,3\n");
    assert!(status == 422 && text.contains("row 1 has 3 features, hw27-v1 has 27"), "{status} {text}");
    assert_eq!(post("/invocations", "application/x-parquet", csv, "").0, 415);
    // The same by the runtime's own path: what the container refuses is a ModelError.
    let (status, text) = post("/endpoints/isolation-forest-endpoint/invocations", csv, csv, "1,2,3\n");
    let reply: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &reply["OriginalStatusCode"]), (424, &serde_json::Value::from(422)), "{text}");
}

#[test]
fn a_training_job_that_fails_says_why() {
    let root = tempfile::tempdir().unwrap();
    let failed = flowvigil(root.path(), &["train"]);
    assert!(!failed.status.success());
    let reason = std::fs::read_to_string(root.path().join("output/failure")).unwrap();
    assert!(reason.contains("read the channels"), "{reason}");
    std::fs::create_dir_all(root.path().join("input/config")).unwrap();
    std::fs::write(root.path().join("input/config/hyperparameters.json"), r#"{"tree":"5"}"#).unwrap();
    flowvigil(root.path(), &["train"]);
    let reason = std::fs::read_to_string(root.path().join("output/failure")).unwrap();
    assert!(reason.contains("hyperparameter tree is unknown"), "{reason}");
}
