//! `flowvigil detect`, the built binary, as people call it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn detect(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flowvigil")).arg("detect").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Forty minutes of a VPC of twenty hosts under these threats.
fn simulated(folder: &Path, seed: &str, threats: &str) -> String {
    let log = folder.join("simulated.log").display().to_string();
    let made = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(["simulate", "--duration", "40m", "--hosts", "20", "--seed", seed, "--threats", threats, "-o", &log])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    log
}

/// A minute of ordinary web traffic, and one address outside that tries 1,000 ports of 10.0.0.5 and is refused.
fn scan_log() -> String {
    let mut log = String::from(
        "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status\n",
    );
    let mut line = |fields: String| log.push_str(&format!("2 123456789012 eni-1 {fields} OK\n"));
    for n in 0..30 {
        let start = 1_763_632_800 + n;
        line(format!("10.0.0.5 198.51.100.7 {} 443 6 10 4000 {start} {} ACCEPT", 40_000 + n, start + 5));
        line(format!("198.51.100.7 10.0.0.5 443 {} 6 12 9000 {start} {} ACCEPT", 40_000 + n, start + 5));
    }
    for port in 1..=1_000 {
        let start = 1_763_632_860 + port / 25;
        line(format!("203.0.113.9 10.0.0.5 55555 {port} 6 1 44 {start} {start} REJECT"));
    }
    log.push_str("2 123456789012 eni-2 - - - - - - - 1763632800 1763632860 - SKIPDATA\n");
    log.push_str("2 123456789012 eni-1 nonsense 10.0.0.5 1 2 6 1 44 1763632800 1763632800 ACCEPT OK\n");
    log
}

fn write(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_scan_is_one_anomaly_and_the_summary_tells_what_could_not_be_seen() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "vpc.log", &scan_log());
    let run = detect(&[&log]);
    assert_eq!(run.status.code(), Some(0));
    let told: Vec<Value> = text(&run.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(told.len(), 1, "{}", text(&run.stderr));
    assert_eq!((&told[0]["threat"], &told[0]["actor"]), (&"port_scan".into(), &"203.0.113.9".into()));
    assert_eq!(told[0]["targets"][0]["address"], "10.0.0.5");
    assert!(told[0]["summary"].as_str().unwrap().contains("203.0.113.9"));
    let summary = text(&run.stderr);
    for words in ["1060 records", "1 anomalies", "refused: 1 lines", "SKIPDATA"] {
        assert!(summary.contains(words), "`{words}` is missing in:\n{summary}");
    }
}

#[test]
fn the_same_input_gives_the_same_bytes_from_a_file_and_from_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "vpc.log", &scan_log());
    let first = detect(&[&log, "--format", "json"]).stdout;
    assert_eq!(first, detect(&[&log, "--format", "json"]).stdout);
    let mut piped = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(["detect", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(scan_log().as_bytes()).unwrap();
    assert_eq!(piped.wait_with_output().unwrap().stdout, detect(&[&log]).stdout);
}

#[test]
fn records_that_come_late_but_not_too_late_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let told = |name: &str, shuffle: &str| {
        let log = folder.path().join(name);
        let log = log.to_str().unwrap();
        let arguments = ["simulate", "--records", "150000", "--threats", "all:low", "--shuffle", shuffle, "--out", log];
        let made = Command::new(env!("CARGO_BIN_EXE_flowvigil")).args(arguments).output().unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        (std::fs::read(log).unwrap(), text(&detect(&[log]).stdout))
    };
    let ((ordered, first), (late, second)) = (told("ordered.log", "0"), told("late.log", "100"));
    assert!(ordered != late && first.lines().count() >= 3, "nothing to compare:\n{first}");
    assert!(first == second, "the anomalies differ:\n{first}\nand\n{second}");
}

