//! One suite per port, run over every backend: what a caller may rely on does not depend on where things are kept.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use flowvigil::anomaly::{Anomaly, SCHEMA, Status, Tiers};
use flowvigil::correlation::fallback::WithFallback;
use flowvigil::correlation::local::LocalIncidents;
use flowvigil::correlation::redis::{RedisIncidents, Settings as RedisSettings};
use flowvigil::correlation::{Incident, IncidentStore, Told, Watermarks};
use flowvigil::finding::{
    Actor, Alternative, Evidence, Finding, IncidentKey, Merge, Origin, Severity, Subject, Target, Threat,
};
use flowvigil::flow::{Address, EventTime};
use flowvigil::ingest::snapshot::local::{Folder, Settings as FolderSettings};
use flowvigil::ingest::snapshot::s3::{Bucket, Settings as BucketSettings};
use flowvigil::ingest::snapshot::{Snapshot, SnapshotError, SnapshotStore};
use flowvigil::ingest::{Position, ShardId};
use flowvigil::publish::audit::{Action, Entry};
use flowvigil::publish::dead_letter::{DeadLetters, Letters, WithDeadLetters};
use flowvigil::publish::dynamodb::{DynamoStore, schema::Schema};
use flowvigil::publish::episodes::{Claim, Claimed};
use flowvigil::publish::eventbridge::EventBridge;
use flowvigil::publish::local::{LineAnnouncer, SqliteStore};
use flowvigil::publish::rules::Rule;
use flowvigil::publish::{
    Announcement, Announcer, AnomalyStore, BAD_CHANGED_SINCE, BAD_CURSOR, Feedback, MISSING_INDEX, Notice,
    PublishError, Query, Recorded, Silence, Verdict, dead_letter, dynamodb, eventbridge,
};
use flowvigil::settings::Settings;
use jiff::SignedDuration;
use uuid::Uuid;

use crate::correlation::passed;
use crate::servers::{aws, eventually, moto, redis, unique};

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const SECOND: SignedDuration = SignedDuration::from_secs(1);

fn address(number: u32) -> Address {
    Address::v4(0x0a00_0000 + number)
}

/// The `number`th anomaly: each is of another day part, actor and victim.
fn anomaly(number: u32) -> Anomaly {
    let at = EventTime(1_700_000_000 + 3600 * 7 * number);
    Anomaly {
        anomaly_id: Uuid::from_u128(u128::from(number) + 1),
        schema: SCHEMA.to_owned(),
        threat: Threat::ALL[number as usize % 6],
        status: Status::Open,
        severity: [Severity::Low, Severity::Medium, Severity::High][number as usize % 3],
        severity_reason: String::new(),
        confidence: 0.9,
        sources: Vec::new(),
        alternatives: Vec::new(),
        actor: Actor::One(address(number)),
        targets: vec![Target { address: address(1000 + number), ports: vec![22], port_count: 1 }],
        target_count: 1,
        first_seen: at,
        last_seen: at.plus(30),
        detection_timestamp: at.plus(60),
        window_seconds: 60,
        summary: format!("anomaly {number}"),
        evidence: vec![Evidence::at_least("distinct_ports", 1022.0, 100.0, "ports", Merge::Max)],
        tiers: Tiers::default(),
        mitre: vec!["T1046".to_owned()],
        account_id: "123456789012".to_owned(),
        interface_ids: vec![format!("eni-{}", number % 2)],
        related: Vec::new(),
        degraded: Vec::new(),
        updates: 1,
        episode: None,
        merged_into: None,
    }
}

/// What every store of anomalies promises to those who are about to tell an episode.
async fn claims(store: &dyn AnomalyStore) {
    let key = IncidentKey { threat: Threat::PortScan, subject: Subject::Actor(address(1)) };
    let claim = |known_from: u32, first: u32, last: u32| {
        let (first_seen, last_seen) = (EventTime(first), EventTime(last));
        let known_from = EventTime(known_from);
        Claim {
            key,
            id: key.episode(known_from),
            known_from,
            first_seen,
            last_seen,
            gap: 3600,
            detected: last_seen,
            early: false,
        }
    };
    let first = store.claim(&claim(10_000, 10_000, 10_100)).await.unwrap();
    let detected = Some(EventTime(10_100));
    assert_eq!(first, Claimed { id: key.episode(EventTime(10_000)), detected, merged: vec![] });
    assert_eq!(store.claim(&claim(9_990, 9_990, 10_050)).await.unwrap(), first, "it overlaps");
    let far = store.claim(&claim(30_000, 30_000, 30_100)).await.unwrap();
    assert_ne!(far.id, first.id);
    let whole = Claimed { id: first.id, detected, merged: vec![far.id] };
    for _ in 0..2 {
        assert_eq!(store.claim(&claim(30_000, 12_000, 30_100)).await.unwrap(), whole, "it bridges");
    }
    // Whoever claims at once hears one answer.
    let [a, b, c] = [1, 2, 3].map(|n| claim(90_000 + n, 90_000 + n, 90_100));
    let (a, b, c) = tokio::join!(store.claim(&a), store.claim(&b), store.claim(&c));
    assert!(a.as_ref().unwrap() == b.as_ref().unwrap() && b.unwrap() == c.unwrap());
    tellings_at_once(store).await;
}

/// Tasks that tell one episode at once, each with what it has seen, write one row, and one of them was first.
async fn tellings_at_once(store: &dyn AnomalyStore) {
    let key = IncidentKey { threat: Threat::PortScan, subject: Subject::Actor(address(2)) };
    let tell = async |task: u32| {
        let (known_from, last_seen) = (EventTime(200_000), EventTime(200_100 + 60 * task));
        let (id, detected) = (key.episode(known_from), last_seen.plus(60));
        let claim = Claim { key, id, known_from, first_seen: known_from, last_seen, gap: 3600, detected, early: false };
        let claimed = store.claim(&claim).await.unwrap();
        let detection_timestamp = claimed.detected.unwrap();
        let told = Anomaly {
            anomaly_id: claimed.id,
            actor: Actor::One(address(99)),
            last_seen,
            detection_timestamp,
            ..anomaly(0)
        };
        store.record(&told).await.unwrap()
    };
    let recorded = tokio::join!(tell(1), tell(2), tell(3), tell(4));
    let recorded = [recorded.0, recorded.1, recorded.2, recorded.3];
    assert_eq!(recorded.iter().filter(|recorded| **recorded == Recorded::New).count(), 1, "{recorded:?}");
    let query = Query { actor: Some(address(99)), ..Query::default() };
    let rows = page_through(store, query).await;
    assert_eq!(rows.iter().map(|row| row.last_seen).collect::<Vec<_>>(), [EventTime(200_340)]);
}

async fn page_through(store: &dyn AnomalyStore, query: Query) -> Vec<Anomaly> {
    let mut found = Vec::new();
    let mut query = Query { limit: 3, ..query };
    loop {
        let page = store.query(&query).await.unwrap();
        assert!(page.anomalies.len() <= 3);
        found.extend(page.anomalies);
        match page.next {
            Some(cursor) => query.cursor = Some(cursor),
            None => return found,
        }
    }
}

