//! The names behind interface numbers, one table per shard.
//!
//! Every record names its interface and account in text; the engine wants a number. Looking that text up is a random
//! memory access per record, so the common case is one cache line: a table of `account interface` pairs as lines spell
//! them, with the whole text inline, compared exactly. What it does not hold (longer pairs, more than a quarter of a
//! million of them) goes to a hash table over the names themselves.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::flow::simd::hints;
use crate::flow::{Interface, InterfaceId};

/// Longest `account` + `interface` text that a slot holds inline; a real pair is 12 + 21 bytes.
const INLINE: usize = 56;

/// Slots at the start, and the most there are (32 MiB, for a quarter of a million interfaces); always a power of two.
const SLOTS_MIN: usize = 1 << 10;
const SLOTS_MAX: usize = 1 << 19;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Slot {
    text: [u8; INLINE],
    account_len: u8,
    name_len: u8,
    used: bool,
    id: u32,
}

const EMPTY: Slot = Slot { text: [0; INLINE], account_len: 0, name_len: 0, used: false, id: 0 };

impl Slot {
    fn new(account: &[u8], name: &[u8], id: InterfaceId) -> Slot {
        let lengths = (account.len() as u8, name.len() as u8);
        let mut slot = Slot { account_len: lengths.0, name_len: lengths.1, used: true, id: id.0, ..EMPTY };
        slot.text[..account.len()].copy_from_slice(account);
        slot.text[account.len()..account.len() + name.len()].copy_from_slice(name);
        slot
    }

    #[inline]
    fn is(&self, account: &[u8], name: &[u8]) -> bool {
        usize::from(self.account_len) == account.len()
            && usize::from(self.name_len) == name.len()
            && equal(self.name(), name)
            && equal(self.account(), account)
    }

    fn account(&self) -> &[u8] {
        &self.text[..usize::from(self.account_len)]
    }

    fn name(&self) -> &[u8] {
        &self.text[usize::from(self.account_len)..][..usize::from(self.name_len)]
    }
}

/// Interns (account, interface) pairs; ids count up from 1 in order of first sight.
pub struct Interfaces {
    hasher: FixedState,
    /// Open addressing, at most half full: what a line says, as it says it.
    slots: Vec<Slot>,
    filled: usize,
    /// Indexes into `known`, for pairs that are longer or more than the slots hold.
    table: HashTable<u32>,
    known: Vec<Interface>,
    /// How many of `known` were already handed out by [`Interfaces::take_new`].
    told: usize,
    cap: usize,
    overflowed: u64,
}

impl Interfaces {
    /// An empty table that names at most `cap` interfaces; further ones get id 0 and are counted.
    pub fn new(cap: usize) -> Interfaces {
        Interfaces {
            hasher: FixedState::default(),
            slots: vec![EMPTY; SLOTS_MIN],
            filled: 0,
            table: HashTable::new(),
            known: Vec::new(),
            told: 0,
            cap,
            overflowed: 0,
        }
    }

    /// Takes over numbers given by an earlier life of the shard (a restored snapshot). They are not told again.
    ///
    /// A list whose ids are not 1, 2, 3, … is from elsewhere; what follows the first gap is not taken over.
    pub fn adopt(&mut self, known: &[Interface]) {
        *self = Interfaces::new(self.cap);
        for interface in known {
            if interface.id.0 as usize != self.known.len() + 1 {
                break;
            }
            self.insert(interface.account.as_bytes(), interface.name.as_bytes());
        }
        self.told = self.known.len();
    }

    /// The number of an interface. Both texts as they stand in the log: `-` and `unknown` mean absent.
    #[inline]
    pub fn intern(&mut self, account: &[u8], name: &[u8]) -> InterfaceId {
        self.intern_hashed(account, name, hash(account, name))
    }

    /// The first half of [`Interfaces::intern`]: fetches the slot into the cache, for use some records later.
    #[inline]
    pub(crate) fn prefetch(&self, account: &[u8], name: &[u8]) -> u64 {
        let hash = hash(account, name);
        hints::prefetch(&raw const self.slots[hash as usize & (self.slots.len() - 1)]);
        hash
    }