/// Two hours of two interfaces, one behind the other.
fn by_interface() -> String {
    let line = |interface: u32, n: u32| {
        let at = 1_763_632_800 + n * 4;
        format!(
            "2 123456789012 eni-{interface} 10.0.0.{interface} 10.0.1.1 {} 443 6 9 900 {at} {at} ACCEPT OK\n",
            20_000 + n
        )
    };
    (1..=2).flat_map(|interface| (0..1_800).map(move |n| line(interface, n))).collect()
}

/// What is given on standard input.
fn through_a_pipe(arguments: &[&str], envs: &[(&str, &str)], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowvigil"));
    command.args(arguments).envs(envs.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_pipe_that_is_out_of_order_is_told_everywhere_with_its_share_and_what_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html").display().to_string();
    let run = through_a_pipe(&["detect", "--format", "json", "--report", &page, "-"], &[], &by_interface());
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let document: Value = serde_json::from_slice(&run.stdout).unwrap();
    let late = document["statistics"]["late"].as_u64().unwrap();
    assert!((1_500..1_800).contains(&late), "{late}");
    let share = format!("{late} of 3600 records ({:.2} %)", late as f64 / 36.0);
    for place in [text(&run.stderr), document["warnings"].to_string(), std::fs::read_to_string(&page).unwrap()] {
        assert!(place.contains(&share) && place.contains("set statistical.lateness to more"), "{place}");
    }

    let path = |name: &str| folder.path().join(name).display().to_string();
    let places = [path("anomalies.db"), path("snapshots"), path("checkpoints")];
    let envs = [
        ("FLOWVIGIL__API__LISTEN", "127.0.0.1:0"),
        ("FLOWVIGIL__PUBLISH__SQLITE__PATH", &places[0]),
        ("FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER", &places[1]),
        ("FLOWVIGIL__INGEST__LOCAL__CHECKPOINT", &places[2]),
    ];
    let run = through_a_pipe(&["run", "--once", "-"], &envs, &by_interface());
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let said = text(&run.stderr);
    assert!(said.contains("records come late") && said.contains(&share), "{said}");

    // A file is looked at ahead, and its windows stay open for as long.
    let run = detect(&["--format", "json", &write(folder.path(), "log", &by_interface())]);
    let document: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!((&document["statistics"]["late"], &document["warnings"]), (&Value::from(0), &Value::Array(vec![])));
}

#[test]
fn exit_codes_are_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "vpc.log", &scan_log());
    let words = write(folder.path(), "words.txt", "these are words\nand no flow log\n");
    for (arguments, code) in [
        (&[log.as_str()][..], 0),
        (&[&log, "--exit-code"], 1),
        (&[&log, "--exit-code", "--min-severity", "critical"], 0),
        (&["/nowhere/at/all"], 2),
        (&[&words], 2),
        (&[&log, "--min-severity", "terrible"], 2),
        (&[&log, "--internal", "10.0.0.300"], 2),
        (&[], 2),
    ] {
        let run = detect(arguments);
        assert_eq!(run.status.code(), Some(code), "{arguments:?}: {}", text(&run.stderr));
    }
}

#[test]
fn time_severity_and_internal_blocks_narrow_what_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "vpc.log", &scan_log());
    for (arguments, told) in [
        (&["--until", "2025-11-20T10:01:00Z"][..], false),
        (&["--since", "2025-11-20"], true),
        (&["--since", "2025-11-21"], false),
        (&["--min-severity", "critical"], false),
        (&["--internal", "10.0.0.5,10.0.0.6"], true),
    ] {
        let run = detect(&[&[log.as_str()], arguments].concat());
        assert_eq!(!run.stdout.is_empty(), told, "{arguments:?}: {}", text(&run.stderr));
    }
}

