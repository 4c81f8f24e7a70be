//! The index: hash to size and last use, for millions of blobs, without a system call.
//!
//! Entries live in slabs of 48-byte records and a hash table of slot numbers, so that growth moves
//! 5 bytes an entry and not 49. A shard's lock is held for a look-up, never across I/O.

mod entry;
mod pins;
mod slab;
mod visit;

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};

pub(crate) use entry::{
    ACTION, DIRTY, Entry, INSTANCE_END, Key, Lease, SIZE_END, Space, Terms, UNVERIFIED, room_of,
};
use pins::PinRecord;
pub(crate) use pins::{Form, Stamp};
pub(crate) use slab::Slab;
pub(crate) use visit::InstanceUse;

/// The number of parts of the index, each with a lock of its own.
pub(crate) const SHARDS: usize = 64;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Use {
    pub(crate) lease: Lease,
    /// Protects it from eviction until [`Index::unpin`].
    pub(crate) pin: bool,
}

impl Use {
    pub(crate) const fn new(lease: Lease, pin: bool) -> Self {
        Self { lease, pin }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) size: u64,
    pub(crate) unverified: bool,
}

pub(crate) struct Index {
    shards: Box<[Mutex<Shard>]>,
    seeds: [u64; 4],
    bytes: AtomicU64,
    count: AtomicU64,
    unverified: AtomicU64,
    results: AtomicU64,
}

#[derive(Default)]
struct Shard {
    table: HashTable<u32>,
    slab: Slab<Entry>,
    pins: HashMap<Key, PinRecord>,
}

impl Shard {
    fn slot(&self, hash: u64, key: &Key) -> Option<u32> {
        let found = |slot: &u32| self.slab.get(*slot).is_some_and(|entry| entry.is(key));
        self.table.find(hash, found).copied()
    }

    fn get(&self, hash: u64, key: &Key) -> Option<&Entry> {
        self.slot(hash, key).and_then(|slot| self.slab.get(slot))
    }

    fn get_mut(&mut self, hash: u64, key: &Key) -> Option<&mut Entry> {
        self.slot(hash, key)
            .and_then(|slot| self.slab.get_mut(slot))
    }
}

impl Default for Index {
    fn default() -> Self {
        let random = RandomState::new();
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            seeds: [1, 2, 3, 4].map(|n| random.hash_one(n)),
            bytes: AtomicU64::new(0),
            count: AtomicU64::new(0),
            unverified: AtomicU64::new(0),
            results: AtomicU64::new(0),
        }
    }
}

