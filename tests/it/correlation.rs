//! Tier 3 behind its port, in words: what folding, bridging, superseding, relating and closing must come to, whatever the
//! incidents are kept in. (`contract` holds every backend to the core's very results.)

use std::sync::Arc;

use flowvigil::correlation::local::LocalIncidents;
use flowvigil::correlation::{self, Incident, IncidentStore, Incidents, Watermarks};
use flowvigil::finding::{Actor, Evidence, Finding, Merge, Severity, Subject, Target, Threat};
use flowvigil::flow::{Address, EventTime};
use flowvigil::ingest::ShardId;
use flowvigil::settings::Settings;

/// The settings that incident stores are opened with.
pub fn correlation_settings() -> correlation::Settings {
    Settings::defaults().correlation
}

fn shard(name: &str) -> ShardId {
    ShardId(Arc::from(name))
}

/// The only shard has passed a moment.
pub fn passed(watermark: u32) -> Watermarks {
    Watermarks::from([(shard("a"), EventTime(watermark))])
}

/// A scan by one address in the minute that starts at `window`.
pub fn scan(actor: u32, window: u32, ports: u16) -> Finding {
    let actor = Address::v4(0xcb00_7100 + actor);
    Finding {
        threat: Threat::PortScan,
        method: "vertical".to_owned(),
        actor: Actor::One(actor),
        subject: Subject::Actor(actor),
        targets: vec![Target {
            address: Address::v4(0x0a00_0005),
            ports: (1..=ports.min(16)).collect(),
            port_count: u32::from(ports),
        }],
        target_count: 1,
        sources: Vec::new(),
        alternatives: Vec::new(),
        severity_reason: String::new(),
        learned: Vec::new(),
        first_seen: EventTime(window + 1),
        last_seen: EventTime(window + 50),
        window: EventTime(window),
        window_seconds: 60,
        score: 0.9,
        severity: Severity::Medium,
        evidence: vec![
            Evidence::at_least("distinct_ports", f64::from(ports), 100.0, "ports", Merge::Max),
            Evidence::told("attempts", f64::from(ports), "attempts", Merge::Sum),
        ],
        summary: format!("{actor} tried {ports} ports of 10.0.0.5"),
        interfaces: vec!["eni-1".to_owned()],
        account: String::new(),
        provisional: false,
        ml: None,
    }
}

/// A beacon of the address that [`scan`] gives the same number.
pub fn beacon(actor: u32, window: u32) -> Finding {
    let (host, peer) = (Address::v4(0xcb00_7100 + actor), Address::v4(0xc633_6401));
    Finding {
        threat: Threat::C2Beacon,
        method: "periodic".to_owned(),
        subject: Subject::Pair(host, peer),
        targets: vec![Target { address: peer, ports: vec![443], port_count: 1 }],
        severity: Severity::High,
        ..scan(actor, window, 1)
    }
}

