//! Amounts that eviction has to free: bytes and files.

use gorego_storage::{Candidate, Resource};

/// An amount of disk space and of files (inodes): a file system has a limited number of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Bytes on the disk.
    pub(crate) bytes: u64,
    /// The number of files.
    pub(crate) files: u64,
}

impl Amount {
    /// Creates an amount by calling `amount` for each resource.
    pub(crate) fn of(amount: impl Fn(Resource) -> u64) -> Self {
        Self {
            bytes: amount(Resource::Bytes),
            files: amount(Resource::Files),
        }
    }

    /// Returns the amount of one resource.
    pub(crate) const fn get(self, resource: Resource) -> u64 {
        match resource {
            Resource::Bytes => self.bytes,
            Resource::Files => self.files,
        }
    }

    /// Creates an amount of bytes alone.
    pub(crate) const fn of_bytes(bytes: u64) -> Self {
        Self { bytes, files: 0 }
    }

    /// Whether the amount of each resource is zero.
    pub(crate) fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// Whether this is at least `other` for each resource.
    pub(crate) const fn covers(self, other: Self) -> bool {
        self.bytes >= other.bytes && self.files >= other.files
    }

    /// Adds the other amount.
    pub(crate) fn plus(self, other: Self) -> Self {
        self.combined(other, u64::saturating_add)
    }

    /// Subtracts the other amount; nothing falls below zero.
    pub(crate) fn minus(self, other: Self) -> Self {
        self.combined(other, u64::saturating_sub)
    }

    /// Returns the larger amount of each resource.
    pub(crate) fn max(self, other: Self) -> Self {
        self.combined(other, u64::max)
    }

    /// Combines the amounts of each resource.
    pub(crate) fn combined(self, other: Self, combine: fn(u64, u64) -> u64) -> Self {
        Self::of(|resource| combine(self.get(resource), other.get(resource)))
    }
}

/// Returns the amount that evicting all candidates frees.
pub(crate) fn total(candidates: &[Candidate]) -> Amount {
    let amounts = candidates.iter().copied().map(of);
    amounts.fold(Amount::default(), Amount::plus)
}

/// Returns the amount that evicting one candidate frees, without folders that become empty.
pub(crate) const fn of(candidate: Candidate) -> Amount {
    Amount {
        bytes: candidate.bytes,
        files: 1,
    }
}