/// What every store of anomalies promises. The store is empty.
pub async fn anomaly_store(store: &dyn AnomalyStore) {
    revisions(store).await;
    announcements(store).await;
    questions(store).await;
    silences(store).await;
    verdicts(store).await;
    claims(store).await;
    closings_at_once(store).await;
    rules(store).await;
    audit(store).await;
    changes(store).await;
}

async fn revisions(store: &dyn AnomalyStore) {
    let first = anomaly(0);
    assert_eq!(store.get(first.anomaly_id).await.unwrap(), None);
    assert_eq!(store.record(&first).await.unwrap(), Recorded::New);
    assert_eq!(store.record(&first).await.unwrap(), Recorded::Unchanged, "the same again");
    let more = Anomaly { updates: 2, last_seen: first.last_seen.plus(60), ..first.clone() };
    assert_eq!(store.record(&more).await.unwrap(), Recorded::Updated);
    assert_eq!(store.record(&first).await.unwrap(), Recorded::Unchanged, "an older revision");
    assert_eq!(store.get(first.anomaly_id).await.unwrap().as_ref(), Some(&more));
    let closed = Anomaly { status: Status::Closed, ..more.clone() };
    assert_eq!(store.record(&closed).await.unwrap(), Recorded::Updated, "closing is news");
    // What another task detects at another moment is still the same anomaly, and was detected when it first was.
    let earlier = Anomaly { updates: 3, detection_timestamp: first.detection_timestamp.minus(60), ..closed };
    assert_eq!(store.record(&earlier).await.unwrap(), Recorded::Updated);
    assert_eq!(store.get(first.anomaly_id).await.unwrap().as_ref(), Some(&earlier));
    let later = Anomaly { updates: 4, detection_timestamp: first.detection_timestamp.plus(60), ..earlier.clone() };
    assert_eq!(store.record(&later).await.unwrap(), Recorded::Updated);
    let kept = Anomaly { detection_timestamp: earlier.detection_timestamp, ..later.clone() };
    assert_eq!(store.get(first.anomaly_id).await.unwrap(), Some(kept));
    store.announced(&later).await.unwrap();
}

/// Of several tasks that find at once that nobody goes on with an anomaly, one closes it.
async fn closings_at_once(store: &dyn AnomalyStore) {
    let open = anomaly(30);
    store.record(&open).await.unwrap();
    let closed = Anomaly { status: Status::Closed, updates: open.updates + 1, ..open.clone() };
    let (a, b, c) = tokio::join!(store.record(&closed), store.record(&closed), store.record(&closed));
    let recorded = [a.unwrap(), b.unwrap(), c.unwrap()];
    assert_eq!(recorded.iter().filter(|recorded| **recorded == Recorded::Updated).count(), 1, "{recorded:?}");
    assert_eq!(store.get(open.anomaly_id).await.unwrap(), Some(closed));
}

/// How long a store may take to give out a change. DynamoDB waits for one attempt of a call and two seconds more.
const CHANGES_IN: Duration = Duration::from_secs(40);

/// All that has changed since, page by page, and where that ends. No page is longer than it was asked for.
async fn page_through_changes(store: &dyn AnomalyStore, query: &Query, since: &str) -> (Vec<Anomaly>, String) {
    let mut found = Vec::new();
    let mut since = since.to_owned();
    loop {
        let query = Query { changed_since: Some(since), limit: 2, ..query.clone() };
        let page = store.query(&query).await.unwrap();
        assert!(page.anomalies.len() <= 2 && page.revisions.len() == page.anomalies.len());
        found.extend(page.anomalies);
        since = page.changed_until;
        match page.next {
            Some(next) => assert_eq!(next, since, "the next page begins where this one ends"),
            None => return (found, since),
        }
    }
}

/// What has changed since, once there are so many changes, and where that ends.
async fn wait_for_changes(store: &dyn AnomalyStore, since: &str, many: usize) -> (Vec<Anomaly>, String) {
    let (mut found, mut until) = (Vec::new(), since.to_owned());
    let all = eventually(CHANGES_IN, async || {
        let (more, end) = page_through_changes(store, &Query::default(), &until).await;
        found.extend(more);
        until = end;
        found.len() >= many
    })
    .await;
    assert!(all, "{} of {many} changes came", found.len());
    (found, until)
}

/// A program that asks for what has changed gets every change after the last answer, in their order, and nothing else.
async fn changes(store: &dyn AnomalyStore) {
    let numbers = |found: &[Anomaly]| -> Vec<u128> { found.iter().map(|a| a.anomaly_id.as_u128() - 1).collect() };
    // A last anomaly stands behind all that the other tests have written.
    store.record(&anomaly(40)).await.unwrap();
    let (mut before, mut since) = (Vec::new(), "0".to_owned());
    let seen = eventually(CHANGES_IN, async || {
        let (more, end) = page_through_changes(store, &Query::default(), &since).await;
        before.extend(more);
        since = end;
        before.iter().any(|a| a.anomaly_id == anomaly(40).anomaly_id)
    })
    .await;
    assert!(seen && numbers(&before).last() == Some(&40), "{:?}", numbers(&before));
    let ids: BTreeSet<u128> = numbers(&before).into_iter().collect();
    assert!((0..10).all(|number| ids.contains(&number)), "`0` stands before every change: {ids:?}");
    assert_eq!(page_through_changes(store, &Query::default(), &since).await.0, [], "nothing has changed since");

    // New, updated, closed, merged and judged, in this order; the same again is no change.
    let [fresh, updated, closed, merged, judged] = [41, 5, 6, 7, 8].map(anomaly);
    let revision = async |a: &Anomaly| store.revised(a.anomaly_id).await.unwrap().unwrap().1;
    let untouched = revision(&anomaly(9)).await;
    let mut wanted = vec![
        fresh,
        Anomaly { updates: 2, last_seen: updated.last_seen.plus(60), ..updated },
        Anomaly { updates: 2, status: Status::Closed, ..closed },
        Anomaly { updates: 2, status: Status::Closed, merged_into: Some(Uuid::from_u128(42)), ..merged },
    ];
    for changed in &wanted {
        let before = store.revised(changed.anomaly_id).await.unwrap().map(|(_, revision)| revision);
        store.record(changed).await.unwrap();
        let after = revision(changed).await;
        assert_ne!(before.as_ref(), Some(&after));
        store.record(changed).await.unwrap();
        assert_eq!(revision(changed).await, after, "the same again");
    }
    let before = revision(&judged).await;
    let verdict = Feedback {
        anomaly_id: judged.anomaly_id,
        verdict: Verdict::TruePositive,
        by: "ada".to_owned(),
        name: String::new(),
        note: String::new(),
        at: EventTime(400),
    };
    store.feedback(&verdict).await.unwrap();
    assert_ne!(revision(&judged).await, before);
    assert_eq!(revision(&anomaly(9)).await, untouched);
    wanted.push(judged);
    let (found, until) = wait_for_changes(store, &since, 5).await;
    assert_eq!(found, wanted);
    assert_eq!(page_through_changes(store, &Query::default(), &until).await.0, []);
    // Each revision on a page of changes is a place among them: what follows it is what changed after it.
    let page = store.query(&Query { limit: 5, changed_since: Some(since.clone()), ..Query::default() }).await.unwrap();
    for (number, revision) in page.revisions.iter().enumerate() {
        let (after, _) = page_through_changes(store, &Query::default(), revision).await;
        assert_eq!(after, wanted[number + 1..], "after {revision}");
    }

    // Filters hold for changes as well.
    let among = async |query: Query| numbers(&page_through_changes(store, &query, &since).await.0);
    assert_eq!(among(Query { status: Some(Status::Closed), ..Query::default() }).await, [6, 7]);
    assert_eq!(among(Query { actor: Some(address(5)), ..Query::default() }).await, [5]);
    assert_eq!(among(Query { address: Some(address(1006)), ..Query::default() }).await, [6]);
    assert_eq!(among(Query { threat: Some(anomaly(8).threat), ..Query::default() }).await, [8]);
    let severe = Query { min_severity: Some(Severity::High), since: Some(anomaly(6).first_seen), ..Query::default() };
    assert_eq!(among(severe).await, [41, 8]);

    // What changes twice has one place, the later one. Changes after a list begin where it ends.
    let list = store.query(&Query { limit: 3, ..Query::default() }).await.unwrap();
    let [a, b] = [41, 5].map(anomaly);
    let [a, b] = [(a, 3), (b, 4)].map(|(a, updates)| Anomaly { updates, ..a });
    let again = Anomaly { updates: 5, ..a.clone() };
    for changed in [&a, &b, &again] {
        store.record(changed).await.unwrap();
    }
    let (found, _) = wait_for_changes(store, &until, 2).await;
    assert_eq!(numbers(&found), [5, 41]);
    let (since_list, _) = page_through_changes(store, &Query::default(), &list.changed_until).await;
    assert!(numbers(&since_list).ends_with(&[5, 41]), "{:?}", numbers(&since_list));

    for wrong in ["junk", "-1", "", "9999999999999999", "0#", "12345678901234567890123"] {
        let query = Query { changed_since: Some(wrong.to_owned()), ..Query::default() };
        let refused = store.query(&query).await.unwrap_err();
        assert!(matches!(&refused, PublishError::Fatal { context, .. } if context == BAD_CHANGED_SINCE), "{refused}");
    }
}

