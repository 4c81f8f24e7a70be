//! The store behind another server.

use std::{fmt, sync::Arc};

use tokio::sync::watch;

use crate::{RemoteCapabilities, RemoteError, RemoteOptions, peer::Peer};
use gorego_storage::{BreakerState, Result};

/// The store of another server, reached over gRPC. It connects on the first call, and reconnects when
/// necessary. A put whose content was sent to the end is reported as stored even if the peer had the
/// blob: peers do not report that for small uploads.
pub struct RemoteStore {
    pub(crate) peer: Arc<Peer>,
}

impl RemoteStore {
    /// Creates a store within a Tokio runtime. It has not connected yet.
    pub fn new(options: &RemoteOptions) -> Result<Self, RemoteError> {
        let peer = Peer::new(options)?;
        Ok(Self { peer })
    }

    /// Returns the state of the breaker. It stays open until the first call after the cool-down.
    pub fn breaker(&self) -> watch::Receiver<BreakerState> {
        self.peer.breaker.state.subscribe()
    }

    /// Returns the peer's capabilities, requested every few minutes and after an outage.
    pub async fn capabilities(&self) -> Result<Arc<RemoteCapabilities>> {
        self.peer.capabilities().await
    }
}

impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteStore").field(&self.peer.name).finish()
    }
}
