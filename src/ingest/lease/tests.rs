use super::*;

use proptest::prelude::*;

const F: Duration = Duration::from_secs(10);
const POLICY: Policy = Policy { failover: F, leases_max: usize::MAX, steal_max: 1 };

fn shard(id: &str, parents: &[&str], open: bool) -> ShardInfo {
    let parents = parents.iter().map(|p| (*p).to_owned()).collect();
    ShardInfo { id: id.to_owned(), parents, hashes: (0, u128::MAX), open }
}

fn lease(key: &str, owner: Option<&str>, counter: u64) -> Lease {
    Lease { owner: owner.map(str::to_owned), counter, ..Lease::new(&shard(key, &[], true), Checkpoint::TrimHorizon) }
}

fn at(checkpoint: &str, parents: &[&str], key: &str) -> Lease {
    Lease::new(&shard(key, parents, true), Checkpoint::parse(checkpoint, 0))
}

fn random() -> Random {
    Random::seeded(7)
}

fn keys(leases: &[Lease]) -> Vec<&str> {
    leases.iter().map(|l| l.key.as_str()).collect()
}

#[test]
fn the_first_worker_takes_everything() {
    let leases: Vec<Lease> = (0..5).map(|i| lease(&format!("s{i}"), None, 0)).collect();
    let mut observer = Observer::default();
    observer.observe(&leases, Duration::ZERO);
    assert_eq!(observer.choose(&leases, "a", Duration::ZERO, &POLICY, &mut random()).len(), 5);
}

#[test]
fn a_lease_whose_counter_moves_is_left_alone() {
    let mut observer = Observer::default();
    for step in 0..10_u64 {
        let now = F * step as u32;
        let leases = [lease("s0", Some("other"), step)];
        observer.observe(&leases, now);
        assert!(observer.choose(&leases, "a", now, &POLICY, &mut random()).is_empty());
    }
}

#[test]
fn a_lease_whose_counter_stands_still_is_taken_after_the_failover_time_and_not_before() {
    let leases = [lease("s0", Some("dead"), 3)];
    let mut observer = Observer::default();
    observer.observe(&leases, Duration::ZERO);
    assert!(observer.choose(&leases, "a", F, &POLICY, &mut random()).is_empty());
    observer.observe(&leases, F + EPSILON);
    assert_eq!(observer.choose(&leases, "a", F + EPSILON, &POLICY, &mut random()).len(), 1);
}

#[test]
fn a_worker_without_leases_steals_one_at_a_time_from_the_richest() {
    let leases: Vec<Lease> = (0..4).map(|i| lease(&format!("s{i}"), Some("rich"), 1)).collect();
    let mut observer = Observer::default();
    observer.observe(&leases, Duration::ZERO);
    assert_eq!(observer.choose(&leases, "poor", Duration::ZERO, &POLICY, &mut random()).len(), 1);
}

#[test]
fn a_completed_lease_is_neither_taken_nor_counted() {
    let leases = [at("SHARD_END", &[], "s0"), lease("s1", None, 0)];
    let mut observer = Observer::default();
    observer.observe(&leases, Duration::ZERO);
    let chosen = observer.choose(&leases, "a", Duration::ZERO, &POLICY, &mut random());
    assert_eq!(chosen.iter().map(|l| l.key.as_str()).collect::<Vec<_>>(), ["s1"]);
}

#[test]
fn a_new_stream_is_begun_where_the_settings_say() {
    let shards = [shard("old", &[], false), shard("new", &["old"], true)];
    assert_eq!(missing(&shards, &[], Start::TrimHorizon).len(), 2);
    let latest = missing(&shards, &[], Start::Latest);
    assert_eq!(keys(&latest), ["new"]);
    assert_eq!(latest[0].checkpoint, Checkpoint::Latest);
}

#[test]
fn a_child_starts_at_its_beginning_even_where_streams_are_begun_at_the_latest_record() {
    let shards = [shard("p", &[], false), shard("c1", &["p"], true), shard("c2", &["p"], true)];
    let made = missing(&shards, &[at("49", &[], "p")], Start::Latest);
    assert_eq!(keys(&made), ["c1", "c2"]);
    assert!(made.iter().all(|l| l.checkpoint == Checkpoint::TrimHorizon));
}

#[test]
fn a_shard_that_was_read_and_cleaned_up_does_not_come_back() {
    let shards = [shard("g", &[], false), shard("p", &["g"], false), shard("c", &["p"], true)];
    assert!(missing(&shards, &[at("51", &["p"], "c")], Start::TrimHorizon).is_empty());
}

#[test]
fn a_child_waits_for_both_parents_of_a_merge() {
    let child = at("TRIM_HORIZON", &["a", "b"], "c");
    let done = at("SHARD_END", &[], "a");
    assert!(!may_start(&child, &[done.clone(), at("49", &[], "b"), child.clone()]));
    assert!(may_start(&child, &[done.clone(), at("SHARD_END", &[], "b"), child.clone()]));
    assert!(may_start(&child, &[done, child.clone()]), "a lease that was cleaned up was complete");
}

