//! The Redis backend where it is more than one plain server: TLS with an authority of one's own, and a cluster.

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
use crate::service::soon;

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
