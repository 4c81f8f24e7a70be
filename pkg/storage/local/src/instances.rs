//! Numbers of instance names, so that an index entry names its instance in 24 bits.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, RwLock};

use super::layout::InstanceHash;
use crate::index::InstanceUse;

/// The most instance names of one store.
pub(super) const MAX: usize = if cfg!(test) { 64 } else { 1 << 16 };
/// The number of instance names dropped when all numbers are taken, so that not every new name searches the
/// index.
pub(super) const DROPPED: usize = MAX / 16;
const _: () = assert!(MAX <= crate::index::INSTANCE_END as usize);

/// The instances that have or had an action result.
#[derive(Default)]
pub(super) struct Instances {
    table: RwLock<Table>,
    /// Held while a new name gets a number, which may need a search of the index.
    pub(super) naming: Mutex<()>,
}

#[derive(Default)]
struct Table {
    numbers: HashMap<InstanceHash, InstanceNumber>,
    /// By number; `None` for a free number.
    hashes: Vec<Option<InstanceHash>>,
}

/// An instance's number. It stays the same for as long as a clone of this lives, or the index has a result
/// of the instance.
#[derive(Clone)]
pub(super) struct InstanceNumber {
    pub(super) number: u32,
    users: Arc<()>,
}

impl Instances {
    /// Reserves the instance's number, if it has one.
    pub(super) fn find(&self, hash: &InstanceHash) -> Option<InstanceNumber> {
        self.table.read().numbers.get(hash).cloned()
    }

    /// Reserves the instance's number; a new one if it has none, `None` if all are taken.
    pub(super) fn intern(&self, hash: &InstanceHash) -> Option<InstanceNumber> {
        let Table { numbers, hashes } = &mut *self.table.write();
        if let Some(known) = numbers.get(hash) {
            return Some(known.clone());
        }
        if numbers.len() == hashes.len() && hashes.len() < MAX {
            hashes.push(None);
        }
        // The last is free if it is new.
        let free = hashes.iter().rposition(Option::is_none)?;
        *hashes.get_mut(free)? = Some(*hash);
        let new = InstanceNumber {
            number: u32::try_from(free).ok()?,
            users: Arc::default(),
        };
        numbers.insert(*hash, new.clone());
        Some(new)
    }

    /// Frees the numbers that no call has reserved and that are not among `used`, those of the index.
    pub(super) fn release_unused(&self, used: impl FnOnce() -> HashMap<u32, InstanceUse>) {
        let Table { numbers, hashes } = &mut *self.table.write();
        let idle = |(hash, user): (&InstanceHash, &InstanceNumber)| {
            (Arc::strong_count(&user.users) == 1).then_some((*hash, user.number))
        };
        // Before the look at the index, since a call may store a result and end in between.
        let idle: Vec<_> = numbers.iter().filter_map(idle).collect();
        let used = used();
        for (hash, number) in idle {
            if !used.contains_key(&number) {
                numbers.remove(&hash);
                hashes.get_mut(number as usize).and_then(Option::take);
            }
        }
    }

    pub(super) fn hash(&self, number: u32) -> Option<InstanceHash> {
        *self.table.read().hashes.get(number as usize)?
    }
}

#[cfg(test)]
mod tests;
