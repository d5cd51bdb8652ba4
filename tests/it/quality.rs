//! Detection quality on labelled real traffic, where it is at hand: `tests/quality.py` prints the whole table.

use std::path::PathBuf;
use std::process::Command;

#[test]
fn the_labelled_sets_are_judged_alike_by_both_judges() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let data = std::env::var_os("FLOWVIGIL_DATASETS").map_or_else(|| root.join("../shared/datasets"), PathBuf::from);
    if !data.join("score.py").exists() {
        eprintln!("skipped: no labelled sets in {}; name their folder with FLOWVIGIL_DATASETS", data.display());
        return;
    }
    let run = Command::new("python3")
        .arg(root.join("tests/quality.py"))
        .args(["--binary", env!("CARGO_BIN_EXE_flowvigil")])
        .env("FLOWVIGIL_DATASETS", &data)
        .output()
        .unwrap();
    let (table, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    println!("{table}");
    assert!(run.status.success(), "{errors}");
    for goal in ["port_scan       25/25", "ddos              2/2", "crypto_mining     4/4", "c2_beacon         3/4"] {
        assert!(table.contains(goal), "`{goal}` is missing in:\n{table}");
    }
    let benign = table.lines().find(|line| line.contains("benign sets:")).unwrap();
    assert!(benign.contains(" 0 false") || benign.contains(" 1 false"), "{benign}");
}
