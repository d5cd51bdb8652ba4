use super::*;

fn problems_of(file: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let (layer, mut problems) = Layer::from_toml("f.toml", file);
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    if let Err(more) = Settings::assemble(&[layer, Layer::from_environment(environment)]) {
        problems.extend(more.0);
    }
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn the_embedded_defaults_resolve() {
    assert_eq!(Settings::defaults().statistical.window.as_secs(), 60);
}

#[test]
fn later_layers_win() {
    let (file, _) = Layer::from_toml("f.toml", "[statistical]\nwindow = \"2m\"\nlateness = \"7m\"\n");
    let variable = ("FLOWVIGIL__STATISTICAL__WINDOW".to_owned(), "3m".to_owned());
    let settings = Settings::assemble(&[file, Layer::from_environment([variable])]).unwrap();
    assert_eq!(settings.statistical.window.as_secs(), 180);
    assert_eq!(settings.statistical.lateness.as_secs(), 420);
}

#[test]
fn the_environment_can_write_lists() {
    let variable = ("FLOWVIGIL__NETWORK__INTERNAL".to_owned(), "[\"10.1.0.0/16\"]".to_owned());
    let settings = Settings::assemble(&[Layer::from_environment([variable])]).unwrap();
    assert_eq!(settings.network.internal.len(), 1);
}

#[test]
fn all_problems_are_told_at_once_with_line_and_key() {
    let file = "[network]\ninternal = [\n  \"10.0.0.0/8\",\n  \"10.0.0.0/99\",\n  \"ten\",\n]\n\n[statistical]\nwindoow = \"1m\"\nlateness = \"soon\"\n\n[nonsense]\nkey = 1\n";
    let told = problems_of(file, &[("FLOWVIGIL__STATISTICAL__WINDOW", "never")]);
    assert_eq!(told.len(), 6, "{told:#?}");
    for start in [
        "f.toml:4: network.internal[1]: ",
        "f.toml:5: network.internal[2]: ",
        "f.toml:9: statistical.windoow: unknown field `windoow`",
        "f.toml:10: statistical.lateness: ",
        "f.toml:12: nonsense: unknown field `nonsense`",
        "environment: FLOWVIGIL__STATISTICAL__WINDOW: ",
    ] {
        assert!(told.iter().any(|problem| problem.starts_with(start)), "{start} is not among {told:#?}");
    }
}

#[test]
fn a_value_out_of_range_is_told_where_it_was_written() {
    let told = problems_of("[statistical]\n\nwindow = \"0s\"\n", &[]);
    assert_eq!(told, ["f.toml:3: statistical.window: 0s is not in range: 1s to 1h"]);
}

#[test]
fn limits_of_a_canary_that_could_never_be_kept_are_told() {
    let told = problems_of("[ml.canary]\npairs = 10001\nlevel = 0.0\nalert_ratio = 0.5\n", &[]);
    assert_eq!(
        told,
        [
            "f.toml:2: ml.canary.pairs: from 1 to 10000 windows are compared",
            "f.toml:3: ml.canary.level: a p-value lies between 0 and 1",
            "f.toml:4: ml.canary.alert_ratio: below 1 not even as many alerts would do",
        ]
    );
}

#[test]
fn broken_syntax_does_not_hide_the_other_problems() {
    let told = problems_of("[statistical]\nwindow = \nlateness = \"soon\"\n", &[]);
    assert!(told.iter().any(|problem| problem.starts_with("f.toml:2: ")), "{told:#?}");
    assert!(told.iter().any(|problem| problem.starts_with("f.toml:3: statistical.lateness: ")), "{told:#?}");
}

#[test]
fn every_default_is_explained() {
    let keys = documented_keys();
    assert!(keys.len() > 2);
    for (key, comment) in keys {
        assert!(comment.len() > 10, "{key} has no comment in defaults.toml");
    }
}
