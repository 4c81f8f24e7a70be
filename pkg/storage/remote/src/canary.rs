//! Notices that a peer restarted without its blobs although no call failed.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time};

use super::{missing, peer::Peer, retry::Retry};
use gorego_storage::Digest;

/// The least time between two checks, for peers that close each connection soon.
const PAUSE: Duration = Duration::from_secs(5);

const LOST: &str = "the backing cache lost a blob between two connections; \
                    it is asked for every blob again";

/// A blob that the peer is known to have, looked up again when a connection is lost.
#[derive(Default)]
pub(super) struct Canary {
    blob: Mutex<Option<Digest>>,
    /// Notified when a connection ends.
    pub(super) lost: Arc<Notify>,
}

impl Canary {
    /// Records that the peer has this blob, which is not the empty one.
    pub(super) fn set(&self, digest: &Digest) {
        *self.blob.lock() = Some(*digest);
    }
}

/// Looks the blob up once after each loss of a connection, until the peer is dropped. An idle connection that a
/// balancer closes costs a short call.
pub(super) async fn watch(peer: Weak<Peer>, lost: Arc<Notify>) {
    loop {
        lost.notified().await;
        let Some(peer) = peer.upgrade() else { return };
        let Some(digest) = peer.canary.blob.lock().take() else {
            continue;
        };
        let answer = missing::find(&peer, &[digest], &mut Retry::new(0, Arc::default())).await;
        if answer.as_ref().is_ok_and(|missing| !missing.is_empty()) {
            tracing::info!(peer = &*peer.name, %digest, "{LOST}");
            peer.breaker.count_outage();
        } else {
            peer.canary.blob.lock().get_or_insert(digest);
        }
        if let Err(failure) = answer {
            tracing::debug!(%digest, %failure, "failed to look a blob up");
            // An outage is counted as one. Other failures reveal nothing about the blob.
            if !failure.is_outage() || failure.asks_to_slow_down() {
                lost.notify_one();
            }
        }
        drop(peer);
        time::sleep(PAUSE).await;
    }
}
