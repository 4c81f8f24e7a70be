//! Action results of two tiers.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, ActionCacheExt as _, CachedResult, Digest, Error, Outputs, Result,
};
use gorego_storage_local::LocalStore;
use reapi::v2::ActionResult;
use tokio::sync::Semaphore;

use crate::{
    OnOutage, ProxyStore,
    existence::Epoch,
    outputs::{Upward, is_complete, local_outputs},
    prefetch,
    recent::Recent,
    writes::Writes,
};

/// The number of results that are looked at in the background at once.
const IN_BACKGROUND: usize = 16;

/// Action results of which every output can be had from one tier or the other. What is here is
/// served at once, and looked at anew in the background; what is not here is fetched and kept.
#[derive(Clone)]
pub struct ProxyActions(Arc<Actions>);

struct Actions {
    store: ProxyStore,
    local: Arc<LocalStore>,
    /// The results that agree with the backing cache, by the time of its answer.
    validated: Recent<(Epoch, Name)>,
    /// Those here that the backing cache gave; a few too many are forgotten, now and then.
    fetched: Recent<Name>,
    writes: Writes,
    background: Arc<Semaphore>,
}

type Name = (String, Digest);

impl ProxyActions {
    /// The results of `store`'s two tiers.
    pub fn new(store: &ProxyStore) -> Self {
        Self(Arc::new(Actions {
            store: store.clone(),
            local: Arc::clone(&store.tiers.local),
            validated: Recent::new(store.tiers.options.existence_ttl),
            fetched: Recent::new(Duration::MAX),
            writes: Writes::default(),
            background: Arc::new(Semaphore::new(IN_BACKGROUND)),
        }))
    }
}

impl Actions {
    /// Returns the local tier's result, if all its outputs can be read from either tier.
    async fn get_local(
        &self,
        instance: &str,
        action: &Digest,
        memory: &Budget,
    ) -> Result<CachedResult> {
        let found = self.local.get(instance, action, memory).await?;
        self.prefetch(self.check(action, &found.result).await?);
        Ok(found)
    }

    /// Looks up all outputs in both tiers. Returns those that only the backing cache has, as many as may
    /// be prefetched.
    async fn check(&self, action: &Digest, result: &ActionResult) -> Result<Vec<Digest>> {
        let tiers = &self.store.tiers;
        let memory = tiers.options.memory.looking.clone();
        let mut outputs = Outputs::of(action, result, Arc::new(self.store.clone()), memory)?;
        let mut remote = Vec::new();
        while let Some(digests) = outputs.next().await? {
            let (missing, backing) = tiers.find_unreadable(&digests).await?;
            if let Some(missing) = missing.first() {
                return Err(outputs.incomplete_without(missing).await);
            }
            if tiers.wanted.is_some() && remote.len() < prefetch::QUEUE {
                remote.extend(backing);
            }
        }
        Ok(remote)
    }

    fn prefetch(&self, outputs: Vec<Digest>) {
        if let Some(wanted) = &self.store.tiers.wanted {
            wanted.add(outputs);
        }
    }

    /// Returns the backing cache's result, if it is complete, and stores it in the local tier.
    async fn fetch(
        self: &Arc<Self>,
        instance: &str,
        action: &Digest,
        memory: &Budget,
    ) -> Result<CachedResult> {
        let name = (instance.to_owned(), *action);
        let written = self.writes.count(&name);
        let epoch = self.store.tiers.existence.epoch();
        let found = self.store.tiers.actions.get(instance, action, memory);
        let found = found.await?;
        self.prefetch(self.check(action, &found.result).await?);
        self.validated.note((epoch, name.clone()));
        self.keep(name, found.result.clone(), written).await;
        Ok(found)
    }

    /// Puts a result into the backing cache; says whether it has to wait for that.
    async fn put_up(&self, instance: &str, action: &Digest, result: &ActionResult) -> Result<bool> {
        let tiers = &self.store.tiers;
        if tiers.options.read_only {
            return Ok(false);
        }
        if self.goes_behind(instance, action, result).await? {
            return Ok(true);
        }
        // An earlier configuration may have had one wait, which must not come after this one.
        let waits = tiers.outbox.has_result(instance, action);
        let _alone = if waits {
            tiers.outbox.uploading.alone(&(instance, action)).await
        } else {
            None
        };
        match tiers.actions.put(instance, action, result.clone()).await {
            Err(error) if tiers.degrades(&error) => return Ok(true),
            put => put?,
        }
        if waits {
            tiers.outbox.supersede(instance, action).await;
        }
        Ok(false)
    }

    /// Whether a result has to wait for what waits already. What it names and lookups in an outage
    /// called present is brought up first.
    async fn goes_behind(
        &self,
        instance: &str,
        action: &Digest,
        result: &ActionResult,
    ) -> Result<bool> {
        let tiers = &self.store.tiers;
        let degrades = tiers.options.on_outage == OnOutage::Degrade;
        if !degrades || tiers.outbox.is_empty() && !tiers.has_promised() {
            return Ok(false);
        }
        if tiers.outbox.has_result(instance, action) {
            return Ok(true);
        }
        let outputs = local_outputs(tiers, action, result).await?;
        if tiers.outbox.has_blob(&outputs) {
            return Ok(true);
        }
        let up = Arc::new(Upward(Arc::clone(tiers)));
        match is_complete(action, result, up, &tiers.options.memory.bringing).await {
            Err(error) => Ok(tiers.degrades(&error)),
            // The backing cache has the last word.
            Ok(_) => Ok(false),
        }
    }

