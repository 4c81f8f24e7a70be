//! The two tiers, as the parts of a proxy share them.

use std::sync::Arc;

use gorego_limits::Call;
use gorego_storage::{ActionCache, Digest, Error, Result};
use gorego_storage_local::LocalStore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    backing::BackingBlobs,
    options::{OnOutage, Options},
};

/// The two tiers and the options of a proxy, and the tasks that outlive the calls that started them.
#[derive(Clone, Debug)]
pub(crate) struct Tiers {
    pub(crate) local: Arc<LocalStore>,
    pub(crate) backing: Arc<BackingBlobs>,
    pub(crate) backing_results: Arc<dyn ActionCache>,
    pub(crate) options: Options,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Tiers {
    pub(crate) fn new(
        local: Arc<LocalStore>,
        backing: Arc<BackingBlobs>,
        backing_results: Arc<dyn ActionCache>,
        options: Options,
    ) -> Self {
        Self {
            local,
            backing,
            backing_results,
            options,
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
        }
    }

    /// Whether the local tier may serve alone during an outage.
    pub(crate) fn may_degrade(&self) -> bool {
        self.options.on_outage == OnOutage::Degrade
    }

    /// Whether the local tier serves a call alone after this error of the backing cache.
    pub(crate) fn degrades(&self, error: &Error) -> bool {
        self.may_degrade() && matches!(error, Error::Unavailable(_))
    }

    /// Runs `work` until the proxy is closed.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        // The work outlives the call, but queues for memory with others of its connection.
        let call = Call::current().detached();
        self.tracker.spawn(call.scope(async move {
            cancel.run_until_cancelled(work).await;
        }));
    }

    /// Runs the write of a blob or a result to its end, even if the caller is cancelled.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        digest: &Digest,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let ended = self.tracker.spawn(Call::current().scope(work)).await;
        ended.map_err(|error| Error::Unavailable(format!("write of {digest} failed: {error}")))?
    }

    /// Cancels spawned work, and waits for the end of all tasks.
    pub(crate) async fn close(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