#[test]
fn a_summary_says_what_its_evidence_targets_and_sources_say() {
    let folder = tempfile::tempdir().unwrap();
    let log = simulated(folder.path(), "62", "all");
    let told = text(&detect(&[&log, "--format", "ndjson"]).stdout);
    let (mut compared, mut of_many) = (0, 0);
    for anomaly in told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let summary = anomaly["summary"].as_str().unwrap();
        assert!(!summary.contains('{'), "{summary}");
        let number = |name: &str| {
            let all = anomaly["evidence"].as_array().unwrap();
            all.iter().find(|e| e["name"] == name).map(|e| e["value"].as_f64().unwrap().round())
        };
        let words: Vec<&str> = summary.split([' ', '(', ')']).collect();
        for pair in words.windows(2) {
            let Ok(said) = pair[0].parse::<f64>() else { continue };
            let meant = match (pair[1], anomaly["threat"].as_str().unwrap()) {
                ("sources", _) => number("distinct_sources").or(number("sources")),
                ("hosts" | "peers", _) => anomaly["target_count"].as_f64(),
                ("calls", "c2_beacon") => number("calls"),
                ("ports", _) => {
                    [number("distinct_ports"), number("first_contact_failures")].into_iter().flatten().reduce(f64::max)
                }
                _ => None,
            };
            if let Some(meant) = meant {
                assert_eq!(said, meant, "{pair:?} in {anomaly:#}");
                compared += 1;
            }
        }
        assert!(!anomaly["severity_reason"].as_str().unwrap().is_empty(), "{anomaly:#}");
        if anomaly["actor"] == "many" {
            let sources = anomaly["sources"].as_array().unwrap();
            assert!(sources.len() >= 2 && sources.len() <= 20, "{anomaly:#}");
            of_many += 1;
        }
    }
    assert!(compared >= 5 && of_many >= 2, "{compared} numbers, {of_many} of many sources:\n{told}");
}

#[test]
fn an_explanation_names_numbers_thresholds_and_stages() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "vpc.log", &scan_log());
    let told = text(&detect(&[&log, "--explain", "203.0.113.9"]).stderr);
    for words in ["threshold", "corroboration passed", "port_scan/"] {
        assert!(told.contains(words), "`{words}` is missing in:\n{told}");
    }
    assert!(text(&detect(&[&log, "--explain", "192.0.2.1"]).stderr).contains("not in this log"));
}

#[test]
fn explaining_is_in_json_and_in_the_table_keeps_addresses_apart_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let log = simulated(folder.path(), "61", "port_scan,c2_beacon,tor,crypto_mining");
    let plain = detect(&[&log]);
    let lines = text(&std::fs::read(&log).unwrap());
    let sources = lines.lines().filter_map(|line| line.split(' ').nth(3)).filter(|address| address.starts_with("10."));
    let hosts: std::collections::BTreeSet<&str> = sources.collect();
    assert!(hosts.len() > 20, "{hosts:?}");
    let asked: Vec<&str> = hosts.iter().flat_map(|host| ["--explain", host]).collect();
    let explained = detect(&[&[log.as_str()][..], &asked].concat());
    assert_eq!(text(&explained.stdout), text(&plain.stdout));
    let two = ["--explain", "10.0.0.250", "--explain", *hosts.first().unwrap()];
    let json = detect(&[&[log.as_str(), "--format", "json"][..], &two].concat());
    let document: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let of = |n: usize| &document["explanations"][n];
    assert_eq!((of(0)["address"].as_str(), of(0)["seen"].is_null()), (Some("10.0.0.250"), true), "{}", of(0));
    assert_eq!((of(1)["address"].as_str(), of(1)["seen"]["ours"].as_bool()), (Some(two[3]), Some(true)), "{}", of(1));
    let table = text(&detect(&[&[log.as_str(), "--format", "table"][..], &two].concat()).stdout);
    assert!(
        table.contains("10.0.0.250\n  not in this log")
            && table.contains(&format!("{}\n  seen: a host of ours", two[3]))
    );
}