impl Index {
    /// Returns the room that all entries take on the disk, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    pub(crate) fn unverified(&self) -> u64 {
        self.unverified.load(Relaxed)
    }

    /// Returns the number of action results.
    pub(crate) fn results(&self) -> u64 {
        self.results.load(Relaxed)
    }

    /// Looks an entry up without using it.
    pub(crate) fn peek(&self, key: &Key) -> Option<Hit> {
        let (hash, shard) = self.shard(key)?;
        shard.get(hash, key).map(Entry::hit)
    }

    /// Looks an entry up and marks it as used now, if it has this size.
    pub(crate) fn touch(&self, key: &Key, size: Option<u64>, now: u64, how: Use) -> Option<Hit> {
        let (hash, mut shard) = self.shard(key)?;
        let entry = shard.get_mut(hash, key)?;
        if size.is_some_and(|size| size != entry.size()) {
            return None;
        }
        entry.set_last_use(now);
        entry.set(DIRTY, true);
        entry.lease(how.lease);
        let hit = entry.hit();
        if how.pin {
            shard.pins.entry(*key).or_default().add();
        }
        Some(hit)
    }

    /// Adds a blob or result that was just uploaded, or replaces the entry under its key.
    pub(crate) fn insert(&self, key: &Key, size: u64, now: u64) {
        let mut entry = Entry::new(key, size, now);
        entry.lease(match key.space {
            Space::Cas => Lease::Upload,
            // Clients do not upload results again, as they do with blobs.
            Space::Ac(_) => Lease::Full,
        });
        if let Some((hash, mut shard)) = self.shard(key) {
            self.put(&mut shard, hash, key, entry);
        }
    }

    /// Adds an entry of an earlier run; `false` if there is one under this key. Its last use may have come
    /// with a lease, so that it counts as leased.
    pub(crate) fn insert_found(
        &self,
        key: &Key,
        size: u64,
        last_use: u64,
        unverified: bool,
    ) -> bool {
        let mut entry = Entry::new(key, size, last_use);
        entry.set(UNVERIFIED, unverified);
        entry.lease(Lease::Full);
        let Some((hash, mut shard)) = self.shard(key) else {
            return false;
        };
        let new = shard.slot(hash, key).is_none();
        if new {
            self.put(&mut shard, hash, key, entry);
        }
        new
    }

    fn put(&self, shard: &mut Shard, hash: u64, key: &Key, mut entry: Entry) {
        self.account(&entry, true);
        if let Some(old) = shard.get_mut(hash, key) {
            entry.inherit_leases(old);
            let before = std::mem::replace(old, entry);
            self.account(&before, false);
            return;
        }
        let slot = shard.slab.insert(entry);
        let Shard { table, slab, .. } = shard;
        let rehash = |slot: &u32| slab.get(*slot).map_or(0, |entry| self.hash(&entry.key()));
        table.insert_unique(hash, slot, rehash);
    }

    pub(crate) fn remove(&self, key: &Key) -> Option<u64> {
        self.remove_if(key, |_, _| true).map(|entry| entry.room())
    }

    /// Removes the entry under this key if it and its pin satisfy the condition.
    pub(crate) fn remove_if(
        &self,
        key: &Key,
        when: impl FnOnce(&Entry, bool) -> bool,
    ) -> Option<Entry> {
        let (hash, mut guard) = self.shard(key)?;
        let shard = &mut *guard;
        let slot = shard.slot(hash, key)?;
        let entry = *shard.slab.get(slot)?;
        if !when(&entry, shard.pins.contains_key(key)) {
            return None;
        }
        shard
            .table
            .find_entry(hash, |other| *other == slot)
            .ok()?
            .remove();
        shard.slab.remove(slot);
        self.account(&entry, false);
        Some(entry)
    }

    pub(crate) fn restore(&self, entry: Entry) {
        let key = entry.key();
        if let Some((hash, mut shard)) = self.shard(&key) {
            self.put(&mut shard, hash, &key, entry);
        }
    }

    /// Marks the content as to be hashed before its next use, or as verified.
    pub(crate) fn set_unverified(&self, key: &Key, unverified: bool) {
        if let Some((hash, mut shard)) = self.shard(key)
            && let Some(entry) = shard.get_mut(hash, key)
        {
            let before = *entry;
            entry.set(UNVERIFIED, unverified);
            // In this order, so that the totals are never too low.
            self.account(entry, true);
            self.account(&before, false);
        }
    }

    fn account(&self, entry: &Entry, added: bool) {
        let unverified = u64::from(entry.has(UNVERIFIED));
        let totals = [
            (&self.bytes, entry.room()),
            (&self.count, 1),
            (&self.unverified, unverified),
            (&self.results, u64::from(entry.has(ACTION))),
        ];
        for (total, amount) in totals {
            if added {
                total.fetch_add(amount, Relaxed);
            } else {
                total.fetch_sub(amount, Relaxed);
            }
        }
    }

    /// Returns the key's hash and its shard, locked. The bits that choose the shard are not those by
    /// which the table orders its slots.
    fn shard(&self, key: &Key) -> Option<(u64, MutexGuard<'_, Shard>)> {
        let hash = self.hash(key);
        let number = usize::try_from(hash >> 40).ok()? % SHARDS;
        self.shards.get(number).map(|shard| (hash, shard.lock()))
    }

    /// Seeded, because clients choose the keys of action results.
    fn hash(&self, key: &Key) -> u64 {
        let extra = match key.space {
            Space::Cas => u64::from(u32::MAX),
            Space::Ac(instance) => u64::from(instance),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(key.hash.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        for (word, seed) in words.iter_mut().zip(self.seeds) {
            *word ^= seed;
        }
        let [first, second, third, fourth] = words;
        let extra = (extra << 8) | key.function as u64;
        fold(first, second) ^ fold(third, fourth ^ extra)
    }
}

/// Multiplies to 128 bits and folds the halves: every input bit reaches every output bit.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    let (high, low) = ((product >> 64) as u64, product as u64);
    high ^ low
}

impl Entry {
    fn hit(&self) -> Hit {
        Hit {
            size: self.size(),
            unverified: self.has(UNVERIFIED),
        }
    }

    /// Nothing of size zero is stored.
    const fn is_vacant(&self) -> bool {
        self.size() == 0
    }
}

#[cfg(test)]
mod tests;
