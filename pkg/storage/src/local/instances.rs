//! Numbers for instance names, so that an index entry names its instance in 24 bits.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
};

use super::layout::InstanceHash;
use crate::{Error, Result};

/// How many instance names one store tells apart.
const MAX: usize = 1 << 16;
const _: () = assert!(MAX <= crate::index::INSTANCE_END as usize);

/// The instances that have an action result, or had one.
#[derive(Default)]
pub(super) struct Instances {
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    numbers: HashMap<InstanceHash, u32>,
    /// By number; those without a name are free.
    instances: Vec<Option<Instance>>,
    /// Where to look for a free number.
    free: Vec<u32>,
}

struct Instance {
    hash: InstanceHash,
    /// Shared with those who are about to write a result.
    users: Arc<()>,
}

/// An instance's number, which stays the same for as long as this lives, and after that for as
/// long as the index has a result of it.
pub(super) struct Interned {
    pub(super) number: u32,
    _user: Arc<()>,
}

impl Instances {
    /// The instance's number, if it has one.
    pub(super) fn number(&self, hash: &InstanceHash) -> Option<u32> {
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .numbers
            .get(hash)
            .copied()
    }

    /// The instance's number, if it has one, for use.
    pub(super) fn find(&self, hash: &InstanceHash) -> Option<Interned> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.find(hash)
    }

    /// The instance's number; a new one when it has none. `used` tells which numbers the index
    /// uses, if it knows, and is asked only when all are taken.
    pub(super) fn intern(
        &self,
        hash: &InstanceHash,
        used: impl FnOnce() -> Option<HashSet<u32>>,
    ) -> Result<Interned> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(interned) = table.find(hash) {
            return Ok(interned);
        }
        if table.free.is_empty()
            && table.instances.len() == MAX
            && let Some(used) = used()
        {
            table.release_all_but(&used);
        }
        table.add(hash).ok_or_else(|| Error::Full {
            what: "the action results of another instance name".to_owned(),
            bytes: 0,
            why: format!("the action cache tells at most {MAX} instance names apart"),
        })
    }

    /// The instance with this number.
    pub(super) fn hash(&self, number: u32) -> Option<InstanceHash> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let instance = table.instances.get(usize::try_from(number).ok()?)?.as_ref();
        instance.map(|instance| instance.hash)
    }
}

impl Table {
    fn find(&self, hash: &InstanceHash) -> Option<Interned> {
        let number = *self.numbers.get(hash)?;
        let instance = self
            .instances
            .get(usize::try_from(number).ok()?)?
            .as_ref()?;
        Some(Interned {
            number,
            _user: Arc::clone(&instance.users),
        })
    }

    fn add(&mut self, hash: &InstanceHash) -> Option<Interned> {
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

    /// Frees the numbers that nobody is about to use, except those of `used`.
    fn release_all_but(&mut self, used: &HashSet<u32>) {
        for (number, place) in (0..).zip(&mut self.instances) {
            let idle = |instance: &mut Instance| {
                !used.contains(&number) && Arc::strong_count(&instance.users) == 1
            };
            if let Some(instance) = place.take_if(idle) {
                self.numbers.remove(&instance.hash);
                self.free.push(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u32) -> InstanceHash {
        let mut hash = InstanceHash::default();
        hash[..4].copy_from_slice(&number.to_le_bytes());
        hash
    }

    #[test]
    fn a_number_is_given_anew_once_nothing_of_its_instance_is_left() {
        let instances = Instances::default();
        let never = || panic!("not all numbers are taken");
        let held = instances.intern(&hash(0), never).unwrap();
        for number in 1..65_536 {
            let interned = instances.intern(&hash(number), never).unwrap();
            assert_eq!(instances.hash(interned.number), Some(hash(number)));
        }
        let all = || Some((0..65_536).collect());
        assert!(instances.intern(&hash(65_536), all).is_err());
        assert!(instances.intern(&hash(65_536), || None).is_err());
        // The index has results of all but two, and one of the two is about to get one.
        let all_but_two = || Some((2..65_536).collect());
        let new = instances.intern(&hash(65_536), all_but_two).unwrap();
        assert_eq!(instances.number(&hash(1)), None);
        assert_eq!(instances.hash(new.number), Some(hash(65_536)));
        assert_eq!(instances.number(&hash(0)), Some(held.number));
    }
}
