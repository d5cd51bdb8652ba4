//! The API over HTTP: a real server on a free loopback port, a real store, and a real client.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use flowvigil::anomaly::{Anomaly, SCHEMA, Status, Tiers};
use flowvigil::api::{self, Server};
use flowvigil::finding::{Actor, Severity, Target, Threat};
use flowvigil::flow::EventTime;
use flowvigil::health::{Health, Phase};
use flowvigil::publish::local::SqliteStore;
use flowvigil::publish::{AnomalyStore, Silence};
use flowvigil::settings::Settings;
use flowvigil::telemetry::Metrics;
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body};
use uuid::Uuid;

/// A served store; everything ends when it is dropped.
pub struct Api {
    pub address: SocketAddr,
    pub store: Arc<SqliteStore>,
    pub health: Arc<Health>,
    pub runtime: tokio::runtime::Runtime,
}

impl Api {
    pub fn start() -> Api {
        Api::with(|_| {}).unwrap()
    }

    pub fn with(change: impl FnOnce(&mut api::Settings)) -> Result<Api, String> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = Arc::new(SqliteStore::in_memory().unwrap());
        let (health, metrics) = (Arc::new(Health::default()), Arc::new(Metrics::new()));
        let mut settings = Settings::defaults().api;
        settings.listen = "127.0.0.1:0".parse().unwrap();
        change(&mut settings);
        let server = runtime
            .block_on(Server::bind(&settings, store.clone(), health.clone(), metrics, None))
            .map_err(|error| error.to_string())?;
        let address = server.address();
        runtime.spawn(server.serve(std::future::pending()));
        Ok(Api { address, store, health, runtime })
    }

    pub fn record(&self, anomaly: &Anomaly) {
        self.runtime.block_on(self.store.record(anomaly)).unwrap();
    }

    fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let mut request = agent().get(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call().unwrap()
    }

    fn get(&self, path: &str) -> (u16, Value) {
        read(self.ask(path, &[]))
    }

    fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let request = agent().post(format!("http://{}{path}", self.address));
        read(request.header("content-type", "application/json").send(body).unwrap())
    }
}

fn agent() -> Agent {
    Agent::config_builder().http_status_as_error(false).build().into()
}

