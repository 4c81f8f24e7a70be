//! Notices that a peer restarted without its blobs although no call failed.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time;

use super::{missing, peer::Peer};
use gorego_storage::{Digest, InstanceName};

/// The least time between two checks, for peers that close each connection soon.
const PAUSE: Duration = Duration::from_secs(5);

const LOST: &str = "the backing cache lost a blob between two connections; \
                    it is asked for every blob again";

/// A blob that the peer is known to have, looked up again when a connection is lost.
#[derive(Debug, Default)]
pub(super) struct Canary(Mutex<Option<Digest>>);

impl Canary {
    /// Records that the peer has this blob. Ignores the empty blob, which is always present.
    pub(super) fn set(&self, digest: &Digest) {
        if !digest.is_empty_blob() {
            *self.0.lock() = Some(*digest);
        }
    }

    /// Looks the blob up once after each loss of a connection, until the peer is dropped. An idle
    /// connection that a balancer closes costs a short call.
    pub(super) async fn watch(self: Arc<Self>, peer: Weak<Peer>, instance: InstanceName) {
        let Some(lost) = peer.upgrade().map(|peer| Arc::clone(&peer.lost)) else {
            return;
        };
        loop {
            lost.notified().await;
            let Some(peer) = peer.upgrade() else { return };
            let Some(digest) = self.0.lock().take() else {
                continue;
            };
            let answer = missing::lacks(&peer, instance.as_str(), &digest).await;
            if let Ok(true) = answer {
                tracing::info!(peer = &*peer.name, %digest, "{LOST}");
                peer.breaker.count_outage();
            } else {
                self.0.lock().get_or_insert(digest);
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
}
