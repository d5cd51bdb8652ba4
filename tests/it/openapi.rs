//! The API's own description: it is valid and whole, and answers are as it describes them.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Api, agent, anomaly, in_days};

/// Every operation of the document: path, method, and what it is.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(move |(method, it)| (path.as_str(), method.as_str(), it))
        })
        .collect()
}

#[test]
fn every_operation_has_a_name_of_its_own_its_rights_and_every_refusal() {
    let api = Api::start();
    let (_, document) = api.get("/openapi.json");
    let scheme = &document["components"]["securitySchemes"]["bearer"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&json!("http"), &json!("bearer")));
    let operations = operations(&document);
    assert!(operations.len() >= 14, "{operations:?}");
    let ids: BTreeSet<&str> = operations.iter().map(|(_, _, it)| it["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), operations.len());
    for (path, method, operation) in operations {
        let responses = operation["responses"].as_object().unwrap();
        for (status, response) in responses {
            assert!(response["description"].as_str().is_some_and(|d| !d.is_empty()), "{method} {path} {status}");
            if status.starts_with('4') {
                let schema = &response["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Problem", "{method} {path} {status}");
            }
        }
        if path.starts_with("/health/") {
            assert_eq!(operation["security"], json!([]), "{path}");
            continue;
        }
        assert_eq!(operation["security"], json!([{"bearer": []}, {}]), "{path}: a token, or none where none is set");
        let body = operation.get("requestBody").map_or(&[][..], |_| &["408", "413", "415"]);
        for status in ["400", "401", "403", "429", "500", "503"].iter().chain(body) {
            assert!(responses.contains_key(*status), "{method} {path} lacks {status}");
        }
        assert!(responses["429"]["headers"].get("Retry-After").is_some(), "{method} {path}");
    }
}

#[test]
fn no_part_of_an_answer_is_an_object_of_any_shape() {
    let api = Api::start();
    let (_, document) = api.get("/openapi.json");
    let mut shapeless = Vec::new();
    look(&document["components"]["schemas"], "", &mut shapeless);
    // A model's manifest is shown as it stands in its artifact.
    assert_eq!(shapeless, ["/ModelsReport/properties/model"]);
}

/// Names the schemas that are objects without saying what is in them.
fn look(schema: &Value, place: &str, found: &mut Vec<String>) {
    let shaped = ["properties", "additionalProperties", "$ref", "allOf", "oneOf", "anyOf"];
    if schema["type"] == "object" && !shaped.iter().any(|word| schema.get(word).is_some()) {
        found.push(place.to_owned());
    }
    match schema {
        Value::Object(parts) => parts.iter().for_each(|(name, part)| look(part, &format!("{place}/{name}"), found)),
        Value::Array(parts) => parts.iter().for_each(|part| look(part, place, found)),
        _ => {}
    }
}

/// An answer with the path of the document that describes it.
fn answered(path: &str, method: &str, mut response: ureq::http::Response<ureq::Body>) -> Value {
    let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    let status = response.status().as_u16();
    let body: Value = serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap();
    json!({"path": path, "method": method, "status": status, "media_type": media_type, "body": body})
}

/// Answers of every kind that a store without a pipeline gives.
fn answers(api: &Api) -> Vec<Value> {
    for id in 0..3 {
        api.record(&anomaly(id, 1_700_000_000 + id as u32 * 60));
    }
    let one = format!("/v1/anomalies/{}", Uuid::from_u128(1));
    let unknown = format!("/v1/anomalies/{}", Uuid::from_u128(100));
    let feedback = format!("{one}/feedback");
    let suppression = json!({
        "name": "weekly scan", "owner": "ada", "reason": "ours", "expires": in_days(30),
        "match": {"threats": ["port_scan"], "actors": ["203.0.113.0/24"]}
    })
    .to_string();
    let get = |path: &'static str, url: &str| answered(path, "get", api.ask(url, &[]));
    let post = |path: &'static str, url: &str, body: &str| {
        let request = agent().post(format!("http://{}{url}", api.address));
        answered(path, "post", request.header("content-type", "application/json").send(body).unwrap())
    };
    vec![
        get("/v1/anomalies", "/v1/anomalies?limit=2"),
        get("/v1/anomalies", "/v1/anomalies?threat=tor"),
        get("/v1/anomalies", "/v1/anomalies?brief=true"),
        get("/v1/anomalies", "/v1/anomalies?changed_since=0&limit=1"),
        get("/v1/anomalies", "/v1/anomalies?colour=red"),
        get("/v1/anomalies/{id}", &one),
        get("/v1/anomalies/{id}", &unknown),
        get("/v1/silences", "/v1/silences"),
        get("/v1/signals", "/v1/signals"),
        get("/v1/explain", "/v1/explain?address=10.0.0.5"),
        get("/v1/models", "/v1/models"),
        get("/v1/status", "/v1/status"),
        get("/health/live", "/health/live"),
        get("/health/ready", "/health/ready"),
        post("/v1/anomalies/{id}/feedback", &feedback, r#"{"verdict":"true_positive","note":"seen"}"#),
        post("/v1/anomalies/{id}/feedback", &feedback, r#"{"verdict":"maybe"}"#),
        post("/v1/suppressions", "/v1/suppressions?dry_run=true", &suppression),
        post("/v1/suppressions", "/v1/suppressions", &suppression),
        get("/v1/suppressions", "/v1/suppressions"),
    ]
}

#[test]
fn an_independent_validator_accepts_the_description_and_every_answer() {
    let Ok(python) = std::env::var("FLOWVIGIL_TEST_OPENAPI") else {
        eprintln!("skipped: no validator of OpenAPI; tests/run openapi installs it");
        return;
    };
    let api = Api::start();
    let (_, document) = api.get("/openapi.json");
    let mut checked = answers(&api);
    assert_eq!(validate(&python, &document, &checked), "");
    // The validator sees what is wrong, in the description and in an answer.
    checked.truncate(1);
    checked[0]["body"]["anomalies"][0]["confidence"] = json!("high");
    assert!(validate(&python, &document, &checked).contains("confidence"));
    let mut broken = document.clone();
    broken["paths"]["/v1/anomalies"]["get"]["responses"]["200"].as_object_mut().unwrap().remove("description");
    assert!(validate(&python, &broken, &[]).contains("description"));
}

/// What the validator has to say; nothing where all is well.
fn validate(python: &str, document: &Value, answers: &[Value]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi.py");
    let mut command = Command::new(python);
    let mut child = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let given = json!({"document": document, "answers": answers}).to_string();
    child.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
