//! A bounded memory of evictions: when a blob or a result was evicted.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

use gorego_storage::{Digest, EvictionObserver};

/// The number of records in a bucket. A new one replaces the oldest.
const BUCKET: usize = 4;
/// The number of buckets: 4 MiB, for at least a few hundred thousand evictions.
const BUCKETS: usize = 1 << 17;
/// The bits of a record that hold the time, in seconds from [`EPOCH`]: until 2088.
const TIME_BITS: u32 = 31;
/// 2020-01-01, in seconds since the Unix epoch.
const EPOCH: u64 = 1_577_836_800;

/// The times of the last evictions, by hash. A record is 8 bytes: 33 bits of the hash and the time. With the bucket, 50
/// bits of the hash are compared, so that one in 10^9 lookups finds the record of another hash.
#[derive(Debug)]
pub struct Evictions {
    records: Box<[AtomicU64]>,
    /// The newest time of a record that was replaced, in seconds from [`EPOCH`]; 0 if none was. Evictions after
    /// it are all known.
    forgotten: AtomicU64,
    changes: AtomicU64,
}

impl Default for Evictions {
    fn default() -> Self {
        Self {
            records: (0..BUCKET * BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            forgotten: AtomicU64::new(0),
            changes: AtomicU64::new(0),
        }
    }
}

impl Evictions {
    /// Returns the time of the last recorded eviction of a blob, in milliseconds since the Unix epoch.
    pub fn of_blob(&self, blob: &Digest) -> Option<u64> {
        self.find(&blob.hash_prefix(), false)
    }

    /// Returns the time of the last recorded eviction of a result of this action, under any instance name, in
    /// milliseconds since the Unix epoch.
    pub fn of_result(&self, action: &Digest) -> Option<u64> {
        self.find(&action.hash_prefix(), true)
    }

    /// Returns the time after which all evictions are remembered, if older ones were forgotten, in milliseconds since
    /// the Unix epoch.
    pub fn forgotten_ms(&self) -> Option<u64> {
        let forgotten = self.forgotten.load(Relaxed);
        (forgotten > 0).then_some((EPOCH + forgotten) * 1000)
    }

    /// Returns the number of records made. A saved copy is current while this is unchanged.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    fn record(&self, hash: &[u8; 32], is_result: bool, now: u64) {
        let now = now.saturating_sub(EPOCH).clamp(1, (1 << TIME_BITS) - 1);
        let (bucket, tag) = place(hash, is_result);
        let bucket = self.bucket(bucket);
        let slot = bucket
            .iter()
            .find(|slot| slot.load(Relaxed) >> TIME_BITS == tag)
            .or_else(|| bucket.iter().min_by_key(|slot| time(slot.load(Relaxed))));
        if let Some(slot) = slot {
            // Concurrent records may replace each other, which loses one of them.
            let replaced = slot.swap(tag << TIME_BITS | now, Relaxed);
            if replaced >> TIME_BITS != tag {
                self.forgotten.fetch_max(time(replaced), Relaxed);
            }
            self.changes.fetch_add(1, Relaxed);
        }
    }

    fn find(&self, hash: &[u8; 32], is_result: bool) -> Option<u64> {
        let (bucket, tag) = place(hash, is_result);
        let mut records = self.bucket(bucket).iter().map(|slot| slot.load(Relaxed));
        let record = records.find(|record| record >> TIME_BITS == tag && time(*record) > 0)?;
        Some((EPOCH + time(record)) * 1000)
    }

    fn bucket(&self, number: usize) -> &[AtomicU64] {
        let start = number * BUCKET;
        self.records.get(start..start + BUCKET).unwrap_or_default()
    }