    /// Keeps what the backing cache gave, unless it was written here since: `written` is from before
    /// the backing cache was asked.
    async fn keep(self: &Arc<Self>, name: Name, result: ActionResult, written: u64) {
        let actions = Arc::clone(self);
        let kept = self.store.tiers.see_through(name.1, async move {
            let _alone = actions.writes.alone(&name).await;
            let (instance, action) = &name;
            let waits = actions.store.tiers.outbox.has_result(instance, action);
            if waits || actions.writes.count(&name) != written {
                return Ok(());
            }
            let kept = actions.local.put(instance, action, result).await;
            actions.fetched.note(name);
            kept
        });
        if let Err(error) = kept.await {
            tracing::debug!(%error, "a result is not kept here");
        }
    }

    /// Accepts a result here, and all of it or nothing.
    async fn accept(
        &self,
        epoch: Epoch,
        name: Name,
        result: ActionResult,
        waits: bool,
    ) -> Result<()> {
        let (instance, action) = &name;
        let tiers = &self.store.tiers;
        let unleased = (!waits).then(|| result.clone());
        if waits {
            // What is here was called present, and no client will bring it.
            let outputs = local_outputs(tiers, action, &result).await?;
            tiers.outbox.add_outputs(outputs).await?;
        }
        let alone = self.writes.alone(&name).await;
        let store = async |result| {
            self.local.put(instance, action, result).await?;
            self.writes.note(&name);
            self.fetched.take(&name);
            Ok(())
        };
        if waits {
            let here = self.local.find(instance, action).await.unwrap_or_default();
            let store = store(result.clone());
            let added = tiers
                .outbox
                .add_result(instance, action, result, here.as_ref(), store);
            added.await?;
        } else {
            store(result).await?;
        }
        self.validated.note((epoch, name.clone()));
        drop(alone);
        if let Some(result) = unleased {
            self.lease_outputs(name, result).await;
        }
        Ok(())
    }

    /// Leases the outputs of a new result: a client that stored it counts on them as after a hit. Goes on
    /// in the background, unless too much does already.
    async fn lease_outputs(&self, name: Name, result: ActionResult) {
        let tiers = Arc::clone(&self.store.tiers);
        let lease = async move {
            let (instance, action) = &name;
            if let Err(error) = local_outputs(&tiers, action, &result).await {
                tracing::debug!(instance, %action, %error, "failed to lease the outputs of an action result");
            }
        };
        match Arc::clone(&self.background).try_acquire_owned() {
            Ok(permit) => self.store.tiers.spawn(async move {
                let _permit = permit;
                lease.await;
            }),
            Err(_) => lease.await,
        }
    }

    /// Looks in the background whether the backing cache has another result by now.
    fn revalidate(
        self: &Arc<Self>,
        instance: &str,
        action: &Digest,
        known: &ActionResult,
        memory: &Budget,
    ) {
        let name = (instance.to_owned(), *action);
        let tiers = &self.store.tiers;
        // What the backing cache does not know yet, or never will, it has nothing newer for.
        let is_ours = tiers.options.read_only && !self.fetched.has(&name)
            || tiers.outbox.has_result(instance, action);
        let validated = (tiers.existence.epoch(), name.clone());
        if is_ours || self.validated.has(&validated) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.background).try_acquire_owned() else {
            return;
        };
        self.validated.note(validated);
        let written = self.writes.count(&name);
        let (actions, known, memory) = (Arc::clone(self), known.clone(), memory.clone());
        tiers.spawn(async move {
            let _permit = permit;
            let (instance, action) = &name;
            let found = async {
                let backing = &actions.store.tiers.actions;
                let found = backing.get(instance, action, &memory).await?;
                if found.result != known {
                    actions.check(action, &found.result).await?;
                }
                Ok::<_, Error>(found)
            };
            match found.await {
                Ok(found) if found.result != known => {
                    actions.keep(name, found.result, written).await;
                }
                Ok(_) => {}
                Err(error) if error.is_result_miss() => {}
                Err(error) => tracing::debug!(instance, %action, %error, "could not revalidate"),
            }
        });
    }
}

#[async_trait]
impl ActionCache for ProxyActions {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let local = match self.0.get_local(instance, action, memory).await {
            Ok(found) => {
                self.0.revalidate(instance, action, &found.result, memory);
                return Ok(found);
            }
            Err(error) if error.is_result_miss() => error,
            Err(error) => return Err(error),
        };
        match self.0.fetch(instance, action, memory).await {
            // The local tier's result may say why.
            Err(Error::NoResult(_)) => Err(local),
            Err(error) if self.0.store.tiers.degrades(&error) => Err(local),
            found => found,
        }
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let name = (instance.to_owned(), *action);
        self.0.writes.note(&name);
        let epoch = self.0.store.tiers.existence.epoch();
        let waits = self.0.put_up(instance, action, &result).await?;
        let actions = Arc::clone(&self.0);
        let accepted = async move { actions.accept(epoch, name, result, waits).await };
        self.0.store.tiers.see_through(*action, accepted).await
    }
}

impl fmt::Debug for ProxyActions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyActions")
            .field("store", &self.0.store)
            .finish_non_exhaustive()
    }
}
