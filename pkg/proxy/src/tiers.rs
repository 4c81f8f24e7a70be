//! The two tiers, as the parts of a proxy share them.

use std::sync::Arc;

use bytes::Bytes;
use gorego_limits::Call;
use gorego_storage::{ActionCache, BlobStore as _, Digest, Error, Result, span::Tier};
use gorego_storage_local::LocalStore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    backing::BackingBlobs,
    options::{OnOutage, Options},
    outbox::Outbox,
};

/// The two tiers and the options of a proxy, and the tasks that outlive the calls that started them.
#[derive(Clone, Debug)]
pub(crate) struct Tiers {
    pub(crate) local: Arc<LocalStore>,
    pub(crate) backing: Arc<BackingBlobs>,
    pub(crate) backing_results: Arc<dyn ActionCache>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) options: Options,
    pub(crate) tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

impl Tiers {
    /// Whether the local tier may serve alone during an outage.
    pub(crate) fn may_degrade(&self) -> bool {
        self.options.on_outage == OnOutage::Degrade
    }

    /// Whether the local tier serves a call alone after this error of the backing cache.
    pub(crate) fn degrades(&self, error: &Error) -> bool {
        self.may_degrade() && matches!(error, Error::Unavailable(_))
    }

    /// Returns the `miss` of the local tier if that serves the call alone after this error of the backing cache, else
    /// the error.
    pub(crate) fn miss_or(&self, miss: Error, error: Error) -> Error {
        if self.degrades(&error) {
            miss.in_outage(error)
        } else {
            error
        }
    }

    /// Runs `work` until the proxy is closed.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        // The work outlives the call, but queues for memory with others of its connection.
        let call = Call::current().detached();
        let work = async move {
            cancel.run_until_cancelled(work).await;
        };
        self.tracker.spawn(call.scope(work.in_current_span()));
    }

    /// Runs the write of a blob or a result to its end, even if the caller is cancelled.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        digest: &Digest,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let work = Call::current().scope(work.in_current_span());
        let ended = self.tracker.spawn(work).await;
        ended.map_err(|error| Error::Unavailable(format!("write of {digest} failed: {error}")))?
    }

    /// Stores fetched or uploaded blobs in the local tier, as far as possible.
    pub(crate) async fn store_local(&self, blobs: Vec<(Digest, Bytes)>) {
        let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
        let stored = self.local.put_batch(blobs);
        let stored = Tier::Local.traced("put_batch", &digests, stored).await;
        for (digest, stored) in digests.iter().zip(stored) {
            log_unstored(digest, &stored);
        }
    }

    /// Cancels spawned work, and waits for the end of all tasks.
    pub(crate) async fn close(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Logs that a fetched or uploaded blob is not in the local tier, which does not concern its callers.
pub(crate) fn log_unstored<T>(digest: &Digest, stored: &Result<T>) {
    if let Err(error) = stored {
        tracing::debug!(%digest, %error, "failed to store a blob in the local tier");
    }
}
