//! Action results of two tiers.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, ActionCacheExt as _, BlobStore, CachedResult, Digest, Error, Outputs, Result,
};
use gorego_storage_local::LocalStore;
use reapi::v2::ActionResult;
use tokio::sync::Semaphore;

use crate::{
    backing::Epoch,
    outputs::{is_complete, stored_outputs},
    prefetch,
    presence::UploadingBlobs,
    recent::Recent,
    store::{Parts, ProxyStore},
    versions::Versions,
};

/// The most results that are revalidated, or whose outputs are leased, in the background at once.
const IN_BACKGROUND: usize = 16;
/// The most results that are remembered for one purpose.
const REMEMBERED: usize = 32 * 1024;

/// An instance name and an action.
type Name = (String, Digest);

/// Action results whose outputs each are in one of two tiers. A result of the local tier is served at once and
/// revalidated in the background. Others are fetched, and stored in the local tier.
#[derive(Clone)]
pub struct ProxyActions(Arc<Results>);

struct Results {
    store: ProxyStore,
    local: Arc<LocalStore>,
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
        Self(Arc::new(Results {
            local: Arc::clone(&store.parts.tiers.local),
            validated: Recent::new(store.parts.options.existence_ttl, REMEMBERED),
            fetched: Recent::new(Duration::MAX, REMEMBERED),
            versions: Versions::default(),
            background: Arc::new(Semaphore::new(IN_BACKGROUND)),
            store: store.clone(),
        }))
    }
}

impl Results {
    fn parts(&self) -> &Parts {
        &self.store.parts
    }

    /// Looks up all outputs in both tiers, and returns those to prefetch.
    async fn check(&self, action: &Digest, result: &ActionResult) -> Result<Vec<Digest>> {
        let parts = self.parts();
        let memory = parts.options.memory.looking.clone();
        let mut outputs = Outputs::of(action, result, Arc::new(self.store.clone()), memory)?;
        let mut remote = Vec::new();
        while let Some(digests) = outputs.next().await? {
            let (missing, not_local) = parts.presence.find_unreadable(&digests).await?;
            if let Some(missing) = missing.first() {
                return Err(outputs.incomplete_without(missing).await);
            }
            if parts.prefetch.is_some() && remote.len() < prefetch::OUTPUTS {
                remote.extend(not_local);
            }
        }
        Ok(remote)
    }

    fn prefetch(&self, outputs: Vec<Digest>) {
        if let Some(prefetch) = &self.parts().prefetch {
            prefetch.start(outputs);
        }
    }

    /// Returns the local tier's result, if all its outputs can be read from either tier.
    async fn get_local(&self, name: &Name, memory: &Budget) -> Result<CachedResult> {
        let found = ActionCache::get(&*self.local, &name.0, &name.1, memory).await?;
        self.prefetch(self.check(&name.1, &found.result).await?);
        Ok(found)
    }

    /// Returns the backing cache's result, if it is complete. Stores it in the local tier, unless that has it
    /// as `local`.
    async fn fetch(
        &self,
        name: &Name,
        local: Option<&ActionResult>,
        memory: &Budget,
    ) -> Result<CachedResult> {
        let (instance, action) = name;
        let version = *self.versions.lock(name).await;
        let epoch = self.parts().tiers.backing.epoch();
        let found = self.parts().results.get(instance, action, memory).await?;
        if local != Some(&found.result) {
            let outputs = self.check(action, &found.result).await?;
            if local.is_none() {
                self.prefetch(outputs);
            }
            let stored = self
                .store_fetched(name, found.result.clone(), version)
                .await;
            if let Err(error) = stored {
                tracing::debug!(%action, %error, "failed to store a result in the local tier");
            }
        }
        self.validated.insert((epoch, name.clone()));
        Ok(found)
    }

    /// Stores a fetched result in the local tier, unless one was written since `version`.
    async fn store_fetched(&self, name: &Name, result: ActionResult, version: u64) -> Result<()> {
        let current = self.versions.lock(name).await;
        let (instance, action) = name;
        if *current == version && !self.parts().outbox.has_result(instance, action) {
            ActionCache::put(&*self.local, instance, action, result).await?;
            self.fetched.insert(name.clone());
        }
        Ok(())
    }

