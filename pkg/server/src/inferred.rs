//! Digests of clients that name no digest function: 64 digits may be of SHA-256 or of BLAKE3, and some clients name
//! the function in no call.

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, ActionCacheExt as _, Blob, BlobStore, CachedResult, Digest, DigestFunction, Error,
    Put, Result, UploadId, Uploads, named_blobs,
};
use reapi::v2::ActionResult;

use crate::Stores;

/// The order of the functions of a digest that was parsed without one.
const AS_PARSED: [DigestFunction; 2] = [DigestFunction::Sha256, DigestFunction::Blake3];
/// The number of digests that are looked up under the second function at once.
const BATCH: usize = 10_000;

/// Stores that try a digest of unnamed function under each function in turn. No content has the same hash under two
/// functions, so a blob that is found is the one that was meant.
#[derive(Debug)]
struct FunctionInference {
    stores: Stores,
    /// The functions in the order in which they are tried.
    functions: Vec<DigestFunction>,
}

impl Stores {
    /// Wraps the stores, so that digests without a function are tried under `functions`. Servers do that themselves,
    /// unless their list of functions is empty.
    #[must_use]
    pub fn inferring(self, functions: Vec<DigestFunction>) -> Self {
        let stores = self;
        let inferring = Arc::new(FunctionInference { stores, functions });
        Self {
            blobs: Arc::<FunctionInference>::clone(&inferring),
            uploads: Arc::<FunctionInference>::clone(&inferring),
            actions: inferring,
        }
    }
}

/// A method of a store that reads a batch.
type ReadBatch<T> = for<'a> fn(&'a dyn BlobStore, &'a [Digest]) -> BoxFuture<'a, Vec<Result<T>>>;

impl FunctionInference {
    /// Returns the digest under the function tried first, and under the second one.
    fn tried(&self, digest: &Digest) -> (Digest, Option<Digest>) {
        let digest = digest.among(&self.functions);
        (digest.only(), digest.other())
    }

    /// Looks the digest up, and once more if it is absent under the first function. The first lookup names both
    /// functions, since a backing cache may have the blob under either, and does not count if it is repeated.
    async fn get_either<T, F: Future<Output = Result<T>>>(
        &self,
        digest: &Digest,
        look_up: impl Fn(Digest) -> F,
    ) -> Result<T> {
        let digest = digest.among(&self.functions);
        let mut found = look_up(digest).await;
        if let Some(other) = digest.other()
            && found.as_ref().is_err_and(Error::is_absence)
        {
            or_second(&mut found, look_up(other).await);
        }
        found
    }

    /// Returns the digests with their functions in the configured order.
    fn in_order<'a>(&self, digests: &'a [Digest]) -> Cow<'a, [Digest]> {
        if self.functions == AS_PARSED {
            return Cow::Borrowed(digests);
        }
        let ordered = digests.iter().map(|digest| digest.among(&self.functions));
        ordered.collect()
    }

    /// Reads a batch, and once more those of its blobs that are absent under the first function.
    async fn read_batch<T>(&self, digests: &[Digest], read: ReadBatch<T>) -> Vec<Result<T>> {
        let digests = self.in_order(digests);
        let mut found = read(&*self.stores.blobs, &digests).await;
        let (places, others): (Vec<_>, Vec<_>) = found
            .iter_mut()
            .zip(&*digests)
            .filter(|(found, _)| found.as_ref().is_err_and(Error::is_absence))
            .filter_map(|(found, digest)| Some((found, digest.other()?)))
            .unzip();
        if !others.is_empty() {
            let again = read(&*self.stores.blobs, &others).await;
            for (place, again) in places.into_iter().zip(again) {
                or_second(place, again);
            }
        }
        found
    }

    /// Returns the digests that are missing under both functions.
    async fn find_missing_inferred(
        &self,
        digests: &[Digest],
        second: DigestFunction,
    ) -> Result<Vec<Digest>> {
        let mut missing = Vec::new();
        for batch in self.missing_or_refused(digests).await?.chunks(BATCH) {
            let others = batch.iter().filter_map(|digest| digest.under(second));
            let others: Vec<_> = others.collect();
            let others = self.missing_or_refused(&others).await?;
            let mut others: HashSet<_> = others.into_iter().collect();
            let is_missing = |digest: &&Digest| {
                let other = digest.under(second);
                other.is_none_or(|other| others.remove(&other))
            };
            missing.extend(batch.iter().filter(is_missing));
        }
        Ok(missing)
    }

    /// Returns the missing digests, which are all if the function is refused.
    async fn missing_or_refused(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        match self.stores.blobs.find_missing(digests).await {
            Err(error) if error.is_absence() => Ok(digests.to_vec()),
            missing => missing,
        }
    }

    /// Whether any output of the result is stored under the function of `action`.
    async fn has_any(&self, action: &Digest, result: &ActionResult) -> Result<bool> {
        let mut outputs = named_blobs(action, result).unwrap_or_default();
        outputs.sort_unstable();
        outputs.dedup();
        let missing = self.missing_or_refused(&outputs).await?;
        Ok(missing.len() < outputs.len())
    }
}

