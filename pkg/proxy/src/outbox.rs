//! Writes that the backing cache missed while it was down, until they are uploaded.
//!
//! Each pending write is a file in the local store's outbox: a hard link to a blob, or an encoded
//! action result.

pub(crate) mod entry;
pub(crate) mod queue;

use std::{
    fmt, fs, io, mem,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use gorego_storage::{BlobStore as _, BlobStoreExt as _, Digest, Error, Result};
use gorego_storage_local::LocalStore;
use parking_lot::Mutex;
use reapi::v2::ActionResult;
use tokio::sync::watch;

use self::{
    entry::{ResultEntry, WriteKey, file_name, fingerprint},
    queue::{Depth, PendingWrite, Queue, ReplayError},
};
use crate::shared::Shared;

/// The number of entries that are written at once.
const AT_ONCE: usize = 16;

/// The pending writes of a local store, in the order in which they were accepted.
pub struct Outbox {
    local: Arc<LocalStore>,
    max_bytes: u64,
    pub(crate) queue: Mutex<Queue>,
    /// The locks for the uploads of results, by instance name and action.
    pub(crate) uploading: Shared<(String, Digest), tokio::sync::Mutex<()>>,
    depth: watch::Sender<Depth>,
}

/// Bytes reserved in the outbox for writes that are being accepted.
struct Reservation<'a>(&'a Outbox, AtomicU64);

impl Reservation<'_> {
    /// Adds a write, which counts from now on in place of its reserved bytes.
    async fn insert(&self, number: u64, write: PendingWrite, room: u64) {
        let replaced = {
            let mut queue = self.0.queue.lock();
            queue.reserved -= room;
            self.1.fetch_sub(room, Relaxed);
            queue.insert(number, write)
        };
        self.0.unlink(replaced).await;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().reserved -= *self.1.get_mut();
    }
}

impl Outbox {
    /// Opens the outbox of `local`, in which at most `max_bytes` may be pending. Blobs are pinned
    /// without being read. A corrupt result is removed.
    pub async fn open(local: Arc<LocalStore>, max_bytes: u64) -> Result<Self> {
        let outbox = Self {
            local,
            max_bytes,
            queue: Mutex::default(),
            uploading: Shared::default(),
            depth: watch::Sender::default(),
        };
        let names = outbox.local.outbox_names().await?;
        let entries = names.iter().filter_map(|name| {
            let entry = entry::parse(name);
            if entry.is_none() {
                tracing::warn!(
                    name,
                    "ignored a file in the outbox that is no pending write"
                );
            }
            entry
        });
        let entries: Vec<_> = entries.collect();
        let last = entries.last().map_or(0, |(number, _)| *number);
        let loads = stream::iter(entries).map(|(number, key)| outbox.load(number, key));
        let mut loads = loads.buffered(AT_ONCE);
        while let Some(loaded) = loads.next().await {
            if let Some((number, write)) = loaded {
                let replaced = outbox.queue.lock().insert(number, write);
                outbox.unlink(replaced).await;
            }
        }
        drop(loads);
        outbox.queue.lock().start_after(last);
        Ok(outbox)
    }

    /// Returns the pending write of an entry, unless it is unreadable.
    async fn load(&self, number: u64, key: WriteKey) -> Option<(u64, PendingWrite)> {
        let write = match &key {
            WriteKey::Blob(digest) => {
                let pin = self.local.pin_unverified(digest).await;
                let pin = pin.unwrap_or_else(|error| {
                    tracing::warn!(%digest, %error, "failed to pin a pending blob");
                    None
                });
                PendingWrite::blob(digest, pin)
            }
            WriteKey::Result(_, action) => match self.read(number, action).await {
                Ok(Some(entry)) => PendingWrite::result(entry, action),
                Ok(None) => {
                    tracing::error!(%action, "removed a corrupt result from the outbox");
                    self.unlink(Some(file_name(number, &key))).await;
                    return None;
                }
                Err(error) => {
                    tracing::error!(%action, %error, "failed to read a pending result");
                    return None;
                }
            },
        };
        Some((number, write))
    }

    /// Reads a pending result; `None` if its entry is corrupt or missing.
    pub(crate) async fn read(&self, number: u64, action: &Digest) -> Result<Option<ResultEntry>> {
        let name = file_name(number, &WriteKey::result("", action));
        let Some(file) = self.local.outbox_open(&name).await? else {
            return Ok(None);
        };
        let content = file.into_bytes().await?;
        Ok(ResultEntry::from_file(&content, action))
    }

    /// Returns the amount of pending writes in a data directory that this process does not use. Results count
    /// only among the entries.
    pub fn pending_in(data: &Path) -> io::Result<Depth> {
        let mut depth = Depth::default();
        for file in fs::read_dir(LocalStore::outbox_of(data))? {
            depth.entries += 1;
            depth.bytes += queue::room(file?.metadata()?.len());
        }
        Ok(depth)
    }

    /// Returns the journal of an earlier version in a data directory, if writes are pending in it.
    pub fn old_journal(data: &Path) -> Option<PathBuf> {
        let log = data.join("journal/log");
        let is_used = fs::metadata(&log).is_ok_and(|metadata| metadata.len() > 0);
        is_used.then_some(log)
    }

    /// Returns the amount of pending writes, and notifies of changes.
    pub fn depth(&self) -> watch::Receiver<Depth> {
        self.depth.subscribe()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.depth.borrow().entries == 0
    }