async fn announcements(store: &dyn AnomalyStore) {
    let second = anomaly(1);
    store.record(&second).await.unwrap();
    assert_eq!(store.unannounced(10).await.unwrap(), std::slice::from_ref(&second));
    let more = Anomaly { updates: 2, ..second.clone() };
    store.record(&more).await.unwrap();
    store.announced(&second).await.unwrap();
    assert_eq!(store.unannounced(10).await.unwrap(), std::slice::from_ref(&more), "the later revision is still due");
    store.announced(&more).await.unwrap();
    store.announced(&more).await.unwrap();
    assert_eq!(store.unannounced(10).await.unwrap(), []);
    let third = anomaly(2);
    for due in [&third, &anomaly(3)] {
        store.record(due).await.unwrap();
    }
    assert_eq!(store.unannounced(1).await.unwrap(), [third], "oldest first");
    for due in store.unannounced(10).await.unwrap() {
        store.announced(&due).await.unwrap();
    }
}

async fn questions(store: &dyn AnomalyStore) {
    for number in 4..10 {
        store.record(&anomaly(number)).await.unwrap();
    }
    let all = page_through(store, Query::default()).await;
    let ids: BTreeSet<Uuid> = all.iter().map(|a| a.anomaly_id).collect();
    assert_eq!((all.len(), ids.len()), (10, 10), "each once");
    assert!(all.is_sorted_by(|a, b| a.detection_timestamp >= b.detection_timestamp), "newest first");

    let number = |found: Vec<Anomaly>| -> Vec<u128> { found.iter().map(|a| a.anomaly_id.as_u128() - 1).collect() };
    let of_threat = Query { threat: Some(Threat::ALL[1]), ..Query::default() };
    assert_eq!(number(page_through(store, of_threat).await), [7, 1]);
    let by = Query { actor: Some(address(5)), ..Query::default() };
    assert_eq!(number(page_through(store, by).await), [5]);
    let on = Query { address: Some(address(1006)), ..Query::default() };
    assert_eq!(number(page_through(store, on).await), [6]);
    let by_or_on = Query { address: Some(address(6)), ..Query::default() };
    assert_eq!(number(page_through(store, by_or_on).await), [6]);
    let closed = Query { status: Some(Status::Closed), ..Query::default() };
    assert_eq!(number(page_through(store, closed).await), [0]);
    let open = Query { status: Some(Status::Open), ..Query::default() };
    assert_eq!(number(page_through(store, open).await), [9, 8, 7, 6, 5, 4, 3, 2, 1]);
    let severe = Query { min_severity: Some(Severity::High), ..Query::default() };
    assert_eq!(number(page_through(store, severe).await), [8, 5, 2]);
    let when = Query { since: Some(anomaly(4).last_seen), until: Some(anomaly(6).first_seen), ..Query::default() };
    assert_eq!(number(page_through(store, when).await), [5, 4]);
    let several = Query {
        status: Some(Status::Open),
        threat: Some(Threat::ALL[1]),
        min_severity: Some(Severity::Medium),
        ..Query::default()
    };
    assert_eq!(number(page_through(store, several).await), [7, 1]);
    let target = Query { target: Some(address(1006)), ..Query::default() };
    assert_eq!(number(page_through(store, target).await), [6]);
    let never = Query { target: Some(address(6)), ..Query::default() };
    assert_eq!(number(page_through(store, never).await), [], "what an address does is not done to it");
    let block = |text: &str| Query { block: Some(text.parse().unwrap()), ..Query::default() };
    let all = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0];
    assert_eq!(number(page_through(store, block("10.0.3.0/24")).await), all, "the targets'");
    assert_eq!(number(page_through(store, block("10.0.0.0/8")).await), all);
    assert_eq!(number(page_through(store, block("10.1.0.0/16")).await), []);
    let interface = Query { interface: Some("eni-1".to_owned()), ..Query::default() };
    assert_eq!(number(page_through(store, interface.clone()).await), [9, 7, 5, 3, 1]);
    let account = |text: &str| Query { account: Some(text.to_owned()), ..interface.clone() };
    let together = Query { min_severity: Some(Severity::High), ..account("123456789012") };
    assert_eq!(number(page_through(store, together).await), [5]);
    assert_eq!(number(page_through(store, account("210987654321")).await), []);

    // Those of one moment follow each other by id, also across pages.
    let same = |id: u128| Anomaly { anomaly_id: Uuid::from_u128(id), ..anomaly(20) };
    for id in [105, 101, 104, 102, 103] {
        store.record(&same(id)).await.unwrap();
    }
    let found = page_through(store, Query { actor: Some(address(20)), ..Query::default() }).await;
    let ids: Vec<u128> = found.iter().map(|a| a.anomaly_id.as_u128()).collect();
    assert_eq!(ids, [101, 102, 103, 104, 105]);
}

