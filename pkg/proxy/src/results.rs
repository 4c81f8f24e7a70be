//! Action results of two tiers.

use std::{slice::from_ref, sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, ActionCacheExt as _, BlobStore, CachedResult, Digest, Error, Outputs, Result,
    span::Tier,
};
use reapi::v2::ActionResult;
use tokio::sync::{Mutex, Semaphore};

use crate::{
    backing::Epoch,
    outputs::{is_complete, stored_outputs},
    prefetch::{self, Prefetch},
    presence::UploadingBlobs,
    recent::Recent,
    shared::Shared,
    store::ProxyStore,
    tiers::Tiers,
    uploads::Uploads,
};

/// The most results that are revalidated, or whose outputs are leased, in the background at once.
const IN_BACKGROUND: usize = 16;
/// The most results that are remembered for one purpose.
const REMEMBERED: usize = 16 * 1024;

type Name = (String, Digest);

/// Action results whose outputs each are in one of two tiers. A result of the local tier is served at once and
/// revalidated in the background. Others are fetched, and stored in the local tier.
#[derive(Clone, Debug)]
pub struct ProxyActions(Arc<Results>);

#[derive(Debug)]
struct Results {
    tiers: Tiers,
    /// The results of the local tier.
    local: Arc<dyn ActionCache>,
    uploads: Arc<Uploads>,
    prefetch: Option<Prefetch>,
    blobs: Arc<dyn BlobStore>,
    /// The results that the backing cache returned or accepted within `existence_ttl`.
    validated: Recent<(Epoch, Name)>,
    /// The results in the local tier that the backing cache returned.
    fetched: Recent<Name>,
    /// The numbers of writes of the results in use. Holding a number's lock excludes other writes.
    versions: Shared<Name, Mutex<u64>>,
    background: Arc<Semaphore>,
}

impl ProxyActions {
    /// Creates the action cache of `store`'s two tiers.
    pub fn new(store: &ProxyStore) -> Self {
        let local = Arc::clone(&store.uploads.tiers.local);
        Self::with_local(store, local)
    }

