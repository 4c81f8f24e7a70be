//! The records of the nodes, as they arrive.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use foca::{BroadcastHandler, Invalidates};
use gorego_scheduler::Generation;
use parking_lot::Mutex;

use super::identity::Identity;
use crate::record::{Record, RecordError};

/// The newest record of each run of a node.
pub(super) struct Records {
    entries: HashMap<Generation, Entry>,
    max: usize,
    changed: Vec<Generation>,
}

struct Entry {
    record: Arc<Record>,
    counter: u32,
    item: Bytes,
    /// Set while no known node has this record.
    idle: bool,
}

impl Records {
    /// Creates a store of at most `max` records.
    pub(super) fn new(max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            max,
            changed: Vec::new(),
        }
    }

    /// Reads and stores an item. Returns its node if the item is newer than the stored one.
    fn insert_item(&mut self, item: &[u8]) -> Result<Option<Generation>, RecordError> {
        let Some((counter, encoded)) = item.split_first_chunk() else {
            return Err(RecordError::Encoding("too short".into()));
        };
        let record = Record::decode(encoded)?;
        let node = record.node.clone();
        let stored = self.insert(
            record,
            u32::from_be_bytes(*counter),
            Bytes::copy_from_slice(item),
        );
        Ok(stored.then_some(node))
    }

    /// Stores a record, unless it is older than the stored record of the same run. `item` is its encoding.
    fn insert(&mut self, record: Record, counter: u32, item: Bytes) -> bool {
        let node = record.node.clone();
        match self.entries.get(&node) {
            Some(entry) if entry.counter >= counter => return false,
            None if self.entries.len() >= self.max => return false,
            _ => {}
        }
        let entry = Entry {
            record: Arc::new(record),
            counter,
            item,
            idle: false,
        };
        self.entries.insert(node.clone(), entry);
        self.changed.push(node);
        true
    }

    /// Stores a record that came without a number from its node. Any numbered record replaces it.
    pub(super) fn insert_unnumbered(&mut self, record: &Record) {
        if !self.entries.contains_key(&record.node)
            && let Ok(item) = item(record, 0)
        {
            self.insert(record.clone(), 0, item);
        }
    }

    pub(super) fn get(&self, node: &Generation) -> Option<&Arc<Record>> {
        Some(&self.entries.get(node)?.record)
    }

    /// Returns the number of the record of `node`; 0 without one.
    pub(super) fn counter(&self, node: &Generation) -> u32 {
        self.entries.get(node).map_or(0, |entry| entry.counter)
    }

    pub(super) fn item(&self, node: &Generation) -> Option<&Bytes> {
        Some(&self.entries.get(node)?.item)
    }

    /// Returns the nodes whose records changed since the last call.
    pub(super) fn take_changed(&mut self) -> Vec<Generation> {
        mem::take(&mut self.changed)
    }

    /// Removes the records for which `known` returned false now and at the last call.
    pub(super) fn sweep(&mut self, known: impl Fn(&Generation) -> bool) {
        self.entries.retain(|node, entry| {
            let idle = !known(node);
            !(mem::replace(&mut entry.idle, idle) && idle)
        });
    }
}

/// Encodes a record after its number.
pub(super) fn item(record: &Record, counter: u32) -> Result<Bytes, RecordError> {
    let mut item = BytesMut::new();
    item.put_u32(counter);
    item.extend_from_slice(&record.encode()?);
    Ok(item.freeze())
}

/// The records, as foca and the membership share them.
#[derive(Clone)]
pub(super) struct SharedRecords(pub(super) Arc<Mutex<Records>>);

impl SharedRecords {
    /// Stores items that another node sent. Invalid ones are left out.
    pub(super) fn insert_items<'a>(&self, items: impl Iterator<Item = &'a Bytes>) {
        let mut records = self.0.lock();
        for item in items {
            let _ = records.insert_item(item);
        }
    }
}

/// The key of a record among foca's broadcasts.
pub(super) struct RecordKey(Generation);

impl Invalidates for RecordKey {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl BroadcastHandler<Identity> for SharedRecords {
    type Key = RecordKey;
    type Error = RecordError;

    fn receive_item(
        &mut self,
        item: &[u8],
        _sender: Option<&Identity>,
    ) -> Result<Option<RecordKey>, RecordError> {
        Ok(self.0.lock().insert_item(item)?.map(RecordKey))
    }
}
