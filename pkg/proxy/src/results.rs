//! Action results of two tiers.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, ActionCacheExt as _, BlobStore, CachedResult, Digest, Error, Outputs, Result,
};
use reapi::v2::ActionResult;
use tokio::sync::Semaphore;

use crate::{
    backing::Epoch,
    outbox::Outbox,
    outputs::{is_complete, stored_outputs},
    prefetch::{self, Prefetch},
    presence::{Presence, UploadingBlobs},
    recent::Recent,
    store::ProxyStore,
    tiers::Tiers,
    versions::Versions,
};

/// The most results that are revalidated, or whose outputs are leased, in the background at once.
const IN_BACKGROUND: usize = 16;
/// The most results that are remembered for one purpose.
const REMEMBERED: usize = 16 * 1024;

/// An instance name and an action.
type Name = (String, Digest);

/// Action results whose outputs each are in one of two tiers. A result of the local tier is served at once and
/// revalidated in the background. Others are fetched, and stored in the local tier.
#[derive(Clone)]
pub struct ProxyActions(Arc<Results>);

struct Results {
    tiers: Tiers,
    outbox: Arc<Outbox>,
    presence: Arc<Presence>,
    prefetch: Option<Arc<Prefetch>>,
    /// The blobs of both tiers.
    blobs: Arc<dyn BlobStore>,
    /// The results that the backing cache returned or accepted within `existence_ttl`.
    validated: Recent<(Epoch, Name)>,
    /// The results in the local tier that the backing cache returned.
    fetched: Recent<Name>,
    versions: Versions,
    background: Arc<Semaphore>,
}

impl ProxyActions {
    /// Creates the action cache of `store`'s two tiers.
    pub fn new(store: &ProxyStore) -> Self {
        let parts = &store.parts;
        Self(Arc::new(Results {
            tiers: parts.tiers.clone(),
            outbox: Arc::clone(&parts.outbox),
            presence: Arc::clone(&parts.presence),
            prefetch: parts.prefetch.clone(),
            blobs: Arc::new(store.clone()),
            validated: Recent::new(parts.tiers.options.existence_ttl, REMEMBERED),
            fetched: Recent::new(Duration::MAX, REMEMBERED),
            versions: Versions::default(),
            background: Arc::new(Semaphore::new(IN_BACKGROUND)),
        }))
    }
}

impl Results {
    /// Looks up all outputs in both tiers. Prefetches them if the result `is_hit`.
    async fn check(&self, action: &Digest, result: &ActionResult, is_hit: bool) -> Result<()> {
        let memory = self.tiers.options.memory.lookup_trees.clone();
        let mut outputs = Outputs::of(action, result, Arc::clone(&self.blobs), memory)?;
        let prefetch = self.prefetch.as_ref().filter(|_| is_hit);
        let mut remote = Vec::new();
        while let Some(digests) = outputs.next().await? {
            let (missing, not_local) = self.presence.find_unreadable(&digests).await?;
            if let Some(missing) = missing.first() {
                return Err(outputs.incomplete_without(missing).await);
            }
            if prefetch.is_some() && remote.len() < prefetch::OUTPUTS {
                remote.extend(not_local);
            }
        }
        if let Some(prefetch) = prefetch {
            prefetch.start(remote);
        }
        Ok(())
    }

    /// Returns the local tier's result, if all its outputs can be read from either tier.
    async fn get_local(&self, name: &Name, memory: &Budget) -> Result<CachedResult> {
        let found = ActionCache::get(&*self.tiers.local, &name.0, &name.1, memory).await?;
        self.check(&name.1, &found.result, true).await?;
        Ok(found)
    }

    /// Returns the backing cache's result, if it is complete. Stores it in the local tier, unless that has it
    /// as `local`.
    async fn fetch(
        self: &Arc<Self>,
        name: &Name,
        local: Option<&ActionResult>,
        memory: &Budget,
    ) -> Result<CachedResult> {
        let (instance, action) = name;
        let version = *self.versions.lock(name).await;
        let epoch = self.tiers.backing.epoch();
        let found = self.tiers.backing_results.get(instance, action, memory);
        let found = found.await?;
        if local != Some(&found.result) {
            self.check(action, &found.result, local.is_none()).await?;
            // A write to the disk does not end with its caller, so the lock must not either.
            let store = Arc::clone(self);
            let store = store.store_fetched(name.clone(), found.result.clone(), version);
            if let Err(error) = self.tiers.finish(action, store).await {
                tracing::debug!(%action, %error, "failed to store a result in the local tier");
            }
        }
        self.validated.insert((epoch, name.clone()));
        Ok(found)
    }

    /// Stores a fetched result in the local tier, unless one was written since `version`.
    async fn store_fetched(
        self: Arc<Self>,
        name: Name,
        result: ActionResult,
        version: u64,
    ) -> Result<()> {
        let current = self.versions.lock(&name).await;
        let (instance, action) = &name;
        if *current == version && !self.outbox.has_result(instance, action) {
            ActionCache::put(&*self.tiers.local, instance, action, result).await?;
            self.fetched.insert(name);
        }
        Ok(())
    }

