//! Shard invariance: what the same traffic comes to on one shard, on five keyed by interface, and on five keyed at random.
//!
//! Each engine sees the records of its shard alone, and tier 3 puts the shards together. Keyed by interface everything is the
//! same, and so are, whatever the keys are, the scans of one scanner, which come of counting. What is timed (beacons, miners), and
//! who is behind a NAT gateway, needs what one interface logs in one shard. The differences are printed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_config::SdkConfig;

use crate::crash::{Told, World, settled};
use crate::servers::aws;

/// A stretch of a simulated VPC, and behind it, on every shard, lines two days later.
fn traffic(folder: &Path) -> PathBuf {
    let log = folder.join("vpc.log");
    let made = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(["simulate", "--seed", "7", "--duration", "20m", "--hosts", "8"])
        .args(["--threats", "port_scan,c2_beacon,crypto_mining,tor", "--no-header", "-o"])
        .arg(&log)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut text = std::fs::read_to_string(&log).unwrap();
    let last = text.lines().filter_map(|l| l.split(' ').nth(11)?.parse::<u64>().ok()).max().unwrap();
    let (start, end) = (last + 172_800, last + 172_830);
    for number in 0..256 {
        text.push_str(&format!(
            "2 123456789012 eni-{number:017x} 10.0.0.9 10.0.0.8 40000 443 6 10 5000 {start} {end} ACCEPT OK\n"
        ));
    }
    std::fs::write(&log, text).unwrap();
    log
}

/// Threat and actor of what was told; how often.
fn about(told: &Told) -> BTreeMap<String, usize> {
    let mut about = BTreeMap::new();
    for body in told.values() {
        let text = |field: &str| body[field].as_str().unwrap().to_owned();
        *about.entry(format!("{} by {}", text("threat"), text("actor"))).or_default() += 1;
    }
    about
}

async fn on(aws: &SdkConfig, log: &Path, shards: i32, key: &str) -> Told {
    let world = World::new(aws, shards, 10_000, 0).await;
    tokio::task::block_in_place(|| world.feed(log, key));
    settled(&world, &mut [world.task()]).await
}

/// The NAT gateway of that VPC. Keyed at random its two legs of a conversation part, and it looks like a host that does itself
/// what it passes on.
const GATEWAY: &str = "port_scan by 10.176.0.6";

/// What one scanner did, by scanner; a scan by many is put together from what only one engine sees whole.
fn scans(told: &Told) -> BTreeSet<String> {
    about(told).into_keys().filter(|story| story.starts_with("port_scan") && !story.ends_with("many")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_shard_and_five_by_interface_tell_the_same_and_scans_are_told_alike_however_they_are_keyed() {
    let Some(aws) = aws().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let log = traffic(folder.path());
    let one = on(&aws, &log, 1, "interface").await;
    let interface = on(&aws, &log, 5, "interface").await;
    let random = on(&aws, &log, 5, "random").await;
    for (name, told) in [("five by interface", &interface), ("five at random", &random)] {
        let (here, there) = (about(told), about(&one));
        let more: Vec<&String> = here.keys().filter(|story| !there.contains_key(*story)).collect();
        let less: Vec<&String> = there.keys().filter(|story| !here.contains_key(*story)).collect();
        println!("{name}: {} told, one shard {}; more {more:?}, less {less:?}", told.len(), one.len());
    }
    assert!(scans(&one).len() > 3, "{:?}", about(&one));
    let stories = |told: &Told| about(told).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(stories(&interface), stories(&one), "keyed by interface");
    let own = |scans: BTreeSet<String>| scans.into_iter().filter(|scan| scan != GATEWAY).collect::<BTreeSet<_>>();
    assert_eq!(own(scans(&random)), scans(&one), "keyed at random");
}