    pub(crate) fn has_result(&self, instance: &str, action: &Digest) -> bool {
        let key = || WriteKey::result(instance, action);
        !self.is_empty() && self.queue.lock().get(&key()).is_some()
    }

    pub(crate) fn has_blob(&self, digests: &[Digest]) -> bool {
        let queue = self.queue.lock();
        let mut keys = digests.iter().map(|digest| WriteKey::Blob(*digest));
        keys.any(|key| queue.get(&key).is_some())
    }

    /// Adds blobs once `publish` has stored them in the local tier.
    ///
    /// # Errors
    /// `publish` does not run if the outbox has no room.
    pub(crate) async fn add_blobs<T>(
        &self,
        mut digests: Vec<Digest>,
        publish: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        digests.retain(|digest| !digest.is_empty_blob());
        let write = |digest: &Digest| (WriteKey::Blob(*digest), queue::room(digest.size()));
        let (rooms, reserved) = self.reserve(&digests.iter().map(write).collect::<Vec<_>>())?;
        let published = publish.await?;
        let links = stream::iter(digests.into_iter().zip(rooms));
        let links = links.map(|(digest, room)| self.link(digest, room, &reserved));
        links.buffered(AT_ONCE).try_collect::<()>().await?;
        Ok(published)
    }

    /// Adds outputs of a result that are in the local tier and not pending yet.
    pub(crate) async fn add_outputs(&self, mut digests: Vec<Digest>) -> Result<()> {
        digests.retain(|digest| !self.has_blob(&[*digest]));
        self.add_blobs(digests, async { Ok(()) }).await
    }

    /// Pins a blob and links it into the outbox.
    async fn link(&self, digest: Digest, room: u64, reserved: &Reservation<'_>) -> Result<()> {
        let missing = || Error::Unavailable(format!("blob {digest} is missing in the local tier"));
        let pin = self.local.pin_one(&digest).await?.ok_or_else(missing)?;
        let number = self.queue.lock().take_number();
        let name = file_name(number, &WriteKey::Blob(digest));
        self.local.outbox_link(name, digest).await?;
        let write = PendingWrite::blob(&digest, Some(pin));
        reserved.insert(number, write, room).await;
        Ok(())
    }

    /// Adds a result, which `store` then stores in the local tier in place of `local`. If that fails,
    /// the result is not pending.
    pub(crate) async fn add_result(
        &self,
        (instance, action): &(String, Digest),
        result: ActionResult,
        local: Option<&ActionResult>,
        store: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let key = WriteKey::result(instance, action);
        let replaced = self.queue.lock().replaced_by(&key, local.map(fingerprint));
        let entry = ResultEntry {
            instance: instance.clone(),
            action: Some(action.to_proto()),
            result,
            replaced,
        };
        let file = entry.to_file();
        let write = PendingWrite::result(entry, action);
        let (rooms, reserved) = self.reserve(&[(key.clone(), write.bytes)])?;
        let number = self.queue.lock().take_number();
        let name = file_name(number, &key);
        self.local.outbox_write(name.clone(), file).await?;
        if let Err(error) = store.await {
            self.unlink(Some(name)).await;
            return Err(error);
        }
        let room = rooms.first().copied().unwrap_or_default();
        reserved.insert(number, write, room).await;
        Ok(())
    }

    /// Reserves room for all writes or none. Returns the bytes of each.
    fn reserve(&self, writes: &[(WriteKey, u64)]) -> Result<(Vec<u64>, Reservation<'_>)> {
        let rooms = self.queue.lock().reserve(writes, self.max_bytes)?;
        let reserved = AtomicU64::new(rooms.iter().sum());
        Ok((rooms, Reservation(self, reserved)))
    }

    /// Drops the pending result of an action, since the backing cache has accepted a newer one.
    pub(crate) async fn supersede(&self, instance: &str, action: &Digest) {
        let key = WriteKey::result(instance, action);
        let removed = self.queue.lock().remove(&key);
        self.unlink(removed).await;
    }

    /// Records the outcome of an upload. Returns the reason if the write stays pending.
    pub(crate) async fn record_outcome(
        &self,
        number: u64,
        uploaded: Result<(), ReplayError>,
        retry: Duration,
    ) -> Result<()> {
        let removed = self.queue.lock().record_outcome(number, uploaded, retry)?;
        self.unlink(removed).await;
        Ok(())
    }

    /// Stores a blob again that the local tier has lost, if its entry has the content.
    pub(crate) async fn restore(&self, number: u64, digest: &Digest) -> Result<()> {
        if self.local.contains(digest).await? {
            return Ok(());
        }
        let name = file_name(number, &WriteKey::Blob(*digest));
        let entry = self.local.outbox_open(&name).await?;
        let content = entry.ok_or(Error::NotFound(*digest))?;
        self.local.put(digest, content).await.map(drop)
    }

    /// Removes the file of a write that left the queue, and notifies of its depth. If that fails, the write is
    /// uploaded again after a restart.
    async fn unlink(&self, name: Option<String>) {
        if let Some(name) = name
            && let Err(error) = self.local.outbox_remove(vec![name]).await
        {
            tracing::warn!(%error, "failed to remove an uploaded write from the outbox");
        }
        let depth = self.queue.lock().depth;
        self.depth
            .send_if_modified(|last| mem::replace(last, depth) != depth);
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("depth", &*self.depth.borrow())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
