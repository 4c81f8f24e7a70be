//! The stores behind the services: the local tier, the backing cache, or both; in a cluster, also the stores of other
//! nodes.

pub(crate) mod cluster;
mod local;

use std::{path::PathBuf, sync::Arc, time::Duration};

use gorego_cluster::blobs::LatestResults;
use gorego_config::{self as config, Config};
use gorego_execution as execution;
use gorego_janitor::{self as janitor, Janitor};
use gorego_proxy::{Backing, Depth, OnOutage, Options, Outbox, ProxyActions, ProxyStore};
use gorego_server::Stores;
use gorego_storage::{
    ActionCache, BreakerState, CompletenessChecking, DigestFunction, Links, span::Tier,
};
use gorego_storage_local::{LocalStore, OpenError};
use gorego_storage_remote::RemoteStore;
use gorego_telemetry::{Calls, PendingWrites, Sources, builds::Misses, web::Health};
use gorego_tls::Certificate;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    cluster::ClusterStores,
    local::{marks, open_local, outbox, warn_of_pending, warn_of_unused},
};
use crate::{
    cli::VERSION,
    memory::Parts,
    meters::{Meters, TierStores},
    traces::traced,
};

/// The time that the local store gets at shutdown to write its state.
const CLOSE: Duration = Duration::from_secs(10);

/// The pause before each call that tests a backing cache without a local tier.
const PROBE: Duration = Duration::from_secs(1);

/// The interval at which the janitor checks for expired uploads and for a disk filled by others.
const JANITOR: Duration = Duration::from_mins(1);

/// The error of a store that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Local(#[from] OpenError),
    #[error("cannot open the outbox of pending writes: {0}")]
    Outbox(#[from] gorego_storage::Error),
    #[error(
        "{} holds pending writes of an earlier version; drain it with the previous version",
        .0.display()
    )]
    Journal(PathBuf),
}

/// The stores, and the stores to close at shutdown.
pub(crate) struct Tiers {
    pub(crate) stores: Stores,
    pub(crate) local: Option<Arc<LocalStore>>,
    /// The results of the local tier, if it is an owner's: those that other nodes and this one write.
    owned: Option<Arc<LatestResults>>,
    proxy: Option<ProxyStore>,
    /// The backing cache of a server without a local tier.
    pub(crate) remote: Option<Arc<RemoteStore>>,
    pub(crate) breaker: Option<watch::Receiver<BreakerState>>,
    pub(crate) waiting: Option<watch::Receiver<Depth>>,
    /// The stores as an executor uses them: not counted as a client's. `None` without a local tier.
    pub(crate) executor: Option<ExecutorStores>,
    meters: Option<Meters>,
    /// Pins pending writes of an earlier configuration with a backing cache.
    _unused: Option<Outbox>,
}

/// The stores of an executor.
#[derive(Clone, Debug)]
pub(crate) struct ExecutorStores {
    /// The stores of the worker. The results that it puts are recorded, if builds are.
    pub(crate) worker: execution::Stores,
    /// The results that are looked up before an action is queued. Clients look them up themselves first, so that this
    /// is neither counted nor recorded.
    pub(crate) lookups: Arc<dyn ActionCache>,
    /// The misses of these lookups, if builds are recorded.
    pub(crate) misses: Option<Arc<Misses>>,
}

impl Tiers {
    /// Opens the configured stores. Counts their traffic in `meters`, if given. A node of a `cluster` shares the blobs
    /// of its local tier.
    pub(crate) async fn open(
        config: &Config,
        parts: &Parts,
        backing: Option<RemoteStore>,
        mut meters: Option<Meters>,
        cluster: Option<&ClusterStores>,
    ) -> Result<Self, Error> {
        let Some(backing) = backing.map(Arc::new) else {
            if let Some(cluster) = cluster {
                let mut tiers = Self::owned(config, parts, cluster).await?;
                tiers.answer(config, meters, None);
                return Ok(tiers);
            }
            let mut tiers = Self::local(config, parts).await?;
            let local = tiers.local.clone();
            tiers.answer(config, meters, local.as_deref());
            return Ok(tiers);
        };
        let stores = match &mut meters {
            Some(meters) => meters.of_backing(&backing),
            None => (Arc::clone(&backing) as _, Arc::clone(&backing) as _),
        };
        let stores = traced(&config.telemetry, Tier::Backing, stores);
        let mut tiers = if config.local_cache.enabled {
            let stores = match cluster {
                Some(cluster) => cluster.in_front(config, stores),
                None => stores,
            };
            Self::proxy(config, parts, &backing, stores).await?
        } else {
            Self::stateless(config, parts, backing, stores)
        };
        tiers.answer(config, meters, None);
        Ok(tiers)
    }

