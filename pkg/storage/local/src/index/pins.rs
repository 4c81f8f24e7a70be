//! Pins of entries, and the files that were linked under them.

use std::collections::hash_map;

use rustix::fs::Timespec;

use super::{Index, Key};

const SECOND: i64 = 1_000_000_000;

/// The identity of a blob's file, and the time of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) inode: u64,
    /// In nanoseconds since the Unix epoch.
    pub(crate) mtime_ns: i64,
}

impl Stamp {
    /// Returns the time of change.
    pub(crate) const fn time(self) -> Timespec {
        Timespec {
            tv_sec: self.mtime_ns.div_euclid(SECOND),
            tv_nsec: self.mtime_ns.rem_euclid(SECOND),
        }
    }
}

/// The two files of which links are inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The file of the blob, for executable inputs.
    Blob,
    /// Its twin, for others.
    Twin,
}

/// The pins of one key, whether there is an entry under it or not.
#[derive(Default)]
pub(crate) struct PinRecord {
    /// The number of all pins.
    pins: u32,
    /// The number of those of actions.
    actions: u32,
    /// The room that the pins of actions reserve, in bytes.
    room: u64,
    /// The files when an action linked them first, until the last one releases them.
    linked: Linked,
}

/// The files that were linked under the pins of a key.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Linked {
    pub(crate) blob: Option<Stamp>,
    pub(crate) twin: Option<Stamp>,
}

impl PinRecord {
    pub(super) const fn add(&mut self) {
        self.pins += 1;
    }

    /// Removes a pin; `true` if it was the last.
    const fn remove(&mut self) -> bool {
        self.pins = self.pins.saturating_sub(1);
        self.pins == 0
    }
}

impl Index {
    pub(crate) fn unpin(&self, key: &Key) {
        if let Some((_, mut shard)) = self.shard(key)
            && let hash_map::Entry::Occupied(mut record) = shard.pins.entry(*key)
            && record.get_mut().remove()
        {
            record.remove();
        }
    }

    /// Pins a key for an action. Returns the room to reserve: `room`, or zero if another action reserves it.
    pub(crate) fn pin_for_action(&self, key: &Key, room: u64) -> u64 {
        let Some((_, mut shard)) = self.shard(key) else {
            return 0;
        };
        let record = shard.pins.entry(*key).or_default();
        record.add();
        record.actions += 1;
        if record.actions > 1 {
            return 0;
        }
        record.room = room;
        room
    }

    /// Ends the pin of an action. Returns the room that is no longer reserved.
    pub(crate) fn unpin_for_action(&self, key: &Key) -> u64 {
        let Some((_, mut shard)) = self.shard(key) else {
            return 0;
        };
        let hash_map::Entry::Occupied(mut entry) = shard.pins.entry(*key) else {
            return 0;
        };
        let record = entry.get_mut();
        record.actions = record.actions.saturating_sub(1);
        let mut released = 0;
        if record.actions == 0 {
            (released, record.linked) = (record.room, Linked::default());
        }
        if record.remove() {
            entry.remove();
        }
        released
    }

    /// Whether a file is the one that actions linked before, unchanged. Records it if it is the first under these
    /// pins.
    pub(crate) fn is_linked(&self, key: &Key, form: Form, stamp: Stamp) -> bool {
        let Some((_, mut shard)) = self.shard(key) else {
            return false;
        };
        let Some(record) = shard.pins.get_mut(key) else {
            return true;
        };
        let linked = match form {
            Form::Blob => &mut record.linked.blob,
            Form::Twin => &mut record.linked.twin,
        };
        *linked.get_or_insert(stamp) == stamp
    }

    /// Returns the files that were linked under the pins of this key.
    pub(crate) fn linked(&self, key: &Key) -> Linked {
        let shard = self.shard(key);
        let linked = shard.and_then(|(_, shard)| Some(shard.pins.get(key)?.linked));
        linked.unwrap_or_default()
    }
}
