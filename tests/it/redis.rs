//! The Redis backend where it is more than one plain server: TLS with an authority of one's own, a cluster, and one that loses
//! what it was given.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use flowvigil::correlation::IncidentStore;
use flowvigil::correlation::redis::{RedisIncidents, Settings as RedisSettings};
use flowvigil::ingest::ShardId;
use flowvigil::settings::Settings;

use crate::contract::{incident_store, redis_settings};
use crate::correlation::scan;
use crate::servers::redis;
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
