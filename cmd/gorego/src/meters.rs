//! Counts of what passes through the tiers, if metrics are served.

use std::sync::Arc;

use gorego_limits::Budget;
use gorego_server::Stores;
use gorego_storage::{ActionCache, BlobStore, Traffic};
use gorego_storage_local::LocalStore;
use gorego_storage_remote::RemoteStore;
use gorego_telemetry::{Counts, Metered, Sources};
use tokio::runtime::Handle;

use crate::memory::Parts;

/// The counts of the tiers that a process has, and the budgets that its calls share.
#[derive(Debug)]
pub(crate) struct Meters {
    memory: Vec<(&'static str, Budget)>,
    files: Budget,
    client: Arc<Traffic>,
    backing: Option<Counts>,
    remote: Option<Arc<RemoteStore>>,
}

/// The blobs and the action results of a tier.
pub(crate) type TierStores = (Arc<dyn BlobStore>, Arc<dyn ActionCache>);

impl Meters {
    pub(crate) fn new(parts: &Parts) -> Self {
        Self {
            memory: parts.named(),
            files: parts.server.files.clone(),
            client: Arc::default(),
            backing: None,
            remote: None,
        }
    }

    /// Counts the answers to clients. If a local tier `answers` alone, each lookup counts for it, too.
    pub(crate) fn of_clients(&self, stores: Stores, answers: Option<&LocalStore>) -> Stores {
        let counts = Counts {
            traffic: Arc::clone(&self.client),
            answering: answers.map(|local| Arc::clone(local.traffic())),
            calls: None,
        };
        Stores {
            blobs: Arc::new(Metered::new(stores.blobs, counts.clone())),
            uploads: stores.uploads,
            actions: Arc::new(Metered::new(stores.actions, counts)),
        }
    }

    /// Counts the calls of the backing cache.
    pub(crate) fn of_backing(&mut self, store: &Arc<RemoteStore>) -> TierStores {
        let counts = Counts {
            calls: Some(Arc::default()),
            ..Counts::default()
        };
        let metered = Arc::new(Metered::new(Arc::clone(store), counts.clone()));
        self.backing = Some(counts);
        self.remote = Some(Arc::clone(store));
        (Arc::clone(&metered) as _, metered)
    }

    /// Adds the counts, and the states of the tiers, to the sources of the metrics.
    pub(crate) fn add_to(&self, sources: &mut Sources, local: Option<&Arc<LocalStore>>) {
        let backing = self.backing.as_ref();
        let tiers = [
            ("client", Some(&self.client)),
            ("local", local.map(|local| local.traffic())),
            ("backing", backing.map(|counts| &counts.traffic)),
        ];
        let known =
            |(label, traffic): (_, Option<&Arc<Traffic>>)| Some((label, Arc::clone(traffic?)));
        sources.tiers = tiers.into_iter().filter_map(known).collect();
        sources.budgets.clone_from(&self.memory);
        sources.files = Some(self.files.clone());
        sources.runtime = Handle::try_current().ok();
        sources.backing_calls = backing.and_then(|counts| counts.calls.clone());
        if let Some(local) = local.cloned() {
            sources.disk = Some(Box::new(move || local.report()));
        }
        if let Some(remote) = self.remote.clone() {
            sources.backing = Some(Box::new(move || remote.report()));
        }
    }
}
