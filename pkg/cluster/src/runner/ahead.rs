//! The inputs that a node fetches before it has a slot for their action.

use std::{panic::AssertUnwindSafe, sync::Arc};

use bytes::Bytes;
use futures::FutureExt as _;
use gorego_scheduler::{Generation, Need};
use reapi::gorego::cluster::Prefetch;
use tokio_util::sync::CancellationToken;

use super::{
    Told,
    host::{Parts, worker},
};

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Parts<J, O> {
    /// Chooses a queued action whose inputs a peer shall fetch.
    pub(super) fn choose_ahead(&self, peer: &Generation, need: Need) -> Option<Prefetch> {
        let fits = self.fits(peer);
        let key = self.scheduler.look_ahead(&worker(peer), need, fits)?;
        Some(Prefetch {
            function: key.action.function().name().to_owned(),
            hash: Bytes::copy_from_slice(key.action.hash()),
            size: key.action.size(),
        })
    }

    /// Fetches the inputs of an action of a peer, until the link with the peer ends.
    pub(super) fn start_fetch(&mut self, entry: &Generation, prefetch: Prefetch) {
        let stop = CancellationToken::new();
        if let Some(linked) = self.linked.get_mut(entry) {
            linked.fetch = Some(stop.clone().drop_guard());
        }
        let (work, told, entry) = (Arc::clone(&self.work), self.told.clone(), entry.clone());
        self.spawn(async move {
            let fetch = AssertUnwindSafe(work.fetch_ahead(&entry, &prefetch)).catch_unwind();
            // What the fetch did not get is fetched when the action runs.
            let _ = stop.run_until_cancelled(fetch).await;
            let _ = told.send(Told::Fetched(entry));
        });
    }
}
