//! Anomalies in the forms that other systems take, held to models of theirs, and the API as a page to read.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use flowvigil::anomaly::{Anomaly, Status};
use flowvigil::finding::{Actor, Origin, Severity, Target, Threat};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Api, anomaly};

/// Anomalies of every threat, severity and status, by one and by many, of both families.
fn anomalies() -> Vec<Anomaly> {
    let severities = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];
    let mut all: Vec<Anomaly> = Threat::ALL
        .into_iter()
        .zip(severities.into_iter().cycle())
        .zip(1_u128..)
        .map(|((threat, severity), id)| Anomaly { threat, severity, ..anomaly(id, 1_700_000_000) })
        .collect();
    let source = Origin { address: "198.51.100.9".parse().unwrap(), amount: 10 };
    all.push(Anomaly { actor: Actor::Many, sources: vec![source], ..anomaly(20, 1_700_000_000) });
    let target = Target { address: "2001:db8::5".parse().unwrap(), ports: vec![443], port_count: 1 };
    all.push(Anomaly {
        targets: vec![target],
        updates: 3,
        related: vec![Uuid::from_u128(20)],
        ..anomaly(21, 1_700_000_000)
    });
    all.push(Anomaly { targets: Vec::new(), interface_ids: Vec::new(), ..anomaly(22, 1_700_000_000) });
    all.push(Anomaly { status: Status::Closed, summary: "x".repeat(3_000), ..anomaly(23, 1_700_000_000) });
    all
}

#[test]
fn an_anomaly_is_exported_as_others_take_it() {
    let api = Api::start();
    let all = anomalies();
    let export = |anomaly: &Anomaly, query: &str| {
        let (status, finding) = api.get(&format!("/v1/anomalies/{}?{query}", anomaly.anomaly_id));
        assert_eq!(status, 200, "{finding}");
        finding
    };
    all.iter().for_each(|anomaly| api.record(anomaly));
    let ocsf: Vec<Value> = all.iter().map(|anomaly| export(anomaly, "format=ocsf")).collect();
    let asff: Vec<Value> = all.iter().map(|anomaly| export(anomaly, "format=asff&region=eu-west-1")).collect();
    for (anomaly, (ocsf, asff)) in all.iter().zip(ocsf.iter().zip(&asff)) {
        let id = anomaly.anomaly_id.to_string();
        assert_eq!((&ocsf["finding_info"]["uid"], &asff["Id"]), (&json!(id), &json!(id)));
        assert_eq!(ocsf["severity_id"], json!(anomaly.severity as u8 + 2));
        assert_eq!(asff["Severity"]["Label"], anomaly.severity.name().to_uppercase());
        assert_eq!((&ocsf["confidence_score"], &asff["Confidence"]), (&json!(97), &json!(97)));
    }
    let first = &ocsf[0];
    assert_eq!(
        (&first["class_uid"], &first["type_uid"], &first["status_id"]),
        (&json!(2004), &json!(200_401), &json!(1))
    );
    assert_eq!(first["time"], json!(1_700_000_000_000_u64));
    assert_eq!(
        first["evidences"][0],
        json!({"src_endpoint": {"ip": "203.0.113.9"}, "dst_endpoint": {"ip": "10.0.0.5", "port": 22}})
    );
    assert_eq!(first["evidences"][1]["data"]["distinct_ports"]["threshold"], 25.0);
    assert_eq!(first["finding_info"]["attacks"][0]["technique"]["uid"], "T1046");
    let (updated, closed) = (&ocsf[9], ocsf.last().unwrap());
    assert_eq!(
        (&updated["activity_id"], &closed["activity_id"], &closed["is_alert"]),
        (&json!(2), &json!(3), &json!(false))
    );
    assert_eq!(asff[0]["ProductArn"], "arn:aws:securityhub:eu-west-1:123456789012:product/123456789012/default");
    assert_eq!(asff[0]["Network"]["DestinationIpV4"], "10.0.0.5");
    assert_eq!(asff[9]["Network"]["DestinationIpV6"], "2001:db8::5");
    assert_eq!(asff.last().unwrap()["RecordState"], "ARCHIVED");
    let Ok(python) = std::env::var("FLOWVIGIL_TEST_EXPORT") else {
        eprintln!("skipped: no models of findings; tests/run export installs them");
        return;
    };
    assert_eq!(validate(&python, &ocsf, &asff), "");
    // The models see what is wrong.
    let (mut ocsf, mut asff) = (ocsf, asff);
    ocsf[0].as_object_mut().unwrap().remove("severity_id");
    asff[0].as_object_mut().unwrap().remove("Title");
    let told = validate(&python, &ocsf, &asff);
    assert!(told.contains("severity_id") && told.contains("Title"), "{told}");
}

#[test]
fn what_cannot_be_exported_is_refused_by_its_field() {
    let api = Api::start();
    api.record(&Anomaly { account_id: String::new(), ..anomaly(1, 1_700_000_000) });
    api.record(&anomaly(2, 1_700_000_000));
    let path = |id: u128, query: &str| format!("/v1/anomalies/{}?{query}", Uuid::from_u128(id));
    for (path, status, field) in [
        (path(1, "format=asff&region=eu-west-1"), 422, "format"),
        (path(2, "format=asff&region=nowhere/else"), 422, "region"),
        (path(2, "format=stix"), 400, "format"),
        (path(2, "colour=red"), 400, "colour"),
    ] {
        let (code, problem) = api.get(&path);
        assert_eq!((code, &problem["field"]), (status, &json!(field)), "{path}: {problem}");
    }
    let tag = |query: &str| api.ask(&path(2, query), &[]).headers()["etag"].to_str().unwrap().to_owned();
    assert_ne!(tag("format=ocsf"), tag("format=flowvigil"), "another form has another tag");
    assert_eq!(tag(""), tag("format=flowvigil"));
}

/// What the models have to say; nothing where all is well.
fn validate(python: &str, ocsf: &[Value], asff: &[Value]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/export.py");
    let mut child = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(json!({"ocsf": ocsf, "asff": asff}).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_api_can_be_read_as_a_page_that_loads_nothing_from_elsewhere() {
    let api = Api::start();
    let page = api.ask("/docs", &[]);
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(!page.headers()["content-security-policy"].to_str().unwrap().contains("unsafe"));
    let page = page.into_body().read_to_string().unwrap();
    let (_, document) = api.get("/openapi.json");
    for (path, item) in document["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(page.contains(&format!("id=\"{id}\"")), "{path} is not on the page");
        }
    }
    for part in page.split("href=\"#").skip(1) {
        let anchor = part.split('"').next().unwrap();
        assert!(page.contains(&format!("id=\"{anchor}\"")), "#{anchor} leads nowhere");
    }
    assert!(!page.contains("<script") && !page.contains(" style=") && !page.contains("src="));
    let elsewhere = page.split("href=\"").skip(1).find(|part| !part.starts_with(['#', '/']));
    assert_eq!(elsewhere, None);
    assert!(page.contains("Least role: analyst."));
}
