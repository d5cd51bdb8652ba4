//! Who may do what: API keys, roles route by route, and the trail of what was changed.

use std::fmt::Write;

use flowvigil::api::keys::{ApiKey, Digest};
use flowvigil::api::roles::{ROUTES, Role};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::Digest as _;
use uuid::Uuid;

use crate::api::{Api, agent, anomaly, in_days, read};

const ROLES: [Role; 3] = [Role::Reader, Role::Analyst, Role::Admin];

fn key(name: &str, role: Role, expires: Option<Timestamp>) -> ApiKey {
    ApiKey { name: name.to_owned(), sha256: Digest(sha2::Sha256::digest(secret(name)).into()), role, expires }
}

fn secret(name: &str) -> String {
    format!("a-secret-that-only-{name}-knows")
}

fn start() -> Api {
    Api::with(|settings| {
        settings.keys = ROLES.iter().map(|role| key(role.name(), *role, None)).collect();
        let ago = Timestamp::now().checked_sub(SignedDuration::from_secs(1)).unwrap();
        settings.keys.push(key("former", Role::Admin, Some(ago)));
        (settings.rate_limit.burst, settings.rate_limit.failures_burst) = (1_000.0, 1_000.0);
    })
    .unwrap()
}

/// What a path answers to whoever brings a key.
fn ask(api: &Api, method: &str, path: &str, who: Option<&str>, body: Option<&Value>) -> (u16, Value) {
    let url = format!("http://{}{path}", api.address);
    let bearer = who.map(|name| format!("Bearer {}", secret(name)));
    let request =
        ureq::http::Request::builder().method(method).uri(url).header("accept", "application/json, text/event-stream");
    let request = bearer.iter().fold(request, |request, bearer| request.header("authorization", bearer));
    match body {
        Some(body) => {
            let request = request.header("content-type", "application/json").body(body.to_string()).unwrap();
            read(agent().run(request).unwrap())
        }
        None => read(agent().run(request.body(()).unwrap()).unwrap()),
    }
}

fn suppression(name: &str) -> Value {
    json!({
        "name": name, "owner": "ada", "reason": "r", "expires": in_days(30), "match": {"actors": ["203.0.113.9"]}
    })
}

/// A request that a route understands.
fn request_for(method: &str, route: &str) -> (String, Option<Value>) {
    let one = Uuid::from_u128(1);
    let path = route.replace("{id}", &one.to_string()).replace("{address}", "10.0.0.5").replace("{name}", "n");
    let path = if route == "/v1/explain" { format!("{path}?address=10.0.0.5") } else { path };
    let body = match (method, route) {
        ("POST", "/v1/suppressions") => Some(suppression("n")),
        ("POST", "/mcp") => Some(json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})),
        ("POST", _) => Some(json!({"verdict": "true_positive"})),
        _ => None,
    };
    (path, body)
}

#[test]
fn every_route_has_its_least_role_and_refuses_whoever_has_less() {
    let api = start();
    api.record(&anomaly(1, 1_700_000_000));
    let (_, document) = api.get("/openapi.json");
    let mut described = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        described.extend(item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())));
    }
    described.retain(|(_, path)| !path.starts_with("/health/"));
    let mut listed: Vec<_> = ROUTES.iter().map(|(method, path, _)| (method.to_string(), (*path).to_owned())).collect();
    described.sort();
    listed.sort();
    assert_eq!(listed, described, "every route of the description stands in the table of roles");
    for (method, route, least) in ROUTES {
        // A stream has no end that could be waited for.
        if route.ends_with("/stream") {
            continue;
        }
        let (path, body) = request_for(method.as_str(), route);
        assert_eq!(ask(&api, method.as_str(), &path, None, body.as_ref()).0, 401, "{method} {route}");
        for role in ROLES {
            // A suppression is kept by analysts, and tried by readers.
            let least = if (method.as_str(), *route) == ("POST", "/v1/suppressions") { Role::Analyst } else { *least };
            let (status, answer) = ask(&api, method.as_str(), &path, Some(role.name()), body.as_ref());
            let refused = status == 403;
            assert_eq!(refused, role < least, "{method} {route} as {role:?}: {status} {answer}");
            if refused {
                assert!(answer["detail"].as_str().unwrap().contains(least.name()), "{answer}");
            }
        }
    }
    let tried = ask(&api, "POST", "/v1/suppressions?dry_run=true", Some("reader"), Some(&suppression("n")));
    assert_eq!(tried.0, 200, "{}", tried.1);
    let head = ureq::http::Request::head(format!("http://{}/v1/audit", api.address));
    let head = head.header("authorization", format!("Bearer {}", secret("reader"))).body(()).unwrap();
    assert_eq!(agent().run(head).unwrap().status(), 403, "HEAD is GET");
}

