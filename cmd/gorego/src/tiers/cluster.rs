//! The stores of a node in a cluster: the stores of its peers, and its own as its peers see them.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use gorego_cluster::blobs::{
    Connect, LatestResults, Member, Near, NearOptions, Owners, PeerStores, Peers,
};
use gorego_config::Config;
use gorego_limits::Budget;
use gorego_server::Stores;
use gorego_storage::{Traffic, span::Tier};
use gorego_storage_local::LocalStore;
use gorego_storage_remote::{BreakerOptions, RemoteAddress, RemoteOptions, RemoteStore};
use gorego_telemetry::{Counts, Metered};
use gorego_tls::ClientTls;
use tokio::sync::watch;

use super::{Error, Parts, Tiers, open_local};
use crate::{meters::TierStores, traces::traced};

/// The time limit of a call to another node; 1 s is added for each MiB that it moves.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The connections to another node.
const CONNECTIONS: usize = 2;
/// The settings of the breaker of another node. The cluster detects the death of the node at about the same time.
const BREAKER: BreakerOptions = BreakerOptions {
    failures: 3,
    cool_down: Duration::from_millis(500),
    max_cool_down: Duration::from_secs(5),
};

/// The part of a cluster in the stores of a node.
#[derive(Clone, Debug)]
pub(crate) struct ClusterStores {
    /// The other nodes.
    pub(crate) peers: Arc<Peers>,
    /// The number of owners of each blob, if there is no backing cache (`cluster.replicas`).
    pub(crate) replicas: usize,
    /// Set if blobs are read from other nodes before the backing cache, even if no action came from there
    /// (`cluster.peer_reads`).
    pub(crate) peer_reads: bool,
}

/// Returns a function that creates clients of other nodes. `tls` returns the settings of connections to a node, which
/// proves its name; `None` for plain text. `traffic` counts the bytes of blobs.
pub(crate) fn connect(
    windows: &Budget,
    traffic: Arc<Traffic>,
    tls: impl Fn(&Member) -> Option<watch::Receiver<ClientTls>> + Send + Sync + 'static,
) -> Connect {
    let windows = windows.clone();
    Box::new(move |member| {
        let options = RemoteOptions {
            role: "node",
            tls: tls(member),
            // Another node answers faster than a retry.
            retries: 0,
            connections: CONNECTIONS,
            windows: windows.clone(),
            timeout: TIMEOUT,
            breaker: BREAKER,
            ..RemoteOptions::new(RemoteAddress::Tcp(member.address.clone()))
        };
        let store = RemoteStore::new(&options).map_err(|why| why.to_string())?;
        let store = Arc::new(store);
        let counts = Counts {
            traffic: Arc::clone(&traffic),
            ..Counts::default()
        };
        Ok(PeerStores {
            blobs: Arc::new(Metered::new(Arc::clone(&store), counts)),
            actions: store,
        })
    })
}

impl ClusterStores {
    /// Puts the other nodes in front of the backing cache.
    pub(super) fn in_front(&self, config: &Config, (blobs, actions): TierStores) -> TierStores {
        let options = NearOptions {
            peer_reads: self.peer_reads,
            read_only: config.backing_cache.read_only,
        };
        let near = Near::new(Arc::clone(&self.peers), blobs, options);
        (Arc::new(near), actions)
    }

    fn owners(&self, config: &Config, local: &Arc<LocalStore>) -> TierStores {
        let local = Arc::clone(local) as _;
        let owners = Owners::new(Arc::clone(&self.peers), local, self.replicas);
        let owners = Arc::new(owners);
        let stores = (Arc::clone(&owners) as _, owners as _);
        traced(&config.telemetry, Tier::Backing, stores)
    }
}

impl Tiers {
    /// Opens the local tier in front of the owners of each blob. Pending writes for an earlier backing cache go to the
    /// owners.
    pub(super) async fn owned(
        config: &Config,
        parts: &Parts,
        cluster: &ClusterStores,
    ) -> Result<Self, Error> {
        let local = open_local(config, parts).await?;
        let owners = cluster.owners(config, &local);
        let cache = &config.local_cache;
        let options = gorego_proxy::Options {
            // Owners lease the blobs that they report or accept.
            existence_ttl: (config.backing_cache.existence_ttl)
                .min(cache.lease)
                .min(cache.upload_lease),
            read_only: false,
            local_first: true,
            prefetch: config.backing_cache.prefetch,
            // A lost node is no outage: another node takes its place.
            on_outage: gorego_proxy::OnOutage::Fail,
            outbox_retry: config.backing_cache.outbox_retry,
            memory: parts.proxy.clone(),
        };
        let owned = Arc::new(LatestResults::new(Arc::clone(&local) as _));
        Self::in_two_tiers(config, (local, Some(owned)), owners, options).await
    }

    /// Returns the stores that other nodes use, which are the local tier. Results are returned even if they are
    /// incomplete.
    pub(crate) fn mesh_stores(&self) -> Option<Stores> {
        let local = self.local.as_ref()?;
        let owned = self.owned.clone();
        Some(Stores {
            blobs: Arc::clone(local) as _,
            uploads: Arc::clone(local) as _,
            actions: owned.map_or_else(|| Arc::clone(local) as _, |owned| owned as _),
        })
    }
}
