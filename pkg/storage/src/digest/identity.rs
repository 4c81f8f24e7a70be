//! Equality and order of digests: by function, size and hash.

use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
};

use super::{Digest, DigestFunction, MAX_HASH_LEN};

impl Digest {
    const fn identity(&self) -> (DigestFunction, u64, &[u8; MAX_HASH_LEN]) {
        (self.function, self.size, &self.hash)
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Digest {}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialOrd for Digest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Digest {
    fn cmp(&self, other: &Self) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}
