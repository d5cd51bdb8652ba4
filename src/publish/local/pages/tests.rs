use std::collections::BTreeSet;

use ipnet::IpNet;
use uuid::Uuid;

use super::*;
use crate::anomaly::{Anomaly, SCHEMA, Tiers};
use crate::finding::{Actor, Target};
use crate::flow::{Address, EventTime};
use crate::publish::AnomalyStore;
use crate::publish::local::SqliteStore;

/// Draws that are the same in every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(bound)) as u32
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u32) as usize]
    }

    fn maybe<T>(&mut self, draw: impl FnOnce(&mut Draws) -> T) -> Option<T> {
        (self.below(3) == 0).then(|| draw(self))
    }
}

const BEGAN: u32 = 1_700_000_000;

fn address(number: u32) -> Address {
    Address::v4(0x0a00_0000 + number)
}

fn anomaly(number: u32, draws: &mut Draws) -> Anomaly {
    // Few moments, so that many are detected in the same one; spans of seconds and of weeks.
    let detected = BEGAN + 600 * draws.below(40);
    let (before, after) = (draws.one(&[10, 3_000, 20_000, 3_000_000]), draws.one(&[0, 5, 9_000, 200_000, 4_000_000]));
    Anomaly {
        anomaly_id: Uuid::from_u128(u128::from(number) * 7_919 + 1),
        schema: SCHEMA.to_owned(),
        threat: draws.one(&Threat::ALL),
        status: draws.one(&STATUSES),
        severity: draws.one(&SEVERITIES),
        severity_reason: String::new(),
        confidence: 0.9,
        sources: Vec::new(),
        alternatives: Vec::new(),
        actor: if draws.below(5) == 0 { Actor::Many } else { Actor::One(address(draws.below(4))) },
        targets: vec![Target { address: address(draws.one(&[0, 1, 2, 3, 4, 5, 256])), ports: vec![22], port_count: 1 }],
        target_count: 1,
        first_seen: EventTime(detected - before),
        last_seen: EventTime(detected - before + after),
        detection_timestamp: EventTime(detected),
        window_seconds: 60,
        summary: format!("anomaly {number}"),
        evidence: Vec::new(),
        tiers: Tiers::default(),
        mitre: Vec::new(),
        account_id: draws.one(&["", "111111111111", "222222222222"]).to_owned(),
        interface_ids: (0..draws.below(3)).map(|_| format!("eni-{}", draws.below(4))).collect(),
        related: Vec::new(),
        degraded: Vec::new(),
        updates: 1,
        episode: None,
        merged_into: None,
    }
}

fn query(draws: &mut Draws) -> Query {
    let moment = |draws: &mut Draws| EventTime(BEGAN - 100_000 + 1_000 * draws.below(200));
    Query {
        threat: draws.maybe(|d| d.one(&Threat::ALL)),
        min_severity: draws.maybe(|d| d.one(&SEVERITIES)),
        status: draws.maybe(|d| d.one(&STATUSES)),
        address: draws.maybe(|d| address(d.below(6))),
        block: draws.maybe(|d| d.one(&["10.0.0.0/24", "10.0.0.0/8", "10.0.1.0/24", "10.1.0.0/16"]).parse().unwrap()),
        actor: draws.maybe(|d| address(d.below(6))),
        target: draws.maybe(|d| address(d.below(6))),
        account: draws.maybe(|d| d.one(&["111111111111", "333333333333"]).to_owned()),
        interface: draws.maybe(|d| format!("eni-{}", d.below(5))),
        since: draws.maybe(moment),
        until: draws.maybe(moment),
        limit: draws.one(&[5, 20, 100, 1000]),
        cursor: None,
        changed_since: None,
    }
}

fn in_block(anomaly: &Anomaly, block: IpNet) -> bool {
    let actor = if let Actor::One(actor) = anomaly.actor { Some(actor) } else { None };
    let mut ends = actor.into_iter().chain(anomaly.targets.iter().map(|target| target.address));
    ends.any(|address| block.contains(&address.to_ip()))
}

