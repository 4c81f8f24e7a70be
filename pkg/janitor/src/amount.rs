//! Amounts that eviction has to free: bytes and files.

use gorego_storage::{Candidate, Resource};

/// Bytes on the disk, and files, of which a file system can hold only so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// In bytes.
    pub bytes: u64,
    /// In number.
    pub files: u64,
}

impl Amount {
    /// Takes the amount of each resource from `amount`.
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

    /// Bytes alone.
    pub const fn of_bytes(bytes: u64) -> Self {
        Self { bytes, files: 0 }
    }

    /// Whether both are zero.
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// Whether this is at least `other` in both.
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

    /// The larger of the two in each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.max(other.bytes),
            files: self.files.max(other.files),
        }
    }

    /// The smaller of the two in each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.min(other.bytes),
            files: self.files.min(other.files),
        }
    }
}

/// Returns the amount that evicting all of these frees.
pub(crate) fn total(candidates: &[Candidate]) -> Amount {
    candidates
        .iter()
        .copied()
        .map(of)
        .fold(Amount::default(), Amount::plus)
}

/// Returns the amount that evicting this one frees. Folders that go with it are not counted.
pub(crate) const fn of(candidate: Candidate) -> Amount {
    Amount {
        bytes: candidate.bytes,
        files: 1,
    }
}
