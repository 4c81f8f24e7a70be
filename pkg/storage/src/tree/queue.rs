//! The directories of a walk, visited and queued, in one list.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

use crate::{Digest, DigestFunction};

/// The number of records in a chunk. Growth adds a chunk and copies nothing.
const CHUNK: usize = 256;

/// Distinct digests of one function in the order of their insertion. Takes at most 64 bytes for each digest
/// with a hash of 32 bytes: the hash, the size, and a number in a table that finds duplicates.
#[derive(Debug)]
pub(super) struct DigestQueue {
    function: DigestFunction,
    /// Each holds `CHUNK` records: the hash, then the size.
    chunks: Vec<Vec<u8>>,
    len: u32,
    numbers: HashTable<u32>,
    /// Keyed, since clients choose the hashes.
    hasher: RandomState,
}

impl DigestQueue {
    pub(super) fn new(function: DigestFunction) -> Self {
        Self {
            function,
            chunks: Vec::new(),
            len: 0,
            numbers: HashTable::new(),
            hasher: RandomState::new(),
        }
    }

    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// Appends the digest unless it is present. Ignores digests of other functions, and those beyond 2^32,
    /// which would not fit into memory.
    pub(super) fn push(&mut self, digest: &Digest) {
        if digest.function() != self.function {
            return;
        }
        let record: &[u8] = &[digest.hash(), &digest.size().to_le_bytes()].concat();
        let width = record.len();
        let (chunks, hasher) = (&self.chunks, &self.hasher);
        let hash_of = |number: &u32| {
            let record: &[u8] = record_at(chunks, width, *number).unwrap_or_default();
            hasher.hash_one(record)
        };
        let hash = hasher.hash_one(record);
        let known = self.numbers.find(hash, |number| {
            record_at(chunks, width, *number) == Some(record)
        });
        let (None, Some(next)) = (known, self.len.checked_add(1)) else {
            return;
        };
        self.numbers.insert_unique(hash, self.len, hash_of);
        if (self.len as usize).is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK * width));
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.extend_from_slice(record);
        }
        self.len = next;
    }

    /// Returns the digest with this number, counted from zero.
    pub(super) fn get(&self, number: u32) -> Option<Digest> {
        let hash_len = self.function.hash_len();
        let record = record_at(&self.chunks, hash_len + size_of::<u64>(), number)?;
        let (hash, size) = record.split_at_checked(hash_len)?;
        let size = u64::from_le_bytes(size.try_into().ok()?);
        Digest::from_hash(self.function, hash, size)
    }

    /// Returns the memory of the records and of the table, in bytes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> (usize, usize) {
        let chunks: usize = self.chunks.iter().map(Vec::capacity).sum();
        let records = chunks + self.chunks.capacity() * size_of::<Vec<u8>>();
        (records, self.numbers.allocation_size())
    }
}

fn record_at(chunks: &[Vec<u8>], width: usize, number: u32) -> Option<&[u8]> {
    let at = number as usize % CHUNK * width;
    chunks.get(number as usize / CHUNK)?.get(at..at + width)
}
