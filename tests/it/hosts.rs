//! What a running service knows of a host, of its log, and of its own settings, asked for at the built binary.

use serde_json::{Value, json};

use crate::service::Service;

#[test]
fn a_host_has_a_profile_the_log_its_coverage_and_every_setting_its_origin() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[("FLOWVIGIL__API__PAGE_MAX", "77")]);
    let gap =
        |start: u32, status: &str| format!("2 123456789012 eni-1 - - - - - - - {start} {} - {status}\n", start + 59);
    for (start, status) in [(1_700_000_000, "SKIPDATA"), (1_700_000_060, "NODATA"), (1_700_000_120, "SKIPDATA")] {
        service.append(&gap(start, status));
    }
    service.scan("10.0.3.7", 1, 300);
    service.quiet_until(10);
    let told = service.wait_until("/v1/hosts/10.0.3.7", |host| host["open_anomalies"][0].is_object());
    assert_eq!((&told["ours"], &told["open_anomalies"][0]["threat"]), (&json!(true), &json!("port_scan")), "{told:#}");
    assert_eq!(told["shards"][0]["conversations"], 300, "{told:#}");
    assert!(told["open_anomalies"][0].get("evidence").is_none(), "the short form: {told:#}");
    assert_eq!(
        (&told["approaches"][0]["threat"], &told["approaches"][0]["found"]),
        (&json!("port_scan"), &json!(true))
    );
    let nobody = service.get("/v1/hosts/192.0.2.1");
    assert_eq!((&nobody["ours"], &nobody["shards"], &nobody["first_seen"]), (&Value::Null, &json!([]), &Value::Null));
    let wrong = service.get("/v1/hosts/10.0.3");
    assert_eq!((&wrong["status"], wrong["detail"].as_str().is_some()), (&json!(400), true), "{wrong}");

    let coverage = service.get("/v1/coverage");
    let shard = &coverage["shards"][0];
    assert_eq!(
        (&shard["records"], &shard["skipped_seconds"], &shard["no_data_seconds"]),
        (&json!(316), &json!(120), &json!(60))
    );
    assert_eq!((&shard["late"], &shard["late_share"]), (&json!(0), &json!(0.0)), "{coverage:#}");
    let gaps = coverage["gaps"].as_array().unwrap();
    assert_eq!(gaps.len(), 1, "{coverage:#}");
    assert_eq!((&gaps[0]["interface"], &gaps[0]["account"]), (&json!("eni-1"), &json!("123456789012")));
    assert_eq!((&gaps[0]["skipped_seconds"], &gaps[0]["no_data_seconds"]), (&json!(120), &json!(60)), "{coverage:#}");
    assert_eq!(coverage["sources"].as_object().unwrap().len(), 1, "{coverage:#}");

    let config = service.get("/v1/config");
    let of = |key: &str| {
        let all = config["settings"].as_array().unwrap();
        all.iter().find(|setting| setting["key"] == key).unwrap_or_else(|| panic!("{key}: {config:#}"))
    };
    let page = of("api.page_max");
    assert_eq!((&page["value"], &page["from"]), (&json!(77), &json!("environment FLOWVIGIL__API__PAGE_MAX")));
    assert_eq!(of("ingest.local.paths")["from"], "arguments PATH");
    assert_eq!(of("statistical.window")["from"], "defaults.toml");
}