    /// The second half of [`Interfaces::intern`], with what [`Interfaces::prefetch`] gave.
    #[inline]
    pub(crate) fn intern_hashed(&mut self, account: &[u8], name: &[u8], hash: u64) -> InterfaceId {
        if account.len() + name.len() > INLINE {
            return self.find_or_insert(account, name);
        }
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = &self.slots[at];
            if slot.used && slot.is(account, name) {
                return InterfaceId(slot.id);
            }
            if !slot.used {
                return self.intern_afresh(account, name);
            }
            at = (at + 1) & mask;
        }
    }

    #[cold]
    fn intern_afresh(&mut self, account: &[u8], name: &[u8]) -> InterfaceId {
        let id = self.find_or_insert(account, name);
        if self.filled * 2 >= self.slots.len() && self.slots.len() < SLOTS_MAX {
            let larger = vec![EMPTY; self.slots.len() * 2];
            for slot in std::mem::replace(&mut self.slots, larger).into_iter().filter(|slot| slot.used) {
                self.place(slot);
            }
        }
        // The last slots stay empty, so that every search ends. A pair without a number may yet get none: not kept.
        if self.filled * 2 < self.slots.len() && (id.0 > 0 || self.known.len() < self.cap) {
            self.place(Slot::new(account, name, id));
            self.filled += 1;
        }
        id
    }

    fn place(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let mut at = hash(slot.account(), slot.name()) as usize & mask;
        while self.slots[at].used {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
    }

    #[cold]
    fn find_or_insert(&mut self, account: &[u8], name: &[u8]) -> InterfaceId {
        let account = if account == b"-" || account == b"unknown" { b"" } else { account };
        let name = if name == b"-" { b"" } else { name };
        // Looked up as they are kept: text that is not UTF-8 must find itself again.
        let (account, name) = (String::from_utf8_lossy(account), String::from_utf8_lossy(name));
        let (account, name) = (account.as_bytes(), name.as_bytes());
        if account.is_empty() && name.is_empty() {
            return InterfaceId(0);
        }
        let hash = self.hasher.hash_one((account, name));
        let known = &self.known;
        let same = |&index: &u32| {
            let interface = &known[index as usize];
            interface.name.as_bytes() == name && interface.account.as_bytes() == account
        };
        if let Some(&index) = self.table.find(hash, same) {
            return known[index as usize].id;
        }
        if self.known.len() >= self.cap {
            self.overflowed += 1;
            return InterfaceId(0);
        }
        self.insert(account, name)
    }

    fn insert(&mut self, account: &[u8], name: &[u8]) -> InterfaceId {
        let id = InterfaceId(self.known.len() as u32 + 1);
        let name = String::from_utf8_lossy(name).into_owned();
        let account = String::from_utf8_lossy(account).into_owned();
        let hash = self.hasher.hash_one((account.as_bytes(), name.as_bytes()));
        self.known.push(Interface { id, name, account });
        let (known, hasher) = (&self.known, &self.hasher);
        self.table.insert_unique(hash, id.0 - 1, |&index| {
            let interface = &known[index as usize];
            hasher.hash_one((interface.account.as_bytes(), interface.name.as_bytes()))
        });
        id
    }

    /// The interfaces named since the last call, by ascending id.
    pub fn take_new(&mut self) -> &[Interface] {
        let first = std::mem::replace(&mut self.told, self.known.len());
        &self.known[first..]
    }

    /// All interfaces named so far, by ascending id.
    pub fn known(&self) -> &[Interface] {
        &self.known
    }

    /// How many lookups found the table full and got id 0.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }
}

/// A cheap hash of both texts, good enough to spread a table: interface ids differ in their last sixteen characters,
/// accounts in their last eight. Names come from AWS, not from whoever sends packets, so nobody aims at it.
#[inline]
fn hash(account: &[u8], name: &[u8]) -> u64 {
    let middle = name.len().saturating_sub(8);
    let mixed = tail(name)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(tail(&name[..middle]))
        .wrapping_mul(0xd6e8_feb8_6659_fd93)
        .wrapping_add(tail(account))
        .wrapping_mul(0xa076_1d64_78bd_642f);
    mixed ^ (mixed >> 32)
}