    /// Completes the stores for clients: digest functions are inferred, and the answers are counted, each once.
    /// `alone` is the local tier, if there is no other.
    fn answer(&mut self, config: &Config, meters: Option<Meters>, alone: Option<&LocalStore>) {
        self.executor = self.links().map(|links| ExecutorStores {
            worker: execution::Stores {
                blobs: Arc::clone(&self.stores.blobs),
                results: Arc::clone(&self.stores.actions),
                links,
            },
            lookups: Arc::clone(&self.stores.actions),
            misses: None,
        });
        let functions = inferred_functions(&config.limits);
        let stores = self.stores.clone().inferring(functions);
        self.stores = match &meters {
            Some(meters) => meters.of_clients(stores, alone),
            None => stores,
        };
        self.meters = meters;
    }

    fn links(&self) -> Option<Arc<dyn Links>> {
        let proxy = self.proxy.clone().map(|proxy| Arc::new(proxy) as _);
        proxy.or_else(|| Some(self.local.clone()? as _))
    }

    async fn local(config: &Config, parts: &Parts) -> Result<Self, Error> {
        let local = open_local(config, parts).await?;
        let unused = outbox(config, &local).await;
        match &unused {
            Ok(unused) => warn_of_pending(*unused.depth().borrow(), "there is no backing cache"),
            Err(error) => {
                tracing::warn!(%error, "pending writes for a backing cache may be evicted");
            }
        }
        let blobs = Arc::clone(&local) as _;
        let actions = CompletenessChecking::new(Arc::clone(&local), blobs, parts.trees.clone());
        let stores = (
            Arc::clone(&local) as _,
            Arc::new(actions.leasing_puts()) as _,
        );
        let (blobs, actions) = traced(&config.telemetry, Tier::Local, stores);
        Ok(Self {
            stores: Stores {
                blobs,
                uploads: Arc::clone(&local) as _,
                actions,
            },
            local: Some(local),
            owned: None,
            proxy: None,
            remote: None,
            breaker: None,
            waiting: None,
            executor: None,
            meters: None,
            _unused: unused.ok(),
        })
    }

    async fn proxy(
        config: &Config,
        parts: &Parts,
        remote: &RemoteStore,
        stores: TierStores,
    ) -> Result<Self, Error> {
        let local = open_local(config, parts).await?;
        let backing = &config.backing_cache;
        let options = Options {
            existence_ttl: backing.existence_ttl,
            read_only: backing.read_only,
            local_first: false,
            prefetch: backing.prefetch,
            on_outage: match backing.on_outage {
                config::OnOutage::Fail => OnOutage::Fail,
                config::OnOutage::Degrade => OnOutage::Degrade,
            },
            outbox_retry: backing.outbox_retry,
            memory: parts.proxy.clone(),
        };
        let tiers = Self::in_two_tiers(config, (local, None), stores, options).await?;
        Ok(Self {
            breaker: Some(remote.breaker()),
            ..tiers
        })
    }

    async fn in_two_tiers(
        config: &Config,
        (local, owned): (Arc<LocalStore>, Option<Arc<LatestResults>>),
        (blobs, actions): TierStores,
        options: Options,
    ) -> Result<Self, Error> {
        let outbox = outbox(config, &local).await?;
        let waiting = outbox.depth();
        if options.read_only {
            let why = "nothing is written to the backing cache";
            warn_of_pending(*waiting.borrow(), why);
        }
        let backing = Backing { blobs, actions };
        let proxy = ProxyStore::new(Arc::clone(&local), backing, Arc::new(outbox), options);
        let actions = match &owned {
            Some(owned) => ProxyActions::with_local(&proxy, Arc::clone(owned) as _),
            None => ProxyActions::new(&proxy),
        };
        Ok(Self {
            stores: Stores {
                blobs: Arc::new(proxy.clone()),
                uploads: Arc::new(proxy.clone()),
                actions: Arc::new(actions),
            },
            local: Some(local),
            owned,
            proxy: Some(proxy),
            remote: None,
            breaker: None,
            waiting: Some(waiting),
            executor: None,
            meters: None,
            _unused: None,
        })
    }