fn fits(query: &Query, anomaly: &Anomaly) -> bool {
    let on = |address: Address| {
        anomaly.actor == Actor::One(address) || anomaly.targets.iter().any(|target| target.address == address)
    };
    query.threat.is_none_or(|threat| threat == anomaly.threat)
        && query.min_severity.is_none_or(|least| anomaly.severity >= least)
        && query.status.is_none_or(|status| status == anomaly.status)
        && query.actor.is_none_or(|actor| anomaly.actor == Actor::One(actor))
        && query.address.is_none_or(on)
        && query.block.is_none_or(|block| in_block(anomaly, block))
        && query.target.is_none_or(|target| anomaly.actor != Actor::One(target) && on(target))
        && query.account.as_ref().is_none_or(|account| *account == anomaly.account_id)
        && query.interface.as_ref().is_none_or(|name| anomaly.interface_ids.contains(name))
        && query.since.is_none_or(|since| anomaly.last_seen >= since)
        && query.until.is_none_or(|until| anomaly.first_seen < until)
}

#[tokio::test]
async fn any_filters_together_give_what_going_through_all_rows_gives_page_by_page() {
    let mut draws = Draws(7);
    let store = SqliteStore::in_memory().unwrap();
    let mut all: Vec<Anomaly> = (0..400).map(|number| anomaly(number, &mut draws)).collect();
    for anomaly in &mut all {
        store.record(anomaly).await.unwrap();
        // Some go on, and are then of another kind, span and detection.
        if draws.below(4) == 0 {
            anomaly.updates = 2;
            anomaly.severity = draws.one(&SEVERITIES);
            anomaly.status = Status::Closed;
            anomaly.detection_timestamp = anomaly.detection_timestamp.minus(600);
            anomaly.last_seen = anomaly.last_seen.plus(draws.one(&[60, 30_000]));
            store.record(anomaly).await.unwrap();
        }
    }
    all.sort_by_key(|anomaly| (Reverse(anomaly.detection_timestamp), anomaly.anomaly_id));
    let mut answers = BTreeSet::new();
    for _ in 0..250 {
        let mut query = query(&mut draws);
        let wanted: Vec<Uuid> = all.iter().filter(|a| fits(&query, a)).map(|a| a.anomaly_id).collect();
        answers.insert(wanted.len().min(3));
        let mut found = Vec::new();
        loop {
            let page = store.query(&query).await.unwrap();
            assert!(page.anomalies.len() <= query.limit);
            found.extend(page.anomalies.iter().map(|anomaly| anomaly.anomaly_id));
            query.cursor = page.next;
            if query.cursor.is_none() {
                break;
            }
        }
        assert_eq!(found, wanted, "{query:?}");
    }
    assert_eq!(answers, BTreeSet::from([0, 1, 2, 3]), "answers of none, one and many were tried");
}

/// Every filter there is or is not.
fn combinations() -> impl Iterator<Item = Query> {
    (0..2_048_u32).map(|bits| {
        let on = |bit: u32| bits & (1 << bit) != 0;
        Query {
            threat: on(0).then_some(Threat::Tor),
            min_severity: on(1).then_some(Severity::Critical),
            status: on(2).then_some(Status::Closed),
            address: on(3).then(|| address(1)),
            actor: on(4).then(|| address(2)),
            since: on(5).then_some(EventTime(BEGAN + 400_000_000)),
            until: on(6).then_some(EventTime(BEGAN - 400_000_000)),
            block: on(7).then(|| "192.0.2.0/24".parse().unwrap()),
            target: on(8).then(|| address(3)),
            account: on(9).then(|| "333333333333".to_owned()),
            interface: on(10).then(|| "eni-9".to_owned()),
            limit: 50,
            cursor: None,
            changed_since: None,
        }
    })
}

