//! Action results of two tiers.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_storage::{ActionCache, CompletenessChecking, Digest, LocalStore, Result};
use reapi::v2::ActionResult;
use tokio::sync::Semaphore;

use crate::{OnOutage, ProxyStore, reading::Reading, recent::Recent};

/// How long a call takes from asking for a result's size to asking for the result, at most: the next
/// one to ask for it is told of a miss that the backing cache was asked about then.
const MISS: Duration = Duration::from_secs(1);
/// How many results are looked at anew at once.
const REVALIDATIONS: usize = 16;

/// Action results of which every output can be had from one tier or the other. What is here is
/// served at once, and looked at anew in the background; what is not here is fetched and kept.
#[derive(Clone)]
pub struct ProxyActions(Arc<Actions>);

struct Actions {
    store: ProxyStore,
    local: Arc<LocalStore>,
    /// Those of the local store that are complete.
    here: CompletenessChecking<LocalStore>,
    /// Those of the backing cache that are.
    there: CompletenessChecking<dyn ActionCache>,
    misses: Recent<Name>,
    validated: Recent<Name>,
    revalidations: Arc<Semaphore>,
}

type Name = (String, Digest);

impl ProxyActions {
    /// The results of `store`'s two tiers.
    pub fn new(store: &ProxyStore) -> Self {
        let backing = Arc::clone(&store.tiers.actions);
        let local = Arc::clone(&store.tiers.local);
        let reading = Reading::of(store);
        Self(Arc::new(Actions {
            store: store.clone(),
            here: CompletenessChecking::new(Arc::clone(&local), Arc::clone(&reading)),
            there: CompletenessChecking::new(backing, reading),
            local,
            misses: Recent::new(MISS),
            validated: Recent::new(store.tiers.options.existence_ttl),
            revalidations: Arc::new(Semaphore::new(REVALIDATIONS)),
        }))
    }
}

impl Actions {
    /// The backing cache's result, kept here.
    async fn fetch(&self, instance: &str, action: &Digest) -> Result<Option<ActionResult>> {
        let found = match self.there.get(instance, action).await {
            Err(error) if self.store.tiers.degrades(&error) => None,
            found => found?,
        };
        let Some(result) = found else {
            return Ok(None);
        };
        self.validated.note((instance.to_owned(), *action));
        self.keep(instance, action, result.clone()).await;
        Ok(Some(result))
    }

    /// Puts a result into the backing cache; says whether it has to wait for that.
    async fn put_up(&self, instance: &str, action: &Digest, result: &ActionResult) -> Result<bool> {
        let tiers = &self.store.tiers;
        if tiers.options.read_only {
            return Ok(false);
        }
        // What it names may be waiting, too, and goes first.
        if tiers.options.on_outage == OnOutage::Degrade && !tiers.journal.is_empty() {
            return Ok(true);
        }
        match tiers.actions.put(instance, action, result.clone()).await {
            Err(error) if tiers.degrades(&error) => Ok(true),
            put => put.map(|()| false),
        }
    }

    async fn keep(&self, instance: &str, action: &Digest, result: ActionResult) {
        if let Err(error) = self.local.put(instance, action, result).await {
            tracing::debug!(instance, %action, %error, "the result is not kept here");
        }
    }

    /// Looks in the background whether the backing cache has another result by now.
    fn revalidate(self: &Arc<Self>, instance: &str, action: &Digest, known: &ActionResult) {
        let name = (instance.to_owned(), *action);
        if self.validated.has(&name) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.revalidations).try_acquire_owned() else {
            return;
        };
        self.validated.note(name);
        let (actions, known) = (Arc::clone(self), known.clone());
        let (instance, action) = (instance.to_owned(), *action);
        self.store.tiers.spawn(async move {
            let _permit = permit;
            match actions.there.get(&instance, &action).await {
                Ok(Some(result)) if result != known => {
                    actions.keep(&instance, &action, result).await;
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(instance, %action, %error, "could not revalidate"),
            }
        });
    }
}

#[async_trait]
impl ActionCache for ProxyActions {
    async fn get(&self, instance: &str, action: &Digest) -> Result<Option<ActionResult>> {
        let tiers = &self.0.store.tiers;
        let here = tiers.prefetching(self.0.here.get(instance, action));
        if let Some(result) = here.await? {
            self.0.revalidate(instance, action, &result);
            return Ok(Some(result));
        }
        if self.0.misses.take(&(instance.to_owned(), *action)) {
            return Ok(None);
        }
        tiers.prefetching(self.0.fetch(instance, action)).await
    }

    async fn size(&self, instance: &str, action: &Digest) -> Result<u64> {
        let size = self.0.local.size(instance, action).await?;
        if size > 0 {
            return Ok(size);
        }
        if self.0.fetch(instance, action).await?.is_none() {
            self.0.misses.note((instance.to_owned(), *action));
            return Ok(0);
        }
        self.0.local.size(instance, action).await
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let waits = self.0.put_up(instance, action, &result).await?;
        let name = (instance.to_owned(), *action);
        self.0.misses.take(&name);
        self.0.local.put(instance, action, result.clone()).await?;
        if waits {
            let journal = &self.0.store.tiers.journal;
            journal.add_action(instance, action, result).await?;
        }
        self.0.validated.note(name);
        Ok(())
    }
}

impl fmt::Debug for ProxyActions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyActions")
            .field("store", &self.0.store)
            .finish_non_exhaustive()
    }
}
