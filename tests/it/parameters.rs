//! Settings from Parameter Store and secrets from Secrets Manager, read from servers of both.

use aws_config::SdkConfig;
use flowvigil::aws::json::{CLOUD_MAP, JsonClient, SECRETS, SSM};
use flowvigil::settings::Settings;
use flowvigil::settings::dynamic::Dynamic;
use flowvigil::settings::secrets;
use flowvigil::settings::ssm::{self, Parameters};
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::servers::{aws, moto, unique};
use crate::service::Service;

/// A path of its own for one test.
struct Store {
    client: JsonClient,
    path: String,
}

impl Store {
    fn new(aws: &SdkConfig) -> Store {
        let client = JsonClient::new(aws, SSM, SignedDuration::from_secs(5));
        Store { client, path: format!("/{}/", unique("flowvigil")) }
    }

    async fn put(&self, key: &str, kind: &str, value: &str) {
        let name = format!("{}{key}", self.path);
        let input = json!({"Name": name, "Type": kind, "Value": value, "Overwrite": true});
        self.client.call::<Value>("PutParameter", &input).await.unwrap();
    }

    async fn remove(&self, key: &str) {
        let input = json!({"Name": format!("{}{key}", self.path)});
        self.client.call::<Value>("DeleteParameter", &input).await.unwrap();
    }

    fn parameters(&self, aws: &SdkConfig) -> Parameters {
        let second = SignedDuration::from_secs(5);
        Parameters::new(aws, &ssm::Settings { path: self.path.clone(), interval: second, timeout: second })
    }
}

async fn many_parameters_are_read_in_pages(aws: SdkConfig) {
    let store = Store::new(&aws);
    for threat in ["port_scan", "ddos", "c2_beacon", "crypto_mining", "tor", "behavior", "brute_force", "exfiltration"]
    {
        store.put(&format!("validation/calibration/threshold/{threat}"), "String", "0.61").await;
        store.put(&format!("validation/calibration/intercept/{threat}"), "String", "0.25").await;
        store.put(&format!("correlation/episode_gap/{threat}"), "String", "31m").await;
    }
    store.put("network/internal", "StringList", "10.1.0.0/16,fd00::/8").await;
    store.put("telemetry/log_level", "SecureString", "debug").await;
    let read = store.parameters(&aws).read().await.unwrap();
    assert_eq!(read.count, 26);
    let (_, settings) = Dynamic::begin(Vec::new(), Some(&read.layer)).unwrap();
    assert_eq!(settings.network.internal.len(), 2);
    assert_eq!(settings.telemetry.log_level, "debug");
    assert_eq!(settings.validation.calibration.threshold.of(flowvigil::finding::Threat::Tor), 0.61);
}

#[tokio::test]
async fn parameters_are_read_in_pages_and_decrypted() {
    let Some(aws) = aws().await else { return };
    many_parameters_are_read_in_pages(aws).await;
}

#[tokio::test]
async fn another_server_gives_the_same_parameters() {
    let Some(aws) = moto().await else { return };
    many_parameters_are_read_in_pages(aws).await;
}

#[tokio::test]
async fn what_an_encrypted_parameter_holds_is_in_no_message() {
    let Some(aws) = aws().await else { return };
    let store = Store::new(&aws);
    store.put("statistical/window", "SecureString", "hunter2").await;
    let read = store.parameters(&aws).read().await.unwrap();
    let problems = read.hide(Settings::assemble(std::slice::from_ref(&read.layer)).unwrap_err());
    let told = problems.to_string();
    assert!(told.contains("statistical/window") && !told.contains("hunter2"), "{told}");
}

