//! The API as programs poll it: what has changed since the last answer, in a short form, and nothing that is known already.

use flowvigil::anomaly::{Anomaly, Status};
use flowvigil::finding::{Severity, Threat};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Api, anomaly};

/// The API without its cache, which may give an answer again for a second.
fn start() -> Api {
    Api::with(|settings| settings.cache = jiff::SignedDuration::ZERO).unwrap()
}

/// Follows `next` to the end: the anomalies, and the last `changed_until`.
fn follow(api: &Api, path: &str) -> (Vec<Value>, String) {
    let (mut path, mut found) = (path.to_owned(), Vec::new());
    loop {
        let (status, page) = api.get(&path);
        assert_eq!(status, 200, "{path}: {page}");
        found.extend(page["anomalies"].as_array().unwrap().iter().cloned());
        match page["next"].as_str() {
            Some(next) => path = next.to_owned(),
            None => return (found, page["changed_until"].as_str().unwrap().to_owned()),
        }
    }
}

fn ids(found: &[Value]) -> Vec<u128> {
    found.iter().map(|a| a["anomaly_id"].as_str().unwrap().parse::<Uuid>().unwrap().as_u128()).collect()
}

fn changes(until: &str) -> String {
    let until: String = form_urlencoded::byte_serialize(until.as_bytes()).collect();
    format!("/v1/anomalies?changed_since={until}&limit=2")
}

