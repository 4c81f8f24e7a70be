//! Counts of what passes through the tiers, if metrics are served.

use std::sync::Arc;

use gorego_server::Stores;
use gorego_storage::{ActionCache, BlobStore, Traffic};
use gorego_storage_local::LocalStore;
use gorego_storage_remote::RemoteStore;
use gorego_telemetry::{BackingCalls, Counts, Metered};

/// The counts of the tiers that a process has.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    client: Arc<Traffic>,
    backing: Option<Counts>,
}

/// The backing cache as a store of blobs and of action results.
pub(crate) type BackingStores = (Arc<dyn BlobStore>, Arc<dyn ActionCache>);

impl Meters {
    /// Counts what clients are answered. A local tier that `answers` alone has the lookups of the clients.
    pub(crate) fn of_clients(&self, stores: Stores, answers: Option<&LocalStore>) -> Stores {
        let counts = |answering| Counts {
            traffic: Arc::clone(&self.client),
            answering,
            calls: None,
        };
        let local = answers.map(|local| Arc::clone(local.traffic()));
        Stores {
            blobs: Arc::new(Metered::new(stores.blobs, counts(local))),
            uploads: stores.uploads,
            actions: Arc::new(Metered::new(stores.actions, counts(None))),
        }
    }

    /// Counts the lookups of results in a local tier without a proxy.
    pub(crate) fn of_local(local: &Arc<LocalStore>) -> Arc<dyn ActionCache> {
        let counts = Counts {
            traffic: Arc::clone(local.traffic()),
            ..Counts::default()
        };
        Arc::new(Metered::new(Arc::clone(local), counts))
    }

    /// Counts the calls of the backing cache.
    pub(crate) fn of_backing(&mut self, store: &Arc<RemoteStore>) -> BackingStores {
        let counts = Counts {
            calls: Some(Arc::default()),
            ..Counts::default()
        };
        let metered = Arc::new(Metered::new(Arc::clone(store), counts.clone()));
        self.backing = Some(counts);
        (Arc::clone(&metered) as _, metered)
    }

    /// Returns the tiers by their labels.
    pub(crate) fn tiers(&self, local: Option<&LocalStore>) -> Vec<(&'static str, Arc<Traffic>)> {
        let backing = self.backing.as_ref().map(|counts| &counts.traffic);
        let tiers = [
            ("client", Some(&self.client)),
            ("local", local.map(LocalStore::traffic)),
            ("backing", backing),
        ];
        let known =
            |(label, traffic): (_, Option<&Arc<Traffic>>)| Some((label, Arc::clone(traffic?)));
        tiers.into_iter().filter_map(known).collect()
    }

    /// Returns the counts of the backing cache's calls.
    pub(crate) fn calls(&self) -> Option<Arc<BackingCalls>> {
        self.backing.as_ref()?.calls.clone()
    }
}
