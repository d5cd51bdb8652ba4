//! The tools for agents: called by the official client of the Model Context Protocol, and by raw messages.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use ureq::http::Response;
use uuid::Uuid;

use crate::api::{Api, agent, anomaly, in_days, read};
use crate::service::Service;

const TOOLS: [&str; 6] =
    ["list_anomalies", "get_anomaly", "explain_address", "host_profile", "submit_feedback", "propose_suppression"];

/// One message of the protocol, as a client of 2025 sends it.
fn send(api: &Api, headers: &[(&str, &str)], message: &Value) -> Response<ureq::Body> {
    let mut request = agent().post(format!("http://{}/mcp", api.address));
    for (name, value) in [("content-type", "application/json"), ("accept", "application/json, text/event-stream")] {
        if headers.iter().all(|(given, _)| *given != name) {
            request = request.header(name, value);
        }
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send(message.to_string()).unwrap()
}

fn message(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

/// What a tool answers: whether that is an error, and the content.
fn call(api: &Api, name: &str, arguments: &Value) -> (bool, Value) {
    let asked = message("tools/call", &json!({"name": name, "arguments": arguments}));
    let (status, answer) = read(send(api, &[], &asked));
    assert_eq!(status, 200, "{name}: {answer}");
    let result = &answer["result"];
    let text: Value = serde_json::from_str(result["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(text, result["structuredContent"], "clients that know no structured content read the same");
    (result["isError"].as_bool().unwrap(), text)
}

fn suppression(more: &Value) -> Value {
    let mut asked = json!({
        "name": "weekly scan", "owner": "ada", "reason": "ours", "expires": in_days(30),
        "match": {"threats": ["port_scan"], "actors": ["203.0.113.0/24"]}
    });
    asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    asked
}

#[test]
fn every_tool_has_a_strict_schema_and_answers_as_its_route_does() {
    let api = Api::start();
    for id in 0..3 {
        api.record(&anomaly(id, 1_700_000_000 + id as u32 * 60));
    }
    let (status, listed) = read(send(&api, &[], &message("tools/list", &json!({}))));
    assert_eq!(status, 200, "{listed}");
    let tools = listed["result"]["tools"].as_array().unwrap();
    assert_eq!(tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect::<Vec<_>>(), TOOLS);
    for tool in tools {
        let schema = &tool["inputSchema"];
        assert_eq!((&schema["type"], &schema["additionalProperties"]), (&json!("object"), &json!(false)), "{tool}");
        assert!(!schema.to_string().contains("$ref"), "a schema stands by itself: {schema}");
        for (name, property) in schema["properties"].as_object().unwrap() {
            assert!(property["description"].as_str().is_some_and(|words| !words.is_empty()), "{name}: {property}");
        }
    }
    let one = Uuid::from_u128(1).to_string();
    for (tool, arguments, path) in [
        ("list_anomalies", json!({"limit": 2}), "/v1/anomalies?brief=true&limit=2".to_owned()),
        ("list_anomalies", json!({"brief": false, "threat": null}), "/v1/anomalies?brief=false".to_owned()),
        ("get_anomaly", json!({"id": one}), format!("/v1/anomalies/{one}")),
        ("explain_address", json!({"address": "10.0.0.5"}), "/v1/explain?address=10.0.0.5".to_owned()),
        ("host_profile", json!({"address": "2001:db8::5"}), "/v1/hosts/2001:db8::5".to_owned()),
    ] {
        let (error, mut answer) = call(&api, tool, &arguments);
        let mut wanted = api.get(&path).1;
        // The path of the next page repeats the question, in its own order.
        (answer["next"], wanted["next"]) = (Value::Null, Value::Null);
        assert_eq!((error, answer), (false, wanted), "{tool} {arguments}");
    }
}

#[test]
fn an_argument_that_is_wrong_is_an_error_with_its_place_and_the_remedy() {
    let api = Api::start();
    api.record(&anomaly(1, 1_700_000_000));
    let one = Uuid::from_u128(1).to_string();
    for (tool, arguments, field) in [
        ("list_anomalies", json!({"colour": "red"}), "colour"),
        ("list_anomalies", json!({"threat": "nope"}), "threat"),
        ("list_anomalies", json!({"threat": ["tor"]}), "threat"),
        ("get_anomaly", json!({}), "id"),
        ("get_anomaly", json!({"id": one, "x": 1}), "x"),
        ("explain_address", json!({"adress": "10.0.0.5"}), "adress"),
        ("submit_feedback", json!({"id": one, "verdict": "maybe"}), "verdict"),
        ("submit_feedback", json!({"id": one, "verdict": "true_positive", "colour": "red"}), "colour"),
        ("propose_suppression", suppression(&json!({"apply": "yes"})), "apply"),
        ("propose_suppression", suppression(&json!({"dry_run": false})), "dry_run"),
        ("propose_suppression", suppression(&json!({"expire": "soon"})), "expire"),
    ] {
        let (error, problem) = call(&api, tool, &arguments);
        assert!(error && problem["field"] == field, "{tool} {arguments}: {problem}");
        assert!(problem["remedy"].as_str().unwrap().len() > 10, "{problem}");
    }
    let (error, problem) = call(&api, "get_anomaly", &json!({"id": "../suppressions"}));
    assert!(error && problem["status"] == 400, "a path stays one part of a path: {problem}");
    assert_eq!(api.get("/v1/suppressions").1["suppressions"], json!([]), "nothing was made");
    let asked = message("tools/call", &json!({"name": "drop_tables", "arguments": {}}));
    let (_, answer) = read(send(&api, &[], &asked));
    assert!(answer["error"]["message"].as_str().unwrap().contains("drop_tables"), "{answer}");
}

#[test]
fn a_suppression_is_only_tried_unless_it_is_said_to_be_applied() {
    let api = Api::start();
    api.record(&anomaly(7, 1_700_000_000));
    let (error, tried) = call(&api, "propose_suppression", &suppression(&json!({})));
    assert_eq!((error, &tried["dry_run"], &tried["hidden_count"]), (false, &json!(true), &json!(1)), "{tried}");
    assert_eq!(api.get("/v1/suppressions").1["suppressions"], json!([]));
    let (error, made) = call(&api, "propose_suppression", &suppression(&json!({"apply": true})));
    assert_eq!((error, &made["dry_run"]), (false, &json!(false)), "{made}");
    assert_eq!(api.get("/v1/suppressions").1["suppressions"][0]["name"], "weekly scan");
    let id = Uuid::from_u128(7).to_string();
    let (error, kept) = call(&api, "submit_feedback", &json!({"id": id, "verdict": "true_positive", "note": "seen"}));
    assert_eq!((error, &kept["by"]), (false, &json!("loopback")), "{kept}");
}

#[test]
fn agents_come_in_by_the_same_door_as_everybody() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "a-token-of-some-length\n").unwrap();
    let guarded = Api::with(|settings| settings.token_file = file).unwrap();
    let list = message("tools/list", &json!({}));
    let token = ("authorization", "Bearer a-token-of-some-length");
    assert_eq!(send(&guarded, &[], &list).status(), 401);
    assert_eq!(send(&guarded, &[token], &list).status(), 200);
    let own = format!("https://{}", guarded.address);
    assert_eq!(send(&guarded, &[token, ("origin", &own)], &list).status(), 200);
    let (status, problem) = read(send(&guarded, &[token, ("origin", "https://elsewhere.example")], &list));
    assert_eq!((status, &problem["field"]), (403, &json!("origin")), "{problem}");

    let api = Api::with(|settings| {
        (settings.rate_limit.per_second, settings.rate_limit.burst) = (0.001, 8.0);
        settings.body_max = 4_000;
    })
    .unwrap();
    assert_eq!(send(&api, &[("host", "rebound.example")], &list).status(), 403);
    for (what, headers, body, status) in [
        ("no media type of ours", &[("content-type", "text/plain")][..], list.to_string(), 415),
        ("no event stream", &[("accept", "application/json")], list.to_string(), 406),
        ("a large body", &[], message("tools/list", &json!({"x": "x".repeat(5_000)})).to_string(), 413),
    ] {
        let message = Value::String(body);
        let response = send(&api, headers, &message);
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{what}");
        let (code, problem) = read(response);
        assert_eq!((code, problem["status"].as_u64()), (status, Some(u64::from(status))), "{what}: {problem}");
    }
    assert_eq!(api.ask("/mcp", &[]).status(), 405, "there is no stream to open");
    let asked: Vec<u16> = (0..9).map(|_| send(&api, &[], &list).status().as_u16()).collect();
    assert!(asked.contains(&200) && asked.last() == Some(&429), "{asked:?}");
}

#[test]
fn the_official_client_calls_every_tool_of_the_built_service() {
    let Ok(python) = std::env::var("FLOWVIGIL_TEST_MCP") else {
        eprintln!("skipped: no client of the Model Context Protocol; tests/run mcp installs it");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[("FLOWVIGIL__API__TOKEN", "a-token-of-some-length")]);
    service.scan("10.0.3.7", 1, 300);
    service.quiet_until(10);
    let url = format!("http://{}/mcp", service.address());
    let list = json!({"name": "list_anomalies", "arguments": {}});
    let client = |mode: &str, calls: &Value| client(&python, &url, mode, calls);
    let mut told = Value::Null;
    assert!(
        crate::service::soon(|| {
            told = client("auto", &json!([list]));
            told["results"][0]["structured"]["anomalies"].as_array().is_some_and(|all| !all.is_empty())
        }),
        "{told:#}\n{}",
        service.told()
    );
    assert_eq!(told["server"], "flowvigil");
    assert!(told["protocol"].as_str().unwrap() >= "2026-07-28", "{}", told["protocol"]);
    let id = told["results"][0]["structured"]["anomalies"][0]["anomaly_id"].clone();
    let calls = json!([
        {"name": "get_anomaly", "arguments": {"id": id}},
        {"name": "explain_address", "arguments": {"address": "10.0.3.7"}},
        {"name": "host_profile", "arguments": {"address": "10.0.3.7"}},
        {"name": "submit_feedback", "arguments": {"id": id, "verdict": "true_positive"}},
        {"name": "propose_suppression", "arguments": {
            "name": "n", "owner": "ada", "reason": "r", "expires": "2023-12-01T00:00:00Z", "match": {"actors": ["10.0.3.7"]}
        }},
        {"name": "get_anomaly", "arguments": {"id": "nobody"}},
        {"name": "no_such_tool", "arguments": {}}
    ]);
    let told = client("legacy", &calls);
    let names: Vec<&str> = told["tools"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(names, TOOLS);
    let results = &told["results"];
    assert_eq!(results[0]["structured"]["actor"], "10.0.3.7", "{results:#}");
    assert_eq!(results[1]["structured"]["seen"][0]["ours"], true, "{results:#}");
    assert_eq!(results[2]["structured"]["open_anomalies"][0]["anomaly_id"], id, "{results:#}");
    assert_eq!(results[3]["structured"]["by"], "token", "{results:#}");
    assert_eq!(results[4]["structured"]["dry_run"], true, "{results:#}");
    assert!(results[5]["is_error"] == true && results[5]["structured"]["status"] == 400, "{results:#}");
    assert!(results[6]["refused"].as_str().unwrap().contains("no_such_tool"), "{results:#}");
}

/// What the client was given; it brings the token.
fn client(python: &str, url: &str, mode: &str, calls: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mcp_client.py");
    let mut command = Command::new(python);
    let mut child =
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let given = json!({"url": url, "token": "a-token-of-some-length", "mode": mode, "calls": calls});
    child.stdin.take().unwrap().write_all(given.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
