use super::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Thing {
    name: u32,
    seen: u32,
}

impl Entry for Thing {
    type Key = u32;

    fn key(&self) -> u32 {
        self.name
    }

    fn last_seen(&self) -> EventTime {
        EventTime(self.seen)
    }
}

fn seed() -> foldhash::fast::FixedState {
    foldhash::fast::FixedState::with_seed(7)
}

/// A table with these things in it, by name and time.
fn table(cap: u32, things: impl IntoIterator<Item = (u32, u32)>) -> Table<Thing> {
    let mut table = Table::new(cap);
    for (name, seen) in things {
        table.entry(&seed(), name, || Thing { name, seen });
    }
    table
}

fn names(table: &Table<Thing>) -> Vec<u32> {
    let mut names: Vec<u32> = table.iter().map(|thing| thing.name).collect();
    names.sort_unstable();
    // Each is found, and nothing else is.
    for name in 0..200 {
        assert_eq!(table.get(&seed(), name).is_some(), names.contains(&name), "{name}");
    }
    names
}

#[test]
fn what_was_put_in_is_found_and_made_once() {
    let mut table = Table::new(10);
    assert!(table.is_empty() && table.get(&seed(), 1).is_none() && table.get_mut(&seed(), 1).is_none());
    let (_, made) = table.entry_or_insert(&seed(), 1, || Thing { name: 1, seen: 5 });
    assert!(made);
    let (thing, made) = table.entry_or_insert(&seed(), 1, || Thing { name: 1, seen: 9 });
    assert_eq!((thing.seen, made), (5, false));
    table.get_mut(&seed(), 1).unwrap().seen = 6;
    assert_eq!(table.get(&seed(), 1), Some(&Thing { name: 1, seen: 6 }));
    assert_eq!((table.len(), table.is_empty(), table.evicted()), (1, false, 0));
}

#[test]
fn at_its_cap_it_forgets_the_quarter_that_was_silent_the_longest_and_of_equals_the_lower_keys() {
    let full = table(8, [(1, 80), (2, 10), (3, 70), (4, 20), (5, 20), (6, 60), (7, 50), (8, 40)]);
    assert_eq!((names(&full), full.evicted()), ((1..=8).collect(), 0));
    let mut full = full;
    full.entry(&seed(), 9, || Thing { name: 9, seen: 90 });
    assert_eq!((names(&full), full.evicted()), (vec![1, 3, 5, 6, 7, 8, 9], 2));
    full.entry(&seed(), 10, || Thing { name: 10, seen: 91 });
    assert_eq!((full.len(), full.evicted()), (8, 2), "there is room now");
    full.entry(&seed(), 11, || Thing { name: 11, seen: 92 });
    assert_eq!((names(&full), full.evicted()), (vec![1, 3, 6, 7, 9, 10, 11], 4));
}

#[test]
fn it_holds_four_at_least() {
    let mut small = table(0, [(1, 1), (2, 2), (3, 3), (4, 4)]);
    assert_eq!((names(&small), small.evicted()), (vec![1, 2, 3, 4], 0));
    small.entry(&seed(), 5, || Thing { name: 5, seen: 5 });
    assert_eq!((names(&small), small.evicted()), (vec![2, 3, 4, 5], 1));
    let mut other = table(100, (0..6).map(|n| (n, n)));
    other.set_cap(0);
    other.entry(&seed(), 6, || Thing { name: 6, seen: 6 });
    assert_eq!(names(&other), [1, 2, 3, 4, 5, 6], "over its new cap it forgets a quarter at a time");
    let mut wide = table(4, [(1, 1), (2, 2), (3, 3), (4, 4)]);
    wide.set_cap(5);
    wide.entry(&seed(), 5, || Thing { name: 5, seen: 5 });
    assert_eq!((wide.len(), wide.evicted()), (5, 0));
}

#[test]
fn what_is_let_go_is_gone_and_not_counted_as_evicted() {
    let mut table = table(100, (0..50).map(|n| (n, n)));
    table.retain(&seed(), |thing| thing.name % 3 == 0);
    assert_eq!(names(&table), (0..50).filter(|n| n % 3 == 0).collect::<Vec<_>>());
    assert_eq!(table.evicted(), 0);
    table.retain(&seed(), |_| true);
    assert_eq!(table.len(), 17);
}

#[test]
fn a_table_from_a_snapshot_finds_its_entries_under_any_seed() {
    let before = table(100, (0..50).map(|n| (n, n)));
    let bytes = postcard::to_stdvec(&before).unwrap();
    let mut after: Table<Thing> = postcard::from_bytes(&bytes).unwrap();
    let other = foldhash::fast::FixedState::with_seed(8);
    assert!(after.get(&other, 1).is_none(), "the index is not in the snapshot");
    after.reindex(&other);
    assert!((0..50).all(|n| after.get(&other, n) == before.get(&seed(), n)));
    assert!(after.get(&other, 50).is_none());
}