/// Replaces an absence by the result under the second function, unless a miss would be replaced by another absence.
fn or_second<T>(found: &mut Result<T>, again: Result<T>) {
    let repeats =
        found.as_ref().is_err_and(Error::is_miss) && again.as_ref().is_err_and(Error::is_absence);
    let tells_more = matches!(
        (&*found, &again),
        (
            Err(Error::NotFound(_) | Error::NoResult(_)),
            Err(Error::Incomplete { .. } | Error::Outage { .. })
        )
    );
    if !repeats || tells_more {
        *found = again;
    }
}

/// Whether content that was refused under one function should be stored under that of `other`.
fn is_of_other<T>(put: &Result<T>, other: &Digest, content: &[u8]) -> bool {
    let refused = |error: &Error| error.is_absence() || matches!(error, Error::Mismatch { .. });
    put.as_ref().is_err_and(refused) && other.is_of(content)
}

#[async_trait]
impl BlobStore for FunctionInference {
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        self.stores.blobs.digest_functions().await
    }

    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let digests = self.in_order(digests);
        match digests.iter().find_map(Digest::other) {
            Some(other) => self.find_missing_inferred(&digests, other.function()).await,
            None => self.stores.blobs.find_missing(&digests).await,
        }
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let blobs = &self.stores.blobs;
        let get = |digest| async move { blobs.get(&digest, offset).await };
        self.get_either(digest, get).await
    }

    /// Content in memory is hashed under the second function after it was refused under the first. A stream is left
    /// to the store, which hashes the staged content again.
    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        let (first, other) = self.tried(digest);
        let blobs = &self.stores.blobs;
        let (Some(other), Blob::Bytes(content)) = (other, &blob) else {
            return blobs.put(&digest.among(&self.functions), blob).await;
        };
        let content = content.clone();
        let put = blobs.put(&first, blob).await;
        if is_of_other(&put, &other, &content) {
            return blobs.put(&other, Blob::Bytes(content)).await;
        }
        put
    }

    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        let fetch: ReadBatch<_> = |blobs, digests| blobs.fetch_batch(digests);
        self.read_batch(digests, fetch).await
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        let get: ReadBatch<_> = |blobs, digests| blobs.get_batch(digests);
        self.read_batch(digests, get).await
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        if blobs.iter().all(|(digest, _)| digest.other().is_none()) {
            return self.stores.blobs.put_batch(blobs).await;
        }
        let ordered = |(digest, content): (Digest, Bytes)| (digest.among(&self.functions), content);
        let blobs: Vec<_> = blobs.into_iter().map(ordered).collect();
        let mut put = self.stores.blobs.put_batch(blobs.clone()).await;
        let (places, others): (Vec<_>, Vec<_>) = put
            .iter_mut()
            .zip(blobs)
            .filter_map(|(put, (digest, content))| Some((put, (digest.other()?, content))))
            .filter(|(put, (other, content))| is_of_other(put, other, content))
            .unzip();
        if !others.is_empty() {
            let again = self.stores.blobs.put_batch(others).await;
            for (place, put) in places.into_iter().zip(again) {
                *place = put;
            }
        }
        put
    }
}

#[async_trait]
impl Uploads for FunctionInference {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        let digest = digest.among(&self.functions);
        self.stores.uploads.committed(&digest, upload).await
    }
}

#[async_trait]
impl ActionCache for FunctionInference {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let actions = &self.stores.actions;
        let get = |action| async move { actions.get(instance, &action, memory).await };
        self.get_either(action, get).await
    }

    /// Stores the result under the function of its outputs: the first one, unless outputs are stored under the second
    /// alone.
    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let actions = &self.stores.actions;
        let (first, other) = self.tried(action);
        let Some(other) = other else {
            return actions.put(instance, &first, result).await;
        };
        if self.has_any(&first, &result).await? || !self.has_any(&other, &result).await? {
            return actions.put(instance, &first, result).await;
        }
        // An earlier result under the first function would be found before this one.
        let replaces = match actions.find(instance, &first).await {
            Err(error) if error.is_absence() => false,
            found => found?.is_some(),
        };
        if replaces {
            actions.put(instance, &first, result.clone()).await?;
        }
        actions.put(instance, &other, result).await
    }
}
