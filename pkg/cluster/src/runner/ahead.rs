//! The inputs that a node fetches before it has a slot for their action.

use std::{panic::AssertUnwindSafe, sync::Arc};

use bytes::Bytes;
use futures::FutureExt as _;
use gorego_scheduler::{Generation, Need};
use reapi::gorego::cluster::Prefetch;
use tokio_util::sync::CancellationToken;

use super::{
    Told,
    parts::{Parts, worker},
};

/// The fetches of inputs of actions of a peer. They end when this is dropped.
#[derive(Default)]
pub(super) struct LinkFetches(CancellationToken);

impl Drop for LinkFetches {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Parts<J, O> {
    /// Chooses queued actions whose inputs a peer shall fetch.
    pub(super) fn choose_ahead(&self, peer: &Generation, need: Need, most: usize) -> Vec<Prefetch> {
        let fits = self.fits(peer);
        let keys = self.scheduler.look_ahead(&worker(peer), need, most, fits);
        let keys = keys.into_iter().map(|key| Prefetch {
            function: key.action.function().name().to_owned(),
            hash: Bytes::copy_from_slice(key.action.hash()),
            size: key.action.size(),
        });
        keys.collect()
    }

    /// Fetches the inputs of an action of a peer, until the link with the peer ends or the peer has no more actions.
    pub(super) fn start_fetch(&mut self, entry: &Generation, prefetch: Prefetch) {
        let linked = self.linked.get(entry);
        let stop = linked.map(|linked| linked.fetches.0.clone());
        let stop = stop.unwrap_or_default();
        let (work, told, entry) = (Arc::clone(&self.work), self.told.clone(), entry.clone());
        self.spawn(async move {
            let fetch = AssertUnwindSafe(work.fetch_ahead(&entry, &prefetch)).catch_unwind();
            // What the fetch did not get is fetched when the action runs.
            let _ = stop.run_until_cancelled(fetch).await;
            let _ = told.send(Told::Fetched(entry));
        });
    }
}