/// A session of twelve minutes with a place that no other host knows, in which the same 207 bytes are sent every minute.
fn reports_every_minute() -> String {
    let mut log = String::from(
        "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status\n",
    );
    for minute in 0..=12 {
        let start = 1_763_632_801 + 60 * minute;
        let (sent, received) = if minute == 0 { ("6 1138", "7 918") } else { ("1 247", "1 40") };
        log.push_str(&format!(
            "2 123456789012 eni-1 10.0.0.5 203.0.113.9 45000 1488 6 {sent} {start} {start} ACCEPT OK\n\
             2 123456789012 eni-1 203.0.113.9 10.0.0.5 1488 45000 6 {received} {start} {start} ACCEPT OK\n"
        ));
    }
    log
}

#[test]
fn what_else_the_evidence_allows_is_named_everywhere_with_its_share() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "vpc.log", &reports_every_minute());
    let page = folder.path().join("report.html").display().to_string();
    let run = detect(&[&log, "--report", &page]);
    let anomaly: Value = serde_json::from_slice(&run.stdout).unwrap();
    let others = anomaly["alternatives"].as_array().unwrap();
    let share = others[0]["share"].as_f64().unwrap();
    assert!(others.len() == 1 && others[0]["threat"] == "crypto_mining" && (0.1..0.5).contains(&share), "{others:?}");
    let words = format!("crypto_mining ({:.0} %)", 100.0 * share);
    assert!(anomaly["summary"].as_str().unwrap().ends_with(&format!("; the same evidence allows {words}")));
    let told = text(&detect(&[&log, "--format", "table", "--explain", "10.0.0.5"]).stdout);
    assert!(told.contains(&format!("or, by the same evidence: {words}")), "{told}");
    assert!(std::fs::read_to_string(page).unwrap().contains(&format!("Or, by the same evidence: {words}")));
    let scan = write(folder.path(), "scan.log", &scan_log());
    let alone: Value = serde_json::from_slice(&detect(&[&scan]).stdout).unwrap();
    assert!(alone.get("alternatives").is_none(), "an empty list is left out");
}

#[test]
fn every_look_at_a_channel_can_be_kept_with_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "vpc.log", &reports_every_minute());
    let kept = folder.path().join("looks.ndjson").display().to_string();
    let run = detect(&[&log, "--candidates", &kept]);
    assert_eq!(run.stdout, detect(&[&log]).stdout, "looking changes nothing");
    let looks: Vec<Value> =
        std::fs::read_to_string(&kept).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(looks.len() > 1 && looks.iter().all(|look| look["peer"] == "203.0.113.9" && look["port"] == 1_488));
    let by = |look: &Value| look["reported_by"].as_array().unwrap().contains(&"paced_session".into());
    assert!(looks.iter().any(by) && !by(&looks[0]));
    let last = looks.last().unwrap();
    assert!(last["numbers"]["others_on_port"] == 0.0 && last["numbers"]["pushed"].as_f64().unwrap() < 0.5, "{last}");
    assert!(last["fails"].as_array().unwrap().contains(&"probability".into()), "no past: {last}");
}

#[test]
fn the_report_is_one_page_that_asks_nobody_for_anything() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "vpc.log", &scan_log());
    let page = folder.path().join("report.html");
    assert!(detect(&[&log, "--report", page.to_str().unwrap()]).status.success());
    let html = std::fs::read_to_string(page).unwrap();
    for words in ["Timeline", "203.0.113.9", "Top talkers", "eni-2", "nonsense"] {
        assert!(html.contains(words), "`{words}` is missing");
    }
    for outside in ["http://", "https://", "<script", "@import", "url("] {
        assert!(!html.contains(outside), "`{outside}` points outside");
    }
}

#[test]
fn text_from_outside_is_no_markup_in_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "<b title='\"'>&.log", &scan_log());
    let page = folder.path().join("report.html");
    assert!(detect(&[&log, "--report", page.to_str().unwrap()]).status.success());
    let html = std::fs::read_to_string(page).unwrap();
    assert!(
        html.contains("&lt;b title='&quot;'&gt;&amp;.log"),
        "the name of the file that has a line too many is missing"
    );
    assert!(!html.contains("<b title"), "it is markup");
}