async fn secrets_are_read_by_arn(aws: SdkConfig) {
    let client = JsonClient::new(&aws, SECRETS, SignedDuration::from_secs(5));
    let make = async |text: &str| -> String {
        let input = json!({"Name": unique("secret"), "SecretString": text});
        client.call::<Value>("CreateSecret", &input).await.unwrap()["ARN"].as_str().unwrap().to_owned()
    };
    let whole = make("rediss://:pass@cache:6379").await;
    let keyed = format!("{}:token::", make(r#"{"token": "a-token-of-some-length"}"#).await);
    let known = secrets::read(&aws, [whole.clone(), keyed.clone()]).await.unwrap();
    assert_eq!(
        (known[&whole].as_str(), known[&keyed].as_str()),
        ("rediss://:pass@cache:6379", "a-token-of-some-length")
    );
    let missing = format!("{whole}-not");
    let error = secrets::read(&aws, [missing]).await.unwrap_err().to_string();
    assert!(error.contains("ResourceNotFoundException"), "{error}");
}

#[tokio::test]
async fn a_secret_is_read_whole_or_by_key() {
    let Some(aws) = aws().await else { return };
    secrets_are_read_by_arn(aws).await;
}

#[tokio::test]
async fn another_server_gives_the_same_secrets() {
    let Some(aws) = moto().await else { return };
    secrets_are_read_by_arn(aws).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_takes_its_token_from_a_secret_and_never_says_it() {
    let Some(aws) = aws().await else { return };
    let client = JsonClient::new(&aws, SECRETS, SignedDuration::from_secs(5));
    let input = json!({"Name": unique("token"), "SecretString": "a-token-of-some-length"});
    let made: Value = client.call("CreateSecret", &input).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let environment =
        [("FLOWVIGIL__API__TOKEN", made["ARN"].as_str().unwrap()), ("FLOWVIGIL__TELEMETRY__LOG_LEVEL", "debug")];
    let service = Service::start(folder.path(), &environment);
    let ask = |token: &str| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let request = agent.get(format!("http://{}/v1/status", service.address()));
        request.header("authorization", format!("Bearer {token}")).call().unwrap().status().as_u16()
    };
    assert_eq!((ask("a-token-of-some-length"), ask("another-token-of-some-length")), (200, 401));
    assert!(!service.told().contains("a-token-of-some-length"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thresholds_and_suppressions_apply_to_a_running_service_and_a_bad_value_leaves_the_old_ones() {
    let Some(aws) = aws().await else { return };
    let store = Store::new(&aws);
    store.put("telemetry/log_level", "String", "info").await;
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(
        folder.path(),
        &[("FLOWVIGIL__SETTINGS__SSM__PATH", &store.path), ("FLOWVIGIL__SETTINGS__SSM__INTERVAL", "100ms")],
    );
    let told = |actor: &'static str| format!("/v1/anomalies?actor={actor}");
    let some = |answer: &Value| !answer["anomalies"].as_array().unwrap().is_empty();
    service.scan("10.0.1.1", 0, 60);
    service.quiet_until(10);
    service.wait_until(&told("10.0.1.1"), some);

    store.put("statistical/port_scan/ports", "String", "500").await;
    service.wait_for_line("statistical.port_scan.ports");
    service.scan("10.0.1.2", 20, 60);
    service.quiet_until(40);
    service.wait_until("/v1/status", |status| status.to_string().contains("2023-11-14T22:53:20Z"));
    assert!(!some(&service.get(&told("10.0.1.2"))), "60 ports are told although the threshold is 500");

    store.remove("statistical/port_scan/ports").await;
    let quiet = json!([{"name": "the scanner of ours", "owner": "ada", "reason": "weekly scan",
        "created": "2023-01-01T00:00:00Z", "match": {"actors": ["10.0.1.3"]}}]);
    store.put("validation/suppressions", "String", &quiet.to_string()).await;
    service.wait_for_line("validation.suppressions");
    service.scan("10.0.1.3", 60, 60);
    service.scan("10.0.1.4", 61, 60);
    service.quiet_until(70);
    service.wait_until(&told("10.0.1.4"), some);
    assert!(!some(&service.get(&told("10.0.1.3"))));
    let silences =
        service.wait_until("/v1/silences?address=10.0.1.3", |s| !s["silences"].as_array().unwrap().is_empty());
    assert_eq!(silences["silences"][0]["stage"], "suppression", "{silences}");

    store.put("statistical/ddos/sources", "String", "many").await;
    store.put("statistical/port_scan/ports", "String", "500").await;
    let ready = service.wait_until("/health/ready", |ready| ready["status"] == "degraded");
    let reason = ready["degraded"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("statistical/ddos/sources") && reason.contains("the last settings stay"), "{reason}");
    service.scan("10.0.1.5", 80, 60);
    service.quiet_until(90);
    service.wait_until(&told("10.0.1.5"), some);
    assert!(!some(&service.get(&told("10.0.1.2"))), "what was below the threshold is told later");

    store.remove("statistical/ddos/sources").await;
    service.wait_until("/health/ready", |ready| ready["status"] == "ready");
    store.put("statistical/window", "String", "2m").await;
    let ready = service.wait_until("/health/ready", |ready| ready["status"] == "degraded");
    let reason = ready["degraded"][0]["reason"].as_str().unwrap();
    assert_eq!(reason, "in use only after a restart: statistical.window");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_in_cloud_map_for_as_long_as_it_runs() {
    let Some(aws) = aws().await else { return };
    let client = JsonClient::new(&aws, CLOUD_MAP, SignedDuration::from_secs(5));
    let call = async |operation, input: Value| client.call::<Value>(operation, &input).await.unwrap();
    let name = unique("space");
    call("CreateHttpNamespace", json!({"Name": name, "CreatorRequestId": name})).await;
    let spaces = call("ListNamespaces", json!({})).await;
    let space = spaces["Namespaces"].as_array().unwrap().iter().find(|space| space["Name"] == name.as_str()).unwrap();
    let made =
        call("CreateService", json!({"Name": "flowvigil", "NamespaceId": space["Id"], "CreatorRequestId": name})).await;
    let service_id = made["Service"]["Id"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut service = Service::start(folder.path(), &[("FLOWVIGIL__API__CLOUD_MAP__SERVICE_ID", service_id)]);
    service.wait_for_line("registered in Cloud Map");
    let listed = call("ListInstances", json!({"ServiceId": service_id})).await;
    let attributes = &listed["Instances"][0]["Attributes"];
    assert_eq!(attributes["AWS_INSTANCE_IPV4"], "127.0.0.1", "{listed}");
    assert_eq!(attributes["AWS_INSTANCE_PORT"], service.address().port().to_string());
    service.stop();
    assert_eq!(call("ListInstances", json!({"ServiceId": service_id})).await["Instances"], json!([]));
}