async fn silences(store: &dyn AnomalyStore) {
    let silence = |number: u32| Silence {
        anomaly_id: Uuid::from_u128(500 + u128::from(number)),
        threat: Threat::PortScan,
        actor: Actor::One(address(number)),
        first_seen: EventTime(1_700_000_000),
        last_seen: EventTime(1_700_000_000 + number),
        stage: "allow_list".to_owned(),
        reason: "trusted".to_owned(),
        summary: String::new(),
        confidence: 0.25,
    };
    for number in [1, 2, 3, 2] {
        store.silence(&silence(number)).await.unwrap();
    }
    assert_eq!(store.silences(None, 10).await.unwrap(), [silence(3), silence(2), silence(1)]);
    assert_eq!(store.silences(None, 1).await.unwrap(), [silence(3)]);
    assert_eq!(store.silences(Some(address(2)), 10).await.unwrap(), [silence(2)]);
}

async fn rules(store: &dyn AnomalyStore) {
    let rule = |name: &str, body: &str| Rule { name: name.to_owned(), body: body.to_owned() };
    store.put_rule(&rule("b", "{}")).await.unwrap();
    store.put_rule(&rule("a", r#"{"since": 1}"#)).await.unwrap();
    store.put_rule(&rule("b", r#"{"since": 2}"#)).await.unwrap();
    assert_eq!(store.rules().await.unwrap(), [rule("a", r#"{"since": 1}"#), rule("b", r#"{"since": 2}"#)]);
    assert!(store.remove_rule("b").await.unwrap());
    assert!(!store.remove_rule("b").await.unwrap());
    assert_eq!(store.rules().await.unwrap().len(), 1);
}

async fn verdicts(store: &dyn AnomalyStore) {
    let feedback = |by: &str, verdict, at| Feedback {
        anomaly_id: anomaly(0).anomaly_id,
        verdict,
        by: by.to_owned(),
        name: format!("{by} of the night shift"),
        note: "seen".to_owned(),
        at: EventTime(at),
    };
    store.feedback(&feedback("ada", Verdict::FalsePositive, 100)).await.unwrap();
    store.feedback(&feedback("ada", Verdict::TruePositive, 200)).await.unwrap();
    store.feedback(&feedback("bob", Verdict::FalsePositive, 300)).await.unwrap();
    let all = store.feedbacks(EventTime(0)).await.unwrap();
    assert_eq!(all.len(), 2, "the latest of each analyst");
    assert!(all.contains(&feedback("ada", Verdict::TruePositive, 200)));
    assert_eq!(store.feedbacks(EventTime(300)).await.unwrap(), [feedback("bob", Verdict::FalsePositive, 300)]);
    assert!(store.get(anomaly(0).anomaly_id).await.unwrap().is_some(), "a verdict is not in the way of its anomaly");
    let one = async |by: &str| store.verdict(anomaly(0).anomaly_id, by).await.unwrap();
    assert_eq!(one("ada").await, Some(feedback("ada", Verdict::TruePositive, 200)));
    assert_eq!(one("cyd").await, None);
}

/// The newest entry comes first, page by page, and one that is kept twice is there once.
async fn audit(store: &dyn AnomalyStore) {
    let entry = |number: u32| Entry {
        id: Uuid::from_u128(u128::from(number)),
        at: jiff::Timestamp::from_second(1_700_000_000 + i64::from(number / 2)).unwrap(),
        by: "ada".to_owned(),
        action: Action::MakeSuppression,
        subject: format!("rule {number}"),
        before: (number > 2).then(|| serde_json::json!({"reason": "before"})),
        after: Some(serde_json::json!({"reason": number})),
    };
    assert_eq!(store.trail(3, None).await.unwrap(), (Vec::new(), None));
    for number in [1, 2, 3, 4, 5, 6, 7, 7] {
        store.note(&entry(number)).await.unwrap();
    }
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let (page, next) = store.trail(3, cursor.as_deref()).await.unwrap();
        assert!(page.len() <= 3);
        found.extend(page);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found, (1..=7).rev().map(entry).collect::<Vec<_>>());
    let refused = store.trail(3, Some("junk")).await.unwrap_err();
    assert!(matches!(&refused, PublishError::Fatal { context, .. } if context == BAD_CURSOR), "{refused}");
}

async fn dynamo(aws: &SdkConfig) -> DynamoStore {
    let settings = dynamodb::Settings {
        table: unique("anomalies"),
        models_table: unique("models"),
        retention: HOUR,
        timeout: SECOND * 5,
    };
    let schema = Schema::new(aws, &settings);
    let plan = schema.plan().await.unwrap();
    assert_eq!(plan.len(), 3, "{plan:?}");
    for step in &plan {
        schema.apply(step).await.unwrap();
    }
    assert_eq!(schema.plan().await.unwrap(), [], "what was done is not planned again");
    for step in &plan[..1] {
        schema.apply(step).await.unwrap();
    }
    DynamoStore::new(aws, &settings)
}

#[tokio::test]
async fn anomalies_in_dynamodb() {
    let Some(aws) = aws().await else { return };
    anomaly_store(&dynamo(&aws).await).await;
}

#[tokio::test]
async fn anomalies_in_dynamodb_as_another_server_understands_it() {
    let Some(aws) = moto().await else { return };
    anomaly_store(&dynamo(&aws).await).await;
}

#[tokio::test]
async fn tables_that_lack_an_index_get_it_and_tables_with_other_keys_are_left_alone() {
    use aws_sdk_dynamodb::types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
    let Some(aws) = moto().await else { return };
    let client = aws_sdk_dynamodb::Client::new(&aws);
    let create = async |name: &str, keys: [&str; 2]| {
        let mut request = client.create_table().table_name(name).billing_mode(BillingMode::PayPerRequest);
        for (key, kind) in keys.into_iter().zip([KeyType::Hash, KeyType::Range]) {
            let definition = AttributeDefinition::builder().attribute_name(key).attribute_type(ScalarAttributeType::S);
            request = request
                .attribute_definitions(definition.build().unwrap())
                .key_schema(KeySchemaElement::builder().attribute_name(key).key_type(kind).build().unwrap());
        }
        request.send().await.unwrap();
    };
    let mut settings = dynamodb::Settings {
        table: unique("bare"),
        models_table: unique("models"),
        retention: HOUR,
        timeout: SECOND * 5,
    };
    create(&settings.table, ["anomaly_id", "detection_timestamp"]).await;
    let schema = Schema::new(&aws, &settings);
    let plan: Vec<String> = schema.plan().await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(plan.iter().filter(|s| s.starts_with("add index")).count(), 6, "{plan:?}");
    // Until then only what needs the index is refused.
    let changed = Query { changed_since: Some("0".to_owned()), ..Query::default() };
    let refused = DynamoStore::new(&aws, &settings).query(&changed).await.unwrap_err();
    assert!(matches!(&refused, PublishError::Fatal { context, .. } if context == MISSING_INDEX), "{refused}");
    for step in schema.plan().await.unwrap() {
        schema.apply(&step).await.unwrap();
    }
    assert_eq!(schema.plan().await.unwrap(), []);

    settings.table = unique("foreign");
    create(&settings.table, ["user", "time"]).await;
    let refused = Schema::new(&aws, &settings).plan().await.unwrap_err().to_string();
    assert!(refused.contains("name another table"), "{refused}");
}

/// A queue, and what lies in it.
pub struct Queue {
    client: aws_sdk_sqs::Client,
    pub url: String,
    pub arn: String,
}

impl Queue {
    pub async fn new(aws: &SdkConfig) -> Queue {
        let client = aws_sdk_sqs::Client::new(aws);
        let url = client.create_queue().queue_name(unique("queue")).send().await.unwrap().queue_url.unwrap();
        let name = aws_sdk_sqs::types::QueueAttributeName::QueueArn;
        let told = client.get_queue_attributes().queue_url(&url).attribute_names(name.clone()).send().await.unwrap();
        let arn = told.attributes.unwrap()[&name].clone();
        Queue { client, url, arn }
    }

    pub async fn take_all(&self) -> Vec<serde_json::Value> {
        let mut bodies = Vec::new();
        loop {
            let got =
                self.client.receive_message().queue_url(&self.url).max_number_of_messages(10).send().await.unwrap();
            let messages = got.messages.unwrap_or_default();
            if messages.is_empty() {
                return bodies;
            }
            for message in messages {
                bodies.push(serde_json::from_str(message.body().unwrap()).unwrap());
                let handle = message.receipt_handle().unwrap();
                self.client.delete_message().queue_url(&self.url).receipt_handle(handle).send().await.unwrap();
            }
        }
    }
}

fn bus_settings(bus: &str) -> eventbridge::Settings {
    eventbridge::Settings {
        bus: bus.to_owned(),
        source: "anomaly-detection-service".to_owned(),
        entries_max: 10,
        bytes_max: 256 * 1024,
        attempts: 2,
        backoff: SignedDuration::from_millis(10),
        timeout: SECOND * 2,
    }
}

/// A bus whose events end in a queue, by a rule on their content.
async fn bus(aws: &SdkConfig) -> (EventBridge, Queue) {
    let client = aws_sdk_eventbridge::Client::new(aws);
    let queue = Queue::new(aws).await;
    let (bus, rule) = (unique("bus"), unique("rule"));
    client.create_event_bus().name(&bus).send().await.unwrap();
    let pattern = r#"{"source":["anomaly-detection-service"],"detail":{"confidence":[{"numeric":[">",0.5]}]}}"#;
    client.put_rule().name(&rule).event_bus_name(&bus).event_pattern(pattern).send().await.unwrap();
    let target = aws_sdk_eventbridge::types::Target::builder().id("queue").arn(&queue.arn).build().unwrap();
    client.put_targets().rule(&rule).event_bus_name(&bus).targets(target).send().await.unwrap();
    (EventBridge::new(aws, &bus_settings(&bus)), queue)
}

/// News of the service itself is heard once, as it was told.
async fn tells_a_notice(announcer: &dyn Announcer, queue: &Queue) {
    let detail = serde_json::json!({ "model_version": "7", "reasons": ["its data are 200 days old"], "confidence": 1 });
    announcer.notify(&Notice { detail_type: "Model Drift Detected", detail: detail.clone() }).await.unwrap();
    let mut told = Vec::new();
    assert!(
        eventually(Duration::from_secs(10), async || {
            told.extend(queue.take_all().await);
            !told.is_empty()
        })
        .await
    );
    let told: Vec<_> = told.iter().map(|event| (&event["detail-type"], &event["detail"])).collect();
    assert_eq!(told, [(&serde_json::json!("Model Drift Detected"), &detail)]);
}

async fn announces_everything_once(announcer: &dyn Announcer, queue: &Queue) {
    let kinds = [Announcement::Detected, Announcement::Updated, Announcement::Closed];
    let batch: Vec<_> = (0..25).map(|n| (kinds[n as usize % 3], anomaly(n))).collect();
    let results = announcer.announce(&batch).await;
    assert_eq!(results.len(), 25);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let mut told = Vec::new();
    assert!(
        eventually(Duration::from_secs(10), async || {
            told.extend(queue.take_all().await);
            told.len() >= 25
        })
        .await
    );
    assert_eq!(told.len(), 25);
    for (announcement, anomaly) in &batch {
        let id = anomaly.anomaly_id.to_string();
        let event = told.iter().find(|event| event["detail"]["anomaly_id"] == id.as_str()).unwrap();
        assert_eq!(event["detail-type"], serde_json::to_value(announcement).unwrap());
        assert_eq!(serde_json::from_value::<Anomaly>(event["detail"].clone()).unwrap(), *anomaly);
    }
}

#[tokio::test]
async fn announcements_on_eventbridge() {
    let Some(aws) = aws().await else { return };
    let (bus, queue) = bus(&aws).await;
    announces_everything_once(&bus, &queue).await;
    tells_a_notice(&bus, &queue).await;
}

#[tokio::test]
async fn announcements_on_eventbridge_as_another_server_understands_it() {
    let Some(aws) = moto().await else { return };
    let (bus, queue) = bus(&aws).await;
    announces_everything_once(&bus, &queue).await;
    tells_a_notice(&bus, &queue).await;
}

#[tokio::test]
async fn an_entry_that_is_refused_for_good_is_not_sent_again() {
    let Some(aws) = moto().await else { return };
    // Without a source an entry is invalid; the other server accepts it.
    let settings = eventbridge::Settings { source: String::new(), ..bus_settings("default") };
    let results = EventBridge::new(&aws, &settings).announce(&[(Announcement::Detected, anomaly(0))]).await;
    assert!(matches!(results[..], [Err(PublishError::Fatal { .. })]), "{results:?}");
}

#[tokio::test]
async fn what_cannot_be_announced_waits_in_the_queue_until_a_sweep_announces_it() {
    let Some(aws) = aws().await else { return };
    waits_until_a_sweep_announces_it(aws).await;
}

/// An announcer before a queue of dead letters. Nothing here is for the file, which could not even be made.
fn with_letters(announcer: Arc<dyn Announcer>, queue: DeadLetters) -> WithDeadLetters {
    let letters = Letters::in_file("/dev/null/dead-letters.ndjson").before(queue.clone());
    WithDeadLetters::new(announcer, queue, Arc::new(letters), Arc::default())
}

#[tokio::test]
async fn another_server_keeps_what_cannot_be_announced_as_well() {
    let Some(aws) = moto().await else { return };
    waits_until_a_sweep_announces_it(aws).await;
}

async fn waits_until_a_sweep_announces_it(aws: SdkConfig) {
    let letters_queue = Queue::new(&aws).await;
    let settings = dead_letter::Settings {
        queue_url: letters_queue.url.clone(),
        refusals_queue_url: String::new(),
        refusals_per_minute: 60,
        sweep_every: SECOND,
        sweep_max: 100,
        hidden: SECOND,
        timeout: SECOND * 2,
    };
    let nowhere = flowvigil::aws::load_at("http://127.0.0.1:1").await;
    let broken = Arc::new(EventBridge::new(&nowhere, &bus_settings("away")));
    let batch: Vec<_> = (0..12).map(|n| (Announcement::Detected, anomaly(n))).collect();
    let results = with_letters(broken.clone(), DeadLetters::new(&aws, &settings)).announce(&batch).await;
    assert!(results.iter().all(Result::is_ok), "the queue has them: {results:?}");

    let both_away = dead_letter::Settings { queue_url: "http://127.0.0.1:1/0/q".to_owned(), ..settings.clone() };
    let results = with_letters(broken, DeadLetters::new(&nowhere, &both_away)).announce(&batch[..1]).await;
    assert!(matches!(results[..], [Err(PublishError::Retry { .. })]), "{results:?}");

    let (bus, queue) = bus(&aws).await;
    let sweeper = with_letters(Arc::new(bus), DeadLetters::new(&aws, &settings));
    let mut announced = 0;
    assert!(
        eventually(Duration::from_secs(10), async || {
            announced += sweeper.sweep().await.unwrap();
            announced >= 12
        })
        .await
    );
    let told = queue.take_all().await;
    let ids: BTreeSet<&str> = told.iter().filter_map(|event| event["detail"]["anomaly_id"].as_str()).collect();
    assert_eq!(ids.len(), 12);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(sweeper.sweep().await.unwrap(), 0, "nothing comes back");
}

fn scan(actor: u32, victim: u32, window: u32) -> Finding {
    let actor = address(actor);
    Finding {
        threat: Threat::PortScan,
        method: "vertical".to_owned(),
        actor: Actor::One(actor),
        subject: Subject::Actor(actor),
        targets: vec![Target { address: address(victim), ports: vec![22, 80], port_count: 2 }],
        target_count: 1,
        sources: vec![Origin { address: "203.0.113.9".parse().unwrap(), amount: 7 }],
        severity_reason: String::new(),
        learned: Vec::new(),
        first_seen: EventTime(window + 1),
        last_seen: EventTime(window + 50),
        window: EventTime(window),
        window_seconds: 60,
        score: 0.9,
        severity: Severity::Medium,
        evidence: vec![Evidence::told("attempts", f64::from(window % 7) + 0.1, "attempts", Merge::Sum)],
        summary: format!("{actor} scans"),
        interfaces: vec!["eni-1".to_owned()],
        account: String::new(),
        provisional: false,
        ml: None,
        alternatives: Vec::new(),
    }
}

fn beacon(host: u32, peer: u32, window: u32) -> Finding {
    Finding {
        threat: Threat::C2Beacon,
        method: "periodic".to_owned(),
        subject: Subject::Pair(address(host), address(peer)),
        severity: Severity::High,
        alternatives: vec![Alternative { threat: Threat::CryptoMining, share: 0.3 }],
        ..scan(host, peer, window)
    }
}

fn shard(number: u32) -> ShardId {
    ShardId(format!("shard-{number}").as_str().into())
}

/// A stretch of findings of several shards: scans that overlap, a host that is scanned and then beacons, late ones.
fn story() -> Vec<(ShardId, Vec<Finding>)> {
    vec![
        (shard(0), vec![scan(1, 50, 0), scan(2, 50, 0)]),
        (shard(1), vec![scan(1, 51, 60), scan(1, 50, 0)]),
        (shard(0), vec![beacon(50, 900, 600)]),
        (shard(1), vec![scan(1, 50, 20_000)]),
        (shard(0), vec![scan(1, 52, 120), scan(3, 50, 130)]),
        (shard(1), vec![beacon(50, 900, 660), beacon(50, 900, 600)]),
    ]
}

/// What every store of incidents promises: the same as the core in memory, whatever it is kept in.
pub async fn incident_store(store: &dyn IncidentStore) {
    let core = LocalIncidents::new(&Settings::defaults().correlation);
    for (shard, findings) in story() {
        let expected = core.fold(&shard, &findings).await.unwrap();
        assert_eq!(store.fold(&shard, &findings).await.unwrap(), expected);
        assert_eq!(store.fold(&shard, &findings).await.unwrap(), core.fold(&shard, &findings).await.unwrap());
        for incident in &expected {
            assert_eq!(store.get(incident.id).await.unwrap(), core.get(incident.id).await.unwrap());
        }
    }
    for watermark in [1000, 10_000, 30_000, 200_000] {
        let expected = core.expire(&passed(watermark)).await.unwrap();
        assert_eq!(by_id(store.expire(&passed(watermark)).await.unwrap()), by_id(expected));
        assert_eq!(store.expire(&passed(watermark)).await.unwrap(), [], "each is closed once");
    }
    says_who_is_abandoned(store).await;
}

/// All shards have passed 200,000.
async fn says_who_is_abandoned(store: &dyn IncidentStore) {
    let told = |finding: &Finding| {
        let (first_seen, last_seen) = (finding.first_seen, finding.last_seen);
        Told { key: finding.key(), first_seen, last_seen }
    };
    let (kept, lost) = (scan(60, 50, 300_000), scan(61, 50, 300_000));
    // The gap is an hour: one as far before what is kept as it may lie, one beyond that, and one that is yet to come.
    let (near, far, later) = (scan(60, 50, 296_400), scan(60, 50, 296_280), scan(62, 50, 320_000));
    let all = [&kept, &lost, &near, &far, &later].map(told);
    store.fold(&shard(0), std::slice::from_ref(&kept)).await.unwrap();
    let at = async |moment| store.abandoned(&passed(moment), &all).await.unwrap();
    let over = lost.last_seen.plus(3600).0;
    assert_eq!(at(over).await, [false, false, false, true, false]);
    assert_eq!(at(over + 1).await, [false, true, false, true, false]);
    let closed: Vec<Uuid> = store.expire(&passed(over + 1)).await.unwrap().iter().map(|incident| incident.id).collect();
    assert_eq!(closed, [kept.key().episode(kept.window)]);
    store.forget(&closed).await.unwrap();
    assert_eq!(at(over + 1).await, [true, true, true, true, false]);
    assert_eq!(store.abandoned(&passed(over + 1), &[]).await.unwrap(), [] as [bool; 0]);
}

fn by_id(mut incidents: Vec<Incident>) -> Vec<Incident> {
    incidents.sort_by_key(|incident| incident.id);
    incidents
}

pub fn redis_settings(url: String) -> RedisSettings {
    RedisSettings {
        url,
        cluster: false,
        authority: std::path::PathBuf::new(),
        application: unique("incidents"),
        ttl: HOUR,
        timeout: SECOND * 2,
    }
}

#[tokio::test]
async fn incidents_in_memory() {
    incident_store(&LocalIncidents::new(&Settings::defaults().correlation)).await;
}

#[tokio::test]
async fn incidents_in_redis() {
    let Some(url) = redis() else { return };
    let tier = Settings::defaults().correlation;
    incident_store(&RedisIncidents::open(&redis_settings(url), &tier).await.unwrap()).await;
}

#[tokio::test]
async fn tasks_that_fold_at_once_come_to_what_one_task_comes_to() {
    let Some(url) = redis() else { return };
    let (settings, tier) = (redis_settings(url), Settings::defaults().correlation);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..4 {
        let store = RedisIncidents::open(&settings, &tier).await.unwrap();
        tasks.spawn(async move {
            for window in 0..20 {
                let findings = [scan(1, 50 + number, 60 * window), scan(10 + number, 50, 60 * window)];
                store.fold(&shard(number), &findings).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let core = LocalIncidents::new(&tier);
    for number in 0..4 {
        for window in 0..20 {
            let findings = [scan(1, 50 + number, 60 * window), scan(10 + number, 50, 60 * window)];
            core.fold(&shard(number), &findings).await.unwrap();
        }
    }
    let store = RedisIncidents::open(&settings, &tier).await.unwrap();
    let (all, expected) =
        (store.expire(&passed(1_000_000)).await.unwrap(), core.expire(&passed(1_000_000)).await.unwrap());
    let accounts = |incidents: Vec<Incident>| -> Vec<_> {
        by_id(incidents).into_iter().map(|i| (i.key, i.span(), i.account().targets(), i.account().evidence())).collect()
    };
    assert_eq!(accounts(all), accounts(expected));
}

/// How far shards are.
fn watermarks<const N: usize>(shards: [(u32, u32); N]) -> Watermarks {
    shards.into_iter().map(|(number, at)| (shard(number), EventTime(at))).collect()
}

#[tokio::test]
async fn episodes_are_closed_only_when_every_shard_has_passed_them_whoever_reads_it() {
    let Some(url) = redis() else { return };
    let (settings, tier) = (redis_settings(url), Settings::defaults().correlation);
    let fast = RedisIncidents::open(&settings, &tier).await.unwrap();
    let slow = RedisIncidents::open(&settings, &tier).await.unwrap();
    slow.fold(&shard(0), &[scan(1, 50, 0)]).await.unwrap();
    // The fast one knows that there is a shard which nobody reads yet.
    assert_eq!(fast.expire(&watermarks([(0, 0), (1, 0)])).await.unwrap(), []);
    assert_eq!(fast.expire(&watermarks([(1, 1_000_000)])).await.unwrap(), []);
    assert_eq!(slow.expire(&watermarks([(0, 100)])).await.unwrap(), []);
    assert_eq!(slow.expire(&watermarks([(0, 1_000_000)])).await.unwrap().len(), 1);
    // A shard that is begun again further back holds nothing up: what it has told was folded.
    assert_eq!(fast.expire(&watermarks([(0, 0), (1, 1_000_000)])).await.unwrap(), []);
}

#[tokio::test]
async fn a_shard_that_has_ended_is_not_waited_for_but_those_that_continue_it_are() {
    let Some(url) = redis() else { return };
    let (settings, tier) = (redis_settings(url), Settings::defaults().correlation);
    let store = RedisIncidents::open(&settings, &tier).await.unwrap();
    store.fold(&shard(0), &[scan(1, 50, 0)]).await.unwrap();
    assert_eq!(store.expire(&watermarks([(0, 100), (1, 100)])).await.unwrap(), []);
    // One of the two begins before the other has ended, and is no less far than that was.
    assert_eq!(store.expire(&watermarks([(2, 0)])).await.unwrap(), []);
    store.continued(&shard(0), &[shard(2), shard(3)]).await.unwrap();
    store.continued(&shard(1), &[shard(2), shard(3)]).await.unwrap();
    assert_eq!(store.expire(&watermarks([(2, 1_000_000)])).await.unwrap(), [], "the other has only come so far");
    assert_eq!(store.expire(&watermarks([(3, 1_000_000)])).await.unwrap().len(), 1, "and nobody else is waited for");
}

#[tokio::test]
async fn what_a_lost_task_was_to_close_is_handed_out_again_until_it_is_forgotten() {
    let Some(url) = redis() else { return };
    let (settings, tier) = (redis_settings(url.clone()), Settings::defaults().correlation);
    let lost = RedisIncidents::open(&settings, &tier).await.unwrap();
    let other = RedisIncidents::open(&settings, &tier).await.unwrap();
    lost.fold(&shard(0), &[scan(1, 50, 0)]).await.unwrap();
    let closed = lost.expire(&watermarks([(0, 100_000)])).await.unwrap();
    assert_eq!(closed.len(), 1);
    assert_eq!(other.expire(&watermarks([(0, 100_000)])).await.unwrap(), [], "somebody tells it just now");
    // A replay of what was in it finds it, and finds it closed.
    let again = other.fold(&shard(0), &[scan(1, 50, 0)]).await.unwrap();
    assert_eq!(again, closed);
    let patience_is_over = async || {
        let client = ::redis::Client::open(url.as_str()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let key = format!("{{{}}}:closing", settings.application);
        let names: Vec<String> =
            ::redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).query_async(&mut connection).await.unwrap();
        for name in &names {
            ::redis::cmd("ZADD").arg(&key).arg(0).arg(name).exec_async(&mut connection).await.unwrap();
        }
        names.len()
    };
    assert_eq!(patience_is_over().await, 1);
    assert_eq!(other.expire(&watermarks([(0, 100_000)])).await.unwrap(), closed);
    other.forget(&[closed[0].id]).await.unwrap();
    assert_eq!(patience_is_over().await, 0);
    assert_eq!(other.expire(&watermarks([(0, 100_000)])).await.unwrap(), []);
    // Late news of what is closed and not forgotten opens it again, under its id.
    let id = lost.fold(&shard(0), &[scan(2, 50, 0)]).await.unwrap()[0].id;
    lost.expire(&watermarks([(0, 100_000)])).await.unwrap();
    let news = lost.fold(&shard(0), &[scan(2, 51, 60)]).await.unwrap();
    assert_eq!((news[0].id, news[0].closed), (id, false));
    assert_eq!(lost.expire(&watermarks([(0, 100_001)])).await.unwrap()[0].id, id);
}

#[tokio::test]
async fn what_redis_keeps_of_an_episode_is_not_abandoned_be_it_closed_or_unreadable_or_behind_for_another_task() {
    let Some(url) = redis() else { return };
    let (settings, tier) = (redis_settings(url.clone()), Settings::defaults().correlation);
    let one = RedisIncidents::open(&settings, &tier).await.unwrap();
    let other = RedisIncidents::open(&settings, &tier).await.unwrap();
    let (scan, lost) = (scan(1, 50, 0), scan(2, 50, 0));
    let told =
        [&scan, &lost].map(|finding| Told { key: finding.key(), first_seen: EventTime(1), last_seen: EventTime(50) });
    one.fold(&shard(0), std::slice::from_ref(&scan)).await.unwrap();
    one.expire(&watermarks([(0, 100)])).await.unwrap();
    let ours = watermarks([(1, 100_000)]);
    assert_eq!(other.abandoned(&ours, &told).await.unwrap(), [false; 2], "another task's shard is behind");
    let closed = one.expire(&watermarks([(0, 100_000)])).await.unwrap();
    assert_eq!(closed.len(), 1);
    assert_eq!(other.abandoned(&ours, &told).await.unwrap(), [false, true], "it is being told just now");
    let client = ::redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let key = format!("{{{}}}:e:{}", settings.application, serde_json::to_string(&scan.key()).unwrap());
    let set = ::redis::cmd("HSET").arg(&key).arg("d").arg("of another version").exec_async(&mut connection).await;
    assert!(set.is_ok());
    assert_eq!(other.abandoned(&ours, &told).await.unwrap(), [false, true], "it is somebody's");
    ::redis::cmd("DEL").arg(&key).exec_async(&mut connection).await.unwrap();
    assert_eq!(other.abandoned(&ours, &told).await.unwrap(), [true; 2]);
}

#[tokio::test]
async fn a_task_that_cannot_ask_redis_or_has_something_to_tell_it_says_of_nobody_that_he_is_abandoned() {
    let Some(url) = redis() else { return };
    let tier = Settings::defaults().correlation;
    let told = [Told { key: scan(9, 50, 0).key(), first_seen: EventTime(1), last_seen: EventTime(50) }];
    let there = RedisIncidents::open(&redis_settings(url), &tier).await.unwrap();
    let there = WithFallback::new(there, &tier, Box::new(|_| {}));
    assert_eq!(there.abandoned(&watermarks([(0, 100_000)]), &told).await.unwrap(), [true]);
    let away = RedisIncidents::open(&redis_settings("redis://127.0.0.1:1".to_owned()), &tier).await.unwrap();
    let away = WithFallback::new(away, &tier, Box::new(|_| {}));
    for _ in 0..2 {
        assert_eq!(away.abandoned(&watermarks([(0, 100_000)]), &told).await.unwrap(), [false]);
    }
    assert!(away.is_away());
    // Nor does one that is among others and correlates by itself.
    let apart = LocalIncidents::new(&tier).among_others();
    assert_eq!(apart.abandoned(&watermarks([(0, 100_000)]), &told).await.unwrap(), [false]);
}

#[tokio::test]
async fn anomalies_in_sqlite_in_memory() {
    anomaly_store(&SqliteStore::in_memory().unwrap()).await;
}

#[tokio::test]
async fn anomalies_in_a_sqlite_file_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("anomalies.sqlite");
    let before = SqliteStore::open(&path).unwrap();
    anomaly_store(&before).await;
    let (all, feedback) =
        (page_through(&before, Query::default()).await, before.feedbacks(EventTime(0)).await.unwrap());
    drop(before);
    let after = SqliteStore::open(&path).unwrap();
    assert_eq!(page_through(&after, Query::default()).await, all);
    assert_eq!(after.feedbacks(EventTime(0)).await.unwrap(), feedback);
}

#[tokio::test]
async fn an_episode_in_sqlite_is_not_detected_again_later() {
    let store = SqliteStore::in_memory().unwrap();
    let first = anomaly(1);
    store.record(&first).await.unwrap();
    let forgetful = Anomaly { updates: 9, detection_timestamp: first.detection_timestamp.plus(600), ..first.clone() };
    assert_eq!(store.record(&forgetful).await.unwrap(), Recorded::Updated);
    let stored = store.get(first.anomaly_id).await.unwrap().unwrap();
    assert_eq!((stored.updates, stored.detection_timestamp), (9, first.detection_timestamp));
}

#[tokio::test]
async fn a_sqlite_store_of_a_newer_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("anomalies.sqlite");
    drop(SqliteStore::open(&path).unwrap());
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(SqliteStore::open(&path).unwrap_err().to_string().contains("version 99"));
}

/// A writer whose lines a test can read.
#[derive(Clone, Default)]
struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn announcements_as_lines() {
    let lines = Lines::default();
    let batch = [(Announcement::Detected, anomaly(0)), (Announcement::Closed, anomaly(2))];
    let results = LineAnnouncer::to(Box::new(lines.clone())).announce(&batch).await;
    assert!(results.len() == 2 && results.iter().all(Result::is_ok), "{results:?}");
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let told: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(told[0]["detail-type"], "Anomaly Detected");
    assert_eq!(told[1]["detail-type"], "Anomaly Closed");
    assert_eq!(serde_json::from_value::<Anomaly>(told[1]["detail"].clone()).unwrap(), anomaly(2));
}

fn snapshot(name: &str, number: u64) -> Snapshot {
    let state = (0..100_000_u32).map(|i| (i as u64 % (number + 7)) as u8).collect();
    Snapshot { name: name.to_owned(), number, position: Some(Position(format!("49{number}"))), state }
}

/// What every store of snapshots promises.
pub async fn snapshot_store(store: &dyn SnapshotStore) {
    assert!(store.numbers("shard-1").await.unwrap().is_empty());
    for number in [1, 2, 30, 4] {
        store.save(snapshot("shard-1", number)).await.unwrap();
    }
    store.save(snapshot("shard-10", 99)).await.unwrap();
    store.save(snapshot("/var/log/a b.log", 5)).await.unwrap();
    assert_eq!(store.numbers("shard-1").await.unwrap(), [30, 4], "the last two, newest first");
    assert_eq!(store.load("shard-1", 30).await.unwrap(), snapshot("shard-1", 30));
    assert_eq!(store.load("/var/log/a b.log", 5).await.unwrap(), snapshot("/var/log/a b.log", 5));
    assert!(matches!(store.load("shard-1", 1).await, Err(SnapshotError::Backend { .. })));
}

#[tokio::test]
async fn snapshots_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    snapshot_store(&Folder::open(&FolderSettings { folder: folder.path().to_owned() }).unwrap()).await;
}

async fn bucket(aws: &SdkConfig) -> (Bucket, aws_sdk_s3::Client, String) {
    let name = unique("snapshots");
    let config = aws_sdk_s3::config::Builder::from(aws).force_path_style(true).build();
    let client = aws_sdk_s3::Client::from_conf(config);
    client.create_bucket().bucket(&name).send().await.unwrap();
    let settings =
        BucketSettings { bucket: name.clone(), prefix: "p/".to_owned(), path_style: true, timeout: SECOND * 5 };
    (Bucket::new(aws, &settings), client, name)
}

#[tokio::test]
async fn snapshots_in_s3() {
    let Some(aws) = aws().await else { return };
    let (store, client, name) = bucket(&aws).await;
    snapshot_store(&store).await;
    let listed = client.list_objects_v2().bucket(&name).send().await.unwrap();
    let torn = listed.contents()[0].key().unwrap();
    client.put_object().bucket(&name).key(torn).body(b"FVSNAP1\nrot".to_vec().into()).send().await.unwrap();
    let number: u64 = torn.rsplit('/').next().unwrap().trim_end_matches(".snapshot").parse().unwrap();
    let of = if torn.contains("var") { "/var/log/a b.log" } else { "shard-1" };
    let damaged = store.load(of, number).await;
    assert!(matches!(damaged, Err(SnapshotError::Unreadable { .. })), "{damaged:?}");
}

#[tokio::test]
async fn snapshots_in_s3_as_another_server_understands_it() {
    let Some(aws) = moto().await else { return };
    snapshot_store(&bucket(&aws).await.0).await;
}