#[test]
fn no_combination_of_filters_sorts_or_goes_through_a_table() {
    let connection = super::super::prepare(Connection::open_in_memory().unwrap()).unwrap();
    for query in combinations() {
        for stream in streams(&query) {
            for (bounds, order) in
                [(" AND detected = 5 AND id > 'x'", "id"), (" AND detected < 5", "detected DESC, id")]
            {
                let sql = format!("EXPLAIN QUERY PLAN SELECT detected, id {}{bounds} ORDER BY {order}", stream.source);
                let mut statement = connection.prepare(&sql).unwrap();
                let values = params_from_iter(stream.values.iter().cloned());
                let plan: Vec<String> =
                    statement.query_map(values, |row| row.get(3)).unwrap().collect::<Result<_, _>>().unwrap();
                let plan = plan.join("; ");
                assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{query:?}: {plan}\n{sql}");
            }
        }
    }
}

#[test]
fn changes_are_read_from_one_index_alone_whatever_is_filtered() {
    let connection = super::super::prepare(Connection::open_in_memory().unwrap()).unwrap();
    for query in combinations() {
        let (sql, mut values) = changes_sql(&query, 5);
        values.push(50.into());
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let plan = statement.query_map(params_from_iter(values), |row| row.get(3)).unwrap();
        let plan = plan.collect::<Result<Vec<String>, _>>().unwrap().join("; ");
        assert!(plan.contains("SEARCH anomalies USING COVERING INDEX anomalies_changed (revision>?)"), "{plan}\n{sql}");
        assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{plan}\n{sql}");
    }
}

#[tokio::test]
async fn changes_with_any_filters_are_those_of_all_rows_in_the_order_of_their_last_change() {
    let mut draws = Draws(13);
    let store = SqliteStore::in_memory().unwrap();
    let mut all: Vec<Anomaly> = (0..200).map(|number| anomaly(number, &mut draws)).collect();
    for anomaly in &all {
        store.record(anomaly).await.unwrap();
    }
    let began = store.query(&Query { limit: 1, ..Query::default() }).await.unwrap().changed_until;
    let mut changed: Vec<usize> = Vec::new();
    for _ in 0..300 {
        let index = draws.below(150) as usize;
        all[index].updates += 1;
        all[index].severity = draws.one(&SEVERITIES);
        store.record(&all[index]).await.unwrap();
        changed.retain(|other| *other != index);
        changed.push(index);
    }
    assert!(changed.len() > 100 && changed.len() < 150);
    for _ in 0..100 {
        let mut query = Query { limit: draws.one(&[1, 7, 1000]), ..query(&mut draws) };
        let wanted: Vec<Uuid> =
            changed.iter().map(|index| &all[*index]).filter(|a| fits(&query, a)).map(|a| a.anomaly_id).collect();
        let mut found = Vec::new();
        let mut since = Some(began.clone());
        while since.is_some() {
            query.changed_since = since;
            let page = store.query(&query).await.unwrap();
            assert!(page.anomalies.len() <= query.limit);
            found.extend(page.anomalies.iter().map(|anomaly| anomaly.anomaly_id));
            since = page.next;
        }
        assert_eq!(found, wanted, "{query:?}");
    }
}

#[tokio::test]
async fn a_revision_is_given_once_although_the_row_that_had_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("anomalies.db");
    let mut draws = Draws(17);
    let until = {
        let store = SqliteStore::open(&path).unwrap();
        for number in 0..3 {
            store.record(&anomaly(number, &mut draws)).await.unwrap();
        }
        store.query(&Query::default()).await.unwrap().changed_until
    };
    Connection::open(&path).unwrap().execute("DELETE FROM anomalies", []).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let later = anomaly(4, &mut draws);
    store.record(&later).await.unwrap();
    let since = Query { changed_since: Some(until), ..Query::default() };
    assert_eq!(store.query(&since).await.unwrap().anomalies, [later]);
}

