//! One indexed blob or action result, in 48 bytes.

use gorego_storage::{Digest, DigestFunction};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    /// A blob.
    Cas,
    /// An action result under an instance name, by its number in the instance table.
    Ac(u32),
}

/// The key of an entry. Hashes longer than 32 bytes are cut, so that the name of such a file has to be
/// looked up on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) hash: [u8; 32],
    pub(crate) function: DigestFunction,
    pub(crate) space: Space,
}

impl Key {
    pub(crate) fn cas(digest: &Digest) -> Self {
        Self {
            hash: digest.hash_prefix(),
            function: digest.function(),
            space: Space::Cas,
        }
    }

    pub(crate) fn ac(action: &Digest, instance: u32) -> Self {
        Self {
            hash: action.hash_prefix(),
            function: action.function(),
            space: Space::Ac(instance),
        }
    }
}

/// Sizes from here on do not fit an entry: 1 TiB.
pub(crate) const SIZE_END: u64 = 1 << SIZE_BITS;
/// Instance numbers from here on do not fit an entry.
pub(crate) const INSTANCE_END: u32 = 1 << INSTANCE_BITS;

const SIZE_BITS: u32 = 40;
const TIME_BITS: u32 = 40;
const INSTANCE_BITS: u32 = 24;
/// 2020-01-01, from which last uses count in milliseconds; 40 bits last until 2054.
const EPOCH_MS: u64 = 1_577_836_800_000;

const LEASED: u64 = 1 << 44;
/// Marks content that has to be hashed before use.
pub(crate) const UNVERIFIED: u64 = 1 << 45;
/// Marks a last use that is not written to the file's access time.
pub(crate) const DIRTY: u64 = 1 << 46;
const UPLOADED: u64 = 1 << 47;

/// The kind of lease that a use of an entry gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lease {
    #[default]
    None,
    /// The shorter lease, of uploads.
    Upload,
    /// The longer lease, of blobs and results reported to a client.
    Full,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) full_ms: u64,
    pub(crate) upload_ms: u64,
}

/// A packed entry. `size_and_flags`: size (40 bits), space and function (4), flags (4). `use_and_instance`: last use
/// (40), instance number (24).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    hash: [u8; 32],
    size_and_flags: u64,
    use_and_instance: u64,
}

impl Entry {
    pub(crate) fn new(key: &Key, size: u64, last_use_ms: u64) -> Self {
        let (tag, instance) = tag(key);
        let mut entry = Self {
            hash: key.hash,
            size_and_flags: size.min(SIZE_END - 1) | (tag << SIZE_BITS),
            use_and_instance: u64::from(instance) << TIME_BITS,
        };
        entry.set_last_use(last_use_ms);
        entry
    }

    pub(crate) fn key(&self) -> Key {
        let tag = (self.size_and_flags >> SIZE_BITS) & 15;
        let function = usize::try_from(tag & 7).ok();
        let function = function.and_then(|number| DigestFunction::ALL.get(number));
        let space = if tag & ACTION_TAG == 0 {
            Space::Cas
        } else {
            Space::Ac((self.use_and_instance >> TIME_BITS) as u32)
        };
        Key {
            hash: self.hash,
            function: function.copied().unwrap_or(DigestFunction::Sha256),
            space,
        }
    }

    pub(crate) fn is(&self, key: &Key) -> bool {
        self.hash == key.hash && {
            let (tag, instance) = tag(key);
            (self.size_and_flags >> SIZE_BITS) & 15 == tag
                && self.use_and_instance >> TIME_BITS == u64::from(instance)
        }
    }

    pub(crate) const fn size(&self) -> u64 {
        self.size_and_flags & (SIZE_END - 1)
    }

    pub(crate) const fn room(&self) -> u64 {
        room_of(self.size())
    }

    /// Returns the last use in milliseconds since the Unix epoch.
    pub(crate) const fn last_use(&self) -> u64 {
        (self.use_and_instance & ((1 << TIME_BITS) - 1)) + EPOCH_MS
    }

