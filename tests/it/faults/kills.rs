//! A service that is killed again and again while files of a folder appear and grow.
//!
//! `FLOWVIGIL_KILLS=60 tests/run faults` kills it sixty times; without that, a few times.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::matrix::{Life, traffic};
use super::snapshots::{all_closed, assert_same};

/// Files in the folder, one after the other, each growing in its turn.
const FILES: usize = 5;

fn kills() -> usize {
    std::env::var("FLOWVIGIL_KILLS").map_or(4, |kills| kills.parse().expect("FLOWVIGIL_KILLS is a number"))
}

/// Puts the piece of this number into the folder.
fn feed(input: &Path, pieces: &[String], number: usize) {
    let file = input.join(format!("flow-{}.log", number * FILES / pieces.len()));
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
    file.write_all(pieces[number].as_bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_at_any_moment_on_a_followed_folder_leaves_what_an_undisturbed_run_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let text = traffic(folder.path());
    let kills = kills();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let pieces: Vec<String> = lines.chunks(lines.len().div_ceil(kills.max(FILES))).map(<[&str]>::concat).collect();
    let [undisturbed, killed] = ["undisturbed", "killed"].map(|name| folder.path().join(name));
    for state in [&undisturbed, &killed] {
        std::fs::create_dir_all(state.join("log")).unwrap();
    }
    (0..pieces.len()).for_each(|number| feed(&undisturbed.join("log"), &pieces, number));
    let environment = BTreeMap::new();
    let mut life = Life::following(&undisturbed.join("log"), &undisturbed, &environment, "");
    let expected = all_closed(&undisturbed, 3, &life).await;
    life.signal("TERM");
    assert_eq!(life.code(), Some(0), "{}", life.said());

    let mut random = Xoshiro256PlusPlus::seed_from_u64(kills as u64);
    let mut told: BTreeMap<String, u32> = BTreeMap::new();
    for number in 0..kills.max(pieces.len()) {
        if number < pieces.len() {
            feed(&killed.join("log"), &pieces, number);
        }
        if number < kills {
            let mut life = Life::following(&killed.join("log"), &killed, &environment, "");
            tokio::time::sleep(Duration::from_millis(random.next_u64() % 800)).await;
            life.signal("KILL");
            assert_eq!(life.code(), None);
            life.detected().into_iter().for_each(|(id, times)| *told.entry(id).or_default() += times);
        }
    }
    let mut life = Life::following(&killed.join("log"), &killed, &environment, "");
    let found = all_closed(&killed, expected.len(), &life).await;
    life.signal("TERM");
    assert_eq!(life.code(), Some(0), "{}", life.said());
    life.detected().into_iter().for_each(|(id, times)| *told.entry(id).or_default() += times);
    // Between the telling and the note that it was told, a kill makes it be told again: at least once, never another.
    assert!(told.keys().eq(found.keys()), "{told:?}");
    let again = told.values().filter(|times| **times > 1).count();
    println!("{kills} kills: {} anomalies, {again} of them announced more than once", found.len());
    assert_same(expected, found);
}
