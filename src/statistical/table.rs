//! A bounded table: a dense slab of entries behind a compact index.
//!
//! The slab holds entries without gaps, so memory is what the entries need and a sweep is linear; the index is five
//! bytes an entry. At its cap a table forgets the entries that were silent the longest, a quarter at a time. Which
//! entries go depends on their age and key alone, never on hash order, so that two runs forget the same ones.

use std::hash::{BuildHasher, Hash};

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use super::pane::prefetch;
use crate::flow::EventTime;

/// What a table must know of an entry to forget the right one.
pub trait Entry {
    /// What it is found by.
    type Key: Copy + Eq + Ord + Hash;

    /// Its key.
    fn key(&self) -> Self::Key;

    /// When it last mattered; the earliest goes first.
    fn last_seen(&self) -> EventTime;
}

/// The table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound(serialize = "E: Serialize", deserialize = "E: Deserialize<'de>"))]
pub struct Table<E: Entry> {
    entries: Vec<E>,
    #[serde(skip)]
    index: HashTable<u32>,
    cap: u32,
    evicted: u64,
}

impl<E: Entry> Table<E> {
    /// An empty table that holds at most `cap` entries.
    pub fn new(cap: u32) -> Table<E> {
        Table { entries: Vec::new(), index: HashTable::new(), cap: cap.max(4), evicted: 0 }
    }

    /// Entries now held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries forgotten for want of room, so far.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// All entries, in no defined order.
    pub fn iter(&self) -> impl Iterator<Item = &E> {
        self.entries.iter()
    }

    /// The entry of a key.
    #[inline]
    pub fn get(&self, seed: &foldhash::fast::FixedState, key: E::Key) -> Option<&E> {
        let at = *self.index.find(seed.hash_one(key), |&at| self.entries[at as usize].key() == key)?;
        Some(&self.entries[at as usize])
    }

    /// Asks for the memory of an entry that is looked up soon, several of them at once.
    #[inline]
    pub fn approach(&self, seed: &foldhash::fast::FixedState, key: E::Key) {
        let ask = |&at: &u32| {
            let entry = self.entries.as_ptr().wrapping_add(at as usize);
            prefetch(entry);
            prefetch(entry.wrapping_byte_add(size_of::<E>().min(64)));
            false
        };
        self.index.find(seed.hash_one(key), ask);
    }

    /// The entry of a key, to be changed.
    #[inline]
    pub fn get_mut(&mut self, seed: &foldhash::fast::FixedState, key: E::Key) -> Option<&mut E> {
        let at = *self.index.find(seed.hash_one(key), |&at| self.entries[at as usize].key() == key)?;
        Some(&mut self.entries[at as usize])
    }

    /// The entry of a key, made by `new` where there is none. May forget others to make room.
    #[inline]
    pub fn entry(&mut self, seed: &foldhash::fast::FixedState, key: E::Key, new: impl FnOnce() -> E) -> &mut E {
        self.entry_or_insert(seed, key, new).0
    }

    /// The same, and whether it was made.
    #[inline]
    pub fn entry_or_insert(
        &mut self,
        seed: &foldhash::fast::FixedState,
        key: E::Key,
        new: impl FnOnce() -> E,
    ) -> (&mut E, bool) {
        let hash = seed.hash_one(key);
        let found = self.index.find(hash, |&at| self.entries[at as usize].key() == key);
        let (at, made) = match found {
            Some(&at) => (at as usize, false),
            None => (self.insert(seed, hash, new()), true),
        };
        (&mut self.entries[at], made)
    }

    /// The same, where an entry is made only if `may` says so.
    #[inline]
    pub fn entry_if(
        &mut self,
        seed: &foldhash::fast::FixedState,
        key: E::Key,
        may: impl FnOnce() -> bool,
        new: impl FnOnce() -> E,
    ) -> Option<&mut E> {
        let hash = seed.hash_one(key);
        let found = self.index.find(hash, |&at| self.entries[at as usize].key() == key);
        let at = match found {
            Some(&at) => at as usize,
            None => may().then(|| self.insert(seed, hash, new()))?,
        };
        Some(&mut self.entries[at])
    }

