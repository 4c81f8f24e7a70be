//! Amounts that eviction has to free: bytes and files.

use gorego_storage::{Candidate, Resource};

/// An amount of disk space and of files (inodes): a file system has a limited number of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes on the disk.
    pub bytes: u64,
    /// The number of files.
    pub files: u64,
}

impl Amount {
    /// Creates an amount by calling `amount` for each resource.
    pub fn of(amount: impl Fn(Resource) -> u64) -> Self {
        Self {
            bytes: amount(Resource::Bytes),
            files: amount(Resource::Files),
        }
    }

    /// Returns the amount of one resource.
    pub const fn get(self, resource: Resource) -> u64 {
        match resource {
            Resource::Bytes => self.bytes,
            Resource::Files => self.files,
        }
    }

    /// Creates an amount of bytes alone.
    pub const fn of_bytes(bytes: u64) -> Self {
        Self { bytes, files: 0 }
    }

    /// Whether the amount of each resource is zero.
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// Whether this is at least `other` for each resource.
    pub const fn covers(self, other: Self) -> bool {
        self.bytes >= other.bytes && self.files >= other.files
    }

    /// Adds the other amount.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            files: self.files.saturating_add(other.files),
        }
    }

    /// Subtracts the other amount; nothing falls below zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            files: self.files.saturating_sub(other.files),
        }
    }

    /// Returns the larger amount of each resource.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.max(other.bytes),
            files: self.files.max(other.files),
        }
    }

    /// Returns the smaller amount of each resource.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.min(other.bytes),
            files: self.files.min(other.files),
        }
    }
}

/// Returns the amount that evicting all candidates frees.
pub(crate) fn total(candidates: &[Candidate]) -> Amount {
    candidates
        .iter()
        .copied()
        .map(of)
        .fold(Amount::default(), Amount::plus)
}

/// Returns the amount that evicting one candidate frees, without folders that become empty.
pub(crate) const fn of(candidate: Candidate) -> Amount {
    Amount {
        bytes: candidate.bytes,
        files: 1,
    }
}
