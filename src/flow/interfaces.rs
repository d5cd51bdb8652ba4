//! The names behind interface numbers, one table per shard.
//!
//! Every record names its interface and account in text; the engine wants a number. Looking that text up is a random
//! memory access per record, so the common case is one cache line: a direct-mapped table of recently seen
//! `account interface` pairs with the whole text inline, compared exactly. What it does not hold goes to a hash table
//! over the names themselves.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::flow::{Interface, InterfaceId};

/// Longest `account` + `interface` text that a line of the recent table holds inline; a real pair is 12 + 21 bytes.
const INLINE: usize = 56;

/// Slots of the recent table at the start, and the most it grows to (16 MiB).
const RECENT_MIN: usize = 1 << 10;
const RECENT_MAX: usize = 1 << 18;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Recent {
    text: [u8; INLINE],
    account_len: u8,
    name_len: u8,
    used: bool,
    id: u32,
}

const EMPTY: Recent = Recent { text: [0; INLINE], account_len: 0, name_len: 0, used: false, id: 0 };

/// Interns (account, interface) pairs; ids count up from 1 in order of first sight.
pub struct Interfaces {
    hasher: FixedState,
    recent: Vec<Recent>,
    /// Indexes into `known`.
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
            recent: vec![EMPTY; RECENT_MIN],
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
        let length = account.len() + name.len();
        if length > INLINE {
            return self.find_or_insert(account, name);
        }
        let slot = self.hash(account, name) as usize & (self.recent.len() - 1);
        let recent = &self.recent[slot];
        if recent.used
            && usize::from(recent.account_len) == account.len()
            && usize::from(recent.name_len) == name.len()
            && recent.text[account.len()..length] == *name
            && recent.text[..account.len()] == *account
        {
            return InterfaceId(recent.id);
        }
        self.intern_afresh(account, name)
    }

    #[cold]
    fn intern_afresh(&mut self, account: &[u8], name: &[u8]) -> InterfaceId {
        let id = self.find_or_insert(account, name);
        if self.known.len() > self.recent.len() && self.recent.len() < RECENT_MAX {
            self.recent = vec![EMPTY; self.recent.len() * 4];
        }
        let slot = self.hash(account, name) as usize & (self.recent.len() - 1);
        let mut recent =
            Recent { account_len: account.len() as u8, name_len: name.len() as u8, used: true, id: id.0, ..EMPTY };
        recent.text[..account.len()].copy_from_slice(account);
        recent.text[account.len()..account.len() + name.len()].copy_from_slice(name);
        self.recent[slot] = recent;
        id
    }

    /// A cheap hash of both texts, good enough to spread a direct-mapped table: interface ids differ in their last
    /// sixteen characters, accounts in their last eight.
    #[inline]
    fn hash(&self, account: &[u8], name: &[u8]) -> u64 {
        let middle = name.len().saturating_sub(8);
        let mixed = tail(name)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(tail(&name[..middle]))
            .wrapping_mul(0xd6e8_feb8_6659_fd93)
            .wrapping_add(tail(account))
            .wrapping_mul(0xa076_1d64_78bd_642f);
        mixed ^ (mixed >> 32)
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
