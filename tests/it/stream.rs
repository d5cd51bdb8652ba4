//! Changes as server-sent events: given as they happen, resumed without a gap, bounded, and ended by both sides.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use flowvigil::anomaly::{Anomaly, Status};
use flowvigil::finding::Threat;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Api, agent, anomaly, read};
use crate::service::Service;

/// One event.
#[derive(Debug)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

/// An open stream.
struct Stream {
    lines: std::io::Lines<BufReader<ureq::BodyReader<'static>>>,
}

impl Stream {
    fn open(address: std::net::SocketAddr, query: &str, last: Option<&str>) -> Stream {
        let mut request = agent().get(format!("http://{address}/v1/anomalies/stream{query}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.call().unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        Stream { lines: BufReader::new(reader).lines() }
    }

    /// The next event, comments aside; none where the stream has ended.
    fn next(&mut self) -> Option<Event> {
        let mut event = Event { id: String::new(), name: String::new(), data: Value::Null };
        for line in self.lines.by_ref() {
            match line.ok()?.split_once(": ") {
                Some(("id", id)) => event.id = id.to_owned(),
                Some(("event", name)) => event.name = name.to_owned(),
                Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                _ if !event.name.is_empty() => return Some(event),
                _ => {}
            }
        }
        None
    }

    fn anomalies(&mut self, count: usize) -> Vec<(u128, Event)> {
        let id = |event: &Event| event.data["anomaly_id"].as_str().unwrap().parse::<Uuid>().unwrap().as_u128();
        let mut found = Vec::new();
        for _ in 0..count {
            let event = self.next().expect("the stream goes on");
            assert_eq!(event.name, "anomaly", "{event:?}");
            found.push((id(&event), event));
        }
        found
    }
}

fn ids(events: &[(u128, Event)]) -> Vec<u128> {
    events.iter().map(|(id, _)| *id).collect()
}

#[test]
fn changes_are_given_as_they_happen_and_none_is_missed_by_whoever_comes_again() {
    let api = Api::start();
    let known = |id: u128| anomaly(id, 1_700_000_000 + id as u32 * 60);
    api.record(&known(1));
    let mut stream = Stream::open(api.address, "", None);
    let ready = stream.next().unwrap();
    assert_eq!((ready.name.as_str(), &ready.data), ("ready", &json!({})));
    // What was there before is on the list; the stream begins now.
    api.record(&known(2));
    api.record(&Anomaly { updates: 2, status: Status::Closed, ..known(1) });
    let seen = stream.anomalies(2);
    assert_eq!(ids(&seen), [2, 1]);
    assert_eq!(seen[1].1.data["status"], "closed");
    assert_eq!(seen[1].1.data, api.get(&format!("/v1/anomalies/{}", Uuid::from_u128(1))).1);
    drop(stream);
    // The connection broke after the first of the two, and something happened meanwhile.
    api.record(&known(3));
    let mut again = Stream::open(api.address, "", Some(&seen[0].1.id));
    assert_eq!(again.next().unwrap().id, seen[0].1.id);
    assert_eq!(ids(&again.anomalies(2)), [1, 3]);
    // A verdict is a change as well.
    let feedback = format!("/v1/anomalies/{}/feedback", Uuid::from_u128(2));
    assert_eq!(api.post(&feedback, r#"{"verdict":"true_positive"}"#).0, 201);
    assert_eq!(ids(&again.anomalies(1)), [2]);
    let mut fresh = Stream::open(api.address, "", Some(&ready.id));
    fresh.next().unwrap();
    assert_eq!(ids(&fresh.anomalies(3)), [1, 3, 2]);
}

#[test]
fn filters_and_the_short_form_are_those_of_the_list_and_what_is_not_known_is_refused() {
    let api = Api::start();
    for id in 0..250 {
        let threat = if id % 2 == 0 { Threat::Tor } else { Threat::PortScan };
        api.record(&Anomaly { threat, ..anomaly(id, 1_700_000_000 + id as u32) });
    }
    let mut stream = Stream::open(api.address, "?changed_since=0&threat=tor&brief=true", None);
    stream.next().unwrap();
    let all = stream.anomalies(125);
    assert!(all.iter().zip((0..250).step_by(2)).all(|((id, _), wanted)| *id == wanted), "in the order of changes");
    assert!(all[0].1.data.get("evidence").is_none() && all[0].1.data["changed"] == all[0].1.id, "{:?}", all[0].1);
    for (query, field) in
        [("?colour=red", "colour"), ("?changed_since=yesterday", "changed_since"), ("?limit=5", "limit")]
    {
        let (status, problem) = api.get(&format!("/v1/anomalies/stream{query}"));
        assert_eq!((status, &problem["field"]), (400, &json!(field)), "{problem}");
    }
    let (status, problem) = read(api.ask("/v1/anomalies/stream", &[("last-event-id", "nonsense")]));
    assert_eq!((status, &problem["field"]), (400, &json!("changed_since")), "{problem}");
}

#[test]
fn streams_are_bounded_and_an_idle_one_is_kept_open_by_comments() {
    let api = Api::with(|settings| {
        settings.streams_max = 2;
        // Whoever takes nothing in for so long is cut off, and comments are taken in.
        settings.body_timeout = jiff::SignedDuration::from_secs(3);
    })
    .unwrap();
    let mut first = Stream::open(api.address, "", None);
    let second = Stream::open(api.address, "", None);
    let (status, problem) = api.get("/v1/anomalies/stream");
    assert!(status == 503 && problem["remedy"].as_str().unwrap().contains("streams_max"), "{problem}");
    drop(second);
    assert!(crate::service::soon(|| api.ask("/v1/anomalies/stream", &[]).status() == 200), "room is given back");
    first.next().unwrap();
    std::thread::sleep(Duration::from_secs(5));
    api.record(&anomaly(1, 1_700_000_000));
    assert_eq!(ids(&first.anomalies(1)), [1]);
}

#[test]
fn a_service_that_stops_ends_its_streams_and_does_not_wait_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut service = Service::start(folder.path(), &[]);
    let mut stream = Stream::open(service.address(), "?brief=true", None);
    stream.next().unwrap();
    service.scan("10.0.3.7", 1, 300);
    service.quiet_until(10);
    let (_, told) = stream.anomalies(1).remove(0);
    assert_eq!(told.data["actor"], "10.0.3.7");
    service.stop();
    let mut last = stream.next();
    while let Some(event) = last.as_ref().filter(|event| event.name == "anomaly") {
        assert_eq!(event.data["actor"], "10.0.3.7");
        last = stream.next();
    }
    let end = last.expect("it says that it ends");
    assert_eq!((end.name.as_str(), &end.data["reason"]), ("end", &json!("the service stops")));
    assert!(stream.next().is_none());
}