#[test]
fn a_key_that_has_expired_or_that_nobody_knows_is_refused() {
    let api = start();
    let (status, problem) = ask(&api, "GET", "/v1/anomalies", Some("former"), None);
    assert!(status == 401 && problem["detail"].as_str().unwrap().contains("former"), "{problem}");
    let (status, problem) = ask(&api, "GET", "/v1/anomalies", Some("nobody"), None);
    assert_eq!((status, &problem["field"]), (401, &json!("authorization")), "{problem}");
    let mut digest = String::new();
    sha2::Sha256::digest(secret("reader")).iter().for_each(|byte| write!(digest, "{byte:02x}").unwrap());
    let (status, _) = read(api.ask("/v1/anomalies", &[("authorization", &format!("Bearer {digest}"))]));
    assert_eq!(status, 401, "who reads the settings has no key");
}

#[test]
fn tools_have_the_rights_of_whoever_calls_them() {
    let api = start();
    api.record(&anomaly(1, 1_700_000_000));
    let call = |who: &str, name: &str, arguments: Value| {
        let message = json!({
            "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}
        });
        let (status, answer) = ask(&api, "POST", "/mcp", Some(who), Some(&message));
        assert_eq!(status, 200, "{answer}");
        answer["result"].clone()
    };
    let verdict = json!({"id": Uuid::from_u128(1), "verdict": "false_positive"});
    let mut applied = suppression("n");
    assert_eq!(call("reader", "propose_suppression", applied.clone())["isError"], false);
    applied["apply"] = json!(true);
    for refused in
        [call("reader", "submit_feedback", verdict.clone()), call("reader", "propose_suppression", applied.clone())]
    {
        assert_eq!((&refused["isError"], &refused["structuredContent"]["status"]), (&json!(true), &json!(403)));
    }
    assert_eq!(call("analyst", "submit_feedback", verdict)["structuredContent"]["by"], "key analyst");
    assert_eq!(call("analyst", "propose_suppression", applied)["isError"], false);
}

#[test]
fn every_change_leaves_who_what_before_and_after() {
    let api = start();
    api.record(&anomaly(1, 1_700_000_000));
    let feedback = format!("/v1/anomalies/{}/feedback", Uuid::from_u128(1));
    for verdict in ["true_positive", "false_positive"] {
        let (status, _) = ask(&api, "POST", &feedback, Some("analyst"), Some(&json!({"verdict": verdict})));
        assert_eq!(status, 201);
    }
    assert_eq!(ask(&api, "POST", "/v1/suppressions", Some("admin"), Some(&suppression("n"))).0, 201);
    assert_eq!(ask(&api, "DELETE", "/v1/suppressions/n", Some("analyst"), None).0, 204);
    assert_eq!(ask(&api, "DELETE", "/v1/suppressions/n", Some("analyst"), None).0, 404);
    // What is only tried or refused changes nothing.
    assert_eq!(ask(&api, "POST", "/v1/suppressions?dry_run=true", Some("reader"), Some(&suppression("x"))).0, 200);
    assert_eq!(ask(&api, "POST", &feedback, Some("reader"), Some(&json!({"verdict": "true_positive"}))).0, 403);
    let (mut path, mut entries) = ("/v1/audit?limit=3".to_owned(), Vec::new());
    loop {
        let (status, page) = ask(&api, "GET", &path, Some("admin"), None);
        assert_eq!(status, 200, "{page}");
        entries.extend(page["entries"].as_array().unwrap().iter().cloned());
        match page["next"].as_str() {
            Some(next) => path = next.to_owned(),
            None => break,
        }
    }
    let told: Vec<_> =
        entries.iter().map(|e| [&e["action"], &e["by"], &e["subject"]].map(|v| v.as_str().unwrap())).collect();
    let one = Uuid::from_u128(1).to_string();
    assert_eq!(
        told,
        [
            ["remove_suppression", "key analyst", "n"],
            ["make_suppression", "key admin", "n"],
            ["give_feedback", "key analyst", &one],
            ["give_feedback", "key analyst", &one],
        ]
    );
    let before = |n: usize| entries[n]["before"].clone();
    assert_eq!((before(0)["made_by"].clone(), entries[0]["after"].clone()), (json!("key admin"), Value::Null));
    assert_eq!((before(1), entries[1]["after"]["owner"].clone()), (Value::Null, json!("ada")));
    assert_eq!(
        (before(2)["verdict"].clone(), entries[2]["after"]["verdict"].clone()),
        (json!("true_positive"), json!("false_positive"))
    );
    assert_eq!(before(3), Value::Null);
    let (status, problem) = ask(&api, "GET", "/v1/audit?cursor=junk", Some("admin"), None);
    assert_eq!((status, &problem["field"]), (400, &json!("cursor")), "{problem}");
}

#[test]
fn the_token_of_the_settings_has_the_role_that_they_give_it() {
    let api = Api::with(|settings| {
        settings.token = flowvigil::api::auth::Token(secret("gateway"));
        settings.token_role = Role::Analyst;
    })
    .unwrap();
    for (path, status) in [("/v1/anomalies", 200), ("/v1/config", 403), ("/v1/audit", 403)] {
        let (answer, problem) = ask(&api, "GET", path, Some("gateway"), None);
        assert_eq!(answer, status, "{path}: {problem}");
    }
}
