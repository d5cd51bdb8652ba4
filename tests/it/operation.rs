//! What a running service tells its operators: metrics, lines for CloudWatch, letters about what could not be read or told.

use std::io::{BufRead, BufReader, Read, Write, copy};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flowvigil::publish::dead_letter::Letter;
use serde_json::{Value, json};

use crate::contract::Queue;
use crate::servers::{aws, eventually, unique};
use crate::service::{Service, soon};

/// Takes what is in a queue until it is enough.
async fn take_until(queue: &Queue, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let mut all = Vec::new();
    let so = eventually(Duration::from_secs(60), async || {
        all.extend(queue.take_all().await);
        enough(&all)
    });
    assert!(so.await, "the queue holds only {all:#?}");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_input_becomes_letters_with_reason_and_position_and_without_the_input() {
    let Some(aws) = aws().await else { return };
    let queue = Queue::new(&aws).await;
    let folder = tempfile::tempdir().unwrap();
    let environment = [
        ("FLOWVIGIL__PUBLISH__DEAD_LETTER__REFUSALS_QUEUE_URL", queue.url.as_str()),
        ("FLOWVIGIL__PUBLISH__DEAD_LETTER__REFUSALS_PER_MINUTE", "3"),
        ("FLOWVIGIL__TELEMETRY__LOG_LEVEL", "debug"),
    ];
    let service = Service::start(folder.path(), &environment);
    service.quiet_until(0);
    let bad = |port: &str| {
        format!("2 123456789012 eni-1 10.0.0.1 10.0.0.2 {port} 443 6 9 500 1700000000 1700000001 ACCEPT OK\n")
    };
    service.append(&(0..9).map(|n| bad(&format!("hunter{n}"))).collect::<String>());
    let letters = take_until(&queue, |letters| letters.len() >= 3).await;
    let Letter::Refusal { refusal, .. } = serde_json::from_value(letters[0].clone()).unwrap() else {
        panic!("{} is no letter about unreadable input", letters[0]);
    };
    assert_eq!(refusal.field.as_deref(), Some("srcport"));
    assert!(refusal.line >= 2 && refusal.source.ends_with("flow.log"), "{refusal:?}");
    let refused = r#"flowvigil_refused_total{field="srcport""#;
    service.wait_until("/metrics", |m| {
        m.as_str().unwrap_or_default().lines().any(|l| l.starts_with(refused) && l.ends_with(" 9"))
    });
    let counted = r#"flowvigil_dead_letters_total{kind="refusal",outcome="over the limit"} 6"#;
    service.wait_until("/metrics", |m| m.as_str().unwrap_or_default().contains(counted));
    let calls = r#"flowvigil_aws_calls_total{outcome="done",service="sqs"}"#;
    service.wait_until("/metrics", |m| m.as_str().unwrap_or_default().contains(calls));
    assert_eq!(queue.take_all().await.len(), 0, "the limit is three letters a minute");
    assert!(!json!(letters).to_string().contains("hunter") && !service.told().contains("hunter"));
}

/// Carries bytes between a port that nobody listened on until now and a server.
fn forward(port: SocketAddr, server: SocketAddr) {
    let listener = TcpListener::bind(port).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(upstream) = TcpStream::connect(server) else { return };
            for (mut from, mut to) in [(client.try_clone().unwrap(), upstream.try_clone().unwrap()), (upstream, client)]
            {
                std::thread::spawn(move || {
                    let _ = copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_bus_took_waits_as_a_letter_and_is_told_when_the_bus_is_back() {
    let Some(aws) = aws().await else { return };
    let (letters, subscribed, bus) = (Queue::new(&aws).await, Queue::new(&aws).await, unique("bus"));
    let events = aws_sdk_eventbridge::Client::new(&aws);
    events.create_event_bus().name(&bus).send().await.unwrap();
    let pattern = json!({"source": ["anomaly-detection-service"]}).to_string();
    events.put_rule().name(&bus).event_bus_name(&bus).event_pattern(pattern).send().await.unwrap();
    let target = aws_sdk_eventbridge::types::Target::builder().id("queue").arn(&subscribed.arn).build().unwrap();
    events.put_targets().rule(&bus).event_bus_name(&bus).targets(target).send().await.unwrap();
    // A port on which nobody listens yet.
    let away = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let endpoint = format!("http://{away}");
    let environment = [
        ("AWS_ENDPOINT_URL_EVENTBRIDGE", endpoint.as_str()),
        ("FLOWVIGIL__PUBLISH__EVENTBRIDGE__BUS", &bus),
        ("FLOWVIGIL__PUBLISH__EVENTBRIDGE__ATTEMPTS", "1"),
        ("FLOWVIGIL__PUBLISH__EVENTBRIDGE__TIMEOUT", "500ms"),
        ("FLOWVIGIL__PUBLISH__DEAD_LETTER__QUEUE_URL", &letters.url),
        ("FLOWVIGIL__PUBLISH__DEAD_LETTER__SWEEP_EVERY", "1s"),
        ("FLOWVIGIL__PUBLISH__DEAD_LETTER__HIDDEN", "1s"),
    ];
    let service = Service::start(folder.path(), &environment);
    service.scan("10.0.1.1", 0, 60);
    service.quiet_until(10);
    let put = r#"flowvigil_dead_letters_total{kind="announcement",outcome="put"}"#;
    service.wait_until("/metrics", |m| m.as_str().unwrap_or_default().contains(put));
    assert!(subscribed.take_all().await.is_empty());
    let there = std::env::var("AWS_ENDPOINT_URL").unwrap();
    forward(away, there.trim_start_matches("http://").parse().unwrap());
    let told = take_until(&subscribed, |events| !events.is_empty()).await;
    let event = &told[0];
    assert_eq!((&event["detail-type"], &event["detail"]["actor"]), (&json!("Anomaly Detected"), &json!("10.0.1.1")));
    let announced = r#"flowvigil_dead_letters_total{kind="announcement",outcome="announced"} 1"#;
    service.wait_until("/metrics", |m| m.as_str().unwrap_or_default().contains(announced));
    assert_eq!(service.get("/health/ready")["status"], "ready");
}

#[test]
fn lines_for_cloudwatch_come_from_the_counts_that_prometheus_sees() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[("FLOWVIGIL__TELEMETRY__EMF__INTERVAL", "1s")]);
    service.scan("10.0.1.1", 0, 60);
    service.quiet_until(10);
    let line = |name: &str| -> Value { serde_json::from_str(&service.wait_for_line(&format!("\"{name}\":"))).unwrap() };
    let detected = line("AnomaliesDetected");
    assert_eq!((&detected["AnomaliesDetected"], &detected["threat"]), (&json!(1.0), &json!("port_scan")));
    let directive = &line("ProcessingLatency")["_aws"]["CloudWatchMetrics"][0];
    assert_eq!(directive["Namespace"], "AnomalyDetection/Service");
    let directive = &line("QueueDepth")["_aws"]["CloudWatchMetrics"][0];
    assert_eq!(directive["Namespace"], "AnomalyDetection/Processing");

    let listed = service.get("/v1/anomalies");
    let id = listed["anomalies"][0]["anomaly_id"].as_str().unwrap();
    let url = format!("http://{}/v1/anomalies/{id}/feedback", service.address());
    let given = ureq::post(url).send_json(json!({"verdict": "false_positive", "by": "ada"})).unwrap();
    assert_eq!(given.status(), 201);
    // Who asks too often is told to wait, and asks again.
    let told = |text: &Value| text.as_str().is_some_and(|text| text.contains("flowvigil_false_positive_ratio 1"));
    let rate = || told(&service.get("/metrics"));
    assert!(soon(rate));
    assert_eq!(line("FalsePositiveRate")["FalsePositiveRate"], 1.0);
}

#[test]
fn a_suppression_made_over_the_api_counts_within_seconds_and_why_not_can_be_asked() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[("FLOWVIGIL__API__CACHE", "0s")]);
    let some = |answer: &Value| !answer["anomalies"].as_array().unwrap().is_empty();
    let before = service.get("/v1/explain?address=10.0.1.2");
    assert_eq!((&before["approaches"], &before["seen"]), (&json!([]), &json!([])), "nothing was seen yet");
    // Below the threshold: nothing is told, and how close it came is known though nobody asked before.
    service.scan("10.0.1.2", 0, 9);
    service.quiet_until(10);
    let judged = |answer: &Value| !answer["approaches"].as_array().unwrap().is_empty();
    let explained = service.wait_until("/v1/explain?address=10.0.1.2", judged);
    let approach = &explained["approaches"][0];
    assert_eq!((&approach["threat"], &approach["found"]), (&json!("port_scan"), &json!(false)), "{explained:#}");
    let condition = |words: &str| approach["conditions"].as_array().unwrap().iter().any(|c| c == words);
    assert!(condition("distinct_ports 9 ≥ 15 ports: no"), "{explained:#}");
    assert_eq!((&explained["seen"][0]["ours"], &explained["seen"][0]["conversations"]), (&json!(true), &json!(9)));
    let never = service.get("/v1/explain?address=10.0.77.7");
    assert!(never["note"].as_str().unwrap().starts_with("no record of what this task reads"), "{never:#}");
    let ports = approach["evidence"].as_array().unwrap().iter().find(|e| e["name"] == "distinct_ports").unwrap();
    assert_eq!((&ports["value"], &ports["threshold"]), (&json!(9.0), &json!(15.0)));

    let made = json!({"name": "weekly scan", "owner": "ada", "reason": "ours", "created": "2023-01-01T00:00:00Z",
        "expires": "2023-12-31T00:00:00Z", "match": {"actors": ["10.0.1.3"]}});
    let answer = ureq::post(format!("http://{}/v1/suppressions", service.address())).send_json(made).unwrap();
    assert_eq!(answer.status(), 201);
    // Every judgement reads the rules when the last reading is two seconds old.
    std::thread::sleep(Duration::from_millis(2100));
    service.scan("10.0.1.3", 20, 60);
    service.scan("10.0.1.4", 21, 60);
    service.quiet_until(30);
    service.wait_until("/v1/anomalies?actor=10.0.1.4", some);
    assert!(!some(&service.get("/v1/anomalies?actor=10.0.1.3")));
    let explained = service.get("/v1/explain?address=10.0.1.3");
    assert_eq!(explained["not_told"][0]["stage"], "suppression", "{explained:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_with_a_header_is_replayed_at_the_pace_of_its_lines() {
    let Some(aws) = aws().await else { return };
    let stream = unique("stream");
    aws_sdk_kinesis::Client::new(&aws).create_stream().stream_name(&stream).shard_count(1).send().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vpc.log");
    let line = |end: u32| format!("2 123456789012 eni-1 10.0.0.1 10.0.0.2 40000 443 6 9 500 {end} {end} ACCEPT OK\n");
    let header = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status\n";
    std::fs::write(&file, [header.to_owned(), line(1_700_000_000), line(1_700_000_060)].concat()).unwrap();
    let mut replayed = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .arg("replay")
        .arg(&file)
        .args(["--to", "kinesis", "--stream", &stream, "--speed", "600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = soon(|| replayed.try_wait().unwrap().is_some());
    let _ = replayed.kill();
    assert!(ended, "two lines take a tenth of a second");
    let told = replayed.wait_with_output().unwrap().stdout;
    assert_eq!(String::from_utf8(told).unwrap(), format!("3 lines put on {stream}\n"));
}

/// What a server was sent: paths and bodies.
type Heard = Arc<Mutex<Vec<(String, Value)>>>;

/// An HTTP server that answers every request with the same words and keeps what it was sent: path and body.
fn listener(answer: &'static str) -> (String, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let heard = Heard::default();
    let keep = heard.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let keep = keep.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                loop {
                    let (mut first, mut length, mut line) = (String::new(), 0, String::new());
                    if reader.read_line(&mut first).unwrap_or(0) == 0 {
                        return;
                    }
                    while reader.read_line(&mut line).is_ok() && line.trim() != "" {
                        let (name, value) = line.split_once(':').unwrap();
                        if name.eq_ignore_ascii_case("content-length") {
                            length = value.trim().parse().unwrap();
                        }
                        line.clear();
                    }
                    let mut body = vec![0; length];
                    reader.read_exact(&mut body).unwrap();
                    let path = first.split(' ').nth(1).unwrap().to_owned();
                    keep.lock().unwrap().push((path, serde_json::from_slice(&body).unwrap()));
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length:";
                    write!(stream, "{head} {}\r\n\r\n{answer}", answer.len()).unwrap();
                }
            });
        }
    });
    (address, heard)
}