#[test]
fn who_polls_gets_every_change_once_in_its_order_and_comes_to_an_end() {
    let api = start();
    for id in 0..6 {
        api.record(&anomaly(id, 1_700_000_000 + id as u32 * 60));
    }
    let (all, until) = follow(&api, "/v1/anomalies?limit=2");
    assert_eq!(ids(&all), [5, 4, 3, 2, 1, 0]);
    assert_eq!(follow(&api, &changes(&until)).0, Vec::<Value>::new());

    // The event time of what is closed, merged or judged lies long before; `since` would not give it.
    let known = |id: u128| anomaly(id, 1_700_000_000 + id as u32 * 60);
    api.record(&Anomaly { updates: 2, status: Status::Closed, ..known(3) });
    api.record(&Anomaly { updates: 2, merged_into: Some(Uuid::from_u128(3)), status: Status::Closed, ..known(1) });
    let feedback = format!("/v1/anomalies/{}/feedback", Uuid::from_u128(4));
    assert_eq!(api.post(&feedback, r#"{"verdict":"true_positive"}"#).0, 201);
    api.record(&known(6));
    api.record(&Anomaly { updates: 2, ..known(0) });
    let (changed, later) = follow(&api, &changes(&until));
    assert_eq!(ids(&changed), [3, 1, 4, 6, 0]);
    assert_eq!(changed[0]["status"], "closed");
    assert_eq!(follow(&api, &changes(&later)).0, Vec::<Value>::new());
    let closed = format!("{}&status=closed&severity_min=high", changes(&until));
    assert_eq!(ids(&follow(&api, &closed).0), [3, 1]);
    assert_eq!(ids(&follow(&api, "/v1/anomalies?changed_since=0").0), [2, 5, 3, 1, 4, 6, 0]);
}

#[test]
fn what_changes_while_a_list_is_read_is_given_afterwards() {
    let api = start();
    for id in 0..4 {
        api.record(&anomaly(id, 1_700_000_000 + id as u32 * 60));
    }
    let (_, first) = api.get("/v1/anomalies?limit=2");
    // It stands on the page that was read already.
    api.record(&Anomaly { updates: 2, ..anomaly(3, 1_700_000_180) });
    let (rest, until) = follow(&api, first["next"].as_str().unwrap());
    assert_eq!(ids(&rest), [1, 0]);
    assert_eq!(ids(&follow(&api, &changes(&until)).0), [3]);
}

#[test]
fn a_changed_since_that_is_not_ours_is_refused_with_what_to_do() {
    let api = start();
    api.record(&anomaly(1, 1_700_000_000));
    for (path, field) in [
        ("/v1/anomalies?changed_since=yesterday", "changed_since"),
        ("/v1/anomalies?changed_since=1000", "changed_since"),
        ("/v1/anomalies?changed_since=0&cursor=5.x", "cursor"),
        ("/v1/anomalies?brief=maybe", "brief"),
        ("/v1/anomalies?severity_min=terrible", "severity_min"),
    ] {
        let (status, problem) = api.get(path);
        assert_eq!((status, &problem["field"]), (400, &json!(field)), "{path}: {problem}");
        assert!(problem["remedy"].as_str().unwrap().len() > 10, "{path}: {problem}");
    }
}

#[test]
fn the_short_form_has_what_tells_anomalies_apart_and_little_else() {
    let api = start();
    for id in 0..25 {
        api.record(&anomaly(id, 1_700_000_000 + id as u32 * 60));
    }
    let text = api.ask("/v1/anomalies?brief=true&limit=25", &[]).into_body().read_to_string().unwrap();
    assert!(text.len() < 25 * 400 + 200, "{} bytes", text.len());
    let page: Value = serde_json::from_str(&text).unwrap();
    let brief = &page["anomalies"][24];
    let names: Vec<&str> = brief.as_object().unwrap().keys().map(String::as_str).collect();
    let mut wanted = vec![
        "anomaly_id",
        "threat",
        "severity",
        "status",
        "confidence",
        "actor",
        "first_seen",
        "last_seen",
        "summary",
        "target_count",
        "changed",
    ];
    wanted.sort_unstable();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, wanted);
    let (_, whole) = api.get(&format!("/v1/anomalies/{}", Uuid::from_u128(0)));
    for name in names.into_iter().filter(|name| *name != "changed") {
        assert_eq!(brief[name], whole[name], "{name}");
    }
    api.record(&Anomaly { updates: 2, ..anomaly(0, 1_700_000_000) });
    let (_, page) = api.get("/v1/anomalies?brief=true&limit=25");
    assert_ne!(page["anomalies"][24]["changed"], brief["changed"]);
    assert!(page["anomalies"][23]["changed"].as_str().is_some());
}

#[test]
fn what_has_not_changed_is_not_sent_again() {
    let api = start();
    for id in 0..3 {
        api.record(&anomaly(id, 1_700_000_000 + id as u32 * 60));
    }
    let one = format!("/v1/anomalies/{}", Uuid::from_u128(1));
    let elsewhere = "/v1/anomalies?threat=tor";
    let paths = [one.as_str(), "/v1/anomalies", "/v1/anomalies?limit=2&brief=true", "/v1/anomalies?limit=2", elsewhere];
    let tag = |path: &str| {
        let response = api.ask(path, &[]);
        assert_eq!(response.status(), 200, "{path}");
        response.headers()["etag"].to_str().unwrap().to_owned()
    };
    let tags = paths.map(tag);
    let distinct: std::collections::BTreeSet<&String> = tags.iter().collect();
    assert_eq!(distinct.len(), paths.len(), "another question has another tag: {tags:?}");
    let again = |path: &str, tag: &str| {
        let mut response = api.ask(path, &[("if-none-match", tag)]);
        let status = response.status().as_u16();
        let body = response.body_mut().read_to_string().unwrap();
        assert_eq!(status == 304, body.is_empty(), "{path}: {body}");
        assert!(status != 304 || response.headers()["etag"] == tag, "{path}");
        status
    };
    let asked = || paths.iter().zip(&tags).map(|(path, tag)| again(path, tag)).collect::<Vec<_>>();
    assert_eq!(asked(), [304; 5]);
    assert_eq!(again(&one, "W/\"somebody-elses\""), 200);
    // A verdict changes what it is about, an update what it updates, and neither what is asked for elsewhere.
    let feedback = format!("{one}/feedback");
    assert_eq!(api.post(&feedback, r#"{"verdict":"false_positive"}"#).0, 201);
    assert_eq!(asked(), [200, 200, 200, 200, 304]);
    let tags = paths.map(tag);
    api.record(&Anomaly { updates: 2, severity: Severity::Low, ..anomaly(2, 1_700_000_120) });
    let asked: Vec<u16> = paths.iter().zip(&tags).map(|(path, tag)| again(path, tag)).collect();
    assert_eq!(asked, [304, 200, 200, 200, 304]);
    api.record(&Anomaly { threat: Threat::Tor, ..anomaly(9, 1_700_000_900) });
    assert_eq!(again(elsewhere, &tags[4]), 200);
}