/// Holds an empty [`IncidentStore`], opened with [`correlation_settings`], to its promises. It may be shared: the actors
/// from `base` to `base + 9` must be nobody else's.
pub async fn incident_store(store: &dyn IncidentStore, base: u32) {
    let (a, b) = (shard("a"), shard("b"));

    // One key, one episode, whatever the shard; sums add over windows and shards, and never twice.
    let first = store.fold(&a, &[scan(base, 600, 100)]).await.unwrap();
    assert_eq!(first.len(), 1);
    let id = first[0].id;
    assert_eq!(id, scan(base, 600, 100).key().episode(EventTime(600)));
    store.fold(&b, &[scan(base, 600, 7)]).await.unwrap();
    let touched = store.fold(&a, &[scan(base, 600, 100), scan(base, 660, 50)]).await.unwrap();
    assert_eq!((touched.len(), touched[0].id), (1, id));
    assert_eq!(touched[0].account().number("attempts").unwrap().value, 157.0);
    assert_eq!(touched[0].account().number("distinct_ports").unwrap().value, 100.0);

    // What changes nothing is returned all the same, and is the same.
    let again = store.fold(&a, &[scan(base, 660, 50)]).await.unwrap();
    assert_eq!(again, touched);
    assert_eq!(store.get(id).await.unwrap().as_ref(), Some(&touched[0]));

    // Earlier evidence that comes late joins under the id that is known.
    let late = store.fold(&b, &[scan(base, 0, 10)]).await.unwrap();
    assert_eq!((late.len(), late[0].id, late[0].span().0), (1, id, EventTime(1)));

    // A look at an open window is superseded by the closed one.
    let look = Finding { provisional: true, score: 0.99, ..scan(base + 1, 0, 40) };
    store.fold(&a, std::slice::from_ref(&look)).await.unwrap();
    // Whoever does the same to the target may hear of it too.
    let own = |touched: Vec<Incident>| touched.into_iter().find(|incident| incident.key == look.key()).unwrap();
    let closed = own(store.fold(&a, &[scan(base + 1, 0, 30)]).await.unwrap());
    assert_eq!(closed.account().number("attempts").unwrap().value, 30.0);
    assert_eq!(own(store.fold(&a, std::slice::from_ref(&look)).await.unwrap()), closed);

    // Beyond the gap it is another episode; what bridges two makes them the earlier one.
    let key = scan(base + 2, 0, 100).key();
    let early = store.fold(&a, &[scan(base + 2, 0, 100)]).await.unwrap();
    let early = early.iter().find(|incident| incident.key == key).unwrap().id;
    let touched = store.fold(&a, &[scan(base + 2, 6_000, 50)]).await.unwrap();
    let mut episodes = touched.iter().filter(|incident| incident.key == key);
    let other = episodes.find(|incident| incident.id != early).expect("a second episode").id;
    let bridged = store.fold(&b, &[scan(base + 2, 3_000, 10)]).await.unwrap();
    let kept = bridged.iter().find(|incident| incident.id == early).unwrap();
    let gone = bridged.iter().find(|incident| incident.id == other).unwrap();
    assert_eq!(kept.account().number("attempts").unwrap().value, 160.0);
    assert_eq!((gone.closed, gone.absorbed_by), (true, Some(early)));
    assert!(store.get(other).await.unwrap().is_none());

    // Two threats of one actor name each other, and both are returned.
    let key = scan(base + 3, 0, 100).key();
    let scanned = store.fold(&a, &[scan(base + 3, 0, 100)]).await.unwrap();
    let scan_id = scanned.iter().find(|incident| incident.key == key).unwrap().id;
    let story = store.fold(&b, &[beacon(base + 3, 3_540)]).await.unwrap();
    assert_eq!(story.len(), 2);
    let beacon_id = story.iter().find(|incident| incident.id != scan_id).unwrap().id;
    for incident in &story {
        let other = if incident.id == scan_id { beacon_id } else { scan_id };
        assert!(incident.related.contains_key(&other));
    }

    // The order of arrival is nothing.
    let findings: Vec<(&ShardId, Finding)> =
        (0..12).map(|n| (if n % 2 == 0 { &a } else { &b }, scan(base + 4, n * 60, 10 + n as u16))).collect();
    for (shard, finding) in findings.iter().rev().chain(&findings) {
        store.fold(shard, std::slice::from_ref(finding)).await.unwrap();
    }
    let mut straight = Incidents::new(&correlation_settings());
    let expected = findings.iter().map(|(shard, f)| straight.fold(&shard.0, std::slice::from_ref(f))).last().unwrap();
    let folded = store.fold(&a, &[findings[0].1.clone()]).await.unwrap();
    assert_eq!(folded[0].account(), expected[0].account());

    // What is over is closed once, and forgotten.
    let closed = store.expire(&passed(50_000)).await.unwrap();
    assert!(closed.iter().any(|incident| incident.id == id && incident.closed));
    assert!(!closed.iter().any(|incident| incident.id == beacon_id), "a beacon's gap is a day");
    assert!(store.get(id).await.unwrap().is_none());
    assert!(!store.expire(&passed(50_000)).await.unwrap().iter().any(|incident| incident.id == id));
}

#[tokio::test]
async fn incidents_in_memory_keep_every_promise() {
    incident_store(&LocalIncidents::new(&correlation_settings()), 0).await;
}

#[tokio::test]
async fn a_snapshot_of_incidents_goes_on_where_it_was_taken() {
    let settings = correlation_settings();
    let before = LocalIncidents::new(&settings);
    let id = before.fold(&shard("a"), &[scan(1, 600, 100)]).await.unwrap()[0].id;
    let after = LocalIncidents::restore(&before.snapshot(), &settings).unwrap();
    let touched = after.fold(&shard("a"), &[scan(1, 660, 50)]).await.unwrap();
    assert_eq!((touched.len(), touched[0].id, touched[0].windows()), (1, id, 2));
}