    /// Fetches in the background the backing cache's result, which may differ from the local tier's by now.
    fn revalidate(self: &Arc<Self>, name: Name, local: &ActionResult, memory: &Budget) {
        let parts = self.parts();
        // The backing cache has no newer result than one that it did not get.
        let is_own = parts.options.read_only && !self.fetched.contains(&name)
            || parts.outbox.has_result(&name.0, &name.1);
        let validated = (parts.tiers.backing.epoch(), name.clone());
        if is_own || self.validated.contains(&validated) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.background).try_acquire_owned() else {
            return;
        };
        self.validated.insert(validated);
        let (results, local, memory) = (Arc::clone(self), local.clone(), memory.clone());
        parts.tiers.spawn(async move {
            match results.fetch(&name, Some(&local), &memory).await {
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
        let (parts, (instance, action)) = (self.parts(), name);
        if parts.options.read_only {
            return Ok(false);
        }
        if self.follows_pending(name, result).await? {
            return Ok(true);
        }
        // A pending one of an earlier configuration must not replace this one later.
        let mut lock = None;
        if parts.outbox.has_result(instance, action) {
            lock = Some(parts.outbox.uploading.lock(name).await);
        }
        match parts.results.put(instance, action, result.clone()).await {
            Err(error) if parts.tiers.degrades(&error) => return Ok(true),
            put => put?,
        }
        if lock.is_some() {
            parts.outbox.supersede(instance, action).await;
        }
        Ok(false)
    }

    /// Whether a result has to follow pending writes. Uploads first its outputs that were reported as present
    /// though only the local tier had them.
    async fn follows_pending(&self, name: &Name, result: &ActionResult) -> Result<bool> {
        let (parts, (instance, action)) = (self.parts(), name);
        let is_in_outage = !parts.outbox.is_empty() || parts.presence.has_reported();
        if !parts.tiers.may_degrade() || !is_in_outage {
            return Ok(false);
        }
        if parts.outbox.has_result(instance, action) {
            return Ok(true);
        }
        let outputs = self.local_outputs(action, result).await?;
        if parts.outbox.has_blob(&outputs) {
            return Ok(true);
        }
        let blobs: Arc<dyn BlobStore> = Arc::new(UploadingBlobs(Arc::clone(&parts.presence)));
        let complete = is_complete(action, result, blobs, &parts.options.memory.bringing).await;
        // Other errors are left to the backing cache.
        Ok(complete.is_err_and(|error| parts.tiers.degrades(&error)))
    }

    /// Returns the outputs of a result in the local tier. They get a lease.
    async fn local_outputs(&self, action: &Digest, result: &ActionResult) -> Result<Vec<Digest>> {
        let local: Arc<dyn BlobStore> = Arc::clone(&self.local) as _;
        stored_outputs(action, result, local, &self.parts().options.memory.looking).await
    }

    /// Stores a result in the local tier, and makes it pending where that is due; both or neither.
    async fn store(
        self: Arc<Self>,
        epoch: Epoch,
        name: Name,
        result: ActionResult,
        is_pending: bool,
    ) -> Result<()> {
        let (instance, action) = &name;
        let outbox = &self.parts().outbox;
        if is_pending {
            // They were reported as present, so that no client uploads them.
            let outputs = self.local_outputs(action, &result).await?;
            outbox.add_outputs(outputs).await?;
        }
        let mut version = self.versions.lock(&name).await;
        let store = async {
            ActionCache::put(&*self.local, instance, action, result.clone()).await?;
            *version += 1;
            self.fetched.remove(&name);
            Ok(())
        };
        if is_pending {
            let replaced = self.local.find(instance, action).await.unwrap_or_default();
            let add = outbox.add_result(instance, action, result.clone(), replaced.as_ref(), store);
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

    /// Leases the outputs of a new result, since its client relies on them as after a hit. Continues in the
    /// background, unless too much does.
    async fn lease_outputs(self: &Arc<Self>, action: Digest, result: ActionResult) {
        let results = Arc::clone(self);
        let lease = async move {
            if let Err(error) = results.local_outputs(&action, &result).await {
                tracing::debug!(%action, %error, "failed to lease the outputs of an action result");
            }
        };
        match Arc::clone(&self.background).try_acquire_owned() {
            Ok(permit) => self.parts().tiers.spawn(async move {
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
                results.revalidate(name, &found.result, memory);
                return Ok(found);
            }
            Err(error) if error.is_result_miss() => error,
            Err(error) => return Err(error),
        };
        match results.fetch(&name, None, memory).await {
            // The local tier's result may name the missing output.
            Err(Error::NoResult(_)) => Err(local),
            Err(error) if results.parts().tiers.degrades(&error) => Err(local),
            found => found,
        }
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let (results, name) = (Arc::clone(&self.0), (instance.to_owned(), *action));
        *results.versions.lock(&name).await += 1;
        let epoch = results.parts().tiers.backing.epoch();
        let is_pending = results.upload(&name, &result).await?;
        let store = Arc::clone(&results).store(epoch, name, result, is_pending);
        results.parts().tiers.finish(action, store).await
    }
}

impl fmt::Debug for ProxyActions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyActions")
            .field("store", &self.0.store)
            .finish_non_exhaustive()
    }
}
