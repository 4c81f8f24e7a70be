//! Pins of actions: the inputs of all running actions fit into the cache together.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
};

use scopeguard::defer;
use tokio::sync::{Mutex, Notify};

use super::{LocalStore, disk::Disk};
use crate::index::{Key, room_of};
use gorego_storage::{Digest, PinError, Pins};

/// The part of the limit that pins of actions may reserve, in tenths. The rest is for uploads, outputs and folders.
const TENTHS: u64 = 8;

/// The room reserved by the pins of actions.
pub(super) struct PinLedger {
    most: u64,
    reserved: AtomicU64,
    /// Pins that wait take turns, so that small ones do not overtake a large one.
    turn: Mutex<()>,
    /// Wakes the pin whose turn it is.
    released: Notify,
    /// The bytes that this pin lacks.
    lacking: AtomicU64,
}

/// The pins of one action, ended when dropped.
struct ActionPins {
    disk: Arc<Disk>,
    keys: Box<[Key]>,
}

impl PinLedger {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            most: (limit / 10).saturating_mul(TENTHS),
            reserved: AtomicU64::new(0),
            turn: Mutex::default(),
            released: Notify::new(),
            lacking: AtomicU64::new(0),
        }
    }
}

impl LocalStore {
    /// Implements [`gorego_storage::Links::lacking`].
    pub(super) fn lacking_for_pins(&self) -> u64 {
        self.disk.pins.lacking.load(Relaxed)
    }

    /// Reserves room for blobs that may be missing, and protects them from eviction as soon as they are stored.
    /// Otherwise like [`gorego_storage::Links::pin`].
    pub async fn reserve_pins(&self, digests: &[Digest]) -> Result<Pins, PinError> {
        let ledger = &self.disk.pins;
        let (mut seen, mut bytes) = (HashSet::new(), 0u64);
        let mut blobs = Vec::new();
        for digest in digests.iter().filter(|digest| !digest.is_empty_blob()) {
            let (key, room) = (Key::cas(digest), room_of(digest.size()));
            if seen.insert(key) {
                bytes = bytes.saturating_add(room);
                blobs.push((key, room));
            }
        }
        drop(seen);
        if bytes > ledger.most {
            let why = format!(
                "pins may reserve {} bytes, 80 % of the cache (local_cache.max_size_gb)",
                ledger.most
            );
            return Err(PinError::Full { bytes, why });
        }
        let _turn = ledger.turn.lock().await;
        defer! { ledger.lacking.store(0, Relaxed) }
        loop {
            match self.disk.try_pin(&blobs) {
                Ok(pins) => return Ok(Pins::new(pins)),
                Err(lacking) => ledger.lacking.store(lacking, Relaxed),
            }
            ledger.released.notified().await;
        }
    }
}

impl Disk {
    /// Pins all blobs, or none if that exceeds the limit: returns by how many bytes. The caller has the turn.
    fn try_pin(self: &Arc<Self>, blobs: &[(Key, u64)]) -> Result<ActionPins, u64> {
        let pinned = blobs
            .iter()
            .map(|(key, room)| self.index.pin_for_action(key, *room));
        let more = pinned.fold(0, u64::saturating_add);
        let before = self.pins.reserved.fetch_add(more, AcqRel);
        let lacking = before.saturating_add(more).saturating_sub(self.pins.most);
        if lacking > 0 {
            self.unpin_all(blobs.iter().map(|(key, _)| key));
            return Err(lacking);
        }
        Ok(ActionPins {
            disk: Arc::clone(self),
            keys: blobs.iter().map(|(key, _)| *key).collect(),
        })
    }

    fn unpin_all<'a>(&self, keys: impl Iterator<Item = &'a Key>) {
        let released = keys.map(|key| self.index.unpin_for_action(key));
        let released = released.fold(0, u64::saturating_add);
        self.pins.reserved.fetch_sub(released, AcqRel);
    }
}

impl Drop for ActionPins {
    fn drop(&mut self) {
        self.disk.unpin_all(self.keys.iter());
        self.disk.pins.released.notify_one();
    }
}
