//! Visits to the entries of the index: to all, by part, or by id.

use std::collections::HashMap;

use super::{Entry, Index, SHARDS, Shard, Space};
use gorego_storage::EntryId;

/// The number of slots that are visited under one lock of a shard.
const VISIT_STEP: u32 = 1000;

/// The usage of an instance name, ordered from the least used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InstanceUse {
    pub(crate) results: u64,
    /// The last use of any of them, in milliseconds since the Unix epoch.
    pub(crate) last_use: u64,
}

impl Index {
    /// Passes each entry once, in no order, and `true` for a pinned one. Flags and times may be changed.
    pub(crate) fn visit(&self, mut see: impl FnMut(EntryId, &mut Entry, bool)) {
        (0..SHARDS).for_each(|part| self.visit_part(part, &mut see));
    }

    /// Visits each entry of one of [`SHARDS`] parts.
    fn visit_part(&self, part: usize, mut see: impl FnMut(EntryId, &mut Entry, bool)) {
        let Some(shard) = self.shards.get(part) else {
            return;
        };
        let mut from = 0;
        loop {
            let Shard { slab, pins, .. } = &mut *shard.lock();
            let end = slab.end();
            let until = end.min(from + VISIT_STEP);
            for slot in from..until {
                if let Some(entry) = slab.get_mut(slot)
                    && !entry.is_vacant()
                {
                    let is_pinned = !pins.is_empty() && pins.contains_key(&entry.key());
                    see(id(part, slot), entry, is_pinned);
                }
            }
            from = until;
            if from == end {
                return;
            }
        }
    }

    /// Visits each entry of one of [`SHARDS`] parts, and collects what `pick` returns.
    pub(crate) fn pick<T>(
        &self,
        part: usize,
        mut pick: impl FnMut(&mut Entry) -> Option<T>,
    ) -> Vec<T> {
        let mut picked = Vec::new();
        self.visit_part(part, |_, entry, _| picked.extend(pick(entry)));
        picked
    }

    /// Returns the instances that have a result, by number.
    pub(crate) fn instances(&self) -> HashMap<u32, InstanceUse> {
        let mut instances = HashMap::new();
        self.visit(|_, entry, _| {
            if let Space::Ac(number) = entry.key().space {
                let used: &mut InstanceUse = instances.entry(number).or_default();
                used.results += 1;
                used.last_use = used.last_use.max(entry.last_use());
            }
        });
        instances
    }

    /// Returns the entry with this id, unless it was removed.
    pub(crate) fn by_id(&self, id: EntryId) -> Option<Entry> {
        let (part, slot) = place(id)?;
        let shard = self.shards.get(part)?.lock();
        let entry = shard.slab.get(slot);
        entry.filter(|entry| !entry.is_vacant()).copied()
    }
}

fn id(part: usize, slot: u32) -> EntryId {
    EntryId((part as u64) << 32 | u64::from(slot))
}

fn place(id: EntryId) -> Option<(usize, u32)> {
    let slot = u32::try_from(id.0 & u64::from(u32::MAX)).ok()?;
    Some((usize::try_from(id.0 >> 32).ok()?, slot))
}