/// Equality of short texts of equal length, by words instead of a call. The last word overlaps the one before it.
#[inline]
fn equal(a: &[u8], b: &[u8]) -> bool {
    let (Some(last), Some(other)) = (a.last_chunk::<8>(), b.last_chunk::<8>()) else { return a == b };
    let word = |at: usize| match (a[at..].first_chunk::<8>(), b[at..].first_chunk::<8>()) {
        (Some(word), Some(other)) => u64::from_le_bytes(*word) ^ u64::from_le_bytes(*other),
        _ => u64::MAX,
    };
    let mut differ = u64::from_le_bytes(*last) ^ u64::from_le_bytes(*other);
    for at in (0..a.len() - 8).step_by(8) {
        differ |= word(at);
    }
    differ == 0
}

/// The last eight bytes as one number, fewer where there are fewer.
#[inline]
fn tail(text: &[u8]) -> u64 {
    match text.last_chunk::<8>() {
        Some(last) => u64::from_le_bytes(*last),
        None => text.iter().fold(0, |bits, &byte| bits << 8 | u64::from(byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_pair_has_one_number_and_is_told_once() {
        let mut interfaces = Interfaces::new(10);
        let first = interfaces.intern(b"123456789012", b"eni-1");
        assert_eq!(first, InterfaceId(1));
        assert_eq!(interfaces.intern(b"123456789012", b"eni-2"), InterfaceId(2));
        assert_eq!(interfaces.intern(b"123456789012", b"eni-1"), first);
        assert_eq!(interfaces.take_new().iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["eni-1", "eni-2"]);
        assert!(interfaces.take_new().is_empty());
    }

    #[test]
    fn a_boundary_between_account_and_name_is_part_of_the_pair() {
        let mut interfaces = Interfaces::new(10);
        assert_ne!(interfaces.intern(b"12", b"3"), interfaces.intern(b"1", b"23"));
    }

    #[test]
    fn absent_names_are_number_zero_and_unknown_accounts_are_empty() {
        let mut interfaces = Interfaces::new(10);
        assert_eq!(interfaces.intern(b"unknown", b"-"), InterfaceId(0));
        assert_eq!(interfaces.intern(b"-", b"eni-1"), InterfaceId(1));
        assert_eq!(interfaces.intern(b"unknown", b"eni-1"), InterfaceId(1));
        assert_eq!(interfaces.known()[0].account, "");
    }

    #[test]
    fn a_full_table_gives_zero_and_keeps_what_it_knows() {
        let mut interfaces = Interfaces::new(2);
        for name in [b"a", b"b", b"c", b"d"] {
            interfaces.intern(b"1", name);
        }
        assert_eq!(interfaces.intern(b"1", b"b"), InterfaceId(2));
        assert_eq!(interfaces.intern(b"1", b"c"), InterfaceId(0));
        assert_eq!(interfaces.known().len(), 2);
        assert!(interfaces.overflowed() >= 2);
    }

    #[test]
    fn many_names_survive_the_growth_of_both_tables() {
        let mut interfaces = Interfaces::new(100_000);
        let name = |n: u32| format!("eni-{:017x}", u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for round in 0..2 {
            for n in 0..5000 {
                assert_eq!(interfaces.intern(b"1", name(n).as_bytes()), InterfaceId(n + 1), "round {round}");
            }
        }
        let known = interfaces.known().to_vec();
        let mut restored = Interfaces::new(100_000);
        restored.adopt(&known);
        assert_eq!(restored.intern(b"1", name(77).as_bytes()), InterfaceId(78));
        assert!(restored.take_new().is_empty());
    }

    #[test]
    fn names_that_are_not_utf8_keep_one_number() {
        let mut interfaces = Interfaces::new(10);
        let first = interfaces.intern(b"1", b"\xff\xfe");
        assert!(first.0 > 0);
        assert_eq!(interfaces.intern(b"1", b"\xff\xfe"), first);
    }
}
