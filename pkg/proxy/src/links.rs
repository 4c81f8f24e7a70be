//! The two tiers as the store of an executor: inputs are files of the local tier, and outputs are written through.

use std::collections::HashSet;

use async_trait::async_trait;
use futures::{StreamExt as _, future, stream};
use gorego_storage::{
    Adopt, BlobStore as _, Digest, DigestFunction, Error, Links, PinError, Pins, Result, span::Tier,
};

use crate::{batches::batches, store::ProxyStore};

/// The most batches or large blobs that are fetched at once for one action.
const AT_ONCE: usize = 8;

#[async_trait]
impl Links for ProxyStore {
    fn inner(&self) -> Option<&dyn Links> {
        Some(&*self.tiers().local)
    }

    async fn pin(&self, digests: &[Digest]) -> Result<Pins, PinError> {
        let local = &self.tiers().local;
        let pins = local.reserve_pins(digests).await?;
        let found = self.uploads.find_in_tiers(digests).await?;
        if !found.missing.is_empty() {
            return Err(PinError::Missing(found.missing));
        }
        if !found.not_local.is_empty() {
            self.fetch_pinned(found.not_local).await?;
        }
        Ok(pins)
    }

    /// Returns once the backing cache has the blobs, or once they are pending in the outbox; with a read-only backing
    /// cache, once the local tier has them.
    async fn adopt(&self, function: DigestFunction, files: Vec<Adopt>) -> Vec<Result<Digest>> {
        let mut adopted = self.tiers().local.adopt(function, files).await;
        if self.tiers().options.read_only {
            return adopted;
        }
        let stored: HashSet<Digest> = adopted.iter().flatten().copied().collect();
        let pins = stored
            .iter()
            .map(|digest| self.tiers().local.pin_one(digest));
        let _pins = future::join_all(pins).await;
        let failed = self.uploads.upload_adopted(stored).await;
        for result in &mut adopted {
            if let Ok(digest) = result
                && let Some(error) = failed.get(digest)
            {
                *result = Err(error.clone());
            }
        }
        adopted
    }
}

impl ProxyStore {
    /// Fetches blobs whose room is reserved.
    async fn fetch_pinned(&self, digests: Vec<Digest>) -> Result<(), PinError> {
        let fetches = stream::iter(batches(digests.clone()).into_iter().map(|batch| async {
            let fetched = self.fetches.store_batch(&batch).await;
            batch.into_iter().zip(fetched).collect::<Vec<_>>()
        }));
        let fetched: Vec<_> = fetches.buffer_unordered(AT_ONCE).collect().await;
        let (mut missing, mut failure) = (Vec::new(), None);
        for (digest, fetched) in fetched.into_iter().flatten() {
            match fetched {
                Ok(()) => {}
                Err(Error::NotFound(_)) => missing.push(digest),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if !missing.is_empty() {
            return Err(PinError::Missing(missing));
        }
        if let Some(error) = failure {
            let first = digests.first().copied().map(Error::NotFound);
            return Err(match first {
                Some(miss) => self.tiers().miss_or(miss, error).into(),
                None => error.into(),
            });
        }
        let unstored = self.tiers().local.find_missing(&digests);
        let unstored = Tier::Local
            .traced("find_missing", &digests, unstored)
            .await?;
        if unstored.is_empty() {
            return Ok(());
        }
        Err(PinError::Store(Error::Full {
            what: format!("{} fetched blobs", unstored.len()),
            bytes: unstored.iter().map(Digest::size).sum(),
            why: "the local tier could not store them".to_owned(),
        }))
    }
}