#[test]
fn a_batch_is_one_trace_through_all_tiers_and_its_id_goes_on_with_what_is_announced() {
    let (collector, traced) = listener("{}");
    let (bus, put) = listener(r#"{"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]}"#);
    let folder = tempfile::tempdir().unwrap();
    let environment = [
        ("FLOWVIGIL__TELEMETRY__OTLP__ENDPOINT", collector.as_str()),
        ("FLOWVIGIL__TELEMETRY__OTLP__SAMPLE", "0"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test"),
        ("FLOWVIGIL__PUBLISH__EVENTBRIDGE__BUS", "any"),
        ("AWS_ENDPOINT_URL_EVENTBRIDGE", &bus),
        ("AWS_ACCESS_KEY_ID", "000000000000"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ];
    let service = Service::start(folder.path(), &environment);
    service.scan("10.0.1.1", 0, 60);
    service.quiet_until(10);
    service.wait_until("/metrics", |m| {
        m.as_str().unwrap_or_default().contains(r#"flowvigil_traces_total{outcome="sent"}"#)
    });
    let requests = traced.lock().unwrap();
    assert!(requests.iter().all(|(path, _)| path == "/v1/traces"));
    let mut spans = spans(&requests);
    // Another batch may have announced that it goes on.
    let first = spans[0]["traceId"].clone();
    spans.retain(|span| span["traceId"] == first);
    let name = |span: &Value| span["name"].as_str().unwrap().to_owned();
    let names: Vec<String> = spans.iter().map(name).collect();
    // Each ends before the next begins, but for validation, which takes turns with correlation; the root ends last.
    assert_eq!(names, ["statistical", "ml", "correlation", "validation", "publish", "batch"]);
    let root = &spans[5];
    let nanos = |span: &Value, name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
    for span in &spans {
        assert_eq!(span["traceId"], root["traceId"]);
        assert!(nanos(span, "startTimeUnixNano") >= nanos(root, "startTimeUnixNano"), "{span}");
        assert!(nanos(span, "endTimeUnixNano") <= nanos(root, "endTimeUnixNano"), "{span}");
    }
    assert!(spans[..5].iter().all(|span| span["parentSpanId"] == root["spanId"]));
    assert_eq!(root["parentSpanId"], "", "{root}");
    assert!(attribute(root, "shard").ends_with("flow.log"), "{root}");
    assert_eq!(attribute(root, "announcements"), "1");
    assert_eq!(attribute(&spans[0], "records"), attribute(root, "records"));
    assert_eq!(attribute(&spans[4], "announcements"), "1");
    let resource = &requests[0].1["resourceSpans"][0]["resource"];
    assert_eq!(attribute(resource, "service.name"), "flowvigil");
    assert_eq!(attribute(resource, "service.version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(attribute(resource, "deployment.environment"), "test");
    // X-Ray refuses ids whose first eight digits are not a second of late; it is the one in which the trace began.
    let id = root["traceId"].as_str().unwrap();
    let second = u64::from_str_radix(&id[..8], 16).unwrap() * 1_000_000_000;
    assert_eq!(id.len(), 32);
    assert!(second <= nanos(root, "endTimeUnixNano") && second + 1_000_000_000 >= nanos(root, "startTimeUnixNano"));
    let put = put.lock().unwrap();
    let header = put[0].1["Entries"][0]["TraceHeader"].as_str().unwrap();
    let parent = spans[4]["spanId"].as_str().unwrap();
    assert_eq!(header, format!("Root=1-{}-{};Parent={parent};Sampled=1", &id[..8], &id[8..]));
}

/// All spans that a collector was sent, in the order in which they came.
fn spans(requests: &[(String, Value)]) -> Vec<Value> {
    let list = |value: &Value, name: &str| value[name].as_array().unwrap().clone();
    let resources = requests.iter().flat_map(|(_, request)| list(request, "resourceSpans"));
    resources.flat_map(|of| list(&of, "scopeSpans")).flat_map(|of| list(&of, "spans")).collect()
}

/// An attribute of a span or a resource, as text.
fn attribute(of: &Value, key: &str) -> String {
    let found = of["attributes"].as_array().unwrap().iter().find(|attribute| attribute["key"] == key);
    let value = &found.unwrap_or_else(|| panic!("{of:#} has no {key}"))["value"];
    let text = |kind: &str| value[kind].as_str().map(str::to_owned);
    text("stringValue").or_else(|| text("intValue")).unwrap_or_else(|| panic!("{value} is neither a text nor a number"))
}

#[test]
fn a_request_is_part_of_its_callers_trace_and_only_if_that_is_sampled_and_it_is_admitted() {
    let (collector, traced) = listener("{}");
    let folder = tempfile::tempdir().unwrap();
    let environment = [
        ("FLOWVIGIL__TELEMETRY__OTLP__ENDPOINT", collector.as_str()),
        ("FLOWVIGIL__TELEMETRY__OTLP__SAMPLE", "0"),
        ("FLOWVIGIL__API__TOKEN", "0123456789abcdef"),
    ];
    let service = Service::start(folder.path(), &environment);
    let ask = |token: &str, header: &str, value: &str| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let asked = agent.get(format!("http://{}/v1/anomalies", service.address()));
        asked.header("authorization", format!("Bearer {token}")).header(header, value).call().unwrap().status().as_u16()
    };
    let w3c = |trace: char, sampled: u8| format!("00-{}-00f067aa0ba902b7-0{sampled}", trace.to_string().repeat(32));
    assert_eq!(ask("0123456789abcdef", "traceparent", &w3c('a', 0)), 200);
    assert_eq!(ask("no such token, at all", "traceparent", &w3c('b', 1)), 401);
    assert_eq!(ask("0123456789abcdef", "traceparent", "nonsense"), 200);
    let xray =
        |sampled: u8| format!("Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled={sampled}");
    assert_eq!(ask("0123456789abcdef", "x-amzn-trace-id", &xray(0)), 200);
    assert_eq!(ask("0123456789abcdef", "x-amzn-trace-id", &xray(1)), 200);
    assert_eq!(ask("0123456789abcdef", "traceparent", &w3c('c', 1)), 200);
    let sent = || spans(&traced.lock().unwrap());
    assert!(soon(|| sent().len() >= 2), "{:#?}", sent());
    let spans = sent();
    let of = |name: &str| spans.iter().map(|span| span[name].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(of("traceId"), ["5759e988bd862e3fe1be46a994272793".to_owned(), "c".repeat(32)]);
    assert_eq!(of("parentSpanId"), ["53995c3f42cd8ad8", "00f067aa0ba902b7"]);
    assert_eq!(of("name"), ["GET /v1/anomalies"; 2]);
    assert_eq!(attribute(&spans[0], "http.response.status_code"), "200");
}

#[test]
fn what_is_left_of_traces_is_sent_at_the_end_and_a_collector_that_is_silent_does_not_hold_it() {
    let (collector, traced) = listener("{}");
    let one = ("FLOWVIGIL__TELEMETRY__OTLP__SAMPLE", "1");
    let (code, said) = ends_after(CALM, &[("FLOWVIGIL__TELEMETRY__OTLP__ENDPOINT", &collector), one]);
    assert_eq!(code, Some(0), "{said}");
    let traced = traced.lock().unwrap();
    assert!(spans(&traced).iter().any(|span| span["name"] == "batch"), "{traced:#?}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let collector = format!("http://{}", silent.local_addr().unwrap());
    // With a deadline of a day, the end has its own.
    let day = ("FLOWVIGIL__TELEMETRY__OTLP__TIMEOUT", "24h");
    let (code, said) = ends_after(CALM, &[("FLOWVIGIL__TELEMETRY__OTLP__ENDPOINT", &collector), one, day]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = ends_after(CALM, &[("FLOWVIGIL__TELEMETRY__OTLP__ENDPOINT", "no address")]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("telemetry.otlp.endpoint `no address` is no URL such as http://127.0.0.1:4318"), "{said}");
}

/// A record of nothing special.
const CALM: &str = "2 123456789012 eni-1 10.0.0.1 10.0.0.2 40000 443 6 9 5000 1700000000 1700000001 ACCEPT OK\n";

/// How `run` ends with this in its environment, and what it says.
fn ends(environment: &[(&str, &str)]) -> (Option<i32>, String) {
    ends_after("", environment)
}

/// The same, with records to read.
fn ends_after(records: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let flow_log = folder.path().join("flow.log");
    std::fs::write(&flow_log, records).unwrap();
    let ended = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(["run", "--once"])
        .arg(&flow_log)
        .env("FLOWVIGIL__API__LISTEN", "127.0.0.1:0")
        .env("FLOWVIGIL__PUBLISH__SQLITE__PATH", path("anomalies.db"))
        .env("FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER", path("snapshots"))
        .env("FLOWVIGIL__INGEST__LOCAL__CHECKPOINT", path("checkpoints"))
        .env("AWS_ACCESS_KEY_ID", "000000000000")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

#[test]
fn what_is_away_when_the_service_begins_is_worth_another_try_and_a_wrong_setting_is_not() {
    // One that takes requests in and never answers, and one at which nobody listens.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (server, address) in [("silent", silent.local_addr().unwrap()), ("closed", closed)] {
        let (url, redis) = (format!("http://{address}"), format!("redis://{address}"));
        let tables = ("FLOWVIGIL__PUBLISH__DYNAMODB__TABLE", "anomalies");
        let quick = ("FLOWVIGIL__PUBLISH__DYNAMODB__TIMEOUT", "200ms");
        let (code, said) = ends(&[("AWS_ENDPOINT_URL_DYNAMODB", &url), tables, quick]);
        assert_eq!(code, Some(1), "tables, {server}: {said}");
        let alone = "correlation.redis is not set: this task puts together what it reads itself";
        assert!(!said.contains(alone), "there is no stream that others could share: {said}");
        let stream = ("FLOWVIGIL__INGEST__KINESIS__STREAM", "stream");
        let quick = ("FLOWVIGIL__INGEST__KINESIS__TIMEOUT", "200ms");
        let (code, said) = ends(&[("AWS_ENDPOINT_URL_DYNAMODB", &url), stream, quick]);
        assert_eq!(code, Some(1), "leases, {server}: {said}");
        assert!(said.contains(alone), "others may share the stream: {said}");
        let shared = ("FLOWVIGIL__CORRELATION__REDIS__URL", redis.as_str());
        let soon = ("FLOWVIGIL__CORRELATION__REDIS__TIMEOUT", "200ms");
        let (_, said) = ends(&[("AWS_ENDPOINT_URL_DYNAMODB", &url), stream, quick, shared, soon]);
        assert!(!said.contains(alone), "all tasks ask Redis: {said}");
        // Without Redis it correlates by itself.
        let quick = ("FLOWVIGIL__CORRELATION__REDIS__TIMEOUT", "200ms");
        let (code, said) = ends(&[("FLOWVIGIL__CORRELATION__REDIS__URL", &redis), quick]);
        assert_eq!(code, Some(0), "Redis, {server}: {said}");
    }
    let (code, said) = ends(&[("FLOWVIGIL__CORRELATION__REDIS__URL", "no address")]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = ends(&[("FLOWVIGIL__INGEST__FIELDS", "${no-such-field}")]);
    assert_eq!(code, Some(2), "{said}");
}