    /// Encodes the memory: the forgotten time, then the records with their positions.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut encoded = self.forgotten.load(Relaxed).to_le_bytes().to_vec();
        for (position, record) in (0u32..).zip(&self.records) {
            let record = record.load(Relaxed);
            if record != 0 {
                encoded.extend(position.to_le_bytes());
                encoded.extend(record.to_le_bytes());
            }
        }
        encoded
    }

    /// Restores what [`Self::encode`] returned. Ignores positions that do not exist.
    pub(crate) fn restore(&self, encoded: &[u8]) {
        let Some((forgotten, records)) = encoded.split_first_chunk() else {
            return;
        };
        self.forgotten
            .store(u64::from_le_bytes(*forgotten), Relaxed);
        for record in records.as_chunks::<12>().0 {
            let (Some(position), Some(record)) = (record.first_chunk(), record.last_chunk()) else {
                continue;
            };
            if let Some(slot) = self.records.get(u32::from_le_bytes(*position) as usize) {
                slot.store(u64::from_le_bytes(*record), Relaxed);
            }
        }
    }
}

impl EvictionObserver for Evictions {
    fn evicted(&self, hash_prefix: &[u8; 32], is_result: bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.record(hash_prefix, is_result, now.map_or(0, |now| now.as_secs()));
    }
}

/// Returns the bucket of a hash, and the bits of it that a record holds.
fn place(hash: &[u8; 32], is_result: bool) -> (usize, u64) {
    let bits = hash
        .first_chunk()
        .map_or(0, |first| u64::from_le_bytes(*first));
    // Blobs and results have different records of one hash.
    let bits = if is_result { !bits } else { bits };
    let bucket = usize::try_from(bits >> (64 - 17)).unwrap_or_default() % BUCKETS;
    (bucket, bits & ((1 << (64 - TIME_BITS)) - 1))
}

const fn time(record: u64) -> u64 {
    record & ((1 << TIME_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn digest(number: u32) -> Digest {
        DigestFunction::Sha256.digest(&number.to_le_bytes())
    }

    #[test]
    fn evictions_of_a_blob_and_of_a_result_are_distinguished() {
        let evictions = Evictions::default();
        let (one, two) = (digest(1), digest(2));
        evictions.record(&one.hash_prefix(), false, NOW);
        evictions.record(&two.hash_prefix(), true, NOW + 1);
        assert_eq!(evictions.of_blob(&one), Some(NOW * 1000));
        assert_eq!(evictions.of_result(&one), None);
        assert_eq!(evictions.of_blob(&two), None);
        assert_eq!(evictions.of_result(&two), Some((NOW + 1) * 1000));
        evictions.record(&one.hash_prefix(), false, NOW + 2);
        assert_eq!(evictions.of_blob(&one), Some((NOW + 2) * 1000));
        assert_eq!(evictions.forgotten_ms(), None);
    }

    #[test]
    fn the_last_of_many_evictions_are_remembered_and_older_ones_are_counted_as_forgotten() {
        let evictions = Evictions::default();
        let count = u32::try_from(BUCKET * BUCKETS * 2).unwrap();
        for number in 0..count {
            let hash = digest(number).hash_prefix();
            evictions.record(&hash, false, NOW + u64::from(number));
        }
        let forgotten = evictions.forgotten_ms().unwrap();
        let last = (NOW + u64::from(count)) * 1000;
        assert!(forgotten < last, "{forgotten}");
        for number in count - 100_000..count {
            let at = (NOW + u64::from(number)) * 1000;
            let found = evictions.of_blob(&digest(number));
            assert!(found == Some(at) || at <= forgotten, "{number}: {found:?}");
        }
        assert_eq!(evictions.of_blob(&digest(count - 1)), Some(last - 1000));
    }

    #[test]
    fn evictions_survive_encoding_and_damage_is_harmless() {
        let evictions = Evictions::default();
        for number in 0..1000 {
            evictions.record(&digest(number).hash_prefix(), true, NOW);
        }
        let encoded = evictions.encode();
        let restored = Evictions::default();
        restored.restore(&encoded);
        for number in 0..1000 {
            assert_eq!(restored.of_result(&digest(number)), Some(NOW * 1000));
        }
        assert_eq!(restored.of_result(&digest(1000)), None);
        for end in [0, 5, 8, 10, encoded.len() - 1] {
            Evictions::default().restore(&encoded[..end]);
        }
        Evictions::default().restore(&[0xff; 100]);
    }
}
