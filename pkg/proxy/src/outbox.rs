//! Writes that the backing cache missed while it was down, until they are uploaded.
//!
//! Each pending write is a file in the local store's outbox: a hard link to a blob, or an encoded
//! action result.

mod entry;
mod queue;
pub(crate) mod upload;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use gorego_storage::{Blob, BlobStore as _, Digest, Error, LocalStore, Result};
use reapi::v2::ActionResult;
use tokio::sync::watch;

use self::{
    entry::file_name,
    queue::{PendingWrite, Queue},
};
pub(crate) use self::{
    entry::{ResultEntry, WriteKey, fingerprint},
    queue::Outcome,
};
use crate::writes::Writes;

/// The number of entries that are read or written at once.
const AT_ONCE: usize = 16;

/// The amount of pending writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Blobs and action results.
    pub entries: u64,
    /// The action results among them.
    pub results: u64,
    /// Their bytes, of those that may be pending.
    pub bytes: u64,
}

/// The pending writes of a local store, in the order in which they were accepted.
pub struct Outbox {
    local: Arc<LocalStore>,
    max_bytes: u64,
    queue: Mutex<Queue>,
    /// Held during the upload of a result while a result of its action is pending.
    pub(crate) uploading: Writes,
    depth: watch::Sender<Depth>,
}

/// Room in the outbox for writes that are being accepted.
struct Reservation<'a> {
    outbox: &'a Outbox,
    bytes: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.outbox.queue().reserved -= self.bytes;
    }
}

impl Outbox {
    /// Opens the outbox of `local`, in which at most `max_bytes` may be pending. Blobs are pinned
    /// without being read. A corrupt entry is removed.
    pub async fn open(local: Arc<LocalStore>, max_bytes: u64) -> Result<Self> {
        let outbox = Self {
            local,
            max_bytes,
            queue: Mutex::default(),
            uploading: Writes::default(),
            depth: watch::Sender::default(),
        };
        let (mut last, mut blobs, mut results) = (None, Vec::new(), Vec::new());
        for name in outbox.local.outbox_names().await? {
            let Some((number, key)) = entry::parse(&name) else {
                tracing::warn!(name, "file in the outbox is no pending write; left alone");
                continue;
            };
            last = Some(number);
            match key {
                WriteKey::Blob(digest) => blobs.push((number, digest)),
                WriteKey::Result(..) => results.push((number, key)),
            }
        }
        outbox.queue().start_after(last);
        outbox.load_blobs(blobs).await?;
        outbox.load_results(results).await;
        outbox.update_depth();
        Ok(outbox)
    }

    async fn load_blobs(&self, blobs: Vec<(u64, Digest)>) -> Result<()> {
        let digests = blobs.iter().map(|(_, digest)| *digest).collect();
        let pins = self.local.keep_unread(digests).await?;
        let mut replaced = Vec::new();
        for ((number, digest), pin) in blobs.into_iter().zip(pins) {
            let pin = pin.unwrap_or_else(|error| {
                tracing::warn!(%digest, %error, "pending blob is not pinned");
                None
            });
            let write = PendingWrite::blob(digest, pin);
            replaced.extend(self.queue().insert(number, write));
        }
        self.unlink(replaced).await;
        Ok(())
    }

    async fn load_results(&self, results: Vec<(u64, WriteKey)>) {
        let loads = results.into_iter().map(|(number, key)| async move {
            let read = self.read(number, &key).await;
            (number, key, read)
        });
        let mut loads = stream::iter(loads.collect::<Vec<_>>()).buffered(AT_ONCE);
        let mut unlinked = Vec::new();
        while let Some((number, key, read)) = loads.next().await {
            match read {
                Ok(Some((entry, len))) => {
                    let write = PendingWrite::result(entry, key.digest(), len);
                    unlinked.extend(self.queue().insert(number, write));
                }
                Ok(None) => {
                    let action = key.digest();
                    tracing::error!(%action, "removed a corrupt result from the outbox");
                    unlinked.push(file_name(number, &key));
                }
                Err(error) => tracing::error!(%error, "pending result is left for the next start"),
            }
        }
        drop(loads);
        self.unlink(unlinked).await;
    }

    /// Reads a pending result, and the length of its file; `None` if it is corrupt or gone.
    async fn read(&self, number: u64, key: &WriteKey) -> Result<Option<(ResultEntry, u64)>> {
        let Some(file) = self.local.outbox_open(&file_name(number, key)).await? else {
            return Ok(None);
        };
        let content = file.into_bytes().await?;
        let entry = ResultEntry::from_file(&content, key.digest());
        Ok(entry.map(|entry| (entry, content.len() as u64)))
    }

    /// Returns the amount of pending writes in a data directory that this process does not use; their
    /// kinds are not looked at.
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

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the amount of pending writes, and notifies of changes.
    pub fn depth(&self) -> watch::Receiver<Depth> {
        self.depth.subscribe()
    }

