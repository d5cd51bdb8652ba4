//! The promises of the layout, held by reading the source.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a folder whose name ends so.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(files(&path, ending));
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A source file's code: without comments, and without the tests at its end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// The floors, from the ground. A file imports only from lower floors, or from its own module.
const FLOORS: &[&[&str]] = &[
    &["flow", "random", "wait"],
    &["finding", "ingest", "simulate", "aws", "blame"],
    &["statistical", "correlation", "anomaly", "health", "explainers", "telemetry"],
    &["ml", "validation", "publish", "report"],
    &["settings", "pipeline", "api"],
    &["cli"],
];

/// Imports that go up, each with the reason why it stays.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("statistical", "ml", "the engine makes the vectors that tier 2 scores"),
    ("settings", "pipeline", "settings hold the settings of every part"),
    ("settings", "api", "settings hold the settings of every part"),
];

#[test]
fn what_is_unsafe_lies_in_one_folder_and_is_allowed_once() {
    let word =
        |line: &str, wanted: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == wanted);
    let with = |wanted: &str| -> BTreeSet<String> {
        let sources = ["src", "tests", "benches"].map(|folder| files(&root().join(folder), ".rs")).concat();
        let has = |path: &&PathBuf| code(path).lines().any(|line| word(line, wanted));
        sources.iter().filter(has).map(|path| name(path)).filter(|name| name != "tests/it/tidy.rs").collect()
    };
    let outside: Vec<String> = with("unsafe").into_iter().filter(|file| !file.starts_with("src/flow/simd/")).collect();
    // The policy of the dashboard forbids `unsafe-inline`, and its test says so.
    assert_eq!(outside, ["tests/it/api.rs", "tests/it/export.rs"]);
    assert_eq!(with("unsafe_code"), BTreeSet::from(["src/flow.rs".to_owned()]), "every other file is held by the lint");
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for lint in ["unsafe_code = \"deny\"", "unsafe_op_in_unsafe_fn = \"deny\"", "undocumented_unsafe_blocks = \"deny\""]
    {
        assert!(manifest.contains(lint), "{lint}");
    }
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