#[test]
fn the_child_of_a_merge_gets_no_lease_while_a_parent_waits_for_its_own() {
    // 3 continues 0 and 1, which are being read; 4 continues 2, which has ended, and 3.
    let child = shard("4", &["2", "3"], true);
    let shards = [shard("2", &[], false), shard("3", &["0", "1"], false), child.clone()];
    let ended = at("SHARD_END", &[], "2");
    let read = [at("49", &[], "0"), at("49", &[], "1"), ended.clone()];
    assert!(!may_be_made(&child, &read, &shards));
    let made = at("TRIM_HORIZON", &["0", "1"], "3");
    assert!(may_be_made(&child, &[ended.clone(), made], &shards), "and is not read before 3 has ended");
    assert!(may_be_made(&child, &[ended], &[shard("2", &[], false), child.clone()]), "the stream has forgotten 3");
}

#[test]
fn a_completed_lease_is_removed_only_after_its_children_have_begun() {
    let shards = [shard("p", &[], false), shard("c1", &["p"], true), shard("c2", &["p"], true)];
    let parent = at("SHARD_END", &[], "p");
    let begun = at("50", &["p"], "c1");
    let leases = [parent.clone(), begun.clone(), at("TRIM_HORIZON", &["p"], "c2")];
    assert!(removable(&leases, &shards).is_empty());
    let leases = [parent, begun, at("50", &["p"], "c2")];
    assert_eq!(removable(&leases, &shards).iter().map(|l| l.key.as_str()).collect::<Vec<_>>(), ["p"]);
}

#[test]
fn checkpoints_are_written_as_they_are_read() {
    for text in ["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP", "SHARD_END", "49680000000000000000000000000000000000001"] {
        assert_eq!(Checkpoint::parse(text, 0).to_string(), text);
    }
}

/// A fleet on one table: what the conditional writes of the backend do, without the network.
struct Fleet {
    table: Vec<Lease>,
    workers: Vec<(String, Observer, HashMap<String, u64>, bool)>,
    random: Random,
}

impl Fleet {
    fn new(shards: usize, workers: usize, seed: u64) -> Fleet {
        Fleet {
            table: (0..shards).map(|i| lease(&format!("s{i}"), None, 0)).collect(),
            workers: (0..workers).map(|i| (format!("w{i}"), Observer::default(), HashMap::new(), true)).collect(),
            random: Random::seeded(seed),
        }
    }

    /// One living worker renews what it holds, then looks for more.
    fn round(&mut self, worker: usize, now: Duration) {
        let (name, observer, held, alive) = &mut self.workers[worker];
        if !*alive {
            return;
        }
        for lease in &mut self.table {
            if let Some(counter) = held.get_mut(&lease.key) {
                if *counter == lease.counter {
                    lease.counter += 1;
                    *counter += 1;
                } else {
                    held.remove(&lease.key);
                }
            }
        }
        observer.observe(&self.table, now);
        let chosen: Vec<(String, u64)> = observer
            .choose(&self.table, name, now, &POLICY, &mut self.random)
            .into_iter()
            .map(|l| (l.key.clone(), l.counter))
            .collect();
        for (key, counter) in chosen {
            let lease = self.table.iter_mut().find(|l| l.key == key).unwrap();
            if lease.counter == counter {
                lease.counter += 1;
                lease.owner = Some(name.clone());
                held.insert(key, counter + 1);
            }
        }
    }

    fn loads(&self) -> Vec<usize> {
        let living = self.workers.iter().filter(|w| w.3);
        living.map(|w| self.table.iter().filter(|l| l.owner.as_deref() == Some(&w.0)).count()).collect()
    }
}

proptest! {
    #[test]
    fn a_fleet_shares_every_lease_among_the_living_and_settles(
        shards in 1_usize..24, workers in 1_usize..6, seed: u64, dead in prop::collection::vec(any::<bool>(), 6),
    ) {
        let mut fleet = Fleet::new(shards, workers, seed);
        let rounds = 6 * (shards + workers) as u32;
        for round in 0..rounds {
            for worker in 0..workers {
                fleet.round(worker, F / 2 * round);
            }
        }
        let loads = fleet.loads();
        prop_assert_eq!(loads.iter().sum::<usize>(), shards);
        prop_assert!(loads.iter().max().unwrap() <= &(shards.div_ceil(workers)), "{:?}", loads);
        let settled = fleet.table.iter().map(|l| l.owner.clone()).collect::<Vec<_>>();
        for worker in 0..workers {
            fleet.round(worker, F / 2 * rounds);
        }
        prop_assert_eq!(settled, fleet.table.iter().map(|l| l.owner.clone()).collect::<Vec<_>>(), "no lease wanders");

        // Some die; the rest take over, and what two of them believe to hold is never the same lease.
        for (worker, dies) in fleet.workers.iter_mut().skip(1).zip(&dead) {
            worker.3 = !dies;
        }
        for round in rounds + 1..3 * rounds {
            for worker in 0..workers {
                fleet.round(worker, F / 2 * round);
            }
            for lease in &fleet.table {
                let holders = fleet.workers.iter().filter(|w| w.3 && w.2.get(&lease.key) == Some(&lease.counter)).count();
                prop_assert!(holders <= 1);
            }
        }
        prop_assert_eq!(fleet.loads().iter().sum::<usize>(), shards);
    }
}