    fn update_depth(&self) {
        let depth = self.queue().depth();
        self.depth.send_if_modified(|last| {
            let is_new = *last != depth;
            *last = depth;
            is_new
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.depth.borrow().entries == 0
    }

    /// Whether a result of the action is pending.
    pub(crate) fn has_result(&self, instance: &str, action: &Digest) -> bool {
        !self.is_empty() && self.queue().has(&WriteKey::result(instance, action))
    }

    /// Whether one of the blobs is pending.
    pub(crate) fn has_blob(&self, digests: &[Digest]) -> bool {
        let queue = self.queue();
        let mut keys = digests.iter().map(|digest| WriteKey::Blob(*digest));
        keys.any(|key| queue.has(&key))
    }

    /// Adds a blob once `publish` has stored it in the local tier.
    ///
    /// # Errors
    /// There is no room in the outbox; then `publish` does not run.
    pub(crate) async fn add_blob<T>(
        &self,
        digest: &Digest,
        publish: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if digest.is_empty_blob() {
            return publish.await;
        }
        let _room = self.reserve(&[(WriteKey::Blob(*digest), queue::room(digest.size()))])?;
        let published = publish.await?;
        self.link(*digest).await?;
        Ok(published)
    }

    /// Adds outputs of a result that are in the local tier and not pending yet.
    pub(crate) async fn add_outputs(&self, mut digests: Vec<Digest>) -> Result<()> {
        {
            let queue = self.queue();
            digests.retain(|digest| !digest.is_empty_blob() && !queue.has_pinned(digest));
        }
        let writes = digests.iter();
        let writes = writes.map(|digest| (WriteKey::Blob(*digest), queue::room(digest.size())));
        let _room = self.reserve(&writes.collect::<Vec<_>>())?;
        let links = stream::iter(digests).map(|digest| self.link(digest));
        links.buffered(AT_ONCE).try_collect().await
    }

    /// Pins a blob and links it into the outbox.
    async fn link(&self, digest: Digest) -> Result<()> {
        let gone = || Error::Unavailable(format!("blob {digest} left the local tier"));
        let pin = self.local.keep(&digest).await?.ok_or_else(gone)?;
        let number = self.queue().take_number();
        let name = file_name(number, &WriteKey::Blob(digest));
        let linked = self.local.outbox_link(name.clone(), digest).await;
        self.or_name(name, linked).await?;
        self.insert(number, PendingWrite::blob(digest, Some(pin)))
            .await;
        Ok(())
    }

    /// Writes an entry that only names its blob, where the file system made no link.
    async fn or_name(&self, name: String, linked: Result<()>) -> Result<()> {
        match linked {
            Err(Error::Io { source, .. }) if source.kind() != io::ErrorKind::NotFound => {
                self.local.outbox_write(name, Vec::new()).await
            }
            linked => linked,
        }
    }

    /// Adds a result, which `store` then stores in the local tier in place of `local`. If that fails,
    /// the result is not pending.
    pub(crate) async fn add_result(
        &self,
        instance: &str,
        action: &Digest,
        result: ActionResult,
        local: Option<&ActionResult>,
        store: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let key = WriteKey::result(instance, action);
        let replaced = self.queue().replaced_by(&key, local.map(fingerprint));
        let entry = ResultEntry::new(instance, action, result, replaced);
        let file = entry.to_file();
        let len = file.len() as u64;
        let _room = self.reserve(&[(key.clone(), queue::room(len))])?;
        let number = self.queue().take_number();
        let name = file_name(number, &key);
        self.local.outbox_write(name.clone(), file).await?;
        if let Err(error) = store.await {
            self.unlink(vec![name]).await;
            return Err(error);
        }
        self.insert(number, PendingWrite::result(entry, action, len))
            .await;
        Ok(())
    }

    fn reserve(&self, writes: &[(WriteKey, u64)]) -> Result<Reservation<'_>> {
        let mut queue = self.queue();
        let (bytes, all) = queue.with(writes);
        if let Some((key, _)) = writes.first()
            && bytes > 0
            && all > self.max_bytes
        {
            let (digest, max) = (key.digest(), self.max_bytes);
            return Err(Error::Unavailable(format!(
                "no room for {digest} in the outbox, which may hold {max} bytes \
                 (backing_cache.journal_max)"
            )));
        }
        queue.reserved += bytes;
        Ok(Reservation {
            outbox: self,
            bytes,
        })
    }

    /// Stores a blob anew that the local tier has lost, as far as its entry holds the content.
    async fn restore(&self, number: u64, digest: &Digest) -> bool {
        let name = file_name(number, &WriteKey::Blob(*digest));
        match self.local.outbox_open(&name).await {
            Ok(Some(Blob::File(file))) if file.len == digest.size() => {
                let restored = self.local.put(digest, Blob::File(file)).await;
                restored.is_ok()
            }
            _ => false,
        }
    }

    /// Records the outcomes of uploads. See [`Queue::settle`].
    async fn settle(&self, outcomes: Vec<(u64, Outcome)>, retry: Duration) {
        let removed = {
            let mut queue = self.queue();
            let outcomes = outcomes.into_iter();
            let removed =
                outcomes.filter_map(|(number, outcome)| queue.settle(number, outcome, retry));
            removed.collect()
        };
        self.unlink(removed).await;
        self.update_depth();
    }

    async fn insert(&self, number: u64, write: PendingWrite) {
        let replaced = self.queue().insert(number, write);
        self.update_depth();
        self.unlink(replaced.into_iter().collect()).await;
    }

    /// Drops the pending result of an action, since the backing cache has accepted a newer one.
    pub(crate) async fn supersede(&self, instance: &str, action: &Digest) {
        let key = WriteKey::result(instance, action);
        let removed = self.queue().remove_key(&key);
        self.unlink(removed.into_iter().collect()).await;
        self.update_depth();
    }

    /// Records that the backing cache accepted a write, pending or not.
    pub(crate) fn accepted(&self) {
        if !self.is_empty() {
            self.queue().acceptance.accepted();
        }
    }

    /// Removes files. One that stays is uploaded again after a restart, which does no harm.
    async fn unlink(&self, names: Vec<String>) {
        if !names.is_empty()
            && let Err(error) = self.local.outbox_remove(names).await
        {
            tracing::warn!(%error, "uploaded writes stay in the outbox");
        }
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