#[test]
fn what_matches_nothing_costs_the_same_in_a_store_ten_times_as_large() {
    let steps = |rows: u32| -> Vec<u64> {
        let mut draws = Draws(3);
        let mut connection = super::super::prepare(Connection::open_in_memory().unwrap()).unwrap();
        let transaction = connection.transaction().unwrap();
        for number in 0..rows {
            let mut anomaly = anomaly(number, &mut draws);
            // All of one kind, none of which is critical, closed or by those who are asked for.
            (anomaly.threat, anomaly.severity, anomaly.status) = (Threat::PortScan, Severity::High, Status::Open);
            let detected = BEGAN + number;
            anomaly.detection_timestamp = EventTime(detected);
            (anomaly.first_seen, anomaly.last_seen) = (EventTime(detected - 60), EventTime(detected));
            (anomaly.actor, anomaly.targets[0].address) = (Actor::One(address(100 + number)), address(90));
            super::super::write_anomaly(&transaction, &anomaly).unwrap();
        }
        transaction.commit().unwrap();
        let count = |query: Query| {
            let counted = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
            let counting = counted.clone();
            let count = move || {
                counting.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                false
            };
            connection.progress_handler(10, Some(count)).unwrap();
            let found = keys(&connection, &query, None, 50).unwrap();
            connection.progress_handler(0, None::<fn() -> bool>).unwrap();
            assert!(found.is_empty() || query == Query { limit: 50, ..Query::default() }, "{query:?}");
            counted.load(std::sync::atomic::Ordering::Relaxed)
        };
        combinations().map(count).collect()
    };
    for (query, (small, large)) in combinations().zip(steps(300).into_iter().zip(steps(3_000))) {
        assert!(large <= small + small / 4 + 20, "{small} and then {large} tens of steps for {query:?}");
    }
}

#[tokio::test]
async fn what_an_older_schema_kept_is_found_by_every_filter_and_kept_for_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("anomalies.db");
    let mut draws = Draws(11);
    let mut old = anomaly(1, &mut draws);
    old.targets[0].address = address(77);
    (old.account_id, old.interface_ids) = ("111111111111".to_owned(), vec!["eni-7".to_owned()]);
    {
        let connection = Connection::open(&path).unwrap();
        for step in &super::super::MIGRATIONS[..4] {
            connection.execute_batch(step).unwrap();
        }
        connection.pragma_update(None, "user_version", 4).unwrap();
        let sql = "INSERT INTO anomalies VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1, 1, 1, ?9)";
        let (id, body) = (old.anomaly_id.to_string(), serde_json::to_string(&old).unwrap());
        let (threat, status) = (old.threat.name(), status_name(old.status));
        let moments = [old.detection_timestamp.0, old.first_seen.0, old.last_seen.0];
        let actor = old.actor.to_string();
        let row =
            rusqlite::params![id, moments[0], threat, rank(old.severity), status, actor, moments[1], moments[2], body];
        connection.execute(sql, row).unwrap();
        let target = old.targets[0].address.to_string();
        connection.execute("INSERT INTO addresses VALUES (?1, ?2)", [target, id]).unwrap();
    }
    let settings = crate::publish::local::Settings {
        path,
        retention: jiff::SignedDuration::from_hours(1),
        readers: 1,
        read_timeout: jiff::SignedDuration::from_secs(10),
    };
    let store = SqliteStore::open_with(&settings).unwrap();
    // Its age counts from now on: a write removes nothing.
    store.record(&anomaly(2, &mut draws)).await.unwrap();
    let query = Query {
        threat: Some(old.threat),
        min_severity: Some(old.severity),
        status: Some(old.status),
        since: Some(old.last_seen),
        until: Some(old.first_seen.plus(1)),
        ..Query::default()
    };
    let address = Query { address: Some(old.targets[0].address), ..query.clone() };
    let block = |text: &str| Query { block: Some(text.parse().unwrap()), ..query.clone() };
    let blocks = ["10.0.0.0/24", "10.0.0.0/16", "10.0.0.0/8"].map(block);
    let account = Query { account: Some(old.account_id.clone()), ..query.clone() };
    let interface = Query { interface: Some(old.interface_ids[0].clone()), ..query.clone() };
    for query in [query, address, account, interface].into_iter().chain(blocks) {
        let found = store.query(&query).await.unwrap().anomalies;
        assert!(found.contains(&old), "{query:?}: {found:?}");
    }
}
