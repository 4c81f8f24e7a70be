//! Completeness of action results: a result is served only while all of its outputs are present.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use gorego_limits::Budget;
use reapi::v2::ActionResult;

use crate::{ActionCache, BlobStore, CachedResult, Digest, Error, Outputs, Result};

/// An action cache that serves only results whose [`Outputs`] are all present in a store. A lookup extends the
/// leases of the outputs.
pub struct CompletenessChecking<A: ?Sized> {
    results: Arc<A>,
    blobs: Arc<dyn BlobStore>,
    /// The budget for reading trees.
    memory: Budget,
    /// Extends the leases of the outputs also on a put.
    leases_puts: bool,
}

impl<A: ActionCache + ?Sized> CompletenessChecking<A> {
    /// Serves `results` whose outputs are all in `blobs`. Trees are read within `memory`.
    pub fn new(results: Arc<A>, blobs: Arc<dyn BlobStore>, memory: Budget) -> Self {
        Self {
            results,
            blobs,
            memory,
            leases_puts: false,
        }
    }

    /// Extends the leases of outputs also when a result is put.
    #[must_use]
    pub fn leasing_puts(self) -> Self {
        let leases_puts = true;
        Self {
            leases_puts,
            ..self
        }
    }

    async fn check(&self, action: &Digest, result: &ActionResult) -> Result<()> {
        let blobs = Arc::clone(&self.blobs);
        find_outputs(
            Outputs::of(action, result, blobs, self.memory.clone())?,
            &*self.blobs,
        )
        .await
    }
}

/// Looks up all outputs in `blobs`. `Error::Incomplete` names the first missing one.
pub async fn find_outputs(mut outputs: Outputs, blobs: &dyn BlobStore) -> Result<()> {
    while let Some(digests) = outputs.next().await? {
        if let Some(missing) = blobs.find_missing(&digests).await?.first() {
            return Err(outputs.failed_by(Error::NotFound(*missing)).await);
        }
    }
    Ok(())
}

#[async_trait]
impl<A: ActionCache + ?Sized> ActionCache for CompletenessChecking<A> {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let found = self.results.get(instance, action, memory).await?;
        self.check(action, &found.result).await?;
        Ok(found)
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        // A client relies on the outputs of a result that it stored, as after a hit. The next lookup reports
        // a missing one.
        if self.leases_puts
            && let Err(error) = self.check(action, &result).await
            && !error.is_miss()
        {
            tracing::debug!(instance, %action, %error, "failed to lease the outputs of a new action result");
        }
        self.results.put(instance, action, result).await
    }
}

impl<A: fmt::Debug + ?Sized> fmt::Debug for CompletenessChecking<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletenessChecking")
            .field("results", &&*self.results)
            .field("blobs", &self.blobs)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
