//! What a running service tells its operators: metrics, lines for CloudWatch, letters about what could not be read or told.

use std::io::copy;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
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
    service
        .wait_until("/metrics", |m| m.as_str().unwrap().lines().any(|l| l.starts_with(refused) && l.ends_with(" 9")));
    let counted = r#"flowvigil_dead_letters_total{kind="refusal",outcome="over the limit"} 6"#;
    service.wait_until("/metrics", |m| m.as_str().unwrap().contains(counted));
    let calls = r#"flowvigil_aws_calls_total{outcome="done",service="sqs"}"#;
    service.wait_until("/metrics", |m| m.as_str().unwrap().contains(calls));
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
    service.wait_until("/metrics", |m| m.as_str().unwrap().contains(put));
    assert!(subscribed.take_all().await.is_empty());
    let there = std::env::var("AWS_ENDPOINT_URL").unwrap();
    forward(away, there.trim_start_matches("http://").parse().unwrap());
    let told = take_until(&subscribed, |events| !events.is_empty()).await;
    let event = &told[0];
    assert_eq!((&event["detail-type"], &event["detail"]["actor"]), (&json!("Anomaly Detected"), &json!("10.0.1.1")));
    let announced = r#"flowvigil_dead_letters_total{kind="announcement",outcome="announced"} 1"#;
    service.wait_until("/metrics", |m| m.as_str().unwrap().contains(announced));
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
    let rate = || service.get("/metrics").as_str().unwrap().contains("flowvigil_false_positive_ratio 1");
    assert!(soon(rate));
    assert_eq!(line("FalsePositiveRate")["FalsePositiveRate"], 1.0);
}

#[test]
fn a_suppression_made_over_the_api_counts_within_seconds_and_why_not_can_be_asked() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[("FLOWVIGIL__API__CACHE", "0s")]);
    let some = |answer: &Value| !answer["anomalies"].as_array().unwrap().is_empty();
    let watched = service.get("/v1/explain?address=10.0.1.2");
    assert_eq!(watched["approaches"], json!([]), "nothing was judged yet");
    // Below the threshold: nothing is told, and the watch says how close it came.
    service.scan("10.0.1.2", 0, 9);
    service.quiet_until(10);
    let judged = |answer: &Value| !answer["approaches"].as_array().unwrap().is_empty();
    let explained = service.wait_until("/v1/explain?address=10.0.1.2", judged);
    let approach = &explained["approaches"][0];
    assert_eq!((&approach["threat"], &approach["found"]), (&json!("port_scan"), &json!(false)), "{explained:#}");
    let ports = approach["evidence"].as_array().unwrap().iter().find(|e| e["name"] == "distinct_ports").unwrap();
    assert_eq!((&ports["value"], &ports["threshold"]), (&json!(9.0), &json!(25.0)));

    let made = json!({"name": "weekly scan", "owner": "ada", "reason": "ours", "created": "2023-01-01T00:00:00Z",
        "expires": "2099-01-01T00:00:00Z", "match": {"actors": ["10.0.1.3"]}});
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
