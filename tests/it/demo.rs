//! The front door: `flowvigil demo`, as the README's first command.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_demo_names_its_page_tells_an_anomaly_and_ends_on_ctrl_c() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Demo(
        Command::new(env!("CARGO_BIN_EXE_flowvigil"))
            .args(["demo", "--speed", "2000"])
            .env("TMPDIR", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let greeting = lines.find(|line| line.contains("http://127.0.0.1:")).expect("an address to open");
    let address = greeting.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();
    let page = ureq::get(&address).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(page.contains("<title>flowvigil</title>"), "{page}");

    let first = lines.find(|line| line.starts_with("20")).expect("an anomaly");
    let shown = ureq::get(format!("{address}/v1/anomalies")).call().unwrap().body_mut().read_to_string().unwrap();
    let summary = first.split_whitespace().last().unwrap();
    assert!(shown.contains(summary), "`{first}` is not among {shown}");

    assert!(Command::new("kill").arg("-INT").arg(demo.0.id().to_string()).status().unwrap().success());
    // What is still told on the way out is read, so that the demo is not held by a full pipe.
    lines.for_each(drop);
    assert_eq!(demo.0.wait().unwrap().code(), Some(0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was left behind");
}

#[test]
fn the_demo_ends_by_itself_when_told_for_how_long() {
    let output = Command::new(env!("CARGO_BIN_EXE_flowvigil")).args(["demo", "--for", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
