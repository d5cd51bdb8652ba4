//! Input that cannot be read, comes too late, or is dated where no record can be: `/health/ready` says so for as long as that lasts.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::matrix::Life;
use crate::service::soon;

/// So many lines of ordinary traffic, a second apart, the first at `from`.
fn lines(from: u64, count: u64) -> String {
    let line = |n: u64| {
        let (at, port) = (from + n, 40_000 + n % 20_000);
        format!("2 123456789012 eni-00000000000000001 10.0.0.9 10.0.0.8 {port} 443 6 10 5000 {at} {at} ACCEPT OK\n")
    };
    (0..count).map(line).collect()
}

fn append(file: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn allow(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A moment in 2026.
const START: u64 = 1_790_000_000;

#[test]
fn a_file_that_may_not_be_read_is_read_when_it_may_and_is_told_until_then() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("log");
    std::fs::create_dir(&input).unwrap();
    append(&input.join("open.log"), &lines(START, 50));
    let closed = input.join("closed.log");
    append(&closed, &lines(START + 10, 70));
    // Root may read everything, so that somebody else reads.
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    let prefix = "exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$0\" \"$@\";";
    if is_root
        && !Command::new("setpriv")
            .args(["--reuid=65534", env!("CARGO_BIN_EXE_flowvigil"), "--version"])
            .status()
            .is_ok_and(|s| s.success())
    {
        println!("skipped: root may read everything, and there is no setpriv with which to be somebody else");
        return;
    }
    allow(folder.path(), 0o777);
    allow(&closed, 0o000);
    let begin = |prefix: &str| Life::following(&input, folder.path(), &BTreeMap::new(), prefix);
    let prefix = if is_root { prefix } else { "" };
    let mut life = begin(prefix);
    let reason = |life: &Life| life.degraded().remove("files").unwrap_or_default();
    assert!(soon(|| reason(&life).contains("closed.log")), "{:?}\n{}", life.degraded(), life.said());
    assert!(soon(|| life.records() == 50), "{}", life.records());
    // It is told after a restart as well.
    life.signal("TERM");
    assert_eq!(life.code(), Some(0), "{}", life.said());
    let mut life = begin(prefix);
    assert!(soon(|| reason(&life).contains("tried again until it can be read")), "{:?}", life.degraded());
    allow(&closed, 0o644);
    assert!(soon(|| life.records() == 70), "{}\n{}", life.records(), life.said());
    assert!(soon(|| !life.degraded().contains_key("files")), "{:?}", life.degraded());
    life.signal("TERM");
    assert_eq!(life.code(), Some(0), "{}", life.said());
}

#[test]
fn records_that_come_too_late_or_from_the_future_are_told_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flow.log");
    append(&file, &lines(START, 2_000));
    let life = Life::start(folder.path(), &BTreeMap::new(), "");
    assert!(soon(|| life.records() == 2_000), "{}\n{}", life.records(), life.said());
    let degraded = |part: &str| life.degraded().remove(part).unwrap_or_default();
    assert_eq!((degraded("lateness"), degraded("event_time")), (String::new(), String::new()));
    // Half an hour behind what was read.
    append(&file, &lines(START + 100, 200));
    assert!(soon(|| degraded("lateness").contains("came after their window had closed")), "{:?}", life.degraded());
    // In 2100, by one line.
    append(&file, &lines(4_102_444_800, 1));
    append(&file, &lines(START + 2_000, 2_000));
    assert!(soon(|| degraded("event_time").contains("ahead of all others")), "{:?}", life.degraded());
    // What is in time is not late for that one line: the next ten thousand are in order, and it is over.
    append(&file, &lines(START + 4_000, 30_000));
    assert!(soon(|| degraded("lateness").is_empty() && degraded("event_time").is_empty()), "{:?}", life.degraded());
}

#[test]
fn records_that_are_hours_from_the_clock_are_seen_until_they_are_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flow.log");
    append(&file, &lines(START, 300));
    let hours = ("FLOWVIGIL__PIPELINE__CLOCK_GAP_MAX".to_owned(), "3h".to_owned());
    let life = Life::start(folder.path(), &BTreeMap::from([hours]), "");
    let clock = || life.degraded().remove("clock").unwrap_or_default();
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
    let side = if now > START { "h behind this machine's clock" } else { "h ahead of this machine's clock" };
    assert!(soon(|| clock().contains(side)), "{:?}\n{}", life.degraded(), life.said());
    append(&file, &lines(now - 2_000, 2_000));
    assert!(soon(|| clock().is_empty()), "{:?}", life.degraded());
}
