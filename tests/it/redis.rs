//! The Redis backend where it is more than one plain server: TLS with an authority of one's own, a cluster, and one that loses
//! what it was given.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use flowvigil::anomaly::{Anomaly, Status};
use flowvigil::correlation::IncidentStore;
use flowvigil::correlation::redis::{RedisIncidents, Settings as RedisSettings};
use flowvigil::ingest::ShardId;
use flowvigil::settings::Settings;

use crate::contract::{Queue, incident_store, redis_settings};
use crate::correlation::scan;
use crate::crash::{World, settled};
use crate::servers::{aws, redis};
use crate::service::{Service, soon};

/// A server of its own for one test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn start(folder: &Path, args: &[&str]) -> Server {
        let started = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(folder)
            .args(args)
            .stdout(Stdio::null())
            .spawn();
        Server(started.unwrap())
    }
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

async fn keeps_the_contract(settings: RedisSettings) {
    let tier = Settings::defaults().correlation;
    incident_store(&RedisIncidents::open(&settings, &tier).await.unwrap()).await;
}

#[tokio::test]
async fn incidents_in_redis_over_tls_with_an_authority_of_ones_own() {
    if redis().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (authority, authority_key, request, key, certificate, extension) =
        (path("ca.crt"), path("ca.key"), path("s.csr"), path("s.key"), path("s.crt"), path("s.ext"));
    std::fs::write(&extension, "subjectAltName=IP:127.0.0.1\n").unwrap();
    let new = ["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=flowvigil test"];
    assert!(run(
        "openssl",
        &[&new[..], &["-x509", "-days", "2", "-keyout", &authority_key, "-out", &authority]].concat()
    ));
    assert!(run("openssl", &[&new[..], &["-keyout", &key, "-out", &request]].concat()));
    let sign = ["x509", "-req", "-days", "2", "-CA", &authority, "-CAkey", &authority_key, "-CAcreateserial"];
    assert!(run("openssl", &[&sign[..], &["-in", &request, "-out", &certificate, "-extfile", &extension]].concat()));
    let port = free_port();
    let tls = ["--port", "0", "--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let _server = Server::start(
        folder.path(),
        &[&tls[..], &["--tls-ca-cert-file", &authority, "--tls-auth-clients", "no"]].concat(),
    );
    assert!(soon(|| run("redis-cli", &["-p", &port, "--tls", "--cacert", &authority, "ping"])));

    let url = format!("rediss://127.0.0.1:{port}");
    keeps_the_contract(RedisSettings { authority: authority.into(), ..redis_settings(url.clone()) }).await;
    let stranger = RedisIncidents::open(&redis_settings(url), &Settings::defaults().correlation).await.unwrap();
    let folded = stranger.fold(&ShardId("a".into()), &[scan(1, 0, 60)]).await;
    assert!(folded.is_err(), "a certificate that no public authority has signed was taken");
}

/// A service opens an anomaly, something happens to the Redis in which its incident is, and the anomaly's time passes. It is
/// open until then, and afterwards it is closed, and that was said once. Gives what the service said.
fn is_closed_once_in_its_time(happens: impl FnOnce(&mut Server, &Path, &str)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut server = Server::start(folder.path(), &["--port", &port]);
    assert!(soon(|| run("redis-cli", &["-p", &port, "ping"])));
    let environment = [
        ("FLOWVIGIL__CORRELATION__REDIS__URL", &*format!("redis://127.0.0.1:{port}")),
        ("FLOWVIGIL__PIPELINE__SWEEP_EVERY", "100ms"),
        ("FLOWVIGIL__TELEMETRY__LOG_LEVEL", "debug"),
        ("FLOWVIGIL__API__CACHE", "0s"),
    ];
    let service = Service::start(folder.path(), &environment);
    let several_looks = || {
        let looks = || service.told().matches("looked through the open anomalies").count();
        let before = looks();
        assert!(soon(|| looks() >= before + 4), "{}", service.told());
    };
    service.scan("10.0.1.1", 0, 60);
    service.quiet_until(10);
    let found = service.wait_until("/v1/anomalies", |all| all["anomalies"][0]["status"] == "open");
    let id = found["anomalies"][0]["anomaly_id"].as_str().unwrap();
    let anomaly = format!("/v1/anomalies/{id}");
    happens(&mut server, folder.path(), &port);
    // A scan is over when nothing was seen of it for an hour of event time.
    service.quiet_until(60);
    several_looks();
    assert_eq!(service.get(&anomaly)["status"], "open", "{}", service.told());
    service.quiet_until(120);
    service.wait_until(&anomaly, |anomaly| anomaly["status"] == "closed");
    several_looks();
    service.quiet_until(600);
    several_looks();
    assert_eq!(service.get(&anomaly)["status"], "closed");
    let told = service.told();
    let said = |kind: &str| told.lines().filter(|line| line.contains(kind) && line.contains(id)).count();
    assert_eq!((said("Anomaly Detected"), said("Anomaly Closed")), (1, 1), "{told}");
    told
}

const ABANDONED: &str = "closed an anomaly that nobody went on with";

#[test]
fn an_anomaly_whose_incident_is_flushed_from_redis_is_closed_in_its_time_and_said_to_be_once() {
    if redis().is_none() {
        return;
    }
    let told = is_closed_once_in_its_time(|_, _, port| assert!(run("redis-cli", &["-p", port, "flushall"])));
    assert_eq!(told.matches(ABANDONED).count(), 1, "{told}");
}