fn read(mut response: Response<Body>) -> (u16, Value) {
    let text = response.body_mut().read_to_string().unwrap();
    (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

pub fn anomaly(id: u128, detected: u32) -> Anomaly {
    Anomaly {
        anomaly_id: Uuid::from_u128(id),
        schema: SCHEMA.to_owned(),
        threat: Threat::PortScan,
        status: Status::Open,
        severity: Severity::High,
        confidence: 0.97,
        actor: Actor::One("203.0.113.9".parse().unwrap()),
        targets: vec![Target { address: "10.0.0.5".parse().unwrap(), ports: vec![22, 80], port_count: 1022 }],
        target_count: 1,
        first_seen: EventTime(detected - 50),
        last_seen: EventTime(detected - 10),
        detection_timestamp: EventTime(detected),
        window_seconds: 60,
        summary: "203.0.113.9 tried 1022 ports of 10.0.0.5 in 40 s without success".to_owned(),
        evidence: vec![flowvigil::finding::Evidence::judged(
            "distinct_ports",
            1022.0,
            25.0,
            "ports",
            flowvigil::finding::Merge::Max,
        )],
        tiers: Tiers::default(),
        mitre: vec!["T1046".to_owned()],
        account_id: "123456789012".to_owned(),
        interface_ids: vec!["eni-1".to_owned()],
        related: Vec::new(),
        degraded: Vec::new(),
        updates: 1,
        episode: None,
        merged_into: None,
    }
}

#[test]
fn pages_link_to_each_other_and_keep_their_filters() {
    let api = Api::start();
    for id in 0..5 {
        api.record(&anomaly(id, 1_700_000_000 + id as u32 * 60));
    }
    api.record(&Anomaly { threat: Threat::Tor, ..anomaly(9, 1_700_000_900) });
    let (mut path, mut seen) = ("/v1/anomalies?threat=port_scan&limit=2".to_owned(), Vec::new());
    loop {
        let response = api.ask(&path, &[]);
        let link = response.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let (status, page) = read(response);
        assert_eq!(status, 200, "{page}");
        seen.extend(page["anomalies"].as_array().unwrap().iter().map(|a| a["anomaly_id"].clone()));
        let Some(next) = page["next"].as_str() else { break };
        assert_eq!(link.unwrap(), format!("<{next}>; rel=\"next\""));
        path = next.to_owned();
    }
    let wanted: Vec<Value> = (0..5).rev().map(|id| json!(Uuid::from_u128(id).to_string())).collect();
    assert_eq!(seen, wanted);
}

#[test]
fn an_anomaly_is_shown_in_the_schema_that_everyone_sees() {
    let api = Api::start();
    let told = anomaly(7, 1_700_000_000);
    api.record(&told);
    let (status, shown) = api.get(&format!("/v1/anomalies/{}", told.anomaly_id));
    assert_eq!((status, &shown), (200, &serde_json::to_value(&told).unwrap()));
    assert_eq!(shown["evidence"][0]["threshold"], 25.0);
}

#[test]
fn what_cannot_be_answered_names_the_place_and_the_remedy() {
    let api = Api::start();
    let unknown = format!("/v1/anomalies/{}", Uuid::from_u128(1));
    for (path, status, words) in [
        ("/v1/anomalies?threat=nope", 400, "threat"),
        ("/v1/anomalies?colour=red", 400, "colour"),
        ("/v1/anomalies?address=10.0.0", 400, "not an IP address"),
        ("/v1/anomalies?since=yesterday", 400, "since"),
        ("/v1/anomalies?limit=0", 400, "limit"),
        ("/v1/anomalies?cursor=junk", 400, "cursor"),
        ("/v1/anomalies/not-a-uuid", 400, "UUID"),
        (&unknown, 404, "there is no anomaly"),
        ("/nowhere", 404, "/nowhere"),
    ] {
        let response = api.ask(path, &[]);
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        assert!(response.headers().contains_key("x-request-id"), "{path}");
        let (code, problem) = read(response);
        assert_eq!((code, problem["status"].as_u64()), (status, Some(u64::from(status))), "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{path}: {problem}");
        assert!(problem["remedy"].as_str().unwrap().len() > 10, "{path}: {problem}");
    }
}

#[test]
fn a_verdict_is_kept_with_the_anomaly_it_is_about() {
    let api = Api::start();
    let told = anomaly(7, 1_700_000_000);
    api.record(&told);
    let path = format!("/v1/anomalies/{}/feedback", told.anomaly_id);
    let (status, kept) = api.post(&path, r#"{"verdict":"false_positive","by":"ada","note":"our own scanner"}"#);
    assert_eq!((status, &kept["verdict"]), (201, &json!("false_positive")), "{kept}");
    let all = api.runtime.block_on(api.store.feedbacks(EventTime(0))).unwrap();
    assert_eq!((all.len(), all[0].by.as_str()), (1, "ada"));

    let (status, problem) = api.post(&path, r#"{"verdict":"maybe","by":"ada"}"#);
    assert_eq!(status, 422, "{problem}");
    let (status, problem) = api.post(&path, r#"{"verdict":"true_positive","by":" "}"#);
    assert_eq!(status, 422, "{problem}");
    let elsewhere = format!("/v1/anomalies/{}/feedback", Uuid::from_u128(8));
    let (status, problem) = api.post(&elsewhere, r#"{"verdict":"true_positive","by":"ada"}"#);
    assert_eq!(status, 404, "{problem}");
    let (status, _) = api.post(&path, &" ".repeat(100_000));
    assert_eq!(status, 413);
}

#[test]
fn a_suppression_is_tried_on_what_was_told_kept_listed_and_taken_back() {
    let api = Api::start();
    api.record(&anomaly(7, 1_700_000_000));
    let asked = r#"{"name": "weekly scan", "owner": "ada", "reason": "ours", "expires": "2099-01-01T00:00:00Z",
        "match": {"threats": ["port_scan"], "actors": ["203.0.113.0/24"]}}"#;
    let (status, made) = api.post("/v1/suppressions", asked);
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["tried"], &made["hidden"]), (&json!(1), &json!([Uuid::from_u128(7)])));
    let (_, listed) = api.get("/v1/suppressions");
    assert_eq!(listed["suppressions"][0]["name"], "weekly scan");
    assert_eq!(
        (&listed["suppressions"][0]["in_force"], listed["suppressions"].as_array().unwrap().len()),
        (&json!(true), 1)
    );
    for (wrong, why) in [
        (r#""match": {}"#, "would silence everything"),
        (r#""match": {"actors": ["ten"]}"#, "ten"),
        (r#""owner": " ", "match": {"ports": [22]}"#, "owner"),
        (r#""expires": "2001-01-01T00:00:00Z", "match": {"ports": [22]}"#, "expires"),
    ] {
        let mut body: Value = serde_json::from_str(&format!("{{{wrong}}}")).unwrap();
        for (field, value) in [("name", "x"), ("owner", "ada"), ("reason", "y"), ("expires", "2099-01-01T00:00:00Z")] {
            body.as_object_mut().unwrap().entry(field).or_insert(json!(value));
        }
        let (status, problem) = api.post("/v1/suppressions", &body.to_string());
        assert!(status == 422 && problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
    let remove = || {
        let url = format!("http://{}/v1/suppressions/weekly%20scan", api.address);
        agent().delete(url).call().unwrap().status().as_u16()
    };
    assert_eq!((remove(), remove()), (204, 404));
    assert_eq!(api.get("/v1/suppressions").1["suppressions"], json!([]));
}

#[test]
fn who_asks_too_much_is_told_when_to_come_again() {
    let limited = |settings: &mut api::Settings| {
        settings.rate_limit.per_second = 0.01;
        settings.rate_limit.burst = 2.0;
    };
    let api = Api::with(limited).unwrap();
    assert_eq!((api.get("/v1/status").0, api.get("/v1/anomalies").0), (200, 200));
    let refused = api.ask("/v1/status", &[]);
    assert_eq!(refused.status(), 429);
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=100).contains(&seconds), "{seconds}");
    assert_eq!(api.get("/health/live").0, 200, "probes are never refused");
}

#[test]
fn a_page_is_given_again_for_as_long_as_the_settings_say() {
    let api = Api::with(|settings| settings.cache = jiff::SignedDuration::from_hours(1)).unwrap();
    let count = |path: &str| api.get(path).1["anomalies"].as_array().unwrap().len();
    assert_eq!(count("/v1/anomalies"), 0);
    api.record(&anomaly(7, 1_700_000_000));
    assert_eq!((count("/v1/anomalies"), count("/v1/anomalies?limit=7")), (0, 1));
    let uncached = Api::with(|settings| settings.cache = jiff::SignedDuration::ZERO).unwrap();
    assert_eq!(uncached.get("/v1/anomalies").1["anomalies"], json!([]));
    uncached.record(&anomaly(7, 1_700_000_000));
    assert_eq!(uncached.get("/v1/anomalies").1["anomalies"].as_array().unwrap().len(), 1);
}

#[test]
fn what_was_not_told_can_be_asked_for_by_address() {
    let api = Api::start();
    let silence = Silence {
        anomaly_id: Uuid::from_u128(3),
        threat: Threat::C2Beacon,
        actor: Actor::One("10.0.0.9".parse().unwrap()),
        first_seen: EventTime(1_700_000_000),
        last_seen: EventTime(1_700_000_600),
        stage: "known_benign".to_owned(),
        reason: "time: NTP".to_owned(),
        summary: "10.0.0.9 calls a time server".to_owned(),
    };
    api.runtime.block_on(api.store.silence(&silence)).unwrap();
    let (_, told) = api.get("/v1/silences?address=10.0.0.9");
    assert_eq!(told["silences"][0]["reason"], "time: NTP");
    let (_, none) = api.get("/v1/silences?address=10.0.0.8");
    assert_eq!(none["silences"], json!([]));
}

#[test]
fn with_a_token_only_its_bearer_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "a-token-of-some-length\n").unwrap();
    let api = Api::with(|settings| settings.token_file = file).unwrap();
    for (header, status) in [
        (None, 401),
        (Some("Bearer another-token-of-some-length"), 401),
        (Some("Basic a-token-of-some-length"), 401),
        (Some("Bearer a-token-of-some-length"), 200),
    ] {
        let headers: Vec<_> = header.map(|value| ("authorization", value)).into_iter().collect();
        for path in ["/v1/anomalies", "/v1/status", "/v1/silences", "/metrics"] {
            assert_eq!(api.ask(path, &headers).status(), status, "{path} with {header:?}");
        }
    }
    for open in ["/", "/health/live"] {
        assert_eq!(api.ask(open, &[]).status(), 200, "{open}");
    }
}

#[test]
fn a_public_address_without_a_token_is_refused_and_so_is_a_weak_token() {
    let refused = Api::with(|settings| settings.listen = "0.0.0.0:0".parse().unwrap()).err().unwrap();
    assert!(refused.contains("api.token_file"), "{refused}");
    assert!(Api::with(|settings| settings.token_file = PathBuf::from("/nowhere/token")).is_err());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "short").unwrap();
    assert!(Api::with(|settings| settings.token_file = file).is_err());
}

#[test]
fn a_page_elsewhere_cannot_reach_in_through_a_name_of_its_own() {
    let api = Api::start();
    assert_eq!(api.ask("/v1/anomalies", &[("host", "rebound.example")]).status(), 403);
    assert_eq!(api.ask("/v1/anomalies", &[("host", "localhost:8080")]).status(), 200);
}

#[test]
fn readiness_follows_the_phase_and_names_what_is_away() {
    let api = Api::start();
    assert_eq!(api.get("/health/ready").0, 503);
    assert_eq!(api.get("/health/live").0, 200);
    api.health.enter(Phase::Running);
    assert_eq!(api.get("/health/ready").1["status"], "ready");
    api.health.degrade("ml", "no answer within 2 s; statistics alone");
    let (status, ready) = api.get("/health/ready");
    assert_eq!((status, &ready["status"]), (200, &json!("degraded")));
    assert_eq!(ready["degraded"][0]["reason"], "no answer within 2 s; statistics alone");
    api.health.enter(Phase::Draining);
    assert_eq!(api.get("/health/ready").0, 503);
}

#[test]
fn the_description_lists_every_path_that_answers() {
    let api = Api::start();
    let (_, document) = api.get("/openapi.json");
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    for path in [
        "/v1/explain",
        "/v1/suppressions",
        "/v1/suppressions/{name}",
        "/v1/anomalies",
        "/v1/anomalies/{id}",
        "/v1/anomalies/{id}/feedback",
        "/v1/silences",
        "/v1/status",
        "/metrics",
    ] {
        assert!(paths.iter().any(|known| *known == path), "{path} is not among {paths:?}");
    }
    let schema = &document["components"]["schemas"]["Anomaly"]["properties"];
    for field in serde_json::to_value(anomaly(1, 1_700_000_000)).unwrap().as_object().unwrap().keys() {
        assert!(schema.get(field).is_some(), "the schema of an anomaly lacks {field}");
    }
}

#[test]
fn requests_are_counted_by_route_and_never_by_raw_path() {
    let api = Api::start();
    api.get(&format!("/v1/anomalies/{}", Uuid::from_u128(99)));
    let (_, metrics) = api.get("/metrics");
    let text = metrics.as_str().unwrap();
    assert!(text.contains(r#"flowvigil_http_requests_total{route="/v1/anomalies/{id}",status="404"} 1"#), "{text}");
    assert!(!text.contains(&Uuid::from_u128(99).to_string()));
}
