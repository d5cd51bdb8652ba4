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
