//! The API over HTTP: a real server on a free loopback port, a real store, and a real client.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use flowvigil::anomaly::{Anomaly, SCHEMA, Status, Tiers};
use flowvigil::api::{self, Parts, Server};
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
        let parts = Parts {
            store: store.clone(),
            health: health.clone(),
            explainers: Arc::default(),
            metrics,
            models: None,
            internal: Settings::defaults().network.internal,
            suppressions: Vec::new(),
            config: Arc::default(),
        };
        let server = runtime.block_on(Server::bind(&settings, parts)).map_err(|error| error.to_string())?;
        let address = server.address();
        runtime.spawn(server.serve(std::future::pending()));
        Ok(Api { address, store, health, runtime })
    }

    pub fn record(&self, anomaly: &Anomaly) {
        self.runtime.block_on(self.store.record(anomaly)).unwrap();
    }

    pub fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let mut request = agent().get(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call().unwrap()
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        read(self.ask(path, &[]))
    }

    pub fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let request = agent().post(format!("http://{}{path}", self.address));
        read(request.header("content-type", "application/json").send(body).unwrap())
    }
}

/// A moment that is so many days ahead.
pub fn in_days(days: i64) -> String {
    let ahead = jiff::SignedDuration::from_hours(24 * days);
    jiff::Timestamp::now().checked_add(ahead).unwrap().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub fn agent() -> Agent {
    Agent::config_builder().http_status_as_error(false).build().into()
}

pub fn read(mut response: Response<Body>) -> (u16, Value) {
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
        severity_reason: String::new(),
        confidence: 0.97,
        sources: Vec::new(),
        alternatives: Vec::new(),
        actor: Actor::One("203.0.113.9".parse().unwrap()),
        targets: vec![Target { address: "10.0.0.5".parse().unwrap(), ports: vec![22, 80], port_count: 1022 }],
        target_count: 1,
        first_seen: EventTime(detected - 50),
        last_seen: EventTime(detected - 10),
        detection_timestamp: EventTime(detected),
        window_seconds: 60,
        summary: "203.0.113.9 tried 1022 ports of 10.0.0.5 in 40 s without success".to_owned(),
        evidence: vec![flowvigil::finding::Evidence::at_least(
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
fn anomalies_are_found_by_block_target_account_and_interface_and_by_these_together() {
    let api = Api::with(|settings| settings.cache = jiff::SignedDuration::ZERO).unwrap();
    let on = |id: u128, target: &str, interface: &str| Anomaly {
        targets: vec![Target { address: target.parse().unwrap(), ports: vec![22], port_count: 1 }],
        interface_ids: vec![interface.to_owned()],
        ..anomaly(id, 1_700_000_000 + id as u32)
    };
    for anomaly in [on(1, "10.1.2.3", "eni-1"), on(2, "10.1.9.9", "eni-2"), on(3, "2001:db8:0:1::9", "eni-2")] {
        api.record(&anomaly);
    }
    for (query, wanted) in [
        ("address=10.1.0.0/16", &[2, 1][..]),
        ("address=10.1.2.77/24", &[1]),
        ("address=10.1.2.3/32", &[1]),
        ("address=2001:db8::/48", &[3]),
        ("address=203.0.113.0/24", &[3, 2, 1]),
        ("target=10.1.9.9", &[2]),
        ("target=203.0.113.9", &[]),
        ("interface=eni-2", &[3, 2]),
        ("interface=eni-2&address=10.0.0.0/8&account=123456789012&severity_min=high", &[2]),
        ("account=210987654321", &[]),
        ("changed_since=0&interface=eni-2", &[2, 3]),
        ("changed_since=0&address=10.0.0.0/8&target=10.1.2.3", &[1]),
    ] {
        let (status, page) = api.get(&format!("/v1/anomalies?{query}"));
        assert_eq!(status, 200, "{query}: {page}");
        let id = |a: &Value| a["anomaly_id"].as_str().unwrap().parse::<Uuid>().unwrap().as_u128();
        let found: Vec<u128> = page["anomalies"].as_array().unwrap().iter().map(id).collect();
        assert_eq!(found, wanted, "{query}");
    }
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
        ("/v1/anomalies?address=10.0.0.0/20", 400, "8, 16, 24 bits"),
        ("/v1/anomalies?address=10.0.0.0/33", 400, "no CIDR block"),
        ("/v1/anomalies?target=10.0.0.0/8", 400, "target"),
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
    assert_eq!((all.len(), all[0].by.as_str(), all[0].name.as_str()), (1, "loopback", "ada"));

    // Other names make no other people: the last verdict of whoever was let in counts.
    for n in 0..40 {
        let (status, kept) = api.post(&path, &format!(r#"{{"verdict":"true_positive","by":"invented {n}"}}"#));
        assert_eq!((status, &kept["by"]), (201, &json!("loopback")), "{kept}");
    }
    let all = api.runtime.block_on(api.store.feedbacks(EventTime(0))).unwrap();
    assert_eq!((all.len(), all[0].name.as_str()), (1, "invented 39"));

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
    let expires = in_days(30);
    let asked = &format!(
        r#"{{"name": "weekly scan", "owner": "ada", "reason": "ours", "expires": "{expires}",
        "match": {{"threats": ["port_scan"], "actors": ["203.0.113.0/24"]}}}}"#
    );
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
        for (field, value) in [("name", "x"), ("owner", "ada"), ("reason", "y"), ("expires", expires.as_str())] {
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
        settings.rate_limit.failures_burst = 2.0;
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
        confidence: 0.8,
    };
    api.runtime.block_on(api.store.silence(&silence)).unwrap();
    let (_, told) = api.get("/v1/silences?address=10.0.0.9");
    assert_eq!(told["silences"][0]["reason"], "time: NTP");
    let (_, none) = api.get("/v1/silences?address=10.0.0.8");
    assert_eq!(none["silences"], json!([]));
    assert_eq!(api.get("/v1/signals").1["signals"], json!([]), "what is known to be benign is no signal");
    for (id, confidence) in [(4, 0.2), (5, 0.4), (6, 0.3)] {
        let id = Uuid::from_u128(id);
        let signal = Silence { anomaly_id: id, stage: "confidence".to_owned(), confidence, ..silence.clone() };
        api.runtime.block_on(api.store.silence(&signal)).unwrap();
    }
    let (_, signals) = api.get("/v1/signals?limit=2");
    let likely: Vec<_> = signals["signals"].as_array().unwrap().iter().map(|s| s["confidence"].clone()).collect();
    assert_eq!(likely, [0.4, 0.3], "the likeliest first");
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
        for path in ["/v1/anomalies", "/v1/status", "/v1/silences", "/v1/signals", "/metrics"] {
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

/// A suppression with a pattern and whatever else is given.
fn suppression(pattern: &Value, more: &Value) -> String {
    let mut asked = json!({"name": "n", "owner": "ada", "reason": "r", "expires": in_days(30), "match": pattern});
    asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    asked.to_string()
}

#[test]
fn what_would_hide_nearly_everything_is_refused_however_it_is_written_unless_it_is_forced() {
    let api = Api::start();
    let all = ["port_scan", "ddos", "c2_beacon", "crypto_mining", "tor", "behavior", "brute_force", "exfiltration"];
    for pattern in [
        json!({}),
        json!({"threats": all}),
        json!({"threats": ["port_scan"]}),
        json!({"actors": ["0.0.0.0/0", "::/0"]}),
        json!({"targets": ["0.0.0.0/1", "128.0.0.0/1"]}),
        json!({"threats": all, "actors": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]}),
    ] {
        let (status, problem) = api.post("/v1/suppressions", &suppression(&pattern, &json!({})));
        assert_eq!((status, &problem["field"]), (422, &json!("match")), "{pattern}: {problem}");
        assert!(problem["share"].is_number() && problem["remedy"].as_str().unwrap().contains("force"), "{problem}");
    }
    // Two that are each bounded and together are not.
    let half = |name: &str, blocks: &[&str]| {
        api.post("/v1/suppressions", &suppression(&json!({"targets": blocks}), &json!({"name": name})))
    };
    assert_eq!(half("one", &["10.0.0.0/9"]).0, 201);
    let (status, problem) = half("two", &["10.128.0.0/9"]);
    assert!(status == 422 && problem["detail"].as_str().unwrap().contains("with those that there are"), "{problem}");
    let (status, made) =
        api.post("/v1/suppressions", &suppression(&json!({"threats": ["tor"]}), &json!({"force": true})));
    assert_eq!((status, &made["suppression"]["force"]), (201, &json!(true)), "{made}");
    assert_eq!(made["suppression"]["made_by"], "loopback");
    assert!(made["needs_force"].as_str().unwrap().contains("tor"), "{made}");
}

#[test]
fn a_dry_run_says_what_would_be_hidden_and_makes_nothing_and_a_large_share_must_be_forced() {
    let api = Api::start();
    for id in 0..20_u128 {
        let actor = if id < 8 { "203.0.113.9" } else { "198.51.100.7" };
        api.record(&Anomaly { actor: Actor::One(actor.parse().unwrap()), ..anomaly(id, 1_700_000_000 + id as u32) });
    }
    for id in [1, 2, 15] {
        let path = format!("/v1/anomalies/{}/feedback", Uuid::from_u128(id));
        assert_eq!(api.post(&path, r#"{"verdict":"true_positive"}"#).0, 201);
    }
    let large = suppression(&json!({"actors": ["203.0.113.0/24"]}), &json!({}));
    let (status, tried) = api.post("/v1/suppressions?dry_run=true", &large);
    assert_eq!(
        (status, &tried["summary"]),
        (200, &json!("would hide 8 of 20, of which 2 confirmed by feedback")),
        "{tried}"
    );
    assert_eq!((&tried["dry_run"], &tried["whole"], &tried["hidden_count"]), (&json!(true), &json!(true), &json!(8)));
    assert!(tried["needs_force"].as_str().unwrap().contains("40 %"), "{tried}");
    let (status, problem) = api.post("/v1/suppressions", &large);
    assert_eq!((status, &problem["share"], &problem["hidden_true"]), (422, &json!(0.4), &json!(2)), "{problem}");
    assert_eq!(api.get("/v1/suppressions").1["suppressions"], json!([]), "nothing was made");
    let forced = suppression(&json!({"actors": ["203.0.113.0/24"]}), &json!({"force": true}));
    assert_eq!(api.post("/v1/suppressions", &forced).0, 201);
    assert_eq!(api.get("/v1/suppressions").1["suppressions"].as_array().unwrap().len(), 1);
}

#[test]
fn a_suppression_lives_for_a_year_at_most_however_it_is_dated() {
    let api = Api::start();
    let pattern = json!({"actors": ["203.0.113.9"]});
    for dates in [
        json!({"expires": "2106-01-01T00:00:00Z"}),
        json!({"expires": in_days(370)}),
        json!({"created": in_days(400), "expires": in_days(500)}),
    ] {
        let (status, problem) = api.post("/v1/suppressions", &suppression(&pattern, &dates));
        assert_eq!((status, &problem["field"]), (422, &json!("expires")), "{dates}: {problem}");
    }
    // In a replay the traffic has moments of its own, and it is these that count.
    api.health.shard("replayed", |shard| shard.newest = Some(EventTime(1_000_000_000)));
    let (status, made) =
        api.post("/v1/suppressions", &suppression(&pattern, &json!({"expires": "2002-01-01T00:00:00Z"})));
    assert_eq!((status, &made["suppression"]["created"]), (201, &json!("2001-09-09T01:46:40Z")), "{made}");
    assert_eq!(made["suppression"]["in_force"], true);
}

#[test]
fn what_nobody_knows_is_refused_by_name_in_bodies_and_in_queries() {
    let api = Api::start();
    api.record(&anomaly(7, 1_700_000_000));
    let feedback = format!("/v1/anomalies/{}/feedback", Uuid::from_u128(7));
    let pattern = json!({"actors": ["203.0.113.9"]});
    for (path, body, field) in [
        ("/v1/suppressions", suppression(&pattern, &json!({"expire": "soon"})), "expire"),
        ("/v1/suppressions", suppression(&json!({"actor": ["203.0.113.9"]}), &json!({})), "actor"),
        ("/v1/suppressions?dryrun=true", suppression(&pattern, &json!({})), "dryrun"),
        ("/v1/suppressions?dry_run=true&x=1", suppression(&pattern, &json!({})), "x"),
        (&feedback, r#"{"verdict":"true_positive","note":"","colour":"red"}"#.to_owned(), "colour"),
        (&format!("{feedback}?force=true"), r#"{"verdict":"true_positive"}"#.to_owned(), "force"),
    ] {
        let (status, problem) = api.post(path, &body);
        assert_eq!((status, &problem["field"]), (400, &json!(field)), "{path} {body}: {problem}");
    }
    assert_eq!(api.get("/v1/suppressions").1["suppressions"], json!([]));
    let one = format!("/v1/anomalies/{}?x=1", Uuid::from_u128(7));
    for path in ["/v1/status?x=1", "/v1/suppressions?x=1", "/v1/silences?x=1", "/v1/explain?address=10.0.0.1&x=1", &one]
    {
        let (status, problem) = api.get(path);
        assert_eq!((status, &problem["field"]), (400, &json!("x")), "{path}: {problem}");
    }
    for body in ["", "{", r#"{"verdict":"true_positive"} {}"#] {
        assert_eq!(api.post(&feedback, body).0, 400, "{body}");
    }
}

fn with_token(folder: &std::path::Path, change: impl FnOnce(&mut api::Settings)) -> Api {
    let file = folder.join("token");
    std::fs::write(&file, "a-token-of-some-length\n").unwrap();
    Api::with(|settings| {
        settings.token_file = file;
        change(settings);
    })
    .unwrap()
}

#[test]
fn whoever_is_not_let_in_uses_up_nothing_of_those_who_are() {
    let folder = tempfile::tempdir().unwrap();
    let api = with_token(folder.path(), |settings| {
        (settings.rate_limit.per_second, settings.rate_limit.burst) = (0.001, 20.0);
        (settings.rate_limit.failures_per_second, settings.rate_limit.failures_burst) = (0.001, 10.0);
    });
    let anonymous: Vec<u16> = (0..40).map(|_| api.ask("/v1/status", &[]).status().as_u16()).collect();
    assert_eq!((anonymous.iter().filter(|s| **s == 401).count(), anonymous.last()), (10, Some(&429)));
    let owner: Vec<u16> = (0..21)
        .map(|_| api.ask("/v1/status", &[("authorization", "bearer a-token-of-some-length")]).status().as_u16())
        .collect();
    assert_eq!((&owner[..20], owner[20]), (&[200; 20][..], 429), "the token's owner has a limit of their own");
    let open: Vec<u16> = (0..21).map(|_| api.ask("/openapi.json", &[]).status().as_u16()).collect();
    assert_eq!((&open[..20], open[20]), (&[200; 20][..], 429), "open pages are limited as well");
    assert!((0..50).all(|_| api.ask("/health/live", &[]).status() == 200), "the probe is not");
}

#[test]
fn who_asks_behind_a_proxy_is_told_by_the_proxy_alone() {
    let limited = |proxies: &'static str| {
        move |settings: &mut api::Settings| {
            (settings.rate_limit.per_second, settings.rate_limit.burst) = (0.001, 2.0);
            settings.trusted_proxies = vec![proxies.parse().unwrap()];
        }
    };
    let asked = |api: &Api, forwarded: &str| api.ask("/v1/status", &[("x-forwarded-for", forwarded)]).status().as_u16();
    let behind = Api::with(limited("127.0.0.0/8")).unwrap();
    // What the client writes itself stands before what the proxy adds.
    let seen: Vec<u16> = (0..3).map(|n| asked(&behind, &format!("192.0.2.{n}, 198.51.100.7:5{n}"))).collect();
    assert_eq!(seen, [200, 200, 429]);
    assert_eq!(asked(&behind, "198.51.100.7, 198.51.100.8"), 200, "another client");
    let network: Vec<u16> = (0..3).map(|n| asked(&behind, &format!("[2001:db8:1:2::{n}]:443"))).collect();
    assert_eq!(network, [200, 200, 429], "a network of 64 bits is one client");
    let exposed = Api::with(limited("10.0.0.0/8")).unwrap();
    let seen: Vec<u16> = (0..3).map(|n| asked(&exposed, &format!("198.51.100.{n}"))).collect();
    assert_eq!(seen, [200, 200, 429], "a peer that is no proxy says nothing of others");
}

#[test]
fn a_page_of_somebody_else_asks_nothing_and_a_link_to_ours_is_followed() {
    let api = Api::start();
    let foreign = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
    for path in ["/v1/anomalies", "/metrics", "/openapi.json", "/health/ready"] {
        let (status, problem) = read(api.ask(path, &foreign));
        assert_eq!((status, &problem["field"]), (403, &json!("sec-fetch-site")), "{path}: {problem}");
    }
    assert_eq!(api.ask("/v1/anomalies", &[("origin", "http://evil.example")]).status(), 403);
    let followed = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    assert_eq!(api.ask("/", &followed).status(), 200);
    let own = format!("http://{}", api.address);
    assert_eq!(api.ask("/v1/anomalies", &[("sec-fetch-site", "same-origin"), ("origin", &own)]).status(), 200);
}

/// What the server says to raw bytes, until it closes the connection.
fn say(api: &Api, bytes: &[u8]) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(api.address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    // It may have been told enough before all is written.
    let _ = stream.write_all(bytes);
    let mut told = Vec::new();
    let _ = stream.read_to_end(&mut told);
    String::from_utf8_lossy(&told).into_owned()
}

#[test]
fn whatever_is_refused_is_refused_with_a_problem_document() {
    let api = Api::with(|settings| {
        settings.header_timeout = jiff::SignedDuration::from_millis(300);
        settings.body_timeout = jiff::SignedDuration::from_millis(300);
        settings.idle_timeout = jiff::SignedDuration::from_millis(900);
    })
    .unwrap();
    api.record(&anomaly(7, 1_700_000_000));
    let host = api.address;
    let feedback = format!("/v1/anomalies/{}/feedback", Uuid::from_u128(7));
    let post = |headers: &str, body: &str| {
        format!("POST {feedback} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n\r\n{body}").into_bytes()
    };
    let json = "content-type: application/json\r\n";
    for (what, bytes, status) in [
        ("no HTTP", b"what is this\r\n\r\n".to_vec(), 400),
        ("half a head", format!("GET / HTTP/1.1\r\nhost: {host}\r\n").into_bytes(), 408),
        ("half a body", post(&format!("{json}content-length: 50"), "{\"verdict\""), 408),
        (
            "a long path",
            format!("GET /{} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n", "x".repeat(9_000)).into_bytes(),
            414,
        ),
        (
            "a long header",
            format!("GET / HTTP/1.1\r\nhost: {host}\r\nx: {}\r\n\r\n", "x".repeat(40_000)).into_bytes(),
            431,
        ),
        ("a body said to be large", post(&format!("{json}content-length: 100000000"), ""), 413),
        ("no media type", post("content-length: 2", "{}"), 415),
        ("another method", format!("BREW / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").into_bytes(), 405),
        ("another place", format!("GET /tea HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").into_bytes(), 404),
    ] {
        let told = say(&api, &bytes);
        assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {told}");
        let (head, body) = told.split_once("\r\n\r\n").unwrap();
        assert!(head.to_lowercase().contains("content-type: application/problem+json"), "{what}: {told}");
        let problem: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{what}: {error}: {told}"));
        assert_eq!(problem["status"], status, "{what}: {told}");
        assert!(problem["remedy"].as_str().unwrap().len() > 5, "{what}: {told}");
    }
    // A connection that has asked and asks no more is closed, without a word.
    let told = say(&api, format!("GET /health/live HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes());
    assert!(told.starts_with("HTTP/1.1 200 ") && !told.contains("408"), "{told}");
    // HTTP/2 without TLS is spoken only where it is asked for.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    assert_eq!(say(&api, preface), "");
    let both = Api::with(|settings| {
        settings.http2_without_tls = true;
        settings.header_timeout = jiff::SignedDuration::from_millis(300);
    })
    .unwrap();
    assert!(say(&both, preface).starts_with("\0\0"), "settings of HTTP/2");
    assert_eq!(both.get("/health/live").0, 200);
}

#[test]
fn connections_that_ask_nothing_keep_nobody_out() {
    use std::io::Write;
    let api = Api::with(|settings| {
        settings.connections_max = 100;
        settings.connections_by_address_max = 50;
    })
    .unwrap();
    let slow: Vec<std::net::TcpStream> = (0..200)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(api.address).unwrap();
            stream.write_all(b"GET /v1/anomalies HTTP/1.1\r\nhost:").unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(api.get("/health/live").0, 200);
        assert_eq!(api.get("/v1/anomalies").0, 200);
    }
    let told = api.ask("/metrics", &[]).into_body().read_to_string().unwrap();
    let number = |name: &str| -> f64 {
        let line = told.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {told}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(number("flowvigil_api_connections ") <= 50.0, "{told}");
    assert!(number("flowvigil_api_connections_ended_total{reason=\"gave_way\"}") >= 150.0, "{told}");
    drop(slow);
}

#[test]
fn without_the_token_readiness_names_parts_and_not_what_is_in_the_logs() {
    let folder = tempfile::tempdir().unwrap();
    let api = with_token(folder.path(), |_| {});
    api.health.enter(Phase::Running);
    api.health.degrade("publish", "claim crypto_mining actor 10.1.2.3: database is locked");
    let (status, ready) = api.get("/health/ready");
    assert_eq!((status, &ready["status"], &ready["degraded"][0]["part"]), (200, &json!("degraded"), &json!("publish")));
    assert!(!ready.to_string().contains("10.1.2.3"), "{ready}");
    let (_, ready) = read(api.ask("/health/ready", &[("authorization", "Bearer a-token-of-some-length")]));
    assert!(ready["degraded"][0]["reason"].as_str().unwrap().contains("10.1.2.3"), "{ready}");
}

#[test]
fn the_page_runs_nothing_that_stands_in_it_and_browsers_are_told_of_tls_where_that_is_set() {
    let api = Api::with(|settings| settings.hsts = jiff::SignedDuration::from_hours(1)).unwrap();
    let page = api.ask("/", &[]);
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(!policy.contains("unsafe") && policy.contains("script-src 'self'"), "{policy}");
    assert_eq!(page.headers()["strict-transport-security"], "max-age=3600; includeSubDomains");
    let page = page.into_body().read_to_string().unwrap();
    assert!(
        !page.contains("<script>")
            && !page.contains("<style")
            && !page.contains(" style=")
            && !page.contains(" onclick=")
    );
    for (path, kind) in [("/dashboard.js", "text/javascript"), ("/dashboard.css", "text/css")] {
        assert!(page.contains(path));
        let asset = api.ask(path, &[]);
        assert!(asset.status() == 200 && asset.headers()["content-type"].to_str().unwrap().starts_with(kind), "{path}");
    }
    assert!(!Api::start().ask("/", &[]).headers().contains_key("strict-transport-security"));
}

#[test]
fn models_and_status_are_described_each_by_its_own_schema() {
    let api = Api::start();
    let (_, document) = api.get("/openapi.json");
    let of = |path: &str| {
        document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].clone()
    };
    assert_eq!(of("/v1/models"), "#/components/schemas/ModelsReport");
    assert_eq!(of("/v1/status"), "#/components/schemas/ServiceReport");
    let schemas = &document["components"]["schemas"];
    assert!(schemas["ModelsReport"]["properties"].get("drift").is_some(), "{}", schemas["ModelsReport"]);
    assert!(schemas["ServiceReport"]["properties"].get("shards").is_some(), "{}", schemas["ServiceReport"]);
}