#[test]
fn an_anomaly_whose_redis_was_killed_and_came_back_empty_is_closed_in_its_time_and_said_to_be_once() {
    if redis().is_none() {
        return;
    }
    let told = is_closed_once_in_its_time(|server, folder, port| {
        let _ = (server.0.kill(), server.0.wait());
        *server = Server::start(folder, &["--port", port]);
        assert!(soon(|| run("redis-cli", &["-p", port, "ping"])));
    });
    assert_eq!(told.matches(ABANDONED).count(), 1, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_open_when_the_redis_of_two_tasks_lost_it_is_closed_once_by_one_of_them() {
    let Some(aws) = aws().await else { return };
    let world = World::new(&aws, 3, 1000, 0).await;
    world.set("[pipeline]", r#"sweep_every = "500ms""#);
    let (queue, events) = (Queue::new(&aws).await, aws_sdk_eventbridge::Client::new(&aws));
    let pattern = r#"{"source": ["anomaly-detection-service"]}"#;
    events.put_rule().name("all").event_bus_name(world.name()).event_pattern(pattern).send().await.unwrap();
    let target = aws_sdk_eventbridge::types::Target::builder().id("queue").arn(&queue.arn).build().unwrap();
    events.put_targets().rule("all").event_bus_name(world.name()).targets(target).send().await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let log = |name: &str| folder.path().join(name);
    let simulate = ["simulate", "--seed", "7", "--duration", "20m", "--hosts", "8", "--no-header"];
    let simulated = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(simulate)
        .args(["--threats", "port_scan,tor,crypto_mining", "-o", log("attacks").to_str().unwrap()])
        .output()
        .unwrap();
    assert!(simulated.status.success(), "{}", String::from_utf8_lossy(&simulated.stderr));
    let attacks = std::fs::read_to_string(log("attacks")).unwrap();
    let end = attacks.lines().filter_map(|line| line.split(' ').nth(11)?.parse::<u64>().ok()).max().unwrap();
    // On so many interfaces that every shard has some.
    let quiet = |at: u64| -> String {
        let line =
            |n| format!("2 123456789012 eni-{n:017x} 10.0.0.9 10.0.0.8 40000 443 6 10 5000 {at} {at} ACCEPT OK\n");
        (0..64).map(line).collect()
    };
    std::fs::write(log("attacks"), attacks + &quiet(end)).unwrap();
    // Every window of the attacks has closed, and every task has said so.
    std::fs::write(log("soon"), quiet(end + 900)).unwrap();
    // Two days later, when all of it is over.
    std::fs::write(log("later"), quiet(end + 172_800)).unwrap();

    world.feed(&log("attacks"), "interface");
    let mut tasks = [world.task(), world.task()];
    world.finished(&mut tasks).await;
    let open = world.recorded().await;
    assert!(open.len() > 2 && open.iter().all(|anomaly| anomaly.status == Status::Open), "{open:?}");
    world.flush_redis();
    world.feed(&log("soon"), "interface");
    world.finished(&mut tasks).await;
    world.feed(&log("later"), "interface");
    settled(&world, &mut tasks).await;
    let left: Vec<Anomaly> = world.recorded().await.into_iter().filter(|a| a.status == Status::Open).collect();
    assert_eq!(left, [], "{}", world.whole_log());
    assert!(world.whole_log().contains(ABANDONED), "{}", world.whole_log());
    // An event whose answer comes too late is put again; it says the same.
    let events = queue.take_all().await;
    let closings = events.iter().filter(|event| event["detail-type"] == "Anomaly Closed");
    let mut closed: BTreeMap<String, u32> = BTreeMap::new();
    for detail in closings.map(|event| event["detail"].to_string()).collect::<BTreeSet<_>>() {
        let anomaly: Anomaly = serde_json::from_str(&detail).unwrap();
        *closed.entry(anomaly.anomaly_id.to_string()).or_default() += 1;
    }
    let expected: BTreeMap<String, u32> =
        world.recorded().await.iter().map(|anomaly| (anomaly.anomaly_id.to_string(), 1)).collect();
    assert_eq!(closed, expected, "{}", world.whole_log());
}

#[test]
fn an_anomaly_whose_incident_is_there_is_closed_in_the_ordinary_way_however_often_somebody_looks() {
    if redis().is_none() {
        return;
    }
    let told = is_closed_once_in_its_time(|_, _, _| {});
    assert!(!told.contains(ABANDONED), "{told}");
}

#[tokio::test]
async fn incidents_in_a_redis_cluster() {
    if redis().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ports: Vec<String> = (0..3).map(|_| free_port()).collect();
    let _servers: Vec<Server> = ports
        .iter()
        .map(|port| {
            let (bus, nodes) = (free_port(), format!("nodes-{port}.conf"));
            let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-config-file", &nodes];
            Server::start(folder.path(), &[&["--port", port.as_str()], &cluster[..]].concat())
        })
        .collect();
    assert!(ports.iter().all(|port| soon(|| run("redis-cli", &["-p", port, "ping"]))));
    let nodes: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    assert!(run("redis-cli", &[&["--cluster", "create"], &nodes[..], &["--cluster-yes"]].concat()));
    assert!(soon(|| run("redis-cli", &["--cluster", "check", nodes[0]])));
    let settings = RedisSettings { cluster: true, ..redis_settings(format!("redis://{}", nodes[0])) };
    keeps_the_contract(settings).await;
}
