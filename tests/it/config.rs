//! `flowvigil config`, as a person uses it.

use std::process::{Command, Output};

fn flowvigil(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flowvigil")).args(args).output().unwrap()
}

#[test]
fn what_config_prints_is_a_settings_file_without_problems() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flowvigil.toml");
    let printed = flowvigil(&["config"]);
    assert!(printed.status.success());
    std::fs::write(&file, printed.stdout).unwrap();
    let checked = flowvigil(&["config", "check", file.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn every_key_has_a_name_in_the_environment_and_in_parameter_store() {
    let listed = flowvigil(&["config", "keys"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    let line = |key: &str| text.lines().find(|line| line.split("  ").nth(1) == Some(key)).unwrap().to_owned();
    assert_eq!(
        line("statistical.port_scan.ports"),
        "running  statistical.port_scan.ports  FLOWVIGIL__STATISTICAL__PORT_SCAN__PORTS  /flowvigil/statistical/port_scan/ports"
    );
    assert!(line("statistical.window").starts_with("restart  "));
    let printed = String::from_utf8(flowvigil(&["config"]).stdout).unwrap();
    assert!(
        printed.contains("# Changeable while running: /flowvigil/validation/storm/…\n[validation.storm]"),
        "{printed}"
    );
}

#[test]
fn check_names_every_problem_and_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flowvigil.toml");
    std::fs::write(&file, "[statistical]\nwindow = \"soon\"\n[netwrok]\n").unwrap();
    let checked = flowvigil(&["config", "check", file.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(2));
    let told = String::from_utf8(checked.stderr).unwrap();
    assert!(told.contains("2 problems in the settings"), "{told}");
    assert!(told.contains("flowvigil.toml:2: statistical.window: "), "{told}");
    assert!(told.contains("flowvigil.toml:3: netwrok: unknown field `netwrok`"), "{told}");
}

/// Every key of the defaults whose value is a number or a duration, with a value that nothing can mean.
fn out_of_any_range() -> Vec<(String, String)> {
    let printed = String::from_utf8(flowvigil(&["config"]).stdout).unwrap();
    let chosen: String = printed.lines().map(|line| line.trim_start_matches("#: ").to_owned() + "\n").collect();
    let table: toml::Table = toml::from_str(&chosen).unwrap();
    let mut found = Vec::new();
    fn collect(table: &toml::Table, above: &str, found: &mut Vec<(String, String)>) {
        for (name, value) in table {
            let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            match value {
                toml::Value::Table(below) => collect(below, &key, found),
                toml::Value::Integer(_) => found.push((key, "-1".to_owned())),
                toml::Value::Float(_) => found.push((key, "nan".to_owned())),
                toml::Value::String(text) if text.parse::<jiff::SignedDuration>().is_ok() => {
                    found.push((key, "\"-1s\"".to_owned()));
                }
                _ => {}
            }
        }
    }
    collect(&table, "", &mut found);
    found
}

/// What `config check` and `run` say of a file, and with which code they end.
fn refused_by_both(text: &str) -> [(Option<i32>, String); 2] {
    let folder = tempfile::tempdir().unwrap();
    let (file, log) = (folder.path().join("flowvigil.toml"), folder.path().join("flow.log"));
    std::fs::write(&file, text).unwrap();
    std::fs::write(&log, "").unwrap();
    let (file, log) = (file.to_str().unwrap(), log.to_str().unwrap());
    let commands: [&[&str]; 2] = [&["config", "check", file], &["run", "--config", file, "--once", log]];
    commands.map(|args| {
        let output = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
            .args(args)
            .env("FLOWVIGIL__PUBLISH__SQLITE__PATH", folder.path().join("anomalies.db"))
            .env("FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER", folder.path().join("snapshots"))
            .env("FLOWVIGIL__INGEST__LOCAL__CHECKPOINT", folder.path().join("checkpoints"))
            .current_dir(folder.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    })
}

#[test]
fn every_number_and_every_duration_has_a_range_that_check_and_run_hold_it_to() {
    let values = out_of_any_range();
    assert!(values.len() > 150, "{}", values.len());
    let text: String = values.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    let [(code, told), by_run] = refused_by_both(&text);
    assert_eq!(code, Some(2), "{told}");
    for (number, (key, value)) in values.iter().enumerate() {
        let line = format!("flowvigil.toml:{}: {key}: ", number + 1);
        assert!(told.contains(&line), "{key} = {value} is taken: {told}");
    }
    assert_eq!(by_run, (code, told), "run refuses the same in the same words");
}

#[test]
fn run_refuses_what_check_refuses_and_nothing_else() {
    for (text, words) in [
        (
            "[statistical.port_scan]\nsuccess_max = 1.5\n",
            "statistical.port_scan.success_max: 1.5 is not in range: 0 to 1",
        ),
        ("[validation.calibration.slope]\ntor = 0.0\n", "validation.calibration.slope.tor: 0 is not in range: above 0"),
        ("[validation.storm]\nanomalies_max = 0\n", "validation.storm.anomalies_max"),
        ("[pipeline]\nretry_first = \"1m\"\n", "pipeline.retry_first: the first pause is longer"),
        ("[publish.sqlite]\nreaders = 0\n", "publish.sqlite.readers"),
        ("[publish.eventbridge]\nbus = \"b\"\nentries_max = 11\n", "publish.eventbridge.entries_max"),
        ("[api]\npage_max = 0\n", "api.page_max"),
        ("[api]\nidle_timeout = \"0s\"\n", "api.idle_timeout"),
        ("[api.rate_limit]\nburst = 0.5\n", "api.rate_limit.burst"),
        ("[api.rate_limit]\ntrust_forwarded = true\n", "api.trusted_proxies"),
        ("[api]\nlisten = \"0.0.0.0:0\"\n", "api.token_file"),
        ("[api]\ntoken = \"short\"\n", "fewer than 16 characters"),
        ("[api]\ntoken_file = \"nowhere/token\"\n", "nowhere/token"),
        ("[statistical.intel]\ntor_relays = [\"nowhere/relays\"]\n", "nowhere/relays"),
        ("[ml.model]\npath = \"nowhere/model.tar.gz\"\n", "nowhere/model.tar.gz"),
        ("[ml.model]\nenabled = false\n[ml.sagemaker]\ndeadline = \"1s\"\n", "ml.sagemaker"),
        (
            "[validation]\nallow_list = [{ name = \"all\", addresses = [\"0.0.0.0/1\", \"128.0.0.0/1\"] }]\n",
            "`all` would silence",
        ),
        (
            "[validation]\nsuppressions = [{ name = \"n\", owner = \"o\", reason = \"r\", created = \"2026-01-01T00:00:00Z\", match = { actors = [\"::/0\"] } }]\n",
            "`n` would silence",
        ),
        (
            "[validation]\nsuppressions = [{ name = \"n\", owner = \"o\", reason = \"r\", created = \"2026-01-01T00:00:00Z\", expire = 1, match = { ports = [22] } }]\n",
            "expire",
        ),
        ("[[validation.known_benign]]\nname = \"everything\"\nmatch = {}\n", "`everything` would silence"),
    ] {
        let [check, run] = refused_by_both(text);
        assert_eq!((check.0, run.0), (Some(2), Some(2)), "{text}\n{}\n{}", check.1, run.1);
        for (code, told) in [&check, &run] {
            assert!(told.contains(words), "{text} ({code:?}): {told}");
        }
        assert_eq!(check.1, run.1, "the same words");
    }
    let forced = "[validation]\nallow_list = [{ name = \"all\", addresses = [\"0.0.0.0/0\"], force = true }]\n";
    for text in ["", forced, "[api]\nlisten = \"127.0.0.1:0\"\ncache = \"0s\"\n[api.rate_limit]\nper_second = 0.0\n"] {
        let text = format!("{text}\n[telemetry]\nlog_level = \"error\"\n");
        let [check, run] = refused_by_both(&text);
        assert_eq!((check.0, run.0), (Some(0), Some(0)), "{text}\n{}\n{}", check.1, run.1);
    }
}