    pub(crate) fn set_last_use(&mut self, ms: u64) {
        let ticks = ms.saturating_sub(EPOCH_MS).min((1 << TIME_BITS) - 1);
        self.use_and_instance = (self.use_and_instance >> TIME_BITS << TIME_BITS) | ticks;
    }

    /// Whether the entry is leased at `now_ms`. Each use renews its lease.
    pub(crate) const fn is_leased(&self, now_ms: u64, terms: Terms) -> bool {
        let term = if self.size_and_flags & LEASED != 0 {
            terms.full_ms
        } else if self.size_and_flags & UPLOADED != 0 {
            terms.upload_ms
        } else {
            return false;
        };
        self.last_use().saturating_add(term) > now_ms
    }

    pub(crate) const fn has(&self, flag: u64) -> bool {
        self.size_and_flags & flag != 0
    }

    pub(crate) const fn set(&mut self, flag: u64, on: bool) {
        self.size_and_flags = if on {
            self.size_and_flags | flag
        } else {
            self.size_and_flags & !flag
        };
    }

    /// Adds a lease. A longer lease stays.
    pub(crate) const fn lease(&mut self, lease: Lease) {
        self.size_and_flags |= match lease {
            Lease::None => 0,
            Lease::Upload => UPLOADED,
            Lease::Full => LEASED,
        };
    }

    pub(crate) const fn inherit_leases(&mut self, old: &Self) {
        self.size_and_flags |= old.size_and_flags & (LEASED | UPLOADED);
    }
}

/// Returns the room that a file of `size` bytes takes: whole blocks of 4 KiB, as on most file systems.
pub(crate) const fn room_of(size: u64) -> u64 {
    size.saturating_add(4095) & !4095
}

/// Marks the tag of an action result.
const ACTION_TAG: u64 = 8;
/// Marks an action result.
pub(crate) const ACTION: u64 = ACTION_TAG << SIZE_BITS;

fn tag(key: &Key) -> (u64, u32) {
    let function = key.function as u64;
    match key.space {
        Space::Cas => (function, 0),
        Space::Ac(instance) => (function | ACTION_TAG, instance),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packing_keeps_every_field(
            hash: [u8; 32],
            function in 0usize..5,
            instance in proptest::option::of(0..INSTANCE_END),
            size in 0..SIZE_END,
            ms in EPOCH_MS..EPOCH_MS + (1 << TIME_BITS),
        ) {
            let function = DigestFunction::ALL[function];
            let space = instance.map_or(Space::Cas, Space::Ac);
            let key = Key { hash, function, space };
            let mut entry = Entry::new(&key, size, ms);
            entry.lease(Lease::Full);
            entry.set(DIRTY, true);
            prop_assert!(entry.is(&key));
            prop_assert_eq!((entry.key(), entry.size(), entry.last_use()), (key, size, ms));
            let terms = Terms { full_ms: 1, upload_ms: 0 };
            prop_assert!(entry.is_leased(ms, terms) && !entry.is_leased(ms + 1, terms));
            prop_assert!(entry.has(DIRTY) && !entry.has(UNVERIFIED));
        }
    }

    #[test]
    fn an_upload_never_shortens_a_lease() {
        let key = Key::cas(&DigestFunction::Sha256.digest(b"x"));
        let terms = Terms {
            full_ms: 100,
            upload_ms: 10,
        };
        let mut entry = Entry::new(&key, 1, EPOCH_MS);
        let leased_until = |entry: &Entry| {
            let ends = (0..200).find(|after| !entry.is_leased(EPOCH_MS + after, terms));
            ends.unwrap_or(200)
        };
        assert_eq!(leased_until(&entry), 0);
        entry.lease(Lease::Upload);
        assert_eq!(leased_until(&entry), 10);
        entry.lease(Lease::Full);
        entry.lease(Lease::Upload);
        assert_eq!(leased_until(&entry), 100);
        let mut replaced = Entry::new(&key, 1, EPOCH_MS);
        replaced.lease(Lease::Upload);
        replaced.inherit_leases(&entry);
        assert_eq!(leased_until(&replaced), 100);
    }

    #[test]
    fn an_entry_takes_48_bytes() {
        assert_eq!(size_of::<Entry>(), 48);
    }
}