#[test]
fn a_run_is_scored_against_its_truth() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "vpc.log", &scan_log());
    let labels = |actor: &str| {
        let truth = format!(
            r#"{{"truth":[{{"threat":"port_scan","actor":"{actor}","target":"10.0.0.5","first":1763632860,"last":1763632900}}],"benign_hosts":["10.0.0.0/8"]}}"#
        );
        write(folder.path(), "day.labels.json", &truth)
    };
    for (actor, tp, fp, found) in [("203.0.113.9", 1, 0, 1), ("203.0.113.10", 0, 1, 0)] {
        let run = detect(&[&log, "--format", "json", "--truth", &labels(actor)]);
        let score = serde_json::from_slice::<Value>(&run.stdout).unwrap()["score"].clone();
        assert_eq!((&score["tp"], &score["fp"]), (&tp.into(), &fp.into()), "{score}");
        assert_eq!(score["found"]["port_scan"]["found"], found);
    }
}

/// With so much address space and no more, reading what `write` writes: what needs more than that fails.
fn confined(kilobytes: u32, write: impl FnOnce(&mut dyn Write)) -> Output {
    let program = env!("CARGO_BIN_EXE_flowvigil");
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -v {kilobytes}; exec {program} detect -")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    write(&mut child.stdin.take().unwrap());
    child.wait_with_output().unwrap()
}

#[test]
fn a_line_of_a_gigabyte_on_standard_input_is_refused_in_a_fraction_of_it() {
    let run = confined(512 * 1024, |input| {
        let piece = vec![b'7'; 1 << 20];
        input.write_all(scan_log().as_bytes()).unwrap();
        for _ in 0..1 << 10 {
            input.write_all(&piece).unwrap();
        }
        input.write_all(format!("\n{}", scan_log()).as_bytes()).unwrap();
    });
    let summary = text(&run.stderr);
    assert_eq!(run.status.code(), Some(0), "{summary}");
    for words in ["2120 records", "refused: 3 lines", "stdin:1064: the line has 65537 bytes or more"] {
        assert!(summary.contains(words), "`{words}` is missing in:\n{summary}");
    }
}

/// Damaged files of every format through the whole program: it says what is wrong and where, and goes on or ends with 2.
#[test]
fn damaged_input_of_every_format_is_told_and_never_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let check = |what: &str, bytes: &[u8]| {
        let path = folder.path().join("vpc.log");
        std::fs::write(&path, bytes).unwrap();
        let run = detect(&[path.to_str().unwrap()]);
        let said = text(&run.stderr);
        assert!(matches!(run.status.code(), Some(0 | 2)), "{what}: {:?}\n{said}", run.status);
        assert!(!said.contains("panicked"), "{what}:\n{said}");
        assert!(run.status.success() || said.contains("vpc.log is not a flow log: "), "{what}:\n{said}");
        (run.status.success(), said)
    };
    for (format, whole) in crate::ingest::formats() {
        let (sound, said) = check(format, &whole);
        assert!(sound && !said.contains("refused"), "{format}:\n{said}");
        let (sound, said) = check(&format!("{format}, empty"), b"");
        assert!(!sound && said.contains("it is empty"), "{said}");
        for part in [1, 4] {
            check(&format!("{format}, {part}/5 of it"), &whole[..whole.len() * part / 5]);
            let mut flipped = whole.clone();
            flipped[whole.len() * part / 5] ^= 1 << part;
            check(&format!("{format}, a bit flipped at {part}/5"), &flipped);
        }
        let mut garbage = whole[..whole.len().min(6)].to_vec();
        garbage.extend((0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8));
        let (sound, said) = check(&format!("{format}, garbage behind its first bytes"), &garbage);
        assert!(!sound, "{format}: {said}");
    }
}