    /// Creates the action cache of `store`'s two tiers. Results of the local tier are read and written through `local`.
    pub fn with_local(store: &ProxyStore, local: Arc<dyn ActionCache>) -> Self {
        let tiers = store.uploads.tiers.clone();
        let prefetch = || Prefetch::new(Arc::clone(&store.fetches));
        Self(Arc::new(Results {
            uploads: Arc::clone(&store.uploads),
            prefetch: tiers.options.prefetch.then(prefetch),
            blobs: Arc::new(store.clone()),
            validated: Recent::new(tiers.options.existence_ttl, REMEMBERED),
            fetched: Recent::new(Duration::MAX, REMEMBERED),
            versions: Shared::default(),
            background: Arc::new(Semaphore::new(IN_BACKGROUND)),
            local,
            tiers,
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
            let not_local = match self.uploads.find_remote(&digests).await {
                Ok(not_local) => not_local,
                Err(error) => return Err(outputs.failed_by(error).await),
            };
            if prefetch.is_some() && remote.len() < prefetch::OUTPUTS {
                remote.extend(not_local);
            }
        }
        if let Some(prefetch) = prefetch {
            prefetch.start(remote);
        }
        Ok(())
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
        // A result read before a write does not replace that.
        let version = self.versions.get_or_default(name);
        let before = *version.lock().await;
        let epoch = self.tiers.backing.epoch();
        let found = self.tiers.backing_results.get(instance, action, memory);
        let found = found.await?;
        if local != Some(&*found.result) {
            self.check(action, &found.result, local.is_none()).await?;
            // A write to the disk does not end with its caller, so the lock must not either.
            let store = Arc::clone(self);
            let (name, result) = (name.clone(), (*found.result).clone());
            let store = async move {
                let current = version.lock().await;
                if *current == before && !store.tiers.outbox.has_result(&name.0, &name.1) {
                    store.local.put(&name.0, &name.1, result).await?;
                    store.fetched.insert(name);
                }
                Ok(())
            };
            if let Err(error) = self.tiers.finish(action, store).await {
                tracing::debug!(%action, %error, "failed to store a result in the local tier");
            }
        }
        self.validated.insert((epoch, name.clone()));
        Ok(found)
    }

    /// Fetches in the background the backing cache's result, which may differ from the local tier's by now.
    fn revalidate(self: &Arc<Self>, name: Name, local: &ActionResult) {
        // A result that the backing cache never received is not replaced by the one that it has.
        let is_own = self.tiers.options.read_only && !self.fetched.contains(&name)
            || self.tiers.outbox.has_result(&name.0, &name.1);
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
                Err(error) if !error.is_miss() => {
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
        let outbox = &self.tiers.outbox;
        let is_pending = outbox.has_result(instance, action);
        let lock = is_pending.then(|| outbox.uploading.get_or_default(name));
        let _locked = match &lock {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        let backing = &self.tiers.backing_results;
        match backing.put(instance, action, result.clone()).await {
            Err(error) if self.tiers.degrades(&error) => return Ok(true),
            put => put?,
        }
        if is_pending {
            outbox.supersede(instance, action).await;
        }
        Ok(false)
    }

    /// Uploads outputs that were reported as present while only the local tier had them. Returns true if the result has
    /// to become pending: an earlier result of the action or an output is pending, or an outage prevents an upload.
    async fn follows_pending(&self, name: &Name, result: &ActionResult) -> Result<bool> {
        let (instance, action) = name;
        let is_in_outage = !self.tiers.outbox.is_empty() || self.uploads.reported.contains(&());
        if !self.tiers.may_degrade() || !is_in_outage {
            return Ok(false);
        }
        if self.tiers.outbox.has_result(instance, action) {
            return Ok(true);
        }
        let outputs = self.local_outputs(action, result).await?;
        if self.tiers.outbox.has_blob(&outputs) {
            return Ok(true);
        }
        let blobs: Arc<dyn BlobStore> = Arc::new(UploadingBlobs(Arc::clone(&self.uploads)));
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
            self.tiers.outbox.add_outputs(outputs).await?;
        }
        let version = self.versions.get_or_default(&name);
        let mut version = version.lock().await;
        let store = async {
            self.local.put(instance, action, result.clone()).await?;
            *version += 1;
            self.fetched.remove(&name);
            Ok(())
        };
        if is_pending {
            let replaced = self.local.find(instance, action).await;
            let replaced = replaced.unwrap_or_default();
            let outbox = &self.tiers.outbox;
            outbox
                .add_result(&name, result.clone(), replaced.as_ref(), store)
                .await?;
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
        let lookups = &results.tiers.local.traffic().results;
        let local = async {
            let found = results.local.get(instance, action, memory);
            let found = Tier::Local
                .traced("get_result", from_ref(action), found)
                .await?;
            let checked = results.check(action, &found.result, true).await;
            checked.map(|()| found)
        };
        let local = local.await;
        let local = match local {
            Err(error) if error.is_miss() => error,
            found => {
                lookups.record(&found);
                let found = found?;
                results.revalidate((name.0, action.only()), &found.result);
                return Ok(found);
            }
        };
        let found = match results.fetch(&name, None, memory).await {
            // The local tier's result may name the missing output.
            Err(Error::NoResult(_)) => Err(local.clone()),
            found => found.map_err(|error| results.tiers.miss_or(local.clone(), error)),
        };
        lookups.record_try::<(), _>(action, &Err(local), &found);
        found
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let (results, name) = (Arc::clone(&self.0), (instance.to_owned(), *action));
        let epoch = results.tiers.backing.epoch();
        let is_pending = results.upload(&name, &result).await?;
        let store = Arc::clone(&results).store(epoch, name, result, is_pending);
        results.tiers.finish(action, store).await
    }
}