    /// Fetches in the background the backing cache's result, which may differ from the local tier's by now.
    fn revalidate(self: &Arc<Self>, name: Name, local: &ActionResult) {
        // A result that the backing cache never received is not replaced by the one that it has.
        let is_own = self.tiers.options.read_only && !self.fetched.contains(&name)
            || self.outbox.has_result(&name.0, &name.1);
        let validated = (self.tiers.backing.epoch(), name.clone());
        if is_own || self.validated.contains(&validated) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.background).try_acquire_owned() else {
            return;
        };
        self.validated.insert(validated);
        let (results, local) = (Arc::clone(self), local.clone());
        self.tiers.spawn(async move {
            // Hits must not wait for memory that this holds while the backing cache is slow.
            let memory = &results.tiers.options.memory.transfer_trees;
            match results.fetch(&name, Some(&local), memory).await {
                Err(error) if !error.is_result_miss() => {
                    tracing::debug!(action = %name.1, %error, "failed to revalidate a result");
                }
                _ => {}
            }
            drop(permit);
        });
    }

    /// Stores a result in the backing cache. Returns true if it has to become pending instead.
    async fn upload(&self, name: &Name, result: &ActionResult) -> Result<bool> {
        let (instance, action) = name;
        if self.tiers.options.read_only {
            return Ok(false);
        }
        if self.follows_pending(name, result).await? {
            return Ok(true);
        }
        // A pending one of an earlier configuration must not replace this one later.
        let mut lock = None;
        if self.outbox.has_result(instance, action) {
            lock = Some(self.outbox.uploading.lock(name).await);
        }
        let put = self
            .tiers
            .backing_results
            .put(instance, action, result.clone());
        match put.await {
            Err(error) if self.tiers.degrades(&error) => return Ok(true),
            put => put?,
        }
        if lock.is_some() {
            self.outbox.supersede(instance, action).await;
        }
        Ok(false)
    }

    /// Whether a result has to become pending: an earlier result of the action or an output is pending, or an outage
    /// prevents the upload of an output. First uploads outputs that were reported as present while only the local tier
    /// had them.
    async fn follows_pending(&self, name: &Name, result: &ActionResult) -> Result<bool> {
        let (instance, action) = name;
        let is_in_outage = !self.outbox.is_empty() || self.presence.has_reported();
        if !self.tiers.may_degrade() || !is_in_outage {
            return Ok(false);
        }
        if self.outbox.has_result(instance, action) {
            return Ok(true);
        }
        let outputs = self.local_outputs(action, result).await?;
        if self.outbox.has_blob(&outputs) {
            return Ok(true);
        }
        let blobs: Arc<dyn BlobStore> = Arc::new(UploadingBlobs(Arc::clone(&self.presence)));
        let memory = &self.tiers.options.memory.transfer_trees;
        let complete = is_complete(action, result, blobs, memory).await;
        // Other errors are left to the backing cache.
        Ok(complete.is_err_and(|error| self.tiers.degrades(&error)))
    }

    /// Returns the outputs of a result in the local tier. They get a lease.
    async fn local_outputs(&self, action: &Digest, result: &ActionResult) -> Result<Vec<Digest>> {
        let memory = &self.tiers.options.memory.lookup_trees;
        stored_outputs(action, result, Arc::clone(&self.tiers.local) as _, memory).await
    }

    /// Stores a result in the local tier. If `is_pending`, adds it to the outbox first; after a failure it is in
    /// neither.
    async fn store(
        self: Arc<Self>,
        epoch: Epoch,
        name: Name,
        result: ActionResult,
        is_pending: bool,
    ) -> Result<()> {
        let (instance, action) = &name;
        if is_pending {
            // They were reported as present, so that no client uploads them.
            let outputs = self.local_outputs(action, &result).await?;
            self.outbox.add_outputs(outputs).await?;
        }
        let mut version = self.versions.lock(&name).await;
        let store = async {
            ActionCache::put(&*self.tiers.local, instance, action, result.clone()).await?;
            *version += 1;
            self.fetched.remove(&name);
            Ok(())
        };
        if is_pending {
            let replaced = self.tiers.local.find(instance, action).await;
            let replaced = replaced.unwrap_or_default();
            let (result, replaced) = (result.clone(), replaced.as_ref());
            let add = self
                .outbox
                .add_result(instance, action, result, replaced, store);
            add.await?;
        } else {
            store.await?;
        }
        drop(version);
        self.validated.insert((epoch, name.clone()));
        if !is_pending {
            self.lease_outputs(name.1, result).await;
        }
        Ok(())
    }

    /// Leases the outputs of a new result, since its client relies on them as after a hit. Works in the background, or
    /// before returning if [`IN_BACKGROUND`] such tasks run.
    async fn lease_outputs(self: &Arc<Self>, action: Digest, result: ActionResult) {
        let results = Arc::clone(self);
        let lease = async move {
            if let Err(error) = results.local_outputs(&action, &result).await {
                tracing::debug!(%action, %error, "failed to lease the outputs of an action result");
            }
        };
        match Arc::clone(&self.background).try_acquire_owned() {
            Ok(permit) => self.tiers.spawn(async move {
                lease.await;
                drop(permit);
            }),
            Err(_) => lease.await,
        }
    }
}

#[async_trait]
impl ActionCache for ProxyActions {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let (results, name) = (&self.0, (instance.to_owned(), *action));
        let local = match results.get_local(&name, memory).await {
            Ok(found) => {
                results.revalidate(name, &found.result);
                return Ok(found);
            }
            Err(error) if error.is_result_miss() => error,
            Err(error) => return Err(error),
        };
        match results.fetch(&name, None, memory).await {
            // The local tier's result may name the missing output.
            Err(Error::NoResult(_)) => Err(local),
            Err(error) if results.tiers.degrades(&error) => Err(local),
            found => found,
        }
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let (results, name) = (Arc::clone(&self.0), (instance.to_owned(), *action));
        *results.versions.lock(&name).await += 1;
        let epoch = results.tiers.backing.epoch();
        let is_pending = results.upload(&name, &result).await?;
        let store = Arc::clone(&results).store(epoch, name, result, is_pending);
        results.tiers.finish(action, store).await
    }
}

impl fmt::Debug for ProxyActions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyActions")
            .field("blobs", &self.0.blobs)
            .finish_non_exhaustive()
    }
}
