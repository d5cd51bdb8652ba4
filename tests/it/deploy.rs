//! What `deploy/` and the Dockerfile promise, held against the binary and by the linters of `tests/run deploy`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::service::Service;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn flowvigil() -> Command {
    Command::new(env!("CARGO_BIN_EXE_flowvigil"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

// === the container ===

#[test]
fn a_health_check_asks_where_the_settings_say_and_fails_where_nobody_answers() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let port = service.address().port();
    let check = |arguments: &[&str], listen: &str| {
        let command = &mut flowvigil();
        let checked = command.arg("healthcheck").args(arguments).env("FLOWVIGIL__API__LISTEN", listen);
        checked.output().unwrap()
    };
    let alive = check(&[], &format!("0.0.0.0:{port}"));
    assert_eq!(alive.status.code(), Some(0), "{}", text(&alive));
    assert!(text(&alive).contains("/health/live answers 200"), "{}", text(&alive));
    let ready = check(&["--path", "/health/ready", "--timeout", "20s"], &format!("127.0.0.1:{port}"));
    assert_eq!(ready.status.code(), Some(0), "{}", text(&ready));
    let nowhere = check(&["--path", "/nowhere"], &format!("127.0.0.1:{port}"));
    assert_eq!(nowhere.status.code(), Some(1), "{}", text(&nowhere));
    drop(service);
    let gone = check(&[], &format!("127.0.0.1:{port}"));
    assert_eq!(gone.status.code(), Some(1), "{}", text(&gone));
    assert!(text(&gone).contains("ask http://127.0.0.1:"), "{}", text(&gone));
}

/// The image of a stage of the Dockerfile, made without an engine around the binary under test.
fn image(folder: &Path, target: &str) -> (PathBuf, Value) {
    let out = folder.join(target);
    let made = Command::new(root().join("deploy/container/stages"))
        .arg(&out)
        .args(["--target", target, "--binary", env!("CARGO_BIN_EXE_flowvigil")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made));
    let told = std::fs::read_to_string(out.join("image.json")).unwrap();
    (out.join("root"), serde_json::from_str(&told).unwrap())
}

/// A command in the image, as its user, with its environment and nothing else.
fn inside(root: &Path, image: &Value) -> Command {
    let mut command = Command::new("chroot");
    command.arg(format!("--userspec={}", image["user"].as_str().unwrap())).arg(root).arg("/usr/local/bin/flowvigil");
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    for (name, value) in image["env"].as_object().unwrap() {
        command.env(name, value.as_str().unwrap());
    }
    command
}

#[test]
fn the_stages_of_the_dockerfile_make_an_image_whose_service_runs_without_root_and_writes_to_its_volume_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (place, image) = image(folder.path(), "service");
    assert_eq!(
        (image["user"].as_str(), &image["entrypoint"][0], &image["command"][0]),
        (Some("65532:65532"), &"/usr/local/bin/flowvigil".into(), &"run".into()),
    );
    assert_eq!(image["healthcheck"], serde_json::json!(["/usr/local/bin/flowvigil", "healthcheck"]));
    assert_eq!(image["ports"], serde_json::json!([8080]));
    if !Command::new("chroot").args(["/", "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: chroot is not allowed here, so that the image cannot be entered");
        return;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("0.0.0.0:{port}");
    let environment = [
        ("FLOWVIGIL__API__LISTEN", listen.as_str()),
        ("FLOWVIGIL__API__TOKEN", "a token of the tests, long enough"),
        ("FLOWVIGIL__INGEST__LOCAL__PATHS", r#"["/data"]"#),
        ("FLOWVIGIL__INGEST__LOCAL__CHECKPOINT", "/data/state/checkpoints"),
        ("FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER", "/data/state/snapshots"),
        ("FLOWVIGIL__PUBLISH__SQLITE__PATH", "/data/state/anomalies.db"),
    ];
    // Open to others and without a token it says what to do, instead of standing open.
    let open = environment.into_iter().filter(|(name, _)| *name != "FLOWVIGIL__API__TOKEN");
    let refused = inside(&place, &image).arg("run").envs(open).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("set api.token_file"), "{}", text(&refused));

    let mut service = inside(&place, &image)
        .arg("run")
        .envs(environment)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let healthy = || {
        let check = inside(&place, &image).arg("healthcheck").envs(environment).output().unwrap();
        check.status.success()
    };
    let well = crate::service::soon(healthy);
    let _ = Command::new("kill").args(["-TERM", &service.id().to_string()]).status();
    let ended = crate::service::soon(|| service.try_wait().unwrap().is_some());
    let _ = service.kill();
    let output = service.wait_with_output().unwrap();
    assert!(well && ended, "{}", text(&output));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let written: Vec<_> = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(place.join("data/state/anomalies.db").exists(), "{written:?}");
}

#[test]
fn the_image_for_sagemaker_serves_a_model_as_root() {
    let folder = tempfile::tempdir().unwrap();
    let (_, image) = image(folder.path(), "sagemaker");
    assert_eq!((image["user"].as_str(), &image["healthcheck"]), (Some("0:0"), &Value::Null));
    assert_eq!(image["entrypoint"], serde_json::json!(["/usr/local/bin/flowvigil"]));
}

// === what tests/deploy.py looks at ===

/// One check of tests/deploy.py; what is not installed outside of tests/run is skipped, and says so.
fn holds(check: &str) {
    let own = root().join("tests/.tools/lint/bin/python");
    let python = if own.exists() { own } else { PathBuf::from("python3") };
    let checked = Command::new(python)
        .arg(root().join("tests/deploy.py"))
        .args([check, env!("CARGO_BIN_EXE_flowvigil")])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", text(&checked));
    eprint!("{}", text(&checked));
}

macro_rules! checks {
    ($($check:ident)*) => { $(#[test] fn $check() { holds(stringify!($check)); })* };
}

mod linters_find_nothing_in {
    use super::holds;

    checks! { cloudformation dockerfile scripts workflows }
}

checks! {
    settings_of_the_task_are_settings_of_the_service
    the_service_takes_the_settings_of_the_task
    defaults_of_parameters_are_defaults_of_the_service
    the_service_reads_the_format_of_the_sources
    metrics_of_alarms_and_dashboards_are_told_by_the_service
    every_alarm_has_a_page_in_the_runbook
    events_that_rules_wait_for_are_events_of_the_service
    tables_are_those_that_the_service_would_make
    ports_are_those_of_the_image
    settings_that_the_function_changes_are_those_that_apply_while_running
    the_reference_of_settings_is_of_this_state
    the_cost_model_and_its_page_say_the_same
    links_of_the_pages_lead_somewhere
    commands_of_the_pages_are_commands_of_the_programs
    the_task_may_do_what_the_code_calls_and_nothing_else
    no_role_has_a_wildcard_where_a_resource_can_be_named
    everything_that_is_kept_is_encrypted_and_closed
    functions_run_on_a_runtime_that_is_not_deprecated
    steps_of_the_training_pipeline_are_commands_of_the_binary
    functions
    nothing_is_done_in_another_account_or_without_being_told_to
    the_service_runs_on_what_the_templates_make
}
