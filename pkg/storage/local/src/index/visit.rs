//! Going through the index: all of it, part by part, or one entry after the other.

use std::{collections::HashMap, iter};

use super::{Entry, Index, SHARDS, Space, lock};
use gorego_storage::EntryId;

/// How many slots one lock of a shard covers while everything is visited.
const VISIT_STEP: u32 = 1000;

/// The usage of an instance name. The least used comes first in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InstanceUse {
    pub(crate) results: u64,
    /// The last use of any of them, in milliseconds since the Unix epoch.
    pub(crate) last_use: u64,
}

impl Index {
    /// Shows each entry once, in no order, and lets it be changed in its flags and times.
    pub(crate) fn visit(&self, mut see: impl FnMut(EntryId, &mut Entry)) {
        (0..SHARDS).for_each(|part| self.visit_part(part, &mut see));
    }

    /// The same for one of [`SHARDS`] parts.
    pub(crate) fn visit_part(&self, part: usize, mut see: impl FnMut(EntryId, &mut Entry)) {
        let Some(shard) = self.shards.get(part) else {
            return;
        };
        let mut from = 0;
        loop {
            let mut shard = lock(shard);
            let end = shard.slab.end();
            let until = end.min(from + VISIT_STEP);
            for slot in from..until {
                if let Some(entry) = shard.slab.get_mut(slot)
                    && !entry.is_vacant()
                {
                    see(id(part, slot), entry);
                }
            }
            from = until;
            if from == end {
                return;
            }
        }
    }

    /// The instances that have a result, by number.
    pub(crate) fn instances(&self) -> HashMap<u32, InstanceUse> {
        let mut instances = HashMap::new();
        self.visit(|_, entry| {
            if let Space::Ac(number) = entry.key().space {
                let used: &mut InstanceUse = instances.entry(number).or_default();
                used.results += 1;
                used.last_use = used.last_use.max(entry.last_use());
            }
        });
        instances
    }

    /// The entry with this number, unless it was removed.
    pub(crate) fn by_id(&self, id: EntryId) -> Option<Entry> {
        let (part, slot) = place(id)?;
        lock(self.shards.get(part)?)
            .slab
            .get(slot)
            .filter(|entry| !entry.is_vacant())
            .copied()
    }

    /// A number to start from, anywhere in the index.
    pub(crate) fn somewhere(seed: u64) -> EntryId {
        let part = usize::try_from(seed % SHARDS as u64).unwrap_or(0);
        id(part, 0)
    }

    /// The first entry with this number or a greater one; `None` after the last.
    pub(crate) fn first_from(&self, start: EntryId) -> Option<(EntryId, Entry)> {
        let (part, slot) = place(start)?;
        let parts = (part..).zip(self.shards.get(part..)?);
        parts
            .zip(iter::once(slot).chain(iter::repeat(0)))
            .find_map(|((part, shard), from)| {
                let shard = lock(shard);
                let mut slots = from..shard.slab.end();
                slots.find_map(|slot| {
                    let entry = shard.slab.get(slot).filter(|entry| !entry.is_vacant())?;
                    Some((id(part, slot), *entry))
                })
            })
    }
}

fn id(part: usize, slot: u32) -> EntryId {
    EntryId((part as u64) << 32 | u64::from(slot))
}

fn place(id: EntryId) -> Option<(usize, u32)> {
    let slot = u32::try_from(id.0 & u64::from(u32::MAX)).ok()?;
    Some((usize::try_from(id.0 >> 32).ok()?, slot))
}