    /// Forgets all entries, without counting them as evicted. Keeps as much memory as twice as many need.
    pub fn clear(&mut self) {
        let used = self.entries.len();
        self.index.clear();
        self.entries.clear();
        self.entries.shrink_to(2 * used);
    }

    #[cold]
    fn insert(&mut self, seed: &foldhash::fast::FixedState, hash: u64, entry: E) -> usize {
        if self.entries.len() >= self.cap as usize {
            self.forget_oldest(seed);
        }
        let at = self.entries.len();
        self.entries.push(entry);
        let entries = &self.entries;
        self.index.insert_unique(hash, at as u32, |&other| seed.hash_one(entries[other as usize].key()));
        at
    }

    /// Takes an entry out.
    pub fn take(&mut self, seed: &foldhash::fast::FixedState, key: E::Key) -> Option<E> {
        let entries = &self.entries;
        let found = self.index.find_entry(seed.hash_one(key), |&at| entries[at as usize].key() == key);
        let at = found.ok()?.remove().0 as usize;
        let last = self.entries.len() - 1;
        // The last entry moves into the gap.
        let moved = seed.hash_one(self.entries[last].key());
        if let Some(place) = self.index.find_mut(moved, |&place| place as usize == last) {
            *place = at as u32;
        }
        Some(self.entries.swap_remove(at))
    }

    /// Takes in another table's entries; `join` brings together what both have.
    pub fn absorb(&mut self, seed: &foldhash::fast::FixedState, other: Table<E>, mut join: impl FnMut(&mut E, E)) {
        self.evicted += other.evicted;
        for entry in other.entries {
            let key = entry.key();
            match self.get_mut(seed, key) {
                Some(known) => join(known, entry),
                None => {
                    self.insert(seed, seed.hash_one(key), entry);
                }
            }
        }
    }

    /// Changes every entry, its key as well; keys must stay distinct.
    pub fn change_all(&mut self, seed: &foldhash::fast::FixedState, change: impl FnMut(&mut E)) {
        self.entries.iter_mut().for_each(change);
        self.reindex(seed);
    }

    /// Forgets the oldest quarter.
    pub fn shrink(&mut self, seed: &foldhash::fast::FixedState) {
        if !self.is_empty() {
            self.forget_oldest(seed);
        }
    }

    /// Forgets entries for which `keep` says no, without counting them as evicted.
    pub fn retain(&mut self, seed: &foldhash::fast::FixedState, keep: impl FnMut(&E) -> bool) {
        let before = self.entries.len();
        self.entries.retain(keep);
        if self.entries.len() != before {
            self.reindex(seed);
        }
    }

    fn forget_oldest(&mut self, seed: &foldhash::fast::FixedState) {
        let goes = (self.entries.len() / 4).max(1);
        let mut ages: Vec<(EventTime, E::Key)> = self.entries.iter().map(|e| (e.last_seen(), e.key())).collect();
        let (_, &mut last_to_go, _) = ages.select_nth_unstable(goes - 1);
        self.entries.retain(|e| (e.last_seen(), e.key()) > last_to_go);
        self.evicted += goes as u64;
        self.reindex(seed);
    }

    /// Builds the index from the entries: after forgetting, and after a snapshot was read.
    pub fn reindex(&mut self, seed: &foldhash::fast::FixedState) {
        let entries = &self.entries;
        self.index.clear();
        self.index.reserve(entries.len(), |&other| seed.hash_one(entries[other as usize].key()));
        for (at, entry) in entries.iter().enumerate() {
            self.index.insert_unique(seed.hash_one(entry.key()), at as u32, |&other| {
                seed.hash_one(entries[other as usize].key())
            });
        }
    }

    /// Sets the cap of a table that came from a snapshot taken under other settings.
    pub fn set_cap(&mut self, cap: u32) {
        self.cap = cap.max(4);
    }
}

#[cfg(test)]
mod tests;