#[test]
fn imports_point_to_lower_floors_alone() {
    let mut wrong = Vec::new();
    for path in files(&root().join("src"), ".rs") {
        let inside = path.strip_prefix(root().join("src")).unwrap();
        let module = inside.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
        let Some(own) = floor(&module) else { continue };
        if inside.ends_with("tests.rs") {
            continue;
        }
        let code = code(&path);
        let mut imported: BTreeSet<String> = BTreeSet::new();
        for (at, _) in code.match_indices("crate::") {
            let rest = &code[at + "crate::".len()..];
            let group = rest.strip_prefix('{').map(|list| list.split('}').next().unwrap_or_default().to_owned());
            let one = || rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
            let list = group.unwrap_or_else(one);
            imported.extend(list.split(',').map(|item| item.trim().split("::").next().unwrap_or_default().to_owned()));
        }
        for other in imported {
            let Some(theirs) = floor(&other) else { continue };
            let known = EXCEPTIONS.iter().any(|(from, to, _)| *from == module && *to == other);
            if other != module && theirs >= own && !(theirs == own && own > 0 && !mutual(&module, &other)) && !known {
                wrong.push(format!("{} imports {other}, which is not below it", name(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether two modules of one floor import each other.
fn mutual(one: &str, other: &str) -> bool {
    let imports = |from: &str, to: &str| {
        let door = root().join(format!("src/{from}.rs"));
        let mut all = files(&root().join("src"), ".rs");
        all.retain(|path| *path == door || path.starts_with(root().join("src").join(from)));
        all.iter().any(|path| code(path).contains(&format!("crate::{to}")))
    };
    imports(one, other) && imports(other, one)
}

/// What pure files may not name: clocks, chance, files, the network, the runtime.
const IMPURE: &[&str] = &[
    "tokio",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
    "std::fs",
    "std::env",
    "std::process",
    "TcpStream",
    "thread_rng",
    "reqwest",
    "aws_sdk",
];

/// The pure files: named after ideas. Backends are named after a technology, or `local.rs`.
fn is_pure(path: &Path) -> bool {
    let inside = name(path);
    let pure = [
        "src/flow",
        "src/finding.rs",
        "src/anomaly.rs",
        "src/statistical",
        "src/correlation/incident",
        "src/correlation/pairs.rs",
        "src/validation",
        "src/report",
        "src/ml/features.rs",
        "src/ml/forest.rs",
        "src/ml/lstm.rs",
        "src/ml/calibration.rs",
        "src/ml/breaker.rs",
        "src/ml/canary.rs",
        "src/ml/drift.rs",
        "src/ingest/lease.rs",
        "src/ingest/snapshot.rs",
    ];
    let tests = inside.ends_with("tests.rs") || inside.contains("/tests/");
    pure.iter().any(|start| inside.starts_with(start)) && !tests && !inside.ends_with("/local.rs")
}

#[test]
fn pure_files_name_no_clock_no_chance_no_file_and_no_runtime() {
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for path in files(&root().join("src"), ".rs").iter().filter(|path| is_pure(path)) {
        looked_at += 1;
        let code = code(path);
        wrong.extend(
            IMPURE.iter().filter(|word| code.contains(*word)).map(|word| format!("{} names {word}", name(path))),
        );
    }
    assert!(looked_at > 20, "only {looked_at} pure files were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every page that is written for people.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("benches/README.md"), root().join("tests/README.md")];
    pages.extend(files(&root().join("deploy"), ".md"));
    pages.extend(files(&root().join(".github"), ".md"));
    pages
}

/// The lines of a page's blocks of commands.
fn commands(page: &str) -> Vec<&str> {
    page.split("```sh\n").skip(1).flat_map(|block| block.split("```").next().unwrap().lines()).map(str::trim).collect()
}

#[test]
fn every_command_of_the_pages_exists() {
    let help = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_flowvigil")).args(words).arg("--help").output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let (mut wrong, mut checked, mut programs) = (Vec::new(), 0, 0);
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let place = name(&page);
        for line in commands(&text) {
            let Some(first) = line.split_whitespace().next() else { continue };
            if first.contains('/') && !first.contains("://") && first.chars().all(|c| !c.is_uppercase() && c != '=') {
                programs += 1;
                if !root().join(first).exists() {
                    wrong.push(format!("{place}: `{line}` runs {first}, which is not there"));
                }
            }
            for test in line.split('#').next().unwrap().split_whitespace().skip(1).filter(|_| first == "tests/run") {
                let (module, start) = test.split_once("::").unwrap_or((test, ""));
                let tests = fs::read_to_string(root().join(format!("tests/it/{module}.rs"))).unwrap_or_default();
                if !test.starts_with("--") && !tests.contains(&format!("fn {start}")) {
                    wrong.push(format!("{place}: `{line}` names no test"));
                }
            }
            let Some(rest) = line.strip_prefix("flowvigil ").or(line.strip_prefix("cargo run --release -- ")) else {
                continue;
            };
            checked += 1;
            let rest = rest.split(['#', '|']).next().unwrap();
            let words: Vec<&str> = rest.split_whitespace().collect();
            let Some(mut options) = help(&words[..1]) else {
                wrong.push(format!("{place}: `{line}` names no command"));
                continue;
            };
            // A command may have commands of its own.
            options.push_str(&words.get(1).and_then(|part| help(&[words[0], part])).unwrap_or_default());
            let given = words.iter().filter(|word| word.starts_with("--")).map(|word| word.split('=').next().unwrap());
            wrong.extend(given.filter(|option| !options.contains(option)).map(|option| {
                format!("{place}: `{line}` names the option {option}, which {} does not have", words[0])
            }));
        }
    }
    assert!(checked > 20 && programs > 5, "only {checked} commands and {programs} programs were found in the pages");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_that_the_pages_name_is_there() {
    let (mut wrong, mut links, mut paths) = (Vec::new(), 0, 0);
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap().split('#').next().unwrap();
            if !target.is_empty() && !target.contains("://") {
                links += 1;
                if !page.parent().unwrap().join(target).exists() {
                    wrong.push(format!("{} links to {target}, which is not there", name(&page)));
                }
            }
        }
        for quoted in text.split('`').skip(1).step_by(2) {
            let path = quoted.split_whitespace().next().unwrap_or_default();
            let ours =
                ["src/", "tests/", "deploy/", "benches/", ".github/", ".ci/"].iter().any(|f| path.starts_with(f));
            if ours && !path.contains(['*', '…', '<']) {
                paths += 1;
                if !root().join(path).exists() {
                    wrong.push(format!("{} names {path}, which is not there", name(&page)));
                }
            }
        }
    }
    assert!(links > 30 && paths > 10, "only {links} links and {paths} paths were found in the pages");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_the_readme_shows_is_what_its_commands_print() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 120, "the README has {} lines; the pages have room", readme.lines().count());
    let folder = tempfile::tempdir().unwrap();
    let run = |line: &str| {
        let words = line.strip_prefix("flowvigil ").unwrap().split_whitespace();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowvigil"));
        let output = command.args(words).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let lines = commands(&readme);
    run(lines[0]);
    let shown = readme.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let table = run(lines[1]);
    // The column of the confidence may move by some hundredths with the calibration.
    let split = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let confidence = words[2].parse::<f64>().unwrap_or_default();
        ([&words[..2], &words[3..]].concat().join(" "), confidence)
    };
    let (printed, shown): (Vec<_>, Vec<_>) = (table.lines().map(split).collect(), shown.lines().map(split).collect());
    assert_eq!(printed.len(), shown.len(), "{table}");
    for ((printed, confidence), (shown, of)) in printed.iter().zip(&shown) {
        assert_eq!(printed, shown);
        assert!((confidence - of).abs() < 0.05, "{printed} has a confidence of {confidence}");
    }
    // The JSON is shortened: what it has, the first anomaly has.
    let shown = readme.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let shown: Value = serde_json::from_str(shown).unwrap();
    let printed = run(&lines[1].replace("table", "ndjson"));
    let first: Value = serde_json::from_str(printed.lines().next().unwrap()).unwrap();
    assert!(holds(&first, &shown), "{first:#}\nhas not all of\n{shown:#}");
}

/// Whether a value has all that a shortened one shows; `…` stands for what was left out.
fn holds(whole: &Value, shown: &Value) -> bool {
    match (whole, shown) {
        (_, Value::String(text)) if text == "…" => true,
        (Value::Object(whole), Value::Object(shown)) => {
            shown.iter().all(|(key, value)| key == "…" || whole.get(key).is_some_and(|own| holds(own, value)))
        }
        (Value::Array(whole), Value::Array(shown)) => whole.iter().zip(shown).all(|(whole, shown)| holds(whole, shown)),
        _ => whole == shown,
    }
}

#[test]
fn nothing_unfinished_and_no_place_of_one_machine_is_in_the_source() {
    // Put together here, so that this file does not name them.
    let words = ["todo", "unimplemented"].map(|word| format!("{word}!("));
    let places = [["/wo", "rk/"].concat(), ["/ro", "ot/"].concat()];
    let mut wrong = Vec::new();
    for folder in ["src", "tests"] {
        for path in files(&root().join(folder), ".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let found = words.iter().chain(&places).filter(|word| text.contains(word.as_str()));
            wrong.extend(found.map(|word| format!("{} holds {word}", name(&path))));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
