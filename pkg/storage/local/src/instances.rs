//! Numbers of instance names, so that an index entry names its instance in 24 bits.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};

use super::{disk::Disk, layout::InstanceHash};
use crate::index::{Entry, InstanceUse, SHARDS, Space};
use gorego_storage::{Error, Result};

/// The most instance names of one store.
const MAX: usize = if cfg!(test) { 64 } else { 1 << 16 };
/// The number of instance names dropped when all numbers are taken, so that not every new name searches the
/// index.
const FORGOTTEN: usize = MAX / 16;
const _: () = assert!(MAX <= crate::index::INSTANCE_END as usize);

/// The instances that have or had an action result.
#[derive(Default)]
pub(super) struct Instances {
    table: RwLock<Table>,
    /// Held while a new name gets a number, which may need a search of the index.
    naming: Mutex<()>,
}

#[derive(Default)]
struct Table {
    numbers: HashMap<InstanceHash, u32>,
    /// By number; `None` for a free number.
    instances: Vec<Option<Instance>>,
    /// The free numbers.
    free: Vec<u32>,
}

struct Instance {
    hash: InstanceHash,
    /// Shared with every call that is about to write a result.
    users: Arc<()>,
}

/// An instance's number. It stays the same for as long as this lives, or the index has a result of the
/// instance.
pub(super) struct InstanceNumber {
    pub(super) number: u32,
    _user: Arc<()>,
}

impl Instances {
    /// Returns the instance's number, if it has one.
    pub(super) fn number(&self, hash: &InstanceHash) -> Option<u32> {
        self.table.read().numbers.get(hash).copied()
    }

    /// Reserves the instance's number, if it has one.
    pub(super) fn find(&self, hash: &InstanceHash) -> Option<InstanceNumber> {
        let table = self.table.read();
        table.find(hash)
    }

    /// Reserves the instance's number; a new one if it has none, `None` if all are taken. `used` returns
    /// the numbers that the index uses, if it is scanned, and is called only when all are taken.
    pub(super) fn intern(
        &self,
        hash: &InstanceHash,
        used: impl FnOnce() -> Option<HashMap<u32, InstanceUse>>,
    ) -> Option<InstanceNumber> {
        let mut table = self.table.write();
        if let Some(interned) = table.find(hash) {
            return Some(interned);
        }
        if table.free.is_empty()
            && table.instances.len() == MAX
            && let Some(used) = used()
        {
            table.release_all_but(&used);
        }
        table.add(hash)
    }

    /// Returns the instance with this number.
    pub(super) fn hash(&self, number: u32) -> Option<InstanceHash> {
        let table = self.table.read();
        let instance = table.instances.get(usize::try_from(number).ok()?)?.as_ref();
        instance.map(|instance| instance.hash)
    }
}

impl Disk {
    /// Returns a number for a new instance name. When all are taken, drops names that have few results and
    /// were not used lately. Blocks.
    pub(super) fn name_instance(&self, hash: &InstanceHash) -> Result<InstanceNumber> {
        let _turn = self.instances.naming.lock();
        // Before the scan has ended, the index does not have them all.
        let used = || self.is_scanned().then(|| self.index.instances());
        if let Some(interned) = self.instances.intern(hash, used) {
            return Ok(interned);
        }
        if self.is_scanned() {
            self.forget_instances();
        }
        self.instances.intern(hash, used).ok_or_else(|| {
            Error::Unavailable(format!(
                "all {MAX} instance names of the action cache are taken, and none can be evicted \
                 before the data directory is scanned"
            ))
        })
    }

    /// Removes the results of the instance names that have the fewest, of those the least recently used.
    fn forget_instances(&self) {
        let uses = self.index.instances().into_iter();
        let mut uses: Vec<_> = uses.map(|(number, used)| (used, number)).collect();
        uses.sort_unstable();
        let oldest = uses.into_iter().take(FORGOTTEN);
        let forgotten: HashSet<u32> = oldest.map(|(_, number)| number).collect();
        let results = |entry: &mut Entry| {
            let key = entry.key();
            matches!(key.space, Space::Ac(number) if forgotten.contains(&number)).then_some(key)
        };
        let keys: Vec<_> = (0..SHARDS)
            .flat_map(|part| self.index.pick(part, results))
            .collect();
        let results = keys.len();
        for key in keys {
            if let Err(error) = self.remove_if(&key, |_, is_pinned| !is_pinned) {
                tracing::warn!(%error, "failed to remove an action result");
            }
        }
        tracing::warn!(
            instances = forgotten.len(),
            results,
            "all {MAX} instance names were taken; removed the results of those with the fewest"
        );
    }
}

impl Table {
    fn find(&self, hash: &InstanceHash) -> Option<InstanceNumber> {
        let number = *self.numbers.get(hash)?;
        let instance = self
            .instances
            .get(usize::try_from(number).ok()?)?
            .as_ref()?;
        Some(InstanceNumber {
            number,
            _user: Arc::clone(&instance.users),
        })
    }

    fn add(&mut self, hash: &InstanceHash) -> Option<InstanceNumber> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.instances.len() < MAX => {
                self.instances.push(None);
                u32::try_from(self.instances.len() - 1).ok()?
            }
            None => return None,
        };
        *self.instances.get_mut(usize::try_from(number).ok()?)? = Some(Instance {
            hash: *hash,
            users: Arc::default(),
        });
        self.numbers.insert(*hash, number);
        self.find(hash)
    }

    /// Frees the numbers that no call is about to use, except those of `used`.
    fn release_all_but(&mut self, used: &HashMap<u32, InstanceUse>) {
        for (number, place) in (0..).zip(&mut self.instances) {
            let idle = |instance: &mut Instance| {
                !used.contains_key(&number) && Arc::strong_count(&instance.users) == 1
            };
            if let Some(instance) = place.take_if(idle) {
                self.numbers.remove(&instance.hash);
                self.free.push(number);
            }
        }
    }
}

#[cfg(test)]
mod tests;