    fn stateless(
        config: &Config,
        parts: &Parts,
        remote: Arc<RemoteStore>,
        (blobs, actions): TierStores,
    ) -> Self {
        warn_of_unused(&config.local_cache.dir);
        let breaker = Some(remote.breaker());
        let trees = parts.trees.clone();
        let actions = CompletenessChecking::new(actions, Arc::clone(&blobs), trees);
        Self {
            stores: Stores {
                blobs,
                uploads: Arc::clone(&remote) as _,
                actions: Arc::new(actions),
            },
            local: None,
            owned: None,
            proxy: None,
            remote: Some(remote),
            breaker,
            waiting: None,
            executor: None,
            meters: None,
            _unused: None,
        }
    }

    /// Creates the janitor of the local tier.
    pub(crate) fn janitor(&self, config: &Config) -> Option<Janitor> {
        let local = self.local.clone()?;
        let options = janitor::Options {
            marks: marks(&config.local_cache),
            interval: JANITOR,
            upload_expiry: config.local_cache.upload_expiry,
        };
        Some(Janitor::new(local as _, options))
    }

    /// Returns the health of the tiers.
    pub(crate) fn health(&self, shutdown: CancellationToken) -> Health {
        Health {
            disk: self.local.as_ref().map(|local| local.health()),
            breaker: self.breaker.clone(),
            draining: None,
            shutdown,
        }
    }

    /// Calls the backing cache of a server without a local tier while it is down. Such a server is not ready, so it
    /// may get no calls that would find the backing cache up again.
    pub(crate) fn probe(&self) -> impl Future<Output = ()> + Send + use<> {
        let remote = self.remote.clone();
        async move {
            let Some(remote) = remote else { return };
            let mut breaker = remote.breaker();
            while breaker
                .wait_for(|now| *now != BreakerState::Closed)
                .await
                .is_ok()
            {
                sleep(PROBE).await;
                let _ = remote.capabilities().await;
            }
        }
    }

    /// Returns the sources of the metrics.
    pub(crate) fn sources(
        &self,
        calls: Calls,
        certificates: impl Fn() -> Vec<Certificate> + Send + Sync + 'static,
    ) -> Sources {
        let depth = self.waiting.clone();
        let mut sources = Sources {
            breaker: self.breaker.clone(),
            certificates: Box::new(certificates),
            journal: depth.map(|depth| Box::new(move || pending(*depth.borrow())) as _),
            calls,
            ..Sources::new(VERSION)
        };
        if let Some(meters) = &self.meters {
            meters.add_to(&mut sources, self.local.as_ref());
        }
        sources
    }

    /// Saves the state, so that the next start trusts the current entries even if this process is killed.
    pub(crate) async fn save(&self) {
        if let Some(local) = &self.local {
            saved(local.save(), "before the drain").await;
        }
    }

    /// Ends background work and saves the state, so that the next start trusts all entries.
    pub(crate) async fn close(&self) {
        if let Some(proxy) = &self.proxy {
            proxy.close().await;
        }
        if let Some(local) = &self.local {
            saved(
                local.close(),
                "at shutdown; the next start verifies recent blobs",
            )
            .await;
        }
    }
}

/// Logs a warning if saving the state fails or takes too long.
async fn saved(saving: impl Future<Output = gorego_storage::Result<()>>, when: &str) {
    match timeout(CLOSE, saving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "failed to save the state {when}"),
        Err(_) => tracing::warn!(
            error = "the disk is slow",
            "failed to save the state {when}"
        ),
    }
}

pub(crate) fn pending(depth: Depth) -> PendingWrites {
    PendingWrites {
        blobs: depth.entries.saturating_sub(depth.results),
        results: depth.results,
        bytes: depth.bytes,
    }
}

fn inferred_functions(limits: &config::Limits) -> Vec<DigestFunction> {
    let known = |function: &_| match function {
        config::InferredFunction::Sha256 => DigestFunction::Sha256,
        config::InferredFunction::Blake3 => DigestFunction::Blake3,
    };
    limits.inferred_functions.iter().map(known).collect()
}
